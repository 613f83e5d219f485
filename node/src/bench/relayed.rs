//! What lending costs: the same links once behind one host, once spread over the hosts of a LAN that lend them to each
//! other.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use super::profile::{Kind, Profile};
use super::report::{
    Figure, Health, LinkBytes, Measured, Transfer, both, mbit_row, pause_row, ratio_row, wire_rows,
};
use super::stage::{FlowRun, Stage};
use super::timeline::Timeline;
use super::ways::Ways;

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct RelayedRun {
    /// One flow on a host that has all links itself.
    direct: Spread,
    /// One flow on the host that has the first link and borrows the others.
    relayed: Spread,
    /// Relayed over direct.
    ratio: Ways<f64>,
}

/// One flow each way over all links.
#[derive(Debug, Serialize)]
struct Spread {
    flow: Ways<Transfer>,
    /// What the links delivered during the download.
    link_bytes: Vec<LinkBytes>,
    timelines: Vec<Timeline>,
    emulator: Health,
}

/// Measures both, in a lab each.
///
/// # Errors
/// When a flow or a node fails.
pub(super) fn run(stage: &Stage<'_>) -> anyhow::Result<RelayedRun> {
    let relayed = spread(stage, "borrowed links")?;
    let profile = Profile { kind: Kind::Bond, ..stage.profile().clone() };
    let say = |what: &str| stage.say(what);
    let direct = Stage::new(&profile, stage.settings().clone(), &say)?;
    let direct = spread(&direct, "own links")?;
    let mbit = |spread: &Spread| spread.flow.clone().map(|flow| flow.mbit);
    let ratio = mbit(&relayed).over(mbit(&direct));
    Ok(RelayedRun { direct, relayed, ratio })
}

/// A flow each way on the first host that has uplinks.
fn spread(stage: &Stage<'_>, over: &str) -> anyhow::Result<Spread> {
    let mesh = stage.mesh(None)?;
    let host = stage.edges().into_iter().next().context("the lab has no host with an uplink")?;
    let spec = stage.flow(stage.settings().length);
    let runs =
        Ways::try_of(|way| stage.measured(&format!("{over}, {}", way.name()), &host, &spec, way, None))?;
    let emulator = stage.health()?;
    mesh.stop()?;
    let flow = Ways { download: runs.download.transfer(), upload: runs.upload.transfer() };
    let Ways { download, upload } = runs;
    let FlowRun { carried: down, .. } = download;
    Ok(Spread {
        flow,
        link_bytes: down.links,
        timelines: vec![down.timeline, upload.carried.timeline],
        emulator,
    })
}

impl Measured for RelayedRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        for (label, spread) in [("own links", &self.direct), ("borrowed links", &self.relayed)] {
            mbit_row(out, label, spread.flow.clone().map(|flow| flow.mbit))?;
            pause_row(out, spread.flow.clone().map(|flow| flow.longest_pause_ms))?;
            wire_rows(out, spread.flow.clone().map(|flow| flow.wire))?;
            for link in &spread.link_bytes {
                let mbyte = link.bytes.download as f64 / 1e6;
                writeln!(out, "  {:<30}{mbyte:>10.1}", format!("download by {}, MB", link.link))?;
            }
            spread.emulator.write(out)?;
        }
        ratio_row(out, "borrowed / own", self.ratio)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        self.relayed.timelines.iter().chain(&self.direct.timelines).collect()
    }

    fn figures(&self) -> Vec<Figure> {
        both("borrowed / own", self.ratio)
    }
}
