//! The topologies, the programs in them, and that nothing is left of a lab.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells what it measured"
)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mwb_sim::lab::{Lab, LabOptions, Operation, in_lab_process, machine_lock, preflight};
use mwb_sim::traffic::{self, EchoSpec, FlowSpec, Transport};
use mwb_sim::wan::{DirectionSpec, LinkSpec};
use rustix::process::Signal;

fn link(name: &str) -> LinkSpec {
    LinkSpec::symmetric(name, DirectionSpec::mbit(50.0).delay_ms(5))
}

/// The network namespace of a process or thread, as the kernel names it.
fn namespace_of(process: &str) -> Option<String> {
    Some(std::fs::read_link(format!("/proc/{process}/ns/net")).ok()?.display().to_string())
}

#[test]
fn hosts_reach_each_other_over_both_families() {
    in_lab_process("hosts_reach_each_other_over_both_families", || {
        let _lock = machine_lock().unwrap();
        let options = LabOptions { rp_filter: 1, ..LabOptions::default() };
        let lab = Lab::edge_exit_with(&[link("a"), link("b")], &options).unwrap();
        let edge = lab.host("edge");
        assert_eq!(edge.uplink_names(), ["up0", "up1"]);
        assert_eq!(edge.addresses()[..2], [IpAddr::from([10, 1, 0, 2]), IpAddr::from([10, 1, 1, 2])]);
        let filter = edge.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/conf/up1/rp_filter"));
        assert_eq!(filter.unwrap().trim(), "1");
        for name in ["exit", "server"] {
            let host = lab.host(name);
            for address in host.addresses().to_vec() {
                let address = SocketAddr::new(address, 5001);
                let _server = host.run(move || traffic::server(address)).unwrap();
                // Without a device the packets go over the first uplink.
                let spec = FlowSpec::bytes(address, 200_000);
                let flow = edge.run(move || traffic::upload(&spec)).unwrap();
                assert!(flow.complete() && flow.total_bytes == 200_000, "{address} {flow:?}");
            }
        }
        let b = lab.emulator().counters("b").unwrap();
        assert!(b.up.bytes < 1000, "{b:?}");
        // Exit and server talk without an emulated link between them.
        let (exit, address) = (lab.host("exit"), SocketAddr::new(lab.host("server").address(), 5002));
        let _server = lab.host("server").run(move || traffic::server(address)).unwrap();
        let echo = EchoSpec::new(address, 100.0, 64, Duration::from_millis(200));
        let echo = exit.run(move || traffic::udp_echo(&echo)).unwrap();
        assert!(echo.received == 20 && echo.p50_ms < 5.0, "{echo:?}");
    });
}

#[test]
fn a_lan_has_hosts_with_uplinks_of_their_own() {
    in_lab_process("a_lan_has_hosts_with_uplinks_of_their_own", || {
        let _lock = machine_lock().unwrap();
        let lab = Lab::lan(&[vec![link("1a"), link("1b")], vec![link("2a")], vec![]]).unwrap();
        let (one, two, three) = (lab.host("host1"), lab.host("host2"), lab.host("host3"));
        assert_eq!(two.address(), IpAddr::from([192, 168, 50, 12]));
        assert_eq!(one.uplinks()[1].address.octets(), [10, 11, 1, 2]);
        let near = SocketAddr::new(two.address(), 5001);
        let far = SocketAddr::new(lab.host("server").address(), 5001);
        let _near = two.run(move || traffic::server(near)).unwrap();
        let _far = lab.host("server").run(move || traffic::server(far)).unwrap();
        let echo = |host: &mwb_sim::lab::Host, to, device: Option<&str>| {
            let mut spec = EchoSpec::new(to, 100.0, 64, Duration::from_millis(200));
            spec.device = device.map(str::to_owned);
            host.run(move || traffic::udp_echo(&spec)).unwrap()
        };
        for host in [&one, &three] {
            let lan = echo(host, near, Some("lan0"));
            assert!(lan.received == 20 && lan.p50_ms < 5.0, "{lan:?}");
        }
        for (host, uplink) in [(&one, "up0"), (&one, "up1"), (&two, "up0")] {
            let wan = echo(host, far, Some(uplink));
            assert!(wan.received == 20 && wan.min_ms >= 10.0, "{wan:?}");
        }
        for (name, counters) in lab.emulator().all_counters().unwrap() {
            assert!((20..40).contains(&counters.up.packets), "{name} {counters:?}");
        }
        // Without an uplink there is no way out.
        let spec = EchoSpec::new(far, 100.0, 64, Duration::from_millis(200));
        assert!(three.run(move || traffic::udp_echo(&spec)).is_err());
        assert!(Lab::lan(&[]).is_err() && Lab::edge_exit(&[]).is_err());
        assert!(Lab::edge_exit(&[link("same"), link("same")]).is_err());
    });
}

