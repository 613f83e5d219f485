//! Goal: each routing mode spreads traffic as its name says, and only that differs. Method: a sender
//! and a receiver under virtual time over three uneven links, an open load of several UDP flows that
//! is more than the fastest link carries and less than all do; bytes of the load per link.

use std::collections::BTreeMap;
use std::time::Duration;

use mwb_proto::bond::{
    PathSetup, PathState, Receiver, ReceiverConfig, ReceiverSnapshot, RoutingMode, RxItem, Sender,
    SenderConfig, SenderSnapshot, TxBatch,
};
use mwb_proto::buf::BufPool;
use mwb_proto::time::Time;
use mwb_proto::wire::v2::{CLEAR_LEN, Clear, DataHeader, FrameType, TAG_LEN};
use mwb_proto::wire::{PathId, Report};

/// Length of every inner packet.
const LEN: usize = 1200;
const STEP: Duration = Duration::from_micros(100);

/// One uneven link each way: Mbit/s, one-way delay in ms, weight.
#[derive(Clone, Copy)]
struct Link {
    mbit: f64,
    delay_ms: u64,
    weight: u32,
}

const UNEVEN: [Link; 3] = [
    Link { mbit: 20.0, delay_ms: 5, weight: 1 },
    Link { mbit: 10.0, delay_ms: 15, weight: 10 },
    Link { mbit: 5.0, delay_ms: 30, weight: 20 },
];

/// A UDP flow: Mbit/s, source port, DSCP.
#[derive(Clone, Copy)]
struct Flow {
    mbit: f64,
    port: u16,
    dscp: u8,
}

const fn flow(port: u16, mbit: f64) -> Flow {
    Flow { mbit, port, dscp: 0 }
}

/// One way of a link: drop-tail, 100 ms.
struct Pipe {
    link: Link,
    free_at: Time,
    cut: bool,
}

impl Pipe {
    fn send(&mut self, bytes: usize, now: Time) -> Option<Time> {
        if self.cut || self.free_at > now + Duration::from_millis(100) {
            return None;
        }
        let wire = Duration::from_secs_f64((bytes + 28) as f64 * 8.0 / (self.link.mbit * 1e6));
        self.free_at = self.free_at.max(now) + wire;
        Some(self.free_at + Duration::from_millis(self.link.delay_ms))
    }
}

struct Datagram {
    path: usize,
    path_seq: u64,
    bytes: Vec<u8>,
    forward: bool,
}

/// Both ends and what lies between.
struct World {
    now: Time,
    pool: BufPool,
    sender: Sender,
    back: Sender,
    receiver: Receiver,
    far: Receiver,
    ways: [Vec<Pipe>; 2],
    air: BTreeMap<(Time, u64), Datagram>,
    serial: u64,
    /// What of each flow's next packet is due, in bits.
    due: BTreeMap<u16, f64>,
    /// Data bytes sent per link since [`World::count`].
    sent: Vec<u64>,
    /// The same per flow.
    sent_of: BTreeMap<u16, Vec<u64>>,
    /// Inner packets out per source port since then, and the sum of their delays.
    delivered: BTreeMap<u16, u64>,
    /// What the newest data header says of waiting.
    unqueued: u8,
}

impl World {
    fn new(links: &[Link], mode: RoutingMode) -> Self {
        let now = Time::from_millis(1000);
        let pool = BufPool::new(2048, 4096);
        let config = SenderConfig { mode, seed: [7, 9], ..SenderConfig::default() };
        let mut sender = Sender::new(config.clone(), 1, pool.clone(), now);
        let mut back = Sender::new(config, 1, pool.clone(), now);
        for (i, link) in links.iter().enumerate() {
            let setup = PathSetup {
                receiver: 7,
                first_path_seq: 5,
                datagram_max: 1472,
                rate_max: None,
                weight: link.weight,
                bundles: true,
            };
            sender.add_path(PathId(i as u8), setup.clone(), now);
            back.add_path(PathId(i as u8), setup, now);
        }
        let pipes = || links.iter().map(|&link| Pipe { link, free_at: now, cut: false }).collect();
        Self {
            now,
            pool,
            sender,
            back,
            receiver: Receiver::new(ReceiverConfig::default(), now),
            far: Receiver::new(ReceiverConfig::default(), now),
            ways: [pipes(), pipes()],
            air: BTreeMap::new(),
            serial: 0,
            due: BTreeMap::new(),
            sent: vec![0; links.len()],
            sent_of: BTreeMap::new(),
            delivered: BTreeMap::new(),
            unqueued: 0,
        }
    }

