//! One run of a LAN whose hosts lend each other their uplinks: each uplink alone, then what one host, all hosts at
//! once, and a lender beside a borrower get.

use std::time::Duration;

use mwb_sim::lab::{Host, Running};
use mwb_sim::traffic::{FlowResult, TrafficError, download, upload};

use super::CUT;
use super::report::Ways;
use super::sharing_report::{Lender, SharingRun, Single, Together};
use super::stage::{Flow, Stage, check};

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
    let mesh = stage.mesh()?;
    let hosts = stage.edges();
    let (borrower, lender) = (&hosts[BORROWER], &hosts[LENDER]);
    let single = Ways {
        download: single(stage, borrower, "download", download)?,
        upload: single(stage, borrower, "upload", upload)?,
    };
    let together = together(stage, &hosts)?;
    let lender = lending(stage, borrower, lender, raw[LENDER].mbit.download)?;
    let emulator = stage.health()?;
    mesh.stop()?;
    Ok(SharingRun { raw, single, together, lender, emulator })
}

/// One flow on one host, while the others have nothing to send.
fn single(stage: &Stage<'_>, host: &Host, name: &str, flow: Flow) -> anyhow::Result<Single> {
    stage.say(&format!("one {name}, on {}", host.name()));
    let spec = stage.flow(stage.settings().length);
    let (result, link_bytes) = stage.counted(|| Ok(host.run(move || flow(&spec))?))?;
    let result = check(result, name)?;
    Ok(Single {
        mbit: result.goodput_mbit(CUT),
        longest_pause_ms: result.longest_gap_ms_after(CUT),
        link_bytes,
    })
}

/// One download on every host, all at once.
fn together(stage: &Stage<'_>, hosts: &[Host]) -> anyhow::Result<Together> {
    stage.say("a download on every host at once");
    let (results, link_bytes) = stage.counted(|| {
        let running: Vec<_> = hosts.iter().map(|host| start(stage, host, stage.settings().length)).collect();
        running.into_iter().map(|flow| check(flow.join()?, "download")).collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok(Together { mbit: results.iter().map(|result| result.goodput_mbit(CUT)).collect(), link_bytes })
}

/// A lender starts a download of its own while a borrower fills all uplinks. `alone` is what the lender's uplink
/// carries alone, in Mbit/s.
fn lending(stage: &Stage<'_>, borrower: &Host, lender: &Host, alone: f64) -> anyhow::Result<Lender> {
    stage.say(&format!("a download on {}, then one on its lender {}", borrower.name(), lender.name()));
    let length = stage.settings().length;
    let ((borrowed, lent), link_bytes) = stage.counted(|| {
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
        link_bytes,
    })
}

fn start(stage: &Stage<'_>, host: &Host, length: Duration) -> Running<Result<FlowResult, TrafficError>> {
    let spec = stage.flow(length);
    host.start(move || download(&spec))
}
