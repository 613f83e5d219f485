//! Goal: what belongs to a lease passes both ways unchanged, nothing else does, and the death of the actor
//! costs a moment. Method: a borrower's and an exit's socket on the loopback address with a real relay
//! between them.

use std::net::UdpSocket;
use std::time::Instant;

use mwb_proto::wire::v2::{CLEAR_LEN, Class, Flags, FrameType};

use super::*;
use crate::registry::{Fault, Registry};
use crate::supervisor::{ChildSpec, Plan, Policy, Supervisor, Tree};

fn spec() -> SocketSpec {
    SocketSpec { bind: "127.0.0.1:0".parse().expect("address"), device: None, mark: None }
}

/// A data datagram of `len` bytes for `receiver`, with `number` in it.
fn data(receiver: u32, number: u32, len: usize) -> Vec<u8> {
    let clear = Clear {
        key_phase: false,
        frame: FrameType::Data,
        flags: Flags::NONE,
        class: Class::BestEffort,
        receiver,
        path_seq_low: number,
    };
    let mut datagram = vec![number as u8; len];
    clear.encode(datagram.first_chunk_mut::<CLEAR_LEN>().expect("room"));
    datagram
}

struct Bed {
    borrower: LinkSocket,
    exit: LinkSocket,
    relay: Arc<Relay>,
    registry: Arc<Registry>,
}

impl Bed {
    async fn new() -> Self {
        let (borrower, exit) =
            (LinkSocket::open(&spec()).expect("socket"), LinkSocket::open(&spec()).expect("socket"));
        let at = "127.0.0.1".parse().expect("address");
        let relay = Relay::open(&spec(), at, &spec(), exit.local_addr()).expect("relay");
        let registry = Registry::new();
        let prefix = format!("relay-test-{}-{:x}", std::process::id(), rand::random::<u64>());
        let tree = Arc::new(Tree { prefix, registry: Arc::clone(&registry) });
        let plan = Plan::new([ChildSpec::driven::<Relaying>("relay-1", Arc::clone(&relay))]);
        Supervisor::spawn_root(plan, tree, Policy::default()).await.expect("started");
        Self { borrower, exit, relay, registry }
    }

    fn port(&self) -> SocketAddr {
        SocketAddr::new("127.0.0.1".parse().expect("address"), self.relay.port())
    }
}

/// Takes what comes within `patience`, one vector per datagram.
async fn drain(socket: &LinkSocket, count: usize, patience: Duration) -> Vec<(Vec<u8>, SocketAddr)> {
    let mut got = Vec::new();
    let mut storage = vec![0; BUFFER_LEN * BUFFERS];
    let end = Instant::now() + patience;
    while got.len() < count && Instant::now() < end {
        let wait = tokio::time::timeout(end - Instant::now(), socket.readable().readable()).await;
        let Ok(Ok(mut guard)) = wait else { break };
        let mut meta = [RecvMeta::default(); BUFFERS];
        match receive(socket, &mut storage, &mut meta) {
            Ok(received) => {
                for (buffer, meta) in storage.chunks_exact(BUFFER_LEN).zip(&meta[..received]) {
                    got.extend(
                        wire::segments(meta.len, meta.stride).map(|r| (buffer[r].to_vec(), meta.addr)),
                    );
                }
            }
            Err(_) => guard.clear_ready(),
        }
    }
    got
}

const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_the_lease_passes_both_ways_and_nothing_else() {
    let bed = Bed::new().await;
    let up: Vec<u8> = (0..50).flat_map(|number| data(7, number, 1200)).chain(data(7, 50, 300)).collect();
    bed.borrower.send(&up, 1200, bed.port(), None).expect("sent");
    let got = drain(&bed.exit, 51, PATIENCE).await;
    assert_eq!(got.iter().flat_map(|(datagram, _)| datagram.clone()).collect::<Vec<_>>(), up);
    assert_eq!(got.last().map(|(datagram, _)| datagram.len()), Some(300), "sizes are kept");

    let back = got[0].1;
    let down: Vec<u8> = (0..40).flat_map(|number| data(9, number, 1400)).collect();
    bed.exit.send(&down, 1400, back, None).expect("sent");
    let got = drain(&bed.borrower, 40, PATIENCE).await;
    assert_eq!(got.iter().flat_map(|(datagram, _)| datagram.clone()).collect::<Vec<_>>(), down);
    assert!(got.iter().all(|(_, from)| *from == bed.port()), "the borrower knows the relay only");

    let (sent, received) = bed.relay.stats();
    assert_eq!((sent.datagrams, sent.bytes), (51, up.len() as u64 + 51 * OUTER_HEADERS));
    assert_eq!((received.datagrams, received.bytes), (40, down.len() as u64 + 40 * OUTER_HEADERS));

    // Another program on the borrower's host, another host on the internet, and what is neither QUIC nor ours.
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("socket");
    stranger.send_to(&data(7, 1, 100), bed.port()).expect("sent");
    stranger.send_to(&data(9, 1, 100), back).expect("sent");
    bed.borrower.send(b"\x00\x00 GET /", 64, bed.port(), None).expect("sent");
    // One QUIC datagram between those of too many receivers: it passes.
    for receiver in 100..120 {
        bed.borrower.send(&data(receiver, 1, 100), 100, bed.port(), None).expect("sent");
    }
    bed.borrower.send(&[0x41; 100], 100, bed.port(), None).expect("sent");
    let got = drain(&bed.exit, 100, Duration::from_millis(500)).await;
    assert_eq!(got.len(), INDEXES_MAX - 1 + 1, "seven more receivers and one of QUIC's");
    let (sent, received) = bed.relay.stats();
    assert_eq!((sent.foreign, received.foreign), (1, 1));
    assert_eq!(sent.refused, 1 + 20 - (INDEXES_MAX as u64 - 1));
    assert!(drain(&bed.borrower, 1, Duration::from_millis(100)).await.is_empty());
}

#[test]
fn an_idle_receiver_makes_room() {
    let (mut gate, now) = (Gate::default(), Time::from_millis(1_000));
    assert!((0..INDEXES_MAX as u32).all(|index| gate.admits(index, now)));
    assert!(!gate.admits(99, now));
    let later = now + INDEX_IDLE;
    assert!(gate.admits(0, later), "in use all the time");
    assert!(gate.admits(99, later));
    assert!(gate.indexes.iter().any(|(index, _)| *index == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_relay_returns_with_its_sockets() {
    let bed = Bed::new().await;
    bed.borrower.send(&data(7, 0, 100), 100, bed.port(), None).expect("sent");
    let got = drain(&bed.exit, 1, PATIENCE).await;
    assert_eq!(got.len(), 1);
    let back = got[0].1;
    for (name, fault) in [
        ("relay-1", Fault::Panic),
        ("relay-1/up", Fault::Panic),
        ("relay-1/down", Fault::Error),
        ("relay-1/up", Fault::Hang),
    ] {
        assert!(bed.registry.inject(name, fault), "{name}");
        // What is sent meanwhile waits in the socket.
        bed.borrower.send(&data(7, 1, 100), 100, bed.port(), None).expect("sent");
        bed.exit.send(&data(9, 1, 100), 100, back, None).expect("sent");
        let begin = Instant::now();
        assert_eq!(drain(&bed.exit, 1, PATIENCE).await.len(), 1, "{name} {fault:?}");
        assert_eq!(drain(&bed.borrower, 1, PATIENCE).await.len(), 1, "{name} {fault:?}");
        eprintln!("{name} {fault:?}: {:?}", begin.elapsed());
    }
}
