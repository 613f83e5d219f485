//! Goal: QUIC and data share one socket without mixing up, keys agree on both ends, and what is not
//! ours is refused and counted.
//! Method: two links on the loopback address, their drivers run as plain tasks.

use std::time::Duration;

use mwb_proto::control::Message;
use mwb_proto::seal::{self, Opener, Sealer, Suite};
use mwb_proto::wire::PathId;
use mwb_proto::wire::v2::{CLEAR_LEN, Class, Clear, Flags, FrameType, TAG_LEN};
use quinn_udp::Transmit;

use super::*;
use crate::clock;
use crate::control::{ControlStream, JoinError, STEP_TIMEOUT, exporter, hello, transport};
use crate::driver::Pulse;
use crate::identity::NodeId;
use crate::membership::Access;
use crate::session::path::PathPlan;
use crate::session::{Received, Role, Session};
use crate::tls::{self, Allowed, SERVER_NAME};

fn identity() -> Arc<Identity> {
    Arc::new(Identity::from_pkcs8(&Identity::generate().expect("key")).expect("identity"))
}

/// A link on the loopback address with its drivers running.
fn link(name: &str, identity: &Arc<Identity>, accepts: bool) -> Arc<Link> {
    link_at("127.0.0.1:0", name, identity, accepts)
}

fn link_at(bind: &str, name: &str, identity: &Arc<Identity>, accepts: bool) -> Arc<Link> {
    let spec = LinkSpec {
        name: name.to_owned(),
        socket: SocketSpec { bind: bind.parse().expect("address"), device: None, mark: None },
        rate_max: None,
        weight: 10,
        health: Default::default(),
    };
    let server = accepts.then(|| {
        let tls = tls::server_config(identity, Allowed::AnyNode).expect("TLS");
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(transport());
        config
    });
    let link = Link::new(spec, Arc::clone(identity), server, Arc::default(), BufPool::new(2048, 64));
    link.open().expect("socket");
    tokio::spawn(receive::run(Arc::clone(&link), Pulse::unwatched("receive")));
    tokio::spawn(transmit::run(Arc::clone(&link), Pulse::unwatched("transmit")));
    link
}

fn address(link: &Link) -> SocketAddr {
    link.socket().expect("open").local_addr()
}

async fn connect(
    from: &Arc<Link>,
    key: &Identity,
    to: &Link,
    expected: NodeId,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let tls = tls::client_config(key, expected).expect("TLS");
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(transport());
    let endpoint = from.endpoint().expect("endpoint");
    endpoint.connect_with(config, address(to), SERVER_NAME).expect("dial").await
}

/// Both ends of a path between two links, with keys agreed over a connection.
struct Pair {
    edge: Arc<PathEndpoint>,
    exit: Arc<PathEndpoint>,
    edge_link: Arc<Link>,
    exit_link: Arc<Link>,
    stream: (ControlStream, ControlStream),
}

async fn pair() -> Pair {
    let (edge_key, exit_key) = (identity(), identity());
    let (edge_link, exit_link) = (link("edge", &edge_key, false), link("exit", &exit_key, true));
    let endpoint = exit_link.endpoint().expect("endpoint");
    let accept = tokio::spawn(async move { endpoint.accept().await.expect("incoming").await });
    let edge = connect(&edge_link, &edge_key, &exit_link, exit_key.node_id()).await.expect("connected");
    let exit = accept.await.expect("no panic").expect("accepted");
    assert_eq!(tls::peer_of(&edge), Some(exit_key.node_id()));
    assert_eq!(tls::peer_of(&exit), Some(edge_key.node_id()));
    assert_eq!(exporter(&edge).expect("secret"), exporter(&exit).expect("secret"));

    let mut ours = ControlStream::new(edge.open_bi().await.expect("stream"));
    ours.send(&Message::Hello(hello("edge", 1, &Access::default()))).await.expect("sent");
    let mut theirs = ControlStream::new(exit.accept_bi().await.expect("stream"));
    assert!(matches!(theirs.next().await, Ok(Message::Hello(hello)) if hello.name == "edge"));

    let end = |connection: &quinn::Connection, link: &Arc<Link>, role, mine: u32, peer: u32, to| {
        let secret = exporter(connection).expect("secret");
        let secrets = seal::derive(&secret, PathId(1), &[1; 16], &[2; 16], role);
        let role = if role == seal::Role::Initiator { Role::Edge } else { Role::Exit };
        let session =
            Session::new("test".to_owned(), role, NodeId::from_bytes([0; 32]), 7, Arc::clone(&link.table));
        let plan = PathPlan {
            id: PathId(1),
            name: "uplink".to_owned(),
            local_receiver: mine,
            peer_receiver: peer,
            remote: to,
            local_ip: None,
            datagram_max: 1472,
            rate_max: None,
            weight: 10,
            bundles: true,
        };
        let suite = Suite::preferred();
        let (sealer, opener) = (Sealer::new(secrets.tx, suite), Opener::new(secrets.rx, suite));
        let path = PathEndpoint::new(plan, &session, link, sealer, opener, clock::now());
        session.install(&path);
        path
    };
    Pair {
        edge: end(&edge, &edge_link, seal::Role::Initiator, 11, 22, address(&exit_link)),
        exit: end(&exit, &exit_link, seal::Role::Responder, 22, 11, address(&edge_link)),
        edge_link,
        exit_link,
        stream: (ours, theirs),
    }
}

