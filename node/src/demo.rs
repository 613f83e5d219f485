//! `mwb-node demo`: what a bond does, to be seen within a minute on any Linux machine.
//!
//! Hosts with emulated uplinks in a lab of namespaces, and this very program as the node on each of them and on the
//! exit. First every uplink carries one TCP download alone, without a tunnel; then one download runs over the bond of
//! all, during which one uplink becomes a black hole and comes back. The pieces: [`stage`] the lab, [`meter`] what
//! runs now, [`view`] what is seen of it, [`report`] what came of it.

mod meter;
mod report;
mod signals;
mod stage;
mod view;

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use mwb_sim::lab::{self, Host, Lab, Running};
use mwb_sim::traffic::{FlowResult, FlowSpec, TrafficError, download};

use crate::cli::Failure;
use crate::lab_mesh::{Mesh, MeshOptions};
use crate::{lab_refused, output};
use meter::{Meter, Rates};
use report::{LinkReport, Report};
use signals::{Interrupted, Interruption};
use stage::{CUT_LINE, LINES, Stage};
use view::{HISTORY, Picture, Row, Screen};

/// Between two looks at the counters.
const TICK: Duration = Duration::from_millis(200);
/// Cut from the start of the download over the bond: slow start is not what a bond is for.
const WARM_UP: Duration = Duration::from_secs(3);
/// Parts of the download after which an uplink is cut, and is back.
const CUT_AT: f64 = 0.5;
const BACK_AT: f64 = 0.75;

/// How to show it.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Print one JSON object when done; the progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Length of the download over the bond
    #[arg(long, hide = true, default_value_t = 28, value_parser = clap::value_parser!(u64).range(12..=600))]
    seconds: u64,
}

/// Plays the demo and prints what came of it.
///
/// # Errors
/// When this machine refuses what a lab or a node needs (the message says what and the cure), a node fails, or a
/// signal ends it.
pub(crate) fn demo(args: &DemoArgs) -> Result<(), Failure> {
    // First: a process with threads cannot move into a user namespace.
    lab::enter().map_err(|error| Failure::new(lab_refused::explain(&error)))?;
    let interruption = Interruption::watch()?;
    let played = play(args, &interruption);
    // A signal that reached the nodes too may show as their failure first.
    let report = match interruption.check() {
        Ok(()) => played?,
        Err(interrupted) => return Err(failure(interrupted)),
    };
    if args.json {
        let text = serde_json::to_string_pretty(&report).context("writing the report")?;
        return Ok(output::line(&text)?);
    }
    Ok(output::text(&format!("\n{}", report.text()))?)
}

fn failure(error: anyhow::Error) -> Failure {
    match error.downcast_ref::<Interrupted>() {
        Some(interrupted) => Failure { code: interrupted.code, message: interrupted.to_string() },
        None => error.into(),
    }
}

fn play(args: &DemoArgs, interruption: &Interruption) -> anyhow::Result<Report> {
    Lab::preflight().map_err(|error| anyhow::anyhow!(lab_refused::explain(&error)))?;
    let stage = Stage::build()?;
    let mut show = Show::new(&stage, interruption, args.json)?;
    let alone = (args.seconds / 4).clamp(3, 10);
    for (index, line) in LINES.iter().enumerate() {
        let (host, interface) = stage.owner(line.name).context("the lab lacks an uplink")?;
        show.picture.headline = format!("{} alone, without a tunnel", line.name);
        show.picture.host = host.name().to_owned();
        let spec = show.flow(alone).device(&interface);
        let result = show.watch(start(&host, spec), |_, _| Ok(()))?;
        let warm_up = Duration::from_secs(alone).mul_f64(0.3);
        show.picture.rows[index].alone = Some(checked(&result)?.goodput_mbit(warm_up));
    }

    show.say("starting a node on every host")?;
    let mut mesh = Mesh::start(stage.lab(), &MeshOptions::default(), &|| interruption.check())?;
    let bond = show.bond(args.seconds, &mut mesh)?;
    show.say("done")?;
    // Everything has been measured: how the nodes end is no part of it, but that they do is.
    mesh.stop()?;

    let emulator = stage.emulator();
    let mut links = Vec::new();
    for ((line, row), bond_bytes) in LINES.iter().zip(&show.picture.rows).zip(bond.bytes) {
        links.push(LinkReport {
            name: line.name,
            host: row.host.clone(),
            mbit: line.mbit,
            rtt_ms: line.rtt_ms,
            alone_mbit: row.alone.context("an uplink was not measured alone")?,
            bond_bytes,
        });
    }
    let sum_mbit: f64 = links.iter().map(|link| link.alone_mbit).sum();
    let bond_mbit = bond.result.goodput_mbit_between(WARM_UP, bond.cut);
    let counters = emulator.all_counters()?;
    let overruns = counters.iter().flat_map(|(_, link)| [link.up, link.down]);
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        seconds: args.seconds,
        best_link_mbit: links.iter().map(|link| link.alone_mbit).fold(0.0, f64::max),
        sum_mbit,
        bond_mbit,
        bond_over_sum: bond_mbit / sum_mbit,
        cut_link: LINES[CUT_LINE].name,
        cut_mbit: bond.result.goodput_mbit_between(bond.cut, bond.back),
        longest_pause_ms: bond.result.longest_gap_ms(),
        complete: bond.result.complete(),
        links,
        emulator_lateness_p99_us: emulator.lateness()?.p99_us,
        emulator_overrun_packets: overruns.map(|way| way.dropped_emulator + way.dropped_socket).sum(),
    })
}

