//! Small packets that share datagrams.
//!
//! Goal: sharing changes nothing but the number of datagrams. Each packet is delivered at most once, in the order of its
//! lane, and is sent again when its datagram was lost; what goes first leaves no later than alone. Method: both halves of a session under
//! virtual time, seeded loss, packets that carry numbers; and the same input to a sender that packs and one that does not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mwb_proto::bond::{PathSetup, Receiver, ReceiverConfig, RxItem, Sender, SenderConfig, TxBatch};
use mwb_proto::buf::BufPool;
use mwb_proto::time::Time;
use mwb_proto::wire::v2::{CLEAR_LEN, Clear, DATA_LEN, Flags, FrameType, TAG_LEN};
use mwb_proto::wire::{Bundle, PathId, Report};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const STEP: Duration = Duration::from_micros(250);
/// No longer than what every path is trusted with, so that no probes stand among the datagrams.
const DATAGRAM_MAX: usize = 1232;

fn setup(bundles: bool) -> PathSetup {
    PathSetup {
        receiver: 7,
        first_path_seq: 5,
        datagram_max: DATAGRAM_MAX,
        rate_max: None,
        weight: 1,
        bundles,
    }
}

fn config() -> SenderConfig {
    SenderConfig { codel_target: Duration::from_secs(10), seed: [3, 4], ..SenderConfig::default() }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A TCP acknowledgement without payload.
    Ack,
    /// A TCP segment.
    Segment,
    /// UDP, not in order.
    Datagram,
    /// DNS.
    Query,
}

/// A packet of a flow whose number stands in it.
fn packet(kind: Kind, flow: u8, number: u32, len: usize) -> Vec<u8> {
    let len = if kind == Kind::Ack { 44 } else { len.max(48) };
    let mut p = vec![0; len];
    p[0] = 0x45;
    p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    p[8] = 64;
    p[9] = if matches!(kind, Kind::Ack | Kind::Segment) { 6 } else { 17 };
    p[12..16].copy_from_slice(&[10, 0, 0, 1]);
    p[16..20].copy_from_slice(&[10, 0, 0, 2]);
    p[20..24].copy_from_slice(&[0x30, flow, 0, if kind == Kind::Query { 53 } else { 80 }]);
    match kind {
        Kind::Ack | Kind::Segment => {
            // An acknowledgement has an option of four bytes, which carries its number.
            p[32] = if kind == Kind::Ack { 0x60 } else { 0x50 };
            p[33] = 0x10;
        }
        Kind::Datagram | Kind::Query => p[24..26].copy_from_slice(&((len - 20) as u16).to_be_bytes()),
    }
    p[40..44].copy_from_slice(&number.to_be_bytes());
    p
}

fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[40..44].try_into().expect("four bytes"))
}

/// What a datagram carries.
fn inner(datagram: &[u8]) -> (Clear, Vec<Vec<u8>>) {
    let clear = Clear::decode(datagram).expect("our own");
    let body = &datagram[CLEAR_LEN..datagram.len() - TAG_LEN];
    let packets = match clear.frame {
        FrameType::Data => vec![body[DATA_LEN..].to_vec()],
        FrameType::Bundle => {
            Bundle::decode(body).expect("our own").iter().map(|(_, range)| body[range].to_vec()).collect()
        }
        _ => Vec::new(),
    };
    (clear, packets)
}

/// All that a sender has to send now.
fn leave(sender: &mut Sender, now: Time) -> Vec<(PathId, u64, Vec<u8>)> {
    let mut batch = TxBatch::new();
    let mut all = Vec::new();
    sender.handle_timeout(now);
    while sender.poll_transmit(&mut batch, now) {
        let mut end = 0;
        for s in &batch.segments {
            assert_eq!(s.offset as usize, end, "back to back");
            end += usize::from(s.len);
            all.push((batch.path, s.path_seq, batch.slab[s.range()].to_vec()));
        }
        assert_eq!(end, batch.slab.len());
        batch.clear();
    }
    all
}

fn lone_path(bundles: bool) -> (Sender, BufPool, Time) {
    let (pool, now) = (BufPool::new(2048, 64), Time::from_millis(1000));
    let mut sender = Sender::new(config(), 1, pool.clone(), now);
    sender.add_path(PathId(0), setup(bundles), now);
    // A ping, and what follows it.
    leave(&mut sender, now);
    let now = now + Duration::from_millis(10);
    leave(&mut sender, now);
    (sender, pool, now)
}

