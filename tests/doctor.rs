//! Goal: `mwb-node doctor` names what is in a node's way, with what to do, finds nothing on a host that is fit, changes
//! nothing, and serves a plain user too. Method: real hosts of a lab with faults put into them one by one.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]
#![allow(clippy::print_stdout, reason = "the program's own words, shown with --nocapture")]

mod support;

use std::net::UdpSocket;
use std::process::{Command, Output};

use serde_json::Value;

use support::footprint::Footprint;
use support::lab::Bond;
use support::node::{Node, PATIENCE, command, wait_until};
use support::skip::in_lab;

/// What the doctor says of the node's host.
struct Told {
    findings: Vec<Value>,
    code: Option<i32>,
}

impl Told {
    fn by(node: &Node) -> Self {
        Self::of(&node.doctor(&["--json"]))
    }

    #[track_caller]
    fn of(output: &Output) -> Self {
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        Self { findings: json["findings"].as_array().unwrap().clone(), code: output.status.code() }
    }

    /// Fails unless this is among the findings: verdict, subject, words of what it says and of what is to be done.
    #[track_caller]
    fn has(&self, verdict: &str, subject: &str, words: &str, todo: &str) {
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let found = self.findings.iter().any(|finding| {
            finding["verdict"] == verdict
                && finding["subject"] == subject
                && text(finding, "says").contains(words)
                && text(finding, "do").contains(todo)
        });
        assert!(found, "{verdict} {subject} {words:?} {todo:?} in {:#?}", self.findings);
    }

    fn faults(&self) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["verdict"] == "fault").collect()
    }
}

