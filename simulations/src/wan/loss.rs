//! Loss on the medium: independent, and in bursts after Gilbert and Elliott.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The two-state model of Gilbert and Elliott. The state may change before each packet, so bursts
/// are counted in packets: 1 / `p_exit` of them on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BurstLoss {
    /// Probability per packet to go from the good to the bad state.
    pub p_enter: f64,
    /// Probability per packet to go back.
    pub p_exit: f64,
    /// Probability that a packet is lost in the bad state.
    pub loss: f64,
}

impl BurstLoss {
    /// Bursts of `packets` lost packets on average that lose the share `loss` of all packets.
    pub fn of(loss: f64, packets: f64) -> Self {
        let p_exit = (1.0 / packets.max(1.0)).min(1.0);
        Self { p_enter: (p_exit * loss / (1.0 - loss).max(1e-9)).min(1.0), p_exit, loss: 1.0 }
    }
}

impl BurstLoss {
    /// Share of all packets that is lost.
    pub fn mean(&self) -> f64 {
        self.loss * self.p_enter / (self.p_enter + self.p_exit).max(f64::MIN_POSITIVE)
    }
}

/// Decides which packets are lost, from its own seeded generator.
#[derive(Debug)]
pub(super) struct LossModel {
    rng: SmallRng,
    bad: bool,
}

impl LossModel {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: SmallRng::seed_from_u64(seed), bad: false }
    }

    /// Whether the next packet is lost.
    pub(super) fn loses(&mut self, loss: f64, burst: Option<BurstLoss>) -> bool {
        let mut lost = loss > 0.0 && self.rng.random::<f64>() < loss;
        match burst {
            Some(burst) => {
                let flip = if self.bad { burst.p_exit } else { burst.p_enter };
                if self.rng.random::<f64>() < flip {
                    self.bad = !self.bad;
                }
                lost |= self.bad && self.rng.random::<f64>() < burst.loss;
            }
            None => self.bad = false,
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(loss: f64, burst: Option<BurstLoss>, seed: u64) -> Vec<bool> {
        let mut model = LossModel::new(seed);
        (0..200_000).map(|_| model.loses(loss, burst)).collect()
    }

    fn share(lost: &[bool]) -> f64 {
        lost.iter().filter(|l| **l).count() as f64 / lost.len() as f64
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(run(0.1, None, 1), run(0.1, None, 1));
        assert_ne!(run(0.1, None, 1), run(0.1, None, 2));
    }

    #[test]
    fn independent_loss_keeps_its_share() {
        assert!(share(&run(0.0, None, 3)) == 0.0);
        let measured = share(&run(0.02, None, 3));
        assert!((0.018..0.022).contains(&measured), "{measured}");
        assert!(share(&run(1.0, None, 3)) == 1.0);
    }

    #[test]
    fn bursts_keep_their_share_and_length() {
        let lost = run(0.0, Some(BurstLoss::of(0.02, 10.0)), 4);
        let measured = share(&lost);
        assert!((0.016..0.024).contains(&measured), "{measured}");
        let bursts = lost.windows(2).filter(|w| !w[0] && w[1]).count();
        let mean = lost.iter().filter(|l| **l).count() as f64 / bursts as f64;
        assert!((8.5..11.5).contains(&mean), "{mean}");
    }
}
