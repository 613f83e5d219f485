//! Rate control of one path and direction: how fast to send, from reports alone.
//!
//! The controller holds a standing queue of a few milliseconds at the bottleneck. That queue is
//! its own probe: while it stands, what is delivered *is* the capacity, so no probing above it and
//! no margin below it is needed. Two rules keep it from talking itself down: without a queue the
//! rate is never lowered (a starved CPU or an idle application also lower the delivery rate), and
//! a span in which the path ran dry can only raise it.
//!
//! ```text
//!  Startup: rate = 2c ── queue > max(2 target, 8 ms) ──► Steady: rate = c (1 + (target - q) / (2 fb + 15 ms))
//!                                                           │ cuts drain nothing, twice        ▲
//!                                                           ▼                                  │ short queue, or alone
//!                                                         Contest: rate = window / fb ─────────┘
//! ```
//! `c` is the delivery rate, `q` the standing queue, `fb` the feedback time. Rates are bit/s.

mod policer;
mod rivalry;

use std::collections::VecDeque;

use self::policer::{Advice, Policer};
use self::rivalry::{Outcome, Rivalry};

use crate::path::delay::DelayModel;
use crate::time::Time;

/// Rate before anything is known, bit/s.
pub const COLD_RATE: f64 = 4e6;
/// Of what a packet train says this share is believed.
const HINT_SHARE: f64 = 0.75;
/// Startup sends this much more than is delivered where a train has told about how much that can be: twice as much
/// where nobody has.
const HINTED_GROWTH: f64 = 1.5;
/// Packets in flight before anything is known.
pub const COLD_PACKETS: f64 = 16.0;
/// Never send slower than this on a path that is up, bit/s: heartbeats must pass.
const RATE_MIN: f64 = 64e3;
/// Standing queue wanted at the least, seconds.
const TARGET_MIN: f64 = 0.004;
/// Standing queue wanted at the most, seconds.
const TARGET_MAX: f64 = 0.060;
/// Least growth per feedback time while there is no queue.
const RAMP_MIN: f64 = 0.04;
/// Most growth per feedback time while there is no queue.
const RAMP_MAX: f64 = 0.40;
/// Growth to start with when the rate has fallen far below what the path delivered lately.
const RAMP_REGAIN: f64 = 0.25;
/// The rate is set below the delivery rate by no more than this share.
const CUT_MAX: f64 = 0.35;
/// Delivering less than this share of the rate, or than this many bit/s, is heartbeats and the like.
const UNUSED: f64 = 0.02;
/// See [`UNUSED`].
const UNUSED_RATE: f64 = 100e3;
/// How often the standing queue is let drain, seconds, so that the delay base stays honest.
const DRAIN_EVERY: f64 = 6.0;
/// A drain lowers the rate by at least this share: a base that was learned on top of a queue lets
/// the queue look small.
const DRAIN_DEPTH: f64 = 0.08;
/// A base sample this near (seconds) makes a drain unnecessary.
const DRAIN_NEAR: f64 = 0.001;

/// Phase of the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Doubling until a queue shows.
    Startup,
    /// Holding the standing queue at its target.
    Steady,
    /// Others fill the queue: a window takes its share of it.
    Contest,
}

/// A delivery-rate sample: bytes sent up to the highest packet seen over the span of its arrivals.
/// Lost packets count as delivered, because random loss happens behind the bottleneck.
#[derive(Debug, Clone, Copy)]
pub struct RateSample {
    /// Delivery rate, bit/s.
    pub rate: f64,
    /// Whether the path ran dry with nothing to send somewhere in the span.
    pub app_limited: bool,
}