/// A batch of `count` data frames of `len` bytes for receiver 22.
fn batch(first_seq: u64, count: u64, len: usize) -> TxBatch {
    let mut batch = TxBatch::new();
    batch.path = PathId(1);
    for path_seq in first_seq..first_seq + count {
        let clear = Clear {
            key_phase: false,
            frame: FrameType::Data,
            flags: Flags::NONE,
            class: Class::BestEffort,
            receiver: 22,
            path_seq_low: path_seq as u32,
        };
        let offset = batch.slab.len();
        batch.slab.resize(offset + len, path_seq as u8);
        let header = batch.slab[offset..].first_chunk_mut::<CLEAR_LEN>().expect("room");
        clear.encode(header);
        batch.segments.push(mwb_proto::bond::TxSegment { offset: offset as u32, len: len as u16, path_seq });
    }
    batch
}

async fn received(path: &PathEndpoint, count: usize) -> Vec<(u64, usize)> {
    let mut out = Vec::new();
    while out.len() < count {
        let waiting = path.session().received.wait();
        tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("arrives");
        while let Some(item) = path.session().received.pop() {
            if let Received::Items(items) = item {
                out.extend(items.iter().map(|item| (item.path_seq, item.plain.len())));
            }
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_and_data_share_a_socket() {
    let mut pair = pair().await;
    for round in 0..20_u64 {
        let batch = batch(1 + 50 * round, 44, 1_200);
        pair.edge_link.tx().try_push(TxJob { path: Arc::clone(&pair.edge), batch }).expect("room");
        pair.stream
            .0
            .send(&Message::Hello(hello(&round.to_string(), 0, &Access::default())))
            .await
            .expect("sent");
        let message = pair.stream.1.next().await;
        assert!(matches!(message, Ok(Message::Hello(hello)) if hello.name == round.to_string()));
        let got = received(&pair.exit, 44).await;
        let expected: Vec<_> =
            (1 + 50 * round..45 + 50 * round).map(|seq| (seq, 1_200 - CLEAR_LEN - TAG_LEN)).collect();
        assert_eq!(got, expected);
        pair.stream.0.trust();
        pair.stream.1.trust();
    }
    let status = pair.exit_link.status();
    assert_eq!((status.received, status.session_full, status.quic_dropped), (880, 0, 0));
    assert!(status.refused.is_empty(), "{status:?}");
    assert!(pair.edge_link.status().queue.popped == 20);

    // A number that was sealed before is refused on the sending side already.
    let batch = batch(1, 3, 100);
    pair.edge_link.tx().try_push(TxJob { path: Arc::clone(&pair.edge), batch }).expect("room");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(pair.edge_link.status().unsealed, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_segment_of_a_merged_buffer_is_classified_by_itself() {
    let pair = pair().await;
    // One send of five datagrams of one size, as the kernel would merge them: data, noise that looks
    // like QUIC, noise of no plane, a v1 packet, data for nobody, data.
    let len = 300;
    let mut slab = Vec::new();
    let mut add = |seq: Option<u64>, first: Option<u8>| {
        let mut batch = batch(seq.unwrap_or(99), 1, len);
        match (seq, first) {
            (Some(_), _) => assert_eq!(pair.edge.seal(&mut batch), 0),
            (None, Some(first)) => batch.slab[0] = first,
            (None, None) => batch.slab[2..6].copy_from_slice(&77_u32.to_be_bytes()),
        }
        slab.extend(batch.slab);
    };
    add(Some(1), None);
    add(None, Some(0x4f));
    add(None, Some(0x0f));
    add(None, Some(0x01));
    add(None, None);
    add(Some(2), None);
    let socket = pair.edge_link.socket().expect("open");
    let transmit = Transmit {
        destination: address(&pair.exit_link),
        ecn: None,
        contents: &slab,
        segment_size: Some(len),
        src_ip: None,
    };
    socket.transmit(&transmit).expect("sent");
    let got = received(&pair.exit, 2).await;
    assert_eq!(got.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1, 2]);
    let status = pair.exit_link.status();
    assert_eq!(status.refused["bad_version"], 2);
    assert_eq!(status.refused["unknown_receiver"], 1);

    // The same bytes again: nothing passes twice.
    socket.transmit(&transmit).expect("sent");
    while pair.exit_link.status().refused.get("replayed") != Some(&2) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_follows_its_peer_to_a_new_address_but_trusts_it_slowly() {
    let pair = pair().await;
    let send = |from: &LinkSocket, mut datagram: Vec<u8>| {
        let len = datagram.len();
        from.send(&datagram, len, address(&pair.exit_link), None).expect("sent");
        datagram.clear();
    };
    let sealed = |seq| {
        let mut batch = batch(seq, 1, 200);
        assert_eq!(pair.edge.seal(&mut batch), 0);
        batch.slab
    };
    let (late, newer, newest) = (sealed(1), sealed(2), sealed(3));
    send(&pair.edge_link.socket().expect("open"), newer);
    received(&pair.exit, 1).await;
    let elsewhere = LinkSocket::open(&SocketSpec {
        bind: "127.0.0.1:0".parse().expect("address"),
        device: None,
        mark: None,
    })
    .expect("socket");
    let old = pair.exit.remote();
    // An older datagram, kept back and sent from elsewhere, moves nothing.
    send(&elsewhere, late);
    received(&pair.exit, 1).await;
    assert_eq!(pair.exit.remote(), old);
    // The newest one does, and opens three times its own size.
    send(&elsewhere, newest);
    received(&pair.exit, 1).await;
    assert_eq!(pair.exit.remote(), elsewhere.local_addr());
    assert_eq!(pair.exit.session().pings.pop(), Some(PathId(1)), "the new address is asked");
    assert!(pair.exit.destination(600).is_some());
    assert!(pair.exit.destination(1).is_none());
    // The answer to a ping from before the move proves nothing, one sent after it does.
    let before = mwb_proto::time::Time::from_nanos(clock::now().as_nanos() - 5_000_000_000).stamp();
    pair.exit.note_pong(before, elsewhere.local_addr());
    assert!(pair.exit.destination(1).is_none());
    pair.exit.note_pong(clock::now().stamp(), elsewhere.local_addr());
    assert!(pair.exit.destination(60_000).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_exit_is_not_believed() {
    let (edge_key, exit_key) = (identity(), identity());
    let (edge, exit) = (link("edge", &edge_key, false), link("exit", &exit_key, true));
    let endpoint = exit.endpoint().expect("endpoint");
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = incoming.await;
        }
    });
    let error = connect(&edge, &edge_key, &exit, edge_key.node_id()).await.expect_err("another key");
    assert!(matches!(error, quinn::ConnectionError::TransportError(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_say_little() {
    let pair = pair().await;
    let Pair { stream: (mut ours, mut theirs), .. } = pair;
    // More than a stranger's share, in frames that are skipped as unknown.
    let mut noise = Vec::new();
    for _ in 0..30 {
        noise.extend(200_u32.to_be_bytes());
        noise.extend(999_u16.to_be_bytes());
        noise.resize(noise.len() + 198, 0);
    }
    ours.send_raw(&noise).await.expect("sent");
    let error = theirs.next().await.expect_err("too much");
    assert!(error.to_string().contains("too many bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stalls_is_given_up_in_time() {
    let Pair { stream: (mut ours, mut theirs), .. } = pair().await;
    // A frame of 200 bytes of which 50 come.
    let mut half = 200_u32.to_be_bytes().to_vec();
    half.resize(50, 0);
    ours.send_raw(&half).await.expect("sent");
    let began = std::time::Instant::now();
    let error = theirs.next().await.expect_err("nothing whole came");
    assert!(matches!(error, JoinError::Timeout), "{error}");
    assert!(began.elapsed() < STEP_TIMEOUT * 3, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_peer_that_floods_is_given_up_in_time() {
    let Pair { stream: (mut ours, mut theirs), .. } = pair().await;
    theirs.trust();
    // Well-formed frames of an unknown kind, as fast as they go: skipped one by one, never kept.
    let mut frame = 200_u32.to_be_bytes().to_vec();
    frame.extend(999_u16.to_be_bytes());
    frame.resize(4 + 200, 0);
    let flood = tokio::spawn(async move {
        let noise = frame.repeat(100);
        while ours.send_raw(&noise).await.is_ok() {}
    });
    let error = theirs.next().await.expect_err("no message came");
    assert!(matches!(error, JoinError::Timeout), "{error}");
    // Who does not read does not grow either: the window of the stream is full.
    flood.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_works_between_sockets_of_both_families() {
    let (edge_key, exit_key) = (identity(), identity());
    if LinkSocket::open(&SocketSpec { bind: "[::]:0".parse().expect("address"), device: None, mark: None })
        .is_err()
    {
        return; // a host without IPv6
    }
    let exit = link_at("[::]:0", "exit", &exit_key, true);
    let endpoint = exit.endpoint().expect("endpoint");
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.await.expect("accepted");
            tokio::spawn(async move { connection.closed().await });
        }
    });
    let port = address(&exit).port();
    for (bind, to) in [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")] {
        let edge = link_at(bind, "edge", &edge_key, false);
        let endpoint = edge.endpoint().expect("endpoint");
        let mut config = quinn::ClientConfig::new(Arc::new(
            tls::client_config(&edge_key, exit_key.node_id()).expect("TLS"),
        ));
        config.transport_config(transport());
        let to = SocketAddr::new(to.parse().expect("ip"), port);
        let connecting = endpoint.connect_with(config, to, SERVER_NAME).expect("dial");
        let connection = tokio::time::timeout(Duration::from_secs(5), connecting).await;
        let connection = connection.unwrap_or_else(|_| panic!("{bind} reaches {to}")).expect("connected");
        assert_eq!(canonical(connection.remote_address()), to);
    }
}
