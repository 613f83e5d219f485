//! Goal: what people use crosses the bond whole, over IPv4 and IPv6: datagrams of any size, echoes, TCP, `iperf3` and
//! `curl`; and nobody else gets in. Method: real nodes and real programs in a lab, two emulated links.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use mwb_sim::traffic::{EchoSpec, FlowSpec, download, udp_echo, upload};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, ip_mtu, set_ip_mtu_discover};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use support::icmp::ping;
use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

const MEGABYTE: u64 = 1_000_000;
/// What a node makes of its TUN unless told otherwise.
const TUN_MTU: u32 = 1408;
/// UDP payload that fills a 1,480-byte IPv4 packet: more than the tunnel takes in one piece.
const LARGE: usize = 1452;

/// Both nodes, with IPv6 through the bond.
fn start() -> Bond {
    let bond = Bond::start();
    wait_until("IPv6 goes through the bond", PATIENCE, || bond.is_through_v6());
    bond
}

/// Runs `body` with the lab, unless `program` is missing here.
fn with_program(test: &str, program: &str, body: impl FnOnce()) {
    match Command::new(program).arg("--version").output() {
        Ok(_) => in_lab(test, body),
        Err(error) => mwb_sim::skip::record(test, &format!("cannot run {program}: {error}; install it")),
    }
}

#[test]
fn datagrams_of_all_sizes_come_back() {
    in_lab("datagrams_of_all_sizes_come_back", || {
        let bond = start();
        for server in [bond.server(), bond.server_v6()] {
            for size in [1200, LARGE, 4000] {
                let echo =
                    |count: f64| EchoSpec::new(server, 50.0, size, Duration::from_secs_f64(count / 50.0));
                // The server learns the path's MTU from the first answer: that one is lost, as it should be.
                let first = echo(3.0);
                bond.edge.host().run(move || udp_echo(&first)).unwrap();
                let rest = echo(100.0);
                let result = bond.edge.host().run(move || udp_echo(&rest)).unwrap();
                assert_eq!(result.sent, 100);
                assert!(result.received >= 98, "{size} bytes to {server}: {result:?}");
                assert_eq!(result.duplicates, 0, "{size} bytes to {server}: {result:?}");
            }
        }
    });
}

/// Sends `size` bytes that may not be fragmented until the kernel says that they are too many, at most ten times;
/// the MTU towards `target` that it then knows.
fn refused_as_too_large(socket: &UdpSocket, target: SocketAddr, size: usize) -> Option<u32> {
    set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO).unwrap();
    socket.connect(target).unwrap();
    for _ in 0..10 {
        match socket.send(&vec![0; size]) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {
                return Some(ip_mtu(socket).unwrap());
            }
            // Nobody listens there: that may be told first.
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    None
}

#[test]
fn who_may_not_fragment_is_told_the_mtu() {
    in_lab("who_may_not_fragment_is_told_the_mtu", || {
        let bond = start();
        let server = SocketAddr::new(bond.server().ip(), 7999);
        let host = bond.server_host();
        let far = host.run(move || UdpSocket::bind(server)).unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        let near = bond.edge.host().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();

        near.send_to(b"call", server).unwrap();
        let (_, caller) = far.recv_from(&mut [0; 16]).unwrap();
        // The way back: the exit's kernel drops it and says so (ICMP "fragmentation needed").
        let told = host.run(move || refused_as_too_large(&far, caller, LARGE));
        assert_eq!(told, Some(TUN_MTU), "the server is told");
        // The way there: the program is told at once, by its own kernel.
        let told = bond.edge.host().run(move || refused_as_too_large(&near, server, LARGE));
        assert_eq!(told, Some(TUN_MTU), "the edge's program is told");
    });
}

