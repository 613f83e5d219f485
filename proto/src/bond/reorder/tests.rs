use super::*;
use crate::buf::BufPool;
use crate::packet::PROTO_TCP;
use crate::time::Stamp;
use crate::wire::SkipRun;

fn header(lane: u16, lane_seq: u32, incarnation: u8) -> DataHeader {
    DataHeader { sent: Stamp::new(0), lane, lane_seq, incarnation, unqueued: 0 }
}

struct Fixture {
    reorder: Reorder,
    pool: BufPool,
}

impl Fixture {
    fn new(config: ReceiverConfig) -> Self {
        Self { reorder: Reorder::new(config), pool: BufPool::new(64, 16) }
    }

    fn packet(&mut self, lane: u16, seq: u32, at_ms: u64) {
        let buf = self.pool.copy_from(&[lane as u8, seq as u8]).expect("fits");
        self.reorder.handle(header(lane, seq, 1), buf, Time::from_millis(at_ms));
    }

    fn out(&mut self) -> Vec<(u8, u8)> {
        std::iter::from_fn(|| self.reorder.poll()).map(|p| (p[0], p[1])).collect()
    }
}

#[test]
fn one_lane_never_waits_for_another() {
    let mut f = Fixture::new(ReceiverConfig::default());
    f.packet(1, 1, 0);
    f.packet(2, 0, 0);
    assert_eq!(f.out(), vec![(2, 0)]);
    f.packet(1, 0, 1);
    assert_eq!(f.out(), vec![(1, 0), (1, 1)]);
    assert!(f.reorder.poll_timeout().is_none());
}

#[test]
fn gaps_have_independent_deadlines_and_late_packets_are_handed_on() {
    let mut f = Fixture::new(ReceiverConfig::default());
    f.packet(1, 0, 0);
    f.packet(1, 2, 0);
    f.packet(1, 4, 100);
    assert_eq!(f.out(), vec![(1, 0)]);
    let first = f.reorder.poll_timeout().expect("a gap waits");
    f.reorder.handle_timeout(first);
    assert_eq!(f.out(), vec![(1, 2)]);
    let second = f.reorder.poll_timeout().expect("another gap waits");
    assert_eq!(second, first + Duration::from_millis(100), "never restarted");
    f.packet(1, 1, 150);
    assert_eq!(f.out(), vec![(1, 1)]);
    f.packet(1, 1, 151);
    f.reorder.handle_timeout(second);
    assert_eq!(f.out(), vec![(1, 4)]);
    let s = f.reorder.snapshot();
    assert_eq!((s.late, s.duplicates, s.timed_out, s.held_packets), (1, 1, 2, 0));
}

#[test]
fn a_skip_ends_the_wait_at_once() {
    let mut f = Fixture::new(ReceiverConfig::default());
    f.packet(1, 0, 0);
    f.packet(1, 4, 0);
    let skip =
        Skip { sent: Stamp::new(0), incarnation: 1, runs: vec![SkipRun { lane: 1, lane_seq: 1, len: 3 }] };
    let foreign = Skip { incarnation: 9, ..skip.clone() };
    f.reorder.handle_skip(&foreign, Time::ZERO);
    assert_eq!(f.out(), vec![(1, 0)]);
    f.reorder.handle_skip(&skip, Time::ZERO);
    assert_eq!(f.out(), vec![(1, 4)]);
}

#[test]
fn a_new_incarnation_releases_and_restarts_every_lane() {
    let mut f = Fixture::new(ReceiverConfig::default());
    f.packet(1, 0, 0);
    f.packet(1, 7, 0);
    let buf = f.pool.copy_from(&[1, 0]).expect("fits");
    f.reorder.handle(header(1, 0, 2), buf, Time::from_millis(1));
    assert_eq!(f.out(), vec![(1, 0), (1, 7), (1, 0)]);
    let old = f.pool.copy_from(&[1, 8]).expect("fits");
    f.reorder.handle(header(1, 8, 1), old, Time::from_millis(2));
    assert_eq!(f.out(), vec![(1, 8)], "a straggler of the old one is handed on");
}

#[test]
fn memory_is_bounded_by_giving_up_the_oldest_gap() {
    let mut f = Fixture::new(ReceiverConfig { reorder_bytes_max: 64 * 10, ..ReceiverConfig::default() });
    for seq in 1..100 {
        f.packet(1, seq, u64::from(seq));
        assert!(f.reorder.snapshot().held_bytes <= 64 * 10);
    }
    assert_eq!(f.out().len(), 99);
    assert_eq!(f.reorder.snapshot().evicted, 1);
}

#[test]
fn unordered_packets_pass_once_and_at_once() {
    let mut f = Fixture::new(ReceiverConfig::default());
    for seq in [5, 3, 5, 4] {
        f.packet(LANE_UNORDERED, seq, 0);
    }
    assert_eq!(f.out().len(), 3);
    assert_eq!(f.reorder.snapshot().duplicates, 1);
}

#[test]
fn a_reorder_that_replaces_another_starts_where_the_lane_is() {
    let mut f = Fixture::new(ReceiverConfig::default());
    f.packet(1, 5000, 0);
    f.packet(1, 5001, 0);
    f.packet(1, 4999, 0);
    assert_eq!(f.out().len(), 3);
}

