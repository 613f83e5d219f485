//! Goal: at whatever instant a node is killed, its host is as it was after the next start and stop, or after
//! `mwb-node down`. Method: SIGKILL at 50 instants drawn from a seed, over start, join, traffic, stop and `down` itself, of an
//! edge and an exit in a lab; afterwards rules, routes, tables, interfaces, addresses and settings are compared byte by
//! byte.
//!
//! `MWB_KILLS_SEED=7` draws other instants; each is printed before it comes. An instant falls into the same part of the
//! same phase each time, as far as the machine keeps pace.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::collections::BTreeMap;
use std::process::Output;
use std::time::{Duration, Instant};

use mwb_sim::lab::LabChild;
use mwb_sim::traffic::{FlowSpec, download};
use rustix::process::Signal;

use support::footprint::Footprint;
use support::lab::Bond;
use support::node::{Node, PATIENCE, command, wait_until};
use support::skip::in_lab;

const UPLINKS: &str = "[[uplinks]]\ninterface = \"up0\"\n[[uplinks]]\ninterface = \"up1\"\n";
/// What the log of an edge says once its host uses the session, and that of an exit once its host forwards.
const EDGE_IS_UP: &str = "the host uses the session";
const EXIT_IS_UP: &str = "the host is an exit";

/// When a program is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Join,
    Start,
    Traffic,
    Stop,
    Down,
}

/// How often in which phase: of an edge, and of an exit.
const EDGE: [(Phase, usize); 5] =
    [(Phase::Join, 8), (Phase::Start, 12), (Phase::Traffic, 5), (Phase::Stop, 6), (Phase::Down, 2)];
const EXIT: [(Phase, usize); 4] =
    [(Phase::Start, 8), (Phase::Traffic, 3), (Phase::Stop, 4), (Phase::Down, 2)];

/// The seeded source of instants (splitmix64).
struct Random(u64);

impl Random {
    /// At least 0, less than 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// How long the phases take when nobody interferes, and how often a kill came in time.
struct Tally {
    lasts: BTreeMap<Phase, Duration>,
    inside: BTreeMap<Phase, usize>,
    random: Random,
    number: usize,
}

impl Tally {
    /// Draws the next instant of a phase, a little beyond its end at most, and says so.
    fn draw(&mut self, who: &str, phase: Phase) -> Duration {
        self.number += 1;
        let instant = self.lasts[&phase].mul_f64(1.05 * self.random.next());
        eprintln!("kill {}: {who} in {phase:?} after {:.1} ms", self.number, instant.as_secs_f64() * 1e3);
        instant
    }

    /// Whether the host is put back by `down`; if not, by the next start and stop.
    fn by_down(&self) -> bool {
        self.number.is_multiple_of(2)
    }

