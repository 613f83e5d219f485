//! A policer: drops what comes faster than its rate, and delays nothing (RFC 2475, section 2.3.3.4).

use mwb_proto::time::Time;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policer {
    /// Bits of IP packets per second that it lets through in the long run.
    pub rate: u64,
    /// IP bytes that pass at once after a silence. A larger packet never passes.
    pub burst_bytes: usize,
}

/// How full the bucket is; it begins full.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Bytes, and when they were counted; `None` before the first packet.
    tokens: Option<(f64, Time)>,
}

impl TokenBucket {
    pub(super) fn new() -> Self {
        Self { tokens: None }
    }

    /// Whether a packet of `bytes` that arrives at `at` passes. Times do not decrease.
    pub(super) fn passes(&mut self, policer: Policer, bytes: usize, at: Time) -> bool {
        let depth = policer.burst_bytes as f64;
        let filled = match self.tokens {
            Some((tokens, since)) => tokens + at.since(since).as_secs_f64() * policer.rate as f64 / 8.0,
            None => depth,
        };
        let tokens = filled.min(depth);
        let passes = bytes as f64 <= tokens;
        self.tokens = Some((if passes { tokens - bytes as f64 } else { tokens }, at));
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let policer = Policer { rate: 12_000_000, burst_bytes: 6000 };
        let mut bucket = TokenBucket::new();
        let mut passed = |bytes, ms| bucket.passes(policer, bytes, Time::from_millis(ms));
        assert_eq!((0..6).filter(|_| passed(1500, 10)).count(), 4);
        // 1,500 bytes a millisecond: of twice as much one half passes.
        assert_eq!((11..1011).filter(|ms| passed(1500, *ms) | passed(1500, *ms)).count(), 1000);
        assert!(!passed(1500, 1010));
        // A long silence fills it no further than its depth.
        assert_eq!((0..6).filter(|_| passed(1500, 100_000)).count(), 4);
        assert!(!passed(6001, 200_000) && passed(6000, 200_000));
    }
}
