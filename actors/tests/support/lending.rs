//! A borrower without an uplink of its own, a lender, and an exit behind the lender's uplink.

use mwb_actors::spec::LanSpec;
use mwb_proto::control::UplinkKind;

use super::*;

/// Three nodes; everything of the borrower goes through the lender.
pub(crate) struct LendingBed {
    pub(crate) borrower: RunningNode,
    pub(crate) lender: RunningNode,
    exit: RunningNode,
    runtimes: [Runtime; 3],
    borrower_ns: Namespace,
    exit_ns: Namespace,
    _lender_ns: Namespace,
    _lock: std::fs::File,
}

impl LendingBed {
    /// Builds namespaces and links and starts the nodes.
    pub(crate) fn new() -> Self {
        // With RUST_LOG set, the nodes tell what they do.
        if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_default_env() {
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init().ok();
        }
        let lock = machine_lock();
        let tag = format!("lend-{}-{}", std::process::id(), BEDS.fetch_add(1, Ordering::Relaxed));
        let names = ["b", "l", "x"].map(|end| Namespace::new(format!("{tag}-{end}")));
        let [b, l, x] = [0, 1, 2].map(|i| names[i].0.as_str());
        make_link(l, x, 0);
        run(&format!("ip -n {x} address add 203.0.113.1/32 dev lo"));
        run(&format!("ip link add lan0 netns {b} type veth peer name lan0 netns {l}"));
        for (namespace, last) in [(b, 11), (l, 12)] {
            run(&format!("ip -n {namespace} address add 192.168.50.{last}/24 dev lan0"));
            run(&format!("ip -n {namespace} link set lan0 up"));
        }
        let key = || Arc::new(Identity::from_pkcs8(&Identity::generate().expect("key")).expect("identity"));
        let keys = [key(), key(), key()];
        let address = |text: &str| vec![text.parse().expect("address")];
        let peer = |name: &str, key: &Identity, lan| PeerSpec {
            name: name.to_owned(),
            node_id: key.node_id(),
            addresses: if name == "exit" { address("203.0.113.1:4700") } else { Vec::new() },
            lan,
            is_exit: name == "exit",
        };
        let node = |name: &str, i: usize| NodeSpec {
            name: name.to_owned(),
            identity: Arc::clone(&keys[i]),
            uplinks: Vec::new(),
            found: None,
            reserved: Vec::new(),
            peers: Vec::new(),
            exit: None,
            membership: None,
            lan: Some(LanSpec {
                interfaces: vec!["lan0".to_owned()],
                found: None,
                port: 9100,
                fwmark: None,
                lend: true,
                lend_budget: None,
                mdns: false,
            }),
            tun: TunSpec::default(),
            bond: BondSpec::default(),
            runtime_dir: std::env::temp_dir(),
            trace: None,
        };
        let uplink = UplinkSpec {
            id: 3,
            name: "wan0".to_owned(),
            interface: Some("wan0".to_owned()),
            address: None,
            rate_max: None,
            weight: 10,
            fwmark: None,
            kind: UplinkKind::Unknown,
            line: "other",
            metered: false,
            lend: true,
            health: Default::default(),
        };
        let borrower = NodeSpec {
            peers: vec![
                peer("exit", &keys[2], Vec::new()),
                peer("lender", &keys[1], address("192.168.50.12:9100")),
            ],
            ..node("borrower", 0)
        };
        let lender = NodeSpec {
            uplinks: vec![uplink],
            peers: vec![
                peer("exit", &keys[2], Vec::new()),
                peer("borrower", &keys[0], address("192.168.50.11:9100")),
            ],
            ..node("lender", 1)
        };
        let exit = NodeSpec {
            exit: Some(ExitSpec {
                listen: address("0.0.0.0:4700"),
                pool_v4: (Ipv4Addr::new(10, 99, 0, 0), 24),
                pool_v6: None,
                addresses_file: None,
                allowed: vec![keys[0].node_id(), keys[1].node_id()],
            }),
            peers: vec![peer("borrower", &keys[0], Vec::new()), peer("lender", &keys[1], Vec::new())],
            lan: None,
            ..node("exit", 2)
        };
        let runtimes = [0, 1, 2].map(|i| names[i].runtime());
        let exit = start(&runtimes[2], exit);
        let lender = start(&runtimes[1], lender);
        let borrower = start(&runtimes[0], borrower);
        let [borrower_ns, lender_ns, exit_ns] = names;
        exit_ns.spawn(serve_echo);
        Self { borrower, lender, exit, runtimes, borrower_ns, exit_ns, _lender_ns: lender_ns, _lock: lock }
    }

    /// Waits until the borrower hears the exit.
    pub(crate) fn wait(&self, within: Duration) {
        let begin = Instant::now();
        loop {
            let status = self.borrower.status();
            let session = status.sessions.first();
            if session.is_some_and(|s| s.inner.is_some() && s.paths.iter().any(|path| path.received > 0)) {
                std::thread::sleep(Duration::from_millis(300));
                return;
            }
            let lender = self.lender.status();
            assert!(begin.elapsed() < within, "no lease: {status:#?} {:#?} {:#?}", lender.lan, lender.leases);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts echoes through the lender.
    pub(crate) fn start_echo(&self, count: u32, interval: Duration) -> JoinHandle<Echo> {
        self.borrower_ns.spawn(move || echo(count, interval))
    }

    /// Starts a TCP transfer through the lender.
    pub(crate) fn start_transfer(&self, bytes: u64) -> JoinHandle<Transfer> {
        transfer(&self.borrower_ns, &self.exit_ns, bytes)
    }

    /// Stops all nodes.
    pub(crate) fn stop(self) {
        let Self { borrower, lender, exit, runtimes, .. } = self;
        runtimes[0].block_on(borrower.stop());
        runtimes[1].block_on(lender.stop());
        runtimes[2].block_on(exit.stop());
    }
}
