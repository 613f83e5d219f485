//! What bonding brings: goodput over the best path's own delivery rate.
//!
//! ```text
//!  bond_gain_ratio = packets that arrived, as wire bits / what the best path delivered meanwhile, over the busy slots
//! ```
//! A slot is busy when some path was measured without having run dry; of the rest nobody knows what a path could have
//! done. Copies count once, what was given up does not count.

use std::collections::VecDeque;

use crate::time::Time;
use crate::wire::PathId;

/// Length of a slot, nanoseconds and seconds.
const SLOT_NANOS: u64 = 100_000_000;
const SLOT_SECS: f64 = SLOT_NANOS as f64 * 1e-9;
/// Slots of the window: five seconds.
const SLOTS: usize = 50;
/// Busy slots without which the ratio would say nothing.
const BUSY_MIN: usize = 10;

#[derive(Debug, Default)]
struct Slot {
    /// Wire bits of packets that arrived for the first time.
    bits: f64,
    /// Sum and number of the rate samples of each path, none app-limited.
    rates: Vec<(PathId, f64, f64)>,
}

#[derive(Debug, Default)]
pub(super) struct Gain {
    slots: VecDeque<Slot>,
    /// Number of the newest slot since time zero.
    newest: u64,
}

impl Gain {
    /// A packet arrived for the first time.
    pub(super) fn on_arrival(&mut self, wire_bytes: usize, now: Time) {
        self.slot(now).bits += (wire_bytes * 8) as f64;
    }

    /// A path that did not run dry delivered at `rate`, bit/s.
    pub(super) fn on_rate(&mut self, path: PathId, rate: f64, now: Time) {
        let slot = self.slot(now);
        match slot.rates.iter_mut().find(|r| r.0 == path) {
            Some(r) => (r.1, r.2) = (r.1 + rate, r.2 + 1.0),
            None => slot.rates.push((path, rate, 1.0)),
        }
    }

    /// What arrived lately, bit/s on the wire: over the last second.
    pub(super) fn goodput(&self) -> f64 {
        let lately = self.slots.iter().rev().skip(1).take((1.0 / SLOT_SECS) as usize);
        let (bits, count) = lately.fold((0.0, 0.0), |(bits, n), slot| (bits + slot.bits, n + 1.0));
        if count > 0.0 { bits / (count * SLOT_SECS) } else { 0.0 }
    }

    fn slot(&mut self, now: Time) -> &mut Slot {
        let number = now.as_nanos() / SLOT_NANOS;
        let missing = if self.slots.is_empty() { 1 } else { number.saturating_sub(self.newest) };
        for _ in 0..missing.min(SLOTS as u64) {
            if self.slots.len() == SLOTS {
                self.slots.pop_front();
            }
            self.slots.push_back(Slot::default());
        }
        self.newest = self.newest.max(number);
        let last = self.slots.len() - 1;
        &mut self.slots[last]
    }

    /// The ratio over the busy part of the last five seconds in which there was traffic; `None` when that is less than a
    /// second.
    pub(super) fn ratio(&self) -> Option<f64> {
        let busy = || self.slots.iter().filter(|slot| !slot.rates.is_empty());
        if busy().count() < BUSY_MIN {
            return None;
        }
        let mean = |path: PathId| {
            let of_path = busy().flat_map(|slot| &slot.rates).filter(|r| r.0 == path);
            let (sum, count) = of_path.fold((0.0, 0.0), |(s, n), r| (s + r.1, n + r.2));
            sum / count
        };
        let best = busy().flat_map(|slot| &slot.rates).map(|r| mean(r.0)).fold(0.0, f64::max);
        let bits: f64 = busy().map(|slot| slot.bits).sum();
        (best > 0.0).then(|| bits / (best * SLOT_SECS * busy().count() as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_paths_bring_their_sum_over_the_better_one() {
        let mut gain = Gain::default();
        for tick in 0..200 {
            let now = Time::from_millis(10 * tick);
            // 30 Mbit/s in all.
            gain.on_arrival(37_500, now);
            gain.on_rate(PathId(0), 20e6, now);
            gain.on_rate(PathId(1), 10e6, now);
        }
        let ratio = gain.ratio().expect("two busy seconds");
        assert!((ratio - 1.5).abs() < 0.01, "{ratio}");
    }

    #[test]
    fn idle_time_counts_for_nothing_and_too_little_says_nothing() {
        let mut gain = Gain::default();
        assert_eq!(gain.ratio(), None);
        for tick in 0..20 {
            gain.on_arrival(1250, Time::from_millis(100 * tick));
        }
        assert_eq!(gain.ratio(), None, "app-limited");
        for tick in 20..40 {
            let now = Time::from_millis(100 * tick);
            gain.on_arrival(125_000, now);
            gain.on_rate(PathId(0), 10e6, now);
        }
        assert!((gain.ratio().expect("busy") - 1.0).abs() < 0.01);
        gain.on_arrival(1, Time::from_millis(3_600_000));
        assert_eq!(gain.ratio(), None, "an hour later");
        assert!(gain.slots.len() <= SLOTS);
    }
}
