//! `--profile idle`: what a node costs while nobody uses it. An edge with two uplinks and its exit, by the kernel's
//! accounts in `/proc`.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mwb_sim::lab::{self, Lab};
use serde::Serialize;

use super::profile;
use super::program::Program;
use super::{BenchArgs, output};
use crate::lab_mesh::{Mesh, MeshOptions};
use crate::lab_refused;

/// What the command line calls it; it is not in the table of links.
pub(super) const NAME: &str = "idle";
pub(super) const ABOUT: &str = "what nodes cost while unused: CPU and memory; start and size of the program";
/// The links under it.
const LINKS: &str = "two-path";
/// Not counted: the nodes have just met.
const SETTLE: Duration = Duration::from_secs(3);
/// Least time counted: a hundredth of a core is 20 of the kernel's ticks then.
const SECONDS_MIN: u64 = 20;

/// Aims: per cent of one core, MiB of resident memory.
const CPU_PERCENT_MAX: f64 = 1.0;
const RSS_MIB_MAX: f64 = 40.0;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct IdleReport {
    /// Always `idle`.
    profile: &'static str,
    /// Time counted.
    seconds: f64,
    /// Version of the program.
    version: &'static str,
    /// The edge, with two uplinks.
    edge: Cost,
    /// Its exit.
    exit: Cost,
    /// No more than this.
    target: Target,
    /// The program itself.
    program: Program,
}

/// What the cost should stay below.
#[derive(Clone, Copy, Debug, Serialize)]
struct Target {
    /// Per cent of one core.
    cpu_percent: f64,
    /// Resident memory, MiB.
    rss_mib: f64,
}

/// The cost of one node.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Cost {
    /// User and system time in per cent of one core.
    pub(super) cpu_percent: f64,
    /// Resident memory, MiB.
    pub(super) rss_mib: f64,
    /// Times a second that one of its threads was woken or interrupted.
    pub(super) switches_per_second: f64,
}

/// One reading of a process' accounts.
pub(super) struct Reading {
    at: Instant,
    cpu: Duration,
    rss_mib: f64,
    switches: u64,
}

/// Measures once.
///
/// # Errors
/// When the host does not allow labs, or a node does not work.
pub(super) fn measure(args: &BenchArgs) -> anyhow::Result<IdleReport> {
    let profile = profile::find(LINKS, None)?;
    let program = Program::measure()?;
    Lab::preflight().map_err(|error| anyhow::anyhow!(lab_refused::explain(&error)))?;
    output::progress("waiting for other labs on this machine to end");
    let _alone = lab::machine_lock().context("taking the machine's lock")?;
    let lab = profile.lab().context("building the lab")?;
    let options = MeshOptions { mode: args.mode.unwrap_or_default(), ..MeshOptions::default() };
    let mesh = Mesh::start(&lab, &options, &|| Ok(()))?;
    std::thread::sleep(SETTLE);
    let length = Duration::from_secs(args.seconds.max(SECONDS_MIN));
    output::progress(&format!("two nodes idle for {} s", length.as_secs()));
    let read =
        || -> anyhow::Result<_> { Ok([Reading::of(mesh.pid("edge")?)?, Reading::of(mesh.pid("exit")?)?]) };
    let before = read()?;
    std::thread::sleep(length);
    let after = read()?;
    mesh.stop()?;
    Ok(IdleReport {
        profile: NAME,
        seconds: (after[0].at - before[0].at).as_secs_f64(),
        version: env!("CARGO_PKG_VERSION"),
        edge: Cost::between(&before[0], &after[0]),
        exit: Cost::between(&before[1], &after[1]),
        target: Target { cpu_percent: CPU_PERCENT_MAX, rss_mib: RSS_MIB_MAX },
        program,
    })
}

impl Cost {
    /// What the process did between two readings.
    pub(super) fn between(before: &Reading, after: &Reading) -> Self {
        let seconds = (after.at - before.at).as_secs_f64();
        Self {
            cpu_percent: 100.0 * (after.cpu - before.cpu).as_secs_f64() / seconds,
            rss_mib: after.rss_mib,
            switches_per_second: after.switches.saturating_sub(before.switches) as f64 / seconds,
        }
    }
}

impl Reading {
    /// Of the process with this id.
    ///
    /// # Errors
    /// When it has ended.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let file = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
        };
        let at = Instant::now();
        let rss_mib = field(&file("status")?, "VmRSS:")? as f64 / 1024.0;
        let mut switches = 0;
        let tasks = format!("/proc/{pid}/task");
        for task in std::fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))?.flatten() {
            // A thread may end at any time.
            let Ok(status) = std::fs::read_to_string(task.path().join("status")) else { continue };
            switches += field(&status, "\nvoluntary_ctxt_switches:")?
                + field(&status, "nonvoluntary_ctxt_switches:")?;
        }
        Ok(Self { at, cpu: cpu_time(&file("stat")?)?, rss_mib, switches })
    }
}

/// The number after `name` in a `status` file of `/proc` (proc_pid_status(5)).
fn field(status: &str, name: &str) -> anyhow::Result<u64> {
    let number = status.split(name).nth(1).and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).with_context(|| format!("no {name} in {status:?}"))
}

/// User and system time of a process from its `stat` file (proc_pid_stat(5), fields 14 and 15).
fn cpu_time(stat: &str) -> anyhow::Result<Duration> {
    // The second field is the program's name in brackets, in which anything may be.
    let Some((_, rest)) = stat.rsplit_once(')') else { bail!("no process in {stat:?}") };
    let ticks =
        |field: usize| rest.split_whitespace().nth(field - 3).and_then(|text| text.parse::<u64>().ok());
    let (Some(user), Some(system)) = (ticks(14), ticks(15)) else { bail!("no times in {stat:?}") };
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64((user + system) as f64 / per_second as f64))
}

impl IdleReport {
    /// For people.
    pub(super) fn table(&self) -> String {
        let mut out = format!("idle: an edge with two uplinks and its exit, {:.0} s\n", self.seconds);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {:<10}{:>12}{:>12}{:>14}", "", "% of a core", "MiB", "switches/s");
        for (name, cost) in [("edge", self.edge), ("exit", self.exit)] {
            let Cost { cpu_percent, rss_mib, switches_per_second } = cost;
            let _ =
                writeln!(out, "  {name:<10}{cpu_percent:>12.2}{rss_mib:>12.1}{switches_per_second:>14.0}");
        }
        let Target { cpu_percent, rss_mib } = self.target;
        let _ = writeln!(out, "  {:<10}{cpu_percent:>12.2}{rss_mib:>12.1}", "target <");
        out + &self.program.line()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_of_a_process_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 5 0 9 1 2";
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_time(stat).unwrap(), Duration::from_secs_f64(200.0 / per_second));
        assert!(cpu_time("7 (a) S 1").is_err());
        let status = "VmRSS:\t    2048 kB\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t2\n";
        assert_eq!(field(status, "VmRSS:").unwrap(), 2048);
        assert_eq!(field(status, "\nvoluntary_ctxt_switches:").unwrap(), 5);
        assert!(field(status, "VmSwap:").is_err());
        let own = Reading::of(std::process::id()).unwrap();
        assert!(own.rss_mib > 0.1 && own.switches > 0);
    }
}
