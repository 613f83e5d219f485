//! A bond under virtual time: real machines, modelled links and TCP.
//!
//! Goal: the bond adds up its links, outlives loss and cuts, and never breaks an invariant. Method: fixed scenarios with
//! fixed seeds for the figures, and a sweep of made-up scenarios for the invariants. Figures are virtual: they do not
//! depend on the machine that runs the test.
//!
//! - `MWB_SIM_SEED=n` replays one seed of the sweep and prints what it found; `MWB_SIM_SEEDS=a..b` sweeps others.
//! - `MWB_SIM_TRACE=1` prints the state of both senders every 100 ms.

use std::time::Duration;

use mwb_sim::bond_sim::{Action, FlowSpec, Scenario, ScriptStep, SimBond, SimReport};
use mwb_sim::virtual_time::NodeClock;
use mwb_sim::wan::{BurstLoss, DirectionSpec, LinkSpec, QueueLimit, Trace, Way};

/// Seeds of the sweep, chosen by nobody.
const SEEDS: std::ops::Range<u64> = 1..31;
/// Virtual seconds of each run of the sweep.
const SWEEP_SECONDS: u64 = 8;

/// Runs a scenario and insists on the invariants; prints what was found, for the case that a test fails.
#[expect(clippy::print_stdout, reason = "shown when a test fails")]
fn run(mut scenario: Scenario, seed: u64, seconds: u64) -> SimReport {
    let tracing = std::env::var_os("MWB_SIM_TRACE").is_some();
    scenario.trace_every = tracing.then_some(Duration::from_millis(100));
    let report = SimBond::new(scenario, seed).run(Duration::from_secs(seconds));
    for line in &report.trace {
        println!("{line}");
    }
    println!("{report}");
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    report
}

fn link(name: &str, mbit: f64, delay_ms: u64) -> LinkSpec {
    LinkSpec::symmetric(name, DirectionSpec::mbit(mbit).delay_ms(delay_ms))
}

fn lossy(name: &str, mbit: f64, delay_ms: u64, loss: f64) -> LinkSpec {
    LinkSpec::symmetric(name, DirectionSpec::mbit(mbit).delay_ms(delay_ms).loss(loss))
}

/// Insists that all flows of a way reach `share` of what the raw links give together.
fn insist(report: &SimReport, scenario: &Scenario, way: Way, share: f64) {
    let name = if way == Way::Up { "up" } else { "down" };
    let got: f64 = report.flows.iter().filter(|f| f.name.starts_with(name)).map(|f| f.goodput_mbit).sum();
    let sum: f64 = scenario.raw_mbit(way).iter().sum();
    assert!(got >= share * sum, "{name}: {got:.1} of {sum:.1} Mbit/s, less than {share}");
}

/// Mbit/s of the first flow between two moments, in seconds.
fn between(report: &SimReport, from: usize, to: usize) -> f64 {
    let series = &report.flows[0].series;
    series.iter().skip(from * 10).take((to - from) * 10).sum::<u64>() as f64 * 8e-6 / (to - from) as f64
}

#[test]
fn two_clean_paths_add_up() {
    let scenario = Scenario::new(vec![link("dsl", 30.0, 8), link("lte", 10.0, 25)]);
    let report = run(scenario.clone(), 1, 12);
    insist(&report, &scenario, Way::Down, 0.85);
    let echo = report.echo.expect("asked for");
    assert_eq!(echo.sent, echo.received);
    assert!(echo.p95 < Duration::from_millis(16 + 20), "{echo:?}");
}

/// A grant that is halved and lifted while a flow runs: the path keeps to it at once, the other path is not
/// disturbed, and half a second after the end the whole path is used again.
#[test]
fn a_limit_holds_at_once_and_its_end_is_used_soon() {
    let mut scenario = Scenario::new(vec![link("own", 20.0, 10), link("relayed", 20.0, 15)]);
    let step =
        |secs, limit| ScriptStep { at: Duration::from_secs(secs), what: Action::Limit(1, Way::Down, limit) };
    scenario.script = vec![step(6, Some(2_000_000)), step(12, None)];
    let report = run(scenario, 3, 18);
    let (free, limited, again) = (between(&report, 4, 6), between(&report, 7, 12), between(&report, 13, 18));
    assert!(free > 30.0, "{free:.1} Mbit/s before the limit");
    assert!((18.0..21.5).contains(&limited), "{limited:.1} of 22 Mbit/s under the limit");
    assert!(again > 32.0, "{again:.1} Mbit/s after the limit");
}