#[test]
fn a_lost_carrier_takes_the_routes_and_comes_back() {
    in_lab_process("a_lost_carrier_takes_the_routes_and_comes_back", || {
        let _lock = machine_lock().unwrap();
        let lab = Lab::edge_exit(&[link("a"), link("b")]).unwrap();
        let (edge, server) = (lab.host("edge"), lab.host("server"));
        let address = SocketAddr::new(server.address(), 5001);
        let _server = server.run(move || traffic::server(address)).unwrap();
        let echo = || {
            let spec = EchoSpec::new(address, 100.0, 64, Duration::from_millis(200));
            edge.run(move || traffic::udp_echo(&spec)).unwrap().received
        };
        let up_a = || lab.emulator().counters("a").unwrap().up.packets;
        let used = |work: &dyn Fn() -> u64| {
            let before = up_a();
            assert_eq!(work(), 20);
            up_a() - before >= 20
        };
        assert!(used(&echo));
        edge.set_carrier("up0", false).unwrap();
        assert!(!used(&echo));
        edge.set_carrier("up0", true).unwrap();
        assert!(used(&echo));
    });
}

#[test]
fn programs_run_inside_and_die_with_their_handle() {
    in_lab_process("programs_run_inside_and_die_with_their_handle", || {
        let lab = Lab::edge_exit(&[link("a")]).unwrap();
        let edge = lab.host("edge");
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo out; echo err >&2; readlink /proc/self/ns/net; exec sleep 100"]);
        let mut child = edge.spawn(shell).unwrap();
        assert!(child.wait_for_output("net:", Duration::from_secs(5)).unwrap());
        let inside = edge.run(|| namespace_of("thread-self")).unwrap();
        let lines: Vec<_> = child.stdout().lines().map(str::to_owned).collect();
        assert_eq!(lines, ["out".to_owned(), inside.clone()]);
        assert_eq!(child.stderr(), "err\n");
        assert_ne!(Some(inside), namespace_of("self"));
        assert!(child.try_wait().unwrap().is_none());
        assert!(child.stop(Duration::from_secs(5)).unwrap().code().is_none());
        child.signal(Signal::TERM).unwrap();
        let sleeping = edge.spawn(sleep()).unwrap();
        let (pid, log) = (sleeping.id(), sleeping.stdout_path().to_owned());
        drop(sleeping);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert!(edge.spawn(Command::new("/no/such/program")).is_err());
        let mut hello = Command::new("echo");
        hello.arg("hello");
        assert_eq!(edge.output(hello).unwrap().stdout, b"hello\n");
        // Forgotten handles do not outlive the lab either, nor do its files.
        let forgotten = edge.spawn(sleep()).unwrap();
        let pid = forgotten.id();
        std::mem::forget(forgotten);
        drop((edge, lab));
        assert!(gone_within(Duration::from_secs(5), || !alive(pid)));
        assert!(!log.exists());
    });
}

fn sleep() -> Command {
    let mut command = Command::new("sleep");
    command.arg("100");
    command
}

#[test]
fn hosts_keep_run_and_etc_to_themselves() {
    in_lab_process("hosts_keep_run_and_etc_to_themselves", || {
        let (before, count) = (std::fs::read("/etc/resolv.conf").ok(), entries("/run"));
        let lab = Lab::edge_exit(&[link("a")]).unwrap();
        let (edge, exit) = (lab.host("edge"), lab.host("exit"));
        let resolver = edge.run(|| {
            std::fs::write("/run/mwb-test", "edge").unwrap();
            let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap();
            std::fs::write("/etc/resolv.conf", "nameserver 192.0.2.1\n").unwrap();
            assert!(std::fs::read_to_string("/etc/passwd").unwrap().contains("root"));
            resolver
        });
        assert_eq!(resolver, "nameserver 10.1.0.1\n");
        assert!(exit.run(|| std::fs::read("/run/mwb-test").is_err()));
        assert_eq!((std::fs::read("/etc/resolv.conf").ok(), entries("/run")), (before, count));
        // A program sees what the closures see.
        let mut cat = Command::new("cat");
        cat.args(["/run/mwb-test", "/etc/resolv.conf"]);
        assert_eq!(edge.output(cat).unwrap().stdout, b"edgenameserver 192.0.2.1\n");
    });
}

fn entries(path: &str) -> usize {
    std::fs::read_dir(path).unwrap().count()
}

/// Whether a process exists and is no zombie.
fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