    fn cut(&mut self, link: usize, cut: bool) {
        self.ways.iter_mut().for_each(|way| way[link].cut = cut);
    }

    /// Forgets what was counted.
    fn count(&mut self) {
        self.sent.iter_mut().for_each(|bytes| *bytes = 0);
        self.sent_of.clear();
        self.delivered.clear();
    }

    fn run(&mut self, flows: &[Flow], secs: f64) {
        let end = self.now + Duration::from_secs_f64(secs);
        while self.now < end {
            for f in flows {
                let due = self.due.entry(f.port).or_default();
                *due += f.mbit * 1e6 * STEP.as_secs_f64();
                while *due >= (LEN * 8) as f64 {
                    *due -= (LEN * 8) as f64;
                    let packet = self.pool.copy_from(&udp_packet(*f)).expect("fits");
                    self.sender.enqueue(packet, self.now);
                }
            }
            self.transmit(true);
            self.transmit(false);
            self.hand_back();
            self.now += STEP;
            self.arrive();
        }
    }

    /// Runs `flows` for `warm` seconds, then counts for `secs` and gives each link's share.
    fn shares(&mut self, flows: &[Flow], warm: f64, secs: f64) -> Vec<f64> {
        self.run(flows, warm);
        self.count();
        self.run(flows, secs);
        let all: u64 = self.sent.iter().sum();
        self.sent.iter().map(|&bytes| bytes as f64 / all.max(1) as f64).collect()
    }

    fn transmit(&mut self, forward: bool) {
        let machine = if forward { &mut self.sender } else { &mut self.back };
        machine.handle_timeout(self.now);
        let mut batch = TxBatch::new();
        while machine.poll_transmit(&mut batch, self.now) {
            let path = usize::from(batch.path.0);
            for s in &batch.segments {
                let bytes = batch.slab[s.offset as usize..s.offset as usize + usize::from(s.len)].to_vec();
                let clear = Clear::decode(&bytes).expect("our own header");
                if forward && clear.frame == FrameType::Data {
                    self.sent[path] += bytes.len() as u64;
                    let (header, inner) = DataHeader::decode(&bytes[CLEAR_LEN..]).expect("our own too");
                    self.unqueued = header.unqueued;
                    let port = u16::from_be_bytes([inner[20], inner[21]]);
                    let links = self.sent.len();
                    self.sent_of.entry(port).or_insert_with(|| vec![0; links])[path] += bytes.len() as u64;
                }
                if let Some(at) = self.ways[usize::from(!forward)][path].send(bytes.len(), self.now) {
                    self.serial += 1;
                    let datagram = Datagram { path, path_seq: s.path_seq, bytes, forward };
                    self.air.insert((at, self.serial), datagram);
                }
            }
            batch.clear();
        }
    }

    fn hand_back(&mut self) {
        let mut body = Vec::new();
        for (rx, tx) in [(&mut self.receiver, &mut self.back), (&mut self.far, &mut self.sender)] {
            rx.handle_timeout(self.now);
            if rx.poll_report(&mut body, self.now) {
                tx.send_report(&body, self.now);
            }
            while let Some((path, beat)) = rx.poll_heartbeat() {
                tx.handle_heartbeat(path, &beat, self.now);
            }
        }
        while let Some(packet) = self.receiver.poll_packet(self.now) {
            *self.delivered.entry(u16::from_be_bytes([packet[20], packet[21]])).or_default() += 1;
        }
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.air.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let ((at, _), d) = entry.remove_entry();
            if self.ways[usize::from(!d.forward)][d.path].cut {
                continue;
            }
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
                plain: self.pool.copy_from(plain).expect("fits"),
            };
            let (rx, other) = if d.forward {
                (&mut self.receiver, &mut self.back)
            } else {
                (&mut self.far, &mut self.sender)
            };
            if clear.frame == FrameType::Ack {
                other.handle_report(&Report::decode(plain).expect("our own report"), self.now);
            }
            rx.handle(item, self.now).expect("our own frame");
        }
    }

    fn sender(&self) -> SenderSnapshot {
        self.sender.snapshot(self.now)
    }

    fn receiver(&self) -> ReceiverSnapshot {
        self.receiver.snapshot()
    }
}

