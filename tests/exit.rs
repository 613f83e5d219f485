//! Goal: an exit lets its edges reach the internet and nothing else, as much as it was told; and when another firewall on its host is
//! in the way, it says which rule, and what to type. Method: real nodes, real programs, and in the exit's namespace
//! tables as Docker, ufw and firewalld make them.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use mwb_sim::traffic::{FlowSpec, download, upload};
use serde_json::Value;
use support::lab::Bond;
use support::node::{PATIENCE, wait_until};
use support::skip::in_lab;

/// Gives `nft` a ruleset in the exit's namespace.
#[track_caller]
fn nft(bond: &Bond, rules: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(rules.as_bytes()).unwrap();
    let mut command = Command::new("nft");
    command.arg("-f").arg(file.path());
    let output = bond.exit.host().output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// What the exit says of its host, once it has tried it.
#[track_caller]
fn tried(bond: &Bond, wanted: &str, at_most: Duration) -> String {
    let mut exit = Value::Null;
    wait_until(&format!("forwarding {wanted}"), at_most, || {
        exit = bond.exit.status().unwrap_or_default()["exit"].clone();
        exit["forwarding"] == wanted
    });
    exit["problem"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn who_eats_the_edges_packets_is_named_with_the_cure() {
    in_lab("who_eats_the_edges_packets_is_named_with_the_cure", || {
        let mut bond = Bond::prepare();
        bond.exit.start();
        assert_eq!(tried(&bond, "works", PATIENCE), "");
        assert!(!bond.exit.nft().contains("mwb_probe"), "nothing of the test stays");
        bond.exit.stop();

        let docker = "table ip filter {\nchain DOCKER-USER {\nreturn\n}\nchain FORWARD {\n\
                      type filter hook forward priority 0; policy drop;\njump DOCKER-USER\niifname \"docker0\" accept\n}\n}\n";
        nft(&bond, docker);
        bond.exit.start();
        let problem = tried(&bond, "blocked", PATIENCE);
        for words in [
            "IPv4 of edges is dropped by the table ip filter, chain FORWARD, policy drop",
            "iptables -I DOCKER-USER -i mwb0 -j ACCEPT && iptables -I DOCKER-USER -o mwb0 -j ACCEPT",
        ] {
            assert!(problem.contains(words) && bond.exit.log().contains(words), "{words} in {problem}");
        }
        let status = String::from_utf8(bond.exit.ask(&["status"]).stdout).unwrap();
        assert!(status.contains(&problem), "{status}");
        bond.edge.start();
        // What the cure comes to, without the program.
        nft(
            &bond,
            "insert rule ip filter DOCKER-USER iifname mwb0 accept\ninsert rule ip filter DOCKER-USER oifname mwb0 accept\n",
        );
        bond.wait_until_through();
        tried(&bond, "works", Duration::from_secs(60));
        bond.exit.stop();

        let ufw = "delete table ip filter\ntable ip filter {\nchain ufw-before-forward {\nct state established accept\n}\n\
                   chain ufw-reject-forward {\nreject\n}\nchain FORWARD {\ntype filter hook forward priority 0; policy accept;\n\
                   jump ufw-before-forward\njump ufw-reject-forward\n}\n}\n";
        nft(&bond, ufw);
        bond.exit.start();
        let problem = tried(&bond, "blocked", PATIENCE);
        assert!(problem.contains("chain ufw-reject-forward, rule \"reject\""), "{problem}");
        assert!(problem.contains("ufw route allow in on mwb0 && ufw route allow out on mwb0"), "{problem}");
        bond.exit.stop();

        let firewalld = "delete table ip filter\ntable inet firewalld {\nchain filter_FORWARD {\n\
                         type filter hook forward priority 10; policy accept;\nct state established accept\n\
                         meta nfproto ipv6 reject with icmpx type admin-prohibited\n}\n}\n";
        nft(&bond, firewalld);
        bond.exit.start();
        let problem = tried(&bond, "blocked", PATIENCE);
        assert!(problem.contains("IPv6 of edges is dropped by the table inet firewalld"), "{problem}");
        assert!(
            problem.contains("firewall-cmd --permanent --zone=trusted --add-interface=mwb0"),
            "{problem}"
        );
        bond.exit.stop();
        let left = bond.exit.nft();
        assert!(!left.contains("table inet mwb"), "{left}");
    });
}

/// A private network of the exit, and a service in it.
const INSIDE: &str = "10.77.0.1:7777";

fn connect(bond: &Bond, to: &str) -> std::io::Result<()> {
    let to: SocketAddr = to.parse().unwrap();
    bond.edge.host().run(move || connect_to(to).map(drop))
}

/// Connects. Rarely a kernel says that the connection has ended before it says why, and the standard library gives up then:
/// that says nothing about the exit, and is tried again.
fn connect_to(to: SocketAddr) -> std::io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(10));
    let first = connect();
    if first.as_ref().is_err_and(|error| error.to_string().contains("POLLHUP")) { connect() } else { first }
}

/// Adds `keys` to the exit's section.
fn configure_exit(bond: &Bond, keys: &str) {
    let text = std::fs::read_to_string(bond.exit.config_file()).unwrap();
    let without: String =
        text.lines().filter(|line| !line.starts_with("allow")).map(|line| format!("{line}\n")).collect();
    bond.exit.configure(&without.replace("[exit]\n", &format!("[exit]\n{keys}\n")));
}

#[test]
fn an_exits_own_networks_are_closed_unless_they_are_allowed() {
    in_lab("an_exits_own_networks_are_closed_unless_they_are_allowed", || {
        let mut bond = Bond::prepare();
        for command in ["link add lan9 type bridge", "address add 10.77.0.1/24 dev lan9", "link set lan9 up"]
        {
            assert_eq!(bond.exit.ip(command), "");
        }
        let listener = bond.exit.host().run(|| TcpListener::bind(INSIDE)).unwrap();
        std::thread::spawn(move || listener.incoming().for_each(drop));
        configure_exit(&bond, "");
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        // At the exit itself, behind it, and by the exit to itself as an edge.
        for to in [INSIDE, "10.77.0.9:80", "192.168.77.1:80", "100.64.0.1:80"] {
            let refused = connect(&bond, to).expect_err(to);
            assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{to}: {refused}");
        }
        bond.exit.stop();
        configure_exit(&bond, "allow = [\"10.77.0.0/24\"]");
        bond.exit.start();
        wait_until("the session returns", Duration::from_secs(60), || bond.is_through());
        connect(&bond, INSIDE).unwrap();
        let refused = connect(&bond, "192.168.77.1:80").expect_err("not allowed");
        assert_eq!(refused.kind(), ErrorKind::HostUnreachable, "{refused}");
    });
}

const RATE: u64 = 1_000_000;
const TRANSFER: u64 = 4_000_000;
const CONNECTIONS: usize = 30;

#[test]
fn no_node_gets_more_than_its_share() {
    in_lab("no_node_gets_more_than_its_share", || {
        let mut bond = Bond::prepare();
        configure_exit(&bond, &format!("max_rate = {RATE}\nmax_connections = {CONNECTIONS}"));
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        for flow in [download as fn(&FlowSpec) -> _, upload] {
            let spec = FlowSpec::bytes(bond.server(), TRANSFER);
            let began = Instant::now();
            let result = bond.edge.host().run(move || flow(&spec)).unwrap();
            assert!(result.complete(), "{:?}", result.failure);
            // Without the cap it takes half a second. A second's worth may come at once, and two super-packets.
            let least = (TRANSFER - RATE - 131_072) as f64 / RATE as f64 * 0.95;
            assert!(began.elapsed().as_secs_f64() >= least, "{:?}, not {least} s", began.elapsed());
        }

        let address = SocketAddr::new(bond.server().ip(), 7778);
        let listener = bond.server_host().run(move || TcpListener::bind(address)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Ends when the client does.
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut std::io::sink()));
            }
        });
        let open = move || -> Vec<std::io::Result<TcpStream>> {
            (0..2 * CONNECTIONS).map(|_| connect_to(address)).collect()
        };
        let opened = bond.edge.host().run(open);
        let good = opened.iter().filter(|stream| stream.is_ok()).count();
        assert!((1..=CONNECTIONS).contains(&good), "{good} connections");
        for error in opened.iter().filter_map(|stream| stream.as_ref().err()) {
            assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{error}");
        }
        drop(opened);
        // Those that ended make room.
        wait_until("a new connection", Duration::from_secs(150), || {
            connect(&bond, &address.to_string()).is_ok()
        });
    });
}
