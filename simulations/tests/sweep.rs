//! A bounded sweep of made-up bonds, each against its best link alone and the sum of its links.
//!
//! Goal: a change that makes bonds worse than their links does not go unnoticed. Method: fixed seeds under virtual time,
//! so the figures are the same on every machine; the bounds are below what is reached, and rise with it. The example
//! `sweep` does the same for any range, and shows one scenario.

use std::time::Duration;

use mwb_sim::bond_sim::sweep::Sweep;

/// Seeds chosen by nobody; about 40 s on two cores in the test profile.
const SEEDS: std::ops::Range<u64> = 1..41;
/// Virtual seconds of each run: long enough for CUBIC to come back from its slow start.
const SECONDS: u64 = 12;
/// Share of the bonds that reach [`TOLERANCE`] of their best link.
const AT_BEST: f64 = 0.93;
/// Two runs of the same links differ by so much for no reason.
const TOLERANCE: f64 = 0.97;
/// Median of the share of the fluid bound.
const MEDIAN: f64 = 0.87;

#[test]
fn bonds_are_no_worse_than_their_links() {
    let sweep = Sweep::run(SEEDS, Duration::from_secs(SECONDS), 1, "");
    sweep.comparisons.iter().for_each(|line| println!("{line}"));
    println!("replay: cargo run --release -p mwb-sim --example sweep -- replay SEED {SECONDS}");
    let (at_best, median) = (sweep.share_at_best(TOLERANCE), sweep.median_of_bound());
    assert!(sweep.broken.is_empty(), "{:#?}", sweep.broken);
    assert!(at_best >= AT_BEST, "{at_best:.3} of the bonds reach their best link");
    assert!(median >= MEDIAN, "the median bond reaches {median:.3} of its bound");
}