/// The rate half of a path's model.
#[derive(Debug, Clone)]
pub struct RateControl {
    /// Doubling until a queue shows; a contest interrupts that.
    startup: bool,
    rate: f64,
    cap: Option<f64>,
    delivered: VecDeque<(f64, f64)>,
    ramp: f64,
    last_ramp: f64,
    drain_until: f64,
    last_near_base: f64,
    cut_drained: f64,
    cut_from: f64,
    cut_since: Option<f64>,
    rate_before_cut: f64,
    last_update: f64,
    measured: bool,
    hinted: bool,
    exact: bool,
    /// Until then a queue may be that of the packets which told the hint.
    hint_until: f64,
    policer: Policer,
    rivalry: Rivalry,
}

impl RateControl {
    /// A cold controller. `cap` is the ceiling in bit/s, if any.
    pub fn new(cap: Option<f64>, now: Time) -> Self {
        let t = now.as_secs_f64();
        Self {
            startup: true,
            rate: usable(cap).map_or(COLD_RATE, |c| c.min(COLD_RATE)),
            cap: usable(cap),
            delivered: VecDeque::new(),
            ramp: RAMP_MIN,
            last_ramp: t,
            drain_until: f64::NEG_INFINITY,
            last_near_base: t,
            cut_drained: 0.0,
            cut_from: 0.0,
            cut_since: None,
            rate_before_cut: 0.0,
            last_update: t,
            measured: false,
            hinted: false,
            exact: false,
            hint_until: f64::NEG_INFINITY,
            policer: Policer::new(t),
            rivalry: Rivalry::default(),
        }
    }

    /// Current sending rate, bit/s on the wire.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// What a few packets have shown of the path before anybody used it, bit/s: startup begins there, a little below.
    /// Where that is not `exact` it can carry at least so much. The queue that they have made is gone after `gone` seconds.
    /// Nothing happens once startup is over.
    pub fn hint(&mut self, rate: f64, exact: bool, gone: f64, now: Time) {
        if self.phase() != Phase::Startup {
            return;
        }
        let t = now.as_secs_f64();
        let rate = (HINT_SHARE * rate).max(RATE_MIN).min(self.cap.unwrap_or(f64::INFINITY));
        self.rate = if exact { rate } else { self.rate.max(rate) };
        self.note_delivered(t, rate);
        self.rivalry.on_hint(rate);
        self.hinted = true;
        self.exact = exact;
        self.hint_until = t + gone;
    }

    /// Whether the rate follows from what the path has shown, although it was never full.
    pub fn is_hinted(&self) -> bool {
        self.hinted
    }

    /// Whether the path can hardly carry more than that.
    pub fn is_hint_exact(&self) -> bool {
        self.hinted && self.exact
    }

    /// Changes the ceiling, bit/s; `None` lifts it. A lower one holds at once. Under a higher one the rate
    /// grows by evidence as always, but briskly: what is above was not the path's limit.
    pub fn set_cap(&mut self, cap: Option<f64>) {
        let cap = usable(cap);
        if cap.is_none_or(|new| self.cap.is_some_and(|old| new > old)) && self.cap.is_some() {
            self.ramp = self.ramp.max(RAMP_REGAIN);
        }
        self.cap = cap;
        self.rate = self.rate.min(cap.unwrap_or(f64::INFINITY));
    }

    /// Current phase.
    pub fn phase(&self) -> Phase {
        if self.rivalry.is_contest() {
            Phase::Contest
        } else if self.startup {
            Phase::Startup
        } else {
            Phase::Steady
        }
    }

    /// Whether the rate still grows fast, or the round trip does because others fill the queue, so that the ingress queue
    /// must be lenient.
    pub fn is_growing(&self) -> bool {
        let capped = self.cap.is_some_and(|cap| self.rate >= cap);
        let growing = self.phase() == Phase::Startup || self.ramp > 0.10;
        !capped && (growing || self.rivalry.is_suspicious() || self.rivalry.is_contest())
    }

    /// Most that was delivered in any sample of the last two seconds, bit/s; the rate before that.
    pub fn capacity(&self) -> f64 {
        self.delivered.front().map_or(self.rate, |d| d.1)
    }

