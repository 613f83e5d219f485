//! One-way delay of a path: its base, the queue standing above it, and how much it varies.
//!
//! Input: what the peer's reports say of arrivals, in the receiver's clock minus ours. Only
//! differences carry meaning, between moments of one path and between paths of one session, so
//! the clocks need no synchronisation. Times are seconds in `f64`.

use std::collections::VecDeque;

use crate::time::{STAMP_UNIT_NANOS, Stamp, Time};

/// Seconds of one wire time-stamp unit.
pub const STAMP_UNIT_SECS: f64 = STAMP_UNIT_NANOS as f64 / 1e9;

/// Buckets of the delay base: it is the least delay of the last `BUCKETS` seconds.
const BUCKETS: usize = 10;
const BUCKET_SECS: f64 = 1.0;
/// What the time between two reports counts at the least and at the most, seconds: they come every 5 ms, on thin links
/// every 25 ms. What is longer is a pause.
const SPACING: (f64, f64) = (0.005, 0.025);

/// Turns 24-bit stamps into a continuous number of units, whatever the offset of the clocks.
///
/// Two values must lie less than 134 s apart to keep their order.
#[derive(Debug, Default, Clone)]
pub struct Unwrap {
    last: Option<(Stamp, i64)>,
}

impl Unwrap {
    /// The continuous value of `raw`, in units of 16 µs; follows `raw` wherever it goes.
    pub fn units(&mut self, raw: Stamp) -> i64 {
        let value = match self.last {
            None => 0,
            Some((last, value)) => value + i64::from(raw.signed_since(last)),
        };
        self.last = Some((raw, value));
        value
    }

    /// The 24-bit stamp of a continuous value; zero units before the first stamp was seen.
    pub fn raw(&self, units: i64) -> Stamp {
        let (raw, value) = self.last.unwrap_or_default();
        Stamp::new((i64::from(raw.raw()) + (units - value)) as u32)
    }

    /// As [`units`](Self::units), in seconds.
    pub fn secs(&mut self, raw: Stamp) -> f64 {
        self.units(raw) as f64 * STAMP_UNIT_SECS
    }
}

/// Minimum over the last ten seconds, kept in buckets of one second.
#[derive(Debug, Clone)]
pub struct WindowedMin {
    buckets: VecDeque<(f64, f64)>,
}

impl WindowedMin {
    /// An empty window.
    pub fn new() -> Self {
        Self { buckets: VecDeque::with_capacity(BUCKETS + 1) }
    }

    /// Takes a sample made at `now` (seconds).
    pub fn add(&mut self, now: f64, value: f64) {
        match self.buckets.back_mut() {
            Some((start, least)) if now - *start < BUCKET_SECS => *least = least.min(value),
            _ => self.buckets.push_back((now, value)),
        }
        while self.buckets.len() > 1 && now - self.buckets[0].0 > BUCKET_SECS * BUCKETS as f64 {
            self.buckets.pop_front();
        }
    }

    /// The least sample in the window; `None` before the first.
    pub fn min(&self) -> Option<f64> {
        self.buckets.iter().map(|b| b.1).min_by(f64::total_cmp)
    }

    /// Adds `by` to every sample: the path has become that much longer.
    pub fn shift(&mut self, by: f64) {
        for (_, least) in &mut self.buckets {
            *least += by;
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets.clear();
    }
}

impl Default for WindowedMin {
    fn default() -> Self {
        Self::new()
    }
}

/// What one report says of the delays on a path, seconds on the session's relative scale.
#[derive(Debug, Clone, Copy)]
pub struct DelaySample {
    /// Least delay since the last report.
    pub min: f64,
    /// Mean delay since the last report.
    pub mean: f64,
    /// Time from the sending of the highest packet seen to now: what feedback costs.
    pub feedback: f64,
}

/// The delay half of a path's model.
#[derive(Debug, Clone)]
pub struct DelayModel {
    base: WindowedMin,
    /// A base that does not age.
    held: Option<f64>,
    feedback_min: WindowedMin,
    recent: VecDeque<(f64, f64)>,
    smoothed: f64,
    feedback: f64,
    deviation: f64,
    last_mean: Option<f64>,
    instant: f64,
    spacing: f64,
    last_at: f64,
}

impl DelayModel {
    /// A model that has seen nothing.
    pub fn new() -> Self {
        Self {
            base: WindowedMin::new(),
            held: None,
            feedback_min: WindowedMin::new(),
            recent: VecDeque::new(),
            smoothed: 0.0,
            feedback: 0.05,
            deviation: 0.0,
            last_mean: None,
            instant: 0.0,
            spacing: SPACING.0,
            last_at: 0.0,
        }
    }

