//! Looks for trouble: many made-up bonds, each compared with each of its links alone.
//!
//! `cargo run --release -p mwb-sim --example sweep -- 1..400 15` prints one line per bond, the worst first: its goodput
//! as a share of its best link's and of all its links', all in the same tunnel and of the same length. Bonds whose
//! links change meanwhile are only checked for broken invariants.

use std::time::Duration;

use anyhow::Context;
use mwb_sim::bond_sim::{Scenario, SimBond, SimReport};
use mwb_sim::wan::Way;

#[expect(clippy::print_stdout, reason = "a program's answer")]
fn main() -> anyhow::Result<()> {
    let usage = "usage: sweep FROM..TO SECONDS";
    let mut arguments = std::env::args().skip(1);
    let range = arguments.next().context(usage)?;
    let (from, to) = range.split_once("..").context(usage)?;
    let seconds: u64 = arguments.next().context(usage)?.parse().context(usage)?;
    let mut lines = Vec::new();
    for seed in from.parse::<u64>().context(usage)?..to.parse().context(usage)? {
        let scenario = Scenario::random(seed);
        let run = |scenario| SimBond::new(scenario, seed).run(Duration::from_secs(seconds));
        let bond = run(scenario.clone());
        for violation in &bond.violations {
            println!("seed {seed}: {violation}");
        }
        if !scenario.script.is_empty() {
            continue;
        }
        let alone: Vec<SimReport> = (0..scenario.links.len()).map(|link| run(scenario.only(link))).collect();
        for way in [Way::Down, Way::Up] {
            // Transfers that end leave nothing to compare.
            if !scenario.flows.iter().any(|flow| flow.way == way && flow.bytes.is_none()) {
                continue;
            }
            let got = goodput(&bond, way);
            let links: Vec<f64> = alone.iter().map(|report| goodput(report, way)).collect();
            let best = links.iter().copied().fold(0.0, f64::max);
            let line = format!(
                "{:5.2} of best {:5.2} of sum, seed {seed} {way:?}: {got:.2} of {links:.2?} Mbit/s, echo p95 {:.0?}",
                got / best,
                got / links.iter().sum::<f64>(),
                bond.echo.as_ref().map(|echo| echo.p95).unwrap_or_default()
            );
            lines.push((got / best, line));
        }
    }
    lines.sort_by(|a, b| a.0.total_cmp(&b.0));
    lines.iter().for_each(|(_, line)| println!("{line}"));
    Ok(())
}

fn goodput(report: &SimReport, way: Way) -> f64 {
    let name = if way == Way::Up { "up" } else { "down" };
    report.flows.iter().filter(|flow| flow.name.starts_with(name)).map(|flow| flow.goodput_mbit).sum()
}
