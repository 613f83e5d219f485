//! Goal: nodes that know each other find each other by mDNS and nobody else, and go on doing so whatever
//! becomes of the actor. Method: the discovery actors of several nodes on the loopback interface, with
//! real multicast; keys are random, so that other tests there do not matter.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mwb_actors::discovery::{Discovery, DiscoveryLent, Slot};
use mwb_actors::lan::{LanHint, LanHints};
use mwb_actors::membership::Access;
use mwb_actors::registry::{ActorState, Fault, Registry};
use mwb_actors::supervisor::{ChildSpec, Plan, Policy, Supervisor, SupervisorMsg, Tree};
use mwb_actors::{Identity, NodeId};
use mwb_proto::discovery::{hex, node_tag};
use ractor::ActorRef;
use tokio::sync::watch;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    id: NodeId,
    hints: Arc<LanHints>,
    registry: Arc<Registry>,
    root: ActorRef<SupervisorMsg>,
}

fn id() -> NodeId {
    Identity::from_pkcs8(&Identity::generate().expect("key")).expect("its own").node_id()
}

/// A node with only the actor, announcing `port`.
async fn start(id: NodeId, knows: &[NodeId], port: u16) -> Node {
    let known: BTreeMap<_, _> = knows.iter().map(|node| (*node, node.short())).collect();
    let hints = Arc::new(LanHints::default());
    let lent = DiscoveryLent {
        node: id,
        access: Arc::new(Access::new(known, None)),
        interfaces: watch::Sender::new(vec!["lo".to_owned(), "comes-later0".to_owned()]).subscribe(),
        port,
        hints: Arc::clone(&hints),
        slot: Slot::default(),
    };
    let plan = Plan::new([ChildSpec::driven::<Discovery>("discovery", lent)]);
    let registry = Registry::new();
    let tree = Arc::new(Tree { prefix: format!("discovery-{id}"), registry: Arc::clone(&registry) });
    let (root, _) = Supervisor::spawn_root(plan, tree, Policy::default()).await.expect("root");
    Node { id, hints, registry, root }
}

impl Node {
    fn sees(&self, other: &Node, port: u16) -> bool {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let hint = LanHint { tag: node_tag(other.id), address, port: "lo".into() };
        self.hints.all().contains(&hint)
    }

    fn restarts(&self) -> u64 {
        self.registry.find("discovery").map_or(0, |entry| entry.restarts())
    }

    fn runs(&self) -> bool {
        self.registry.find("discovery").is_some_and(|entry| entry.state() == ActorState::Running)
    }

    async fn stop(&self) {
        self.root.stop_and_wait(None, Some(PATIENCE)).await.expect("it stops");
    }
}

async fn until(what: &str, done: impl Fn() -> bool) -> Duration {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = begin.elapsed();
    eprintln!("{what}: {:.3} s", took.as_secs_f64());
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_each_other_find_each_other() {
    let (a, b, stranger) = (id(), id(), id());
    let a = start(a, &[b], 9101).await;
    let b = start(b, &[a.id], 9102).await;
    let stranger = start(stranger, &[a.id], 9103).await;
    until("a and b have found each other", || a.sees(&b, 9102) && b.sees(&a, 9101)).await;
    until("the stranger has found a", || stranger.sees(&a, 9101)).await;

    // Killed in every way, by itself or by its driver: it comes back, and finds what is new meanwhile.
    for (number, (target, fault)) in [
        ("discovery", Fault::Panic),
        ("discovery/browse", Fault::Error),
        ("discovery/browse", Fault::Hang),
        ("discovery", Fault::Hang),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(a.registry.inject(target, fault));
        until("it has died", || a.restarts() > number as u64).await;
        assert!(a.sees(&b, 9102), "a death takes no hint away");
        a.hints.remove(node_tag(b.id));
        until("a has found b again", || a.sees(&b, 9102)).await;
        until("it runs", || a.runs()).await;
    }

    // Who stops says goodbye: the hint goes long before the records' two minutes are over.
    b.stop().await;
    until("a knows that b has gone", || !a.sees(&b, 9102)).await;
    let b = start(b.id, &[a.id], 9104).await;
    until("b is back at another port", || a.sees(&b, 9104) && b.sees(&a, 9101)).await;

    let known: Vec<_> = a.hints.all().iter().map(|hint| hex(&hint.tag)).collect();
    assert!(!known.contains(&hex(&node_tag(stranger.id))), "only who is known: {known:?}");
    assert!(!known.contains(&hex(&node_tag(a.id))), "not itself: {known:?}");
    for node in [a, b, stranger] {
        node.stop().await;
    }
}
