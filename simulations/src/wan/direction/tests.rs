//! The composition: exact departure times, the bound of the queue, live changes, and conservation.

use proptest::prelude::*;

use super::super::{BurstLoss, Policer, QueueLimit, Trace};
use super::*;

fn ms(ms: u64) -> Time {
    Time::from_millis(ms)
}

/// 12 Mbit/s: 1,500 bytes take 1 ms.
fn spec() -> DirectionSpec {
    DirectionSpec::mbit(12.0).delay_ms(20).queue(QueueLimit::Bytes(15_000))
}

fn drain(direction: &mut Direction<u32>, now: Time) -> Vec<(u32, Time)> {
    std::iter::from_fn(|| direction.pop_due(now)).map(|(packet, _, due)| (packet, due)).collect()
}

#[test]
fn a_burst_leaves_at_the_rate_and_the_rest_is_dropped() {
    let mut direction = Direction::new(spec(), 1, ms(0));
    for packet in 0..15 {
        direction.arrive(packet, 1500, ms(5));
    }
    assert_eq!(direction.counters().dropped_queue, 5);
    assert_eq!(direction.next_due(), Some(ms(26)));
    assert!(drain(&mut direction, ms(25)).is_empty());
    let out = drain(&mut direction, ms(1000));
    assert_eq!(out, (0..10).map(|i| (i as u32, ms(26 + i))).collect::<Vec<_>>());
    assert_eq!(direction.next_due(), None);
    assert_eq!(direction.counters().queue_bytes_max, 15_000);
}

#[test]
fn being_called_late_moves_no_departure() {
    let mut direction = Direction::new(spec(), 1, ms(0));
    direction.arrive(0, 1500, ms(1));
    assert!(drain(&mut direction, ms(10)).is_empty());
    // Arrived at 2 but read only after the wake-up at 10.
    direction.arrive(1, 1500, ms(2));
    assert_eq!(drain(&mut direction, ms(100)), [(0, ms(22)), (1, ms(23))]);
}

#[test]
fn a_new_rate_takes_hold_within_the_packet_being_sent() {
    let mut direction = Direction::new(DirectionSpec { delay: Duration::ZERO, ..spec() }, 1, ms(0));
    direction.arrive(0, 3000, ms(0));
    direction.arrive(1, 1500, ms(0));
    // Half of the first is sent after 1 ms; the other half takes 10 ms at a tenth of the rate.
    direction.set(DirectionSpec { delay: Duration::ZERO, rate: Some(1_200_000), ..spec() }, ms(1));
    assert_eq!(drain(&mut direction, ms(100)), [(0, ms(11)), (1, ms(21))]);
    // A rate of zero holds them until there is one again.
    direction.set(DirectionSpec { delay: Duration::ZERO, rate: Some(0), ..spec() }, ms(100));
    direction.arrive(2, 1500, ms(101));
    assert_eq!((drain(&mut direction, ms(5000)), direction.next_due()), (vec![], None));
    direction.set(DirectionSpec { delay: Duration::ZERO, ..spec() }, ms(5000));
    assert_eq!(drain(&mut direction, ms(6000)), [(2, ms(5001))]);
}

#[test]
fn a_cut_loses_what_is_on_the_way() {
    let mut direction = Direction::new(spec(), 1, ms(0));
    direction.arrive(0, 1500, ms(0));
    direction.arrive(1, 1500, ms(0));
    assert!(drain(&mut direction, ms(2)).is_empty());
    direction.cut();
    direction.arrive(2, 1500, ms(3));
    assert!(drain(&mut direction, ms(100)).is_empty());
    assert_eq!(direction.counters().dropped_cut, 3);
    direction.restore();
    direction.arrive(3, 1500, ms(200));
    assert_eq!(drain(&mut direction, ms(300)), [(3, ms(221))]);
}

