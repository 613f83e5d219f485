//! The bond on links with names: the figures that a change to its algorithms must not make worse.
//!
//! `cargo run --release -p mwb-sim --example profiles` runs each profile with several seeds under virtual time and prints
//! the mean goodput, its share of the raw links' sum and of the best link in the same tunnel, and the echo's 95 %; beside
//! neighbours also what each side got of its fair share, and how soon a link that comes to a running flow is used. With
//! words as arguments only the profiles whose names contain one of them; `trace` as first argument prints the bond's
//! state, `without=guard` switches parts of the machines off, for comparison. `SECS` in the environment is the virtual
//! length of each run.

use std::time::Duration;

use mwb_sim::bond_sim::{Action, RivalSpec, Scenario, Side, SimBond, SimReport};
use mwb_sim::tcp_model::Transport;
use mwb_sim::wan::{BurstLoss, DirectionSpec, LinkSpec, QueueLimit, Trace, Way};

/// Runs of each profile.
const SEEDS: std::ops::Range<u64> = 1..6;
/// Virtual seconds of each.
const SECONDS: u64 = 20;

/// A link by rate and round-trip time.
fn link(mbit: f64, rtt_ms: u64) -> LinkSpec {
    LinkSpec::symmetric(format!("{mbit}/{rtt_ms}"), DirectionSpec::mbit(mbit).delay_ms(rtt_ms / 2))
}

fn with(mut link: LinkSpec, change: impl Fn(&mut DirectionSpec)) -> LinkSpec {
    change(&mut link.up);
    change(&mut link.down);
    link
}

fn lossy(mbit: f64, rtt_ms: u64, loss: f64) -> LinkSpec {
    with(link(mbit, rtt_ms), |d| d.loss = loss)
}

/// Downwards as recorded, upwards half of that.
fn traced(trace: Trace, rtt_ms: u64, queue: usize) -> LinkSpec {
    let up = DirectionSpec::mbit(trace.mean_rate() as f64 * 0.5e-6).delay_ms(rtt_ms / 2);
    let down = DirectionSpec::traced(trace).delay_ms(rtt_ms / 2).queue(QueueLimit::Bytes(queue));
    LinkSpec::new("recorded", up, down)
}

fn transport(mut scenario: Scenario, transport: Transport) -> Scenario {
    scenario.flows[0].transport = transport;
    scenario
}

/// A neighbour's CUBIC connection on each of these links, with the link's own round trip.
fn beside(mut scenario: Scenario, links: &[usize], start: u64, stop: Option<u64>) -> Scenario {
    let secs = Duration::from_secs;
    let rival = |&link: &usize| {
        let rtt = 2 * scenario.links[link].down.delay;
        RivalSpec::cubic(link, rtt, secs(start), stop.map(secs))
    };
    scenario.rivals = links.iter().map(rival).collect();
    scenario
}

/// A second path over the first link, as another bond's, from five seconds on.
fn twin(mut scenario: Scenario) -> Scenario {
    let path = scenario.links.len();
    scenario.twins = vec![0];
    scenario.at(0, Action::RemovePath(path)).at(5000, Action::AddPath(path))
}

/// Every 300 ms the one-way delays of a link jump up by `by` ms or back.
fn swinging(mut scenario: Scenario, link: usize, by: u64, seconds: u64) -> Scenario {
    let still = scenario.links[link].clone();
    for (step, at) in (1000..seconds * 1000).step_by(300).enumerate() {
        for way in [Way::Up, Way::Down] {
            let mut spec = if way == Way::Up { still.up.clone() } else { still.down.clone() };
            spec.delay += Duration::from_millis(if step % 2 == 0 { by } else { 0 });
            scenario = scenario.at(at, Action::Set(link, way, Box::new(spec)));
        }
    }
    scenario
}

/// From the fifth second on a link delivers everything later by `by` ms.
fn late(mut scenario: Scenario, link: usize, by: u64) -> Scenario {
    for way in [Way::Up, Way::Down] {
        let still = &scenario.links[link];
        let mut spec = if way == Way::Up { still.up.clone() } else { still.down.clone() };
        spec.delay += Duration::from_millis(by);
        scenario = scenario.at(5000, Action::Set(link, way, Box::new(spec)));
    }
    scenario
}

