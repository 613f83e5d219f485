//! Neighbours on two of the uplinks: a CUBIC flow of each beside the bond's, over the same two bottlenecks.
//!
//! Their flows leave by the same emulated links past the tunnel, so they meet the bond in the provider's queue, as a
//! neighbour's would.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use super::CUT;
use super::report::{Figure, Health, Measured, RawLink, both, mbit_row, ratio_row, write_raw};
use super::stage::{Stage, check};
use super::timeline::Timeline;
use super::ways::{Way, Ways};

/// So many of the first links have a neighbour.
const NEIGHBOURS: usize = 2;

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct NeighboursRun {
    raw: Vec<RawLink>,
    /// The bond's flow beside the neighbours', over all links.
    bond: Beside,
    /// One on each of the first links.
    neighbours: Vec<Beside>,
    emulator: Health,
    timelines: Vec<Timeline>,
}

/// What one side got.
#[derive(Debug, Serialize)]
struct Beside {
    /// Where its rivals are.
    link: Option<String>,
    mbit: Ways<f64>,
    /// Over its fair share: half of what a shared link carries alone, all of one that is not shared.
    of_fair_share: Ways<f64>,
}

/// Measures both ways.
///
/// # Errors
/// When a flow or a node fails.
pub(super) fn run(stage: &Stage<'_>) -> anyhow::Result<NeighboursRun> {
    let raw = stage.raw_links()?;
    let mesh = stage.mesh(None)?;
    let both = Ways::try_of(|way| beside(stage, way))?;
    let emulator = stage.health()?;
    mesh.stop()?;
    let half: Vec<Ways<f64>> = raw.iter().map(|raw| raw.mbit.map(|mbit| mbit / 2.0)).collect();
    let fair = |way: Way| {
        let shared = half.iter().take(NEIGHBOURS).map(|half| *half.of(way)).sum::<f64>();
        shared + raw.iter().skip(NEIGHBOURS).map(|raw| *raw.mbit.of(way)).sum::<f64>()
    };
    let fair = Ways { download: fair(Way::Download), upload: fair(Way::Upload) };
    let mbit = both.map(|(mbit, _)| mbit[0]);
    let bond = Beside { link: None, mbit, of_fair_share: mbit.over(fair) };
    let neighbours = raw.iter().zip(&half).take(NEIGHBOURS).enumerate().map(|(index, (raw, half))| {
        let mbit = both.map(|(mbit, _)| mbit[index + 1]);
        Beside { link: Some(raw.link.clone()), mbit, of_fair_share: mbit.over(*half) }
    });
    let neighbours = neighbours.collect();
    let timelines = [both.download, both.upload].map(|(_, timeline)| timeline).into();
    Ok(NeighboursRun { raw, bond, neighbours, emulator, timelines })
}

/// All flows at once: the rate of the bond's, then of the neighbours'.
fn beside(stage: &Stage<'_>, way: Way) -> anyhow::Result<(Vec<f64>, Timeline)> {
    let edge = stage.lab().host("edge");
    let length = stage.settings().length;
    let mut specs = vec![stage.flow(length)];
    for link in stage.profile().links.iter().take(NEIGHBOURS) {
        let (_, device) = stage.device(&link.name)?;
        specs.push(stage.flow(length).congestion_control("cubic").device(&device));
    }
    let title = format!("bond and {NEIGHBOURS} neighbours, {}", way.name());
    let (results, carried) = stage.counted(&title, || {
        let running: Vec<_> = specs.into_iter().map(|spec| edge.start(move || way.flow(&spec))).collect();
        let results = running.into_iter().map(|flow| check(flow.join()?, way.name()));
        results.collect::<anyhow::Result<Vec<_>>>().context("a flow beside others")
    })?;
    Ok((results.iter().map(|result| result.goodput_mbit(CUT)).collect(), carried.timeline))
}

impl Measured for NeighboursRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        write_raw(out, &self.raw)?;
        writeln!(out, "  all at once:")?;
        mbit_row(out, "bond", self.bond.mbit)?;
        ratio_row(out, "  of its fair share", self.bond.of_fair_share)?;
        for neighbour in &self.neighbours {
            let link = neighbour.link.as_deref().unwrap_or_default();
            mbit_row(out, &format!("neighbour on {link} (cubic)"), neighbour.mbit)?;
            ratio_row(out, "  of its fair share", neighbour.of_fair_share)?;
        }
        self.emulator.write(out)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        self.timelines.iter().collect()
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures = both("bond / fair share", self.bond.of_fair_share);
        for Beside { link, of_fair_share, .. } in &self.neighbours {
            let link = link.as_deref().unwrap_or_default();
            figures.extend(both(&format!("neighbour on {link} / fair share"), *of_fair_share));
        }
        figures
    }
}