fn gone_within(limit: Duration, gone: impl Fn() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !gone() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

const VICTIM: &str = "MWB_TEST_VICTIM";

/// Goal: a lab whose process is killed leaves no process and so no namespace. Method: this test runs
/// itself as the victim, which builds a lab with a program on each host, prints their ids and
/// namespaces, and waits; then it gets SIGKILL, and all of them must vanish.
#[test]
fn sigkill_leaves_nothing() {
    if std::env::var_os(VICTIM).is_some() {
        return in_lab_process("sigkill_leaves_nothing", || {
            let lab = Lab::edge_exit(&[link("a"), link("b")]).unwrap();
            let children: Vec<_> = lab.hosts().iter().map(|host| host.spawn(sleep()).unwrap()).collect();
            for (child, host) in children.iter().zip(lab.hosts()) {
                println!("\nVICTIM {} {}", child.id(), host.run(|| namespace_of("thread-self")).unwrap());
            }
            println!("\nVICTIM ready");
            std::thread::sleep(Duration::from_secs(60));
        });
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["sigkill_leaves_nothing", "--exact", "--nocapture"]);
    command.env(VICTIM, "1").stdout(Stdio::piped());
    let mut victim = command.spawn().unwrap();
    let (mut pids, mut namespaces, mut ready) = (BTreeSet::new(), BTreeSet::new(), false);
    for line in BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["VICTIM", "ready"] => {
                ready = true;
                break;
            }
            ["VICTIM", pid, namespace] => {
                pids.insert(pid.parse::<u32>().unwrap());
                namespaces.insert(namespace.to_owned());
            }
            _ => {}
        }
    }
    victim.kill().unwrap();
    let status = victim.wait().unwrap();
    if !ready && status.success() {
        // The victim has said why it was skipped.
        return;
    }
    assert_eq!((pids.len(), namespaces.len()), (4, 4));
    assert!(gone_within(Duration::from_secs(5), || !pids.iter().copied().any(alive)), "{pids:?}");
    let still_used = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter_map(|entry| namespace_of(entry.file_name().to_str()?))
            .any(|namespace| namespaces.contains(&namespace))
    };
    assert!(gone_within(Duration::from_secs(5), || !still_used()));
}

#[test]
fn preflight_tries_and_names_cures() {
    in_lab_process("preflight_tries_and_names_cures", || {
        for check in preflight() {
            match check.result {
                Ok(()) => println!("{}: works", check.operation),
                Err(error) => {
                    println!("{error}");
                    assert!(error.to_string().contains(check.operation.cure()));
                    assert!(Operation::NODE.contains(&check.operation), "{error}");
                }
            }
        }
    });
}

/// Whether a flow was one of Multipath TCP is what the sender's socket says. One client, one server: one subflow.
#[test]
fn a_flow_over_multipath_tcp_says_so_and_a_plain_one_does_not() {
    const NAME: &str = "a_flow_over_multipath_tcp_says_so_and_a_plain_one_does_not";
    in_lab_process(NAME, || {
        let _lock = machine_lock().unwrap();
        let lab = Lab::edge_exit(&[link("a")]).unwrap();
        let (edge, host) = (lab.host("edge"), lab.host("server"));
        let address = SocketAddr::new(host.address(), 5003);
        let server = host.run(move || traffic::server_of(Transport::Mptcp, address));
        let _server = match server {
            Ok(server) => server,
            Err(error) => mwb_sim::skip!(NAME, "no Multipath TCP here: {error}"),
        };
        for (transport, subflows) in [(Transport::Mptcp, Some(1)), (Transport::Tcp, None)] {
            let spec = FlowSpec::bytes(address, 200_000).transport(transport);
            let flow = edge.run(move || traffic::upload(&spec)).unwrap();
            assert!(flow.complete() && flow.congestion_control() == "cubic", "{flow:?}");
            assert_eq!(flow.sender.subflows, subflows, "{transport:?}");
        }
    });
}

/// Without an emulator there is nothing in the way: what a 50 Mbit/s link takes a second for is there at once.
#[test]
fn plain_uplinks_are_not_emulated_and_their_features_can_be_switched() {
    in_lab_process("plain_uplinks_are_not_emulated_and_their_features_can_be_switched", || {
        let _lock = machine_lock().unwrap();
        let options = LabOptions { plain: true, ..LabOptions::default() };
        let lab = Lab::edge_exit_with(&[link("a"), link("b")], &options).unwrap();
        assert!(lab.emulator().all_counters().unwrap().is_empty());
        let (edge, host) = (lab.host("edge"), lab.host("server"));
        let address = SocketAddr::new(host.address(), 5004);
        let _server = host.run(move || traffic::server(address)).unwrap();
        for (uplink, on) in edge.uplinks().to_vec().into_iter().zip([true, false]) {
            edge.set_feature(&uplink.interface, "tx-udp-segmentation", on).unwrap();
            assert!(edge.set_feature(&uplink.interface, "tx-nothing", on).is_err());
            let spec = FlowSpec::bytes(address, 6_000_000).device(&uplink.interface);
            let flow = edge.run(move || traffic::download(&spec)).unwrap();
            assert!(flow.complete(), "{flow:?}");
        }
    });
}