fn nft(node: &Node, rules: &str) {
    let mut command = Command::new("nft");
    command.arg(rules);
    let output = node.host().output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn shell(node: &Node, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    let output = node.host().output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A resolver on the node's own host that says yes to everything, until the test ends.
fn resolve(node: &Node) {
    shell(node, "echo nameserver 127.0.0.1 > /etc/resolv.conf");
    let socket = node.host().run(|| UdpSocket::bind("127.0.0.1:53")).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            buffer[2] |= 0x80;
            // Who asked may be gone.
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
}

#[test]
fn a_fit_host_has_no_fault_and_nothing_is_changed() {
    in_lab("a_fit_host_has_no_fault_and_nothing_is_changed", || {
        let mut bond = Bond::prepare();
        resolve(&bond.edge);
        resolve(&bond.exit);
        let before = [&bond.edge, &bond.exit].map(Footprint::of);
        for (node, before) in [&bond.edge, &bond.exit].into_iter().zip(&before) {
            let told = Told::by(node);
            assert!(told.faults().is_empty() && told.code == Some(0), "{:#?}", told.findings);
            before.check(node, "after the doctor's visit");
        }
        let told = Told::by(&bond.edge);
        told.has("ok", "uplink up0", "10.1.0.2/24 via 10.1.0.1", "");
        told.has("ok", "rp_filter up1", "the node makes it loose", "");
        told.has("ok", "node", "does not run, and has left nothing", "");
        Told::by(&bond.exit).has("ok", "port 9000", "is free", "");

        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_until("a path is up at both ends", PATIENCE, || {
            [&bond.edge, &bond.exit].iter().all(|node| {
                let status = node.status().unwrap_or_default();
                let paths = status["sessions"][0]["paths"].as_array().cloned().unwrap_or_default();
                paths.iter().any(|path| path["health"] == "up")
            })
        });
        for node in [&bond.edge, &bond.exit] {
            let told = Told::by(node);
            assert!(told.faults().is_empty() && told.code == Some(0), "{:#?}", told.findings);
            told.has("ok", "sessions", "sessions: 1; paths that carry packets", "");
        }
        let output = bond.edge.doctor(&[]);
        println!("{}", String::from_utf8_lossy(&output.stdout));
        bond.edge.kill();
        Told::by(&bond.edge).has("note", "node", "IPv4 rule 32765 (table 28023)", "mwb-node down");
    });
}

#[test]
fn every_fault_that_was_put_in_is_named() {
    in_lab("every_fault_that_was_put_in_is_named", || {
        let mut bond = Bond::prepare();
        // The exit: a firewall of others, a taken port, settings that cannot be changed.
        let taken = bond.exit.host().run(|| UdpSocket::bind("0.0.0.0:9000")).unwrap();
        nft(
            &bond.exit,
            "add table inet filter; \
             add chain inet filter input { type filter hook input priority 0; policy drop; }; \
             add rule inet filter input ct state established,related accept; \
             add rule inet filter input iifname lo accept; \
             add rule inet filter input tcp dport 22 accept; \
             add chain inet filter forward { type filter hook forward priority 0; policy drop; }",
        );
        let fix = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";
        shell(&bond.exit, fix);
        let told = Told::by(&bond.exit);
        assert_eq!(told.code, Some(1));
        told.has("fault", "port 9000", "another program's", "ss -ulpn 'sport = :9000'");
        told.has("fault", "forwarding", "/proc/sys cannot be written", "sysctl -w net.ipv4.ip_forward=1");
        told.has(
            "fault",
            "firewall",
            "UDP port 9000",
            "nft insert rule inet filter input udp dport 9000 accept",
        );
        told.has("fault", "firewall", "the traffic of the edges", "iifname mwb0 accept");
        // What it says is what helps.
        drop(taken);
        shell(&bond.exit, "mount -o remount,bind,rw /proc/sys; sysctl -qw net.ipv4.ip_forward=1");
        nft(&bond.exit, "insert rule inet filter input udp dport 9000 accept");
        nft(&bond.exit, "insert rule inet filter forward iifname mwb0 accept");
        nft(&bond.exit, "insert rule inet filter forward oifname mwb0 accept");
        resolve(&bond.exit);
        let told = Told::by(&bond.exit);
        assert!(told.faults().is_empty(), "{:#?}", told.faults());

        // The edge: an uplink that is not there, one that is down, one with a tiny MTU and a strict filter, interfaces that are
        // none; nobody resolves, and what comes back is dropped.
        let edge = &bond.edge;
        let uplink = |name: &str| format!("[[uplinks]]\ninterface = \"{name}\"\n");
        bond.configure_apart("", &["up0", "up1", "up9"].map(uplink).concat());
        edge.ip("link set up1 down");
        edge.ip("link set up0 mtu 1200");
        edge.ip("link add docker0 type bridge");
        edge.ip("link set docker0 up");
        nft(edge, "add table ip fw; add chain ip fw in { type filter hook input priority 0; policy drop; }");
        shell(edge, fix);
        let full = edge.state_dir().display();
        shell(edge, &format!("mount -t tmpfs -o size=4k,mode=700 tmpfs {full}; echo > {full}/some"));
        let told = Told::by(edge);
        assert_eq!(told.code, Some(1));
        told.has("fault", "folder", "is full", "df -h");
        shell(edge, &format!("umount {full}"));
        told.has("fault", "uplink up9", "there is no interface up9", "uplinks[].interface");
        told.has("fault", "uplink up1", "it is down", "sudo ip link set up1 up");
        told.has("fault", "MTU up0", "1200 bytes are too few", "sudo ip link set up0 mtu");
        told.has("fault", "rp_filter up0", "strict", "sysctl -w net.ipv4.conf.up0.rp_filter=2");
        told.has("fault", "DNS", "10.1.0.1 does not answer", "resolv.conf");
        told.has("fault", "firewall", "what the exit answers is dropped by ip fw in", "ct state established");
        told.has("ok", "interface docker0", "its kind is bridge", "");
        told.has("note", "uplinks", "only one", "");
        bond.edge.configure("tun = 7");
        Told::by(&bond.edge).has("fault", "configuration", "tun", "mwb-node config check");

        // Running, with an exit that nobody runs.
        shell(&bond.edge, "mount -o remount,bind,rw /proc/sys");
        bond.edge.ip("link set up0 mtu 1500");
        bond.configure_apart("", &["up0"].map(uplink).concat());
        bond.edge.start();
        wait_until("the dial fails", PATIENCE, || {
            let status = bond.edge.status().unwrap_or_default();
            status["peers"][0]["slots"][0]["problem"].is_string()
        });
        Told::by(&bond.edge).has("fault", "exit", "up0 does not reach exit", "UDP port");
    });
}

#[test]
fn a_plain_user_is_told_what_could_not_be_looked_at() {
    in_lab("a_plain_user_is_told_what_could_not_be_looked_at", || {
        let bond = Bond::prepare();
        resolve(&bond.edge);
        let asked = command(&["doctor", "--json", "--state-dir", bond.edge.state_dir().to_str().unwrap()]);
        let mut plain = Command::new("setpriv");
        plain.args(["--reuid", "65534", "--clear-groups", "--inh-caps=-all", "--"]);
        plain.arg(asked.get_program()).args(asked.get_args());
        plain.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let output = bond.edge.host().output(plain).unwrap();
        let refused = String::from_utf8_lossy(&output.stderr).contains("setpriv");
        if refused {
            // A user namespace with one user has no other.
            return mwb_sim::skip::record(
                "a_plain_user_is_told_what_could_not_be_looked_at",
                "no second user",
            );
        }
        let told = Told::of(&output);
        assert!(told.faults().is_empty() && told.code == Some(0), "{:#?}", told.findings);
        told.has("note", "rights", "CAP_NET_ADMIN", "sudo mwb-node doctor");
        told.has("note", "membership", "cannot be read", "sudo mwb-node doctor");
        told.has("note", "firewall", "as this user", "sudo mwb-node doctor");
        told.has("ok", "uplink up1", "10.1.1.2/24", "");
    });
}
