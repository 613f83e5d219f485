//! Parity and duplicates under virtual time.
//!
//! Goal: a UDP flow loses next to nothing over links that lose 2 % each, sooner than resends would repair it, and
//! nothing is spent where nothing is lost. Method: the echo as a flow of half the bond's rate, fixed seeds, real
//! machines, modelled links; `-- --nocapture` prints the figures.

use std::time::Duration;

use mwb_proto::bond::{Classes, DuplicationConfig, DuplicationMode, FecMode};
use mwb_proto::wire::v2::Class;
use mwb_sim::bond_sim::{Action, EchoSpec, Scenario, SimBond, SimReport};
use mwb_sim::wan::{DirectionSpec, LinkSpec};

/// UDP at half of what two links of 20 Mbit/s carry: 1,200 bytes every 480 us both ways.
fn half_rate() -> EchoSpec {
    EchoSpec { interval: Duration::from_micros(480), size: 1200, ..EchoSpec::default() }
}

fn links(loss: f64) -> Vec<LinkSpec> {
    let link = |name: &str, delay_ms| {
        LinkSpec::symmetric(name, DirectionSpec::mbit(20.0).delay_ms(delay_ms).loss(loss))
    };
    vec![link("one", 30), link("two", 40)]
}

fn udp_only(loss: f64) -> Scenario {
    let mut scenario = Scenario::new(links(loss));
    scenario.flows.clear();
    scenario.echo = Some(half_rate());
    scenario
}

fn run(scenario: Scenario, seed: u64, seconds: u64) -> SimReport {
    let report = SimBond::new(scenario, seed).run(Duration::from_secs(seconds));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    report
}

/// Share of the echo's packets that never came back: the loss of both ways together.
fn lost(report: &SimReport) -> f64 {
    let echo = report.echo.as_ref().expect("asked for");
    1.0 - echo.received as f64 / echo.sent as f64
}

#[expect(clippy::print_stdout, reason = "figures, shown when asked for")]
fn show(name: &str, report: &SimReport) {
    let echo = report.echo.as_ref().expect("asked for");
    let (s, r) = (&report.exit.sender, &report.edge.receiver);
    println!(
        "{name:<22} lost {:.4} % both ways, rtt p50 {:.1?} p99 {:.1?} max {:.1?}; down: parity {} of {} protected of {}, \
         recovered {}, failed {}, resent {}, rebuilt {}, duplicates {}",
        100.0 * lost(report),
        echo.p50,
        echo.p99,
        echo.max,
        s.parity_sent,
        s.protected,
        s.packets_sent,
        r.fec_recovered,
        r.fec_failed,
        s.resent,
        s.rebuilt,
        r.duplicates
    );
}

#[test]
fn udp_loses_nothing_over_links_that_do() {
    let mut nothing = udp_only(0.02);
    (nothing.sender.resend, nothing.sender.fec.mode) = (false, FecMode::Off);
    let nothing = run(nothing, 1, 20);
    show("no repair", &nothing);
    assert!((0.03..0.05).contains(&lost(&nothing)), "2 % each way: {}", lost(&nothing));

    let mut resends = udp_only(0.02);
    resends.sender.fec.mode = FecMode::Off;
    let resends = run(resends, 1, 20);
    show("resends", &resends);

    let mut parity = udp_only(0.02);
    (parity.sender.resend, parity.sender.fec.mode) = (false, FecMode::Adaptive);
    let alone = run(parity, 1, 20);
    show("adaptive parity alone", &alone);
    assert!(lost(&alone) <= 0.001, "{}", lost(&alone));

    let both = run(udp_only(0.02), 1, 20);
    show("as configured", &both);
    assert!(lost(&both) <= 0.0001, "{}", lost(&both));
    assert!(both.edge.receiver.fec_recovered > 100 && both.exit.receiver.fec_recovered > 100);
    let (with, without) = (both.echo.expect("asked"), resends.echo.expect("asked"));
    assert!(with.p99 + Duration::from_millis(20) < without.p99, "{:?} and {:?}", with.p99, without.p99);
}

#[test]
fn a_clean_bond_gets_no_parity_at_all() {
    for seed in 1..5 {
        let mut scenario = Scenario::new(links(0.0));
        scenario.echo = Some(half_rate());
        let report = run(scenario, seed, 12);
        show("clean", &report);
        for sender in [&report.edge.sender, &report.exit.sender] {
            assert_eq!((sender.parity_sent, sender.protected, sender.duplicated), (0, 0, 0), "seed {seed}");
        }
    }
}

