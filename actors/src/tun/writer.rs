//! The writing driver of the TUN: merges packets of a flow (GRO) and writes each merger with one call, straight
//! from the buffers that its packets arrived in.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mwb_proto::buf::PacketBuf;
use rustix::io::{Errno, writev};
use tun_rs::{SyncDevice, VIRTIO_NET_HDR_LEN};

use super::Tun;
use super::merge::{PACKETS_MAX, Plan};
use crate::driver::{DriverError, Pulse};

/// Batches written before other tasks get their turn, unless they are small: of as many as there are sessions each may have
/// brought one.
const BATCHES_PER_TURN: usize = 8;
/// Packets written in any case, if there are so many: a millisecond's work when none can be merged.
const PACKETS_PER_TURN: usize = 256;

/// Writes for ever.
///
/// # Errors
/// When the device has gone; what it only refuses is counted.
pub(super) async fn run(tun: Arc<Tun>, device: Arc<SyncDevice>, pulse: Pulse) -> Result<(), DriverError> {
    let mut plan = Plan::default();
    loop {
        pulse.beat().await?;
        let (mut batches, mut packets) = (0, 0);
        while batches < BATCHES_PER_TURN || packets < PACKETS_PER_TURN {
            let Some(mut batch) = tun.to_tun.pop() else { break };
            (batches, packets) = (batches + 1, packets + batch.len());
            pulse.count_handled(batch.len() as u64);
            for packets in batch.chunks_mut(PACKETS_MAX) {
                write(&tun, &device, &mut plan, packets)?;
            }
        }
        if !tun.to_tun.is_empty() {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = tun.to_tun.wait() => {}
            () = pulse.asked() => {}
        }
    }
}

fn write(
    tun: &Tun,
    device: &SyncDevice,
    plan: &mut Plan,
    packets: &mut [PacketBuf],
) -> Result<(), DriverError> {
    plan.make(packets, device.udp_gso());
    let c = &tun.counters;
    c.written.fetch_add(packets.len() as u64, Ordering::Relaxed);
    c.writes.fetch_add(plan.groups().len() as u64, Ordering::Relaxed);
    for group in plan.groups() {
        let mut header = [0; VIRTIO_NET_HDR_LEN];
        let described = group.finish(&mut packets[group.head()]).encode(&mut header);
        debug_assert!(described.is_ok(), "the header has its length");
        let mut parts = [IoSlice::new(&[]); PACKETS_MAX + 1];
        parts[0] = IoSlice::new(&header);
        parts[1] = IoSlice::new(&packets[group.head()]);
        for (part, i) in parts[2..].iter_mut().zip(plan.rest(group)) {
            *part = IoSlice::new(&packets[i][group.header_len()..]);
        }
        let Err(error) = writev(device, &parts[..=group.count()]) else { continue };
        let refused = group.count() as u64;
        let before = c.write_failed.fetch_add(refused, Ordering::Relaxed);
        // The 1st, then whenever the number has doubled.
        if before.leading_zeros() != (before + refused).leading_zeros() {
            tracing::debug!(%error, failed = before + refused, "the TUN device refused packets");
        }
        if error == Errno::BADFD {
            return Err(DriverError::Io { what: "write to the TUN device", source: error.into() });
        }
    }
    Ok(())
}