    /// Takes one report's sample.
    pub fn on_sample(&mut self, now: Time, s: DelaySample) {
        let t = now.as_secs_f64();
        self.base.add(t, s.min);
        self.held = self.held.map(|held| held.min(s.min));
        match self.last_mean {
            None => {
                self.smoothed = s.mean;
                self.feedback = s.feedback;
            }
            Some(last) => {
                self.deviation += ((s.mean - last).abs() - self.deviation) / 16.0;
                self.smoothed += (s.mean - self.smoothed) / 4.0;
                self.feedback += (s.feedback - self.feedback) / 8.0;
                let apart = (t - self.last_at).clamp(SPACING.0, SPACING.1);
                self.spacing += (apart - self.spacing) / 4.0;
            }
        }
        self.last_at = t;
        self.last_mean = Some(s.mean);
        self.feedback_min.add(t, s.feedback);
        let base = self.base();
        self.instant = s.min - base;
        self.recent.push_back((t, s.min));
        let window = self.feedback_min().clamp(0.020, 0.080);
        while self.recent.len() > 1 && t - self.recent[0].0 > window {
            self.recent.pop_front();
        }
    }

    /// Whether any sample was taken.
    pub fn is_measured(&self) -> bool {
        self.last_mean.is_some()
    }

    /// Least one-way delay of the last ten seconds, and the one that is held if any; zero before the first sample.
    pub fn base(&self) -> f64 {
        self.held.or_else(|| self.base.min()).unwrap_or(0.0)
    }

    /// The standing queue: the least delay over about a round trip, above the base. A jump of the
    /// newest sample counts for half, less 10 ms, so that jitter is not taken for a queue but a
    /// collapse of the rate is noticed before the window has passed.
    pub fn queue(&self) -> f64 {
        let base = self.base();
        let standing = self.recent.iter().map(|r| r.1).min_by(f64::total_cmp).map_or(0.0, |m| m - base);
        standing.max(self.instant / 2.0 - 0.010).max(0.0)
    }

    /// Least delay of the newest report above the base.
    pub fn instant(&self) -> f64 {
        self.instant
    }

    /// Smoothed one-way delay.
    pub fn smoothed(&self) -> f64 {
        self.smoothed
    }

    /// Smoothed change of the mean delay from report to report.
    pub fn deviation(&self) -> f64 {
        self.deviation
    }

    /// Smoothed time from sending a packet to hearing of it.
    pub fn feedback(&self) -> f64 {
        self.feedback
    }

    /// Least feedback time of the last ten seconds.
    pub fn feedback_min(&self) -> f64 {
        self.feedback_min.min().unwrap_or(self.feedback)
    }

    /// Smoothed time between reports with news. The feedback time does not contain it: the newest packet of a report may
    /// have arrived just before it left.
    pub fn report_spacing(&self) -> f64 {
        self.spacing
    }

    /// Keeps `base`, seconds on the session's scale, or what is less, until it is released: as long as others fill the
    /// queue, no sample shows the path without it.
    pub fn hold(&mut self, base: f64) {
        self.held = Some(base);
    }

    /// Lets the base that is held age as any sample made at `now`. Without one nothing happens.
    pub fn release(&mut self, now: Time) {
        if let Some(base) = self.held.take() {
            self.base.add(now.as_secs_f64(), base);
        }
    }

    /// The path has become longer by `by`: what looked like a queue is distance.
    pub fn rebase(&mut self, by: f64) {
        self.base.shift(by);
    }
}

impl Default for DelayModel {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(min: f64) -> DelaySample {
        DelaySample { min, mean: min, feedback: 0.02 }
    }

    #[test]
    fn unwraps_across_the_24_bit_boundary_and_backwards() {
        let mut u = Unwrap::default();
        assert_eq!(u.units(Stamp::new(0xff_fff0)), 0);
        assert_eq!(u.units(Stamp::new(0x10)), 0x20);
        assert_eq!(u.units(Stamp::new(0xff_fff0)), 0);
    }

    #[test]
    fn standing_queue_ignores_jitter_but_sees_a_queue() {
        let mut m = DelayModel::new();
        let mut now = Time::ZERO;
        let step = std::time::Duration::from_millis(5);
        for i in 0..200 {
            now += step;
            m.on_sample(now, sample(if i % 2 == 0 { 0.010 } else { 0.014 }));
        }
        assert!(m.queue() < 0.0005, "{}", m.queue());
        for _ in 0..20 {
            now += step;
            m.on_sample(now, sample(0.030));
        }
        assert!((m.queue() - 0.020).abs() < 0.001, "{}", m.queue());
    }

    #[test]
    fn base_forgets_after_ten_seconds() {
        let mut m = DelayModel::new();
        m.on_sample(Time::ZERO, sample(0.010));
        for i in 1..=130 {
            m.on_sample(Time::from_millis(i * 100), sample(0.050));
        }
        assert!((m.base() - 0.050).abs() < 1e-9);
    }

    #[test]
    fn a_held_base_does_not_age_and_is_forgotten_after_its_release() {
        let mut m = DelayModel::new();
        m.on_sample(Time::ZERO, sample(0.010));
        m.hold(m.base());
        for i in 1..=300 {
            m.on_sample(Time::from_millis(i * 100), sample(0.050));
        }
        assert!((m.base() - 0.010).abs() < 1e-9);
        m.release(Time::from_millis(30_000));
        assert!((m.base() - 0.010).abs() < 1e-9);
        for i in 301..=430 {
            m.on_sample(Time::from_millis(i * 100), sample(0.050));
        }
        assert!((m.base() - 0.050).abs() < 1e-9);
    }
}
