//! Goal: a routing mode that is written into the configuration decides which uplink carries what, as its name says.
//! Method: two real nodes over three uneven links with weights against their rates, started anew for each mode. The load
//! is one UDP flow each way (echo) of 24 Mbit/s: more than the best link carries, less than the 35 of all. Bytes per
//! uplink are the emulator's.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::time::Duration;

use mwb_sim::traffic::{EchoSpec, FlowSpec, download, udp_echo};

use support::lab::Bond;
use support::node::wait_until;
use support::skip::in_lab;

/// Name, Mbit/s, one-way delay in ms, weight.
const UNEVEN: [(&str, f64, u64, u32); 3] =
    [("fast", 20.0, 5, 1), ("middle", 10.0, 15, 10), ("slow", 5.0, 30, 20)];
/// The modes of the specification.
const SIX: [&str; 6] = ["round_robin", "weighted", "least_used", "least_latency", "per_flow", "adaptive"];
/// UDP payload of each datagram.
const SIZE: usize = 1200;

type Shares = [f64; 3];

/// Sends a flow of `mbit` for `seconds`, counting after `skip`: each link's share of the bytes towards the exit, and back.
fn shares(bond: &Bond, mbit: f64, skip: f64, seconds: f64) -> (Shares, Shares) {
    let rate = mbit * 1e6 / 8.0 / (SIZE + 28) as f64;
    let echo = EchoSpec::new(bond.server(), rate, SIZE, Duration::from_secs_f64(seconds));
    let running = bond.edge.host().start(move || udp_echo(&echo));
    std::thread::sleep(Duration::from_secs_f64(skip));
    let before = bond.carried();
    std::thread::sleep(Duration::from_secs_f64(seconds - skip));
    let after = bond.carried();
    let result = running.join().unwrap();
    assert!(result.received > 0 && result.duplicates == 0, "{result:?}");
    let share = |bytes: Vec<u64>| -> Shares {
        let all: u64 = bytes.iter().sum();
        [0, 1, 2].map(|link| bytes[link] as f64 / all.max(1) as f64)
    };
    let way =
        |pick: fn(&(u64, u64)) -> u64| before.iter().zip(&after).map(|(b, a)| pick(a) - pick(b)).collect();
    (share(way(|bytes| bytes.1)), share(way(|bytes| bytes.0)))
}

/// The shares of `mode`, on nodes that were started with it, and whether the edge suspected its heaviest uplink meanwhile.
/// First a flood, so that every path has been filled once.
fn measure(bond: &mut Bond, mode: &str) -> (Shares, bool) {
    bond.configure(&format!("[routing]\nmode = \"{mode}\"\n"));
    bond.exit.start();
    bond.edge.start();
    bond.wait_until_through();
    wait_until("all paths are up", Duration::from_secs(20), || {
        let status = bond.edge.status().unwrap_or_default();
        let paths = status["sessions"][0]["sender"]["paths"].as_array().cloned().unwrap_or_default();
        paths.len() == 3 && paths.iter().all(|path| path["state"] == "up")
    });
    let status = bond.edge.status().unwrap();
    assert_eq!(status["sessions"][0]["sender"]["mode"], mode);
    let (up, down) = if mode == "per_flow" {
        // Without the flood: on one link it would take long to drain, and be counted.
        home(bond)
    } else {
        shares(bond, 42.0, 1.0, 2.0);
        shares(bond, 24.0, 2.0, 5.0)
    };
    let status = bond.edge.status().unwrap();
    let paths = status["sessions"][0]["sender"]["paths"].as_array().cloned().unwrap_or_default();
    let heaviest = paths.iter().max_by_key(|path| path["weight"].as_u64().unwrap()).unwrap();
    let suspected = heaviest["suspicions"].as_u64().unwrap() > 0;
    let percent = |shares: &Shares| shares.map(|share| (share * 1000.0).round() / 10.0);
    eprintln!("{mode}: {:?} % up, {:?} % down", percent(&up), percent(&down));
    // What must arrive does so in every mode.
    let spec = FlowSpec::bytes(bond.server(), 1_000_000);
    let result = bond.edge.host().run(move || download(&spec)).unwrap();
    assert!(result.complete(), "{mode}: {:?}", result.failure);
    bond.edge.stop();
    bond.exit.stop();
    (up, suspected)
}