#[test]
fn lossy_paths_add_up() {
    let burst = |mut spec: LinkSpec| {
        spec.down.burst = Some(BurstLoss::of(0.005, 5.0));
        spec
    };
    let scenario = Scenario::new(vec![
        lossy("a", 20.0, 15, 0.01),
        lossy("b", 20.0, 30, 0.02),
        burst(link("c", 10.0, 50)),
    ]);
    let report = run(scenario.clone(), 2, 15);
    insist(&report, &scenario, Way::Down, 0.80);
}

/// Beside a good link one whose buffer holds two packets: what it drops shows no queue, and must neither be taken for
/// chance nor be sent again by the same way.
#[test]
fn a_tiny_buffer_does_not_spoil_the_good_link() {
    let mut tiny = link("tiny", 1.0, 13);
    for direction in [&mut tiny.up, &mut tiny.down] {
        direction.queue = QueueLimit::Bytes(3000);
    }
    let scenario = Scenario::new(vec![link("good", 30.0, 40), tiny]);
    let report = run(scenario.clone(), 8, 12);
    assert!(report.goodput_mbit() > 0.9 * scenario.raw_mbit(Way::Down)[0], "{:.1}", report.goodput_mbit());
}

/// The nearest link carries almost nothing, the one that loses 5 % carries the flow: its resends must not all queue for
/// the near one.
#[test]
fn resends_of_a_big_lossy_link_do_not_wait_for_a_small_near_one() {
    let scenario = Scenario::new(vec![link("near", 0.7, 3), lossy("big", 40.0, 40, 0.05)]);
    let report = run(scenario.clone(), 9, 12);
    assert!(
        report.goodput_mbit() > 0.75 * 0.95 * scenario.raw_mbit(Way::Down)[1],
        "{:.1}",
        report.goodput_mbit()
    );
}

/// The only near link is far slower than the far one: the far one is tried with copies and carries the flow.
#[test]
fn a_far_link_that_carries_far_more_is_not_left_out() {
    let scenario = Scenario::new(vec![link("near", 2.0, 5), link("far", 20.0, 190)]);
    let far = run(scenario.only(1), 10, 30);
    let bond = run(scenario, 10, 30);
    let (bond, far) = (between(&bond, 20, 30), between(&far, 20, 30));
    assert!(bond > 0.9 * far, "{bond:.1} Mbit/s, the far link alone {far:.1}");
}

/// Goal: what does not wait, as reports do not, keeps acknowledgements waiting no longer than the way round takes. Method: the
/// made-up scenario in which the reports of lossy far links filled a thin near uplink, so that no acknowledgement left and the
/// downloads ended in timeouts; each alone, the links carry 0.4 to 3 Mbit/s.
#[test]
fn acknowledgements_leave_by_another_link_when_reports_fill_the_near_one() {
    let report = run(Scenario::random(206), 206, 12);
    let got = report.way_mbit(Way::Down, Duration::from_secs(3));
    assert!(got > 1.0, "{got:.2} Mbit/s down");
}

/// Packets that overtake each other by up to 6 ms, 15 at a time, are not lost.
#[test]
fn disorder_inside_a_path_is_not_taken_for_loss() {
    let reordering = |name, mbit, delay| {
        let mut spec = link(name, mbit, delay);
        for direction in [&mut spec.up, &mut spec.down] {
            direction.jitter = Duration::from_millis(6);
            direction.jitter_reorders = true;
        }
        spec
    };
    let scenario = Scenario::new(vec![reordering("a", 30.0, 15), reordering("b", 20.0, 25)]);
    let report = run(scenario.clone(), 11, 12);
    insist(&report, &scenario, Way::Down, 0.88);
    let sender = &report.exit.sender;
    assert!(sender.resent * 50 < sender.packets_sent, "{} of {} resent", sender.resent, sender.packets_sent);
}

/// What loss costs is its resends; that they hold up the lane makes the round trip longer, and so the ingress queue that
/// CUBIC needs to stay busy after a cut.
#[test]
fn chance_loss_costs_little_more_than_what_is_lost() {
    let scenario = Scenario::new(vec![lossy("a", 30.0, 15, 0.02), lossy("b", 30.0, 30, 0.02)]);
    let report = run(scenario.clone(), 1, 20);
    insist(&report, &scenario, Way::Down, 0.98 * 0.93);
}

