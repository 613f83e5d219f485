//! Virtual time: who is to be called next, and what a node's own clock reads then.
//!
//! A simulation is a set of components with one timer each. It takes the earliest from the
//! [`Agenda`], lets that component act, and sets the timers anew; time jumps from one to the next, so
//! a run depends on nothing but its inputs.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use mwb_proto::time::Time;

/// One timer per component; the earliest comes first, and of equal ones the lower component.
#[derive(Clone, Debug, Default)]
pub struct Agenda {
    due: Vec<Option<Time>>,
    heap: BinaryHeap<Reverse<(Time, usize)>>,
}

impl Agenda {
    /// An agenda of `components` components, none of them armed.
    pub fn new(components: usize) -> Self {
        Self { due: vec![None; components], heap: BinaryHeap::new() }
    }

    /// Sets the timer of `component`, replacing the one it had; `None` disarms it.
    ///
    /// # Panics
    /// When there is no such component.
    pub fn arm(&mut self, component: usize, at: Option<Time>) {
        if self.due[component] == at {
            return;
        }
        self.due[component] = at;
        if let Some(at) = at {
            self.heap.push(Reverse((at, component)));
        }
    }

    /// Takes the earliest timer: when, and whose. The component is disarmed.
    pub fn pop(&mut self) -> Option<(Time, usize)> {
        while let Some(Reverse((at, component))) = self.heap.pop() {
            // Entries of timers that have been set anew since are stale.
            if self.due[component] == Some(at) {
                self.due[component] = None;
                return Some((at, component));
            }
        }
        None
    }
}

/// The monotonic clock of one node: begins anywhere and may run fast or slow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NodeClock {
    /// What it reads at virtual time zero.
    pub offset: Duration,
    /// How much too fast it runs, in parts per million.
    pub drift_ppm: f64,
}

impl NodeClock {
    /// What the clock reads at virtual time `at`.
    pub fn read(&self, at: Time) -> Time {
        let elapsed = at.as_nanos() as f64;
        let drift = (elapsed * self.drift_ppm * 1e-6).round() as i64;
        Time::from_nanos(at.as_nanos().saturating_add_signed(drift)) + self.offset
    }

    /// The first virtual time at which the clock reads `reading` or later.
    pub fn when(&self, reading: Time) -> Time {
        let elapsed = reading.saturating_sub(self.offset).as_nanos() as f64;
        let mut at =
            Time::from_nanos((elapsed / (1.0 + self.drift_ppm * 1e-6)) as u64).saturating_sub(ROUNDING);
        while self.read(at) < reading {
            at += Duration::from_nanos(1);
        }
        at
    }
}

/// More than what floating point loses in [`NodeClock::when`] over a day of virtual time.
const ROUNDING: Duration = Duration::from_nanos(32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_comes_first_and_ties_go_by_component() {
        let mut agenda = Agenda::new(3);
        agenda.arm(2, Some(Time::from_millis(5)));
        agenda.arm(1, Some(Time::from_millis(5)));
        agenda.arm(0, Some(Time::from_millis(9)));
        agenda.arm(0, Some(Time::from_millis(7)));
        assert_eq!(agenda.pop(), Some((Time::from_millis(5), 1)));
        agenda.arm(2, None);
        assert_eq!(agenda.pop(), Some((Time::from_millis(7), 0)));
        assert_eq!(agenda.pop(), None);
        agenda.arm(2, Some(Time::from_millis(1)));
        assert_eq!(agenda.pop(), Some((Time::from_millis(1), 2)));
    }

    #[test]
    fn clocks_convert_both_ways() {
        for drift_ppm in [-200.0, 0.0, 50.0] {
            let clock = NodeClock { offset: Duration::from_secs(1234), drift_ppm };
            for nanos in [0, 1, 999_999, 10_000_000_000, 123_456_789_012] {
                let at = Time::from_nanos(nanos);
                let back = clock.when(clock.read(at));
                assert!(back <= at && at - back <= Duration::from_nanos(2), "{drift_ppm} {nanos} {back:?}");
                assert!(clock.read(back) >= clock.read(at));
            }
        }
    }
}