#[test]
fn ipv6_crosses_the_bond() {
    in_lab("ipv6_crosses_the_bond", || {
        let bond = start();
        let server = bond.server_v6();
        let before = bond.carried();
        for flow in [download as fn(&FlowSpec) -> _, upload] {
            let spec = FlowSpec::bytes(server, 10 * MEGABYTE);
            let result = bond.edge.host().run(move || flow(&spec)).unwrap();
            assert!(result.complete() && result.total_bytes == 10 * MEGABYTE, "{:?}", result.failure);
        }
        let after = bond.carried();
        for (link, (before, after)) in before.iter().zip(&after).enumerate() {
            let (down, up) = (after.0 - before.0, after.1 - before.1);
            assert!(down > MEGABYTE / 2 && up > MEGABYTE / 2, "link {link} carried {down} down, {up} up");
        }
        let answered =
            bond.edge.host().run(move || (0..5).filter(|number| ping(server.ip(), *number)).count());
        assert!(answered >= 4, "{answered} of 5 ICMPv6 echoes were answered");
        // Nobody calls an edge from outside: the inner address means nothing there, and the exit lets no call in.
        let status = bond.edge.status().expect("it runs");
        let inner = status["sessions"][0]["inner"]["v6"][0].as_str().expect("an address").to_owned();
        assert!(inner.starts_with("fd6d:7762:"), "{inner}");
    });
}

#[test]
fn without_ipv6_at_the_exit_there_is_none_and_it_is_told_at_once() {
    in_lab("without_ipv6_at_the_exit_there_is_none_and_it_is_told_at_once", || {
        let mut bond = Bond::prepare();
        bond.exit.ip("-6 route del default");
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        let server = bond.server_v6();
        let began = Instant::now();
        let connect = move || TcpStream::connect_timeout(&server, Duration::from_secs(5)).map(drop);
        let refused = bond.edge.host().run(connect).expect_err("nothing leaves past the bond");
        assert_eq!(refused.kind(), ErrorKind::AddrNotAvailable, "{refused}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(bond.exit.nft().matches("masquerade").count(), 1);
        // Also who insists on an uplink's address, which leads into the bond all the same.
        let own = SocketAddr::new(bond.edge.host().uplinks()[0].address_v6.into(), 0);
        let insist = move || {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.bind(&own.into())?;
            socket.connect_timeout(&server.into(), Duration::from_secs(5))
        };
        let refused = bond.edge.host().run(insist).expect_err("nothing leaves past the bond");
        assert_eq!(refused.kind(), ErrorKind::NetworkUnreachable, "{refused}");
        let state = bond.edge.status().expect("it runs");
        assert!(state["tun"]["refused"].as_u64().is_some_and(|refused| refused > 0), "{}", state["tun"]);

        // It comes later: the exit notices, and an edge that comes anew gets it.
        let gateway = "fd00:198::1";
        bond.exit.ip(&format!("-6 route add default via {gateway} dev eth0"));
        wait_until("the exit has set IPv6 up", Duration::from_secs(40), || {
            bond.exit.nft().matches("masquerade").count() == 2
        });
        bond.edge.stop();
        bond.edge.start();
        wait_until("IPv6 goes through the bond", PATIENCE, || bond.is_through_v6());
    });
}

/// The documentation of `status --json`.
const DOCUMENTED: &str = include_str!("../node/README.md");

/// What `path` leads to: keys joined by dots, `[]` for the first of a list.
fn at<'a>(state: &'a Value, path: &str) -> &'a Value {
    let keys = path.split('.').filter(|key| !key.is_empty());
    keys.fold(state, |value, key| match key.strip_suffix("[]") {
        Some(list) => &value[list][0],
        None => &value[key],
    })
}

#[test]
fn status_has_every_documented_field() {
    in_lab("status_has_every_documented_field", || {
        let bond = start();
        // What the machines say of themselves is up to 100 ms old.
        let mut state = Value::Null;
        wait_until("the sender tells of its paths", PATIENCE, || {
            state = bond.edge.status().unwrap_or_default();
            state["sessions"][0]["sender"]["paths"][0].is_object()
        });
        let (_, tables) = DOCUMENTED.split_once("`mwb-node status --json`").expect("the section");
        let (mut place, mut found) = ("", 0);
        for line in tables.lines() {
            let code = line.split('`').nth(1).unwrap_or_default();
            if line.starts_with("### ") {
                place = code;
            } else if line.starts_with("| `") {
                let object = at(&state, place).as_object();
                let object = object.unwrap_or_else(|| panic!("no {place} in {state:#}"));
                assert!(object.contains_key(code), "no {place}.{code} in {state:#}");
                found += 1;
            }
        }
        assert!(found > 100, "only {found} fields are documented");
    });
}

