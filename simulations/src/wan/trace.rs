//! Traces in the format of Mahimahi: recorded or generated delivery opportunities.
//!
//! One line per opportunity to deliver 1,500 bytes, the time in whole milliseconds from the start,
//! not decreasing. The trace begins again at its last time stamp. An opportunity that comes while
//! nothing waits is lost; one larger than the packet serves the next waiting packets too
//! (Netravali et al., "Mahimahi: Accurate Record-and-Replay for HTTP", USENIX ATC 2015).

use std::f64::consts::TAU;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::time::Time;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use thiserror::Error;

/// Bytes of one delivery opportunity.
pub const OPPORTUNITY_BYTES: usize = 1500;
/// More lines than this are refused: 20 minutes at 600 Mbit/s.
const LINES_MAX: usize = 60_000_000;
const NANOS_PER_MS: u64 = 1_000_000;

/// Why a trace was refused.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file could not be read.
    #[error("cannot read the trace {path}")]
    Read {
        /// Path of the file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line is not a number of milliseconds, or lies before the one above it.
    #[error("line {line} of the trace is not a time in ms at or after the line before")]
    Line {
        /// The line, from 1.
        line: usize,
    },
    /// No opportunity, only opportunities at 0, or more than 60 million.
    #[error(
        "the trace has {lines} opportunities up to {end} ms: it needs 1 to 60,000,000 and an end above 0"
    )]
    Length {
        /// How many opportunities.
        lines: usize,
        /// The last time stamp.
        end: u32,
    },
}

/// A repeating list of delivery opportunities. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    millis: Arc<[u32]>,
}

impl Trace {
    /// A trace of opportunities at these times in milliseconds.
    pub fn new(millis: Vec<u32>) -> Result<Self, TraceError> {
        if let Some(at) = millis.windows(2).position(|w| w[0] > w[1]) {
            return Err(TraceError::Line { line: at + 2 });
        }
        let end = millis.last().copied().unwrap_or(0);
        if end == 0 || millis.len() > LINES_MAX {
            return Err(TraceError::Length { lines: millis.len(), end });
        }
        Ok(Self { millis: millis.into() })
    }

