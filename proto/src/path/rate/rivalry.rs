//! Rivals: other senders who fill the queue that the controller would keep short.
//!
//! Against a sender that stops at nothing but loss, holding a target of delay means giving way until nothing is left. So
//! where cuts do not drain the queue, twice, the path is not just longer: somebody takes what is given up. From then on
//! the rate follows a window that grows and shrinks as CUBIC's (RFC 9438), which shares a drop-tail queue about evenly
//! with the same, until the queue is short again or a trial shows that nobody else is there.
//!
//! ```text
//!          cuts drain nothing         the same again               queue near its base for long, or
//!  Alone ─────────────────────► Suspicion ───────────► Contest ──── twice a cut costs no delivery ───► Alone
//!   │▲   base moves by the queue    │ 15 s, or near the  ▲   (within 30 s after a contest once is enough)
//!   │└──────────────────────────────┘ old base for long  │
//!   └────── starves beneath a standing queue ────────────┘
//! ```
//! A trial sends less for about a round trip: alone, the standing queue keeps the bottleneck busy and as much is delivered
//! as before; beside a rival the share of what arrives at the queue falls, and with it the delivery rate.
//!
//! Rates are bit/s, times and delays seconds, windows packets.

use super::RateSample;
use crate::path::delay::DelayModel;

/// A second failure to drain so soon after the first proves a rival.
const SUSPECT_FOR: f64 = 15.0;
/// So long after a contest the first one does.
const RECENT_FOR: f64 = 30.0;
/// A queue that the controller makes shorter than this within moments, when it is its own. A shorter one is not worth a
/// contest either: two bonds on one uplink may make it.
const STANDING: f64 = 0.025;
/// A queue from which on the rate says more of others than of the path.
const TROUBLE: f64 = 0.010;
/// A path starves when such a queue stands for so long, and four feedback times,
const STARVED_FOR: f64 = 1.0;
/// and less than this share is left of the rate that it had before.
const STARVED: f64 = 0.4;
/// A contest that ends sooner because nobody is there was a mistake.
const MISTAKE: f64 = 3.0;
/// A queue this short is none.
const NEAR: f64 = 0.008;
/// A queue that stays that short for so long is nobody else's.
const NEAR_FOR: f64 = 1.0;
/// A base that is seen again so near for so long has not moved.
const SAME_BASE: f64 = 0.005;
/// The capacity that was seen is forgotten by this share per second.
const FORGET: f64 = 1.0 / 60.0;
/// The capacity is known once the queue was held at its target for so long.
const PROVEN_AFTER: f64 = 1.0;
/// Packets that are lost may have met the queue of so long ago, seconds, and two feedback times.
const CALM_AFTER: f64 = 0.1;
/// Fewer packets of calm times say little: they count as so many.
const CALM_MIN: f64 = 1000.0;
/// Packets after which the memory of chance loss counts half.
const CHANCE_PACKETS: f64 = 8000.0;
/// Loss within a round trip that is this many times what chance explains is the queue's.
const BEYOND_CHANCE: f64 = 3.0;

/// Smallest window.
const WINDOW_MIN: f64 = 4.0;
/// Multiplicative decrease and constant of the cubic function (RFC 9438, section 4).
const BETA: f64 = 0.7;
const C: f64 = 0.4;
/// Growth per round trip below the share that is expected: gentler than a slow start, whose losses would be many.
const APPROACH: f64 = 0.35;
/// Then it takes this loss to end it: a full queue drops a little of everybody's.
const APPROACH_LOSS: f64 = 0.05;
/// At the least so many packets.
const APPROACH_LOST: f64 = 3.0;
/// Share of the known capacity below which the window is always expected to grow: half of what is fair beside one.
const FLOOR: f64 = 0.25;

/// The window asks for no more than this, compared with the most that was delivered.
const RATE_MAX: f64 = 1.5;