#[test]
fn traces_restart_together() {
    let trace = Trace::new(vec![0, 100]).unwrap();
    let spec = DirectionSpec::traced(trace).queue(QueueLimit::Bytes(100_000));
    let mut direction = Direction::new(spec, 1, ms(0));
    direction.arrive(0, 1500, ms(1));
    direction.arrive(1, 1500, ms(1));
    assert_eq!(direction.next_due(), Some(ms(100)));
    direction.restart_trace(ms(40));
    assert_eq!(drain(&mut direction, ms(1000)), [(0, ms(40)), (1, ms(140))]);
}

#[test]
fn nothing_without_a_rate_may_eat_the_memory() {
    let mut direction = Direction::new(DirectionSpec::default().delay_ms(1000), 1, ms(0));
    for packet in 0..100_000 {
        direction.arrive(packet, 1500, ms(1));
    }
    assert!(direction.held() * 1500 <= FLIGHT_MAX);
    assert_eq!(direction.counters().dropped_emulator as usize, 100_000 - direction.held());
}

#[test]
fn a_policer_drops_at_once_and_delays_nothing() {
    let policer = Some(Policer { rate: 12_000_000, burst_bytes: 3000 });
    let mut direction = Direction::new(DirectionSpec { policer, rate: None, ..spec() }, 1, ms(0));
    for packet in 0..4 {
        direction.arrive(packet, 1500, ms(5));
    }
    direction.arrive(4, 1500, ms(6));
    assert_eq!(direction.counters().dropped_policer, 2);
    assert_eq!(drain(&mut direction, ms(100)), [(0, ms(25)), (1, ms(25)), (4, ms(26))]);
}

proptest! {
    /// Whatever comes and is changed: packets are conserved, order is kept, memory is bounded, and
    /// nothing leaves before its delay.
    #[test]
    fn conserved_ordered_bounded(
        seed in any::<u64>(),
        steps in prop::collection::vec((0u64..3000, 40usize..1500, 0u8..40), 1..400),
    ) {
        let base = spec().jitter_ms(8).loss(0.05).burst(BurstLoss { p_enter: 0.02, p_exit: 0.3, loss: 0.7 });
        let mut direction = Direction::new(base.clone(), seed, Time::ZERO);
        let (mut now, mut out) = (Time::ZERO, Vec::new());
        for (packet, (micros, bytes, action)) in steps.iter().enumerate() {
            now += Duration::from_micros(*micros);
            match action {
                0 => direction.cut(),
                1 | 2 => direction.restore(),
                3 => direction.set(DirectionSpec { rate: Some(1_000_000), ..base.clone() }, now),
                4 => direction.set(base.clone(), now),
                5 => direction.set(DirectionSpec { trace: Some(Trace::lte(5.0, Duration::from_secs(2), seed)), ..base.clone() }, now),
                6 => direction.restart_trace(now),
                10 => direction.set(DirectionSpec { policer: Some(Policer { rate: 2_000_000, burst_bytes: 3000 }), ..base.clone() }, now),
                7..10 => while let Some((packet, _, due)) = direction.pop_due(now) {
                    prop_assert!(due <= now);
                    out.push(packet);
                },
                _ => {}
            }
            direction.arrive(packet, *bytes, now);
            prop_assert!(direction.counters().queue_bytes <= 15_000);
        }
        while let Some(due) = direction.next_due() {
            now = now.max(due);
            while let Some((packet, _, _)) = direction.pop_due(now) {
                out.push(packet);
            }
        }
        let c = direction.counters();
        prop_assert!(out.windows(2).all(|w| w[0] < w[1]));
        prop_assert_eq!(out.len() as u64, c.packets);
        prop_assert_eq!(direction.held(), 0);
        let gone = c.packets + c.dropped_cut + c.dropped_loss + c.dropped_queue + c.dropped_policer + c.dropped_emulator;
        prop_assert_eq!(c.arrived_packets, gone);
    }
}
