//! The guard: a path that makes the others worse is parked, on evidence only.
//!
//! What a path costs is the share of the time in which what it carries is late, because everything behind it in its lane
//! waits, and the share of arrivals that are copies, sent because the path was so late. What it brings is its share
//! of the packets. Loss is no evidence: what is lost by chance is repaired without harm. Neither is an outage: a path that
//! is silent is not up.
//!
//! ```text
//!  trusted ── costs > 3 % and more than it brings, and the others ──► parked: heartbeats only, 5 s, 10 s .. 80 s
//!     ▲       can carry what arrives now                                 │
//!     └──────────────────────────────────────────────────────────────────┘
//! ```
//! The time doubles when the path is caught again soon after its return, and is forgotten after a minute of good conduct.
//! Heartbeats go on, so that its delay is known when it comes back.

use std::time::Duration;

use crate::bond::arq::Key;
use crate::bond::sender::Sender;
use crate::bond::sender::mode::RoutingMode;
use crate::bond::snapshot::PathState;
use crate::time::Time;

/// Counts halve in this many seconds.
const HALF_LIFE: f64 = 3.0;
/// How often the evidence is weighed.
const WEIGH_EVERY: Duration = Duration::from_millis(250);
/// A path that came back is not judged for this long.
const GRACE: Duration = Duration::from_secs(2);
/// Packets, and seconds, without which there is no evidence.
const PACKETS_MIN: f64 = 300.0;
const SECONDS_MIN: f64 = 1.5;
/// Lateness that holds up a lane noticeably, seconds.
const LATE_ABOVE: f64 = 0.025;
/// Reports further apart than this say nothing of the time between them, seconds.
const REPORTS_APART_MAX: f64 = 0.050;
/// Cost below which a path is left alone.
const COST_MAX: f64 = 0.03;
/// The others must be able to carry this share of what arrives with the path.
const REST_MIN: f64 = 0.97;
/// First time a path is parked.
const PARK_FIRST: Duration = Duration::from_secs(5);
/// Longest.
const PARK_MAX: Duration = Duration::from_secs(80);
/// After so long without blame a path is as good as new.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// What became of the packets that a path was given first, and what followed from it.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    /// Packets.
    given: f64,
    /// Of these, arrivals of copies.
    wasted: f64,
    /// Seconds in which the oldest was late.
    late: f64,
    until: Option<Time>,
    parked_for: Duration,
    released: Time,
    /// How often it was parked.
    pub(super) count: u64,
}

impl Conduct {
    pub(super) fn on_given(&mut self) {
        self.given += 1.0;
    }

    /// Whether it is parked for its conduct.
    pub(super) fn is_parked(&self) -> bool {
        self.until.is_some()
    }

    fn decay(&mut self, keep: f64) {
        for count in [&mut self.given, &mut self.wasted, &mut self.late] {
            *count *= keep;
        }
    }

    fn park(&mut self, now: Time) {
        let again = now - self.released < FORGIVEN_AFTER && !self.parked_for.is_zero();
        self.parked_for = if again { (2 * self.parked_for).min(PARK_MAX) } else { PARK_FIRST };
        self.until = Some(now + self.parked_for);
        self.count += 1;
        self.decay(0.0);
    }

    fn release(&mut self, now: Time) {
        if self.until.is_some_and(|at| at <= now) {
            self.until = None;
            self.released = now;
        }
    }
}

/// The session's part of the guard.
#[derive(Debug, Default)]
pub(super) struct Guard {
    arrivals: f64,
    /// Seconds watched.
    watched: f64,
    last_look: Time,
    weighed: Time,
}

impl Sender {
    /// A datagram with this packet arrived; `first` unless another had before.
    pub(super) fn judge_arrival(&mut self, key: Key, first: bool) {
        self.guard.arrivals += 1.0;
        let held = self.store.held(key);
        if first || held.duplicated {
            return;
        }
        let path = held.first_path;
        if let Some(p) = self.paths.iter_mut().find(|p| p.id == path) {
            p.conduct.wasted += 1.0;
        }
    }

    /// Looks whose packets are late, at each report.
    pub(super) fn watch_lateness(&mut self, now: Time) {
        let secs = (now - self.guard.last_look).as_secs_f64();
        self.guard.last_look = now;
        if secs > REPORTS_APART_MAX {
            return;
        }
        self.guard.watched += secs;
        for p in self.paths.iter_mut().filter(|p| p.state == PathState::Up && p.lateness > LATE_ABOVE) {
            p.conduct.late += secs;
        }
    }

    /// Weighs the evidence, when it is time to.
    pub(super) fn weigh_conduct(&mut self, now: Time) {
        let off = self.config.mode != RoutingMode::Adaptive || !self.config.guard;
        if off || now - self.guard.weighed < WEIGH_EVERY {
            return;
        }
        let keep = (-(now - self.guard.weighed).as_secs_f64() / HALF_LIFE).exp2();
        self.guard.weighed = now;
        self.paths.iter_mut().for_each(|p| p.conduct.release(now));
        if let Some(i) = self.culprit(now) {
            self.paths[i].conduct.park(now);
        }
        self.guard.arrivals *= keep;
        self.guard.watched *= keep;
        self.paths.iter_mut().for_each(|p| p.conduct.decay(keep));
    }

    /// The path that costs the most beyond what it brings, if the others can do without it.
    fn culprit(&self, now: Time) -> Option<usize> {
        let given: f64 = self.paths.iter().map(|p| p.conduct.given).sum();
        if given < PACKETS_MIN || self.guard.watched < SECONDS_MIN {
            return None;
        }
        let harm = |i: usize| {
            let conduct = &self.paths[i].conduct;
            let cost = conduct.late / self.guard.watched + conduct.wasted / self.guard.arrivals.max(1.0);
            if cost > COST_MAX { cost - conduct.given / given } else { 0.0 }
        };
        let settled = |i: &usize| self.paths[*i].state == PathState::Up && now - self.paths[*i].since > GRACE;
        let worst = self.usable().filter(settled).max_by(|&a, &b| harm(a).total_cmp(&harm(b)))?;
        let others = self.usable().filter(|&i| i != worst && !self.paths[i].is_startup());
        let rest: f64 = others.map(|i| self.paths[i].rate.rate()).sum();
        (harm(worst) > 0.0 && rest > REST_MIN * self.gain.goodput()).then_some(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parking_doubles_for_the_unteachable_and_is_forgotten() {
        let mut conduct = Conduct::default();
        let mut now = Time::from_millis(100_000);
        for wanted in [5, 10, 20, 40, 80, 80] {
            conduct.park(now);
            assert_eq!(conduct.until, Some(now + Duration::from_secs(wanted)));
            conduct.release(now + Duration::from_secs(wanted - 1));
            assert!(conduct.is_parked());
            now += Duration::from_secs(wanted);
            conduct.release(now);
            assert!(!conduct.is_parked());
            now += Duration::from_secs(10);
        }
        now += FORGIVEN_AFTER;
        conduct.park(now);
        assert_eq!(conduct.until, Some(now + PARK_FIRST));
    }
}
