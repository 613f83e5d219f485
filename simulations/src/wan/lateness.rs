//! How late the emulator was: the time between when a packet should have left and when it had.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Buckets per power of two: a bucket is at most 1/8 wide.
const SUB_BITS: u32 = 3;
/// Covers 0 to 2^37 ns (137 s), the last bucket holds the rest.
const BUCKETS: usize = 35 << SUB_BITS;

/// A histogram with logarithmic buckets, for durations from nanoseconds to minutes.
#[derive(Clone, Debug)]
pub struct LatenessHistogram {
    counts: Vec<u64>,
    total: u64,
    max: Duration,
}

impl Default for LatenessHistogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, max: Duration::ZERO }
    }
}

impl LatenessHistogram {
    /// Counts `count` packets that were `late`.
    pub fn record(&mut self, late: Duration, count: u64) {
        let nanos = u64::try_from(late.as_nanos()).unwrap_or(u64::MAX);
        self.counts[Self::bucket(nanos)] += count;
        self.total += count;
        self.max = self.max.max(late);
    }

    fn bucket(nanos: u64) -> usize {
        let bits = 64 - nanos.leading_zeros();
        if bits <= SUB_BITS {
            return nanos as usize;
        }
        let shift = bits - SUB_BITS - 1;
        let sub = (nanos >> shift) as usize & ((1 << SUB_BITS) - 1);
        ((((shift + 1) as usize) << SUB_BITS) + sub).min(BUCKETS - 1)
    }

    /// The upper end of a bucket.
    fn upper(bucket: usize) -> Duration {
        let (power, sub) = (bucket >> SUB_BITS, bucket & ((1 << SUB_BITS) - 1));
        if power == 0 {
            return Duration::from_nanos(sub as u64);
        }
        let base = 1u64 << SUB_BITS;
        Duration::from_nanos(((base + sub as u64 + 1) << (power - 1)) - 1)
    }

    /// The duration that the share `quantile` (0 to 1) of all packets did not exceed, to 1/8.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let rank = (quantile * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Self::upper(bucket).min(self.max);
            }
        }
        self.max
    }

    /// The figures to print with a result.
    pub fn summary(&self) -> Lateness {
        let micros = |d: Duration| d.as_nanos() as f64 / 1e3;
        Lateness {
            packets: self.total,
            p50_us: micros(self.quantile(0.50)),
            p99_us: micros(self.quantile(0.99)),
            p999_us: micros(self.quantile(0.999)),
            max_us: micros(self.max),
        }
    }
}

/// How late packets left, in microseconds. A result counts only with a p99 below 1 ms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lateness {
    /// Packets counted.
    pub packets: u64,
    /// Half of the packets were at most this late.
    pub p50_us: f64,
    /// 99 % were.
    pub p99_us: f64,
    /// 99.9 % were.
    pub p999_us: f64,
    /// The latest of all.
    pub max_us: f64,
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "emulator lateness us: p50 {:.0} p99 {:.0} p99.9 {:.0} max {:.0} ({} packets)",
            self.p50_us, self.p99_us, self.p999_us, self.max_us, self.packets
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_below_the_upper_end_of_its_bucket() {
        for nanos in (0..5000).chain([1 << 20, (1 << 20) - 1, 123_456_789, 1 << 36]) {
            let upper = LatenessHistogram::upper(LatenessHistogram::bucket(nanos)).as_nanos() as u64;
            assert!(upper >= nanos && upper <= nanos + nanos / 8, "{nanos} {upper}");
        }
        assert_eq!(LatenessHistogram::bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles() {
        let mut histogram = LatenessHistogram::default();
        assert_eq!(histogram.quantile(0.99), Duration::ZERO);
        histogram.record(Duration::from_micros(50), 98);
        histogram.record(Duration::from_micros(900), 2);
        let summary = histogram.summary();
        assert!((50.0..57.0).contains(&summary.p50_us), "{summary}");
        assert_eq!(summary.p99_us, 900.0);
        assert_eq!((summary.max_us, summary.packets), (900.0, 100));
    }
}
