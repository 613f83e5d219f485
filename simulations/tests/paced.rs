//! Connections that pace themselves by a model of the path (BBR) over paths of very different delay.
//!
//! Goal: such a connection, which makes its window for the nearest path, fills the bond once it has measured its least round
//! trip anew, as it does every ten seconds; others are not held up for that. Method: the machines under virtual time. Figures
//! are virtual.

use std::time::Duration;

use mwb_sim::bond_sim::{Scenario, SimBond, SimReport};
use mwb_sim::tcp_model::Transport;
use mwb_sim::wan::{DirectionSpec, LinkSpec};

const SEEDS: std::ops::Range<u64> = 1..6;

fn link(mbit: f64, rtt_ms: u64) -> LinkSpec {
    LinkSpec::symmetric(format!("{mbit}/{rtt_ms}"), DirectionSpec::mbit(mbit).delay_ms(rtt_ms / 2))
}

fn run(scenario: &Scenario, seed: u64, seconds: u64) -> SimReport {
    let report = SimBond::new(scenario.clone(), seed).run(Duration::from_secs(seconds));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    report
}

fn over(links: &[(f64, u64)], transport: Transport) -> Scenario {
    let mut scenario = Scenario::new(links.iter().map(|&(mbit, rtt)| link(mbit, rtt)).collect());
    scenario.flows[0].transport = transport;
    scenario
}

/// Mbit/s of the first flow between two times, s.
fn goodput(report: &SimReport, from: usize, to: usize) -> f64 {
    report.flows[0].series[from * 10..to * 10].iter().sum::<u64>() as f64 * 8e-6 / (to - from) as f64
}

/// DSL beside a mobile link, and two mobile links: the sum is 0.956 of the rates.
#[test]
fn bbr_fills_the_bond_once_it_has_measured_again() {
    for (links, share) in [(&[(8.0, 18), (100.0, 60)][..], 0.93), (&[(40.0, 30), (60.0, 120)], 0.9)] {
        let sum: f64 = links.iter().map(|&(mbit, _)| 0.956 * mbit).sum();
        for seed in SEEDS {
            let report = run(&over(links, Transport::Bbr), seed, 20);
            let mbit = goodput(&report, 13, 20);
            assert!(mbit > share * sum, "{links:?}, seed {seed}: {mbit:.1} of {sum:.1} Mbit/s");
            assert!(report.exit.receiver.acks_held > 0, "{links:?}, seed {seed}: nothing was held");
        }
    }
}

/// CUBIC fills the bond by itself.
#[test]
fn acknowledgements_of_a_flow_that_fills_the_bond_are_not_held() {
    for seed in SEEDS {
        let report = run(&over(&[(50.0, 10), (20.0, 40), (10.0, 80)], Transport::Cubic), seed, 15);
        let (held, delivered) = (report.exit.receiver.acks_held, report.exit.receiver.delivered);
        assert!(held * 100 < delivered, "seed {seed}: {held} of {delivered}");
    }
}
