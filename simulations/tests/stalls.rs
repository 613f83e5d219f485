//! Nodes that get no processor for a while, and paths of next to no length.
//!
//! Goal: whatever a busy machine does to its nodes, afterwards the path is used again. Method: one fast path with a round
//! trip of 0.1 ms, as between two namespaces of one machine, whose ends are stopped at random instants for 20 to 500 ms.
//! Meanwhile the kernel keeps what arrives as far as a stock socket has room. Figures are virtual.

use std::time::Duration;

use mwb_sim::bond_sim::{Action, Scenario, Side, SimBond};
use mwb_sim::wan::{DirectionSpec, LinkSpec};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const MBIT: f64 = 200.0;

fn near() -> Scenario {
    let direction = DirectionSpec { delay: Duration::from_micros(50), ..DirectionSpec::mbit(MBIT) };
    Scenario::new(vec![LinkSpec::symmetric("near", direction)])
}

/// Mbit/s of the last second, as a share of what the raw link would give.
fn last_second(scenario: &Scenario, seed: u64, seconds: usize) -> f64 {
    let report = SimBond::new(scenario.clone(), seed).run(Duration::from_secs(seconds as u64));
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}", report.violations);
    let bytes: u64 = report.flows[0].series.iter().skip(10 * (seconds - 1)).sum();
    bytes as f64 * 8e-6 / scenario.raw_mbit(mwb_sim::wan::Way::Down)[0]
}

/// While little is received reports are rare, and what may be in flight must not be less than what is delivered until
/// the next one: the delivery rate would follow from that limit, and the limit from the delivery rate.
#[test]
fn a_path_of_next_to_no_length_leaves_its_startup() {
    for seed in 1..6 {
        let mut scenario = near();
        scenario.wake_delay = Duration::from_micros(seed * 500);
        let share = last_second(&scenario, seed, 3);
        assert!(share > 0.85, "seed {seed}: {share:.3} of the link in the third second");
    }
}

#[test]
fn what_a_stopped_node_missed_does_not_slow_it_down_afterwards() {
    for seed in 1..9 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut scenario = near();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(300..3000);
            let length = Duration::from_millis(rng.random_range(20..500));
            let who: u32 = rng.random_range(1..4);
            for (bit, side) in [(1, Side::Edge), (2, Side::Exit)] {
                if who & bit != 0 {
                    scenario = scenario.at(at, Action::Stall(side, length));
                }
            }
        }
        let share = last_second(&scenario, seed, 7);
        assert!(share > 0.75, "seed {seed}: {share:.3} of the link at last, {:?}", scenario.script);
    }
}
