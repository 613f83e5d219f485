//! Many edges at one exit, each behind its own uplink and with nothing else in common: what they cost the exit while unused, and what
//! each gets when all download at once.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, bail};
use mwb_sim::traffic::{download, udp_echo};
use serde::Serialize;

use super::CUT;
use super::idle::{Cost, Reading};
use super::report::{Echo, Figure, Health, Measured};
use super::sharing_report::jain;
use super::stage::{Stage, check};
use super::timeline::Timeline;

/// Not counted: the nodes have just met.
const SETTLE: Duration = Duration::from_secs(3);
/// For how long the exit without edges is looked at.
const ALONE: Duration = Duration::from_secs(5);
/// Length of the echo without other traffic.
const ECHO_IDLE: Duration = Duration::from_secs(5);
/// Echoes per second of the first edge: enough for a 99th percentile.
const ECHO_RATE: f64 = 100.0;
const KIB_PER_MIB: f64 = 1024.0;

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct EdgesRun {
    edges: usize,
    /// The exit before any edge came.
    exit_alone: Cost,
    /// The exit with all edges, none of which has anything to send.
    exit_idle: Cost,
    per_edge: PerEdge,
    /// A download of every host over its own uplink past the tunnel, all at once.
    raw: Shares,
    /// The same through the exit.
    bond: Shares,
    /// Their sum over that of `raw`.
    ratio: f64,
    /// The exit meanwhile.
    exit_loaded: Cost,
    /// How busy all processors together were meanwhile, in per cent. Near 100 the figures are the machine's.
    machine_busy_percent: f64,
    /// Of the first edge, without other traffic and beside all downloads.
    echo_idle: Echo,
    echo_loaded: Echo,
    emulator: Health,
    timeline: Timeline,
}

/// What one more idle edge costs the exit, on average.
#[derive(Clone, Copy, Debug, Serialize)]
struct PerEdge {
    /// Per cent of one core.
    cpu_percent: f64,
    /// Resident memory, KiB.
    rss_kib: f64,
}

/// One download on every host.
#[derive(Debug, Serialize)]
struct Shares {
    /// Goodput of each, after the cut.
    mbit: Vec<f64>,
    sum_mbit: f64,
    /// Jain's index.
    fairness: f64,
    /// The least over the mean.
    least_of_mean: f64,
}

/// Measures everything once.
///
/// # Errors
/// When a node or a flow fails.
pub(super) fn run(stage: &Stage<'_>) -> anyhow::Result<EdgesRun> {
    let edges = stage.edges();
    let first = edges.first().context("a lab without edges")?.clone();
    let (raw, _) = together(stage, "a download on every host, past the tunnel", true)?;

    let alone = stage.exit_alone()?;
    let exit_alone = idle(alone.pid("exit")?, ALONE)?;
    alone.stop()?;

    let mesh = stage.mesh(None)?;
    let pid = mesh.pid("exit")?;
    let length = stage.settings().length;
    stage.say(&format!("{} edges idle for {} s", edges.len(), length.as_secs()));
    let exit_idle = idle(pid, length)?;
    let count = edges.len() as f64;
    let per_edge = PerEdge {
        cpu_percent: (exit_idle.cpu_percent - exit_alone.cpu_percent) / count,
        rss_kib: (exit_idle.rss_mib - exit_alone.rss_mib) * KIB_PER_MIB / count,
    };

    let mut echo = stage.echo_for(ECHO_IDLE);
    echo.rate = ECHO_RATE;
    stage.say("the first edge's echo");
    let spec = echo.clone();
    let echo_idle = Echo::from(&first.run(move || udp_echo(&spec))?);
    echo.duration = length - CUT;
    let beside = first.start(move || {
        std::thread::sleep(CUT);
        udp_echo(&echo)
    });
    let before = processors()?;
    let (exit_loaded, (bond, timeline)) =
        cost(pid, || together(stage, "a download on every edge, through the exit", false))?;
    let machine_busy_percent = busy_percent(before, processors()?);
    let echo_loaded = Echo::from(&beside.join()?);
    let emulator = stage.health()?;
    mesh.stop()?;
    Ok(EdgesRun {
        edges: edges.len(),
        exit_alone,
        exit_idle,
        per_edge,
        ratio: bond.sum_mbit / raw.sum_mbit,
        raw,
        bond,
        exit_loaded,
        machine_busy_percent,
        echo_idle,
        echo_loaded,
        emulator,
        timeline,
    })
}

/// What a process takes that has just started to have nothing to do.
fn idle(pid: u32, length: Duration) -> anyhow::Result<Cost> {
    std::thread::sleep(SETTLE);
    let before = Reading::of(pid)?;
    std::thread::sleep(length);
    Ok(Cost::between(&before, &Reading::of(pid)?))
}

