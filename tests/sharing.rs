//! Goal: one host's download uses the uplinks of all hosts on its LAN, whatever happens to the others; a lender is
//! first on its own uplink; who is no member, is behind the same router or has used up its bytes gets nothing.
//! Method: real nodes on the lab's LAN with static LAN addresses; bytes per link are the emulator's. The figures
//! that are printed are no benchmark.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]
#![allow(clippy::print_stdout, reason = "figures, shown with --nocapture")]

mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use mwb_sim::lab::{Host, Lab, Running};
use mwb_sim::traffic::{FlowResult, FlowSpec, Server, download, server};
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit};
use serde_json::Value;
use tempfile::TempDir;

use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

const MEGABYTE: u64 = 1_000_000;
const MBIT: f64 = 20.0;
/// What 64 bytes of tunnel per packet and a standing queue leave of a link's rate.
const GOODPUT: f64 = 0.956;

/// Hosts `host1` and on with a node and an uplink each, `link1` and on, an exit and a server.
struct Sharing {
    hosts: Vec<Node>,
    exit: Node,
    server: Server,
    lab: Lab,
    _dir: TempDir,
}

impl Sharing {
    /// All but the configuration and the start.
    fn prepare(hosts: usize) -> Self {
        let link = |k: usize| {
            let queue = QueueLimit::Time(Duration::from_millis(100));
            let way = DirectionSpec::mbit(MBIT).delay_ms(5 + 5 * k as u64).queue(queue);
            vec![LinkSpec::symmetric(format!("link{}", k + 1), way)]
        };
        let lab = Lab::lan(&(0..hosts).map(link).collect::<Vec<_>>()).unwrap();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let node = |k| Node::new(lab.host(&format!("host{}", k + 1)), dir.path());
        let hosts = (0..hosts).map(node).collect();
        let exit = Node::new(lab.host("exit"), dir.path());
        let host = lab.host("server");
        let address = SocketAddr::new(host.address(), 7000);
        let server = host.run(move || server(address)).unwrap();
        Self { hosts, exit, server, lab, _dir: dir }
    }

    /// Three hosts that share, each with a path over all three uplinks.
    fn start() -> Self {
        let mut lan = Self::prepare(3);
        for k in 0..3 {
            lan.hosts[k].configure(&lan.configuration(k, "", &[0, 1, 2]));
        }
        lan.exit.configure(&lan.exit_configuration(&[0, 1, 2]));
        lan.start_all();
        for k in 0..3 {
            lan.wait_for_paths(k, 3);
        }
        lan
    }

    fn start_all(&mut self) {
        self.exit.start();
        self.hosts.iter_mut().for_each(Node::start);
    }

    /// Of host `k`, which knows the hosts in `knows` and has `more` in its section on the LAN.
    fn configuration(&self, k: usize, more: &str, knows: &[usize]) -> String {
        let mut text = format!(
            "[lan]\ninterfaces = [\"lan0\"]\nmdns = false\n{more}[[uplinks]]\ninterface = \"up0\"\n\
             [[peers]]\nname = \"exit\"\nnode_id = \"{}\"\naddresses = [\"{}:9000\"]\nexit = true\n",
            self.exit.id,
            self.lab.host("exit").address()
        );
        for &other in knows.iter().filter(|&&other| other != k) {
            let node = &self.hosts[other];
            let (name, address) = (node.host().name(), node.host().address());
            text += &format!(
                "[[peers]]\nname = \"{name}\"\nnode_id = \"{}\"\nlan = [\"{address}:9100\"]\n",
                node.id
            );
        }
        text
    }

    fn exit_configuration(&self, edges: &[usize]) -> String {
        let mut text = "[exit]\nlisten = [\"0.0.0.0:9000\"]\n".to_owned();
        for &k in edges {
            let node = &self.hosts[k];
            text += &format!("[[peers]]\nname = \"{}\"\nnode_id = \"{}\"\n", node.host().name(), node.id);
        }
        text
    }