/// Flows, one after another, each of which must keep to one uplink; the shares of one that is not on the fast link.
fn home(bond: &Bond) -> (Shares, Shares) {
    let mut homes = Vec::new();
    let mut elsewhere = None;
    // The hash decides: the fast link is given one flow in ten, by its weight, the slower ones share the others.
    while homes.len() < 24 {
        let (up, down) = shares(bond, 4.0, 0.3, 0.9);
        let most = (0..3).max_by(|&a, &b| up[a].total_cmp(&up[b])).unwrap();
        assert!(up[most] > 0.8, "a flow is spread: {up:.3?}");
        homes.push(most);
        if most > 0 {
            elsewhere = Some((up, down));
        }
        if homes.iter().any(|home| *home != homes[0]) && elsewhere.is_some() {
            break;
        }
    }
    assert!(homes.iter().any(|home| *home != homes[0]), "all flows are on one link: {homes:?}");
    elsewhere.unwrap()
}

fn assert_near(mode: &str, got: Shares, want: Shares, by: f64) {
    assert!(
        got.iter().zip(want).all(|(got, want)| (got - want).abs() <= by),
        "{mode}: {got:.3?}, not {want:.3?}"
    );
}

#[test]
fn each_mode_spreads_as_its_name_says() {
    in_lab("each_mode_spreads_as_its_name_says", || {
        let mut bond = Bond::over(&UNEVEN);
        let got = SIX.map(|mode| measure(&mut bond, mode).0);
        let [round_robin, weighted, least_used, least_latency, _, adaptive] = got;
        assert_near("round_robin", round_robin, [1.0 / 3.0; 3], 0.04);
        // Solved for the load: 44, 37 and 19 %.
        assert_near("weighted", weighted, [0.44, 0.37, 0.19], 0.08);
        assert_near("least_used", least_used, [0.571, 0.286, 0.143], 0.06);
        assert!(least_latency[0] > 0.93, "{least_latency:.3?}");
        assert!(adaptive[0] > 0.68 && adaptive[1] > 0.08 && adaptive[2] < 0.10, "{adaptive:.3?}");
        for (a, first) in got.iter().enumerate() {
            for (b, second) in got.iter().enumerate().skip(a + 1) {
                let most = first.iter().zip(second).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
                assert!(most > 0.05, "{} and {} share alike: {first:.3?} {second:.3?}", SIX[a], SIX[b]);
            }
        }
        // An uplink that fell silent, were it because the machine was busy, is rightly not in use for five seconds.
        let backup = (0..3).find_map(|_| {
            let (shares, suspected) = measure(&mut bond, "active_backup");
            (shares[2] > 0.80 || !suspected).then_some(shares)
        });
        let backup =
            backup.expect("the machine is too busy: the heaviest uplink was suspected in each of three runs");
        assert!(backup[2] > 0.80, "the heaviest is in use: {backup:.3?}");
        let (broadcast, _) = measure(&mut bond, "broadcast");
        assert_near("broadcast", broadcast, [1.0 / 3.0; 3], 0.05);
    });
}

#[test]
fn a_broadcast_transfer_is_whole_and_its_copies_are_counted() {
    in_lab("a_broadcast_transfer_is_whole_and_its_copies_are_counted", || {
        let mut bond = Bond::over(&UNEVEN);
        bond.configure("[routing]\nmode = \"broadcast\"\n");
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        let spec = FlowSpec::bytes(bond.server(), 2_000_000);
        let running = bond.edge.host().start(move || download(&spec));
        std::thread::sleep(Duration::from_secs(1));
        bond.emulator().cut("fast").unwrap();
        let result = running.join().unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        let status = bond.edge.status().unwrap();
        let duplicates = status["sessions"][0]["receiver"]["duplicates"].as_u64().unwrap();
        let copies = bond.exit.status().unwrap()["sessions"][0]["sender"]["broadcast"].as_u64().unwrap();
        assert!(duplicates > 500 && copies >= duplicates, "{duplicates} copies dropped of {copies} sent");
    });
}