/// An IPv4/UDP packet.
fn udp_packet(flow: Flow) -> Vec<u8> {
    let mut p = vec![0u8; LEN];
    p[0] = 0x45;
    p[1] = flow.dscp << 2;
    p[2..4].copy_from_slice(&(LEN as u16).to_be_bytes());
    p[8] = 64;
    p[9] = 17;
    p[12..16].copy_from_slice(&[10, 0, 0, 1]);
    p[16..20].copy_from_slice(&[10, 0, 0, 2]);
    p[20..22].copy_from_slice(&flow.port.to_be_bytes());
    p[22..24].copy_from_slice(&5000u16.to_be_bytes());
    p[24..26].copy_from_slice(&((LEN - 20) as u16).to_be_bytes());
    p
}

/// 24 of 35 Mbit/s in eight flows.
fn load() -> Vec<Flow> {
    (0..8).map(|n| flow(4000 + n, 3.0)).collect()
}

/// As much as all links carry and more: the rates of all paths are measured.
fn flood() -> Vec<Flow> {
    (0..8).map(|n| flow(4000 + n, 5.0)).collect()
}

/// Shares of the load in `mode`, and what the senders then say.
fn shares(mode: RoutingMode) -> (Vec<f64>, World) {
    let mut world = World::new(&UNEVEN, mode);
    world.run(&flood(), 3.0);
    let shares = world.shares(&load(), 4.0, 6.0);
    eprintln!("{mode}: {:.1?} %", shares.iter().map(|s| s * 100.0).collect::<Vec<_>>());
    assert_eq!(world.sender().mode, mode);
    (shares, world)
}

#[track_caller]
fn assert_near(got: &[f64], want: &[f64], by: f64) {
    let near = got.iter().zip(want).all(|(got, want)| (got - want).abs() <= by);
    assert!(near, "{got:.3?} instead of {want:.3?}");
}

#[test]
fn round_robin_gives_each_path_the_same() {
    let (got, _) = shares(RoutingMode::RoundRobin);
    assert_near(&got, &[1.0 / 3.0; 3], 0.01);
}

#[test]
fn weighted_gives_shares_as_the_scores_are() {
    let (got, world) = shares(RoutingMode::Weighted);
    let scores: Vec<f64> = world.sender().paths.iter().map(|p| p.score).collect();
    let all: f64 = scores.iter().sum();
    assert_near(&got, &scores.iter().map(|s| s / all).collect::<Vec<_>>(), 0.06);
    for p in &world.sender().paths {
        let want =
            f64::from(p.weight) * (100.0 / p.rtt_ms) * (1.0 - p.loss) * (1.0 - p.utilisation).max(0.05);
        assert!((p.score / want - 1.0).abs() < 0.01, "{} {want}", p.score);
    }
    // The weights favour the slow ones against what they can carry.
    assert!(got[0] < 20.0 / 35.0 - 0.08 && got[1] > 10.0 / 35.0 + 0.03, "{got:.3?}");
}

#[test]
fn least_used_uses_all_alike() {
    let (got, world) = shares(RoutingMode::LeastUsed);
    assert_near(&got, &[20.0 / 35.0, 10.0 / 35.0, 5.0 / 35.0], 0.05);
    let used: Vec<f64> = world.sender().paths.iter().map(|p| p.utilisation).collect();
    assert!(used.iter().all(|u| (u - used[0]).abs() < 0.1), "{used:.2?}");
}

#[test]
fn least_latency_uses_the_nearest_path_only() {
    let (got, world) = shares(RoutingMode::LeastLatency);
    assert_near(&got, &[1.0, 0.0, 0.0], 0.01);
    assert!(world.sender().dropped_codel + world.sender().dropped_overflow > 0, "the rest is not carried");
}

#[test]
fn adaptive_fills_the_nearest_first() {
    let (got, _) = shares(RoutingMode::Adaptive);
    assert!(got[0] > 0.70 && got[1] > 0.08 && got[2] < 0.08, "{got:.3?}");
}

