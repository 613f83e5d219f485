//! `mwb-node bench`: the bond against its own raw links, with real nodes, a real kernel and emulated uplinks.
//!
//! One run, all in one lab: each raw link alone with one TCP flow each way, then the nodes start and the same
//! flow goes through the bond, with a slow UDP echo beside it. What is compared was measured minutes apart on
//! the same machine. Bytes per link come from the emulator, goodput from the receiving program.

mod idle;
mod measure;
mod overhead;
mod profile;
mod report;
mod sharing;
mod sharing_report;
mod udp_loss;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use mwb_proto::bond::RoutingMode;
use mwb_sim::lab::{self, Lab};

use crate::cli::Failure;
use crate::{lab_refused, output};
use measure::Bench;
use report::Report;
use sharing::Sharing;
use sharing_report::SharingReport;

/// Cut from the start of every transfer: slow start is not what a bond is for.
const CUT: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Links to emulate: two-path, lossy, three-path, big, equal4 or uneven; lan3: hosts that lend each other theirs;
    /// idle: what nodes cost while unused; udp-loss: what repair does for UDP over links that lose 2 %
    #[arg(long, default_value = "two-path")]
    profile: String,
    /// Routing mode of both nodes (see the README); when given, also measures how a load of 70 % of the links'
    /// sum is spread
    #[arg(long, value_name = "MODE")]
    mode: Option<RoutingMode>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Length of each transfer; figures count from 15 s on
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// How often to measure everything
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    runs: u64,
    /// Write the nodes' traces into this folder
    #[arg(long, value_name = "DIR")]
    trace: Option<PathBuf>,
}

/// Measures and prints.
///
/// # Errors
/// When the host does not allow labs, or the nodes do not work; nothing is printed then.
pub(crate) fn bench(args: &BenchArgs) -> Result<(), Failure> {
    // First: a process with threads cannot move into a user namespace.
    lab::enter().map_err(|error| Failure::new(lab_refused::explain(&error)))?;
    if args.profile == udp_loss::NAME {
        let report = udp_loss::measure(args)?;
        if args.json {
            output::line(&serde_json::to_string_pretty(&report).context("writing the report")?)?;
        } else {
            output::text(&report.table())?;
        }
        return Ok(());
    }
    if args.profile == idle::NAME {
        let report = idle::measure(args)?;
        if args.json {
            output::line(&serde_json::to_string_pretty(&report).context("writing the report")?)?;
        } else {
            output::text(&report.table())?;
        }
        return Ok(());
    }
    let (json, table) = match measure_all(args)? {
        Measured::Bond(report) => (serde_json::to_string_pretty(&report), report.table()),
        Measured::Sharing(report) => (serde_json::to_string_pretty(&report), report.table()),
    };
    if args.json {
        return Ok(output::line(&json.context("writing the report")?)?);
    }
    Ok(output::text(&table)?)
}

/// By the kind of the profile.
enum Measured {
    Bond(Report),
    Sharing(SharingReport),
}

fn measure_all(args: &BenchArgs) -> anyhow::Result<Measured> {
    let profile = profile::find(&args.profile)?;
    Lab::preflight().map_err(|error| anyhow::anyhow!(lab_refused::explain(&error)))?;
    if let Some(trace) = &args.trace {
        std::fs::create_dir_all(trace).with_context(|| format!("making {}", trace.display()))?;
    }
    output::progress("waiting for other labs on this machine to end");
    let _alone = lab::machine_lock().context("taking the machine's lock")?;
    let length = Duration::from_secs(args.seconds);
    let (mut runs, mut shared) = (Vec::new(), Vec::new());
    for number in 1..=args.runs {
        let say = |what: &str| output::progress(&format!("[{number}/{}] {what}", args.runs));
        let trace = args.trace.as_ref().map(|dir| (dir.as_path(), format!("{}-run{number}", profile.name)));
        if profile.lan {
            shared.push(Sharing::new(&profile, args.mode, length, &say)?.run(trace)?);
        } else {
            runs.push(Bench::new(&profile, args.mode, length, &say)?.run(trace)?);
        }
    }
    if profile.lan {
        return Ok(Measured::Sharing(SharingReport {
            profile,
            mode: args.mode.unwrap_or_default(),
            seconds: args.seconds,
            cut_seconds: CUT.as_secs(),
            version: env!("CARGO_PKG_VERSION"),
            runs: shared,
        }));
    }
    Ok(Measured::Bond(Report {
        profile,
        mode: args.mode.unwrap_or_default(),
        seconds: args.seconds,
        cut_seconds: CUT.as_secs(),
        version: env!("CARGO_PKG_VERSION"),
        runs,
    }))
}
