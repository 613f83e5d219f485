//! One run of a LAN whose hosts lend each other their uplinks: each uplink alone, then what one host, all hosts at
//! once, and a lender beside a borrower get.

use std::time::Duration;

use mwb_sim::lab::{Host, Running};
use mwb_sim::traffic::{FlowResult, TrafficError, download};

use super::CUT;
use super::sharing_report::{Lender, SharingRun, Single, Together};
use super::stage::{Stage, check};
use super::ways::{Way, Ways};

/// How long the borrower has all uplinks before the lender starts.
const BORROWER_FIRST: Duration = Duration::from_secs(5);
/// After this a lender has its own uplink back.
const LENDER_WAITS: Duration = Duration::from_secs(2);
/// Which host borrows and which of its lenders starts a download.
const BORROWER: usize = 0;
const LENDER: usize = 1;

/// Measures everything once.
///
/// # Errors
/// When a flow or a node fails.
pub(super) fn run(stage: &Stage<'_>) -> anyhow::Result<SharingRun> {
    let raw = stage.raw_links()?;
    let mesh = stage.mesh(None)?;
    let hosts = stage.edges();
    let (borrower, lender) = (&hosts[BORROWER], &hosts[LENDER]);
    let single = Ways::try_of(|way| single(stage, borrower, way))?;
    let together = together(stage, &hosts)?;
    let lender = lending(stage, borrower, lender, raw[LENDER].mbit.download)?;
    let emulator = stage.health()?;
    mesh.stop()?;
    Ok(SharingRun { raw, single, together, lender, emulator })
}

/// One flow on one host, while the others have nothing to send.
fn single(stage: &Stage<'_>, host: &Host, way: Way) -> anyhow::Result<Single> {
    let title = format!("one {}, on {}", way.name(), host.name());
    let run = stage.measured(&title, host, &stage.flow(stage.settings().length), way, None)?;
    Ok(Single {
        mbit: run.result.goodput_mbit(CUT),
        longest_pause_ms: run.result.longest_gap_ms_after(CUT),
        wire: run.wire,
        link_bytes: run.carried.links,
        timeline: run.carried.timeline,
    })
}

/// One download on every host, all at once.
fn together(stage: &Stage<'_>, hosts: &[Host]) -> anyhow::Result<Together> {
    let (results, carried) = stage.counted("a download on every host at once", || {
        let running: Vec<_> = hosts.iter().map(|host| start(stage, host, stage.settings().length)).collect();
        running.into_iter().map(|flow| check(flow.join()?, "download")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mbit = results.iter().map(|result| result.goodput_mbit(CUT)).collect();
    Ok(Together { mbit, link_bytes: carried.links, timeline: carried.timeline })
}

/// A lender starts a download of its own while a borrower fills all uplinks. `alone` is what the lender's uplink
/// carries alone, in Mbit/s.
fn lending(stage: &Stage<'_>, borrower: &Host, lender: &Host, alone: f64) -> anyhow::Result<Lender> {
    let title = format!("a download on {}, then one on its lender {}", borrower.name(), lender.name());
    let length = stage.settings().length;
    let ((borrowed, lent), carried) = stage.counted(&title, || {
        let borrowed = start(stage, borrower, BORROWER_FIRST + length);
        std::thread::sleep(BORROWER_FIRST);
        let lent = start(stage, lender, length);
        Ok((check(borrowed.join()?, "download")?, check(lent.join()?, "download")?))
    })?;
    let mbit = lent.goodput_mbit_between(LENDER_WAITS, length);
    Ok(Lender {
        mbit,
        share_of_own: mbit / alone,
        borrower_before_mbit: borrowed.goodput_mbit_between(CUT, BORROWER_FIRST),
        borrower_after_mbit: borrowed
            .goodput_mbit_between(BORROWER_FIRST + LENDER_WAITS, BORROWER_FIRST + length),
        link_bytes: carried.links,
        timeline: carried.timeline.mark(BORROWER_FIRST, "the lender starts"),
    })
}

fn start(stage: &Stage<'_>, host: &Host, length: Duration) -> Running<Result<FlowResult, TrafficError>> {
    let spec = stage.flow(length);
    host.start(move || download(&spec))
}
