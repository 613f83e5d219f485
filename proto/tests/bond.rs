//! Both halves of a session over simulated paths, under virtual time.
//!
//! Goal: what holds for any loss and any delays. Method: one direction, a source that keeps the
//! ingress filled, paths with a rate, a delay, a drop-tail queue and seeded loss; reports travel
//! back over the same kind of path. Each inner packet carries a number, so that loss, order and
//! copies show.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mwb_proto::bond::{
    PathSetup, PathState, Receiver, ReceiverConfig, RxItem, Sender, SenderConfig, SenderEvent, TxBatch,
};
use mwb_proto::buf::BufPool;
use mwb_proto::time::Time;
use mwb_proto::wire::v2::{CLEAR_LEN, Clear, DATA_LEN, Flags, FrameType, TAG_LEN};
use mwb_proto::wire::{Fragment, PathId, Report};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

#[derive(Debug, Clone)]
struct Link {
    rate: f64,
    delay: Duration,
    loss: f64,
    queue: Duration,
    cut: Option<(u64, u64)>,
}

impl Link {
    fn new(mbit: f64, delay_ms: u64, loss: f64) -> Self {
        Self {
            rate: mbit * 1e6,
            delay: Duration::from_millis(delay_ms),
            loss,
            queue: Duration::from_millis(100),
            cut: None,
        }
    }
}

/// A small deterministic generator (splitmix64): enough to decide about losses.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// One way of one link: when its wire is free, what it carries.
struct Pipe {
    link: Link,
    free_at: Time,
}

impl Pipe {
    fn send(&mut self, bytes: usize, now: Time, rng: &mut Rng) -> Option<Time> {
        let cut = self.link.cut.map(|(from, to)| Time::from_millis(from)..Time::from_millis(to));
        if cut.is_some_and(|c| c.contains(&now)) || self.free_at > now + self.link.queue {
            return None;
        }
        let wire = Duration::from_secs_f64((bytes + 28) as f64 * 8.0 / self.link.rate);
        self.free_at = self.free_at.max(now) + wire;
        (rng.next() >= self.link.loss).then(|| self.free_at + self.link.delay)
    }
}

struct Datagram {
    path: usize,
    path_seq: u64,
    bytes: Vec<u8>,
}

struct Outcome {
    /// Numbers of the ordered flow, as delivered.
    delivered: Vec<u32>,
    /// Numbers of which a copy reached the receiver.
    arrived: BTreeSet<u32>,
    offered: u32,
    sender: mwb_proto::bond::SenderSnapshot,
    receiver: mwb_proto::bond::ReceiverSnapshot,
    longest_gap: Duration,
    events: Vec<SenderEvent>,
    wire_mbit: f64,
}

/// The number in a packet of [`tcp_packet`].
fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[40..44].try_into().expect("4 bytes"))
}

/// An IPv4/TCP packet of `len` bytes with `number` in its payload.
fn tcp_packet(number: u32, len: usize) -> Vec<u8> {
    let mut p = vec![0u8; len];
    p[0] = 0x45;
    p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    p[8] = 64;
    p[9] = 6;
    p[12..16].copy_from_slice(&[10, 0, 0, 1]);
    p[16..20].copy_from_slice(&[10, 0, 0, 2]);
    p[20..24].copy_from_slice(&[0x12, 0x34, 0, 80]);
    p[32] = 0x50;
    p[33] = 0x10;
    p[40..44].copy_from_slice(&number.to_be_bytes());
    p
}

