//! The reading driver of the TUN: never waits for anybody but the device.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mwb_proto::buf::PacketBuf;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tun_rs::{SyncDevice, VIRTIO_NET_HDR_LEN};

use super::refuse::Refusals;
use super::split::{SplitError, split};
use super::{Tun, TunRoutes};
use crate::driver::{DriverError, Pulse};
use crate::reorder::addresses;
use crate::session::{Role, Session};

/// A device that is deleted is not readable, it has an error.
pub(super) const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);
/// Reads before the packets are handed on and other tasks get their turn. With many sessions each of these takes a
/// while, and a read brings a packet or two: with 16 the packets of 16 edges waited in the device.
const READS_PER_TURN: usize = 64;
/// Packets after which no more are read in a turn.
const PACKETS_PER_BATCH: usize = 128;

/// Reads for ever.
///
/// # Errors
/// When the device has gone or the reactor fails.
pub(super) async fn run(
    tun: Arc<Tun>,
    device: Arc<SyncDevice>,
    readable: AsyncFd<OwnedFd>,
    pulse: Pulse,
) -> Result<(), DriverError> {
    let mut raw = vec![0_u8; VIRTIO_NET_HDR_LEN + usize::from(u16::MAX)];
    let mut packets = Vec::with_capacity(2 * PACKETS_PER_BATCH);
    let mut batches: Vec<(Arc<Session>, Vec<PacketBuf>)> = Vec::new();
    let mut refusals = Refusals::default();
    loop {
        pulse.beat().await?;
        tokio::select! {
            guard = readable.ready(INTEREST) => {
                let mut guard = guard.map_err(DriverError::io("watch the TUN device"))?;
                let mut drained = false;
                for _ in 0..READS_PER_TURN {
                    match device.recv(&mut raw) {
                        Ok(len) => take(&tun, &mut raw[..len], &mut packets),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                            guard.clear_ready();
                            drained = true;
                            break;
                        }
                        // The interface is administratively down.
                        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                            guard.clear_ready();
                            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                            break;
                        }
                        Err(source) => return Err(DriverError::Io { what: "read the TUN device", source }),
                    }
                    if packets.len() >= PACKETS_PER_BATCH {
                        break;
                    }
                }
                drop(guard);
                pulse.count_handled(packets.len() as u64);
                hand_on(&tun, &mut packets, &mut batches, &mut refusals);
                if !drained {
                    tokio::task::yield_now().await;
                }
            }
            () = pulse.asked() => {}
        }
    }
}

fn take(tun: &Tun, raw: &mut [u8], packets: &mut Vec<PacketBuf>) {
    tun.counters.reads.fetch_add(1, Ordering::Relaxed);
    let counter = match split(raw, &tun.pool, packets) {
        Ok(()) => return,
        Err(SplitError::Malformed) => &tun.counters.malformed,
        Err(SplitError::Oversized) => &tun.counters.oversized,
    };
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Sorts the packets by session and gives each router its batch.
fn hand_on(
    tun: &Tun,
    packets: &mut Vec<PacketBuf>,
    batches: &mut Vec<(Arc<Session>, Vec<PacketBuf>)>,
    refusals: &mut Refusals,
) {
    let routes = tun.routes.load();
    let c = &tun.counters;
    c.read.fetch_add(packets.len() as u64, Ordering::Relaxed);
    // Addresses of the last packet, and which batch it went to: the next one is mostly of the same flow.
    let mut recent = None;
    for mut packet in packets.drain(..) {
        let Some(addresses) = addresses(&packet) else {
            c.malformed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let known = recent.filter(|(of, _)| *of == addresses).map(|(_, index)| index);
        let Some(index) = known.or_else(|| batch_of(&routes, addresses, batches)) else {
            c.no_session.fetch_add(1, Ordering::Relaxed);
            // On an edge; at an exit it is for an address that nobody has.
            if routes.default.is_some() {
                refuse(tun, &packet, refusals);
            }
            continue;
        };
        recent = Some((addresses, index));
        let (session, batch) = &mut batches[index];
        session.clamp_mss(&mut packet, tun.mtu);
        batch.push(packet);
    }
    for (session, batch) in batches.drain(..) {
        let count = batch.len() as u64;
        if session.from_tun.try_push(batch).is_err() {
            c.router_full.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// Answers what is IPv6 and goes nowhere.
fn refuse(tun: &Tun, packet: &[u8], refusals: &mut Refusals) {
    let answer = refusals.answer(packet, &tun.pool, crate::clock::now());
    // While the writer cannot follow, a program waits for its time-out.
    if answer.is_some_and(|answer| tun.to_tun.push(vec![answer])) {
        tun.counters.refused.fetch_add(1, Ordering::Relaxed);
    }
}

/// Index of the batch for packets with these addresses, source first; `None` when no session carries them.
fn batch_of(
    routes: &TunRoutes,
    (source, destination): (IpAddr, IpAddr),
    batches: &mut Vec<(Arc<Session>, Vec<PacketBuf>)>,
) -> Option<usize> {
    let session = routes.find(destination).filter(|session| {
        // The exit would drop what is not from our inner address: spare the uplink.
        session.role() == Role::Exit || session.inner().is_some_and(|inner| inner.owns(source))
    })?;
    let known = batches.iter().position(|(known, _)| Arc::ptr_eq(known, session));
    Some(known.unwrap_or_else(|| {
        batches.push((Arc::clone(session), Vec::with_capacity(PACKETS_PER_BATCH)));
        batches.len() - 1
    }))
}
