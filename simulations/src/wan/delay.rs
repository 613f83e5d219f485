//! Propagation delay and jitter: from the end of transmission to the arrival.

use std::time::Duration;

use mwb_proto::time::Time;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// How often the jitter that keeps order takes a new direction. A radio's scheduler and the queues
/// of others change over tens of milliseconds; drawn per packet, the running maximum that keeps the
/// order would just be the full jitter all the time.
const JITTER_STEP: Duration = Duration::from_millis(20);

/// Adds delay and jitter to departure times.
///
/// Order kept: the jitter is uniform at points 20 ms apart and linear between them, and no
/// packet overtakes another. Reordering: uniform and independent per packet.
#[derive(Debug)]
pub struct DelayLine {
    rng: SmallRng,
    step_end: Time,
    from: f64,
    to: f64,
    last: Time,
}

impl DelayLine {
    /// A line with its own seeded generator.
    pub fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let from = rng.random();
        Self { rng, step_end: Time::ZERO, from, to: from, last: Time::ZERO }
    }

    /// When a packet whose transmission ends at `departure` arrives. Departures do not decrease.
    pub fn arrival(&mut self, departure: Time, delay: Duration, jitter: Duration, reorders: bool) -> Time {
        let extra = match (jitter.is_zero(), reorders) {
            (true, _) => 0.0,
            (false, true) => self.rng.random::<f64>(),
            (false, false) => self.walk(departure),
        };
        let arrival = departure + delay + jitter.mul_f64(extra);
        if reorders {
            return arrival;
        }
        self.last = self.last.max(arrival);
        self.last
    }

    /// The share of the jitter at `at`.
    fn walk(&mut self, at: Time) -> f64 {
        if at >= self.step_end {
            let skipped = at.since(self.step_end) >= JITTER_STEP;
            self.from = if skipped { self.rng.random() } else { self.to };
            self.to = self.rng.random();
            self.step_end = if skipped { at } else { self.step_end } + JITTER_STEP;
        }
        let left = self.step_end.since(at).as_secs_f64() / JITTER_STEP.as_secs_f64();
        self.to + (self.from - self.to) * left.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(30);
    const JITTER: Duration = Duration::from_millis(10);

    fn arrivals(seed: u64, reorders: bool) -> Vec<(Time, Time)> {
        let mut line = DelayLine::new(seed);
        (0..20_000u64)
            .map(|i| {
                let departure = Time::from_nanos(i * 200_000);
                (departure, line.arrival(departure, DELAY, JITTER, reorders))
            })
            .collect()
    }

    #[test]
    fn without_jitter_the_delay_is_exact() {
        let mut line = DelayLine::new(1);
        let at = Time::from_millis(7);
        assert_eq!(line.arrival(at, DELAY, Duration::ZERO, false), Time::from_millis(37));
    }

    #[test]
    fn jitter_spreads_and_keeps_order() {
        let all = arrivals(5, false);
        assert!(all.windows(2).all(|w| w[0].1 <= w[1].1));
        let extra: Vec<f64> = all.iter().map(|(d, a)| (*a - *d).as_secs_f64() - 0.030).collect();
        assert!(extra.iter().all(|e| (-1e-6..0.010_001).contains(e)));
        let mean = extra.iter().sum::<f64>() / extra.len() as f64;
        assert!((0.004..0.007).contains(&mean), "{mean}");
        assert!(extra.iter().any(|e| *e < 0.002) && extra.iter().any(|e| *e > 0.008));
        assert_eq!(all, arrivals(5, false));
    }

    #[test]
    fn reordering_only_when_asked() {
        let all = arrivals(5, true);
        assert!(all.windows(2).any(|w| w[0].1 > w[1].1));
    }
}
