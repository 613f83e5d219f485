//! `--profile udp-loss`: a UDP flow of half the bond's rate over links that lose packets at random, without repair, with
//! resends only, and as configured by default.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use mwb_sim::lab::{self, Lab};
use mwb_sim::traffic::{EchoResult, EchoSpec, server, udp_echo};
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit};
use serde::Serialize;
use serde_json::Value;

use super::stage::PORT;
use super::{BenchArgs, output};
use crate::lab_mesh::{Mesh, MeshOptions};
use crate::lab_refused;
use crate::status_text::{list, number};

/// What the command line calls it; its links are not in the table.
pub(super) const NAME: &str = "udp-loss";
/// For the list of profiles.
pub(super) const ABOUT: &str = "what repair does for UDP over two links that lose 2 % each way";
/// Of each link, each way.
const LOSS_PERCENT: f64 = 2.0;
/// Rate of each link, Mbit/s of Ethernet frames.
const LINK_MBIT: f64 = 20.0;
/// One-way delays of the links.
const DELAYS_MS: [u64; 2] = [30, 40];
/// UDP payload: inner packets of 1,200 bytes.
const PAYLOAD: usize = 1172;
/// Bytes of a frame around the payload: inner IPv4 and UDP, ours, outer IPv4 and UDP, Ethernet.
const HEADERS: usize = 28 + 36 + 28 + 14;
/// Not counted: the paths are being measured.
const SETTLE: Duration = Duration::from_secs(5);
/// The aim, of the loss each way.
const LOST_PERCENT_MAX: f64 = 0.01;

/// The ways to run the nodes: name and configuration.
const CASES: [(&str, &str); 3] = [
    ("no repair", "[bond]\nresend = false\n[fec]\nmode = \"off\"\n[duplication]\nmode = \"off\"\n"),
    ("resends only", "[fec]\nmode = \"off\"\n[duplication]\nmode = \"off\"\n"),
    ("default", ""),
];

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct UdpLossReport {
    /// Always `udp-loss`.
    profile: &'static str,
    /// Time counted, of each case.
    seconds: u64,
    /// Version of the program.
    version: &'static str,
    /// Packets sent per second.
    rate: f64,
    /// Random loss of each link each way, per cent.
    link_loss_percent: f64,
    /// No more than this should be lost each way in the last case.
    target_lost_percent: f64,
    /// By configuration.
    cases: Vec<Case>,
}

/// One configuration.
#[derive(Debug, Serialize)]
struct Case {
    /// Which.
    name: &'static str,
    /// Packets sent.
    sent: u64,
    /// Of these, echoed.
    received: u64,
    /// Loss of one way, per cent: both ways are alike.
    lost_percent: f64,
    /// Round-trip times, ms.
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    /// Sums of both nodes since their start.
    counts: Counts,
}

/// What both nodes did.
#[derive(Debug, Default, Serialize)]
struct Counts {
    /// Packets sent again.
    resent: u64,
    /// Packets sent in blocks with parity.
    protected: u64,
    /// Parity datagrams sent.
    parity_sent: u64,
    /// Packets rebuilt from parity.
    recovered: u64,
    /// Packets that parity could not rebuild.
    failed: u64,
}

/// Measures each case once.
///
/// # Errors
/// When the host does not allow labs, or a node does not work.
pub(super) fn measure(args: &BenchArgs) -> anyhow::Result<UdpLossReport> {
    Lab::preflight().map_err(|error| anyhow::anyhow!(lab_refused::explain(&error)))?;
    output::progress("waiting for other labs on this machine to end");
    let _alone = lab::machine_lock().context("taking the machine's lock")?;
    let rate = LINK_MBIT * 1e6 * DELAYS_MS.len() as f64 / 2.0 / ((PAYLOAD + HEADERS) * 8) as f64;
    let mut cases = Vec::new();
    for (name, sections) in CASES {
        output::progress(&format!("{name}: {} s", args.seconds));
        cases.push(case(args, name, sections, rate)?);
    }
    Ok(UdpLossReport {
        profile: NAME,
        seconds: args.seconds,
        version: env!("CARGO_PKG_VERSION"),
        rate,
        link_loss_percent: LOSS_PERCENT,
        target_lost_percent: LOST_PERCENT_MAX,
        cases,
    })
}

