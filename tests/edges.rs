//! Goal: one exit on one UDP port serves many edges: each has an inner address of its own and keeps it whatever happens to
//! the exit, all transfer at once, none speaks for another, and one for which there is no address left
//! is turned away with a reason while the others notice nothing.
//! Method: real edges with an uplink each, on one LAN but without `[lan]`; a pool so small that many node ids fall on one
//! address. Nothing here depends on how fast the machine is: what the edges get is measured by `bench --profile edges`.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use mwb_sim::lab::Lab;
use mwb_sim::traffic::{FlowSpec, Server, download, server};
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit};
use tempfile::TempDir;

use support::lab::{say_who_calls, seen_by};
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

const EDGES: usize = 10;
/// Room for 13 edges.
const POOL: &str = "10.109.119.0/28";
/// Room for 5.
const SMALL_POOL: &str = "10.109.119.0/29";
const MBIT: f64 = 5.0;
const TRANSFER: u64 = 1_000_000;
/// Until an edge has noticed that its exit is a new one, and has dialled it.
const RETURN: Duration = Duration::from_secs(60);

/// Hosts `host1` and on with an edge each, an exit and a server.
struct Many {
    edges: Vec<Node>,
    exit: Node,
    server: Server,
    /// Where the callers' addresses are told.
    who: SocketAddr,
    lab: Lab,
    _dir: TempDir,
}

impl Many {
    /// All but the start of the nodes.
    fn prepare(count: usize, pool: &str) -> Self {
        let link = |k: usize| {
            let queue = QueueLimit::Time(Duration::from_millis(100));
            let way = DirectionSpec::mbit(MBIT).delay_ms(5).queue(queue);
            vec![LinkSpec::symmetric(format!("link{}", k + 1), way)]
        };
        let lab = Lab::lan(&(0..count).map(link).collect::<Vec<_>>()).unwrap();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let node = |k| Node::new(lab.host(&format!("host{}", k + 1)), dir.path());
        let edges: Vec<Node> = (0..count).map(node).collect();
        let exit = Node::new(lab.host("exit"), dir.path());
        for edge in &edges {
            edge.configure(&format!(
                "[[uplinks]]\ninterface = \"up0\"\n\
                 [[peers]]\nname = \"exit\"\nnode_id = \"{}\"\naddresses = [\"{}:9000\"]\nexit = true\n",
                exit.id,
                lab.host("exit").address()
            ));
        }
        let host = lab.host("server");
        let address = host.address();
        let who = SocketAddr::new(address, 7001);
        say_who_calls(&host, who);
        let server = host.run(move || server(SocketAddr::new(address, 7000))).unwrap();
        let many = Self { edges, exit, server, who, lab, _dir: dir };
        many.configure_exit(pool);
        many
    }

    fn configure_exit(&self, pool: &str) {
        let mut text = format!("[exit]\nlisten = [\"0.0.0.0:9000\"]\npool = \"{pool}\"\n");
        for edge in &self.edges {
            text += &format!("[[peers]]\nname = \"{}\"\nnode_id = \"{}\"\n", edge.host().name(), edge.id);
        }
        self.exit.configure(&text);
    }

    /// Whether programs on the edge's host reach the server through the exit.
    fn is_through(&self, edge: &Node) -> bool {
        seen_by(edge.host(), self.who, "0.0.0.0:0", |_| Ok(()))
            == Some(self.lab.host("exit").address().to_string())
    }

    #[track_caller]
    fn wait_until_through(&self, edges: &[Node], at_most: Duration) {
        for edge in edges {
            wait_until(&format!("{} is through", edge.host().name()), at_most, || self.is_through(edge));
        }
    }

    /// The inner addresses by the exit's word, of those that have a session.
    fn inner(&self) -> BTreeMap<String, Ipv4Addr> {
        let status = self.exit.status().unwrap_or_default();
        let sessions = status["sessions"].as_array().cloned().unwrap_or_default();
        let inner = sessions.iter().map(|session| {
            let address = session["inner"]["v4"][0].as_str().unwrap().parse().unwrap();
            (session["name"].as_str().unwrap().to_owned(), address)
        });
        inner.collect()
    }

    /// All at once, each byte right.
    #[track_caller]
    fn all_download(&self, edges: &[Node]) {
        let start = |(edge, seed): (&Node, u64)| {
            let spec = FlowSpec::bytes(self.server.address(), TRANSFER).seed(seed).patience(RETURN);
            edge.host().start(move || download(&spec).unwrap())
        };
        let running: Vec<_> = edges.iter().zip(1..).map(start).collect();
        for (edge, flow) in edges.iter().zip(running) {
            let result = flow.join();
            let name = edge.host().name();
            assert!(result.complete() && result.total_bytes == TRANSFER, "{name}: {:?}", result.failure);
        }
    }

