//! What a lender leaves to its borrowers of one direction of one uplink.
//!
//! The bottleneck is at the ISP and downloads come from outside: no queue on the host can put the lender
//! first. So its borrowers are told to send less as soon as it wants the uplink itself:
//!
//! ```text
//!           own > 3 % of the estimate            own falls while the limit rises
//!  Free ─────────────────────────────► Searching ──────────────────────────────► Held: estimate - 2 x own
//!   ▲                                   │  ▲                                        │   │
//!   │   own < 3 % for 400 ms:           │  └──────────── hold is over ──────────────┘   │
//!   └── twice as much every window ◄────┴───────────────────────────────────────────────┘
//! ```
//! Leaving room for twice the own demand lets it grow without a fight. The estimate is the most that the
//! uplink carried in any window of the last ten seconds; it says what the uplink *can* carry only if it was
//! full. Whether it is full shows in the owner's share: borrowers who use all that they were granted are
//! granted more, and if the owner then gets less, the uplink has no more. Where both grew at the same time the
//! owner never had more: once the sum has stopped growing, the borrowers are held back for a moment, and if
//! the owner takes what they leave, the uplink was full. Until one of these was seen, the estimate
//! binds nobody. While it does, it is raised slowly as long as the borrowers use all that they were granted,
//! and lowered while they do not, but never below what is seen.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;

/// A lease is never granted less, bit/s: its path must stay alive and measured.
pub const TRICKLE: u64 = 128_000;
/// No limit.
pub const UNLIMITED: u64 = u64::MAX;

/// How long a window counts for the estimate.
const PEAK_FOR: Duration = Duration::from_secs(10);
/// Own traffic below this share of the estimate is no demand.
const DEMAND_SHARE: f64 = 0.03;
/// Own traffic below this is no demand on any uplink, bit/s: heartbeats and reports.
const DEMAND_MIN: f64 = 100e3;
/// Own traffic must be low for so long before the borrowers are let loose.
const QUIET_FOR: Duration = Duration::from_millis(400);
/// Most growth of the limit per window while it is held.
const RISE_MAX: f64 = 1.25;
/// Growth of the estimate per window while all that was granted is used.
const PROBE: f64 = 1.02;
/// What is seen may be exceeded by this factor. An owner who is squeezed shows less demand than it has, which
/// grants more: with this bound that can happen only where the owner uses less than a quarter, and settles.
const PROBE_MAX: f64 = 1.25;
/// Change of the estimate per window while the borrowers use less than they were granted.
const DECAY: f64 = 0.97;
/// The share of what was granted that counts as all of it: with less the uplink itself is full, and its
/// owner loses as much.
const FILLED: f64 = 0.92;
/// A share of what was granted that says that there is no more.
const UNFILLED: f64 = 0.85;
/// A search among uplinks that were never seen full begins here, bit/s.
const SEARCH_FROM: f64 = 500e3;
/// Growth per window of the first search, and of those after one that met the end.
const SEARCH_FAST: f64 = 2.0;
const SEARCH_SLOW: f64 = 1.25;
/// An owner that has less than this share of what it had before, on an uplink that may be full, is squeezed.
const SQUEEZED: f64 = 0.9;
/// An uplink that carries less than this share of the most that was seen is not full.
const FULL: f64 = 0.9;
/// How long the estimate binds after it was seen to be all: doubled each time up to the most.
const HOLD_MIN: Duration = Duration::from_secs(8);
const HOLD_MAX: Duration = Duration::from_secs(60);

/// The sum of a window has grown when it exceeds what was seen before by this factor.
const GROWN: f64 = 1.02;
/// So many windows without growth make a trial.
const FLAT_WINDOWS: u32 = 3;
/// A trial leaves the borrowers this share of what they use, for so long.
const TRIAL_SHARE: f64 = 0.6;
const TRIAL_FOR: Duration = Duration::from_millis(600);
/// It is not worth it for less, bit/s.
const TRIAL_MIN: f64 = 2.0 * TRICKLE as f64;
/// The uplink was full if the owner has taken this share of what was left to it.
const TAKEN: f64 = 0.3;
/// Time between trials: doubled by each that shows that the owner wants no more, up to the most.
const TRIAL_EVERY_MIN: Duration = Duration::from_secs(4);
const TRIAL_EVERY_MAX: Duration = Duration::from_secs(60);

/// Holding the borrowers back to see what the owner takes.
#[derive(Debug, Clone, Copy)]
struct Trial {
    since: Time,
    /// What both had, and the limit before.
    own: f64,
    relayed: f64,
    limit: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The owner wants nothing.
    Free,
    /// The borrowers may use this, bit/s; quiet since then.
    Shared { limit: f64, quiet_since: Option<Time> },
}

/// The grants of one direction of one uplink.
#[derive(Debug, Clone)]
pub struct Grants {
    phase: Phase,
    /// Rates that may still become the maximum: falling, the oldest first.
    peaks: VecDeque<(Time, f64)>,
    estimate: f64,
    /// What the owner had when nothing held it back, bit/s.
    own_before: f64,
    /// The uplink was seen full: the estimate binds until then.
    held_until: Option<Time>,
    hold: Duration,
    /// Windows since the sum has last grown.
    flat: u32,
    trial: Option<Trial>,
    /// No trial before this time.
    trial_at: Time,
    trial_every: Duration,
    last: Option<Time>,
}

impl Default for Grants {
    fn default() -> Self {
        Self {
            phase: Phase::Free,
            peaks: VecDeque::new(),
            estimate: 0.0,
            own_before: 0.0,
            held_until: None,
            hold: HOLD_MIN,
            flat: 0,
            trial: None,
            trial_at: Time::ZERO,
            trial_every: TRIAL_EVERY_MIN,
            last: None,
        }
    }
}

