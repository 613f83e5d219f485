//! The writing driver of the TUN: merges packets of a flow (GRO) and writes each merger at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use tun_rs::{GROTable, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::Tun;
use crate::driver::{DriverError, Pulse};
use crate::reorder::PACKETS_PER_BATCH;

/// Batches written before other tasks get their turn.
const BATCHES_PER_TURN: usize = 8;

/// Writes for ever.
///
/// # Errors
/// When the device has gone; what it only refuses is counted.
pub(super) async fn run(tun: Arc<Tun>, device: Arc<SyncDevice>, pulse: Pulse) -> Result<(), DriverError> {
    let mut merger = Merger { table: GROTable::default(), buffers: Vec::new() };
    loop {
        pulse.beat().await?;
        for _ in 0..BATCHES_PER_TURN {
            let Some(batch) = tun.to_tun.pop() else { break };
            pulse.count_handled(batch.len() as u64);
            for packets in batch.chunks(PACKETS_PER_BATCH) {
                merger.write(&tun, &device, packets.iter().map(|packet| &**packet))?;
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

struct Merger {
    table: GROTable,
    /// One growable buffer per packet of a batch, kept: a merger grows in the first one's.
    buffers: Vec<Vec<u8>>,
}

impl Merger {
    fn write<'a>(
        &mut self,
        tun: &Tun,
        device: &SyncDevice,
        packets: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), DriverError> {
        let mut count = 0;
        for packet in packets {
            if self.buffers.len() == count {
                self.buffers.push(Vec::with_capacity(VIRTIO_NET_HDR_LEN + usize::from(u16::MAX)));
            }
            let buffer = &mut self.buffers[count];
            buffer.clear();
            buffer.resize(VIRTIO_NET_HDR_LEN, 0);
            buffer.extend_from_slice(packet);
            count += 1;
        }
        let c = &tun.counters;
        c.written.fetch_add(count as u64, Ordering::Relaxed);
        c.writes.fetch_add(1, Ordering::Relaxed);
        let result = device.send_multiple(&mut self.table, &mut self.buffers[..count], VIRTIO_NET_HDR_LEN);
        let Err(error) = result else { return Ok(()) };
        let failed = c.write_failed.fetch_add(1, Ordering::Relaxed) + 1;
        if failed.is_power_of_two() {
            tracing::debug!(%error, failed, "the TUN device refused a packet");
        }
        if Errno::from_io_error(&error) == Some(Errno::BADFD) {
            return Err(DriverError::Io { what: "write to the TUN device", source: error });
        }
        Ok(())
    }
}
