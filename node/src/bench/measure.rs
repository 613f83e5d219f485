//! One run of a bond: raw links, then one flow each way over all of them.

use std::time::Duration;

use mwb_sim::traffic::{EchoSpec, udp_echo};

use super::control_bytes::Reading;
use super::report::{Echo, LinkBytes, Reference, Run, sum};
use super::stage::Stage;
use super::ways::Ways;
use super::{CUT, mptcp, overhead};

/// Length of the echo without other traffic.
const ECHO_IDLE: Duration = Duration::from_secs(5);

/// The load whose spread is measured: more than any link of `uneven` carries, less than all do.
const LOAD: f64 = 0.7;
const LOAD_FLOWS: usize = 4;
const LOAD_BYTES: usize = 1200;
/// Until the shares have settled, and for how long they are counted.
const LOAD_SETTLE: Duration = Duration::from_secs(3);
const LOAD_COUNTED: Duration = Duration::from_secs(5);

/// Measures everything once.
///
/// # Errors
/// When a flow or a node fails.
pub(super) fn run(stage: &Stage<'_>) -> anyhow::Result<Run> {
    let raw = stage.raw_links()?;
    let raw_sum = sum(&raw);
    let mptcp = mptcp::measure(stage, &raw);
    let mesh = stage.mesh(None)?;
    stage.say("a lone packet's overhead, and the echo without traffic");
    let edge = stage.lab().host("edge");
    let wire_overhead = overhead::measure(&edge, &stage.emulator(), stage.server())?;
    let echo = stage.echo_for(ECHO_IDLE);
    let echo_idle = edge.run(move || udp_echo(&echo)).map(|result| Echo::from(&result))?;

    let control = &stage.settings().congestion_control;
    let spec = stage.flow(stage.settings().length);
    let both = Ways::try_of(|way| {
        let title = format!("bond, {} ({control})", way.name());
        let before = Reading::of(&mesh, &edge)?;
        let run = stage.measured(&title, &edge, &spec, way, Some(&stage.echo()))?;
        let control = Reading::of(&mesh, &edge)?.since(&before, run.result.total_bytes);
        anyhow::Ok((run, control))
    })?;
    let control = both.map(|run| run.1);
    let bond = Ways { download: both.download.0, upload: both.upload.0 };
    let spread = stage.settings().mode.map(|_| spread(stage)).transpose()?;
    let emulator = stage.health()?;
    mesh.stop()?;

    let mbit = bond.map(|run| run.result.goodput_mbit(CUT));
    let reference = stage.profile().reference.as_deref();
    let reference = reference.map(|link| alone(stage, link, mbit)).transpose()?;
    let links = bond.download.carried.links.iter().zip(&bond.upload.carried.links);
    Ok(Run {
        raw,
        raw_sum,
        mptcp,
        ratio: mbit.over(raw_sum),
        reference,
        echo_idle,
        echo_loaded: Ways::try_of(|way| bond.of(way).echo())?,
        link_bytes: links
            .map(|(down, up)| LinkBytes {
                link: down.link.clone(),
                bytes: Ways { download: down.bytes.download, upload: up.bytes.upload },
            })
            .collect(),
        spread,
        control,
        wire_overhead,
        emulator,
        bond: bond.map(|run| run.transfer()),
        timelines: [bond.download, bond.upload].map(|run| run.carried.timeline).into(),
    })
}

/// The same tunnel over one link alone; `bond` is what it did over all.
fn alone(stage: &Stage<'_>, link: &str, bond: Ways<f64>) -> anyhow::Result<Reference> {
    let mesh = stage.mesh(Some(link))?;
    let edge = stage.lab().host("edge");
    let spec = stage.flow(stage.settings().length);
    let runs = Ways::try_of(|way| {
        stage.measured(&format!("tunnel over {link} alone, {}", way.name()), &edge, &spec, way, None)
    })?;
    mesh.stop()?;
    let mbit = runs.map(|run| run.result.goodput_mbit(CUT));
    Ok(Reference { link: link.to_owned(), mbit, ratio: bond.over(mbit) })
}

/// How the bond spreads an echo that takes a part of what the links can carry both ways, in four flows.
fn spread(stage: &Stage<'_>) -> anyhow::Result<Vec<LinkBytes>> {
    let mbit = LOAD * stage.profile().links.iter().map(|link| link.mbit).sum::<f64>();
    let rate = mbit * 1e6 / 8.0 / LOAD_BYTES as f64 / LOAD_FLOWS as f64;
    let spec = EchoSpec::new(stage.server(), rate, LOAD_BYTES, LOAD_SETTLE + LOAD_COUNTED);
    let edge = stage.lab().host("edge");
    let running: Vec<_> = (0..LOAD_FLOWS)
        .map(|_| {
            let spec = spec.clone();
            edge.start(move || udp_echo(&spec))
        })
        .collect();
    std::thread::sleep(LOAD_SETTLE);
    let ((), carried) = stage.counted(&format!("spread of {mbit:.1} Mbit/s"), || {
        std::thread::sleep(LOAD_COUNTED);
        Ok(())
    })?;
    for flow in running {
        flow.join()?;
    }
    Ok(carried.links)
}