/// What a process took while `work` was done.
fn cost<R>(pid: u32, work: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<(Cost, R)> {
    let before = Reading::of(pid)?;
    let result = work()?;
    Ok((Cost::between(&before, &Reading::of(pid)?), result))
}

/// Time that all processors together have spent since the machine started: idle, and in all (proc_stat(5)).
fn processors() -> anyhow::Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    // The times of guests are parts of others.
    let ticks: Vec<u64> =
        first.split_whitespace().skip(1).take(8).map_while(|word| word.parse().ok()).collect();
    let (Some(idle), Some(waiting)) = (ticks.get(3), ticks.get(4)) else { bail!("no times in {first:?}") };
    Ok((idle + waiting, ticks.iter().sum()))
}

fn busy_percent(before: (u64, u64), after: (u64, u64)) -> f64 {
    let (idle, all) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    100.0 * all.saturating_sub(idle) as f64 / all.max(1) as f64
}

/// A download on every host at once, over its uplink itself or by its routes.
fn together(stage: &Stage<'_>, title: &str, past: bool) -> anyhow::Result<(Shares, Timeline)> {
    let (results, carried) = stage.counted(title, || {
        let running: Vec<_> = stage
            .edges()
            .iter()
            .zip(1..)
            .map(|(host, seed)| {
                let mut spec = stage.flow(stage.settings().length).seed(seed);
                if past {
                    spec = spec.device(&host.uplinks()[0].interface);
                }
                host.start(move || download(&spec))
            })
            .collect();
        running.into_iter().map(|flow| check(flow.join()?, "download")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mbit = results.iter().map(|result| result.goodput_mbit(CUT)).collect();
    Ok((Shares::new(mbit), carried.timeline))
}

impl Shares {
    fn new(mbit: Vec<f64>) -> Self {
        let sum_mbit: f64 = mbit.iter().sum();
        let least = mbit.iter().copied().fold(f64::INFINITY, f64::min);
        let least_of_mean = least * mbit.len() as f64 / sum_mbit;
        Self { sum_mbit, fairness: jain(&mbit), least_of_mean, mbit }
    }

    fn write(&self, out: &mut String, label: &str) -> std::fmt::Result {
        let Self { sum_mbit, fairness, least_of_mean, .. } = self;
        writeln!(out, "  {label:<30}{sum_mbit:>10.2}{fairness:>10.3}{least_of_mean:>12.3}")
    }
}

impl Measured for EdgesRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { edges, per_edge, ratio, .. } = self;
        writeln!(out, "  {:<30}{:>12}{:>8}{:>14}", "the exit's process", "% of a core", "MiB", "switches/s")?;
        for (label, cost) in [
            ("without an edge".to_owned(), self.exit_alone),
            (format!("{edges} idle edges"), self.exit_idle),
            (format!("{edges} edges that download"), self.exit_loaded),
        ] {
            let Cost { cpu_percent, rss_mib, switches_per_second } = cost;
            writeln!(out, "  {label:<30}{cpu_percent:>12.2}{rss_mib:>8.1}{switches_per_second:>14.0}")?;
        }
        let PerEdge { cpu_percent, rss_kib } = per_edge;
        writeln!(out, "  an idle edge more: {cpu_percent:.3} % of a core, {rss_kib:.0} KiB")?;
        writeln!(out, "  {:<30}{:>10}{:>10}{:>12}", "all at once, Mbit/s", "sum", "Jain", "least/mean")?;
        self.raw.write(out, "past the tunnel")?;
        self.bond.write(out, "through the exit")?;
        writeln!(out, "  {:<30}{ratio:>10.3}", "through it / past it")?;
        writeln!(out, "  all processors were busy for {:.0} % of that time", self.machine_busy_percent)?;
        writeln!(
            out,
            "  {:<30}{:>8}{:>8}{:>8}{:>8}{:>7}",
            "the first edge's UDP echo, ms", "p50", "p95", "p99", "max", "lost"
        )?;
        self.echo_idle.write(out, "idle")?;
        self.echo_loaded.write(out, "beside all downloads")?;
        self.emulator.write(out)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        vec![&self.timeline]
    }

    fn figures(&self) -> Vec<Figure> {
        [
            ("an idle edge more, % of a core", self.per_edge.cpu_percent),
            ("an idle edge more, KiB", self.per_edge.rss_kib),
            ("all downloads / past the tunnel", self.ratio),
            ("fairness among them (Jain)", self.bond.fairness),
            ("the least / the mean", self.bond.least_of_mean),
            ("UDP echo p95 beside them, ms", self.echo_loaded.p95_ms),
            ("the exit meanwhile, % of a core", self.exit_loaded.cpu_percent),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_all() {
        let shares = Shares::new(vec![9.0, 6.0, 9.0]);
        assert!((shares.sum_mbit - 24.0).abs() < 1e-9 && (shares.least_of_mean - 0.75).abs() < 1e-9);
        assert!((busy_percent((10, 20), (20, 60)) - 75.0).abs() < 1e-9);
        let (idle, all) = processors().unwrap();
        assert!(idle < all);
        assert!((shares.fairness - 576.0 / (3.0 * 198.0)).abs() < 1e-9);
    }
}