/// Least and most that a trial sends less.
const TRIAL_DEPTH: (f64, f64) = (0.10, 0.35);
/// Shortest and longest trial.
const TRIAL_SECS: (f64, f64) = (0.050, 0.250);
/// A trial is no trial on a queue shorter than this: it would run dry.
const TRIAL_QUEUE: f64 = 0.012;
/// First time between trials; doubled by each that shows a rival.
const TRIAL_AFTER: f64 = 1.0;
/// Longest time between trials.
const TRIAL_AFTER_MAX: f64 = 4.0;
/// Of the depth of a trial so much may show in what is delivered, for nobody to be there.
const TRIAL_SHOWS: f64 = 0.25;
/// So many trials in a row have to say so.
const TRIALS: u32 = 2;
/// Delivering this share of the known capacity is worth a trial at once.
const NEARLY_ALL: f64 = 0.92;

/// What became of a contest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It goes on.
    Contest,
    /// The queue is short.
    Calm,
    /// Nobody else is there.
    Alone,
}

/// Looks for rivals, and competes with them.
#[derive(Debug, Clone, Default)]
pub(super) struct Rivalry {
    /// Base before it was moved, and when it was.
    suspicion: Option<(f64, f64)>,
    /// When the queue was last longer than nothing above the base before it was moved.
    far_at: f64,
    /// When the queue was last no trouble, and the rate then.
    short: (f64, f64),
    recent_until: f64,
    /// Until then the path is taken to be longer, because there was a mistake.
    trusted_until: f64,
    contest_at: f64,
    /// The most that was delivered, slowly forgotten.
    best: f64,
    /// How long the queue was held at its target.
    held: f64,
    last: f64,
    /// Packets of calm times, and how many of them were lost.
    calm: (f64, f64),
    /// Since when the queue has been no trouble.
    calm_since: f64,
    /// Packets since the last sample that arrived, and that did not.
    fates: (f64, f64),
    contest: Option<Contest>,
}

impl Rivalry {
    /// Counts what a report has resolved.
    pub(super) fn on_fate(&mut self, acked: u64, lost: u64) {
        self.fates.0 += acked as f64;
        self.fates.1 += lost as f64;
    }

    /// Whether the window rules.
    pub(super) fn is_contest(&self) -> bool {
        self.contest.is_some()
    }

    /// Whether there may be a rival.
    pub(super) fn is_suspicious(&self) -> bool {
        self.suspicion.is_some()
    }

    /// Bytes that may be in flight while the window rules.
    pub(super) fn in_flight_max(&self, packet: f64) -> Option<f64> {
        self.contest.as_ref().map(|contest| 1.1 * contest.window * packet)
    }

    /// The longest queue of the contest, if there is one.
    pub(super) fn queue_max(&self) -> Option<f64> {
        self.contest.as_ref().map(|contest| contest.queue_max)
    }

    /// Another path, or the same after a long time: nothing is known of it.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// A train has shown that the path can carry about `rate`.
    pub(super) fn on_hint(&mut self, rate: f64) {
        self.best = self.best.max(rate);
        self.held = self.held.max(PROVEN_AFTER + FORGET);
    }

    /// The path is being felt out at `rate`.
    pub(super) fn on_startup(&mut self, rate: f64, t: f64) {
        self.short = (t, rate);
        self.last = t;
    }

