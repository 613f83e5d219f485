//! CoDel (RFC 8289): decides per packet at the head of one queue whether it goes, is dropped or is
//! marked, from how long it has waited.
//!
//! The decision is split from the packet store so that a head can be looked at several times before
//! it leaves: [`CoDel::judge`] changes its state only in ways that do not add up when repeated, and
//! [`CoDel::acted`] is called exactly once for each packet dropped or marked.

use std::time::Duration;

use crate::time::Time;

/// The two parameters of CoDel, shared by all queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Params {
    /// Acceptable standing delay.
    pub(super) target: Duration,
    /// How long the delay may stay above `target` before the first drop; about a worst-case RTT.
    pub(super) interval: Duration,
}

/// State of one queue, with the RFC's names.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoDel {
    /// When the delay will have been above target for an interval; `None` while below.
    first_above_time: Option<Time>,
    /// When to drop next; in the dropping state only, but remembered after it.
    drop_next: Option<Time>,
    /// Drops since entering the dropping state.
    count: u32,
    /// `count` at the last entry.
    lastcount: u32,
    dropping: bool,
    /// A packet was just dropped in the dropping state, and whether `drop_next` moves depends on
    /// the packet that has become the head.
    reschedule: bool,
}

impl CoDel {
    pub(super) const fn new() -> Self {
        Self {
            first_above_time: None,
            drop_next: None,
            count: 0,
            lastcount: 0,
            dropping: false,
            reschedule: false,
        }
    }

    /// Whether the packet at the head should be dropped (or marked) now.
    ///
    /// `sojourn` is its age, `behind` the bytes in the queue without it, `packet_max` the largest
    /// packet seen: a queue of not more than that behind its head is never shortened.
    pub(super) fn judge(
        &mut self,
        params: Params,
        sojourn: Duration,
        behind: usize,
        packet_max: usize,
        now: Time,
    ) -> bool {
        if sojourn < params.target || behind <= packet_max {
            self.first_above_time = None;
            self.dropping = false;
            self.reschedule = false;
            return false;
        }
        let first_above = *self.first_above_time.get_or_insert(now + params.interval);
        let ok_to_drop = now >= first_above;
        if !self.dropping {
            return ok_to_drop;
        }
        if !ok_to_drop {
            self.dropping = false;
            self.reschedule = false;
            return false;
        }
        if self.reschedule {
            self.reschedule = false;
            self.drop_next = self.drop_next.map(|at| control_law(params, at, self.count));
        }
        self.drop_next.is_some_and(|at| now >= at)
    }

    /// The head, judged droppable, has been dropped (`marked` false) or marked and kept.
    pub(super) fn acted(&mut self, params: Params, marked: bool, now: Time) {
        if self.dropping {
            self.count = self.count.saturating_add(1);
            // A marked packet is the head itself, so there is no other one to look at first.
            if marked {
                self.drop_next = self.drop_next.map(|at| control_law(params, at, self.count));
            } else {
                self.reschedule = true;
            }
            return;
        }
        // Entering: if the last cycle ended a short while ago, its drop rate is a good start.
        let delta = self.count.saturating_sub(self.lastcount);
        let recently = self.drop_next.is_some_and(|at| now.since(at) < params.interval * 16);
        self.count = if delta > 1 && recently { delta } else { 1 };
        self.lastcount = self.count;
        self.drop_next = Some(control_law(params, now, self.count));
        self.dropping = true;
    }

    /// The queue was found empty when it was its turn.
    pub(super) fn emptied(&mut self) {
        self.first_above_time = None;
        self.dropping = false;
        self.reschedule = false;
    }
}

/// The next drop comes an interval over the square root of the drop count after the last.
fn control_law(params: Params, at: Time, count: u32) -> Time {
    at + params.interval.div_f64(f64::from(count.max(1)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: Params = Params { target: Duration::from_millis(5), interval: Duration::from_millis(100) };
    const MTU: usize = 1500;

    /// One packet a millisecond leaves a queue with a constant delay; returns when drops happened.
    fn drops(sojourn: Duration, millis: u64) -> Vec<u64> {
        let mut codel = CoDel::new();
        let mut at = Vec::new();
        for ms in 0..millis {
            let now = Time::from_millis(ms);
            while codel.judge(PARAMS, sojourn, 20 * MTU, MTU, now) {
                codel.acted(PARAMS, false, now);
                at.push(ms);
            }
        }
        at
    }

    #[test]
    fn nothing_happens_below_target() {
        assert_eq!(drops(Duration::from_micros(4999), 2000), []);
    }

    #[test]
    fn drops_follow_the_control_law() {
        let at = drops(Duration::from_millis(20), 500);
        // An interval of patience, then gaps of 100/sqrt(n) ms.
        let mut expected = vec![100.0];
        for n in 1..at.len() {
            expected.push(expected[n - 1] + 100.0 / (n as f64).sqrt());
        }
        assert!(at.len() >= 7, "{at:?}");
        for (got, want) in at.iter().zip(expected) {
            assert!((*got as f64 - want).abs() <= 1.0, "{at:?}");
        }
    }

    #[test]
    fn a_short_queue_is_left_alone() {
        let mut codel = CoDel::new();
        for ms in 0..1000 {
            assert!(!codel.judge(PARAMS, Duration::from_millis(50), MTU, MTU, Time::from_millis(ms)));
        }
    }

    #[test]
    fn looking_twice_changes_nothing() {
        let (mut once, mut often) = (CoDel::new(), CoDel::new());
        for ms in 0..1500 {
            let now = Time::from_millis(ms);
            let sojourn = Duration::from_millis(if ms % 400 < 300 { 30 } else { 1 });
            loop {
                let verdict = once.judge(PARAMS, sojourn, 20 * MTU, MTU, now);
                for _ in 0..3 {
                    assert_eq!(often.judge(PARAMS, sojourn, 20 * MTU, MTU, now), verdict, "{ms}");
                }
                if !verdict {
                    break;
                }
                once.acted(PARAMS, ms % 2 == 0, now);
                often.acted(PARAMS, ms % 2 == 0, now);
                if ms % 2 == 0 {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_queue_that_comes_back_soon_is_dropped_from_at_the_old_rate() {
        let mut codel = CoDel::new();
        let mut run = |from: u64, to: u64, sojourn: u64| {
            let mut dropped = 0;
            for ms in from..to {
                let now = Time::from_millis(ms);
                while codel.judge(PARAMS, Duration::from_millis(sojourn), 20 * MTU, MTU, now) {
                    codel.acted(PARAMS, false, now);
                    dropped += 1;
                }
            }
            dropped
        };
        let first = run(0, 1000, 30);
        run(1000, 1050, 1);
        let again = run(1150, 1250, 30);
        assert_eq!(again, 0, "patience starts anew once the delay was below target");
        let soon = run(1250, 1350, 30);
        assert!(first > 10 && soon >= 3, "{first} then {soon}");
    }
}