impl Grants {
    /// What the uplink was seen to carry, bit/s; what it can carry while [`is_held`](Self::is_held).
    pub fn estimate(&self) -> u64 {
        self.estimate as u64
    }

    /// Whether the uplink was seen full lately, so that the estimate binds.
    pub fn is_held(&self, now: Time) -> bool {
        self.held_until.is_some_and(|until| now < until)
    }

    /// Takes the wire bytes of the window that ends now: the owner's and its borrowers'. Gives what each of
    /// `leases` may use from now on, bit/s on the wire, or [`UNLIMITED`].
    pub fn handle_window(&mut self, own: u64, relayed: u64, leases: usize, now: Time) -> u64 {
        let Some(last) = self.last.replace(now) else { return UNLIMITED };
        let secs = (now - last).as_secs_f64();
        // Windows are ticks of a timer: one that is late is long, one that follows it short.
        if secs < 0.02 {
            self.last = Some(last);
            return self.share(leases);
        }
        let (own, relayed) = (own as f64 * 8.0 / secs, relayed as f64 * 8.0 / secs);
        self.note(own + relayed, now);
        self.learn(relayed);
        let wanted = own >= (DEMAND_SHARE * self.estimate).max(DEMAND_MIN);
        self.phase = match self.phase {
            Phase::Free if !wanted => Phase::Free,
            Phase::Free => {
                self.own_before = own;
                self.held_until = None;
                self.trial = None;
                let limit = self.left(own).max(SEARCH_FROM);
                Phase::Shared { limit, quiet_since: None }
            }
            Phase::Shared { limit, .. } if wanted => {
                Phase::Shared { limit: self.next_limit(own, relayed, limit, now), quiet_since: None }
            }
            Phase::Shared { limit, quiet_since } => {
                let since = quiet_since.unwrap_or(last);
                let quiet = now - since >= QUIET_FOR;
                // What the owner wants has changed in its midst: it would prove nothing.
                self.trial = None;
                let limit = if quiet { limit.max(TRICKLE as f64) * 2.0 } else { limit };
                if quiet && limit > self.estimate {
                    (self.hold, self.trial_every) = (HOLD_MIN, TRIAL_EVERY_MIN);
                    Phase::Free
                } else {
                    Phase::Shared { limit, quiet_since: Some(since) }
                }
            }
        };
        self.share(leases)
    }

    /// The limit while both want the uplink.
    fn next_limit(&mut self, own: f64, relayed: f64, limit: f64, now: Time) -> f64 {
        let full = own + relayed >= FULL * self.peak();
        // Where there is room, the owner has what it wants; where there is none, it wants what it had.
        self.own_before = if full { own.max(self.own_before) } else { own };
        let left = self.left(self.own_before);
        if !self.is_held(now) && own < SQUEEZED * self.own_before && limit > left {
            self.hold(now);
        }
        let trial = self.trial.take();
        if let Some(trial) = trial.filter(|_| !self.is_held(now)) {
            if now - trial.since < TRIAL_FOR {
                self.trial = Some(trial);
                return limit;
            }
            let freed = trial.relayed - relayed;
            if freed > 0.0 && own - trial.own >= TAKEN * freed {
                self.hold(now);
            } else {
                self.trial_at = now + self.trial_every;
                self.trial_every = (2 * self.trial_every).min(TRIAL_EVERY_MAX);
                return trial.limit.max(left);
            }
        }
        if self.is_held(now) {
            return left.min(limit.max(TRICKLE as f64) * RISE_MAX);
        }
        if full && self.flat >= FLAT_WINDOWS && limit > left && now >= self.trial_at && relayed > TRIAL_MIN {
            self.trial = Some(Trial { since: now, own, relayed, limit });
            return TRIAL_SHARE * relayed;
        }
        if relayed < FILLED * limit {
            return limit.max(left);
        }
        let growth = if self.hold == HOLD_MIN { SEARCH_FAST } else { SEARCH_SLOW };
        (limit * growth).max(left).max(SEARCH_FROM)
    }

    /// The uplink is full: its estimate binds for a while.
    fn hold(&mut self, now: Time) {
        self.held_until = Some(now + self.hold);
        self.hold = (2 * self.hold).min(HOLD_MAX);
    }

    /// What may be left beside an own demand of `own` bit/s.
    fn left(&self, own: f64) -> f64 {
        (self.estimate - 2.0 * own).max(0.0)
    }

    fn share(&self, leases: usize) -> u64 {
        match self.phase {
            Phase::Free => UNLIMITED,
            Phase::Shared { limit, .. } => ((limit / leases.max(1) as f64) as u64).max(TRICKLE),
        }
    }

    fn note(&mut self, rate: f64, now: Time) {
        self.flat = if rate > GROWN * self.peak() { 0 } else { self.flat.saturating_add(1) };
        while self.peaks.back().is_some_and(|peak| peak.1 <= rate) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, rate));
        while self.peaks.len() > 1 && now - self.peaks[0].0 > PEAK_FOR {
            self.peaks.pop_front();
        }
    }

    /// The most that was carried in any window that still counts, bit/s.
    fn peak(&self) -> f64 {
        self.peaks.front().map_or(0.0, |peak| peak.1)
    }

    fn learn(&mut self, relayed: f64) {
        let peak = self.peak();
        self.estimate = match self.phase {
            Phase::Free => peak,
            Phase::Shared { limit, .. } if relayed >= FILLED * limit => {
                let probed = (self.estimate * PROBE).min(PROBE_MAX * peak);
                self.estimate.max(probed).max(peak)
            }
            Phase::Shared { limit, .. } if relayed < UNFILLED * limit => (self.estimate * DECAY).max(peak),
            Phase::Shared { .. } => self.estimate.max(peak),
        };
    }
}