#[test]
fn data_headers_tell_for_how_long_nothing_has_waited() {
    let mut world = World::new(&UNEVEN, RoutingMode::Adaptive);
    world.run(&[flow(4000, 12.0)], 3.0);
    assert!(world.unqueued >= 100, "{} with half the load", world.unqueued);
    world.run(&[flow(4000, 60.0)], 1.0);
    assert_eq!(world.unqueued, 0, "with more than there is room for");
    world.run(&[flow(4000, 12.0)], 1.8);
    let soon = world.unqueued;
    world.run(&[flow(4000, 12.0)], 0.5);
    assert!(soon < 180 && (45..=55).contains(&(world.unqueued - soon)), "{soon}, {}", world.unqueued);
    world.run(&[flow(4000, 12.0)], 4.0);
    assert_eq!(world.unqueued, 255);
}

#[test]
fn per_flow_keeps_each_flow_on_one_path() {
    let (got, world) = shares(RoutingMode::PerFlow);
    assert_eq!(world.sent_of.len(), 8);
    for (port, sent) in &world.sent_of {
        assert_eq!(sent.iter().filter(|&&bytes| bytes > 0).count(), 1, "flow {port}: {sent:?}");
    }
    let used = got.iter().filter(|&&share| share > 0.0).count();
    assert!(used > 1, "eight flows are spread: {got:.3?}");
}

#[test]
fn the_six_of_the_specification_all_differ() {
    let six = &RoutingMode::ALL[..6];
    let got: Vec<_> = six.iter().map(|&mode| shares(mode).0).collect();
    for (a, first) in got.iter().enumerate() {
        for (b, second) in got.iter().enumerate().skip(a + 1) {
            let most = first.iter().zip(second).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            assert!(most > 0.05, "{} and {} share alike: {first:.3?} {second:.3?}", six[a], six[b]);
        }
    }
}

#[test]
fn a_flow_moves_only_when_its_path_dies() {
    let mut world = World::new(&UNEVEN, RoutingMode::PerFlow);
    let load: Vec<Flow> = (0..8).map(|n| flow(4000 + n, 0.5)).collect();
    world.run(&load, 3.0);
    let homes = |world: &mut World| -> BTreeMap<u16, usize> {
        world.count();
        world.run(&load, 1.0);
        let home = |sent: &Vec<u64>| (0..3).max_by_key(|&i| sent[i]).expect("three");
        world.sent_of.iter().map(|(&port, sent)| (port, home(sent))).collect()
    };
    let before = homes(&mut world);
    let lost = before[&4000];
    world.cut(lost, true);
    world.run(&load, 1.0);
    let during = homes(&mut world);
    for (port, home) in &before {
        assert_ne!(during[port], lost);
        assert!(*home == lost || during[port] == *home, "flow {port} moved without need");
    }
    world.cut(lost, false);
    world.run(&load, 3.0);
    assert!(world.sender().paths.iter().all(|p| p.state == PathState::Up));
    assert_eq!(homes(&mut world), during, "and it does not move back");
}

/// Two of three equal links were silent for a moment: what is known of them is little, and little is what they would get.
#[test]
fn per_flow_gives_flows_to_paths_that_were_never_full() {
    let link = Link { mbit: 40.0, delay_ms: 10, weight: 1 };
    let mut world = World::new(&[link; 3], RoutingMode::PerFlow);
    world.cut(0, true);
    world.cut(1, true);
    world.run(&[flow(4000, 20.0)], 1.0);
    world.cut(0, false);
    world.cut(1, false);
    world.run(&[flow(4000, 20.0)], 3.0);
    assert!(world.sender().paths.iter().all(|p| p.state == PathState::Up));
    world.count();
    for port in 5000..5048 {
        world.run(&[flow(port, 4.0)], 0.1);
    }
    let homes = world.sent_of.values().map(|sent| (0..3).max_by_key(|&i| sent[i]).expect("three"));
    let flows = homes.fold([0; 3], |mut flows, home| {
        flows[home] += 1;
        flows
    });
    assert!(flows.iter().all(|&n| n >= 8), "48 flows: {flows:?}; {:?}", world.sender().paths);
}

