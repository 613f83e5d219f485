//! When to start a dead child again.

use std::time::Duration;

use rand::Rng;

/// How a supervisor restarts its children.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Delay before the first restart. 20 ms.
    pub delay_min: Duration,
    /// The delay doubles with each death up to this. 5 s.
    pub delay_max: Duration,
    /// Part of each delay that is random, both ways, so that children that die together do not
    /// return together. 0.25.
    pub jitter: f64,
    /// A child that lived this long starts with a clean record. 10 s.
    pub healthy_after: Duration,
    /// Deaths in a row after which a child is parked. 8.
    pub park_after: u32,
    /// How often a parked child is tried again. 30 s.
    pub park_retry: Duration,
    /// How often an actor is asked whether it still handles mail. 200 ms.
    pub ping_every: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            delay_min: Duration::from_millis(20),
            delay_max: Duration::from_secs(5),
            jitter: 0.25,
            healthy_after: Duration::from_secs(10),
            park_after: 8,
            park_retry: Duration::from_secs(30),
            ping_every: Duration::from_millis(200),
        }
    }
}

/// What to do after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start again after this time.
    Restart(Duration),
    /// Alarm, and try again after this time.
    Park(Duration),
}

/// The record of one child's deaths; also used for redialling.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    policy: Policy,
    deaths: u32,
}

impl Backoff {
    /// A clean record.
    pub fn new(policy: Policy) -> Self {
        Self { policy, deaths: 0 }
    }

    /// Notes a death after a life of `lived` and says when to start again.
    pub fn died(&mut self, lived: Duration, rng: &mut impl Rng) -> Verdict {
        if lived >= self.policy.healthy_after {
            self.deaths = 0;
        }
        self.deaths = self.deaths.saturating_add(1);
        if self.deaths > self.policy.park_after {
            return Verdict::Park(self.spread(self.policy.park_retry, rng));
        }
        let doubled = self.policy.delay_min.saturating_mul(1 << (self.deaths - 1).min(20));
        Verdict::Restart(self.spread(doubled.min(self.policy.delay_max), rng))
    }

    /// Forgets all deaths.
    pub fn reset(&mut self) {
        self.deaths = 0;
    }

    fn spread(&self, delay: Duration, rng: &mut impl Rng) -> Duration {
        delay.mul_f64(1.0 + self.policy.jitter * rng.random_range(-1.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn delays_grow_are_capped_and_end_in_parking() {
        let mut rng = StdRng::seed_from_u64(7);
        let policy = Policy { park_after: 12, ..Policy::default() };
        let mut backoff = Backoff::new(policy);
        for death in 0..12_u32 {
            let expected = Duration::from_millis(20).saturating_mul(1 << death).min(policy.delay_max);
            let Verdict::Restart(delay) = backoff.died(Duration::ZERO, &mut rng) else { panic!("parked") };
            assert!(delay >= expected.mul_f64(0.75) && delay <= expected.mul_f64(1.25), "{death}: {delay:?}");
        }
        assert!(matches!(backoff.died(Duration::ZERO, &mut rng), Verdict::Park(_)));
        assert!(matches!(backoff.died(Duration::from_secs(9), &mut rng), Verdict::Park(_)));
        assert!(matches!(backoff.died(Duration::from_secs(10), &mut rng), Verdict::Restart(_)));
    }
}