fn profiles(seed: u64) -> Vec<(&'static str, Scenario)> {
    let minute = Duration::from_secs(60);
    let three = || Scenario::new(vec![link(50.0, 10), link(20.0, 40), link(10.0, 80)]);
    let reorders = |d: &mut DirectionSpec| {
        d.jitter = Duration::from_millis(6);
        d.jitter_reorders = true;
    };
    let bursts = |d: &mut DirectionSpec| d.burst = Some(BurstLoss::of(0.01, 10.0));
    let policed = |d: &mut DirectionSpec| d.queue = QueueLimit::Bytes(20_000);
    vec![
        ("two", Scenario::new(vec![link(50.0, 10), link(20.0, 40)])),
        ("three", three()),
        ("three, BBR", transport(three(), Transport::Bbr)),
        ("three, QUIC", transport(three(), Transport::Quic)),
        ("equal, BBR", transport(Scenario::new(vec![link(25.0, 20); 4]), Transport::Bbr)),
        ("lossy", Scenario::new(vec![lossy(30.0, 30, 0.01), lossy(30.0, 60, 0.02), lossy(15.0, 100, 0.005)])),
        (
            "lossy, BBR",
            transport(Scenario::new(vec![lossy(30.0, 30, 0.01), lossy(30.0, 60, 0.02)]), Transport::Bbr),
        ),
        ("lossy3", Scenario::new(vec![link(30.0, 30), lossy(30.0, 60, 0.02), with(link(15.0, 50), bursts)])),
        ("lossy 2 %", Scenario::new(vec![lossy(30.0, 30, 0.02), lossy(30.0, 60, 0.02)])),
        ("near and lossy", Scenario::new(vec![link(0.7, 6), lossy(40.0, 80, 0.05)])),
        ("big", Scenario::new(vec![link(300.0, 10), link(80.0, 30)])),
        ("equal", Scenario::new(vec![link(25.0, 20); 4])),
        ("eight", Scenario::new((0..8).map(|i| link(12.0, 10 + 20 * i)).collect())),
        ("reordering", Scenario::new(vec![with(link(30.0, 30), reorders), with(link(20.0, 50), reorders)])),
        ("policer", Scenario::new(vec![with(link(20.0, 20), policed), link(20.0, 20)])),
        ("swinging", swinging(Scenario::new(vec![link(30.0, 10), link(20.0, 20)]), 1, 180, 20)),
        ("a second late", late(Scenario::new(vec![link(30.0, 10), link(20.0, 20)]), 1, 1000)),
        ("useless", Scenario::new(vec![link(50.0, 10), link(1.0, 600)])),
        ("return, unused", three().at(200, Action::Cut(2)).at(8000, Action::Restore(2))),
        ("return", three().at(6000, Action::Cut(2)).at(10_000, Action::Restore(2))),
        ("join", three().at(0, Action::RemovePath(2)).at(10_000, Action::AddPath(2))),
        (
            "starlink, lte, lte",
            Scenario::new(vec![
                traced(Trace::starlink(150.0, minute, seed), 40, 1_500_000),
                traced(Trace::lte(30.0, minute, seed + 100), 60, 400_000),
                traced(Trace::lte(15.0, minute, seed + 200), 70, 250_000),
            ]),
        ),
        ("neighbour", beside(Scenario::new(vec![link(20.0, 40)]), &[0], 5, None)),
        ("neighbours", beside(three(), &[0, 1], 0, None)),
        ("neighbours later", beside(three(), &[0, 1], 6, None)),
        ("neighbours, 8 s", beside(three(), &[0, 1], 4, Some(12))),
        ("neighbours, 2 s", beside(three(), &[0, 1], 8, Some(10))),
        ("twin", twin(Scenario::new(vec![link(20.0, 40)]))),
    ]
}

/// What the bond and its neighbours got while these were there, over their fair shares: half of a shared link each, all of
/// one that is not shared. Two seconds after each start and before each end are left out.
fn shares(scenario: &Scenario, report: &SimReport) -> Vec<f64> {
    let Some(first) = scenario.rivals.first() else { return Vec::new() };
    let raw = scenario.raw_mbit(Way::Down);
    let from = first.start.as_secs() as usize + 2;
    let to = first.stop.unwrap_or(report.duration).as_secs() as usize;
    if to <= from {
        return Vec::new();
    }
    let mean = |series: &[u64]| {
        let bytes: u64 = series.iter().take(10 * to).skip(10 * from).sum();
        bytes as f64 * 8e-6 / (to - from) as f64
    };
    let is_shared = |link: usize| report.rivals.iter().any(|rival| rival.link == link);
    let fair = |link: usize| if is_shared(link) { raw[link] / 2.0 } else { raw[link] };
    let all: f64 = (0..raw.len()).map(fair).sum();
    let rivals = report.rivals.iter().map(|rival| mean(&rival.series) / fair(rival.link));
    std::iter::once(mean(&report.flows[0].series) / all).chain(rivals).collect()
}

