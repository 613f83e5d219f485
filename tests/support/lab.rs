//! An edge, an exit and a server on the internet, connected by two emulated links.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use mwb_sim::lab::{Host, Lab, LabOptions};
use mwb_sim::traffic::{Server, server};
use mwb_sim::wan::{DirectionSpec, EmulatorControl, LinkSpec, QueueLimit};
use tempfile::TempDir;

use super::node::{Node, PATIENCE};

/// Where the test server listens (TCP flows and UDP echo).
const PORT: u16 = 7000;
/// Where a socket listens that answers with the address it was called from.
const WHO_PORT: u16 = 7001;
/// Where the exit listens.
const EXIT_PORT: u16 = 9000;

/// The topology with its nodes. The nodes end first, then the namespaces go.
pub(crate) struct Bond {
    pub(crate) edge: Node,
    pub(crate) exit: Node,
    server: Server,
    server_v6: Server,
    who: SocketAddr,
    who_v6: SocketAddr,
    lab: Lab,
    weights: Vec<u32>,
    _dir: TempDir,
}

impl Bond {
    /// Starts both nodes over two links, 40 Mbit/s 10 ms and 20 Mbit/s 30 ms, on an edge with strict reverse path
    /// filtering, and waits for the first answer through the bond.
    pub(crate) fn start() -> Self {
        let mut bond = Self::prepare();
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        bond
    }

    /// All but the nodes' start.
    pub(crate) fn prepare() -> Self {
        Self::over(&[("fast", 40.0, 5, 10), ("slow", 20.0, 15, 10)])
    }

    /// As [`Self::prepare`] over these links: name, Mbit/s, one-way delay in ms, weight.
    pub(crate) fn over(links: &[(&str, f64, u64, u32)]) -> Self {
        let link = |name: &str, mbit: f64, one_way_ms: u64| {
            let queue = QueueLimit::Time(Duration::from_millis(100));
            LinkSpec::symmetric(name, DirectionSpec::mbit(mbit).delay_ms(one_way_ms).queue(queue))
        };
        let options = LabOptions { rp_filter: 1, ..LabOptions::default() };
        let specs: Vec<_> = links.iter().map(|&(name, mbit, delay, _)| link(name, mbit, delay)).collect();
        let lab = Lab::edge_exit_with(&specs, &options).unwrap();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let (edge, exit) = (Node::new(lab.host("edge"), dir.path()), Node::new(lab.host("exit"), dir.path()));
        let host = lab.host("server");
        let serve = |address: IpAddr| {
            let who = SocketAddr::new(address, WHO_PORT);
            say_who_calls(&host, who);
            (host.run(move || server(SocketAddr::new(address, PORT))).unwrap(), who)
        };
        let (server, who) = serve(host.address());
        let (server_v6, who_v6) = serve(address_v6(&host).into());
        let weights = links.iter().map(|link| link.3).collect();
        let bond = Self { edge, exit, server, server_v6, who, who_v6, lab, weights, _dir: dir };
        bond.configure("");
        bond
    }

    /// Writes both nodes' configurations, with `more` in both.
    pub(crate) fn configure(&self, more: &str) {
        let uplinks: String = (self.weights.iter().enumerate())
            .map(|(i, weight)| {
                format!("[[uplinks]]\ninterface = \"up{i}\"\ntype = \"lte\"\nweight = {weight}\n")
            })
            .collect();
        self.configure_apart(more, &format!("{more}{uplinks}"));
    }

    /// Writes both nodes' configurations: `exit` and `edge` beside what each must know of the other.
    pub(crate) fn configure_apart(&self, exit: &str, edge: &str) {
        self.exit.configure(&format!(
            "{exit}[exit]\nlisten = [\"0.0.0.0:{EXIT_PORT}\"]\nallow = [\"fd00::/16\"]\n[[peers]]\nname = \"edge\"\nnode_id = \"{}\"\n",
            self.edge.id
        ));
        self.edge.configure(&format!(
            "{edge}[[peers]]\nname = \"exit\"\nnode_id = \"{}\"\naddresses = [\"{}:{EXIT_PORT}\"]\nexit = true\n",
            self.exit.id,
            self.lab.host("exit").address()
        ));
    }

    /// The test server, for flows and echoes.
    pub(crate) fn server(&self) -> SocketAddr {
        self.server.address()
    }

    /// The same over IPv6.
    pub(crate) fn server_v6(&self) -> SocketAddr {
        self.server_v6.address()
    }

