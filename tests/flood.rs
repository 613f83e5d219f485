//! Goal: a session that is flooded pays for it alone. What does not fit its link waits and is dropped in its own queue,
//! within that queue's bound; the neighbour at the same exit loses nothing, and what the flooded edge itself
//! asks for still comes through.
//! Method: two real edges with a link each at one exit; the internet sends one of them 40 times what its link carries.
//! Nothing here depends on how fast the machine is: what the flood does to the neighbour's round trips is
//! measured by `bench --profile flood`.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use mwb_sim::lab::Lab;
use mwb_sim::traffic::{EchoSpec, FlowSpec, download, flood, server, udp_echo};
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit};
use serde_json::Value;

use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

/// What the exit lets wait for one session (`bond.queue_bytes_max`).
const QUEUE_BYTES_MAX: u64 = 8 << 20;
/// Datagrams per second and their payload: 40 Mbit/s.
const RATE: f64 = 4_000.0;
const SIZE: usize = 1_222;

#[test]
fn a_flooded_session_pays_for_it_alone() {
    in_lab("a_flooded_session_pays_for_it_alone", || {
        let link = |name: &str, mbit: f64| {
            let queue = QueueLimit::Time(Duration::from_millis(100));
            vec![LinkSpec::symmetric(name, DirectionSpec::mbit(mbit).delay_ms(10).queue(queue))]
        };
        let lab = Lab::lan(&[link("talks", 20.0), link("thin", 1.0)]).unwrap();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let mut edges = ["host1", "host2"].map(|name| Node::new(lab.host(name), dir.path()));
        let mut exit = Node::new(lab.host("exit"), dir.path());
        let mut text = "[exit]\nlisten = [\"0.0.0.0:9000\"]\n".to_owned();
        for edge in &edges {
            text += &format!("[[peers]]\nname = \"{}\"\nnode_id = \"{}\"\n", edge.host().name(), edge.id);
            edge.configure(&format!(
                "[[uplinks]]\ninterface = \"up0\"\n\
                 [[peers]]\nname = \"exit\"\nnode_id = \"{}\"\naddresses = [\"{}:9000\"]\nexit = true\n",
                exit.id,
                lab.host("exit").address()
            ));
        }
        exit.configure(&text);
        let host = lab.host("server");
        let address = host.address();
        let server = host.run(move || server(SocketAddr::new(address, 7000))).unwrap();
        let target = server.address();
        exit.start();
        edges.iter_mut().for_each(Node::start);
        let answers = |edge: &Node, count: f64| {
            let spec = EchoSpec::new(target, 50.0, 100, Duration::from_secs_f64(count / 50.0));
            edge.host().run(move || udp_echo(&spec)).unwrap()
        };
        let sessions = || -> [Value; 2] {
            let status = exit.status().unwrap_or_default();
            let all = status["sessions"].as_array().cloned().unwrap_or_default();
            ["host1", "host2"]
                .map(|name| all.iter().find(|session| session["name"] == name).cloned().unwrap_or_default())
        };
        // Until the nodes are up, answers come past them.
        wait_until("both are through", PATIENCE, || {
            let came = edges.iter().filter(|edge| answers(edge, 1.0).received > 0).count();
            came == 2 && sessions().iter().all(|session| session["receiver"]["delivered"].as_u64() > Some(0))
        });

        let source = host.run(move || flood(SocketAddr::new(address, 7001), RATE, SIZE)).unwrap();
        let called = source.address();
        let caller = edges[1].host().run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        wait_until("the flood begins", PATIENCE, || {
            caller.send_to(b"call", called).unwrap();
            source.sent() > 0
        });
        let queues = || {
            sessions().map(|session| {
                let number = |key: &str| session["sender"][key].as_u64().unwrap_or(0);
                (number("dropped_codel") + number("dropped_overflow"), number("queue_bytes"))
            })
        };
        wait_until("its queue overflows", PATIENCE, || queues()[1].0 > 0);

        let result = answers(&edges[0], 400.0);
        assert!(result.received >= 396, "the neighbour loses packets: {result:?}");
        let spec = FlowSpec::bytes(target, 5_000_000);
        let result = edges[0].host().run(move || download(&spec)).unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        let result = answers(&edges[1], 50.0);
        assert!(result.received > 25, "its own small packets go before the flood: {result:?}");
        let [(neighbour, _), (flooded, waiting)] = queues();
        assert!(flooded > 1_000, "dropped {flooded}");
        assert!(neighbour < flooded / 10, "of the neighbour's {neighbour}");
        assert!(waiting <= QUEUE_BYTES_MAX, "{waiting} bytes wait");
        assert!(source.sent() > 0);
        assert!(edges.iter().chain([&exit]).all(|node| node.status().is_some()), "all still answer");
    });
}