    /// Keeps the samples that may still become the maximum: falling rates, the oldest first.
    fn note_delivered(&mut self, t: f64, c: f64) {
        while self.delivered.back().is_some_and(|d| d.1 <= c) {
            self.delivered.pop_back();
        }
        self.delivered.push_back((t, c));
        while self.delivered.len() > 1 && t - self.delivered[0].0 > 2.0 {
            self.delivered.pop_front();
        }
    }

    /// Whether a delivery rate was ever measured.
    pub fn is_measured(&self) -> bool {
        self.measured
    }

    /// The standing queue to hold, seconds; zero while draining. `packet_bits` is one full packet.
    pub fn target(&self, delay: &DelayModel, packet_bits: f64, now: Time) -> f64 {
        if now.as_secs_f64() < self.drain_until {
            return 0.0;
        }
        TARGET_MIN
            .max(2.0 * packet_bits / self.rate)
            .max(4.0 * delay.deviation().min(0.008))
            .max(0.06 * delay.feedback_min())
            .min(TARGET_MAX)
    }

    /// Bytes that may be in flight.
    pub fn in_flight_max(&self, delay: &DelayModel, packet_bits: f64, now: Time) -> f64 {
        let packet = packet_bits / 8.0;
        if !self.measured {
            return COLD_PACKETS * packet;
        }
        if let Some(bytes) = self.rivalry.in_flight_max(packet) {
            return bytes + 4.0 * packet;
        }
        let fb = delay.feedback_min();
        let span = if self.startup {
            // More than what is delivered until the next report can tell, however near the path is: else the delivery
            // rate follows from this limit, and the limit from the delivery rate.
            (2.0 * fb + 0.010).max(1.2 * delay.report_spacing())
        } else {
            1.25 * fb + 3.0 * self.target(delay, packet_bits, now).max(TARGET_MIN) + 0.015
        };
        self.capacity().max(self.rate / 2.0) * span / 8.0 + 4.0 * packet
    }

    /// Counts what a report has resolved: packets and wire bytes that arrived, packets that did not, and the runs of
    /// neighbours of which those consist.
    pub fn on_fate(&mut self, acked: u64, acked_bytes: u64, lost: u64, runs: u64) {
        self.policer.on_fate(acked, acked_bytes, lost, runs);
        self.rivalry.on_fate(acked, lost);
    }

    /// The losses of late had another cause than the rate, such as datagrams too long for the path.
    pub fn pardon_losses(&mut self, now: Time) {
        if let Some(before) = self.policer.pardon(now.as_secs_f64()) {
            self.rate = self.rate.max(before).min(self.cap.unwrap_or(f64::INFINITY));
        }
    }

    /// Whether the path shares its bottleneck with others who fill the queue.
    pub fn is_contest(&self) -> bool {
        self.rivalry.is_contest()
    }

    /// The longest queue that others have made and that has to be borne, seconds; zero while there is none.
    pub fn borne_queue(&self) -> f64 {
        self.rivalry.queue_max().unwrap_or(0.0)
    }

