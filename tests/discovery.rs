//! Goal: members of one mesh on a LAN find each other without being told any address, soon notice who is gone,
//! and leave all others alone; what they announce tells a listener neither who they are nor which mesh is theirs,
//! and reaches no uplink. Method: real nodes on the lab's LAN with mDNS; the exit through which they joined is off,
//! so that nothing but the LAN is at work. What is announced is judged by Avahi, another implementation.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mwb_sim::lab::{Host, Lab};
use mwb_sim::wan::{DirectionSpec, LinkSpec};
use serde_json::Value;
use tempfile::TempDir;

use support::avahi::Avahi;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

/// From when all run until the members are connected.
const TOGETHER_MAX: Duration = Duration::from_secs(2);
/// From SIGKILL until the other says that a node is gone.
const GONE_MAX: Duration = Duration::from_secs(5);
/// From when it runs again until it is connected.
const BACK_MAX: Duration = Duration::from_secs(3);
/// How much later than it happens a thing may be seen here, as asking takes time.
const LATE: Duration = Duration::from_millis(500);

const SERVICE: &str = "_mwb._udp";
const CONFIGURATION: &str = "[lan]\ninterfaces = [\"lan0\"]\n[[uplinks]]\ninterface = \"up0\"\n";

/// A LAN whose hosts have a node each, configured and not started.
struct Lan {
    nodes: Vec<Node>,
    lab: Lab,
    dir: TempDir,
}

impl Lan {
    fn new(hosts: usize) -> Self {
        let link = |k| vec![LinkSpec::symmetric(format!("link{k}"), DirectionSpec::mbit(20.0).delay_ms(5))];
        let lab = Lab::lan(&(0..hosts).map(link).collect::<Vec<_>>()).unwrap();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let node = |k| Node::new(lab.host(&format!("host{}", k + 1)), dir.path());
        let nodes: Vec<_> = (0..hosts).map(node).collect();
        nodes.iter().for_each(|node| node.configure(CONFIGURATION));
        Self { nodes, lab, dir }
    }

    /// The nodes `who` join a mesh, over their uplinks, whose exit is gone afterwards.
    fn join(&self, who: &[usize]) {
        let mut exit = Node::new(self.lab.host("exit"), self.dir.path());
        let public = exit.host().address().to_string();
        done(&exit.mwb(&["init", "--exit", "--public", &public, "--name", "exit"]));
        let token = done(&exit.mwb(&["invite", "--uses", "9"]));
        exit.configure("");
        exit.start();
        wait_until("the exit runs", PATIENCE, || exit.status().is_some());
        for &k in who {
            done(&self.nodes[k].mwb(&["join", &token, "--name", &format!("member-{k}")]));
        }
        exit.stop();
    }

    /// Waits until each of `who` has `count` LAN connections; gives the time since `since`.
    #[track_caller]
    fn wait(&mut self, who: &[usize], count: usize, since: Instant, at_most: Duration) -> Duration {
        loop {
            let connected: Vec<_> = who.iter().map(|&k| connected(&self.nodes[k])).collect();
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
            assert!(
                begin.elapsed() < PATIENCE,
                "node {k} does not answer:
{}",
                self.nodes[k].log()
            );
        }
        Instant::now()
    }
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

/// All members that `node` has ever met on the LAN.
fn met(node: &Node) -> Option<Vec<Value>> {
    Some(node.status()?["lan"]["peers"].as_array().unwrap().clone())
}

fn connected(node: &Node) -> Option<usize> {
    Some(met(node)?.iter().filter(|peer| peer["connected"] == true).count())
}

/// What the discovery actor of `node` has heard.
fn heard(node: &Node) -> u64 {
    let status = node.status().unwrap();
    let actor =
        status["actors"].as_array().unwrap().iter().find(|actor| actor["name"] == "discovery").cloned();
    actor.unwrap()["handled"].as_u64().unwrap()
}

#[test]
fn members_find_each_other_and_nobody_else() {
    in_lab("members_find_each_other_and_nobody_else", || {
        let mut lan = Lan::new(3);
        lan.join(&[0, 1]);
        // The third is a member too, of another mesh.
        done(&lan.nodes[2].mwb(&["init", "--name", "foreigner"]));
        lan.nodes.iter_mut().rev().for_each(Node::start);
        let started = Instant::now();
        let running = (0..3).map(|k| lan.wait_running(k)).max().unwrap();
        let together = lan.wait(&[0, 1], 1, running, TOGETHER_MAX);
        let after_start = started.elapsed();
        println!(
            "connected {after_start:.2?} after the last start, {together:.2?} after the last node answered"
        );
        for round in 0..3 {
            let killed = Instant::now();
            lan.nodes[1].kill();
            let gone = lan.wait(&[0], 0, killed, GONE_MAX);
            let started = Instant::now();
            lan.nodes[1].start();
            let running = lan.wait_running(1);
            lan.wait(&[0, 1], 1, running, BACK_MAX);
            let back = started.elapsed();
            println!("round {round}: gone {gone:.2?} after SIGKILL, back {back:.2?} after its start");
        }
        // Who says goodbye is not dialled any more.
        lan.nodes[1].stop();
        let problems = |node: &Node| node.status().unwrap()["lan"]["problems"].as_object().unwrap().len();
        lan.wait(&[0], 0, Instant::now(), GONE_MAX);
        wait_until("its addresses are forgotten", PATIENCE, || problems(&lan.nodes[0]) == 0);

        assert!(heard(&lan.nodes[2]) > 0, "the foreigner's discovery does not work");
        assert_eq!(met(&lan.nodes[2]), Some(vec![]), "the foreigner has met somebody");
        let names: Vec<_> = met(&lan.nodes[0]).unwrap().iter().map(|peer| peer["name"].clone()).collect();
        assert_eq!(names, ["member-1"]);
    });
}

/// What the packet filter of `host` has counted of mDNS: sent to the LAN, sent elsewhere, received elsewhere.
fn mdns_packets(host: &Host) -> [u64; 3] {
    let mut command = Command::new("nft");
    command.args(["-j", "list", "counters", "table", "inet", "watch"]);
    let listed: Value = serde_json::from_str(&done(&host.output(command).unwrap())).unwrap();
    let counters = listed["nftables"].as_array().unwrap();
    ["lan", "elsewhere", "heard"].map(|name| {
        let counter = counters.iter().find(|entry| entry["counter"]["name"] == name).unwrap();
        counter["counter"]["packets"].as_u64().unwrap()
    })
}

fn watch_mdns(host: &Host) {
    let rules = "table inet watch {
        counter lan {}
        counter elsewhere {}
        counter heard {}
        chain out {
            type filter hook output priority 0
            udp dport 5353 oifname lan0 counter name lan
            udp dport 5353 oifname != { lan0, lo } counter name elsewhere
        }
        chain in {
            type filter hook prerouting priority -400
            udp dport 5353 iifname up0 counter name heard
        }
    }";
    let mut command = Command::new("nft");
    command.arg(rules);
    done(&host.output(command).unwrap());
}