/// Runs `iperf3` from the edge, with cubic, and returns bits per second as the receiver counted them.
fn iperf(bond: &Bond, server: IpAddr, more: &[&str]) -> f64 {
    let address = server.to_string();
    let mut serve = Command::new("iperf3");
    serve.args(["-s", "-1", "--forceflush", "-B", &address]);
    let mut serving = bond.server_host().spawn(serve).unwrap();
    assert!(
        serving.wait_for_output("listening", PATIENCE).unwrap_or(false),
        "{}{}",
        serving.stdout(),
        serving.stderr()
    );
    let mut client = Command::new("iperf3");
    client.args(["-c", &address, "-C", "cubic", "--json", "-t", "5", "--connect-timeout", "5000"]).args(more);
    let output = bond.edge.host().output(client).unwrap();
    let result: Value = serde_json::from_slice(&output.stdout).expect("iperf3 prints JSON");
    assert!(output.status.success() && result["error"].is_null(), "{}", result["error"]);
    result["end"]["sum_received"]["bits_per_second"].as_f64().expect("a rate")
}

#[test]
fn iperf3_fills_both_links_both_ways() {
    with_program("iperf3_fills_both_links_both_ways", "iperf3", || {
        let bond = start();
        for server in [bond.server().ip(), bond.server_v6().ip()] {
            for (more, down) in [(&[][..], false), (&["-R"][..], true)] {
                let before = bond.carried();
                let rate = iperf(&bond, server, more);
                // A sign of life, not a measurement: figures come from the bench.
                assert!(rate > 5e6, "{rate} bit/s with {server} {more:?}");
                let after = bond.carried();
                for (link, (before, after)) in before.iter().zip(&after).enumerate() {
                    let carried = if down { after.0 - before.0 } else { after.1 - before.1 };
                    assert!(carried > MEGABYTE / 2, "link {link} carried {carried} with {server} {more:?}");
                }
            }
        }
    });
}

/// A file that no compression and no repetition could hide a fault in.
fn file() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(5_000_000).collect()
}

/// An HTTP/1.0 server that gives everybody `file`. The thread ends with the process.
fn serve_http(bond: &Bond, address: SocketAddr, file: Vec<u8>) {
    let listener = bond.server_host().run(move || TcpListener::bind(address)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = |mut stream: TcpStream| {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") && request.len() < 4096 {
                    let mut byte = [0];
                    stream.read_exact(&mut byte)?;
                    request.extend(byte);
                }
                write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", file.len())?;
                stream.write_all(&file)
            };
            // A client that has gone has seen its own fault.
            let _ = stream.and_then(answer);
        }
    });
}

#[test]
fn curl_gets_a_file_whole() {
    with_program("curl_gets_a_file_whole", "curl", || {
        let bond = start();
        let file = file();
        for server in [bond.server().ip(), bond.server_v6().ip()] {
            let address = SocketAddr::new(server, 8080);
            serve_http(&bond, address, file.clone());
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "60"]);
            curl.arg(format!("http://{address}/file"));
            let output = bond.edge.host().output(curl).unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout == file, "{} bytes came, and not the file's", output.stdout.len());
        }
    });
}

#[test]
fn a_stranger_is_refused_and_costs_nothing() {
    in_lab("a_stranger_is_refused_and_costs_nothing", || {
        let mut bond = Bond::prepare();
        bond.exit.start();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let mut stranger = Node::new(bond.edge.host().clone(), dir.path());
        stranger.configure(&std::fs::read_to_string(bond.edge.config_file()).unwrap());
        stranger.start();
        wait_until("the stranger is told", PATIENCE, || {
            let status = stranger.status().unwrap_or_default();
            status["peers"][0]["slots"][0]["problem"].as_str().is_some_and(|problem| {
                ["not known", "no membership record"].iter().any(|words| problem.contains(words))
            })
        });
        let state = bond.exit.status().expect("it runs");
        assert_eq!(state["sessions"], Value::Array(Vec::new()));
        stranger.stop();
        // Bytes without sense at the exit's port are no better.
        let exit = SocketAddr::new(bond.exit.host().address(), 9000);
        let throw = move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            for len in 0..1400_u32 {
                let junk: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(len) >> 3) as u8).collect();
                socket.send_to(&junk, exit).unwrap();
            }
        };
        bond.edge.host().run(throw);
        bond.edge.start();
        bond.wait_until_through();
    });
}