    /// Reads the text of a trace; empty lines are skipped.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut millis = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() {
                millis.push(line.parse().map_err(|_| TraceError::Line { line: index + 1 })?);
            }
        }
        Self::new(millis)
    }

    /// Reads a file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| TraceError::Read { path: path.display().to_string(), source })?;
        Self::parse(&text)
    }

    /// The text of the trace, for Mahimahi or [`Trace::parse`].
    pub fn to_text(&self) -> String {
        let mut text = String::with_capacity(self.millis.len() * 7);
        for at in self.millis.iter() {
            writeln!(text, "{at}").expect("a String takes everything");
        }
        text
    }

    /// The times of the opportunities in milliseconds.
    pub fn millis(&self) -> &[u32] {
        &self.millis
    }

    /// After how long it begins again.
    pub fn period(&self) -> Duration {
        Duration::from_millis(u64::from(self.end_ms()))
    }

    fn end_ms(&self) -> u32 {
        *self.millis.last().expect("a trace has an opportunity")
    }

    /// Mean bits per second over one period.
    pub fn mean_rate(&self) -> u64 {
        self.millis.len() as u64 * OPPORTUNITY_BYTES as u64 * 8 * 1000 / u64::from(self.end_ms())
    }

    /// A link as of a low-orbit satellite: a new level every 15 s when satellites are assigned, some
    /// of these changes with a dark moment of 60 to 300 ms, and a slow wobble between them.
    pub fn starlink(mean_mbit: f64, length: Duration, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut rates = Vec::with_capacity(length.as_millis() as usize);
        // The first change comes at a random point of the 15 s.
        let (mut level, mut wobble) = (1.0, 0.0);
        let (mut next_change, mut dark_until) = (rng.random_range(0..15_000u64), 0);
        for ms in 0..length.as_millis() as u64 {
            if ms == next_change {
                next_change += 15_000;
                level = (1.0 + 0.25 * gauss(&mut rng)).clamp(0.35, 1.8);
                if rng.random::<f64>() < 0.4 {
                    dark_until = ms + rng.random_range(60..300u64);
                }
            }
            if ms % 20 == 0 {
                wobble = 0.97 * wobble + 0.035 * gauss(&mut rng);
            }
            rates.push(if ms < dark_until { 0.0 } else { (level + wobble).max(0.1) });
        }
        Self::from_shape(rates, mean_mbit, 1)
    }

    /// A cellular link: a rate that wanders by a factor of a few within seconds, delivered in bursts
    /// of 4 ms, and now and then a stall of 100 to 600 ms (handover, a deep fade).
    pub fn lte(mean_mbit: f64, length: Duration, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut rates = Vec::with_capacity(length.as_millis() as usize);
        let (mut log_rate, mut fast, mut dark_until) = (0.0, 0.0, 0);
        for ms in 0..length.as_millis() as u64 {
            if ms % 10 == 0 {
                log_rate = 0.996 * log_rate + 0.045 * gauss(&mut rng);
                fast = 0.8 * fast + 0.2 * gauss(&mut rng);
                // Once in 20 s on average.
                if rng.random::<f64>() < 0.0005 {
                    dark_until = ms + rng.random_range(100..600u64);
                }
            }
            rates.push(if ms < dark_until { 0.0 } else { f64::exp(log_rate + fast) });
        }
        Self::from_shape(rates, mean_mbit, 4)
    }

    /// Opportunities for relative rates per millisecond, scaled to the mean and given out in groups
    /// of `burst_ms`.
    fn from_shape(rates: Vec<f64>, mean_mbit: f64, burst_ms: usize) -> Self {
        let sum: f64 = rates.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let packets = mean_mbit * 1e6 / 8.0 / OPPORTUNITY_BYTES as f64 * rates.len() as f64 / 1000.0;
        let (mut credit, mut millis) = (0.0, Vec::with_capacity(packets as usize + 1));
        for (ms, rate) in rates.iter().enumerate() {
            credit += rate * packets / sum;
            if (ms + 1) % burst_ms == 0 && *rate > 0.0 {
                while credit >= 1.0 {
                    millis.push(ms as u32);
                    credit -= 1.0;
                }
            }
        }
        // The last line says where the trace begins again.
        millis.push(rates.len().max(1) as u32);
        Self { millis: millis.into() }
    }
}

/// A normally distributed number (Box and Muller).
fn gauss(rng: &mut SmallRng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (TAU * v).cos()
}

/// A place in a repeating trace.
#[derive(Debug)]
pub(super) struct TraceCursor {
    trace: Trace,
    epoch: Time,
    cycle: u64,
    index: usize,
    /// Bytes left of the opportunity used last, and when that was.
    left: usize,
    left_at: Time,
}

impl TraceCursor {
    /// At the beginning of the trace, which is at `epoch`.
    pub(super) fn new(trace: Trace, epoch: Time) -> Self {
        Self { trace, epoch, cycle: 0, index: 0, left: 0, left_at: epoch }
    }

    /// When the last of `bytes` is delivered if the packet is at the head from `start` on.
    pub(super) fn finish(&mut self, start: Time, bytes: usize) -> Time {
        if self.left_at < start {
            self.left = 0;
        }
        while self.left < bytes {
            self.skip_to(start);
            self.left += OPPORTUNITY_BYTES;
            self.left_at = self.time();
            self.index += 1;
            if self.index == self.trace.millis.len() {
                self.index = 0;
                self.cycle += 1;
            }
        }
        self.left -= bytes;
        self.left_at
    }

    fn time(&self) -> Time {
        let period = u64::from(self.trace.end_ms());
        let millis = self.cycle * period + u64::from(self.trace.millis[self.index]);
        self.epoch + Duration::from_millis(millis)
    }