fn case(args: &BenchArgs, name: &'static str, sections: &str, rate: f64) -> anyhow::Result<Case> {
    let link = |delay_ms: &u64| {
        let mut way = DirectionSpec::mbit(LINK_MBIT).delay_ms(*delay_ms).loss(LOSS_PERCENT / 100.0);
        way.queue = QueueLimit::Time(Duration::from_millis(100));
        LinkSpec::symmetric(format!("link{delay_ms}"), way)
    };
    let links: Vec<LinkSpec> = DELAYS_MS.iter().map(link).collect();
    let lab = Lab::edge_exit(&links).context("building the lab")?;
    let host = lab.host("server");
    let address = SocketAddr::new(host.address(), PORT);
    let server = host.run(move || server(address)).context("starting the test server")?;
    let options = MeshOptions { mode: args.mode.unwrap_or_default(), ..MeshOptions::default() };
    let mesh = Mesh::start_with(&lab, &options, sections, &|| Ok(()))?;
    let edge = lab.host("edge");
    let echo = |length| -> anyhow::Result<EchoResult> {
        let spec = EchoSpec::new(server.address(), rate, PAYLOAD, length);
        Ok(edge.run(move || udp_echo(&spec))?)
    };
    echo(SETTLE)?;
    let result = echo(Duration::from_secs(args.seconds))?;
    let counts = Counts::of(&[mesh.status("edge")?, mesh.status("exit")?]);
    mesh.stop()?;
    // What comes back has passed both ways.
    let one_way = 1.0 - (result.received as f64 / result.sent.max(1) as f64).sqrt();
    Ok(Case {
        name,
        sent: result.sent,
        received: result.received,
        lost_percent: 100.0 * one_way,
        p50_ms: result.p50_ms,
        p95_ms: result.p95_ms,
        p99_ms: result.p99_ms,
        max_ms: result.max_ms,
        counts,
    })
}

impl Counts {
    fn of(nodes: &[Value]) -> Self {
        let mut counts = Self::default();
        for session in nodes.iter().flat_map(|node| list(node, "sessions")) {
            let (sender, receiver) = (&session["sender"], &session["receiver"]);
            counts.resent += number(sender, "resent") as u64;
            counts.protected += number(sender, "protected") as u64;
            counts.parity_sent += number(sender, "parity_sent") as u64;
            counts.recovered += number(receiver, "fec_recovered") as u64;
            counts.failed += number(receiver, "fec_failed") as u64;
        }
        counts
    }
}

impl UdpLossReport {
    /// For people.
    pub(super) fn table(&self) -> String {
        let mut out = format!(
            "udp-loss: two links of {LINK_MBIT} Mbit/s that lose {} % each way, an echo of {:.0} packets a second \
             both ways, {} s each\n",
            self.link_loss_percent, self.rate, self.seconds
        );
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "  {:<14}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}",
            "", "lost %", "p50 ms", "p95 ms", "p99 ms", "resent", "parity", "rebuilt", "failed"
        );
        for case in &self.cases {
            let Counts { resent, parity_sent, recovered, failed, .. } = case.counts;
            let _ = writeln!(
                out,
                "  {:<14}{:>10.4}{:>10.1}{:>10.1}{:>10.1}{resent:>10}{parity_sent:>10}{recovered:>10}{failed:>8}",
                case.name, case.lost_percent, case.p50_ms, case.p95_ms, case.p99_ms
            );
        }
        let _ =
            writeln!(out, "  {:<14}{:>10.4}  (each way, by default)", "target <=", self.target_lost_percent);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_sums_of_both_nodes() {
        let node = serde_json::json!({"sessions": [
            {"sender": {"resent": 1, "protected": 10, "parity_sent": 3}, "receiver": {"fec_recovered": 2, "fec_failed": 1}}
        ]});
        let counts = Counts::of(&[node.clone(), node]);
        assert_eq!((counts.resent, counts.protected, counts.parity_sent), (2, 20, 6));
        assert_eq!((counts.recovered, counts.failed), (4, 2));
    }
}