/// The download over the bond.
struct Bonded {
    result: FlowResult,
    /// When the uplink was cut and when it was back, from the start of the download.
    cut: Duration,
    back: Duration,
    /// IP bytes that each link delivered meanwhile, downwards.
    bytes: Vec<u64>,
}

/// What is shown, and what it is made from.
struct Show<'a> {
    stage: &'a Stage,
    interruption: &'a Interruption,
    meter: Meter,
    screen: Screen,
    picture: Picture,
}

impl<'a> Show<'a> {
    fn new(stage: &'a Stage, interruption: &'a Interruption, aside: bool) -> anyhow::Result<Self> {
        let mut rows = Vec::new();
        for line in &LINES {
            let (host, _) = stage.owner(line.name).context("the lab lacks an uplink")?;
            rows.push(Row {
                name: line.name.to_owned(),
                host: host.name().to_owned(),
                rtt_ms: line.rtt_ms,
                ..Row::default()
            });
        }
        let full = LINES.iter().map(|line| line.mbit).sum();
        let picture = Picture { rows, full, ..Picture::default() };
        let meter = Meter::new(stage.emulator());
        Ok(Self { stage, interruption, meter, screen: Screen::new(aside), picture })
    }

    fn flow(&self, seconds: u64) -> FlowSpec {
        FlowSpec::seconds(self.stage.server(), seconds).progress(self.meter.delivered())
    }

    fn say(&mut self, headline: &str) -> anyhow::Result<()> {
        headline.clone_into(&mut self.picture.headline);
        self.picture.goodput = 0.0;
        self.picture.rows.iter_mut().for_each(|row| row.now = 0.0);
        Ok(self.screen.show(&self.picture)?)
    }

    /// Shows a download until its end. `each` is called with its age at every look, before the picture is drawn.
    fn watch(
        &mut self,
        running: Running<Result<FlowResult, TrafficError>>,
        mut each: impl FnMut(&mut Self, Duration) -> anyhow::Result<()>,
    ) -> anyhow::Result<FlowResult> {
        let start = Instant::now();
        self.meter.restart();
        while !running.is_finished() {
            self.interruption.check()?;
            let Rates { links, goodput } = self.meter.sample()?;
            self.picture.goodput = goodput;
            self.picture.rows.iter_mut().zip(links).for_each(|(row, now)| row.now = now);
            each(self, start.elapsed())?;
            self.screen.show(&self.picture)?;
            std::thread::sleep(TICK);
        }
        Ok(running.join()?)
    }

    /// One download on the first host over all uplinks, one of which is cut for a while.
    fn bond(&mut self, seconds: u64, mesh: &mut Mesh) -> anyhow::Result<Bonded> {
        let length = Duration::from_secs(seconds);
        let emulator = self.stage.emulator();
        let carried = || -> anyhow::Result<Vec<u64>> {
            Ok(emulator.all_counters()?.iter().map(|(_, link)| link.down.bytes).collect())
        };
        let line = LINES[CUT_LINE].name;
        let client = self.stage.client();
        self.picture.host = client.name().to_owned();
        self.picture.headline = format!("one download on {} over all uplinks", client.name());
        let (mut cut, mut back) = (None, None);
        let before = carried()?;
        let result = self.watch(start(&client, self.flow(seconds)), |show, age| {
            mesh.check()?;
            if cut.is_none() && age >= length.mul_f64(CUT_AT) {
                cut = Some(age);
                emulator.cut(line)?;
                show.picture.rows[CUT_LINE].cut = true;
                show.picture.headline = format!("{line} is cut: a black hole, its interface stays up");
            }
            if back.is_none() && age >= length.mul_f64(BACK_AT) {
                back = Some(age);
                emulator.restore(line)?;
                show.picture.rows[CUT_LINE].cut = false;
                show.picture.headline = format!("{line} is back");
            }
            let due = (age.as_secs_f64() / length.as_secs_f64() * HISTORY as f64) as usize;
            while show.picture.history.len() < due.min(HISTORY) {
                show.picture.history.push(show.picture.goodput);
            }
            Ok(())
        })?;
        let bytes = carried()?.iter().zip(&before).map(|(after, before)| after - before).collect();
        let (Some(cut), Some(back)) = (cut, back) else {
            let failure = checked(&result).err();
            bail!("the download ended early{}", failure.map(|e| format!(": {e}")).unwrap_or_default());
        };
        checked(&result)?;
        Ok(Bonded { result, cut, back, bytes })
    }
}

fn start(host: &Host, spec: FlowSpec) -> Running<Result<FlowResult, TrafficError>> {
    host.start(move || download(&spec))
}

/// A flow that broke, or ran with another congestion control than asked for, is no figure.
fn checked(result: &FlowResult) -> anyhow::Result<&FlowResult> {
    if let Some(failure) = &result.failure {
        bail!("the download failed: {failure}");
    }
    if let Some(refused) = &result.sender.congestion_control_refused {
        bail!("the kernel refused a congestion control ({refused}); load its module: modprobe tcp_cubic");
    }
    Ok(result)
}