    fn count(&mut self, phase: Phase, is_inside: bool) {
        *self.inside.entry(phase).or_default() += usize::from(is_inside);
    }
}

#[test]
fn killed_at_any_instant_the_host_is_put_back() {
    in_lab("killed_at_any_instant_the_host_is_put_back", || {
        let seed = std::env::var("MWB_KILLS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        eprintln!("MWB_KILLS_SEED={seed}");
        let random = Random(seed);
        let mut tally = Tally { lasts: BTreeMap::new(), inside: BTreeMap::new(), random, number: 0 };
        let mut bond = mesh();
        live_with_others(&bond);
        let before = [Footprint::of(&bond.edge), Footprint::of(&bond.exit)];
        bond.exit.start();
        wait_for_log(&bond.exit, EXIT_IS_UP);
        let token = done(&bond.exit.mwb(&["invite", "--uses", "100"]));

        // Without a kill first: how long everything takes.
        for _ in 0..3 {
            // The first one finds neighbours and caches cold.
            forget(&bond.edge);
            let begin = Instant::now();
            done(&bond.edge.mwb(&["join", &token, "--name", "home"]));
            tally.lasts.insert(Phase::Join, begin.elapsed());
        }
        measure(&mut bond.edge, EDGE_IS_UP, &mut tally);
        before[0].check(&bond.edge, "after a stop");

        for (phase, times) in EDGE {
            for _ in 0..times {
                let instant = tally.draw("edge", phase);
                match phase {
                    Phase::Join => kill_join(&mut bond, &token, instant, &mut tally),
                    Phase::Traffic => kill_in_traffic(&mut bond, instant, true, &mut tally),
                    _ => kill(&mut bond.edge, phase, instant, EDGE_IS_UP, &mut tally),
                }
                put_back(&mut bond.edge, EDGE_IS_UP, &before[0], &tally);
            }
        }
        bond.exit.stop();
        before[1].check(&bond.exit, "after a stop");
        measure(&mut bond.exit, EXIT_IS_UP, &mut tally);
        for (phase, times) in EXIT {
            for _ in 0..times {
                let instant = tally.draw("exit", phase);
                match phase {
                    Phase::Traffic => kill_in_traffic(&mut bond, instant, false, &mut tally),
                    _ => kill(&mut bond.exit, phase, instant, EXIT_IS_UP, &mut tally),
                }
                put_back(&mut bond.exit, EXIT_IS_UP, &before[1], &tally);
            }
        }
        before[0].check(&bond.edge, "at the end");
        eprintln!("{} kills, of them inside their phase: {:?}", tally.number, tally.inside);
        assert_eq!(tally.number, 50);
        for (phase, times) in [(Phase::Join, 8), (Phase::Start, 20), (Phase::Stop, 10)] {
            let inside = tally.inside.get(&phase).copied().unwrap_or_default();
            assert!(inside * 4 >= times, "only {inside} of {times} kills fell into {phase:?}");
        }
        // It all still works.
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
    });
}

/// An exit that has made a mesh, and an edge that has not joined it; neither runs.
fn mesh() -> Bond {
    let bond = Bond::prepare();
    let public = bond.exit.host().address().to_string();
    done(&bond.exit.mwb(&["init", "--exit", "--public", &public, "--name", "exit"]));
    bond.exit.configure("");
    bond.edge.configure(UPLINKS);
    bond
}

/// Others have been on both hosts before: rules, routes and tables of theirs, and an exit that is a hardened server.
fn live_with_others(bond: &Bond) {
    bond.edge.ip("rule add priority 28000 fwmark 0x99 lookup 77");
    bond.edge.ip("route add 192.0.2.0/24 dev up0 table 77");
    for node in [&bond.edge, &bond.exit] {
        let rules =
            "add table inet theirs; add chain inet theirs out { type filter hook output priority 5; }";
        let mut command = std::process::Command::new("nft");
        command.arg(rules);
        let output = node.host().output(command).unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    bond.exit.host().run(|| {
        // What the kernel changes by itself when forwarding begins and ends.
        std::fs::write("/proc/sys/net/ipv4/conf/all/accept_redirects", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/forwarding", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/lo/forwarding", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1").unwrap();
    });
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

#[track_caller]
fn wait_for_log(node: &Node, words: &str) {
    let end = Instant::now() + PATIENCE;
    while !node.log().contains(words) {
        assert!(Instant::now() < end, "{words:?} is not in\n{}", node.log());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A start, a stop and a `down`, timed.
fn measure(node: &mut Node, is_up: &str, tally: &mut Tally) {
    let begin = Instant::now();
    node.start();
    wait_for_log(node, is_up);
    tally.lasts.insert(Phase::Start, begin.elapsed());
    tally.lasts.insert(Phase::Traffic, Duration::from_millis(600));
    let begin = Instant::now();
    node.stop();
    tally.lasts.insert(Phase::Stop, begin.elapsed());
    let begin = Instant::now();
    done(&node.down());
    tally.lasts.insert(Phase::Down, begin.elapsed());
    eprintln!("{}: {:?}", node.host().name(), tally.lasts);
}

/// Kills the node while it starts or stops, or the program that cleans up after it.
fn kill(node: &mut Node, phase: Phase, instant: Duration, is_up: &str, tally: &mut Tally) {
    node.start();
    match phase {
        Phase::Start => std::thread::sleep(instant),
        Phase::Stop => {
            wait_for_log(node, is_up);
            node.signal(Signal::TERM);
            std::thread::sleep(instant);
        }
        Phase::Down => wait_for_log(node, is_up),
        Phase::Join | Phase::Traffic => unreachable!("these have functions of their own"),
    }
    let is_inside = !node.has_ended() && (phase == Phase::Stop || !node.log().contains(is_up));
    node.kill();
    if phase == Phase::Down {
        let mut down = node.start_down();
        std::thread::sleep(instant);
        let is_inside = down.try_wait().unwrap().is_none();
        down.kill().unwrap();
        return tally.count(phase, is_inside);
    }
    tally.count(phase, is_inside);
}

/// Kills the edge or the exit while a download runs.
fn kill_in_traffic(bond: &mut Bond, instant: Duration, is_edge: bool, tally: &mut Tally) {
    if !is_edge {
        bond.exit.start();
    }
    bond.edge.start();
    bond.wait_until_through();
    // Nobody waits for its end, which comes when the address or the answers are gone.
    let spec = FlowSpec::bytes(bond.server(), 200_000_000).patience(Duration::from_secs(2));
    let running = bond.edge.host().start(move || download(&spec).is_ok());
    std::thread::sleep(instant);
    tally.count(Phase::Traffic, !running.is_finished());
    if is_edge {
        bond.edge.kill();
    } else {
        bond.exit.kill();
        bond.edge.stop();
    }
    drop(running);
}

/// Removes the node's key and membership: a join makes both.
fn forget(node: &Node) {
    std::fs::remove_dir_all(node.state_dir()).unwrap();
}

/// Kills a node that joins. The same command again finds it a member, or makes it one.
fn kill_join(bond: &mut Bond, token: &str, instant: Duration, tally: &mut Tally) {
    forget(&bond.edge);
    let mut command = command(&["join", token, "--name", "home"]);
    command.arg("--state-dir").arg(bond.edge.state_dir());
    let mut join: LabChild = bond.edge.host().spawn(command).unwrap();
    std::thread::sleep(instant);
    tally.count(Phase::Join, join.try_wait().unwrap().is_none());
    join.kill().unwrap();
    let mesh = done(&bond.edge.mwb(&["join", token, "--name", "home"]));
    assert!(done(&bond.edge.mwb(&["members"])).contains(&mesh));
}

/// Puts the host back, one way or the other, and compares.
#[track_caller]
fn put_back(node: &mut Node, is_up: &str, before: &Footprint, tally: &Tally) {
    if tally.by_down() {
        done(&node.down());
    } else {
        node.start();
        wait_until("it runs", PATIENCE, || node.log().contains("running") || node.log().contains(is_up));
        node.stop();
    }
    before.check(node, &format!("after kill {}", tally.number));
}
