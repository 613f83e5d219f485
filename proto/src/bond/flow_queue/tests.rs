use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::bond::classify::FlowHash;
use crate::buf::BufPool;
use crate::wire::v2::Class;

/// A packet that carries its flow and number, optionally ECN-capable, in an IPv6 header.
struct Source {
    pool: BufPool,
    next: u64,
}

impl Source {
    fn new() -> Self {
        Self { pool: BufPool::new(2048, 64), next: 0 }
    }

    fn packet(&mut self, kind: Kind, len: usize, now: Time) -> Queued {
        let mut bytes = vec![0u8; len.max(40)];
        bytes[0] = 0x60;
        bytes[1] = if kind.ect { 0x20 } else { 0 };
        bytes[8..16].copy_from_slice(&self.next.to_be_bytes());
        self.next += 1;
        Queued {
            packet: self.pool.copy_from(&bytes).expect("fits"),
            verdict: Verdict {
                datagram: false,
                flow: FlowHash(kind.flow),
                class: kind.class,
                priority: 128,
                ordered: false,
                express: kind.express,
            },
            enqueued: now,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    flow: u64,
    class: Class,
    ect: bool,
    express: bool,
}

fn flow(flow: u64) -> Kind {
    Kind { flow, class: Class::BestEffort, ect: false, express: false }
}

fn number(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[8..16].try_into().expect("eight bytes"))
}

fn queue() -> FlowQueue {
    FlowQueue::new(FlowQueueConfig::default())
}

fn balanced(q: &FlowQueue) -> bool {
    let s = q.stats();
    s.enqueued == s.dequeued + s.dropped_codel + s.dropped_overflow + s.dropped_stale + q.packets() as u64
}

/// Bytes each flow got while `packets` were popped.
fn served(q: &mut FlowQueue, packets: usize, now: Time) -> BTreeMap<u64, usize> {
    let mut bytes = BTreeMap::new();
    for _ in 0..packets {
        let popped = q.pop(now).expect("backlogged");
        *bytes.entry(popped.queued.verdict.flow.0).or_default() += popped.queued.packet.len();
    }
    bytes
}

#[test]
fn backlogged_flows_share_bytes_whatever_their_packet_size() {
    let (mut q, mut source) = (queue(), Source::new());
    for _ in 0..500 {
        q.push(source.packet(flow(1), 1400, Time::ZERO));
        for _ in 0..7 {
            q.push(source.packet(flow(2), 200, Time::ZERO));
        }
    }
    let bytes = served(&mut q, 1600, Time::ZERO);
    let ratio = bytes[&1] as f64 / bytes[&2] as f64;
    assert!((0.98..1.02).contains(&ratio), "{bytes:?}");
}

#[test]
fn classes_share_by_weight() {
    let (mut q, mut source) = (queue(), Source::new());
    let classes = [Class::Background, Class::BestEffort, Class::Video, Class::Voice];
    for _ in 0..600 {
        for (id, class) in classes.into_iter().enumerate() {
            q.push(source.packet(Kind { class, ..flow(id as u64) }, 1000, Time::ZERO));
        }
    }
    let bytes = served(&mut q, 1000, Time::ZERO);
    for (id, &got) in &bytes {
        let want = 1_000_000 * (*id as usize + 1) / 10;
        assert!(got.abs_diff(want) < 8_000, "{bytes:?}");
    }
}

#[test]
fn a_sparse_flow_waits_for_at_most_a_quantum_of_each_new_flow() {
    let (mut q, mut source) = (queue(), Source::new());
    for _ in 0..100 {
        for id in 0..10 {
            q.push(source.packet(flow(id), 1400, Time::ZERO));
        }
    }
    // Once backlogged flows have used up their first quantum, a newcomer is next.
    served(&mut q, 40, Time::ZERO);
    for round in 0..30 {
        let queued = source.packet(flow(500), 100, Time::ZERO);
        let id = number(&queued.packet);
        q.push(queued);
        let popped = q.pop(Time::ZERO).expect("not empty");
        assert_eq!(number(&popped.queued.packet), id, "round {round}");
        assert!(popped.sparse);
        // Old flows move on in between, so that the sparse one has left the lists when it returns.
        served(&mut q, 24, Time::ZERO);
    }
    // Ten flows that begin together with it may each take their first quantum before it.
    for id in 20..30 {
        for _ in 0..5 {
            q.push(source.packet(flow(id), 1400, Time::ZERO));
        }
    }
    let queued = source.packet(flow(501), 100, Time::ZERO);
    let id = number(&queued.packet);
    q.push(queued);
    let mut before: BTreeMap<u64, usize> = BTreeMap::new();
    loop {
        let popped = q.pop(Time::ZERO).expect("not empty");
        if number(&popped.queued.packet) == id {
            break;
        }
        *before.entry(popped.queued.verdict.flow.0).or_default() += popped.queued.packet.len();
    }
    assert!(before.iter().all(|(flow, bytes)| *flow >= 20 && *bytes <= 1514 + 1400), "{before:?}");
}

#[test]
fn express_goes_first_but_a_flood_of_it_gets_half() {
    let (mut q, mut source) = (queue(), Source::new());
    for _ in 0..200 {
        q.push(source.packet(flow(1), 1000, Time::ZERO));
    }
    q.push(source.packet(Kind { express: true, ..flow(1) }, 52, Time::ZERO));
    let first = q.pop(Time::ZERO).expect("not empty");
    assert!(first.queued.verdict.express && first.sparse);

    for _ in 0..200 {
        q.push(source.packet(Kind { express: true, ..flow(2) }, 1000, Time::ZERO));
    }
    let bytes = served(&mut q, 200, Time::ZERO);
    assert!(bytes[&2] >= 100_000 && bytes[&2] <= 115_000, "{bytes:?}");
}

#[test]
fn overflow_drops_from_the_fattest_in_batches() {
    let config = FlowQueueConfig { bytes_max: 100_000, ..FlowQueueConfig::default() };
    let (mut q, mut source) = (FlowQueue::new(config), Source::new());
    for _ in 0..10 {
        q.push(source.packet(flow(7), 1000, Time::ZERO));
    }
    let mut dropped = 0;
    for _ in 0..200 {
        dropped += q.push(source.packet(flow(8), 1000, Time::ZERO));
        assert!(q.bytes() <= 100_000);
    }
    assert_eq!(q.stats().dropped_overflow, dropped as u64);
    assert!((110..=160).contains(&dropped), "half of the flow at a time: {dropped}");
    assert!(balanced(&q));
    let mut innocent = 0;
    while let Some(popped) = q.pop(Time::ZERO) {
        innocent += usize::from(popped.queued.verdict.flow.0 == 7);
    }
    assert_eq!(innocent, 10);
    assert_eq!(q.stats().bytes_max_seen, 100_000);
}

#[test]
fn tiny_packets_are_bounded_by_number() {
    let config = FlowQueueConfig { bytes_max: 1 << 20, ..FlowQueueConfig::default() };
    let (mut q, mut source) = (FlowQueue::new(config), Source::new());
    for _ in 0..10_000 {
        q.push(source.packet(flow(1), 40, Time::ZERO));
        assert!(q.packets() <= 4096);
    }
    assert!(balanced(&q));
}

/// A flow that sends one packet a millisecond into a link of `gap_us` per packet, backing off by
/// 30 % at each loss or mark like TCP and growing a little otherwise. Returns the worst and the
/// last sojourns and the statistics.
fn closed_loop(ect: bool, seconds: u64) -> (Duration, FlowQueueStats) {
    let (mut q, mut source) = (queue(), Source::new());
    let kind = Kind { ect, ..flow(1) };
    let mut window: f64 = 10.0;
    let mut in_flight = 0.0;
    let mut losses = 0;
    let mut late = Duration::ZERO;
    for ms in 0..seconds * 1000 {
        let now = Time::from_millis(ms);
        while in_flight < window {
            q.push(source.packet(kind, 1400, now));
            in_flight += 1.0;
        }
        let before = q.stats().dropped_codel + q.stats().marked;
        if let Some(head) = q.peek(now)
            && ms > seconds * 500
        {
            late = late.max(head.sojourn);
        }
        let held = q.packets();
        if q.pop(now).is_some() {
            in_flight -= (held - q.packets()) as f64;
            window += 2.0 / window;
        }
        let signals = q.stats().dropped_codel + q.stats().marked - before;
        in_flight -= (q.stats().dropped_codel - losses) as f64;
        losses = q.stats().dropped_codel;
        if signals > 0 {
            window = (window * 0.7).max(4.0);
        }
    }
    (late, q.stats())
}

#[test]
fn codel_controls_a_standing_queue_by_drops_or_marks() {
    let (late, stats) = closed_loop(false, 20);
    assert!(stats.dropped_codel > 5 && stats.marked == 0, "{stats:?}");
    assert!(late < Duration::from_millis(150), "{late:?}");
    let (late, stats) = closed_loop(true, 20);
    assert!(stats.marked > 5 && stats.dropped_codel == 0, "{stats:?}");
    assert!(late < Duration::from_millis(150), "{late:?}");
}

#[test]
fn codel_does_nothing_below_target() {
    let (mut q, mut source) = (queue(), Source::new());
    for ms in 0..5000u64 {
        let now = Time::from_millis(ms);
        q.push(source.packet(flow(1), 1400, now));
        if ms >= 19 {
            let popped = q.pop(now).expect("held 19 ms of packets");
            assert_eq!(now - popped.queued.enqueued, Duration::from_millis(19));
        }
    }
    assert_eq!(q.stats().dropped_codel + q.stats().marked, 0);
}

#[test]
fn parameters_change_at_any_time() {
    let (mut q, mut source) = (queue(), Source::new());
    let mut drops = [0; 2];
    for (phase, drop) in drops.iter_mut().enumerate() {
        for ms in phase as u64 * 1000..(phase as u64 + 1) * 1000 {
            let now = Time::from_millis(ms);
            q.push(source.packet(flow(1), 1400, now));
            if ms >= 30 {
                q.pop(now);
            }
        }
        *drop = q.stats().dropped_codel;
        q.set_codel(Duration::from_millis(100), Duration::from_millis(300));
    }
    assert!(drops[0] > 0 && drops[1] == drops[0], "{drops:?}");
}

#[test]
fn keeping_the_newest_leaves_one_packet_per_flow() {
    let (mut q, mut source) = (queue(), Source::new());
    for _ in 0..20 {
        for id in 0..5 {
            q.push(source.packet(flow(id), 500, Time::ZERO));
        }
    }
    assert_eq!(q.keep_newest(), 95);
    assert_eq!((q.packets(), q.bytes()), (5, 2500));
    assert!(balanced(&q));
    let mut kept: Vec<u64> =
        std::iter::from_fn(|| q.pop(Time::ZERO)).map(|p| number(&p.queued.packet)).collect();
    kept.sort_unstable();
    assert_eq!(kept, [95, 96, 97, 98, 99]);
}

#[derive(Clone, Debug)]
enum Step {
    Push { kind: Kind, len: usize },
    Peek,
    Pop,
    Wait(u64),
    Codel(u64),
    KeepNewest,
}

fn step() -> impl Strategy<Value = Step> {
    let class = proptest::sample::select(vec![
        Class::BestEffort,
        Class::BestEffort,
        Class::Background,
        Class::Video,
        Class::Voice,
    ]);
    let kind = (0u64..12, class, any::<bool>(), proptest::bool::weighted(0.2))
        .prop_map(|(flow, class, ect, express)| Kind { flow, class, ect, express });
    prop_oneof![
        8 => (kind, 40usize..1500).prop_map(|(kind, len)| Step::Push { kind, len }),
        1 => Just(Step::Peek),
        4 => Just(Step::Pop),
        3 => (0u64..40_000).prop_map(Step::Wait),
        1 => (1u64..60).prop_map(Step::Codel),
        // Rare, or nothing ever gets long.
        1 => proptest::bool::weighted(0.02).prop_map(|rare| if rare { Step::KeepNewest } else { Step::Pop }),
    ]
}

/// What the queue must hold: numbers per (flow, express) in order, and bytes.
#[derive(Default)]
struct Model {
    lens: BTreeMap<u64, usize>,
    last_out: BTreeMap<(u64, bool), u64>,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn laws_hold_under_any_sequence(
        steps in proptest::collection::vec(step(), 1..600), queues in 1usize..16, small: bool,
    ) {
        let config = FlowQueueConfig {
            queues,
            bytes_max: if small { 6_000 } else { 200_000 },
            ..FlowQueueConfig::default()
        };
        let (mut q, mut source, mut model) = (FlowQueue::new(config), Source::new(), Model::default());
        let mut now = Time::ZERO;
        for step in steps {
            match step {
                Step::Push { kind, len } => {
                    let queued = source.packet(kind, len, now);
                    model.lens.insert(number(&queued.packet), queued.packet.len());
                    let before = q.packets();
                    let dropped = q.push(queued);
                    prop_assert_eq!(q.packets(), before + 1 - dropped);
                }
                Step::Peek => {
                    let first = q.peek(now).map(|head| number(head.packet));
                    prop_assert_eq!(q.peek(now).map(|head| number(head.packet)), first);
                }
                Step::Pop => {
                    let head = q.peek(now).map(|h| (number(h.packet), h.len, h.sparse, h.packet[1]));
                    let marked = q.stats().marked;
                    let drops = q.stats().dropped_codel;
                    let popped = q.pop(now);
                    prop_assert_eq!((q.stats().marked, q.stats().dropped_codel), (marked, drops));
                    let shape = popped
                        .as_ref()
                        .map(|p| (number(&p.queued.packet), p.queued.packet.len(), p.sparse, p.queued.packet[1]));
                    prop_assert_eq!(shape, head);
                    prop_assert!(popped.is_some() || q.is_empty(), "never idle with packets waiting");
                    if let Some(Popped { queued, .. }) = popped {
                        let id = number(&queued.packet);
                        prop_assert_eq!(model.lens.get(&id).copied(), Some(queued.packet.len()));
                        let key = (queued.verdict.flow.0, queued.verdict.express);
                        let last = model.last_out.insert(key, id);
                        prop_assert!(last.is_none_or(|last| last < id), "order within a flow");
                    }
                }
                Step::Wait(us) => now += Duration::from_micros(us),
                Step::Codel(ms) => q.set_codel(Duration::from_millis(ms), Duration::from_millis(ms * 8)),
                Step::KeepNewest => { q.keep_newest(); }
            }
            prop_assert!(balanced(&q));
            prop_assert!(q.bytes() <= config.bytes_max);
            prop_assert_eq!(q.is_empty(), q.bytes() == 0);
        }
        // Drained, the bytes that came out and those dropped are all that went in.
        while q.pop(now).is_some() {}
        prop_assert_eq!((q.packets(), q.bytes()), (0, 0));
        prop_assert!(balanced(&q));
    }

