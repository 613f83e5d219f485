//! How much parity a loss asks for.

use crate::wire::Parity;

/// Least number of parity shards, at most `parity_max`, with which no more than `target` of the packets of a block
/// of `data` are lost for good, when every shard is lost with probability `loss` by itself.
///
/// With `n = data + r` shards, a packet is lost for good when its own shard is and `r` or more of the others are:
/// `sum over j > r of C(n, j) loss^j (1 - loss)^(n - j) * j / n`.
pub fn parity_for(data: u8, loss: f64, target: f64, parity_max: u8) -> u8 {
    let parity_max = parity_max.min(Parity::PARITY_MAX);
    if loss.is_nan() || loss <= 0.0 {
        return 0;
    }
    (0..parity_max).find(|&r| residual(data, r, loss) <= target).unwrap_or(parity_max)
}

/// Share of packets lost for good from blocks of `data` packets with `parity` shards under a random loss of `loss`.
pub fn residual(data: u8, parity: u8, loss: f64) -> f64 {
    if loss >= 1.0 {
        return 1.0;
    }
    let loss = loss.max(0.0);
    let (n, r) = (u32::from(data) + u32::from(parity), u32::from(parity));
    // What the n shards lose is the binomial distribution; its head is summed, for the tail is long.
    let mut term = (1.0 - loss).powi(n as i32);
    let mut kept = 0.0;
    for j in 0..=r.min(n) {
        kept += term * f64::from(j) / f64::from(n.max(1));
        term *= f64::from(n - j) / f64::from(j + 1) * loss / (1.0 - loss);
    }
    (loss - kept).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_blocks() {
        // Without parity what is lost is lost.
        assert!((residual(10, 0, 0.02) - 0.02).abs() < 1e-12);
        // A copy: both must be lost.
        assert!((residual(1, 1, 0.02) - 0.0004).abs() < 1e-12);
        // 10 + 1: a packet and any of ten others.
        let expected = 0.02 * (1.0 - 0.98_f64.powi(10));
        assert!((residual(10, 1, 0.02) - expected).abs() < 1e-12);
        assert_eq!(residual(10, 3, 1.0), 1.0);
    }

    #[test]
    fn no_loss_no_parity_and_more_for_more() {
        assert_eq!(parity_for(20, 0.0, 1e-4, 16), 0);
        assert_eq!(parity_for(20, f64::NAN, 1e-4, 16), 0);
        assert_eq!(parity_for(20, 1.0, 1e-4, 7), 7);
        let sizes = [0.001, 0.005, 0.01, 0.02, 0.05].map(|loss| parity_for(16, loss, 1e-4, 16));
        assert!(sizes.is_sorted() && sizes[0] >= 1 && sizes[4] <= 8, "{sizes:?}");
        for (loss, parity) in [0.001, 0.005, 0.01, 0.02, 0.05].into_iter().zip(sizes) {
            assert!(residual(16, parity, loss) <= 1e-4);
            assert!(residual(16, parity - 1, loss) > 1e-4);
        }
    }
}
