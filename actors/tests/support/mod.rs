//! Two nodes in two network namespaces, for tests of whole nodes.

#![allow(dead_code, reason = "each test program uses its part")]

pub(crate) mod lending;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use mwb_actors::{
    BondSpec, ExitSpec, Gateways, Identity, InnerAddresses, LanSpec, NodeSpec, PeerSpec, Platform,
    RunningNode, TunSpec, UplinkSpec,
};
use tokio::runtime::Runtime;

/// Runs `make` as root; otherwise says that the test is skipped.
pub(crate) fn skip_without_root<T>(make: impl FnOnce() -> T) -> Option<T> {
    if rustix::process::geteuid().is_root() && std::path::Path::new("/dev/net/tun").exists() {
        return Some(make());
    }
    let required = std::env::var("MWB_REQUIRE").is_ok_and(|value| value == "all");
    assert!(!required, "needs root and /dev/net/tun");
    eprintln!("skipped: needs root and /dev/net/tun");
    None
}

/// Runs a command line and checks its success.
pub(crate) fn run(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output().expect("runs");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

struct Host;

impl Host {
    fn up(tun: &str, address: Ipv4Addr, prefix: u8) {
        run(&format!("ip address replace {address}/{prefix} dev {tun}"));
        run(&format!("ip link set {tun} up"));
    }
}

impl Platform for Host {
    fn session_up(&self, tun: &str, inner: &InnerAddresses) -> BoxFuture<'_, Result<(), String>> {
        let (address, prefix) = inner.v4.expect("an IPv4 pool");
        Self::up(tun, address, prefix);
        async { Ok(()) }.boxed()
    }

    fn session_down(&self, _tun: &str) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn exit_up(&self, tun: &str, gateways: &Gateways) -> BoxFuture<'_, Result<(), String>> {
        Self::up(tun, gateways.v4.0, gateways.v4.1);
        async { Ok(()) }.boxed()
    }

    fn reaches_ipv6(&self) -> bool {
        false
    }
}

static BEDS: AtomicU32 = AtomicU32::new(0);

/// A namespace that goes with its owner.
struct Namespace(String);

/// Removes the namespaces of test processes that were killed: nobody else does.
fn sweep_dead_beds() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let mut parts = name.split('-');
            let ours = parts.next().is_some_and(|tag| tag == "act" || tag == "lend");
            let owner = parts.next().and_then(|pid| pid.parse::<u32>().ok());
            if let Some(pid) = owner.filter(|_| ours)
                && !std::path::Path::new(&format!("/proc/{pid}")).exists()
            {
                // Another test may be quicker.
                Command::new("ip").args(["netns", "delete", &name]).output().expect("runs");
            }
        }
    });
}

impl Namespace {
    fn new(name: String) -> Self {
        sweep_dead_beds();
        run(&format!("ip netns add {name}"));
        run(&format!("ip -n {name} link set lo up"));
        Self(name)
    }

