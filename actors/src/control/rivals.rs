//! Two nodes with one key, as after copying a disk: each newer connection replaces the other node's, without end.
//! Here that is recognised, and told at a bounded rate.

use std::collections::VecDeque;
use std::time::Duration;

use mwb_proto::time::Time;
use parking_lot::Mutex;

/// Replaced sessions remembered: as many rivals as that are recognised.
const REMEMBERED_MAX: usize = 8;
/// A fight is told once in this time.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What is known about the fights of one peer.
#[derive(Debug, Default)]
pub struct Rivals {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    replaced: VecDeque<u64>,
    told: Option<Time>,
}

impl Rivals {
    /// Session `old` gives way to `new`. A node that was started anew brings an id that was never seen: true when
    /// `new` has given way before, so that two nodes take turns.
    pub fn gives_way(&self, old: u64, new: u64) -> bool {
        let mut state = self.state.lock();
        let known = state.replaced.contains(&new);
        state.replaced.retain(|id| *id != new && *id != old);
        state.replaced.push_back(old);
        if state.replaced.len() > REMEMBERED_MAX {
            state.replaced.pop_front();
        }
        known
    }

    /// Whether it is time to tell of the fight (again).
    pub fn is_due(&self, now: Time) -> bool {
        let mut state = self.state.lock();
        let due = state.told.is_none_or(|told| now - told >= TELL_EVERY);
        if due {
            state.told = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_returns_after_giving_way_is_a_rival() {
        let rivals = Rivals::default();
        assert!(!rivals.gives_way(1, 2), "a node that was started anew");
        assert!(!rivals.gives_way(2, 3), "once more");
        assert!(rivals.gives_way(3, 2), "the one before");
        assert!(rivals.gives_way(2, 3));
        for id in 10..100 {
            assert!(!rivals.gives_way(id, id + 1));
        }
        assert_eq!(rivals.state.lock().replaced.len(), REMEMBERED_MAX);
    }

    #[test]
    fn a_fight_is_told_now_and_then() {
        let rivals = Rivals::default();
        let at = |seconds| Time::from_nanos(seconds * 1_000_000_000);
        let told: Vec<u64> = (0..30).filter(|second| rivals.is_due(at(*second))).collect();
        assert_eq!(told, [0, 10, 20]);
    }
}
