//! Links that make a bond worse, under virtual time.
//!
//! Goal: a link that harms the others is left out, on evidence, and the bond is never below what the others carry without
//! it. Method: fixed scenarios with fixed seeds, real machines, modelled links and TCP, each against the same tunnel without
//! the link or without the guard.

use std::time::Duration;

use mwb_sim::bond_sim::{Action, Scenario, SimBond, SimReport};
use mwb_sim::wan::{DirectionSpec, LinkSpec, Way};

fn run(scenario: Scenario, seed: u64, seconds: u64) -> SimReport {
    let report = SimBond::new(scenario, seed).run(Duration::from_secs(seconds));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    report
}

fn link(name: &str, mbit: f64, delay_ms: u64) -> LinkSpec {
    LinkSpec::symmetric(name, DirectionSpec::mbit(mbit).delay_ms(delay_ms))
}

/// Mbit/s of the first flow between two moments, in seconds.
fn between(report: &SimReport, from: usize, to: usize) -> f64 {
    let series = &report.flows[0].series;
    series.iter().skip(from * 10).take((to - from) * 10).sum::<u64>() as f64 * 8e-6 / (to - from) as f64
}

/// The one-way delay of a link jumps by `by` ms up or down every 300 ms.
fn swinging(mut scenario: Scenario, link: usize, by: u64, seconds: u64) -> Scenario {
    let still = scenario.links[link].clone();
    for (step, at) in (1000..seconds * 1000).step_by(300).enumerate() {
        for (way, spec) in [(Way::Up, &still.up), (Way::Down, &still.down)] {
            let mut spec = spec.clone();
            spec.delay += Duration::from_millis(if step % 2 == 0 { by } else { 0 });
            scenario = scenario.at(at, Action::Set(link, way, Box::new(spec)));
        }
    }
    scenario
}

/// What a link carries is held up 180 ms long every 600 ms, and everything else of the flow with it: without the guard
/// the bond has 0.8 of what its good link has alone, in the mean; on a lucky seed as much as with it.
#[test]
fn a_link_whose_delay_swings_is_left_out() {
    let scenario =
        swinging(Scenario::new(vec![link("good", 30.0, 5), link("swinging", 20.0, 10)]), 1, 180, 20);
    let (mut alone, mut bond, mut unguarded) = (0.0, 0.0, 0.0);
    for seed in 1..=5 {
        let report = run(scenario.clone(), seed, 20);
        assert!(report.exit.sender.paths[1].guarded > 0 && report.exit.sender.paths[0].guarded == 0);
        bond += report.goodput_mbit() / 5.0;
        alone += run(scenario.only(0), seed, 20).goodput_mbit() / 5.0;
        unguarded += run(scenario.clone().without("guard"), seed, 20).goodput_mbit() / 5.0;
    }
    assert!(bond > 0.93 * alone, "{bond:.1} Mbit/s, the good link alone {alone:.1}");
    assert!(bond > 1.15 * unguarded, "{bond:.1} Mbit/s, without the guard {unguarded:.1}");
}

/// A link becomes a second longer in each way: what it adds is lost, nothing else is.
#[test]
fn a_link_that_delivers_a_second_late_costs_nothing() {
    let mut scenario = Scenario::new(vec![link("good", 30.0, 5), link("late", 20.0, 10)]);
    for way in [Way::Up, Way::Down] {
        let late = DirectionSpec::mbit(20.0).delay_ms(1010);
        scenario = scenario.at(5000, Action::Set(1, way, Box::new(late)));
    }
    let report = run(scenario.clone(), 1, 20);
    let (before, after) = (between(&report, 3, 5), between(&report, 10, 20));
    let good = scenario.raw_mbit(Way::Down)[0] * 0.956;
    assert!(before > 1.5 * good, "{before:.1} Mbit/s over both");
    assert!(after > 0.95 * good, "{after:.1} Mbit/s, the good link has {good:.1}");
}

/// Hardly anything was sent over the link before it was cut, so nothing is known of its rate. How inner TCP's slow start ends
/// differs from run to run, so five are looked at.
#[test]
fn a_link_cut_before_it_was_used_is_used_soon_after_its_return() {
    let mut scenario =
        Scenario::new(vec![link("one", 10.0, 100)]).at(700, Action::Cut(0)).at(2000, Action::Restore(0));
    scenario.flows[0].start = Duration::from_millis(2100);
    let got: Vec<f64> = (1..6).map(|seed| between(&run(scenario.clone(), seed, 8), 5, 8)).collect();
    let mean = got.iter().sum::<f64>() / got.len() as f64;
    assert!(mean > 7.0, "{got:.1?} of 10 Mbit/s three seconds after the start");
}