/// Data beyond the bucket is dropped without a queue.
#[test]
fn a_policer_beside_a_clean_link() {
    let mut policed = link("policed", 20.0, 10);
    for direction in [&mut policed.up, &mut policed.down] {
        direction.queue = QueueLimit::Bytes(20_000);
    }
    let scenario = Scenario::new(vec![policed, link("clean", 20.0, 10)]);
    let report = run(scenario.clone(), 1, 15);
    insist(&report, &scenario, Way::Down, 0.88);
}

fn fibre_dsl_lte() -> Scenario {
    Scenario::new(vec![link("fibre", 50.0, 5), link("dsl", 20.0, 20), link("lte", 10.0, 40)])
}

/// A slow link comes back to a running flow: nothing is lost by that, and three seconds later it has its share.
#[test]
fn a_slow_link_that_returns_costs_nothing_and_is_used() {
    let scenario = fibre_dsl_lte().at(6000, Action::Cut(2)).at(10_000, Action::Restore(2));
    let raw: f64 = scenario.raw_mbit(Way::Down).iter().sum();
    let report = run(scenario, 12, 20);
    let (without, at_return, later) =
        (between(&report, 7, 10), between(&report, 10, 13), between(&report, 13, 20));
    assert!(at_return > 0.98 * without, "{at_return:.1} Mbit/s after the return, {without:.1} before");
    assert!(later > 0.92 * raw, "{later:.1} of {raw:.1} Mbit/s three seconds later");
}

/// The same when the link was dead before the flow began: the queue is kept long enough for it, so its share waits for
/// nothing but the trial of its rate.
#[test]
fn a_slow_link_that_was_expected_has_its_share_within_a_second() {
    let scenario = fibre_dsl_lte().at(200, Action::Cut(2)).at(8000, Action::Restore(2));
    let raw = scenario.raw_mbit(Way::Down);
    let report = run(scenario, 12, 14);
    let (without, at_return, later) =
        (between(&report, 5, 8), between(&report, 8, 9), between(&report, 9, 14));
    assert!(without > 0.92 * (raw[0] + raw[1]), "{without:.1} Mbit/s without it");
    assert!(at_return > 0.98 * without, "{at_return:.1} Mbit/s after the return, {without:.1} before");
    let raw: f64 = raw.iter().sum();
    assert!(later > 0.92 * raw, "{later:.1} of {raw:.1} Mbit/s a second later");
}

/// A slow link that nobody knew joins a running flow: the flow pays nothing, and uses it once its window allows.
#[test]
fn a_slow_link_that_joins_costs_nothing_and_is_used() {
    let scenario = fibre_dsl_lte().at(0, Action::RemovePath(2)).at(8000, Action::AddPath(2));
    let raw: f64 = scenario.raw_mbit(Way::Down).iter().sum();
    let report = run(scenario, 12, 24);
    let without = between(&report, 5, 8);
    for second in 8..20 {
        let now = between(&report, second, second + 1);
        assert!(now > 0.95 * without, "{now:.1} Mbit/s in second {second}, {without:.1} before");
    }
    let later = between(&report, 18, 24);
    assert!(later > 0.90 * raw, "{later:.1} of {raw:.1} Mbit/s at the end");
}

/// A satellite link that changes every 15 s and goes dark at times, beside two cellular ones.
#[test]
fn recorded_links_add_up_and_never_cost_the_best() {
    let minute = Duration::from_secs(60);
    let recorded = |trace: Trace, delay, queue| {
        let up = DirectionSpec::mbit(trace.mean_rate() as f64 * 0.5e-6).delay_ms(delay);
        LinkSpec::new(
            "recorded",
            up,
            DirectionSpec::traced(trace).delay_ms(delay).queue(QueueLimit::Bytes(queue)),
        )
    };
    let scenario = Scenario::new(vec![
        recorded(Trace::starlink(150.0, minute, 1), 20, 1_500_000),
        recorded(Trace::lte(30.0, minute, 101), 30, 400_000),
        recorded(Trace::lte(15.0, minute, 201), 35, 250_000),
    ]);
    let length = Duration::from_secs(20);
    let bound = scenario.bound_mbit(Way::Down, scenario.warmup, length).all;
    let best = run(scenario.only(0), 1, 20).goodput_mbit();
    let bond = run(scenario, 1, 20).goodput_mbit();
    assert!(bond > best, "{bond:.1} Mbit/s, the best link alone {best:.1}");
    assert!(bond > 0.80 * bound, "{bond:.1} of {bound:.1} Mbit/s");
}

