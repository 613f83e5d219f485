//! Many made-up bonds, each compared with each of its links alone and with what the links could carry.
//!
//! The same links give another goodput with each seed of a run: where loss is drawn anew, a link alone may bring half or twice
//! as much. So each figure may be a median of several runs; one run tells chance and effect apart only over many bonds.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Bound, Scenario, SimBond, SimReport};
use crate::tcp_model::Transport;
use crate::wan::Way;

/// One way of one bond.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The seed of the scenario and of its first run.
    pub seed: u64,
    /// Which way.
    pub way: Way,
    /// Goodput after the warm-up, Mbit/s, the median of the runs.
    pub got: f64,
    /// The same of the same tunnel over each link alone.
    pub alone: Vec<f64>,
    /// What cannot be exceeded.
    pub bound: Bound,
    /// 95 % of the echo's round trips are shorter, the median of the runs.
    pub echo_p95: Duration,
    /// The endless connections of this way.
    pub transports: Vec<Transport>,
}

impl Comparison {
    /// Goodput as a share of the best link's alone; 1 when none carried anything.
    pub fn of_best(&self) -> f64 {
        let best = self.alone.iter().copied().fold(0.0, f64::max);
        if best > 0.0 { self.got / best } else { 1.0 }
    }

    /// Goodput as a share of the fluid bound of the near links; 1 when that is nothing.
    pub fn of_bound(&self) -> f64 {
        if self.bound.near > 0.0 { self.got / self.bound.near } else { 1.0 }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:5.2} of best {:5.2} of sum {:5.2} of bound {:5.2} of all, seed {} {:?} {:?}: {:.2} of {:.2?} Mbit/s, echo p95 {:.0?}",
            self.of_best(),
            self.got / self.alone.iter().sum::<f64>(),
            self.of_bound(),
            self.got / self.bound.all,
            self.seed,
            self.way,
            self.transports,
            self.got,
            self.alone,
            self.echo_p95
        )
    }
}

/// What a sweep found.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Every way with an endless flow, the worst against its best link first.
    pub comparisons: Vec<Comparison>,
    /// Broken invariants and connections that got nowhere, by seed.
    pub broken: Vec<(u64, String)>,
}

impl Sweep {
    /// Runs the bonds of these seeds for `length` each, `runs` times (once, if zero), on all cores,
    /// [`without`](Scenario::without) parts of the machines if any are named. The result does not depend on the number of
    /// cores.
    ///
    /// # Panics
    /// If `length` is not longer than the warm-up of a scenario.
    pub fn run(seeds: Range<u64>, length: Duration, runs: u64, without: &str) -> Self {
        let next = AtomicU64::new(seeds.start);
        let found = Mutex::new(Self::default());
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end {
                            return;
                        }
                        let one = Self::one(seed, length, runs, without);
                        let mut all = found.lock().unwrap_or_else(PoisonError::into_inner);
                        all.comparisons.extend(one.comparisons);
                        all.broken.extend(one.broken);
                    }
                });
            }
        });
        let mut all = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.broken.sort();
        all.comparisons.sort_by_key(|c| c.seed);
        all.comparisons.sort_by(|a, b| a.of_best().total_cmp(&b.of_best()));
        all
    }

    fn one(seed: u64, length: Duration, runs: u64, without: &str) -> Self {
        let scenario = Scenario::random(seed).without(without);
        let seeds = (0..runs.max(1)).map(|run| run_seed(seed, run));
        let run = |scenario: &Scenario| -> Vec<SimReport> {
            seeds.clone().map(|seed| SimBond::new(scenario.clone(), seed).run(length)).collect()
        };
        let bond = run(&scenario);
        let mut found = Self::default();
        for report in &bond {
            let nowhere = report.flows.iter().any(|flow| flow.bytes == 0);
            let nowhere = nowhere.then(|| "a connection got nowhere".to_owned());
            found
                .broken
                .extend(report.violations.iter().cloned().chain(nowhere).map(|text| (report.seed, text)));
        }
        // Transfers that end leave nothing to compare.
        let endless = |way: Way| scenario.flows.iter().filter(move |f| f.way == way && f.bytes.is_none());
        let ways: Vec<Way> =
            [Way::Down, Way::Up].into_iter().filter(|&way| endless(way).next().is_some()).collect();
        if ways.is_empty() {
            return found;
        }
        let alone: Vec<Vec<SimReport>> =
            (0..scenario.links.len()).map(|link| run(&scenario.only(link))).collect();
        let goodput = |reports: &[SimReport], way| {
            median(reports.iter().map(|report| report.way_mbit(way, scenario.warmup)).collect())
        };
        let echo = bond.iter().filter_map(|report| Some(report.echo.as_ref()?.p95.as_secs_f64()));
        let echo_p95 = Duration::from_secs_f64(median(echo.collect()));
        found.comparisons.extend(ways.into_iter().map(|way| Comparison {
            seed,
            way,
            got: goodput(&bond, way),
            alone: alone.iter().map(|reports| goodput(reports, way)).collect(),
            bound: scenario.bound_mbit(way, scenario.warmup, length),
            transports: endless(way).map(|flow| flow.transport).collect(),
            echo_p95,
        }));
        found
    }

    /// Share of the comparisons in which the bond reached `tolerance` of its best link.
    pub fn share_at_best(&self, tolerance: f64) -> f64 {
        let good = self.comparisons.iter().filter(|c| c.of_best() >= tolerance).count();
        good as f64 / self.comparisons.len().max(1) as f64
    }

    /// Median of the share of the fluid bound.
    pub fn median_of_bound(&self) -> f64 {
        if self.comparisons.is_empty() {
            return 1.0;
        }
        median(self.comparisons.iter().map(Comparison::of_bound).collect())
    }
}

/// The seed of one of a scenario's runs: the scenario's own for the first, far from those of other scenarios else.
fn run_seed(scenario: u64, run: u64) -> u64 {
    scenario + (run << 32)
}

/// The middle value, the upper one of two; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