fn run(links: &[Link], secs: f64, seed: u64) -> Outcome {
    let mut rng = Rng(seed);
    let pool = BufPool::new(2048, 4096);
    let mut now = Time::from_millis(1000);
    let config = SenderConfig { codel_target: Duration::from_secs(10), ..SenderConfig::default() };
    let mut sender = Sender::new(config.clone(), 1, pool.clone(), now);
    // The way back is a sender too: it carries reports and pongs.
    let mut back = Sender::new(config, 1, pool.clone(), now);
    let mut receiver = Receiver::new(ReceiverConfig::default(), now);
    let mut far_receiver = Receiver::new(ReceiverConfig::default(), now);
    let mut pipes: Vec<Pipe> = links.iter().map(|l| Pipe { link: l.clone(), free_at: now }).collect();
    let mut pipes_back: Vec<Pipe> = links.iter().map(|l| Pipe { link: l.clone(), free_at: now }).collect();
    for i in 0..links.len() {
        let setup = PathSetup {
            receiver: 7,
            first_path_seq: 5,
            datagram_max: 1472,
            rate_max: None,
            weight: 1,
            bundles: true,
        };
        sender.add_path(PathId(i as u8), setup.clone(), now);
        back.add_path(PathId(i as u8), setup, now);
    }
    let end = now + Duration::from_secs_f64(secs);
    let begin = now;
    // Fragments by lane, sequence and count.
    let mut parts: BTreeMap<(Vec<u8>, u8), BTreeMap<u8, Vec<u8>>> = BTreeMap::new();
    let mut air: BTreeMap<(Time, u64, bool), Datagram> = BTreeMap::new();
    let mut serial = 0;
    let mut outcome = Outcome {
        delivered: Vec::new(),
        arrived: BTreeSet::new(),
        offered: 0,
        sender: sender.snapshot(now),
        receiver: receiver.snapshot(),
        longest_gap: Duration::ZERO,
        events: Vec::new(),
        wire_mbit: 0.0,
    };
    let mut last_delivery = now;
    let mut body = Vec::new();
    while now < end {
        // Source: keeps 100 packets waiting, and stops half a second before the end.
        while sender.snapshot(now).queue_packets < 100 && now + Duration::from_millis(500) < end {
            let packet = pool.copy_from(&tcp_packet(outcome.offered, 1436)).expect("fits");
            outcome.offered += 1;
            sender.enqueue(packet, now);
        }
        sender.handle_timeout(now);
        back.handle_timeout(now);
        for (machine, pipes, forward) in
            [(&mut sender, &mut pipes, true), (&mut back, &mut pipes_back, false)]
        {
            let mut batch = TxBatch::new();
            while machine.poll_transmit(&mut batch, now) {
                for s in &batch.segments {
                    let bytes =
                        batch.slab[s.offset as usize..s.offset as usize + usize::from(s.len)].to_vec();
                    let path = usize::from(batch.path.0);
                    if let Some(at) = pipes[path].send(bytes.len(), now, &mut rng) {
                        serial += 1;
                        air.insert((at, serial, forward), Datagram { path, path_seq: s.path_seq, bytes });
                    }
                }
                batch.clear();
            }
        }
        while let Some(event) = sender.poll_event() {
            outcome.events.push(event);
        }
        receiver.handle_timeout(now);
        far_receiver.handle_timeout(now);
        for (rx, tx) in [(&mut receiver, &mut back), (&mut far_receiver, &mut sender)] {
            if rx.poll_report(&mut body, now) {
                tx.send_report(&body, now);
            }
            while let Some((path, beat)) = rx.poll_heartbeat() {
                tx.handle_heartbeat(path, &beat, now);
            }
        }
        while let Some(packet) = receiver.poll_packet(now) {
            outcome.delivered.push(number(&packet));
            if now > begin + Duration::from_secs(1) {
                outcome.longest_gap = outcome.longest_gap.max(now - last_delivery);
            }
            last_delivery = now;
        }
        // Next event: an arrival or a timer, at most a millisecond away.
        let arrival = air.keys().next().map(|k| k.0);
        let timers = [
            sender.poll_timeout(),
            back.poll_timeout(),
            receiver.poll_timeout(),
            far_receiver.poll_timeout(),
        ];
        let next = timers.into_iter().flatten().chain(arrival).min().unwrap_or(end);
        now = next.clamp(now + Duration::from_micros(20), now + Duration::from_millis(1));
        while let Some(entry) = air.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let ((at, _, forward), d) = entry.remove_entry();
            let clear = Clear::decode(&d.bytes).expect("our own header");
            let plain = &d.bytes[CLEAR_LEN..d.bytes.len() - TAG_LEN];
            let item = RxItem {
                path: PathId(d.path as u8),
                path_seq: d.path_seq,
                arrival: at,
                wire_len: d.bytes.len() as u16,
                ce: false,
                frame: clear.frame,
                flags: clear.flags,
                class: clear.class,
                plain: pool.copy_from(plain).expect("fits"),
            };
            if clear.frame == FrameType::Ack {
                let report = Report::decode(plain).expect("our own report");
                if forward { back.handle_report(&report, now) } else { sender.handle_report(&report, now) }
            }
            if forward && clear.frame == FrameType::Data {
                let inner = &plain[DATA_LEN..];
                if clear.flags.contains(Flags::FRAGMENT) {
                    let (part, bytes) = Fragment::decode(inner).expect("our own fragment");
                    let name = (plain[3..8].to_vec(), part.count);
                    let parts = parts.entry(name).or_default();
                    parts.insert(part.index, bytes.to_vec());
                    if parts.len() == usize::from(part.count) {
                        outcome.arrived.insert(number(&parts[&0]));
                    }
                } else {
                    outcome.arrived.insert(number(inner));
                }
            }
            let rx = if forward { &mut receiver } else { &mut far_receiver };
            rx.handle(item, now).expect("our own frame");
        }
    }
    // What the last arrivals released.
    outcome.delivered.extend(std::iter::from_fn(|| receiver.poll_packet(now)).map(|p| number(&p)));
    outcome.sender = sender.snapshot(now);
    outcome.receiver = receiver.snapshot();
    outcome.wire_mbit = outcome.delivered.len() as f64 * 1500.0 * 8.0 / secs / 1e6;
    outcome
}

fn disorder(delivered: &[u32]) -> usize {
    delivered.windows(2).filter(|w| w[1] < w[0]).count()
}

fn report(name: &str, o: &Outcome) {
    eprintln!(
        "{name}: {:.1} Mbit/s, offered {} delivered {} disorder {} gap {:?}\n  {:?}\n  {:?}",
        o.wire_mbit,
        o.offered,
        o.delivered.len(),
        disorder(&o.delivered),
        o.longest_gap,
        o.sender,
        o.receiver
    );
}

