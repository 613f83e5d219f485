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

use support::node::{Node, PATIENCE, wait_until};
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
            "[lan]\ninterfaces = [\"lan0\"]\nmdns = false\n[[uplinks]]\ninterface = \"up0\"\ntype = \"lte\"\n".to_owned();
        let peer = |name: &str, id: &str| format!("[[peers]]\nname = \"{name}\"\nnode_id = \"{id}\"\n");
        text += &peer("exit", &"1".repeat(64));
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
        let begin = Instant::now();
        while self.nodes[k].status().is_none() {
            assert!(begin.elapsed() < PATIENCE, "node {k} does not answer:\n{}", self.nodes[k].log());
        }
        Instant::now()
    }
}

#[test]
fn members_know_each_others_uplinks() {
    in_lab("members_know_each_others_uplinks", || {
        let mut lan = Lan::start(2);
        let running = (0..2).map(|k| lan.wait_running(k)).max().unwrap();
        lan.wait(&[0, 1], 1, running, TOGETHER_MAX);
        let uplink = lan.nodes[1].host().uplinks()[0].clone();
        let [a, b, c, d, e, f] = uplink.gateway_mac;
        let router = format!("{} ({a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x})", uplink.gateway);
        let announced = |lan: &Lan| lan.nodes[0].status().unwrap()["lan"]["peers"][0]["uplinks"][0].clone();
        let wait = |what: &str, lan: &Lan, done: &dyn Fn(&Value) -> bool| {
            let begin = Instant::now();
            wait_until(what, Duration::from_secs(5), || done(&announced(lan)));
            println!("{what}: known after {:.2?}", begin.elapsed());
        };
        wait("the uplink and its router", &lan, &|uplink| {
            uplink["name"] == "up0" && uplink["up"] == true && uplink["gateway"] == router.as_str()
        });
        let seen = announced(&lan);
        assert!(seen["lend"] == true && seen["metered"] == false && seen["type"] == "lte", "{seen}");

        let output = lan.nodes[0].ask(&["peers"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("host2") && text.contains(&router) && text.contains("192.168.50.12:9100"),
            "{text}"
        );

        // The same hardware address answers for a router that is a member: nobody may lease that way.
        let member = lan.nodes[0].host().address();
        lan.nodes[1].ip(&format!("neighbour replace {member} lladdr 02:00:00:00:00:01 dev up0"));
        lan.nodes[1].ip(&format!("route replace {member}/32 dev up0 metric 9"));
        lan.nodes[1].ip(&format!("route add default via {member} dev up0 metric 1"));
        wait_until("not lent over a member", Duration::from_secs(15), || announced(&lan)["lend"] == false);
    });
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