    /// Waits until host `k` hears `count` paths.
    #[track_caller]
    fn wait_for_paths(&mut self, k: usize, count: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.hosts[k].status();
            let heard = status.as_ref().map_or(0, paths_heard);
            if heard == count {
                return;
            }
            self.hosts.iter_mut().for_each(Node::check);
            self.exit.check();
            let logs = || self.hosts.iter().map(Node::log).collect::<String>() + &self.exit.log();
            assert!(Instant::now() < end, "host{}: {heard} of {count} paths\n{}", k + 1, logs());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Leases of host `k`: those it has given and those it has got.
    fn leases(&self, k: usize) -> (Vec<Value>, Vec<Value>) {
        let status = self.hosts[k].status().expect("it runs");
        let list = |name: &str| status["leases"][name].as_array().cloned().unwrap_or_default();
        (list("lent"), list("borrowed"))
    }

    /// IP bytes that each link has delivered to its host.
    fn carried(&self) -> Vec<u64> {
        let counters = self.lab.emulator().all_counters().unwrap();
        counters.iter().map(|(_, link)| link.down.bytes).collect()
    }

    fn since(&self, before: &[u64]) -> Vec<f64> {
        self.carried().iter().zip(before).map(|(now, before)| (now - before) as f64 / 1e6).collect()
    }

    /// Starts a download of host `k`.
    fn download(&self, k: usize, spec: FlowSpec) -> Running<FlowResult> {
        self.hosts[k].host().start(move || download(&spec).unwrap())
    }

    fn bytes(&self, megabytes: u64) -> FlowSpec {
        FlowSpec::bytes(self.server.address(), megabytes * MEGABYTE).patience(Duration::from_secs(90))
    }

    fn seconds(&self, seconds: u64) -> FlowSpec {
        FlowSpec::seconds(self.server.address(), seconds)
    }

    fn stop(mut self) {
        self.hosts.iter_mut().for_each(Node::stop);
        self.exit.stop();
    }
}

fn paths_heard(status: &Value) -> usize {
    let paths = status["sessions"][0]["paths"].as_array().cloned().unwrap_or_default();
    paths.iter().filter(|path| path["received"].as_u64() > Some(0)).count()
}

#[track_caller]
fn assert_whole(result: &FlowResult, megabytes: u64) {
    assert!(result.complete() && result.total_bytes == megabytes * MEGABYTE, "{:?}", result.failure);
}

fn run(host: &Host, line: &str) {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    let output = host.output(command).unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn one_download_uses_the_uplinks_of_all_and_outlives_them() {
    in_lab("one_download_uses_the_uplinks_of_all_and_outlives_them", || {
        let mut lan = Sharing::start();
        let before = lan.carried();
        let result = lan.download(0, lan.bytes(30)).join();
        assert_whole(&result, 30);
        let carried = lan.since(&before);
        let share = result.goodput_mbit(Duration::from_secs(1)) / (3.0 * MBIT * GOODPUT);
        println!("one download: {share:.2} of the sum of three, {carried:.1?} MB per link");
        assert!(carried.iter().all(|&link| link > 3.0), "{carried:?} MB");

        // The uplink of a lender is cut, without any sign at the lender.
        let before = lan.carried();
        let running = lan.download(0, lan.bytes(40));
        wait_until("all links carry", PATIENCE, || lan.since(&before).iter().all(|&link| link > 2.0));
        lan.lab.emulator().cut("link2").unwrap();
        let result = running.join();
        assert_whole(&result, 40);
        println!("lender's uplink cut: longest pause {:.0} ms", result.longest_gap_ms());
        lan.lab.emulator().restore("link2").unwrap();

        // A lender dies.
        let before = lan.carried();
        let running = lan.download(0, lan.bytes(40));
        wait_until("the dying lender carries", PATIENCE, || lan.since(&before)[2] > 2.0);
        lan.hosts[2].kill();
        let result = running.join();
        assert_whole(&result, 40);
        println!("lender killed: longest pause {:.0} ms", result.longest_gap_ms());
        wait_until("its uplink is given up", PATIENCE, || {
            lan.leases(0).1.iter().all(|lease| lease["peer"] != "host3")
        });

        // It comes back, and lends again.
        lan.hosts[2].start();
        lan.wait_for_paths(0, 3);
        lan.stop();
    });
}

#[test]
fn a_lender_is_first_on_its_own_uplink() {
    in_lab("a_lender_is_first_on_its_own_uplink", || {
        let lan = Sharing::start();
        let alone = MBIT * GOODPUT;
        let borrower = lan.download(0, lan.seconds(14));
        std::thread::sleep(Duration::from_secs(5));
        let before = lan.carried();
        let lender = lan.download(1, lan.seconds(8)).join();
        let (own, first) = (
            lender.goodput_mbit(Duration::from_secs(2)) / alone,
            lender.goodput_mbit(Duration::ZERO) / alone,
        );
        println!(
            "lender first: {own:.2} of its own uplink after 2 s, {first:.2} from the start; {:.1?} MB per link; 100 ms: {:?}",
            lan.since(&before),
            lender.bytes_per_100ms.iter().map(|b| b * 80 / 1_000_000).collect::<Vec<_>>()
        );
        let borrower = borrower.join();
        println!("the borrower beside: {:.1} Mbit/s", borrower.goodput_mbit(Duration::from_secs(6)));
        assert!(borrower.complete() && lender.complete());
        assert!(own > 0.8, "{own:.2} of its own uplink");

        let running: Vec<_> = (0..3).map(|k| lan.download(k, lan.seconds(10))).collect();
        let results: Vec<_> = running.into_iter().map(Running::join).collect();
        let shares: Vec<f64> =
            results.iter().map(|flow| flow.goodput_mbit(Duration::from_secs(3)) / alone).collect();
        let (sum, squares): (f64, f64) =
            (shares.iter().sum(), shares.iter().map(|share| share * share).sum());
        println!("three at once: {shares:.2?} of the own uplink, Jain {:.3}", sum * sum / (3.0 * squares));
        assert!(shares.iter().all(|&share| share > 0.8), "{shares:.2?}");
        lan.stop();
    });
}

#[test]
fn a_stranger_gets_nothing_and_a_budget_ends() {
    in_lab("a_stranger_gets_nothing_and_a_budget_ends", || {
        let mut lan = Sharing::prepare(3);
        // The third host knows the others, and the exit knows it, but they do not.
        lan.hosts[0].configure(&lan.configuration(0, "", &[0, 1]));
        lan.hosts[1].configure(&lan.configuration(1, "lend_budget = 4000000\n", &[0, 1]));
        lan.hosts[2].configure(&lan.configuration(2, "", &[0, 1, 2]));
        lan.exit.configure(&lan.exit_configuration(&[0, 1, 2]));
        lan.start_all();
        lan.wait_for_paths(0, 2);
        lan.wait_for_paths(2, 1);

        let before = lan.carried();
        let result = lan.download(0, lan.bytes(20)).join();
        assert_whole(&result, 20);
        let carried = lan.since(&before);
        println!("a budget of 4 MB: {carried:.1?} MB per link");
        assert!((3.0..6.0).contains(&carried[1]), "{carried:?} MB");
        assert!(lan.leases(0).1.is_empty(), "the bytes are used up");

        let before = lan.carried();
        let result = lan.download(2, lan.bytes(5)).join();
        assert_whole(&result, 5);
        let carried = lan.since(&before);
        assert!(carried[0] < 0.1 && carried[1] < 0.1, "{carried:?} MB");
        for k in 0..2 {
            let (lent, _) = lan.leases(k);
            assert!(lent.iter().all(|lease| lease["peer"] != "host3"), "{lent:?}");
        }
        assert_eq!(lan.leases(2).1, Vec::<Value>::new());
        lan.stop();
    });
}

#[test]
fn two_hosts_behind_one_router_lend_each_other_nothing() {
    in_lab("two_hosts_behind_one_router_lend_each_other_nothing", || {
        let mut lan = Sharing::prepare(2);
        // One router with a port per host: the second host moves into the first one's network, and its port
        // of the router gets the address and hardware address of the other port.
        let (first, second) = (lan.lab.host("host1"), lan.lab.host("host2"));
        let (router, near) = (first.uplinks()[0].clone(), second.uplinks()[0].clone());
        let mac = router.gateway_mac.map(|byte| format!("{byte:02x}")).join(":");
        let [a, b, c, _] = router.address.octets();
        let moved = format!("{a}.{b}.{c}.3");
        let (gateway, up, internet) = (router.gateway, near.interface, lan.lab.host("internet"));
        let port = "wan1";
        run(&internet, &format!("ip link set {port} address {mac}"));
        run(&internet, &format!("ip address add {gateway}/32 dev {port}"));
        run(&internet, &format!("ip route add {moved}/32 dev {port} src {gateway}"));
        run(&second, &format!("ip address add {moved}/24 dev {up}"));
        run(&second, &format!("ip neighbour replace {gateway} lladdr {mac} dev {up} nud permanent"));
        run(&second, &format!("ip route replace default via {gateway} dev {up} metric 100 src {moved}"));
        run(&second, &format!("ip -6 neighbour flush dev {up}"));

        for k in 0..2 {
            lan.hosts[k].configure(&lan.configuration(k, "", &[0, 1]));
        }
        lan.exit.configure(&lan.exit_configuration(&[0, 1]));
        lan.start_all();
        for k in 0..2 {
            lan.wait_for_paths(k, 1);
        }
        wait_until("each has heard of the other's uplink", PATIENCE, || {
            (0..2).all(|k| {
                let status = lan.hosts[k].status().unwrap_or_default();
                status["lan"]["peers"][0]["uplinks"][0]["gateway"].is_string()
            })
        });
        let before = lan.carried();
        let result = lan.download(0, lan.bytes(8)).join();
        assert_whole(&result, 8);
        let carried = lan.since(&before);
        assert!(carried[1] < 0.1, "{carried:?} MB");
        for k in 0..2 {
            assert_eq!(lan.leases(k), (vec![], vec![]), "host{}", k + 1);
        }
        lan.stop();
    });
}