#[test]
fn both_ways_at_once_with_ecn() {
    let mut scenario = Scenario::new(vec![link("a", 20.0, 10), link("b", 20.0, 20)]);
    scenario.flows = [FlowSpec::download(), FlowSpec::upload()].map(|f| FlowSpec { ecn: true, ..f }).to_vec();
    let report = run(scenario.clone(), 3, 12);
    insist(&report, &scenario, Way::Down, 0.80);
    insist(&report, &scenario, Way::Up, 0.80);
    for end in [&report.edge, &report.exit] {
        assert!(end.sender.marked > 0 && end.sender.dropped_codel == 0, "marks replace drops");
    }
    assert!(report.flows.iter().all(|flow| flow.sender.retransmits == 0), "{:?}", report.flows[0].sender);
}

#[test]
fn a_cut_path_is_hardly_noticed() {
    let scenario = Scenario::new(vec![link("fibre", 30.0, 5), link("dsl", 20.0, 15), link("lte", 10.0, 30)])
        .at(6000, Action::Cut(0))
        .at(10_000, Action::Restore(0));
    let report = run(scenario.clone(), 4, 16);
    let flow = &report.flows[0];
    assert!(flow.longest_gap < Duration::from_millis(200), "{:?}", flow.longest_gap);
    assert_eq!(flow.sender.timeouts, 0);
    let echo = report.echo.as_ref().expect("asked for");
    assert!(echo.longest_pause < Duration::from_millis(200), "{echo:?}");
    let raw = scenario.raw_mbit(Way::Down);
    let (during, after) = (between(&report, 7, 10), between(&report, 13, 16));
    assert!(during > 0.75 * (raw[1] + raw[2]), "{during:.1} Mbit/s without the fibre");
    assert!(after > 0.75 * raw.iter().sum::<f64>(), "{after:.1} Mbit/s after its return");
}

#[test]
fn a_renewed_path_keeps_the_flow_going() {
    let scenario = Scenario::new(vec![link("a", 20.0, 10), link("b", 20.0, 15)])
        .at(5000, Action::AddPath(0))
        .at(7000, Action::RemovePath(1))
        .at(8000, Action::AddPath(1));
    let report = run(scenario, 5, 12);
    assert_eq!(report.flows[0].sender.timeouts, 0);
    assert!(between(&report, 9, 12) > 25.0, "{:.1} Mbit/s at the end", between(&report, 9, 12));
}

#[test]
fn drifting_clocks_and_late_timers_cost_little() {
    let mut scenario = Scenario::new(vec![link("a", 20.0, 10), link("b", 10.0, 30)]);
    scenario.edge_clock.drift_ppm = 80.0;
    scenario.exit_clock = NodeClock { offset: Duration::from_millis(12_345_678), drift_ppm: -80.0 };
    scenario.wake_delay = Duration::from_millis(2);
    let report = run(scenario.clone(), 6, 20);
    insist(&report, &scenario, Way::Down, 0.80);
}

#[test]
fn a_recorded_link_beside_a_steady_one() {
    let trace = Trace::lte(15.0, Duration::from_secs(30), 7);
    let lte = LinkSpec::new(
        "lte",
        DirectionSpec::mbit(8.0).delay_ms(25),
        DirectionSpec::traced(trace).delay_ms(25).queue(QueueLimit::Bytes(300_000)),
    );
    let scenario = Scenario::new(vec![link("dsl", 15.0, 10), lte]);
    let report = run(scenario.clone(), 7, 20);
    let steady = scenario.raw_mbit(Way::Down)[0];
    let got = report.goodput_mbit();
    assert!(got > 1.1 * steady, "{got:.1} Mbit/s, the steady link alone has {steady:.1}");
}

#[test]
fn a_seed_decides_everything() {
    let run = |seed| SimBond::new(Scenario::random(9), seed).run(Duration::from_secs(3));
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first.links, run(2).links);
}

