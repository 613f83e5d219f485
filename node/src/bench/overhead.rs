//! How many bytes a lone packet costs on the wire, read from the emulator's counters.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mwb_sim::lab::Host;
use mwb_sim::wan::EmulatorControl;

use super::report::Overhead;

/// Length of the inner IP packet.
const INNER: u64 = 1400;
/// IPv4 and UDP headers.
const HEADERS: u64 = 28;
/// How often the same length must be seen.
const AGREE: u32 = 5;
/// Attempts in all: a heartbeat or report spoils some.
const ATTEMPTS: u32 = 200;
/// Between two packets, so that each is alone.
const REST: Duration = Duration::from_millis(30);
/// How long a packet may take to the emulator.
const PATIENCE: Duration = Duration::from_millis(50);

/// Sends single UDP packets into the tunnel and watches what arrives at the links.
///
/// # Errors
/// When a lone packet never becomes exactly one outer packet.
pub(super) fn measure(
    edge: &Host,
    emulator: &EmulatorControl,
    server: SocketAddr,
) -> anyhow::Result<Overhead> {
    let socket = edge.run(move || -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        Ok(socket)
    })?;
    let payload = [0; (INNER - HEADERS) as usize];
    let mut seen: BTreeMap<u64, u32> = BTreeMap::new();
    for _ in 0..ATTEMPTS {
        std::thread::sleep(REST);
        let before = sent(emulator)?;
        socket.send(&payload).context("sending into the tunnel")?;
        let end = Instant::now() + PATIENCE;
        let (packets, outer) = loop {
            let now = sent(emulator)?;
            let (packets, bytes) = (now.0 - before.0, now.1 - before.1);
            if bytes > INNER || Instant::now() >= end {
                break (packets, bytes);
            }
        };
        if packets != 1 || outer <= INNER + HEADERS {
            continue;
        }
        let count = seen.entry(outer).or_default();
        *count += 1;
        if *count == AGREE {
            return Ok(Overhead {
                inner_bytes: INNER,
                outer_bytes: outer,
                overhead_bytes: outer - HEADERS - INNER,
            });
        }
    }
    bail!("a lone packet never became exactly one outer packet (lengths seen: {seen:?})")
}

/// Packets and IP bytes that the edge has sent into all links.
fn sent(emulator: &EmulatorControl) -> anyhow::Result<(u64, u64)> {
    let counters = emulator.all_counters()?;
    Ok(counters.iter().fold((0, 0), |(packets, bytes), (_, link)| {
        (packets + link.up.arrived_packets, bytes + link.up.arrived_bytes)
    }))
}