    /// Leaves out the opportunities before `start`.
    fn skip_to(&mut self, start: Time) {
        if self.time() >= start {
            return;
        }
        let period = u64::from(self.trace.end_ms());
        // Opportunities are at whole milliseconds, so one before the rounded-up time is before start.
        let since = start.since(self.epoch).as_nanos() as u64;
        let millis = since.div_ceil(NANOS_PER_MS);
        self.cycle = millis / period;
        let within = (millis % period) as u32;
        // The end of one cycle is the beginning of the next, and both may have opportunities.
        if within == 0 && self.cycle > 0 {
            self.cycle -= 1;
            self.index = self.trace.millis.partition_point(|at| u64::from(*at) < period);
        } else {
            self.index = self.trace.millis.partition_point(|at| *at < within);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(millis: &[u32]) -> TraceCursor {
        TraceCursor::new(Trace::new(millis.to_vec()).unwrap(), Time::from_millis(1000))
    }

    fn at(ms: u64) -> Time {
        Time::from_millis(1000 + ms)
    }

    #[test]
    fn text_goes_both_ways_and_nonsense_is_refused() {
        let trace = Trace::parse("0\n0\n3\n\n10\n").unwrap();
        assert_eq!(trace.millis(), [0, 0, 3, 10]);
        assert_eq!(Trace::parse(&trace.to_text()).unwrap(), trace);
        assert_eq!(trace.mean_rate(), 4 * 1500 * 8 * 100);
        for bad in ["", "0\n0\n", "5\n3\n", "1\nx\n", "-1\n5\n", "4294967296\n"] {
            assert!(Trace::parse(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(Trace::parse("1\nx"), Err(TraceError::Line { line: 2 })));
        assert!(matches!(Trace::load("/nonexistent/trace"), Err(TraceError::Read { .. })));
    }

    #[test]
    fn opportunities_are_used_shared_and_lost() {
        let mut c = cursor(&[0, 4, 4, 10]);
        // Two packets share the opportunity at 0, the third needs 4, whose rest is lost by 5.
        assert_eq!(c.finish(at(0), 700), at(0));
        assert_eq!(c.finish(at(0), 700), at(0));
        assert_eq!(c.finish(at(0), 700), at(4));
        assert_eq!(c.finish(at(5), 1500), at(10));
        // The next cycle begins where this one ends.
        assert_eq!(c.finish(at(10), 1500), at(10));
        // One packet may need several opportunities.
        assert_eq!(c.finish(at(10), 3000), at(14));
    }

    #[test]
    fn a_long_silence_skips_whole_cycles() {
        let mut c = cursor(&[3, 10]);
        assert_eq!(c.finish(at(1_000_001), 1500), at(1_000_003));
        assert_eq!(c.finish(at(1_000_010), 1500), at(1_000_010));
        let mut c = cursor(&[3, 10]);
        assert_eq!(c.finish(at(50), 1500), at(50));
        assert_eq!(c.finish(at(50), 1500), at(53));
        let mut c = cursor(&[0, 10]);
        assert_eq!(
            (c.finish(at(20), 1500), c.finish(at(20), 1500), c.finish(at(20), 1500)),
            (at(20), at(20), at(30))
        );
        let start = at(20) + Duration::from_nanos(1);
        assert_eq!(c.finish(start, 1500), at(30));
    }

    #[test]
    fn a_busy_link_gets_the_mean_rate() {
        let trace = Trace::lte(20.0, Duration::from_secs(60), 9);
        let mut c = TraceCursor::new(trace.clone(), Time::ZERO);
        let (mut now, mut bytes) = (Time::ZERO, 0u64);
        while now < Time::from_millis(240_000) {
            now = c.finish(now, 1500);
            bytes += 1500;
        }
        let rate = bytes as f64 * 8.0 / now.as_secs_f64();
        assert!((rate / trace.mean_rate() as f64 - 1.0).abs() < 0.01, "{rate}");
    }

    #[test]
    fn generated_traces_keep_their_mean_and_follow_the_seed() {
        let length = Duration::from_secs(60);
        for make in [Trace::starlink, Trace::lte] {
            let trace = make(40.0, length, 1);
            assert_eq!(trace.period(), length);
            let rate = trace.mean_rate() as f64;
            assert!((rate / 40e6 - 1.0).abs() < 0.01, "{rate}");
            assert_eq!(trace, make(40.0, length, 1));
            assert_ne!(trace, make(40.0, length, 2));
            assert_eq!(Trace::new(trace.millis().to_vec()).unwrap(), trace);
            let gap = trace.millis().windows(2).map(|w| w[1] - w[0]).max().unwrap();
            assert!((20..1500).contains(&gap), "{gap}");
        }
    }
}
