//! Looks for trouble: many made-up bonds, each compared with each of its links alone and with the sum of its links.
//!
//! `cargo run --release -p mwb-sim --example sweep -- 1..400 15` prints one line per bond and way, the worst first: its
//! goodput as a share of its best link's, of all its links', and of the fluid bounds of the near and of all links. All
//! runs of a line have the same tunnel, traffic, script and length.
//!
//! With `--runs 5` each figure of a line is the median of five runs, which differ in what chance decides.
//!
//! `--best 0.99` fails unless that share of the lines reaches `--tolerance` (0.97 if not said) of the best link,
//! `--median 0.92` unless the median line reaches that share of the fluid bound of the near links. Broken invariants
//! always fail. `--without guard` switches parts of the machines off, for comparison. `sweep replay SEED SECONDS` shows
//! one scenario: its links, the bond every 100 ms, and each link alone. A seed above 2^32 is that of a later run.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use mwb_sim::bond_sim::sweep::Sweep;
use mwb_sim::bond_sim::{Scenario, SimBond};

const USAGE: &str =
    "usage: sweep FROM..TO SECONDS [--runs N] [--best SHARE] [--tolerance SHARE] [--median SHARE] [--without PARTS]
       sweep replay SEED SECONDS [LINK] (SECONDS: 4 or more)";

#[expect(clippy::print_stdout, reason = "a program's answer")]
fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "replay") {
        replay(&arguments[1..])?;
        return Ok(ExitCode::SUCCESS);
    }
    let [range, seconds, options @ ..] = arguments.as_slice() else { bail!(USAGE) };
    let (from, to) = range.split_once("..").context(USAGE)?;
    let seeds = from.parse::<u64>().context(USAGE)?..to.parse().context(USAGE)?;
    let length = length(seconds)?;
    let mut runs = 1;
    let (mut best, mut tolerance, mut median) = (0.0, 0.97, 0.0);
    let mut without = String::new();
    for pair in options.chunks(2) {
        let [name, value] = pair else { bail!(USAGE) };
        if name == "--without" {
            without.clone_from(value);
            continue;
        }
        if name == "--runs" {
            runs = value.parse().context(USAGE)?;
            continue;
        }
        let value: f64 = value.parse().context(USAGE)?;
        match name.as_str() {
            "--best" => best = value,
            "--tolerance" => tolerance = value,
            "--median" => median = value,
            _ => bail!(USAGE),
        }
    }
    let sweep = Sweep::run(seeds, length, runs, &without);
    sweep.comparisons.iter().for_each(|line| println!("{line}"));
    let at_best = sweep.share_at_best(tolerance);
    println!(
        "{} comparisons: {:.3} at {tolerance} of the best link or above, {:.3} at the best link or above; median {:.3} of the fluid bound",
        sweep.comparisons.len(),
        at_best,
        sweep.share_at_best(1.0),
        sweep.median_of_bound()
    );
    let again =
        |seed| println!("  cargo run --release -p mwb-sim --example sweep -- replay {seed} {seconds}");
    for (seed, text) in &sweep.broken {
        println!("BROKEN seed {seed}: {text}");
        again(*seed);
    }
    let below = sweep.comparisons.iter().take_while(|line| line.of_best() < tolerance);
    for line in below {
        println!("BELOW {line}");
        again(line.seed);
    }
    let failed = !sweep.broken.is_empty() || at_best < best || sweep.median_of_bound() < median;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Seconds of a run. Nothing is counted before the warm-up is over.
fn length(word: &str) -> anyhow::Result<Duration> {
    let seconds: u64 = word.parse().context(USAGE)?;
    if seconds < 4 {
        bail!(USAGE);
    }
    Ok(Duration::from_secs(seconds))
}

#[expect(clippy::print_stdout, reason = "a program's answer")]
fn replay(arguments: &[String]) -> anyhow::Result<()> {
    let [seed, seconds, link @ ..] = arguments else { bail!(USAGE) };
    let seed: u64 = seed.parse().context(USAGE)?;
    let length = length(seconds)?;
    let mut scenario = Scenario::random(seed % (1 << 32));
    print!("{scenario}");
    for link in 0..scenario.links.len() {
        let alone = SimBond::new(scenario.only(link), seed).run(length);
        println!("link {link} alone: {:.2} Mbit/s", alone.goodput_mbit());
    }
    if let [link] = link {
        scenario = scenario.only(link.parse().context(USAGE)?);
    }
    scenario.trace_every = Some(Duration::from_millis(100));
    let report = SimBond::new(scenario, seed).run(length);
    report.trace.iter().for_each(|line| println!("{line}"));
    println!("{report}");
    Ok(())
}