    /// Takes a sample of a path on which the delay rules and `rate` is asked for. `target` is zero while draining. A path
    /// that starves proves a rival as well as two failures to drain do: then the window rules from now on.
    pub(super) fn on_alone(
        &mut self,
        (s, rate): (RateSample, f64),
        target: f64,
        delay: &mut DelayModel,
        packet_bits: f64,
        t: f64,
    ) {
        if self.contest.is_some() {
            return;
        }
        let dt = (t - self.last).clamp(0.0, 0.1);
        let q = delay.queue();
        self.note_best(s.rate, dt);
        let fates = std::mem::take(&mut self.fates);
        if q >= target {
            self.calm_since = t;
        } else if t - self.calm_since > 2.0 * delay.feedback() + CALM_AFTER {
            self.calm = (self.calm.0 + fates.0 + fates.1, self.calm.1 + fates.1);
            if self.calm.0 > CHANCE_PACKETS {
                self.calm = (self.calm.0 / 2.0, self.calm.1 / 2.0);
            }
        }
        let fed = !s.app_limited && self.suspicion.is_none();
        if fed && q > target / 2.0 && q < 2.0 * target {
            self.held += dt;
        }
        self.last = t;
        let mut above = q;
        if let Some((base, at)) = self.suspicion {
            above = delay.base() + q - base;
            if above > SAME_BASE {
                self.far_at = t;
            }
            if t - at > SUSPECT_FOR || t - self.far_at > NEAR_FOR / 2.0 {
                self.suspicion = None;
            }
        }
        if above < TROUBLE {
            self.short = (t, rate);
        } else if above < STANDING {
            // Whoever gives way to a rival does so below that length as well.
            self.short.0 = t;
        }
        if t - self.short.0 > STARVED_FOR + 4.0 * delay.feedback() && rate < STARVED * self.short.1 {
            // What the path could do before may be past: no more than what it does now is taken for granted.
            self.held = 0.0;
            self.suspicion.get_or_insert((delay.base(), t));
            self.on_stuck((s.rate, rate), delay, packet_bits, t);
        }
    }

    fn note_best(&mut self, c: f64, dt: f64) {
        self.best = (self.best * (1.0 - dt * FORGET)).max(c);
    }

    /// Cuts did not drain the queue. True when a rival is to blame, and the window rules from now on; false when the
    /// path may have become longer. `rates`: what is delivered, and what was asked for.
    pub(super) fn on_stuck(
        &mut self,
        rates: (f64, f64),
        delay: &mut DelayModel,
        packet_bits: f64,
        t: f64,
    ) -> bool {
        if t < self.trusted_until {
            return false;
        }
        let base = delay.base();
        let old = self.suspicion.map_or(base, |(old, _)| old);
        if base + delay.queue() - old < STANDING {
            return false;
        }
        let Some((old, _)) = self.suspicion.take().or((t < self.recent_until).then_some((base, t))) else {
            self.suspicion = Some((base, t));
            self.far_at = t;
            return false;
        };
        delay.hold(old.min(base));
        let known = (self.held > PROVEN_AFTER).then_some(self.best);
        self.contest = Some(Contest::new(rates, known, delay.feedback(), packet_bits, t));
        self.contest_at = t;
        self.fates = (0.0, 0.0);
        true
    }

    /// Takes a sample while the window rules: the rate to send at, and whether it still does.
    pub(super) fn on_contest(
        &mut self,
        s: RateSample,
        target: f64,
        delay: &DelayModel,
        packet_bits: f64,
        t: f64,
    ) -> (f64, Outcome) {
        let dt = (t - self.last).clamp(0.0, 0.1);
        self.last = t;
        self.note_best(s.rate, dt);
        let chance = self.calm.1 / self.calm.0.max(CALM_MIN);
        let fates = std::mem::take(&mut self.fates);
        let Some(contest) = &mut self.contest else { return (s.rate, Outcome::Alone) };
        let (best, queue) = (self.best, delay.queue());
        let outcome =
            contest.on_sample(Seen { s, queue, target, fates, chance, best, dt, t }, delay, packet_bits);
        // What is delivered is not more than the capacity; a window that was not used may ask for any rate.
        let rate = contest.rate(delay.feedback(), packet_bits).min(RATE_MAX * best);
        if outcome == Outcome::Contest {
            return (rate, outcome);
        }
        self.contest = None;
        let mistaken = outcome == Outcome::Alone && t - self.contest_at < MISTAKE;
        if mistaken {
            (self.recent_until, self.trusted_until) = (t, t + SUSPECT_FOR);
        } else {
            self.recent_until = t + RECENT_FOR;
        }
        let rate = if outcome == Outcome::Alone { 0.9 * s.rate } else { rate.min(best) };
        self.short = (t, rate);
        (rate, outcome)
    }
}