    /// The host of the servers.
    pub(crate) fn server_host(&self) -> Host {
        self.lab.host("server")
    }

    pub(crate) fn emulator(&self) -> EmulatorControl {
        self.lab.emulator()
    }

    /// The address that the server sees when a program on the edge calls it; none if no answer comes.
    pub(crate) fn seen_as(&self) -> Option<String> {
        self.seen_by(self.who, "0.0.0.0:0", |_| Ok(()))
    }

    /// The same over IPv6.
    pub(crate) fn seen_as_v6(&self) -> Option<String> {
        self.seen_by(self.who_v6, "[::]:0", |_| Ok(()))
    }

    /// As [`Self::seen_as`], of a program that marks its packets as VPNs do.
    pub(crate) fn seen_marked(&self, mark: u32) -> Option<String> {
        self.seen_by(self.who, "0.0.0.0:0", move |socket| socket.set_mark(mark))
    }

    /// As [`Self::seen_as`], of a program that sends by this interface.
    pub(crate) fn seen_by_device(&self, device: &'static str) -> Option<String> {
        self.seen_by(self.who, "0.0.0.0:0", move |socket| socket.bind_device(Some(device.as_bytes())))
    }

    /// As [`Self::seen_as`], of a program that sends from this address.
    pub(crate) fn seen_from(&self, address: &str) -> Option<String> {
        self.seen_by(self.who, &format!("{address}:0"), |_| Ok(()))
    }

    fn seen_by(
        &self,
        who: SocketAddr,
        from: &str,
        prepare: impl FnOnce(socket2::SockRef<'_>) -> std::io::Result<()> + Send + 'static,
    ) -> Option<String> {
        seen_by(self.edge.host(), who, from.to_owned(), prepare)
    }

    /// Whether programs on the edge reach the server through the exit.
    pub(crate) fn is_through(&self) -> bool {
        self.seen_as() == Some(self.lab.host("exit").address().to_string())
    }

    /// The same over IPv6.
    pub(crate) fn is_through_v6(&self) -> bool {
        self.seen_as_v6() == Some(address_v6(&self.lab.host("exit")).to_string())
    }

    /// Waits until [`Self::is_through`]; fails with the nodes' logs.
    #[track_caller]
    pub(crate) fn wait_until_through(&mut self) {
        let end = Instant::now() + PATIENCE;
        while !self.is_through() {
            self.edge.check();
            self.exit.check();
            assert!(
                Instant::now() < end,
                "nothing goes through the bond\nedge:\n{}\nexit:\n{}",
                self.edge.log(),
                self.exit.log()
            );
        }
    }

    /// IP bytes that each link has delivered to the edge and from it.
    pub(crate) fn carried(&self) -> Vec<(u64, u64)> {
        let counters = self.emulator().all_counters().unwrap();
        counters.iter().map(|(_, link)| (link.down.bytes, link.up.bytes)).collect()
    }
}

/// The first IPv6 address of a host of the lab.
fn address_v6(host: &Host) -> Ipv6Addr {
    let v6 = host.addresses().iter().find_map(|address| match address {
        IpAddr::V6(address) => Some(*address),
        IpAddr::V4(_) => None,
    });
    v6.expect("every host with IPv4 has IPv6")
}

/// The address that [`say_who_calls`] at `who` sees when a program on `host` calls it, bound to `from`, with a socket that was
/// prepared; none if no answer comes.
pub(crate) fn seen_by(
    host: &Host,
    who: SocketAddr,
    from: impl ToSocketAddrs + Send + 'static,
    prepare: impl FnOnce(socket2::SockRef<'_>) -> std::io::Result<()> + Send + 'static,
) -> Option<String> {
    host.run(move || {
        let socket = UdpSocket::bind(from).ok()?;
        prepare(socket2::SockRef::from(&socket)).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
        socket.connect(who).ok()?;
        socket.send(b"who").ok()?;
        let mut answer = [0; 64];
        let len = socket.recv(&mut answer).ok()?;
        String::from_utf8(answer[..len].to_vec()).ok()
    })
}

/// Answers every datagram with the address it came from. The thread ends with the process: the socket holds the
/// namespace until then.
pub(crate) fn say_who_calls(host: &Host, address: SocketAddr) {
    let socket = host.run(move || UdpSocket::bind(address)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            // A caller that is gone needs no answer.
            let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
        }
    });
}