/// The resolved instances on the LAN that `avahi` sees: interface, address and all the text.
fn resolved(avahi: &Avahi, interface: &str) -> Vec<String> {
    let text = avahi.browse(SERVICE);
    let lines = text.lines().filter(|line| line.split(';').take(2).eq(["=", interface]));
    lines.map(str::to_owned).collect()
}

#[test]
fn avahi_sees_a_service_that_names_nobody() {
    let test = "avahi_sees_a_service_that_names_nobody";
    if let Some(program) = Avahi::missing() {
        mwb_sim::skip::record(test, &format!("{program} is not installed"));
        return;
    }
    in_lab(test, || {
        let mut lan = Lan::new(2);
        let mesh = done(&lan.nodes[0].mwb(&["init", "--name", "workstation"]));
        let host = lan.nodes[0].host().clone();
        watch_mdns(&host);
        let (inside, outside) =
            (Avahi::start(lan.nodes[1].host().clone()), Avahi::start(lan.lab.host("internet")));
        lan.nodes[0].start();
        lan.wait_running(0);
        wait_until("Avahi sees the service", PATIENCE, || !resolved(&inside, "lan0").is_empty());
        wait_until("at both its addresses", PATIENCE, || {
            let lines = resolved(&inside, "lan0").join("\n");
            lines.contains(";192.168.50.11;9100;") && lines.contains(";IPv6;")
        });

        let text = inside.browse(SERVICE);
        println!("{text}");
        let id = &lan.nodes[0].id;
        assert_eq!(mesh.len(), 32, "{mesh}");
        let lower = text.to_lowercase();
        for secret in [&id[..12], &id[52..], &mesh[..8], &mesh[24..], "workstation", "host1", "exit"] {
            assert!(!lower.contains(secret), "{secret} in {text}");
        }
        for key in ["\"v=2\"", "\"t=", "\"s=", "\"m="] {
            assert!(text.contains(key), "no {key} in {text}");
        }
        // Only addresses of the LAN, not those of the uplinks.
        assert!(!lower.contains(";10.") && !lower.contains("fd00:11:"), "{text}");

        // Who asks on an uplink gets no answer.
        assert_eq!(outside.browse(SERVICE), "");
        let [on_lan, elsewhere, asked] = mdns_packets(&host);
        println!("{on_lan} packets on the LAN, {elsewhere} elsewhere, {asked} questions on the uplink");
        assert!(on_lan > 0 && asked > 0, "nothing was counted");
        assert_eq!(elsewhere, 0);

        lan.nodes[0].stop();
        wait_until("the goodbye is heard", PATIENCE, || inside.browse(SERVICE).is_empty());

        // An interface that appears later is used then.
        host.set_carrier("lan0", false).unwrap();
        lan.nodes[0].start();
        lan.wait_running(0);
        assert_eq!(inside.browse(SERVICE), "");
        host.set_carrier("lan0", true).unwrap();
        wait_until("Avahi sees the service again", PATIENCE, || !resolved(&inside, "lan0").is_empty());
        assert_eq!(mdns_packets(&host)[1], 0);
        lan.nodes[0].check();
    });
}
