//! One run of a bond: raw links, then one flow each way over all of them.

use std::time::Duration;

use mwb_sim::traffic::{EchoResult, EchoSpec, download, udp_echo, upload};

use super::report::{Echo, LinkBytes, Run, Transfer, Ways, sum};
use super::stage::{Flow, Stage, check, transfer};
use super::{CUT, overhead};

/// Echoes per second and their UDP payload: a game's or a call's.
const ECHO_RATE: f64 = 20.0;
const ECHO_BYTES: usize = 100;
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
    let mesh = stage.mesh()?;
    stage.say("a lone packet's overhead, and the echo without traffic");
    let edge = stage.lab().host("edge");
    let wire_overhead = overhead::measure(&edge, &stage.emulator(), stage.server())?;
    let echo = EchoSpec::new(stage.server(), ECHO_RATE, ECHO_BYTES, ECHO_IDLE);
    let echo_idle = edge.run(move || udp_echo(&echo)).map(|result| summary(&result))?;

    let (down, echo_down, down_bytes) = bonded(stage, "download", download)?;
    let (up, echo_up, up_bytes) = bonded(stage, "upload", upload)?;
    let spread = stage.settings().mode.map(|_| spread(stage)).transpose()?;
    let emulator = stage.health()?;
    mesh.stop()?;

    let link_bytes = down_bytes.into_iter().zip(up_bytes).map(|(down, up)| LinkBytes {
        link: down.link,
        bytes: Ways { download: down.bytes.download, upload: up.bytes.upload },
    });
    let ratio = Ways { download: down.mbit / raw_sum.download, upload: up.mbit / raw_sum.upload };
    Ok(Run {
        raw,
        raw_sum,
        bond: Ways { download: down, upload: up },
        ratio,
        echo_idle,
        echo_loaded: Ways { download: echo_down, upload: echo_up },
        link_bytes: link_bytes.collect(),
        spread,
        wire_overhead,
        emulator,
    })
}

/// One flow through the bond, and after the cut the echo beside it.
fn bonded(stage: &Stage<'_>, name: &str, flow: Flow) -> anyhow::Result<(Transfer, Echo, Vec<LinkBytes>)> {
    stage.say(&format!("bond, {name} (cubic)"));
    let edge = stage.lab().host("edge");
    let length = stage.settings().length;
    let spec = stage.flow(length);
    let echo = EchoSpec::new(stage.server(), ECHO_RATE, ECHO_BYTES, length - CUT);
    let ((result, echo), bytes) = stage.counted(|| {
        let running = edge.start(move || {
            std::thread::sleep(CUT);
            udp_echo(&echo)
        });
        let result = edge.run(move || flow(&spec));
        let echo = running.join()?;
        Ok((check(result?, name)?, echo))
    })?;
    Ok((transfer(&result), summary(&echo), bytes))
}

/// How the bond spreads an echo that takes a part of what the links can carry both ways, in four flows.
fn spread(stage: &Stage<'_>) -> anyhow::Result<Vec<LinkBytes>> {
    let mbit = LOAD * stage.profile().links.iter().map(|link| link.mbit).sum::<f64>();
    stage.say(&format!("spread of {mbit:.1} Mbit/s"));
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
    let ((), bytes) = stage.counted(|| {
        std::thread::sleep(LOAD_COUNTED);
        Ok(())
    })?;
    for flow in running {
        flow.join()?;
    }
    Ok(bytes)
}

fn summary(result: &EchoResult) -> Echo {
    Echo {
        sent: result.sent,
        received: result.received,
        p50_ms: result.p50_ms,
        p95_ms: result.p95_ms,
        p99_ms: result.p99_ms,
        max_ms: result.max_ms,
    }
}