#[test]
fn acknowledgements_that_wait_become_one_datagram() {
    for (bundles, datagrams) in [(true, 1), (false, 20)] {
        let (mut sender, pool, now) = lone_path(bundles);
        let before = sender.snapshot(now).paths[0].sent_bytes;
        for i in 0..20 {
            sender.enqueue(pool.copy_from(&packet(Kind::Ack, i as u8, i, 0)).expect("fits"), now);
        }
        let sent = leave(&mut sender, now);
        let carrying: Vec<_> = sent.iter().map(|(.., d)| inner(d).1).filter(|p| !p.is_empty()).collect();
        assert_eq!(carrying.len(), datagrams);
        let numbers: Vec<u32> = carrying.iter().flatten().map(|p| number(p)).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        let bytes: u64 = sent.iter().map(|(.., d)| d.len() as u64 + 28).sum();
        let snapshot = sender.snapshot(now);
        assert_eq!(snapshot.bundled, 20 - datagrams as u64);
        assert_eq!(snapshot.paths[0].sent_bytes, bytes + before, "every byte is accounted for");
        assert_eq!(snapshot.paths[0].in_flight, bytes + before);
    }
}

#[test]
fn what_is_long_or_of_another_class_travels_alone() {
    let (mut sender, pool, now) = lone_path(true);
    for (i, (len, tos)) in [(60, 0), (513, 0), (60, 0), (60, 0x88), (60, 0x88)].into_iter().enumerate() {
        let mut p = packet(Kind::Datagram, 1, i as u32, len);
        p[1] = tos;
        sender.enqueue(pool.copy_from(&p).expect("fits"), now);
    }
    let sent: Vec<_> = leave(&mut sender, now).iter().map(|(.., d)| inner(d)).collect();
    let classes: Vec<_> =
        sent.iter().filter(|s| !s.1.is_empty()).map(|(clear, p)| (clear.class.code(), p.len())).collect();
    assert_eq!(classes.iter().map(|c| c.1).sum::<usize>(), 5);
    assert!(classes.iter().filter(|c| c.1 > 1).all(|c| c.0 == 2), "video only: {classes:?}");
}

#[test]
fn a_datagram_that_was_handed_out_is_closed() {
    let (mut sender, pool, now) = lone_path(true);
    for i in 0..4 {
        sender.enqueue(pool.copy_from(&packet(Kind::Ack, 1, i, 0)).expect("fits"), now);
        let sent = leave(&mut sender, now);
        assert_eq!(sent.len(), 1);
        assert_eq!(inner(&sent[0].2).1.len(), 1);
    }
    assert_eq!(sender.snapshot(now).bundled, 0);
}

#[test]
fn few_may_join_an_echo_on_a_thin_path() {
    let (mut sender, pool, now) = lone_path(true);
    // 1 Mbit/s: 62 bytes in half a millisecond, 500 in four.
    sender.set_rate_max(PathId(0), Some(1_000_000), now);
    let kinds = [Kind::Query, Kind::Ack, Kind::Ack, Kind::Ack, Kind::Ack];
    for (i, kind) in kinds.into_iter().enumerate() {
        sender.enqueue(pool.copy_from(&packet(kind, 1, i as u32, 60)).expect("fits"), now);
    }
    let sent: Vec<usize> = leave(&mut sender, now).iter().map(|(.., d)| inner(d).1.len()).collect();
    assert_eq!(sent, [2, 3], "one joins the query");
}

/// Reports cross back at once and are never lost here.
struct Session {
    sender: Sender,
    receiver: Receiver,
    pool: BufPool,
    now: Time,
    air: BTreeMap<(Time, u64), (PathId, u64, Vec<u8>)>,
    serial: u64,
    random: u64,
    delivered: Vec<Vec<u8>>,
}

impl Session {
    fn new(seed: u64) -> Self {
        let (pool, now) = (BufPool::new(2048, 256), Time::from_millis(1000));
        let mut sender = Sender::new(config(), 1, pool.clone(), now);
        for path in 0..2 {
            sender.add_path(PathId(path), setup(true), now);
        }
        let receiver = Receiver::new(ReceiverConfig::default(), now);
        let (air, delivered) = (BTreeMap::new(), Vec::new());
        Self { sender, receiver, pool, now, air, serial: 0, random: seed | 1, delivered }
    }

