//! What a lender leaves to its borrowers of one direction of one uplink.
//!
//! The bottleneck is at the ISP and downloads come from outside: no queue on the host can put the lender
//! first. So its borrowers are told to send less as soon as it wants the uplink itself:
//!
//! ```text
//!  Free ── own > 3 % of the estimate ──► Shared: estimate - 2 x own, never under the trickle
//!   ▲                                      │ own < 3 % for 400 ms
//!   └─── limit beyond the estimate ◄──── twice as much every window
//! ```
//! Leaving room for twice the own demand lets it grow without a fight. The estimate is the most that the
//! uplink carried in any window of the last ten seconds. While the borrowers are held back it says too
//! little; it is then kept, raised slowly while they use all that they were granted, and lowered while they
//! do not, but never below what is seen.

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
/// Most growth of the limit per window while both share.
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
    last: Option<Time>,
}

impl Default for Grants {
    fn default() -> Self {
        Self { phase: Phase::Free, peaks: VecDeque::new(), estimate: 0.0, last: None }
    }
}

impl Grants {
    /// What the uplink is thought to carry, bit/s.
    pub fn estimate(&self) -> u64 {
        self.estimate as u64
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
            Phase::Free => Phase::Shared { limit: self.left(own), quiet_since: None },
            Phase::Shared { limit, .. } if wanted => {
                let rise = limit.max(TRICKLE as f64) * RISE_MAX;
                Phase::Shared { limit: self.left(own).min(rise), quiet_since: None }
            }
            Phase::Shared { limit, quiet_since } => {
                let since = quiet_since.unwrap_or(last);
                let quiet = now - since >= QUIET_FOR;
                let limit = if quiet { limit.max(TRICKLE as f64) * 2.0 } else { limit };
                if limit > self.estimate {
                    Phase::Free
                } else {
                    Phase::Shared { limit, quiet_since: Some(since) }
                }
            }
        };
        self.share(leases)
    }

    /// What may be left beside an own demand of `own` bit/s.
    fn left(&self, own: f64) -> f64 {
        (self.estimate - 2.0 * own).max(0.0)
    }

    fn share(&self, leases: usize) -> u64 {
        match self.phase {
            Phase::Free => UNLIMITED,
            Phase::Shared { limit, .. } => {
                ((limit.min(self.estimate) / leases.max(1) as f64) as u64).max(TRICKLE)
            }
        }
    }

    fn note(&mut self, rate: f64, now: Time) {
        while self.peaks.back().is_some_and(|peak| peak.1 <= rate) {
            self.peaks.pop_back();
        }
        self.peaks.push_back((now, rate));
        while self.peaks.len() > 1 && now - self.peaks[0].0 > PEAK_FOR {
            self.peaks.pop_front();
        }
    }

    fn learn(&mut self, relayed: f64) {
        let peak = self.peaks.front().map_or(0.0, |peak| peak.1);
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
