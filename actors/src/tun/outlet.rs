//! The queue from all resequencers to the TUN writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mwb_proto::buf::PacketBuf;

use crate::channel::{BatchQueue, QueueStats};

/// Batches that may wait. A session whose edge only acknowledges brings batches of one packet, and there may be
/// hundreds of sessions: it is packets that cost memory, and they have a bound of their own.
const BATCHES_MAX: usize = 1024;
/// Packets that may wait: 16 MiB of 2 KiB buffers.
const PACKETS_MAX: usize = 8192;

/// Batches for the TUN, bounded by number and by what is in them. Cheap to clone; all clones are the same queue.
#[derive(Clone, Debug)]
pub struct Outlet {
    queue: BatchQueue<Vec<PacketBuf>>,
    packets: Arc<AtomicUsize>,
}

impl Outlet {
    /// An empty one.
    pub fn new() -> Self {
        Self { queue: BatchQueue::new(BATCHES_MAX), packets: Arc::default() }
    }

    /// Appends `batch` and wakes the writer; false when there is no room: then the batch is dropped and counted.
    pub fn push(&self, batch: Vec<PacketBuf>) -> bool {
        let count = batch.len();
        // Before the writer can see it, or it might count off what was never counted.
        let room = self.packets.fetch_add(count, Ordering::Relaxed) + count <= PACKETS_MAX;
        let pushed = if room {
            self.queue.try_push(batch).is_ok()
        } else {
            self.queue.count_refused();
            false
        };
        if !pushed {
            self.packets.fetch_sub(count, Ordering::Relaxed);
        }
        pushed
    }

    /// Takes the oldest batch.
    pub fn pop(&self) -> Option<Vec<PacketBuf>> {
        let batch = self.queue.pop()?;
        self.packets.fetch_sub(batch.len(), Ordering::Relaxed);
        Some(batch)
    }

    /// Returns when a batch is waiting. Safe to cancel.
    pub(super) async fn wait(&self) {
        self.queue.wait().await;
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The counters, in batches.
    pub fn stats(&self) -> QueueStats {
        self.queue.stats()
    }
}

impl Default for Outlet {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use mwb_proto::buf::BufPool;

    use super::*;

    fn batch(packets: usize) -> Vec<PacketBuf> {
        let pool = BufPool::new(64, 1);
        (0..packets).map(|_| pool.take()).collect()
    }

    #[test]
    fn small_batches_of_many_sessions_find_room() {
        let outlet = Outlet::new();
        assert!((0..BATCHES_MAX).all(|_| outlet.push(batch(1))));
        assert!(!outlet.push(batch(1)));
        assert_eq!((outlet.stats().waiting, outlet.stats().dropped_full), (BATCHES_MAX, 1));
    }

    #[test]
    fn what_waits_is_bounded_in_packets_and_makes_room_again() {
        let outlet = Outlet::new();
        for _ in 0..3 {
            assert!((0..PACKETS_MAX / 128).all(|_| outlet.push(batch(128))));
            assert!(!outlet.push(batch(1)));
            assert_eq!(std::iter::from_fn(|| outlet.pop()).map(|b| b.len()).sum::<usize>(), PACKETS_MAX);
        }
        assert!(outlet.is_empty());
        assert_eq!(outlet.stats().dropped_full, 3);
    }
}
