//! How a session begins, and how it goes on after a time without any path.
//!
//! Goal: what paths can carry is known before anybody uses them, and what waited while there was none is in nobody's way
//! afterwards. Method: the machines under virtual time. Figures are virtual.

use std::time::Duration;

use mwb_sim::bond_sim::{Action, Scenario, SimBond, SimReport};
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit};

const SEEDS: std::ops::Range<u64> = 1..6;

fn link(mbit: f64, rtt_ms: u64) -> LinkSpec {
    LinkSpec::symmetric(format!("{mbit}/{rtt_ms}"), DirectionSpec::mbit(mbit).delay_ms(rtt_ms / 2))
}

fn run(scenario: &Scenario, seed: u64, seconds: u64) -> SimReport {
    let report = SimBond::new(scenario.clone(), seed).run(Duration::from_secs(seconds));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    report
}

/// Nothing but the packet trains is sent: 0.75 of each link's rate is where it would begin.
#[test]
fn a_packet_train_tells_what_a_path_can_carry() {
    let rates = [0.7, 5.0, 20.0, 100.0];
    let links = rates.iter().zip([30, 80, 40, 10]).map(|(&mbit, rtt)| link(mbit, rtt));
    let mut scenario = Scenario::new(links.collect());
    (scenario.flows, scenario.echo) = (Vec::new(), None);
    for seed in SEEDS {
        let report = run(&scenario, seed, 2);
        for (way, end) in [("up", &report.edge), ("down", &report.exit)] {
            for (path, mbit) in end.sender.paths.iter().zip(rates) {
                let share = path.rate_mbit / mbit;
                assert!((0.6..0.8).contains(&share), "seed {seed}, {way}: {share:.2} of {mbit} Mbit/s");
                assert!(path.sent_bytes < 40_000, "seed {seed}: {} bytes of {mbit} Mbit/s", path.sent_bytes);
            }
        }
    }
}

/// A buffer of two packets holds no train, and jitter is longer than one: the path is used all the same.
#[test]
fn a_train_that_is_torn_costs_nothing() {
    for change in [
        |d: &mut DirectionSpec| d.queue = QueueLimit::Bytes(3000),
        |d: &mut DirectionSpec| (d.jitter, d.jitter_reorders) = (Duration::from_millis(20), true),
        |d: &mut DirectionSpec| d.loss = 0.3,
    ] {
        let mut one = link(20.0, 40);
        change(&mut one.up);
        change(&mut one.down);
        let mut scenario = Scenario::new(vec![one]);
        (scenario.flows, scenario.echo) = (Vec::new(), None);
        for seed in SEEDS {
            let paths = run(&scenario, seed, 2).exit.sender.paths;
            // Cold paths begin with 4 Mbit/s.
            let rate = paths[0].rate_mbit;
            assert!((1.0..30.0).contains(&rate), "seed {seed}: {rate:.1} of 20 Mbit/s");
        }
    }
}

/// All links are cut under a download. What it sent before has been sent again by then, so it is dropped but for the
/// newest packet, and neither the download nor an echo waits for it.
#[test]
fn what_waited_without_any_path_is_in_nobodys_way() {
    let mut scenario = Scenario::new(vec![link(20.0, 40), link(4.0, 60)]);
    for link in 0..2 {
        scenario = scenario.at(700, Action::Cut(link)).at(3000, Action::Restore(link));
    }
    scenario.warmup = Duration::from_millis(3500);
    for seed in SEEDS {
        let report = run(&scenario, seed, 12);
        assert!(report.exit.sender.dropped_stale > 0, "seed {seed}");
        let echo = report.echo.as_ref().expect("asked for");
        assert!(echo.p95 < Duration::from_millis(150), "seed {seed}: {echo:?}");
        let flow = &report.flows[0];
        let bytes: u64 = flow.series.iter().skip(60).sum();
        let mbit = bytes as f64 * 8e-6 / 6.0;
        assert!(mbit > 0.75 * 24.0, "seed {seed}: {mbit:.1} Mbit/s three seconds after the return");
    }
}

/// Jitter tears the train of a fat link far away, which seems no faster than the near one then. That is not believed: the link
/// is tried with copies, and used.
#[test]
fn a_fat_link_that_looks_thin_for_its_jitter_is_tried() {
    let mut far = link(170.0, 330);
    for way in [&mut far.up, &mut far.down] {
        (way.jitter, way.jitter_reorders) = (Duration::from_millis(12), true);
    }
    let scenario = Scenario::new(vec![link(17.0, 10), far]);
    for seed in SEEDS {
        let report = run(&scenario, seed, 15);
        let bytes: u64 = report.flows[0].series.iter().skip(70).sum();
        let mbit = bytes as f64 * 8e-6 / 8.0;
        assert!(mbit > 100.0, "seed {seed}: {mbit:.1} Mbit/s");
    }
}