/// What a contest takes from one sample.
#[derive(Clone, Copy)]
struct Seen {
    s: RateSample,
    queue: f64,
    target: f64,
    fates: (f64, f64),
    chance: f64,
    best: f64,
    dt: f64,
    t: f64,
}

/// Sending less for a while to see who else is there.
#[derive(Debug, Clone, Copy)]
struct Trial {
    rate: f64,
    depth: f64,
    until: f64,
    /// What is delivered from then on, and until then, answers to it.
    judged: (f64, f64),
    delivered_before: f64,
    sum: f64,
    count: f64,
}

/// A window like CUBIC's.
#[derive(Debug, Clone)]
struct Contest {
    window: f64,
    /// Below it the window grows fast.
    threshold: f64,
    /// Rate below which it does as well.
    floor: f64,
    /// Window before the last cut, and time until it is reached again.
    w_max: f64,
    k: f64,
    /// Window of a Reno sender.
    w_est: f64,
    /// Time of growth since the last cut.
    grown_for: f64,
    cut_at: f64,
    /// Packets of this round trip and how many of them were lost.
    round: (f64, f64),
    round_at: f64,
    delivered: f64,
    near_since: f64,
    queue_max: f64,
    trial: Option<Trial>,
    trial_at: f64,
    trial_after: f64,
    alone: u32,
}

impl Contest {
    /// `c` is delivered now, `rate` was asked for, `known` is the capacity.
    fn new((c, rate): (f64, f64), known: Option<f64>, fb: f64, packet_bits: f64, t: f64) -> Self {
        let half = known.map(|best| best / 2.0);
        let from = half.unwrap_or(rate).max(c);
        let window = (from * fb / packet_bits).max(WINDOW_MIN);
        Self {
            window,
            floor: known.map_or(0.0, |best| FLOOR * best),
            threshold: half.map_or(f64::INFINITY, |half| half * fb / packet_bits),
            w_max: window,
            k: 0.0,
            w_est: window,
            grown_for: 0.0,
            cut_at: t,
            round: (0.0, 0.0),
            round_at: t,
            delivered: c,
            near_since: t,
            queue_max: 0.0,
            trial: None,
            trial_at: t + TRIAL_AFTER / 2.0,
            trial_after: TRIAL_AFTER,
            alone: 0,
        }
    }

    fn rate(&self, fb: f64, packet_bits: f64) -> f64 {
        let rate = self.window * packet_bits / fb.max(1e-3);
        self.trial.map_or(rate, |trial| rate.min(trial.rate))
    }

    fn on_sample(&mut self, seen: Seen, delay: &DelayModel, packet_bits: f64) -> Outcome {
        let Seen { s, queue, target, fates, dt, t, .. } = seen;
        let fb = delay.feedback();
        let used = s.rate > 0.7 * self.rate(fb, packet_bits) && !s.app_limited;
        self.delivered += (s.rate - self.delivered) * (dt / fb.max(0.1)).min(1.0);
        self.queue_max = self.queue_max.max(queue);
        if queue > (2.0 * target).max(NEAR) {
            self.near_since = t;
        } else if t - self.near_since > NEAR_FOR.max(4.0 * fb) {
            return Outcome::Calm;
        }
        self.round = (self.round.0 + fates.0 + fates.1, self.round.1 + fates.1);
        let (packets, lost) = self.round;
        let approaching = self.window < self.threshold;
        let heeded = if approaching { APPROACH_LOST.max(APPROACH_LOSS * packets) } else { 1.0 };
        let by_queue = lost >= heeded && lost > BEYOND_CHANCE * seen.chance * packets;
        // What is lost within a feedback time was sent before the cut.
        if by_queue && t - self.cut_at > 1.5 * fb + 0.020 {
            self.cut(self.floor * fb / packet_bits, t);
            self.trial = None;
            self.trial_at = self.trial_at.max(t + 3.0 * fb);
        }
        if t - self.round_at > fb {
            self.round = (0.0, 0.0);
            self.round_at = t;
        }
        if self.trial.is_some() {
            return self.judge(s.rate, t);
        }
        let early =
            self.delivered > NEARLY_ALL * seen.best && t > self.trial_at - self.trial_after + TRIAL_AFTER;
        let settled = t - self.cut_at > 2.0 * fb;
        if (t > self.trial_at || early || self.alone > 0) && settled && used && queue > TRIAL_QUEUE {
            self.begin_trial(queue, delay, t);
        } else if used {
            self.grow(s.rate * dt / packet_bits, dt, fb);
        }
        Outcome::Contest
    }

