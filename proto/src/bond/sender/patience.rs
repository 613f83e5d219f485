//! How long packets may wait for a path before CoDel takes that for too many.
//!
//! What waits is the part of a window that the paths in use have no room for. That is too much of it, or it is what a path
//! needs that has just gone, or is just coming: then a drop would cost a window that takes many seconds to grow again.

use std::time::Duration;

use crate::bond::sender::Sender;
use crate::bond::sender::path::PathSender;
use crate::bond::snapshot::PathState;
use crate::time::Time;

/// So long after a path went down the queue is kept long enough for its return: a window like that of inner CUBIC takes
/// many seconds to grow, and links that die often come back soon.
const EXPECTED_FOR: Duration = Duration::from_secs(60);
/// The queue that is kept for a path which is to come back is no longer than this, seconds.
const EXPECTED_WAIT_MAX: f64 = 0.1;
/// So long after a path went away what it carried may wait for it.
const HOPE: Duration = Duration::from_secs(10);
/// It waits no longer than this, seconds; other flows are served beside it.
const HOPE_WAIT: f64 = 1.0;

/// What a path carried when it was taken away.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    at: Time,
    /// Bit/s.
    rate: f64,
    /// Seconds.
    feedback: f64,
}

impl Sender {
    /// Remembers a path that is being taken away, unless one that carried more has just been.
    pub(super) fn note_removed(&mut self, i: usize, now: Time) {
        let p = &self.paths[i];
        let rate = p.carries();
        let more = self.removed.is_some_and(|old| now - old.at < HOPE && old.rate > rate);
        if p.delay.is_measured() && !p.parked && !more {
            self.removed = Some(Removed { at: now, rate, feedback: p.delay.feedback_min() });
        }
    }

    /// The queue, seconds, that a window for all paths makes at those that are left when others have just gone and may be back
    /// at once; zero when none has.
    fn hoped_wait(&self, now: Time) -> f64 {
        let (mut rate, mut lost, mut feedback) = (0.0, 0.0, 0.0_f64);
        for p in self.paths.iter().filter(|p| p.delay.is_measured() && !p.parked) {
            let gone = matches!(p.state, PathState::Suspect | PathState::Down);
            if gone && now - p.since >= HOPE {
                continue;
            }
            *(if gone { &mut lost } else { &mut rate }) += p.carries();
            feedback = feedback.max(p.delay.feedback_min());
        }
        if let Some(removed) = self.removed.filter(|removed| now - removed.at < HOPE) {
            lost += removed.rate;
            feedback = feedback.max(removed.feedback);
        }
        if lost > 0.0 { ((rate + lost) / rate * feedback).min(HOPE_WAIT) } else { 0.0 }
    }

    /// CoDel's target follows the longest round trip in use, with what resends add to it, is lenient while rates grow, and lets
    /// the queue reach what the admission of a slower path needs, also of one that may come back.
    pub(super) fn adapt_codel(&mut self, now: Time) {
        let base_target = self.config.codel_target.as_secs_f64();
        let base_interval = self.config.codel_interval.as_secs_f64();
        let mut feedback: f64 = 0.0;
        let mut growing = false;
        let mut wait: f64 = 0.0;
        let least = self
            .paths
            .iter()
            .filter(|p| p.state == PathState::Up)
            .map(|p| p.delay.smoothed())
            .fold(f64::INFINITY, f64::min);
        for p in self.paths.iter().filter(|p| p.state == PathState::Up && !p.parked) {
            feedback = feedback.max(p.delay.feedback_min() + p.holdup());
            growing |= p.rate.is_growing();
            if !p.admitted {
                wait = wait.max(p.delay.smoothed() - least + 0.015);
            }
        }
        let expected = |p: &&PathSender| {
            p.state == PathState::Down && now - p.since < EXPECTED_FOR && !p.parked && p.delay.is_measured()
        };
        for p in self.paths.iter().filter(expected) {
            wait = wait.max((p.delay.smoothed() - least + 0.015).min(EXPECTED_WAIT_MAX));
        }
        wait = wait.max(self.hoped_wait(now));
        // 20 ms up to 60 ms of round trip, 50 ms from 150 ms on.
        let stretch = 1.0 + 1.5 * ((feedback - 0.060) / 0.090).clamp(0.0, 1.0);
        let lenient = if growing { 5.0 } else { 1.0 };
        let target = (base_target * stretch * lenient).max(wait);
        let interval = (base_interval * stretch.min(1.34)).max(target * 1.5);
        self.queue.set_codel(Duration::from_secs_f64(target), Duration::from_secs_f64(interval));
    }
}
