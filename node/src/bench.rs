//! `mwb-node bench`: the bond against its own raw links, with real nodes, a real kernel and emulated uplinks.
//!
//! One run, all in one lab: each raw link alone with one TCP flow each way, then the nodes start and the same
//! flow goes through the bond, with a slow UDP echo beside it. What is compared was measured minutes apart on
//! the same machine. Bytes per link come from the emulator, goodput from the receiving program.

mod control_bytes;
mod cpu;
mod edges;
mod flood;
mod idle;
mod measure;
mod mptcp;
mod neighbours;
mod openvpn;
mod outage;
mod overhead;
mod plot;
mod profile;
mod program;
mod relayed;
mod report;
mod sharing;
mod sharing_report;
mod stage;
mod timeline;
mod udp_loss;
mod ways;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use mwb_proto::bond::RoutingMode;
use mwb_sim::lab::{self, Lab};

use crate::cli::Failure;
use crate::{lab_refused, output};
use profile::{Kind, Profile};
use report::{Measured, Report};
use stage::{Settings, Stage};

/// Cut from the start of every transfer: slow start is not what a bond is for.
const CUT: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Args)]
pub(crate) struct BenchArgs {
    // Its help is the table of profiles.
    #[arg(long, value_name = "NAME", default_value = "two-path", help = profile::help())]
    profile: String,
    /// A file with profiles of your own, in the form of the built-in ones (see node/README.md)
    #[arg(long, value_name = "FILE")]
    profiles: Option<PathBuf>,
    /// Routing mode of both nodes (see the README); when given, also measures how a load of 70 % of the links'
    /// sum is spread
    #[arg(long, value_name = "MODE")]
    mode: Option<RoutingMode>,
    /// Congestion control of the TCP flows, inside the bond and beside it
    #[arg(long, value_name = "NAME", default_value = "cubic", value_parser = ["cubic", "bbr"])]
    congestion: String,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Length of each transfer; figures count from 15 s on
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// How often to measure everything
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    runs: u64,
    /// Write a picture of what each link delivered over time, of the first run
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
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
    Ok(output::text(&measure_all(args)?)?)
}

/// Measures a profile of links. The result is the text to print.
fn measure_all(args: &BenchArgs) -> anyhow::Result<String> {
    let profile = profile::find(&args.profile, args.profiles.as_deref())?;
    Lab::preflight().map_err(|error| anyhow::anyhow!(lab_refused::explain(&error)))?;
    if let Some(trace) = &args.trace {
        std::fs::create_dir_all(trace).with_context(|| format!("making {}", trace.display()))?;
    }
    output::progress("waiting for other labs on this machine to end");
    let _alone = lab::machine_lock().context("taking the machine's lock")?;
    match profile.kind {
        Kind::Bond => repeat(args, &profile, measure::run),
        Kind::Lan => repeat(args, &profile, sharing::run),
        Kind::Relayed => repeat(args, &profile, relayed::run),
        Kind::Cut => repeat(args, &profile, outage::cuts),
        Kind::Return => repeat(args, &profile, outage::returns),
        Kind::Cpu => repeat(args, &profile, cpu::run),
        Kind::Flood => repeat(args, &profile, flood::run),
        Kind::Edges => repeat(args, &profile, edges::run),
        Kind::Neighbours => repeat(args, &profile, neighbours::run),
    }
}

/// Does `one` as often as asked for, each time in a new lab.
fn repeat<R: Measured>(
    args: &BenchArgs,
    profile: &Profile,
    one: impl Fn(&Stage<'_>) -> anyhow::Result<R>,
) -> anyhow::Result<String> {
    let mut runs = Vec::new();
    for number in 1..=args.runs {
        let say = |what: &str| output::progress(&format!("[{number}/{}] {what}", args.runs));
        let settings = Settings {
            mode: args.mode,
            length: Duration::from_secs(args.seconds),
            congestion_control: args.congestion.clone(),
            trace: args.trace.clone().map(|dir| (dir, format!("{}-run{number}", profile.name))),
        };
        runs.push(one(&Stage::new(profile, settings, &say)?)?);
    }
    let report = Report {
        profile: profile.clone(),
        mode: args.mode.unwrap_or_default(),
        congestion_control: args.congestion.clone(),
        seconds: args.seconds,
        cut_seconds: CUT.as_secs(),
        version: env!("CARGO_PKG_VERSION"),
        medians: report::medians(&runs),
        runs,
    };
    if let (Some(file), Some(run)) = (&args.plot, report.runs.first()) {
        let picture = plot::svg(&format!("mwb-node bench, {}", profile.name), &run.timelines());
        std::fs::write(file, picture).with_context(|| format!("writing {}", file.display()))?;
    }
    if !args.json {
        return Ok(report.table());
    }
    let mut text = serde_json::to_string_pretty(&report).context("writing the report")?;
    text.push('\n');
    Ok(text)
}