    fn begin_trial(&mut self, queue: f64, delay: &DelayModel, t: f64) {
        let fb = delay.feedback();
        // The delivery rate is a mean over this much.
        let span = delay.feedback_min().clamp(0.025, 0.100);
        let length = fb.clamp(TRIAL_SECS.0, TRIAL_SECS.1).max(span + 0.040);
        let depth = (queue / 2.0 / length).clamp(TRIAL_DEPTH.0, TRIAL_DEPTH.1);
        self.trial = Some(Trial {
            rate: self.delivered * (1.0 - depth),
            depth,
            until: t + length,
            judged: (t + fb + span, t + fb + length),
            delivered_before: self.delivered,
            sum: 0.0,
            count: 0.0,
        });
    }

    fn judge(&mut self, c: f64, t: f64) -> Outcome {
        let Some(trial) = &mut self.trial else { return Outcome::Contest };
        if t >= trial.until {
            trial.rate = f64::INFINITY;
        }
        if t < trial.judged.1 {
            if t >= trial.judged.0 {
                trial.sum += c;
                trial.count += 1.0;
            }
            return Outcome::Contest;
        }
        let kept = if trial.count > 0.0 { trial.sum / trial.count / trial.delivered_before } else { 0.0 };
        let alone = kept > 1.0 - TRIAL_SHOWS * trial.depth;
        self.trial = None;
        if alone {
            self.alone += 1;
        } else {
            self.alone = 0;
            self.trial_after = (2.0 * self.trial_after).min(TRIAL_AFTER_MAX);
        }
        self.trial_at = t + self.trial_after;
        if self.alone >= TRIALS { Outcome::Alone } else { Outcome::Contest }
    }

    /// Once per round trip, when the queue overflowed. Below a window of `floor` it comes back fast.
    fn cut(&mut self, floor: f64, t: f64) {
        // Fast convergence: leave room for whoever took the rest.
        let window = self.window;
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.window = (window * BETA).max(WINDOW_MIN);
        self.threshold = self.window.max(floor);
        self.w_est = self.window;
        self.k = ((self.w_max - self.window).max(0.0) / C).cbrt();
        self.grown_for = 0.0;
        self.cut_at = t;
        self.round = (0.0, 0.0);
    }

    /// `acked` packets were delivered within `dt`, and the window was the limit.
    fn grow(&mut self, acked: f64, dt: f64, rtt: f64) {
        if self.window < self.threshold {
            self.window = (self.window + APPROACH * acked).min(self.threshold);
            self.w_max = self.window;
            return;
        }
        self.grown_for += dt;
        let target = C * (self.grown_for + rtt - self.k).powi(3) + self.w_max;
        // Until the old window is reached, at the rate that gives Reno's share.
        let alpha = if self.w_est < self.w_max { 3.0 * (1.0 - BETA) / (1.0 + BETA) } else { 1.0 };
        self.w_est += alpha * acked / self.window;
        let target = target.clamp(self.window, 1.5 * self.window);
        self.window = (self.window + (target - self.window) / self.window * acked).max(self.w_est);
    }
}

#[cfg(test)]
mod tests;