    /// Takes the sample of one report; `delay` has already taken its own half. The delay base is moved when cuts have
    /// proven it wrong, and held while others fill the queue.
    pub fn on_sample(&mut self, sample: RateSample, delay: &mut DelayModel, packet_bits: f64, now: Time) {
        let t = now.as_secs_f64();
        if !self.is_contest() {
            delay.release(now);
        }
        let c = sample.rate;
        self.measured = true;
        self.note_delivered(t, c);
        if delay.instant() < DRAIN_NEAR {
            self.last_near_base = t;
        } else if self.phase() == Phase::Steady
            && t - self.last_near_base.max(self.drain_until) > DRAIN_EVERY
            && !sample.app_limited
        {
            self.drain_until = t + 1.5 * delay.feedback() + 0.030;
        }
        let q = delay.queue();
        let target = self.target(delay, packet_bits, now);
        let queued = q > (2.0 * target).max(0.008);
        match self.phase() {
            Phase::Startup => {
                self.rivalry.on_startup(self.rate, t);
                let deaf = t < self.hint_until;
                self.startup(c, q, target, delay.instant(), sample.app_limited, deaf);
                self.heed_loss(sample, queued, delay.feedback(), t);
            }
            Phase::Steady => {
                if let Some(q) = self.steady(sample, q, target, delay, t) {
                    self.on_stuck(c, q, delay, packet_bits, t);
                }
                self.rivalry.on_alone((sample, self.rate), target, delay, packet_bits, t);
                // Once the window rules, losses are its own.
                if !self.is_contest() {
                    self.heed_loss(sample, queued, delay.feedback(), t);
                }
            }
            Phase::Contest => self.contest(sample, target, delay, packet_bits, t),
        }
        self.rate = self.rate.max(RATE_MIN);
        if let Some(cap) = self.cap {
            self.rate = self.rate.min(cap);
        }
        self.last_update = t;
    }

    /// Cuts did not drain the queue: the path has become longer, or somebody else fills it.
    fn on_stuck(&mut self, c: f64, q: f64, delay: &mut DelayModel, packet_bits: f64, t: f64) {
        if !self.rivalry.on_stuck((c, self.rate), delay, packet_bits, t) {
            delay.rebase(q);
        }
    }

    fn contest(&mut self, s: RateSample, target: f64, delay: &DelayModel, packet_bits: f64, t: f64) {
        let (rate, outcome) = self.rivalry.on_contest(s, target, delay, packet_bits, t);
        self.rate = self.policer.ceiling().map_or(rate, |ceiling| rate.min(ceiling));
        if outcome != Outcome::Contest {
            self.startup = false;
            self.ramp = RAMP_MIN;
            self.policer.skip(t);
            self.end_cut();
        }
    }

    /// Keeps below a limit that shows as loss without a queue.
    fn heed_loss(&mut self, s: RateSample, queued: bool, feedback: f64, t: f64) {
        match self.policer.on_sample((s.rate, s.app_limited, queued), self.rate, feedback, t) {
            Advice::None => {}
            Advice::Cut(rate) => {
                self.rate = rate;
                self.startup = false;
                self.ramp = RAMP_MIN;
                // What was counted as delivered has partly been lost.
                self.delivered.clear();
            }
            Advice::Restore(rate) => self.rate = self.rate.max(rate),
        }
        if let Some(ceiling) = self.policer.ceiling() {
            self.rate = self.rate.min(ceiling);
            while self.delivered.front().is_some_and(|d| d.1 > ceiling) {
                self.delivered.pop_front();
            }
        }
    }

    fn startup(&mut self, c: f64, q: f64, target: f64, instant: f64, app_limited: bool, deaf: bool) {
        let queued = q > (2.0 * target).max(0.008) || instant > (4.0 * target).max(0.016);
        if queued && !deaf {
            // An app-limited span says less than the path can do, yet a queue has formed: the
            // best delivered so far is the nearest truth, or half of the guess where next to nothing was sent.
            self.rate = if app_limited { self.capacity().max(c).max(self.rate / 2.0) } else { c };
            self.startup = false;
            self.ramp = RAMP_MIN;
        } else if !deaf {
            let growth = if self.is_hint_exact() { HINTED_GROWTH } else { 2.0 };
            self.rate = self.rate.max(growth * c);
        }
    }