#[test]
fn active_backup_uses_one_path_until_it_dies() {
    let mut links = UNEVEN;
    links[1].weight = 100;
    let mut world = World::new(&links, RoutingMode::ActiveBackup);
    let load = [flow(4000, 4.0)];
    assert_near(&world.shares(&load, 3.0, 2.0), &[0.0, 1.0, 0.0], 0.001);
    world.cut(1, true);
    assert_near(&world.shares(&load, 1.0, 2.0), &[0.0, 0.0, 1.0], 0.001);
    assert!(world.delivered[&4000] > 800, "{:?}", world.delivered);
    world.cut(1, false);
    assert_near(&world.shares(&load, 1.0, 1.0), &[0.0, 0.0, 1.0], 0.001);
    assert_near(&world.shares(&load, 6.0, 2.0), &[0.0, 1.0, 0.0], 0.001);
}

#[test]
fn broadcast_sends_everything_everywhere_and_a_cut_costs_nothing() {
    let mut world = World::new(&UNEVEN, RoutingMode::Broadcast);
    let load = [flow(4000, 3.0)];
    assert_near(&world.shares(&load, 3.0, 2.0), &[1.0 / 3.0; 3], 0.01);
    let (s, r) = (world.sender(), world.receiver());
    assert!(s.broadcast as f64 > 1.9 * s.packets_sent as f64, "{} copies of {}", s.broadcast, s.packets_sent);
    assert!(r.duplicates as f64 > 0.95 * s.broadcast as f64 - 200.0, "{} of {}", r.duplicates, s.broadcast);
    assert!(r.delivered <= s.packets_sent);
    world.count();
    world.cut(0, true);
    world.run(&load, 2.0);
    let want = (2.0 * 3e6 / (LEN * 8) as f64) as u64;
    let got = world.delivered[&4000];
    assert!(got + 15 >= want && got <= want + 15, "{got} of {want} delivered while the nearest path was cut");
    assert_eq!(world.sender().resent, s.resent, "a copy that was lost is not sent again");
}

#[test]
fn a_mode_can_be_changed_while_packets_flow() {
    let mut world = World::new(&UNEVEN, RoutingMode::RoundRobin);
    assert_near(&world.shares(&load(), 3.0, 1.0), &[1.0 / 3.0; 3], 0.02);
    world.sender.set_mode(RoutingMode::LeastLatency);
    assert_near(&world.shares(&load(), 1.0, 2.0), &[1.0, 0.0, 0.0], 0.01);
    for mode in RoutingMode::ALL {
        world.sender.set_mode(mode);
        world.count();
        world.run(&load(), 1.0);
        assert!(world.delivered.values().sum::<u64>() > 300, "{mode}: {:?}", world.delivered);
    }
}

#[test]
fn background_gets_what_others_leave() {
    let mut world = World::new(&UNEVEN, RoutingMode::Adaptive);
    // 40 Mbit/s of best effort leave nothing of 35; 10 leave plenty.
    let background = Flow { mbit: 8.0, port: 6000, dscp: 8 };
    let flows = |mbit| vec![flow(4000, mbit), flow(4001, mbit), background];
    world.run(&flows(20.0), 4.0);
    world.count();
    world.run(&flows(20.0), 3.0);
    let (bulk, spare) =
        (world.delivered[&4000] + world.delivered[&4001], world.delivered.get(&6000).copied());
    assert!(spare.unwrap_or(0) * 50 < bulk, "{spare:?} of background beside {bulk}");
    world.run(&flows(5.0), 4.0);
    world.count();
    world.run(&flows(5.0), 3.0);
    let want = 3.0 * 8e6 / (LEN * 8) as f64;
    assert!(world.delivered[&6000] as f64 > 0.95 * want, "{:?} of {want}", world.delivered);
}

#[test]
fn voice_takes_the_path_of_least_delay() {
    let mut world = World::new(&UNEVEN, RoutingMode::Adaptive);
    let voice = Flow { mbit: 2.0, port: 6000, dscp: 46 };
    let flows = [flow(4000, 20.0), flow(4001, 20.0), voice];
    world.run(&flows, 4.0);
    world.count();
    world.run(&flows, 3.0);
    let sent = &world.sent_of[&6000];
    assert!(sent[0] * 10 > sent.iter().sum::<u64>() * 9, "{sent:?}");
}

#[test]
fn names_are_those_of_the_specification() {
    for mode in RoutingMode::ALL {
        assert_eq!(mode.name().parse(), Ok(mode));
    }
    assert!("fastest".parse::<RoutingMode>().is_err());
    assert_eq!(RoutingMode::default().name(), "adaptive");
}