#[test]
fn clean_paths_are_filled_and_stay_in_order() {
    let o = run(&[Link::new(50.0, 5, 0.0), Link::new(20.0, 20, 0.0), Link::new(10.0, 40, 0.0)], 6.0, 1);
    report("clean", &o);
    assert_eq!(disorder(&o.delivered), 0);
    assert!(o.wire_mbit > 0.85 * 80.0);
    assert_eq!(o.delivered.len(), o.offered as usize);
}

#[test]
fn random_loss_is_repaired_by_resends() {
    let o = run(&[Link::new(30.0, 15, 0.0), Link::new(30.0, 30, 0.02)], 6.0, 2);
    report("lossy", &o);
    assert_eq!(disorder(&o.delivered), 0);
    assert!(o.sender.resent > 100);
    assert!(o.wire_mbit > 0.80 * 60.0);
}

#[test]
fn a_cut_path_costs_a_blink() {
    let mut cut = Link::new(50.0, 5, 0.0);
    cut.cut = Some((4000, 5500));
    let o = run(&[cut, Link::new(20.0, 20, 0.0)], 7.0, 3);
    report("cut", &o);
    assert!(o.longest_gap < Duration::from_millis(200), "{:?}", o.longest_gap);
    assert!(o.events.contains(&SenderEvent::PathState { path: PathId(0), state: PathState::Suspect }));
    assert!(o.sender.paths[0].state == PathState::Up, "it came back");
    let unique: BTreeSet<_> = o.delivered.iter().collect();
    assert_eq!(unique.len(), o.delivered.len(), "no copies");
}

#[test]
fn a_useless_path_does_no_harm() {
    let mut bad = Link::new(1.0, 300, 0.05);
    bad.queue = Duration::from_secs(1);
    let good = Link::new(50.0, 5, 0.0);
    let alone = run(std::slice::from_ref(&good), 6.0, 4);
    let both = run(&[good, bad], 6.0, 4);
    report("alone", &alone);
    report("both", &both);
    assert!(both.wire_mbit > 0.95 * alone.wire_mbit);
}

/// Whatever the paths do: nothing comes twice, nothing is made up, what is missing was given up by
/// the sender or is held, and memory is bounded. The books balance packet by packet, in three steps:
/// offered = sent + never sent; of what was sent, the sender takes for arrived only what did arrive,
/// and holds or has given up the rest; what arrived came out or is held by the receiver. Under these
/// rates no packet comes so late that the receiver cannot tell it from a copy.
fn check_books(o: &Outcome) -> Result<(), TestCaseError> {
    let unique: BTreeSet<_> = o.delivered.iter().copied().collect();
    prop_assert_eq!(unique.len(), o.delivered.len(), "copies came out");
    prop_assert!(unique.is_subset(&o.arrived), "what never arrived came out");
    let s = &o.sender;
    let unsent = s.queue_packets as u64 + s.dropped_codel + s.dropped_overflow + s.dropped_stale;
    prop_assert_eq!(s.packets_sent + unsent, u64::from(o.offered));
    prop_assert_eq!(s.packets_arrived + s.given_up + s.held_packets as u64, s.packets_sent);
    let arrived = o.arrived.len() as u64;
    prop_assert!(s.packets_arrived <= arrived, "the sender believes in {} arrivals", s.packets_arrived);
    let r = &o.receiver;
    prop_assert_eq!(r.too_old, 0);
    prop_assert_eq!((unique.len() + r.held_packets) as u64, arrived, "what arrived is gone");
    prop_assert!(r.held_bytes <= 32 << 20);
    Ok(())
}

/// A fast flow over long paths of which one is cut: resends come thousands of packets behind their
/// lane. They were once taken for copies and dropped.
#[test]
fn resends_far_behind_are_handed_on() {
    let mut links = [
        Link::new(45.10504957294622, 78, 0.06359574128415257),
        Link::new(33.81944450446191, 93, 0.003266123583275413),
        Link::new(57.75190810061649, 119, 0.06197119821441247),
        Link::new(11.859595030755322, 122, 0.0026154929917092166),
    ];
    links[1].cut = Some((1978, 1978 + 1397));
    links[2].cut = Some((2442, 2442 + 438));
    let o = run(&links, 3.5, 54609356506886233);
    report("far behind", &o);
    assert!(o.sender.resent > 100, "some packets were lost: {}", o.sender.resent);
    check_books(&o).expect("the books balance");
}

proptest! {
    #![proptest_config(ProptestConfig {
        // Each is some seconds of simulated traffic.
        cases: 12,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_is_invented_doubled_or_kept(
        seed in any::<u64>(),
        links in prop::collection::vec(
            (0.5f64..60.0, 1u64..150, 0.0f64..0.1, prop::option::of((1500u64..2500, 100u64..1500))), 1..5),
    ) {
        let links: Vec<Link> = links.into_iter().map(|(mbit, delay, loss, cut)| {
            let mut l = Link::new(mbit, delay, loss);
            l.cut = cut.map(|(from, len)| (from, from + len));
            l
        }).collect();
        check_books(&run(&links, 3.5, seed))?;
    }
}
