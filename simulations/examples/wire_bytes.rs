//! What the tunnel itself takes of the links: control, and what a small packet costs.
//!
//! `cargo run --release -p mwb-sim --example wire_bytes` downloads over some bonds under virtual time and prints what it
//! found from the warm-up on: goodput; reports and heartbeats both ways as a share of it, and towards the exit as a share of
//! those links' rates; bytes on the wire per packet of the upload direction (acknowledgements, and a few echoes) with all
//! headers, beside the inner bytes; how many of these packets shared a datagram. The last column is what reports, heartbeats
//! and the probing of new paths took towards the exit in the warm-up, kilobytes. `without=bundles` as argument switches parts
//! of the machines off, for comparison. `SECS` in the environment is the virtual length of each run.

use std::time::Duration;

use mwb_proto::bond::{PathSnapshot, SenderSnapshot};
use mwb_sim::bond_sim::{Scenario, Side, SimBond, SimReport};
use mwb_sim::wan::{DirectionSpec, LinkSpec, Way};

/// Runs of each profile.
const SEEDS: std::ops::Range<u64> = 1..4;
/// Virtual seconds of each.
const SECONDS: u64 = 20;

/// A link by its rates down and up and its round-trip time.
fn link(down: f64, up: f64, rtt_ms: u64) -> LinkSpec {
    let way = |mbit| DirectionSpec::mbit(mbit).delay_ms(rtt_ms / 2);
    LinkSpec::new(format!("{down}:{up}/{rtt_ms}"), way(up), way(down))
}

fn profiles() -> Vec<(&'static str, Vec<LinkSpec>)> {
    vec![
        ("two", vec![link(50.0, 50.0, 10), link(20.0, 20.0, 40)]),
        ("eight", (0..8).map(|i| link(12.0, 12.0, 10 + 20 * i)).collect()),
        ("thin, 1 up", vec![link(20.0, 1.0, 20)]),
        ("two thin, 1 up", vec![link(20.0, 1.0, 20), link(20.0, 1.0, 40)]),
        ("50 down, 1 up", vec![link(50.0, 1.0, 20)]),
    ]
}

/// Counters of one sender over its paths: control, everything else, bytes; packets; packets that shared a datagram.
#[derive(Clone, Copy, Default)]
struct Sent([u64; 4]);

impl Sent {
    fn of(sender: &SenderSnapshot) -> Self {
        let control = |p: &PathSnapshot| p.report_bytes + p.heartbeat_bytes;
        let sent = sender.paths.iter().map(|p| p.sent_bytes).sum::<u64>();
        let control = sender.paths.iter().map(control).sum::<u64>();
        Self([control, sent - control, sender.packets_sent, sender.bundled])
    }

    /// What a side had sent when the warm-up was over, and has sent since.
    fn before_and_since(report: &SimReport, side: Side, warmup: Duration) -> [Self; 2] {
        let mut lines = report.trace.iter().filter(|line| line.side == side);
        let at = lines.find(|line| line.at >= warmup.as_secs_f64());
        let before = at.map(|line| Self::of(&line.sender)).unwrap_or_default();
        let end = if side == Side::Edge { &report.edge } else { &report.exit };
        let end = Self::of(&end.sender);
        [before, Self(std::array::from_fn(|i| end.0[i] - before.0[i]))]
    }
}

#[expect(clippy::print_stdout, reason = "a program's answer")]
fn main() -> anyhow::Result<()> {
    let without = std::env::args().find_map(|word| word.strip_prefix("without=").map(str::to_owned));
    let without = without.unwrap_or_default();
    let length =
        Duration::from_secs(std::env::var("SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(SECONDS));
    println!(
        "{:16} {:>8} {:>10} {:>12} {:>12} {:>8} {:>9} {:>10} {:>9}",
        "profile",
        "Mbit/s",
        "control %",
        "up % of link",
        "wire B/pkt",
        "inner B",
        "shared %",
        "echo p95",
        "start kB"
    );
    for (name, links) in profiles() {
        let up_rate: f64 = links.iter().map(|link| link.up.mean_rate().unwrap_or(0) as f64).sum();
        let mut columns = [0.0; 7];
        let mut echo = Duration::ZERO;
        for seed in SEEDS {
            let mut scenario = Scenario::new(links.clone()).without(&without);
            let warmup = scenario.warmup;
            anyhow::ensure!(length > warmup, "SECS must be more than the warm-up of {warmup:?}");
            scenario.trace_every = Some(warmup);
            let report = SimBond::new(scenario, seed).run(length);
            report.violations.iter().for_each(|text| println!("VIOLATED {text}"));
            let mbit = report.way_mbit(Way::Down, warmup);
            let bits = |bytes: u64| bytes as f64 * 8e-6 / (length - warmup).as_secs_f64();
            let [start, Sent([control, data, packets, shared])] =
                Sent::before_and_since(&report, Side::Edge, warmup);
            let [_, Sent([control_down, ..])] = Sent::before_and_since(&report, Side::Exit, warmup);
            let found = [
                mbit,
                100.0 * bits(control + control_down) / mbit,
                100.0 * bits(control) * 1e6 / up_rate,
                data as f64 / packets as f64,
                report.exit.receiver.delivered_bytes as f64 / report.exit.receiver.delivered as f64,
                100.0 * shared as f64 / packets as f64,
                start.0[0] as f64 * 1e-3,
            ];
            columns.iter_mut().zip(found).for_each(|(sum, value)| *sum += value);
            echo = echo.max(report.echo.map(|echo| echo.p95).unwrap_or_default());
        }
        let [mbit, control, share, wire, inner, shared, start] =
            columns.map(|sum| sum / SEEDS.count() as f64);
        println!(
            "{name:16} {mbit:8.1} {control:10.2} {share:12.2} {wire:12.1} {inner:8.1} {shared:9.1} {echo:>10.1?} {start:9.1}"
        );
    }
    Ok(())
}