    fn steady(&mut self, s: RateSample, q: f64, target: f64, delay: &DelayModel, t: f64) -> Option<f64> {
        let c = s.rate;
        let fb = delay.feedback();
        if s.app_limited {
            if q > 2.0 * target + 0.010 {
                // Who sends next to nothing has not made the queue.
                if c > (UNUSED * self.rate).max(UNUSED_RATE) {
                    self.rate = (self.rate * 0.9).max(c.min(self.rate));
                }
                // A path that is hardly fed must drain, unless it is not ours to drain.
                let below = if c < 0.5 * self.capacity() { CUT_MAX } else { 0.1 };
                return self.account_cut(below, q, delay, t);
            }
            self.rate = self.rate.max(c);
            return None;
        }
        if q > target / 2.0 {
            let mut gain = ((target - q) / (2.0 * fb + 0.015)).clamp(-CUT_MAX, 0.10);
            if target == 0.0 {
                gain = gain.min(-DRAIN_DEPTH);
            } else if q > 2.0 * target + 0.010 && self.rivalry.is_suspicious() {
                // The sooner it is known who fills the queue, the less is given away.
                gain = -CUT_MAX;
            }
            self.rate = c * (1.0 + gain);
            self.ramp = RAMP_MIN;
            if gain < 0.0 && target > 0.0 {
                return self.account_cut(-gain, q, delay, t);
            }
            self.end_cut();
            return None;
        }
        self.end_cut();
        let peak = self.capacity();
        self.rate = self.rate.max(c);
        if t - self.last_ramp >= fb && c > 0.8 * self.rate {
            if self.rate < 0.6 * peak && self.ramp < RAMP_REGAIN {
                self.ramp = RAMP_REGAIN;
            }
            self.rate *= 1.0 + self.ramp;
            self.ramp = (self.ramp * 1.7).min(RAMP_MAX);
            self.last_ramp = t;
        }
        None
    }

    /// Adds up how much queue sending `below` (a fraction) under the delivery rate should have drained. If the queue is still there, it was
    /// never a queue: the path has become longer.
    fn account_cut(&mut self, below: f64, q: f64, delay: &DelayModel, t: f64) -> Option<f64> {
        if self.cut_since.is_none() {
            self.rate_before_cut = self.capacity();
        }
        let cut_since = *self.cut_since.get_or_insert(t);
        if t - cut_since < 1.5 * delay.feedback() {
            // What is measured now was sent before the cut.
            self.cut_from = q;
            return None;
        }
        self.cut_drained += below * (t - self.last_update).min(delay.feedback());
        let (enough, left) = if self.rivalry.is_suspicious() {
            (self.cut_from + 0.010, 0.5)
        } else {
            (2.0 * self.cut_from + 0.030, 0.8)
        };
        if self.cut_drained > enough {
            let stuck = q > left * self.cut_from;
            self.end_cut();
            if stuck {
                // The cuts were a mistake; a little less than before, because the path is new.
                self.rate = self.rate.max(0.7 * self.rate_before_cut);
            }
            return stuck.then_some(q);
        }
        None
    }

    fn end_cut(&mut self) {
        self.cut_drained = 0.0;
        self.cut_since = None;
    }

    /// The path comes back after a stall shorter than its memory: carry on, a little slower.
    pub fn resume(&mut self) {
        self.rate = (self.rate * 0.7).max(RATE_MIN);
    }

    /// The path comes back after a real outage: half of what it could do, and feel upwards. What was delivered last says
    /// little when little was asked for; a path that was hardly used begins as a cold one does.
    pub fn restart(&mut self, now: Time) {
        let known = if self.startup { self.rate.min(COLD_RATE) } else { RATE_MIN };
        let before = self.capacity().max(self.rate);
        self.rate = (before / 2.0).max(known).min(self.cap.unwrap_or(f64::INFINITY));
        self.startup = true;
        self.hinted = false;
        self.ramp = RAMP_MIN;
        self.delivered.clear();
        self.rivalry.reset();
        self.last_near_base = now.as_secs_f64();
    }
}

/// A ceiling under which heartbeats still pass.
fn usable(cap: Option<f64>) -> Option<f64> {
    cap.map(|cap| cap.max(RATE_MIN))
}

#[cfg(test)]
mod tests;