#[test]
fn a_resend_far_behind_a_fast_flow_is_handed_on() {
    let mut f = Fixture::new(ReceiverConfig::default());
    let far = seen::WINDOW;
    for lane in [1, LANE_UNORDERED] {
        f.packet(lane, 0, 0);
        for seq in 3..=far {
            f.packet(lane, seq, 0);
            f.reorder.handle_timeout(Time::from_millis(1000));
            f.out();
        }
        f.packet(lane, 1, 1000);
        f.packet(lane, 1, 1001);
        assert_eq!(f.out().len(), 1, "the resend, and not its copy");
        f.packet(lane, far + 1, 1002);
        f.packet(lane, 2, 1003);
        f.packet(lane, 1, 1003);
        assert_eq!(f.out().len(), 2, "the window has moved on by one");
        f.packet(lane, far + 2, 1004);
        assert_eq!(f.out().len(), 1);
        f.packet(lane, 2, 1005);
        assert_eq!(f.out().len(), 0);
    }
    let s = f.reorder.snapshot();
    assert_eq!((s.late, s.duplicates, s.too_old), (2, 2, 4));
}

#[test]
fn nothing_comes_twice_when_a_lane_starts_anew_further_ahead() {
    let mut f = Fixture::new(ReceiverConfig::default());
    f.packet(1, 0, 0);
    f.packet(1, 2, 0);
    f.packet(1, 20_000, 1);
    assert_eq!(f.out().len(), 3, "what waited is handed on");
    for seq in [0, 2, 20_000] {
        f.packet(1, seq, 2);
    }
    assert_eq!(f.out().len(), 0);
    f.packet(1, 1, 3);
    assert_eq!(f.out(), vec![(1, 1)], "the gap may still be filled");
    assert_eq!(f.reorder.snapshot().held_packets, 0);
}

/// Eight seconds of bulk by a near path, one packet a millisecond, beside a far path that carries only heartbeats.
fn bulk(f: &mut Fixture, protocol: u8, unqueued: u8, mut taken: impl FnMut(u64, usize)) {
    let mut packet = [0u8; 1200];
    packet[0] = 0x45;
    packet[9] = protocol;
    for ms in 0..8000 {
        let now = Time::from_millis(ms);
        f.reorder.note_delay(PathId(1), 0.005, now);
        f.reorder.note_data(PathId(1), packet.len());
        f.reorder.note_delay(PathId(2), 0.040, now);
        let buf = f.pool.copy_from(&packet).expect("fits");
        f.reorder.handle(DataHeader { unqueued, ..header(3, ms as u32, 1) }, buf, now);
        if f.reorder.poll_timeout().is_some_and(|at| at <= now) {
            f.reorder.handle_timeout(now);
        }
        let count = std::iter::from_fn(|| f.reorder.poll()).count();
        taken(ms, count);
    }
}

#[test]
fn bulk_beside_an_idle_path_is_held_back_now_and_then_for_no_longer_than_a_pause() {
    let mut f = Fixture { reorder: Reorder::new(ReceiverConfig::default()), pool: BufPool::new(1400, 64) };
    let (mut waiting, mut longest, mut bursts) = (0, 0, 0);
    bulk(&mut f, PROTO_TCP, 255, |_, count| {
        waiting = if count == 0 { waiting + 1 } else { 0 };
        longest = longest.max(waiting);
        bursts += usize::from(count > 30);
    });
    assert!((38..=41).contains(&longest), "{longest} ms");
    let pauses = f.reorder.snapshot().pauses;
    assert!(bursts > 8 && pauses.abs_diff(bursts as u64) <= 1, "{bursts} bursts, {pauses} pauses");
    assert_eq!(f.reorder.snapshot().timed_out, 0);

    let mut calls =
        Fixture { reorder: Reorder::new(ReceiverConfig::default()), pool: BufPool::new(1400, 64) };
    bulk(&mut calls, 17, 255, |ms, count| assert_eq!(count, 1, "a call waits at {ms} ms"));

    let mut queued =
        Fixture { reorder: Reorder::new(ReceiverConfig::default()), pool: BufPool::new(1400, 64) };
    bulk(&mut queued, PROTO_TCP, 99, |ms, count| {
        assert_eq!(count, 1, "held back at {ms} ms while the sender has a queue");
    });
}

#[test]
fn a_pause_ends_when_memory_is_short() {
    let config = ReceiverConfig { reorder_bytes_max: 15 * 1400, ..ReceiverConfig::default() };
    let mut f = Fixture { reorder: Reorder::new(config), pool: BufPool::new(1400, 64) };
    let mut longest = 0;
    let mut waiting = 0;
    bulk(&mut f, PROTO_TCP, 255, |_, count| {
        waiting = if count == 0 { waiting + 1 } else { 0 };
        longest = longest.max(waiting);
    });
    let stats = f.reorder.snapshot();
    assert!(stats.pauses > 8 && longest <= 15, "{longest} packets waited");
    assert_eq!((stats.evicted, stats.timed_out, stats.delivered), (0, 0, 8000));
}