    /// Moves threads into the namespace.
    fn entrance(&self) -> impl Fn() + Send + Sync + 'static {
        let path = format!("/run/netns/{}", self.0);
        move || {
            let fd = std::fs::File::open(&path).expect("namespace");
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&fd), kind).expect("setns");
        }
    }

    /// A runtime whose threads live in the namespace.
    fn runtime(&self) -> Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .on_thread_start(self.entrance())
            .enable_all()
            .build()
            .expect("runtime")
    }

    /// A thread that lives in the namespace.
    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let enter = self.entrance();
        std::thread::spawn(move || {
            enter();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// An uplink `wan<i>` of the edge, with the exit at its other end.
fn make_link(e: &str, x: &str, i: u8) {
    run(&format!("ip link add wan{i} netns {e} type veth peer name net{i} netns {x}"));
    run(&format!("ip -n {e} address add 192.168.{i}.2/24 dev wan{i}"));
    run(&format!("ip -n {x} address add 192.168.{i}.1/24 dev net{i}"));
    run(&format!("ip -n {e} link set wan{i} up"));
    run(&format!("ip -n {x} link set net{i} up"));
    run(&format!("ip -n {e} route add 203.0.113.1/32 via 192.168.{i}.1 metric {}", 100 + i));
}

/// Starts a node on a worker: only those threads live in the namespace.
fn start(runtime: &Runtime, spec: NodeSpec) -> RunningNode {
    let started = runtime.spawn(mwb_actors::start(spec, Arc::new(Host)));
    runtime.block_on(started).expect("no panic").expect("starts")
}

/// The lock of all tests on this machine that measure whole nodes; the same file as the lab's.
fn machine_lock() -> std::fs::File {
    let path = std::env::temp_dir().join("mwb-lab.lock");
    let make = || std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let file = std::fs::File::open(&path).or_else(|_| make()).expect("lock file");
    file.lock().expect("lock");
    file
}

/// An edge with two uplinks, and an exit.
pub(crate) struct Bed {
    pub(crate) edge: RunningNode,
    pub(crate) exit: RunningNode,
    edge_spec: NodeSpec,
    exit_spec: NodeSpec,
    edge_runtime: Runtime,
    exit_runtime: Runtime,
    edge_ns: Namespace,
    exit_ns: Namespace,
    lock: std::fs::File,
}

impl Bed {
    /// Builds namespaces and links and starts both nodes.
    pub(crate) fn new() -> Self {
        Self::with(|_edge, _exit| {})
    }

    /// The same with parity for all that is not TCP.
    pub(crate) fn with_parity() -> Self {
        Self::with(|edge, exit| {
            for node in [edge, exit] {
                node.bond.sender.fec.mode = mwb_proto::bond::FecMode::Enabled;
            }
        })
    }

    /// The same with both nodes on one LAN, which is the first link.
    pub(crate) fn on_a_lan() -> Self {
        let lan = |interface: &str| LanSpec {
            interfaces: vec![interface.to_owned()],
            found: None,
            port: 9100,
            fwmark: None,
            lend: true,
            lend_budget: None,
            mdns: false,
        };
        Self::with(|edge, exit| {
            (edge.lan, exit.lan) = (Some(lan("wan0")), Some(lan("net0")));
            edge.peers[0].lan = vec!["192.168.0.1:9100".parse().expect("address")];
            exit.peers[0].lan = vec!["192.168.0.2:9100".parse().expect("address")];
        })
    }

    /// The same with an edge and an exit that `change` has changed.
    pub(crate) fn with(change: impl FnOnce(&mut NodeSpec, &mut NodeSpec)) -> Self {
        let lock = machine_lock();
        let tag = format!("act-{}-{}", std::process::id(), BEDS.fetch_add(1, Ordering::Relaxed));
        let (edge_ns, exit_ns) = (Namespace::new(format!("{tag}-e")), Namespace::new(format!("{tag}-x")));
        let (e, x) = (&edge_ns.0, &exit_ns.0);
        for i in 0..2 {
            make_link(e, x, i);
        }
        run(&format!("ip -n {x} address add 203.0.113.1/32 dev lo"));
        let key = || Arc::new(Identity::from_pkcs8(&Identity::generate().expect("key")).expect("identity"));
        let (edge_key, exit_key) = (key(), key());
        let peer = |name: &str, key: &Identity, is_exit| PeerSpec {
            name: name.to_owned(),
            node_id: key.node_id(),
            addresses: vec!["203.0.113.1:4700".parse().expect("address")],
            lan: Vec::new(),
            is_exit,
        };
        let node = |name: &str, identity: &Arc<Identity>| NodeSpec {
            name: name.to_owned(),
            identity: Arc::clone(identity),
            uplinks: Vec::new(),
            found: None,
            reserved: Vec::new(),
            peers: Vec::new(),
            exit: None,
            membership: None,
            lan: None,
            tun: TunSpec::default(),
            bond: BondSpec::default(),
            runtime_dir: std::env::temp_dir(),
            trace: None,
        };
        let uplinks = (0..2).map(|i| UplinkSpec {
            id: i,
            name: format!("wan{i}"),
            interface: Some(format!("wan{i}")),
            address: None,
            rate_max: None,
            weight: 10,
            fwmark: None,
            kind: Default::default(),
            line: "other",
            metered: false,
            lend: false,
            health: Default::default(),
        });
        let mut exit = NodeSpec {
            peers: vec![peer("edge", &edge_key, false)],
            exit: Some(ExitSpec {
                listen: vec!["0.0.0.0:4700".parse().expect("address")],
                pool_v4: (Ipv4Addr::new(10, 99, 0, 0), 24),
                pool_v6: None,
                addresses_file: None,
                allowed: vec![edge_key.node_id()],
            }),
            ..node("exit", &exit_key)
        };
        let mut edge = NodeSpec {
            uplinks: uplinks.collect(),
            peers: vec![peer("exit", &exit_key, true)],
            ..node("edge", &edge_key)
        };
        change(&mut edge, &mut exit);
        let (edge_runtime, exit_runtime) = (edge_ns.runtime(), exit_ns.runtime());
        let (edge_spec, exit_spec) = (edge.clone(), exit.clone());
        let (exit, edge) = (start(&exit_runtime, exit), start(&edge_runtime, edge));
        exit_ns.spawn(serve_echo);
        Self { edge, exit, edge_spec, exit_spec, edge_runtime, exit_runtime, edge_ns, exit_ns, lock }
    }

    /// A node beside the edge with a key that the exit does not know.
    pub(crate) fn start_stranger(&self) -> RunningNode {
        let key = Identity::from_pkcs8(&Identity::generate().expect("key")).expect("identity");
        let mut spec = self.edge_spec.clone();
        spec.identity = Arc::new(key);
        spec.tun.name = "mwb1".to_owned();
        start(&self.edge_runtime, spec)
    }

    /// Stops a node of the edge's namespace.
    pub(crate) fn stop_node(&self, node: RunningNode) {
        self.edge_runtime.block_on(node.stop());
    }

    /// Stops the exit as an update of it would, and starts it again.
    pub(crate) fn restart_exit(self) -> Self {
        let Self { edge, exit, edge_spec, exit_spec, edge_runtime, exit_runtime, edge_ns, exit_ns, lock } =
            self;
        exit_runtime.block_on(exit.stop());
        let exit = start(&exit_runtime, exit_spec.clone());
        exit_ns.spawn(serve_echo);
        Self { edge, exit, edge_spec, exit_spec, edge_runtime, exit_runtime, edge_ns, exit_ns, lock }
    }

    /// Waits until the edge hears `count` paths.
    pub(crate) fn wait_for_paths(&self, count: usize, within: Duration) {
        let begin = Instant::now();
        loop {
            let status = self.edge.status();
            let heard = status.sessions[0].paths.iter().filter(|path| path.received > 0).count();
            if heard == count && status.sessions[0].inner.is_some() {
                // The address is set by another actor.
                std::thread::sleep(Duration::from_millis(300));
                return;
            }
            assert!(begin.elapsed() < within, "{heard} of {count} paths: {status:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until every path of the edge has been heard within the last second.
    pub(crate) fn wait_until_heard(&self, within: Duration) {
        let begin = Instant::now();
        loop {
            let status = self.edge.status();
            let paths = &status.sessions[0].paths;
            if paths.len() == 2 && paths.iter().all(|path| path.silent_seconds < 1.0) {
                return;
            }
            assert!(begin.elapsed() < within, "{status:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets what arrives at both ends of a link vanish, or not.
    pub(crate) fn blackhole(&self, i: u8, on: bool) {
        let (e, x) = (&self.edge_ns.0, &self.exit_ns.0);
        // Neighbours that do not exist: what is sent to them goes nowhere.
        let nobody = "02:00:00:00:00:01";
        for (namespace, device, other) in [(e, format!("wan{i}"), 1), (x, format!("net{i}"), 2)] {
            let neighbour = format!("192.168.{i}.{other} dev {device}");
            if on {
                run(&format!(
                    "ip -n {namespace} neighbour replace {neighbour} lladdr {nobody} nud permanent"
                ));
            } else {
                run(&format!("ip -n {namespace} neighbour delete {neighbour}"));
            }
        }
    }

    /// Deletes a link, waits a moment, and makes another of the same name.
    pub(crate) fn replace_link(&self, i: u8) {
        run(&format!("ip -n {} link delete wan{i}", self.edge_ns.0));
        std::thread::sleep(Duration::from_secs(1));
        make_link(&self.edge_ns.0, &self.exit_ns.0, i);
    }

    /// Deletes the edge's TUN device.
    pub(crate) fn delete_tun(&self) {
        run(&format!("ip -n {} link delete mwb0", self.edge_ns.0));
    }

    /// Starts `count` echoes through the bond, one every `interval`.
    pub(crate) fn start_echo(&self, count: u32, interval: Duration) -> JoinHandle<Echo> {
        self.edge_ns.spawn(move || echo(count, interval))
    }

    /// Starts a TCP transfer of `bytes` from the edge to the exit; every byte is checked.
    pub(crate) fn start_transfer(&self, bytes: u64) -> JoinHandle<Transfer> {
        transfer(&self.edge_ns, &self.exit_ns, bytes)
    }

    /// Stops both nodes.
    pub(crate) fn stop(self) {
        let Self { edge, exit, edge_runtime, exit_runtime, .. } = self;
        edge_runtime.block_on(edge.stop());
        exit_runtime.block_on(exit.stop());
    }
}

fn transfer(edge: &Namespace, exit: &Namespace, bytes: u64) -> JoinHandle<Transfer> {
    let (ready, listening) = std::sync::mpsc::channel();
    let sink = exit.spawn(move || {
        let listener = TcpListener::bind(BULK).expect("listener");
        ready.send(()).expect("the other side waits");
        let (stream, _) = listener.accept().expect("connection");
        check_stream(stream)
    });
    edge.spawn(move || {
        listening.recv().expect("listening");
        let begin = Instant::now();
        let mut stream = TcpStream::connect(BULK).expect("connected");
        let mut sent = 0;
        while sent < bytes {
            let block = block(sent / BLOCK as u64);
            stream.write_all(&block).expect("the flow lives");
            sent += BLOCK as u64;
        }
        drop(stream);
        let (received, pause) = sink.join().expect("intact");
        assert_eq!(received, sent, "all of it");
        let mbit = received as f64 * 8e-6 / begin.elapsed().as_secs_f64();
        Transfer { mbit, pause }
    })
}

/// Outcome of a run of echoes.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) sent: u32,
    pub(crate) lost: u32,
    pub(crate) copies: u32,
    /// Longest time between two answers.
    pub(crate) pause: Duration,
    /// Median round trip.
    pub(crate) median: Duration,
}

const ECHO: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 99, 0, 1), 7);

/// Sends numbered datagrams and waits for their return.
fn echo(count: u32, interval: Duration) -> Echo {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("socket");
    if socket.connect(ECHO).is_err() {
        return Echo { sent: count, lost: count, copies: 0, pause: Duration::MAX, median: Duration::MAX };
    }
    let begin = Instant::now();
    let (mut sent, mut last, mut pause) = (0, begin, Duration::ZERO);
    let (mut trips, mut seen) = (Vec::new(), std::collections::HashSet::new());
    while sent < count
        || (begin.elapsed() < interval * count + Duration::from_secs(1) && seen.len() < count as usize)
    {
        let due = begin + interval * sent;
        let now = Instant::now();
        if sent < count && now >= due {
            let mut datagram = [0; 200];
            datagram[..8].copy_from_slice(&(begin.elapsed().as_nanos() as u64).to_be_bytes());
            let _ = socket.send(&datagram);
            sent += 1;
            continue;
        }
        let wait = if sent < count { due - now } else { Duration::from_millis(20) };
        socket.set_read_timeout(Some(wait.max(Duration::from_micros(100)))).expect("timeout");
        let mut datagram = [0; 2048];
        if socket.recv(&mut datagram).is_ok() {
            let stamp = u64::from_be_bytes(datagram[..8].try_into().expect("8 bytes"));
            seen.insert(stamp);
            trips.push(begin.elapsed() - Duration::from_nanos(stamp));
            pause = pause.max(last.elapsed());
            last = Instant::now();
        }
    }
    trips.sort();
    let median = trips.get(trips.len() / 2).copied().unwrap_or(Duration::MAX);
    Echo {
        sent,
        lost: sent - seen.len() as u32,
        copies: trips.len() as u32 - seen.len() as u32,
        pause,
        median,
    }
}

/// Sends everything back until the exit's address goes.
fn serve_echo() {
    let socket = loop {
        match UdpSocket::bind(ECHO) {
            Ok(socket) => break socket,
            Err(_not_yet) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let mut datagram = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut datagram) {
        if len == 1 {
            return;
        }
        let _ = socket.send_to(&datagram[..len], from);
    }
}

/// Outcome of a transfer that came through whole.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) mbit: f64,
    /// Longest time between two reads that gave bytes.
    pub(crate) pause: Duration,
}

const BULK: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 99, 0, 1), 9);
const BLOCK: usize = 64 * 1024;

/// Block `number` of the stream: no two are alike.
fn block(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.take(BLOCK / 8).flat_map(u64::to_be_bytes).collect()
}

fn check_stream(mut stream: TcpStream) -> (u64, Duration) {
    let (mut received, mut pause, mut last) = (0_u64, Duration::ZERO, Instant::now());
    let (mut expected, mut at) = (block(0), 0);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = stream.read(&mut buffer).expect("the flow lives");
        if count == 0 {
            return (received, pause);
        }
        pause = pause.max(last.elapsed());
        last = Instant::now();
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let take = rest.len().min(BLOCK - at);
            assert!(rest[..take] == expected[at..at + take], "wrong bytes after {received}");
            (rest, at, received) = (&rest[take..], at + take, received + take as u64);
            if at == BLOCK {
                (expected, at) = (block(received / BLOCK as u64), 0);
            }
        }
    }
}