/// A link that comes (back) to a running flow: seconds until it carried 80 % of its rate for half a second, and the least
/// goodput of any half second since, as a share of the mean of the two seconds before.
fn joined(scenario: &Scenario, report: &SimReport) -> Option<(f64, f64)> {
    let last = scenario.script.iter().max_by_key(|step| step.at)?;
    let (Action::Restore(link) | Action::AddPath(link)) = last.what else { return None };
    let since = last.at.as_secs_f64();
    let wanted = 0.8 * scenario.links.get(link)?.down.mean_rate()? as f64;
    let lines = report.trace.iter().filter(|line| line.side == Side::Exit && line.at >= since);
    let sent: Vec<(f64, f64)> = lines
        .map(|line| {
            let path = line.sender.paths.iter().find(|path| usize::from(path.path) == link);
            (line.at, path.map_or(0.0, |path| path.sent_bytes as f64 * 8.0))
        })
        .collect();
    let full = sent.windows(6).find(|w| w[5].1 - w[0].1 >= wanted * (w[5].0 - w[0].0));
    let series: Vec<f64> = report.flows[0].series.iter().map(|&bytes| bytes as f64).collect();
    let at = (10.0 * since) as usize;
    let before = series.get(at.checked_sub(20)?..at)?.iter().sum::<f64>() / 20.0;
    let least = series[at..].windows(5).map(|w| w.iter().sum::<f64>() / 5.0).fold(f64::MAX, f64::min);
    Some((full.map_or(f64::INFINITY, |w| w[0].0 - since), least / before))
}

#[expect(clippy::print_stdout, reason = "a program's answer")]
fn main() {
    let mut wanted: Vec<String> = std::env::args().skip(1).collect();
    let trace = wanted.first().is_some_and(|word| word == "trace");
    if trace {
        wanted.remove(0);
    }
    let without = wanted.iter().position(|word| word.starts_with("without=")).map(|at| wanted.remove(at));
    let without = without.as_deref().and_then(|word| word.strip_prefix("without=")).unwrap_or("");
    let length =
        Duration::from_secs(std::env::var("SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(SECONDS));
    println!(
        "{:20} {:>8} {:>8} {:>8} {:>8} {:>10} {:>10}",
        "profile", "Mbit/s", "of sum", "of bound", "of best", "least", "echo p95"
    );
    for (index, (name, _)) in profiles(0).into_iter().enumerate() {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word)) {
            continue;
        }
        let (mut got, mut sum, mut bound, mut best, mut least, mut echo) =
            (0.0, 0.0, 0.0, 0.0, f64::MAX, Duration::ZERO);
        let mut fair: Vec<Vec<f64>> = Vec::new();
        let mut join: Vec<(f64, f64)> = Vec::new();
        for seed in SEEDS {
            let mut scenario = profiles(seed).swap_remove(index).1.without(without);
            scenario.trace_every = Some(Duration::from_millis(100));
            let report = SimBond::new(scenario.clone(), seed).run(length);
            scenario.trace_every = None;
            if trace && seed == SEEDS.start {
                report.trace.iter().for_each(|line| println!("{line}"));
                println!("{report}");
            }
            join.extend(joined(&scenario, &report));
            report.violations.iter().for_each(|text| println!("VIOLATED {text}"));
            fair.push(shares(&scenario, &report));
            let goodput = report.way_mbit(Way::Down, scenario.warmup);
            let alone = (0..scenario.links.len()).map(|link| {
                SimBond::new(scenario.only(link), seed).run(length).way_mbit(Way::Down, scenario.warmup)
            });
            let alone = alone.fold(0.0, f64::max);
            let limit = scenario.bound_mbit(Way::Down, scenario.warmup, length).all;
            got += goodput;
            bound += limit;
            sum += limit / 0.956;
            best += alone;
            least = f64::min(least, goodput / alone);
            echo = echo.max(report.echo.map(|echo| echo.p95).unwrap_or_default());
        }
        let runs = (SEEDS.end - SEEDS.start) as f64;
        println!(
            "{name:20} {:8.1} {:8.3} {:8.3} {:8.3} {least:10.3} {echo:>10.1?}",
            got / runs,
            got / sum,
            got / bound,
            got / best
        );
        if !join.is_empty() {
            let after = join.iter().map(|j| j.0);
            println!(
                "  at 80 % of its rate {:.1} s after it came in the mean, {:.1} s at the most; least goodput since {:.2} of before",
                after.clone().sum::<f64>() / runs,
                after.fold(0.0, f64::max),
                join.iter().map(|j| j.1).fold(f64::MAX, f64::min)
            );
        }
        for who in 0..fair[0].len() {
            let of = |found: &Vec<f64>| found[who];
            let (mean, least) =
                (fair.iter().map(of).sum::<f64>() / runs, fair.iter().map(of).fold(f64::MAX, f64::min));
            let name = if who == 0 { "the bond".to_owned() } else { format!("neighbour {who}") };
            println!("  {name:18} of its fair share: {mean:.2} in the mean, {least:.2} at the least");
        }
    }
}
