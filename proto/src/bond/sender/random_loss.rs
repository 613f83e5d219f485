//! Loss that is the path's own, not that of a queue which we have filled: what parity is sized by.

/// A report of this many packets replaces the measured loss.
const PACKETS: f64 = 512.0;
/// From here on a path counts as lossy,
const LOSSY_FROM: f64 = 0.0025;
/// and until here: between the two it stays what it is.
const LOSSY_UNTIL: f64 = 0.001;

/// Share of packets lost at random, smoothed.
#[derive(Debug, Default)]
pub(crate) struct RandomLoss {
    loss: f64,
    lossy: bool,
}

impl RandomLoss {
    /// Takes the fates that a report told while there was no queue.
    pub(crate) fn on_report(&mut self, acked: u64, lost: u64) {
        let packets = (acked + lost) as f64;
        if packets > 0.0 {
            self.loss += (lost as f64 / packets - self.loss) * (packets / PACKETS).min(1.0);
            self.lossy = self.loss > if self.lossy { LOSSY_UNTIL } else { LOSSY_FROM };
        }
    }

    /// Share of packets lost, 0 to 1.
    pub(crate) fn loss(&self) -> f64 {
        self.loss
    }

    /// Whether it is worth doing something about it.
    pub(crate) fn is_lossy(&self) -> bool {
        self.lossy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_loss_makes_no_lossy_path_and_one_in_fifty_does() {
        let mut path = RandomLoss::default();
        (0..1000).for_each(|_| path.on_report(10, 0));
        path.on_report(9, 1);
        assert!(!path.is_lossy(), "{}", path.loss());
        (0..200).for_each(|_| path.on_report(49, 1));
        assert!(path.is_lossy() && (0.015..0.025).contains(&path.loss()), "{}", path.loss());
        (0..500).for_each(|_| path.on_report(10, 0));
        assert!(!path.is_lossy());
    }
}