    fn chance(&mut self, share: f64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 11) as f64 / (1u64 << 53) as f64) < share
    }

    fn step(&mut self, loss: f64) {
        for (path, path_seq, datagram) in leave(&mut self.sender, self.now) {
            assert!(datagram.len() <= DATAGRAM_MAX);
            if self.chance(loss) {
                continue;
            }
            let delay = Duration::from_millis(if path == PathId(0) { 4 } else { 15 });
            self.serial += 1;
            self.air.insert((self.now + delay, self.serial), (path, path_seq, datagram));
        }
        self.now += STEP;
        while let Some(entry) = self.air.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let ((arrival, _), (path, path_seq, datagram)) = entry.remove_entry();
            let clear = Clear::decode(&datagram).expect("our own");
            let body = &datagram[CLEAR_LEN..datagram.len() - TAG_LEN];
            let item = RxItem {
                path,
                path_seq,
                arrival,
                wire_len: datagram.len() as u16,
                ce: false,
                frame: clear.frame,
                flags: clear.flags,
                class: clear.class,
                plain: self.pool.copy_from(body).expect("fits"),
            };
            self.receiver.handle(item, self.now).expect("our own");
        }
        self.receiver.handle_timeout(self.now);
        let mut body = Vec::new();
        while self.receiver.poll_report(&mut body, self.now) {
            self.sender.handle_report(&Report::decode(&body).expect("our own"), self.now);
        }
        self.delivered.extend(std::iter::from_fn(|| self.receiver.poll_packet(self.now)).map(|p| p.to_vec()));
    }
}

fn burst() -> impl Strategy<Value = Vec<(Kind, u8, usize)>> {
    let kind = prop_oneof![Just(Kind::Ack), Just(Kind::Segment), Just(Kind::Datagram), Just(Kind::Query)];
    prop::collection::vec((kind, 0u8..6, 48usize..1400), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn each_packet_arrives_once_and_in_order_whatever_is_lost(
        bursts in prop::collection::vec((burst(), 0u32..12), 1..60),
        loss in 0.0..0.15,
        seed in any::<u64>(),
    ) {
        let mut session = Session::new(seed);
        let mut offered = BTreeMap::new();
        for (packets, steps) in bursts {
            for (kind, flow, len) in packets {
                let number = offered.len() as u32;
                let bytes = packet(kind, flow, number, if number.is_multiple_of(3) { len } else { len % 300 });
                session.sender.enqueue(session.pool.copy_from(&bytes).expect("fits"), session.now);
                offered.insert(number, (kind, flow, bytes));
            }
            for _ in 0..steps {
                session.step(loss);
            }
        }
        for _ in 0..6000 {
            session.step(0.0);
        }
        let mut seen = BTreeSet::new();
        let mut newest = BTreeMap::new();
        let (sent, got) = (session.sender.snapshot(session.now), session.receiver.snapshot());
        for packet in &session.delivered {
            let number = number(packet);
            prop_assert!(seen.insert(number), "{} came twice", number);
            let (kind, flow, bytes) = &offered[&number];
            prop_assert_eq!(packet, bytes);
            if *kind == Kind::Segment && got.timed_out == 0 && got.late == 0 {
                let before = newest.insert(*flow, number);
                prop_assert!(before.is_none_or(|before| before < number), "{} out of order", number);
            }
        }
        let missing = (offered.len() - seen.len()) as u64;
        prop_assert!(missing <= sent.given_up, "{} missing, {} given up", missing, sent.given_up);
        prop_assert_eq!(sent.held_packets, 0, "nothing stays behind");
        prop_assert_eq!(sent.packets_sent, sent.packets_arrived + sent.given_up);
        prop_assert!(sent.paths.iter().all(|p| p.in_flight < 2000), "what was sent is resolved");
    }

    #[test]
    fn what_goes_first_leaves_no_later_than_alone(
        bursts in prop::collection::vec((burst(), 0u32..40), 1..40),
        first in prop_oneof![Just(Kind::Ack), Just(Kind::Query)],
        rate in prop_oneof![Just(600_000u64), Just(2_000_000), Just(20_000_000)],
    ) {
        let mut departures = Vec::new();
        for bundles in [true, false] {
            let (mut sender, pool, mut now) = lone_path(bundles);
            sender.set_rate_max(PathId(0), Some(rate), now);
            let mut left = BTreeMap::new();
            let mut offered = 0;
            for (packets, steps) in bursts.iter().chain([&(Vec::new(), 2000)]) {
                // What goes first, of one kind and in the order in which it came: whose turn it is between acknowledgements
                // and others, and between flows, depends on what came between.
                for (kind, flow, len) in packets.iter().filter(|p| p.0 == first) {
                    let bytes = packet(*kind, *flow, offered, len % 400);
                    offered += 1;
                    sender.enqueue(pool.copy_from(&bytes).expect("fits"), now);
                }
                for _ in 0..*steps {
                    for (.., datagram) in leave(&mut sender, now) {
                        let (clear, packets) = inner(&datagram);
                        prop_assert!(clear.flags == Flags::NONE || packets.is_empty());
                        left.extend(packets.iter().map(|p| (number(p), now)));
                    }
                    now += STEP;
                }
            }
            departures.push(left);
        }
        for (number, alone) in &departures[1] {
            let shared = departures[0].get(number);
            prop_assert!(shared.is_some_and(|at| at <= alone), "{}: {:?} not by {:?}", number, shared, alone);
        }
    }
}