/// Three paths, of which the two nearest are not the two best: what each mode copies, and where.
#[test]
fn each_duplication_mode_copies_to_its_own_paths() {
    let link = |name: &str, delay_ms, loss| {
        LinkSpec::symmetric(name, DirectionSpec::mbit(20.0).delay_ms(delay_ms).loss(loss))
    };
    let run_as = |mode| {
        let mut scenario =
            Scenario::new(vec![link("near", 10, 0.02), link("lossy", 20, 0.05), link("far", 35, 0.0)]);
        scenario.flows.clear();
        scenario.sender.duplication = DuplicationConfig { mode, classes: Classes::of(&[Class::BestEffort]) };
        scenario.sender.resend = false;
        scenario.sender.fec.mode = FecMode::Off;
        // Long enough for the loss to be known; packets few enough for the first path to be the nearest.
        let report = run(scenario, 5, 40);
        show(&format!("{mode:?}"), &report);
        let sender = &report.edge.sender;
        let copies: Vec<u64> = sender.paths.iter().map(|path| path.duplicates).collect();
        assert_eq!(copies.iter().sum::<u64>(), sender.duplicated);
        (sender.packets_sent, copies, lost(&report))
    };
    let (sent, copies, off) = run_as(DuplicationMode::Off);
    assert_eq!(copies, [0, 0, 0], "of {sent}");
    let (sent, copies, first) = run_as(DuplicationMode::First);
    assert!(
        copies.iter().sum::<u64>() > 19 * sent / 10 && copies[1] > 0 && copies[2] > 0,
        "{copies:?} of {sent}"
    );
    let (sent, copies, fastest) = run_as(DuplicationMode::Fastest);
    assert!(copies[1] > 9 * sent / 10 && copies[2] < sent / 10, "{copies:?} of {sent}");
    let (sent, copies, best) = run_as(DuplicationMode::Best);
    assert!(copies[2] > 8 * sent / 10 && copies[1] < sent / 10, "{copies:?} of {sent}");
    assert!(off > 0.02 && fastest < 0.006 && first < 0.002 && best < 0.002, "{off} {first} {fastest} {best}");
}

/// Parity is sized by the loss: it comes with it and ends with it.
#[test]
fn parity_follows_the_loss() {
    let set = |loss| {
        let spec = links(loss)[0].down.clone();
        move |link, way| Action::Set(link, way, Box::new(spec.clone()))
    };
    let mut scenario = udp_only(0.0);
    for (at, loss) in [(5_000, 0.03), (12_000, 0.0)] {
        for link in 0..2 {
            scenario = scenario.at(at, set(loss)(link, mwb_sim::wan::Way::Down));
        }
    }
    scenario.trace_every = Some(Duration::from_millis(500));
    let report = run(scenario, 3, 20);
    let redundancy = |from: f64, to: f64| {
        let lines = report.trace.iter().filter(|l| l.side == mwb_sim::bond_sim::Side::Exit);
        let in_time = lines.filter(|l| (from..to).contains(&l.at));
        in_time.map(|l| l.sender.redundancy).collect::<Vec<_>>()
    };
    assert!(redundancy(0.0, 5.0).iter().all(|&r| r == 0.0), "{:?}", redundancy(0.0, 5.0));
    assert!(redundancy(7.0, 12.0).iter().all(|r| (0.05..0.55).contains(r)), "{:?}", redundancy(7.0, 12.0));
    assert!(redundancy(17.0, 20.0).iter().all(|&r| r == 0.0), "{:?}", redundancy(17.0, 20.0));
}

/// Made-up bonds, with cuts and renewed paths, and parity or copies for everything that is not TCP: no packet vanishes,
/// none comes twice, none is altered.
#[test]
fn no_invariant_breaks_with_parity_or_copies_for_all() {
    for seed in 1..25 {
        let mut scenario = Scenario::random(seed);
        scenario.sender.fec.mode = FecMode::Enabled;
        scenario.sender.fec.data_shards = 1 + (seed % 20) as u8;
        if seed % 3 == 0 {
            let classes = Classes::of(&[Class::BestEffort]);
            scenario.sender.duplication = DuplicationConfig { mode: DuplicationMode::First, classes };
        }
        let report = run(scenario, seed, 6);
        let sender = &report.edge.sender;
        assert!(sender.parity_sent > 0 || sender.duplicated > 0, "seed {seed}");
        assert_eq!(report.exit.receiver.fec_refused + report.edge.receiver.fec_refused, 0, "seed {seed}");
    }
}
