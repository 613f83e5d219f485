//! What the nodes' own reports and heartbeats take of the links, by their senders' counters.

use std::time::Instant;

use mwb_sim::lab::Host;
use serde::Serialize;
use serde_json::Value;

use super::report::row;
use super::ways::Ways;
use crate::lab_mesh::Mesh;

/// Reports and heartbeats during one transfer, with all headers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct ControlBytes {
    /// Sent towards the edge while it ran, kbit/s.
    pub(super) down_kbit: f64,
    /// Sent by the edge, kbit/s.
    pub(super) up_kbit: f64,
    /// Of these, reports.
    pub(super) reports_up_kbit: f64,
    /// Both directions together, in per cent of the payload.
    pub(super) percent: f64,
}

/// Counters at one moment.
pub(super) struct Reading {
    at: Instant,
    /// Sent by the exit, by the edge.
    all: [u64; 2],
    reports: [u64; 2],
}

impl Reading {
    /// Asks both nodes.
    ///
    /// # Errors
    /// When one does not answer.
    pub(super) fn of(mesh: &Mesh, edge: &Host) -> anyhow::Result<Self> {
        let (exit, edge) = (mesh.status("exit")?, mesh.status(edge.name())?);
        let sum = |status: &Value, field: &str| -> u64 {
            let sessions = status["sessions"].as_array().into_iter().flatten();
            let paths =
                sessions.flat_map(|session| session["sender"]["paths"].as_array().into_iter().flatten());
            paths.filter_map(|path| path[field].as_u64()).sum()
        };
        let reports = [&exit, &edge].map(|status| sum(status, "report_bytes"));
        let beats = [&exit, &edge].map(|status| sum(status, "heartbeat_bytes"));
        Ok(Self { at: Instant::now(), all: [reports[0] + beats[0], reports[1] + beats[1]], reports })
    }

    /// What was sent since `before` for a transfer of `payload` bytes.
    pub(super) fn since(&self, before: &Self, payload: u64) -> ControlBytes {
        let seconds = (self.at - before.at).as_secs_f64();
        let kbit = |now: u64, then: u64| now.saturating_sub(then) as f64 * 8e-3 / seconds;
        let (down_kbit, up_kbit) = (kbit(self.all[0], before.all[0]), kbit(self.all[1], before.all[1]));
        ControlBytes {
            down_kbit,
            up_kbit,
            reports_up_kbit: kbit(self.reports[1], before.reports[1]),
            percent: 100.0 * (down_kbit + up_kbit) * seconds / 8e-3 / payload.max(1) as f64,
        }
    }
}

/// For people.
pub(super) fn write(out: &mut String, control: Ways<ControlBytes>) -> std::fmt::Result {
    let one = |value: fn(&ControlBytes) -> f64| control.map(|bytes| format!("{:.0}", value(bytes)));
    row(out, "reports, heartbeats down, kbit/s", one(|bytes| bytes.down_kbit))?;
    row(out, "reports, heartbeats up, kbit/s", one(|bytes| bytes.up_kbit))?;
    row(out, "both, % of the payload", control.map(|bytes| format!("{:.2}", bytes.percent)))
}