    fn stop(mut self) {
        self.edges.iter_mut().for_each(Node::stop);
        self.exit.stop();
    }
}

#[test]
fn ten_edges_share_one_port_and_keep_their_addresses() {
    in_lab("ten_edges_share_one_port_and_keep_their_addresses", || {
        let mut many = Many::prepare(EDGES, POOL);
        // The LAN of the first two is what the pool is a part of, and its router has the exit's inner address.
        let router: Ipv4Addr = "10.109.119.1".parse().unwrap();
        assert_eq!(many.edges[0].ip("address add 10.109.119.201/24 dev lan0"), "");
        assert_eq!(many.edges[1].ip(&format!("address add {router}/24 dev lan0")), "");
        let on_the_lan = SocketAddr::from((router, 7002));
        say_who_calls(many.edges[1].host(), on_the_lan);
        many.exit.start();
        many.edges.iter_mut().for_each(Node::start);
        many.wait_until_through(&many.edges, RETURN);

        let inner = many.inner();
        let distinct: BTreeSet<_> = inner.values().copied().collect();
        assert_eq!((inner.len(), distinct.len()), (EDGES, EDGES), "{inner:?}");
        let pool = Ipv4Addr::new(10, 109, 119, 2)..=Ipv4Addr::new(10, 109, 119, 14);
        assert!(distinct.iter().all(|address| pool.contains(address)), "{inner:?}");
        for edge in &many.edges {
            let address = format!("inet {}/32 ", inner[edge.host().name()]);
            let shown = edge.ip("-4 address show dev mwb0");
            assert!(shown.contains(&address), "{address} is not in {shown}");
        }
        let caller = seen_by(many.edges[0].host(), on_the_lan, "0.0.0.0:0", |_| Ok(()));
        assert_eq!(caller.as_deref(), Some("10.109.119.201"), "the LAN is where it was");

        many.all_download(&many.edges);
        one_does_not_speak_for_another(&many, inner["host4"]);

        many.exit.kill();
        many.exit.start();
        many.wait_until_through(&many.edges, RETURN);
        assert_eq!(many.inner(), inner, "the same addresses");
        many.all_download(&many.edges);
        many.stop();
    });
}

/// What the third edge sends from the address of another goes nowhere, and its own goes on.
#[track_caller]
fn one_does_not_speak_for_another(many: &Many, victim: Ipv4Addr) {
    let liar = &many.edges[2];
    assert_eq!(liar.ip(&format!("address add {victim}/32 dev lo")), "");
    let dropped = || liar.status().unwrap()["tun"]["no_session"].as_u64().unwrap();
    let before = dropped();
    assert_eq!(seen_by(liar.host(), many.who, SocketAddr::from((victim, 0)), |_| Ok(())), None);
    assert!(dropped() > before, "the edge itself does not send it");
    assert_eq!(liar.ip(&format!("address del {victim}/32 dev lo")), "");
    many.wait_until_through(&many.edges[2..4], PATIENCE);
}

#[test]
fn who_finds_no_address_left_is_turned_away_alone() {
    in_lab("who_finds_no_address_left_is_turned_away_alone", || {
        let room = 5;
        let mut many = Many::prepare(room + 1, SMALL_POOL);
        many.exit.start();
        many.edges[..room].iter_mut().for_each(Node::start);
        many.wait_until_through(&many.edges[..room], RETURN);
        let inner = many.inner();
        assert_eq!(inner.len(), room, "{inner:?}");

        many.edges[room].start();
        let reason = "all 5 inner addresses of the exit are in use; give it a larger exit.pool";
        for log in [&many.edges[room], &many.exit] {
            wait_until("the reason is in both logs", PATIENCE, || log.log().contains(reason));
        }
        let status = String::from_utf8(many.edges[room].ask(&["status"]).stdout).unwrap();
        assert!(status.contains(reason), "{status}");
        many.all_download(&many.edges[..room]);
        assert!(!many.is_through(&many.edges[room]));
        // It has asked again meanwhile.
        assert_eq!(many.exit.log().matches(reason).count(), 1, "told once:\n{}", many.exit.log());
        assert!(many.exit.log().contains("an edge is turned away"));
        assert_eq!(many.inner(), inner, "nothing changes for the others");

        // With a larger pool it comes in by itself.
        many.exit.stop();
        many.configure_exit(POOL);
        many.exit.start();
        many.wait_until_through(&many.edges, RETURN);
        let wider = many.inner();
        assert_eq!(wider.len(), room + 1, "{wider:?}");
        assert!(inner.iter().all(|(name, address)| wider[name] == *address), "{inner:?}, then {wider:?}");
        many.stop();
    });
}