#[test]
fn sweep() {
    let parse = |text: &str| text.parse::<u64>().expect("MWB_SIM_SEED is a number, MWB_SIM_SEEDS is a..b");
    let (seeds, talk) = match (std::env::var("MWB_SIM_SEED"), std::env::var("MWB_SIM_SEEDS")) {
        (Ok(one), _) => (parse(&one)..parse(&one) + 1, true),
        (_, Ok(range)) => {
            let (from, to) = range.split_once("..").expect("MWB_SIM_SEEDS is a..b");
            (parse(from)..parse(to), false)
        }
        _ => (SEEDS, false),
    };
    let mut failed = Vec::new();
    for seed in seeds {
        let mut scenario = Scenario::random(seed);
        if talk && std::env::var_os("MWB_SIM_TRACE").is_some() {
            scenario.trace_every = Some(Duration::from_millis(100));
        }
        if talk {
            println!("{scenario}");
        }
        let report = SimBond::new(scenario, seed).run(Duration::from_secs(SWEEP_SECONDS));
        if talk {
            report.trace.iter().for_each(|line| println!("{line}"));
            println!("{report}");
        }
        // Whatever happened, every connection got somewhere.
        let stuck = report.flows.iter().any(|flow| flow.bytes == 0);
        if stuck || !report.violations.is_empty() {
            println!(
                "seed {seed}: stuck {stuck}, {:#?}\nreplay: MWB_SIM_SEED={seed} cargo test -p mwb-sim --test bonding sweep -- --nocapture",
                report.violations
            );
            failed.push(seed);
        }
    }
    assert!(failed.is_empty(), "failing seeds: {failed:?}");
}

/// Goal: on a thin uplink, reports leave room for acknowledgements, and acknowledgements for everything else.
/// Method: downloads over lines of 20 and 50 Mbit/s down and 1 up, with an echo beside.
#[test]
fn a_thin_uplink_has_room_for_an_echo_beside_acknowledgements_and_reports() {
    let line = |rtt_ms: u64, down: f64| {
        let way = |mbit| DirectionSpec::mbit(mbit).delay_ms(rtt_ms / 2);
        LinkSpec::new("thin", way(1.0), way(down))
    };
    for (links, least) in [
        (vec![line(20, 20.0)], 15.0),
        (vec![line(20, 20.0), line(40, 20.0)], 30.0),
        (vec![line(20, 50.0)], 25.0),
    ] {
        let report = run(Scenario::new(links.clone()), 1, 12);
        let up = &report.edge.sender;
        let control: u64 = up.paths.iter().map(|p| p.report_bytes + p.heartbeat_bytes).sum();
        let share = control as f64 * 8.0 / 12.0 / (1e6 * links.len() as f64);
        assert!(share < 0.09, "control takes {share:.3} of the uplinks");
        let echo = report.echo.as_ref().expect("there is one");
        assert!(echo.p95 < Duration::from_millis(90), "echo p95 {:?}", echo.p95);
        let mbit = report.way_mbit(Way::Down, Duration::from_secs(3));
        assert!(mbit > least, "{mbit} Mbit/s");
    }
}

/// Two thirds of the bond are a black hole for a while: the window is there for them when they are back.
#[test]
fn a_fast_link_that_returns_is_filled_at_once() {
    for (away, seed) in [(1000, 1), (4000, 2), (8000, 3)] {
        let scenario = fibre_dsl_lte().at(6000, Action::Cut(0)).at(6000 + away, Action::Restore(0));
        let report = run(scenario, seed, 20);
        let back = 6 + (away / 1000) as usize;
        let (before, at_return, later) =
            (between(&report, 4, 6), between(&report, back, back + 2), between(&report, back + 2, back + 5));
        assert!(at_return > 0.88 * before, "{at_return:.1} Mbit/s after {away} ms, {before:.1} before");
        assert!(later > 0.98 * before, "{later:.1} Mbit/s two seconds later, {before:.1} before");
    }
}

/// A link that carries most of the bond is taken away while a connection still grows, and is back within a second: what waits
/// for it meanwhile is not too much, so the connection goes on growing.
#[test]
fn a_window_outlives_a_second_without_the_link_that_carries_most() {
    for seed in 1..4 {
        let links = vec![link("dsl", 4.0, 60), link("satellite", 60.0, 250)];
        let away = Scenario::new(links).at(1500, Action::RemovePath(1)).at(2400, Action::AddPath(1));
        let got = between(&run(away, seed, 15), 8, 15);
        assert!(got > 40.0, "{got:.1} Mbit/s, seed {seed}");
    }
}
