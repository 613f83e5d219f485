//! How soon a path's rate follows the link's, under virtual time.
//!
//! Goal: a link that becomes slower is followed within 200 ms, one that becomes faster not much later, and a cellular one,
//! which does both all the time, within 200 ms. Method: connections enough to fill whatever there is, fixed seeds; the
//! sender's rate of every 10 ms against what the link really carried.

use std::time::Duration;

use mwb_sim::bond_sim::{Action, FlowSpec, Scenario, Side, SimBond, TraceLine};
use mwb_sim::wan::trace::OPPORTUNITY_BYTES;
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit, Trace, Way};

/// Between two looks at the sender.
const STEP: Duration = Duration::from_millis(10);
/// Connections: one alone needs seconds to fill a link that became faster, whoever carries it.
const FLOWS: usize = 8;
/// The link that changes is this one; the other one is steady.
const CHANGES: usize = 1;

fn link(mbit: f64, rtt_ms: u64) -> LinkSpec {
    LinkSpec::symmetric("link", DirectionSpec::mbit(mbit).delay_ms(rtt_ms / 2))
}

/// The exit's state every [`STEP`].
fn states(mut scenario: Scenario, seed: u64, seconds: u64) -> Vec<TraceLine> {
    scenario.flows = vec![FlowSpec::download(); FLOWS];
    scenario.trace_every = Some(STEP);
    let mut report = SimBond::new(scenario, seed).run(Duration::from_secs(seconds));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    report.trace.retain(|line| line.side == Side::Exit);
    report.trace
}

#[test]
fn a_change_of_rate_is_followed() {
    for (rtt, fast, slow) in [(20, 30.0, 10.0), (60, 30.0, 10.0), (60, 30.0, 3.0), (60, 100.0, 25.0)] {
        for seed in 1..4 {
            let scenario = Scenario::new(vec![link(20.0, 20), link(fast, rtt)])
                .at(6000, Action::Set(CHANGES, Way::Down, Box::new(link(slow, rtt).down)))
                .at(9000, Action::Set(CHANGES, Way::Down, Box::new(link(fast, rtt).down)));
            let states = states(scenario, seed, 12);
            let path = |line: &TraceLine| line.sender.paths[CHANGES].clone();
            let from = |at: f64| states.iter().filter(move |line| line.at >= at);
            let first = |at: f64, holds: &dyn Fn(f64) -> bool| {
                from(at).find(|line| holds(path(line).rate_mbit)).map(|line| line.at - at)
            };
            let slower = first(6.0, &|rate| rate < 1.25 * slow);
            let twice = first(9.0, &|rate| rate > 2.0 * slow);
            let full = first(9.0, &|rate| rate > 0.8 * fast);
            let queued = from(6.0).take_while(|line| line.at < 9.0).filter(|line| path(line).queue_ms > 20.0);
            let queued = queued.last().map_or(0.0, |line| line.at - 6.0);
            let of = format!("{fast} to {slow} Mbit/s and back, {rtt} ms, seed {seed}");
            println!(
                "{of}: {slower:.2?} s, queued for {queued:.2} s; twice {twice:.2?} s, full {full:.2?} s"
            );
            let within = |took: Option<f64>, most: f64| took.is_some_and(|took| took <= most);
            assert!(within(slower, 0.2), "{of}: slower after {slower:?} s");
            assert!(queued < 1.0, "{of}: more than 20 ms of queue for {queued} s");
            assert!(within(twice, 0.3), "{of}: twice as fast after {twice:?} s");
            assert!(within(full, 1.0), "{of}: as fast as it was after {full:?} s");
        }
    }
}

#[test]
fn a_cellular_link_is_followed_within_200_ms() {
    for seed in 1..6 {
        let trace = Trace::lte(30.0, Duration::from_secs(60), seed);
        let down = DirectionSpec::traced(trace.clone()).delay_ms(30).queue(QueueLimit::Bytes(400_000));
        let cellular = LinkSpec::new("cellular", DirectionSpec::mbit(15.0).delay_ms(30), down);
        let states = states(Scenario::new(vec![link(20.0, 20), cellular]), seed, 30);
        let mut offered = vec![0.0; 30_000];
        for &ms in trace.millis() {
            if let Some(bits) = offered.get_mut(ms as usize) {
                *bits += (OPPORTUNITY_BYTES * 8) as f64;
            }
        }
        // What the link carried in the 100 ms around a moment, Mbit/s.
        let carried = |at: f64| {
            let ms = (at * 1e3) as usize;
            offered[ms - 50..ms + 50].iter().sum::<f64>() / 100e3
        };
        let rated: Vec<(f64, f64)> = states
            .iter()
            .filter(|line| (4.0..29.0).contains(&line.at))
            .map(|line| (line.at, line.sender.paths[CHANGES].rate_mbit))
            .collect();
        let alike = |lag: f64| correlation(rated.iter().map(|&(at, rate)| (carried(at - lag), rate)));
        let lags = (0..60).map(|i| f64::from(i) * 0.01);
        let best = lags.max_by(|&a, &b| alike(a).total_cmp(&alike(b))).expect("lags");
        println!("seed {seed}: {best:.2} s behind, correlation {:.3}", alike(best));
        assert!(best <= 0.2, "seed {seed}: the rate is {best} s behind the link");
        assert!(alike(best) > 0.7, "seed {seed}: {:.3}", alike(best));
    }
}

/// Pearson's coefficient of correlation.
fn correlation(pairs: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let n = pairs.clone().count() as f64;
    let (x, y) = pairs.clone().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0 / n, sum.1 + pair.1 / n));
    let of = |f: fn(f64, f64) -> f64| pairs.clone().map(|pair| f(pair.0 - x, pair.1 - y)).sum::<f64>();
    of(|x, y| x * y) / (of(|x, _| x * x) * of(|_, y| y * y)).sqrt()
}