    /// Every backlogged flow is served within a round of all the others' quanta.
    #[test]
    fn nobody_starves(kinds in proptest::collection::vec((0usize..4, 40usize..1500), 2..12)) {
        let classes = [Class::Background, Class::BestEffort, Class::Video, Class::Voice];
        let (mut q, mut source) = (queue(), Source::new());
        let mut total = 0;
        for (id, (class, len)) in kinds.iter().enumerate() {
            let kind = Kind { class: classes[*class], ..flow(id as u64) };
            for _ in 0..10 + 20_000 / len {
                q.push(source.packet(kind, *len, Time::ZERO));
            }
            total += 2 * 1514 + 1500;
        }
        let mut waited: BTreeMap<u64, usize> = BTreeMap::new();
        for _ in 0..200 {
            let popped = q.pop(Time::ZERO).expect("backlogged");
            let (id, len) = (popped.queued.verdict.flow.0, popped.queued.packet.len());
            for other in 0..kinds.len() as u64 {
                *waited.entry(other).or_default() += len;
            }
            waited.insert(id, 0);
            // A background flow may need two rounds to save up for one packet.
            prop_assert!(waited.values().all(|bytes| *bytes <= 3 * total), "{waited:?}");
            if q.packets() < kinds.len() * 5 {
                break;
            }
        }
    }
}

#[test]
fn background_waits_for_spare_capacity() {
    let mut source = Source::new();
    let mut q = queue();
    q.set_spare(true);
    for id in 0..4 {
        let mut queued = source.packet(Kind { class: Class::Background, ..flow(id) }, 500, Time::ZERO);
        queued.verdict.priority = 40;
        q.push(queued);
        q.push(source.packet(flow(id), 500, Time::ZERO));
    }
    let order: Vec<u8> =
        std::iter::from_fn(|| q.pop(Time::ZERO)).map(|p| p.queued.verdict.priority).collect();
    assert_eq!(order, [128, 128, 128, 128, 40, 40, 40, 40]);
    assert!(balanced(&q));
}

#[test]
fn refused_flows_are_passed_over_and_keep_their_turn() {
    let mut source = Source::new();
    let mut q = queue();
    for id in 0..3 {
        for _ in 0..2 {
            q.push(source.packet(flow(id), 500, Time::ZERO));
            q.push(source.packet(Kind { express: true, ..flow(id) }, 60, Time::ZERO));
        }
    }
    let taken: Vec<u64> =
        std::iter::from_fn(|| q.pop_where(Time::ZERO, |head| head.verdict.flow != FlowHash(1)))
            .map(|p| p.queued.verdict.flow.0)
            .collect();
    assert_eq!(taken.iter().filter(|&&id| id == 0).count(), 4);
    assert_eq!(taken.iter().filter(|&&id| id == 2).count(), 4);
    assert_eq!((taken.len(), q.packets()), (8, 4));
    assert!(q.pop_where(Time::ZERO, |head| head.verdict.flow != FlowHash(1)).is_none());
    assert_eq!(std::iter::from_fn(|| q.pop(Time::ZERO)).count(), 4);
    assert!(balanced(&q));
}

#[test]
fn a_flow_that_ran_empty_is_new_when_it_comes_back() {
    let mut source = Source::new();
    let mut q = queue();
    for _ in 0..3 {
        q.push(source.packet(flow(1), 500, Time::ZERO));
        assert!(q.peek(Time::ZERO).is_some_and(|head| head.sparse));
        assert!(q.pop(Time::ZERO).is_some());
        assert!(q.peek(Time::ZERO).is_none(), "asking an empty queue settles it");
    }
}
