//! What a flooded session does to its neighbour at the same exit: two edges with a link each and nothing else in
//! common. One of them is sent far more from the internet than its link carries, while the other talks.

use std::fmt::Write;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use mwb_sim::traffic::{flood, udp_echo};
use serde::Serialize;

use super::report::{Echo, Figure, Health, Measured};
use super::stage::{PORT, Stage};
use super::timeline::Timeline;

/// What is sent to the flooded edge, datagrams per second and bytes of each: 200 Mbit/s with headers.
const FLOOD_RATE: f64 = 20_000.0;
const FLOOD_BYTES: usize = 1_222;
const FLOOD_HEADERS: usize = 28;
/// Until the flood has filled what there is to fill.
const SETTLE: Duration = Duration::from_secs(2);
/// Echoes per second of the neighbour.
const ECHO_RATE: f64 = 200.0;

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct FloodRun {
    /// The neighbour's echo while the other session is idle, and while it is flooded.
    idle: Echo,
    flooded: Echo,
    /// By how much its 99th percentile has grown.
    p99_grows_ms: f64,
    /// What was sent to the flooded edge, and what its link delivered.
    offered_mbit: f64,
    delivered_mbit: f64,
    emulator: Health,
}

/// Measures once: the first link's edge talks, the second's is flooded.
///
/// # Errors
/// When a node fails or the flood does not arrive.
pub(super) fn run(stage: &Stage<'_>) -> anyhow::Result<FloodRun> {
    let [talks, flooded] = stage.profile().links.as_slice() else {
        anyhow::bail!("it needs two links");
    };
    let ((quiet, _), (loud, _)) = (stage.device(&talks.name)?, stage.device(&flooded.name)?);
    let mesh = stage.mesh(None)?;
    let length = stage.settings().length;
    let mut echo = stage.echo_for(length);
    echo.rate = ECHO_RATE;

    let spec = echo.clone();
    let (idle, _) =
        stage.counted("the neighbour, without a flood", || Ok(quiet.run(move || udp_echo(&spec))?))?;

    let server = stage.lab().host("server");
    let address = SocketAddr::new(server.address(), PORT + 1);
    let source = server.run(move || flood(address, FLOOD_RATE, FLOOD_BYTES)).context("the flood")?;
    // Open until the end, or the edge's kernel would refuse what arrives.
    let _caller = loud.run(move || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(address)?;
        (0..3).try_for_each(|_| socket.send(b"call").map(drop))?;
        Ok(socket)
    })?;
    std::thread::sleep(SETTLE);
    let before = source.sent();
    let (during, carried) =
        stage.counted("the neighbour, beside a flood", || Ok(quiet.run(move || udp_echo(&echo))?))?;
    let offered = source.sent() - before;
    drop(source);
    let emulator = stage.health()?;
    mesh.stop()?;

    let mbit = |bytes: u64| bytes as f64 * 8.0 / (length + Duration::from_secs(1)).as_secs_f64() / 1e6;
    let delivered = carried.links.iter().find(|link| link.link == flooded.name);
    let delivered_mbit = mbit(delivered.map_or(0, |link| link.bytes.download));
    let offered_mbit = mbit(offered * (FLOOD_BYTES + FLOOD_HEADERS) as u64);
    ensure!(offered_mbit > 2.0 * delivered_mbit, "{offered_mbit:.1} Mbit/s were offered, that is no flood");
    let (idle, during) = (Echo::from(&idle), Echo::from(&during));
    let p99_grows_ms = during.p99_ms - idle.p99_ms;
    Ok(FloodRun { idle, flooded: during, p99_grows_ms, offered_mbit, delivered_mbit, emulator })
}

impl Measured for FloodRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "  the neighbour's UDP echo, ms         p50       p95       p99    lost")?;
        for (label, echo) in [("the other is idle", &self.idle), ("the other is flooded", &self.flooded)] {
            let Echo { p50_ms, p95_ms, p99_ms, sent, received, .. } = echo;
            let lost = sent - received;
            writeln!(out, "  {label:<30}{p50_ms:>10.2}{p95_ms:>10.2}{p99_ms:>10.2}{lost:>8}")?;
        }
        let Self { p99_grows_ms, offered_mbit, delivered_mbit, .. } = self;
        writeln!(out, "  the 99th percentile grows by {p99_grows_ms:.2} ms")?;
        writeln!(
            out,
            "  {offered_mbit:.1} Mbit/s to the flooded edge, whose link delivered {delivered_mbit:.2}"
        )?;
        self.emulator.write(out)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        Vec::new()
    }

    fn figures(&self) -> Vec<Figure> {
        vec![("the 99th percentile grows, ms".to_owned(), self.p99_grows_ms)]
    }
}
