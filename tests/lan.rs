//! Goal: members on one LAN find each other by their configured addresses, notice soon when one vanishes, and
//! find it again when it is back. Method: three real nodes on the lab's LAN; the exit they name does not run, so
//! that nothing but the LAN is at work.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::time::{Duration, Instant};

use mwb_sim::lab::Lab;
use mwb_sim::wan::{DirectionSpec, LinkSpec};
use serde_json::Value;
use tempfile::TempDir;

use support::node::Node;
use support::skip::in_lab;

/// From when all run until every pair is connected.
const TOGETHER_MAX: Duration = Duration::from_secs(2);
/// From SIGKILL until the others say that a node is gone.
const GONE_MAX: Duration = Duration::from_secs(5);
/// From its start until it is connected with all others.
const BACK_MAX: Duration = Duration::from_secs(3);
/// How much later than it happens a thing may be seen here, as asking takes time.
const LATE: Duration = Duration::from_millis(500);

/// The test takes longer than this in seconds: three times the silence after which a node is gone.
const HELD_MIN: f64 = 9.0;

/// Hosts `host1` and on with a node each, all started.
struct Lan {
    nodes: Vec<Node>,
    _lab: Lab,
    _dir: TempDir,
}

impl Lan {
    fn start(hosts: usize) -> Self {
        let link = |k| vec![LinkSpec::symmetric(format!("link{k}"), DirectionSpec::mbit(20.0).delay_ms(5))];
        let lab = Lab::lan(&(0..hosts).map(link).collect::<Vec<_>>()).unwrap();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let node = |k| Node::new(lab.host(&format!("host{}", k + 1)), dir.path());
        let nodes: Vec<_> = (0..hosts).map(node).collect();
        let mut lan = Self { nodes, _lab: lab, _dir: dir };
        for k in 0..hosts {
            lan.nodes[k].configure(&lan.configuration(k));
        }
        lan.nodes.iter_mut().for_each(Node::start);
        lan
    }

    /// One uplink, an exit that nobody is, and the others at their LAN addresses.
    fn configuration(&self, k: usize) -> String {
        let mut text =
            "[lan]\ninterfaces = [\"lan0\"]\nmdns = false\n[[uplinks]]\ninterface = \"up0\"\n".to_owned();
        let peer = |name: &str, id: &str| format!("[[peers]]\nname = \"{name}\"\nnode_id = \"{id}\"\n");
        text += &peer("exit", &"0".repeat(64));
        text += "addresses = [\"198.51.100.2:9000\"]\nexit = true\n";
        for node in self.nodes.iter().enumerate().filter(|(other, _)| *other != k).map(|(_, node)| node) {
            text += &peer(node.host().name(), &node.id);
            text += &format!("lan = [\"{}:9100\"]\n", node.host().address());
        }
        text
    }

    /// How many peers node `k` is connected with; none if it does not answer.
    fn connected(&self, k: usize) -> Option<usize> {
        let status = self.nodes[k].status()?;
        let peers = status["lan"]["peers"].as_array().unwrap().iter();
        Some(peers.filter(|peer| peer["connected"] == true).count())
    }

    /// Waits until each of `who` has `count` connections; gives the time it took.
    #[track_caller]
    fn wait(&mut self, who: &[usize], count: usize, since: Instant, at_most: Duration) -> Duration {
        loop {
            let connected: Vec<_> = who.iter().map(|&k| self.connected(k)).collect();
            if connected.iter().all(|&connected| connected == Some(count)) {
                return since.elapsed();
            }
            self.nodes.iter_mut().for_each(Node::check);
            let logs = || self.nodes.iter().map(Node::log).collect::<String>();
            assert!(
                since.elapsed() < at_most + LATE,
                "{connected:?}, not {count}, after {at_most:?}\n{}",
                logs()
            );
        }
    }

    /// Waits until the program of node `k` answers: it runs.
    fn wait_running(&self, k: usize) -> Instant {
        while self.nodes[k].status().is_none() {}
        Instant::now()
    }
}

#[test]
fn members_meet_vanish_and_return() {
    in_lab("members_meet_vanish_and_return", || {
        let mut lan = Lan::start(3);
        let running = (0..3).map(|k| lan.wait_running(k)).max().unwrap();
        let met = lan.wait(&[0, 1, 2], 2, running, TOGETHER_MAX);
        println!("all pairs connected {met:.2?} after the last node was running");

        // The others keep their connection while one is gone.
        let others = |status: Value| {
            let peers = status["lan"]["peers"].as_array().unwrap().clone();
            peers.into_iter().find(|peer| peer["name"] == "host3").unwrap()["connected_seconds"].as_f64()
        };
        for round in 0..3 {
            let killed = Instant::now();
            lan.nodes[1].kill();
            let gone = lan.wait(&[0, 2], 1, killed, GONE_MAX);
            lan.nodes[1].start();
            let running = lan.wait_running(1);
            let back = lan.wait(&[0, 1, 2], 2, running, BACK_MAX);
            println!("round {round}: gone {gone:.2?} after SIGKILL, back {back:.2?} after it was running");
        }
        // At once, so that the others find the new instance before they miss the old one.
        lan.nodes[1].kill();
        lan.nodes[1].start();
        let running = lan.wait_running(1);
        let back = lan.wait(&[0, 1, 2], 2, running, BACK_MAX);
        println!("restarted at once: back {back:.2?} after it was running");
        let held = others(lan.nodes[0].status().unwrap()).unwrap();
        assert!(held > HELD_MIN, "host1 and host3 lost their connection: {held} s old");
    });
}
