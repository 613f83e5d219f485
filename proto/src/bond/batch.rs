//! Batches between the machines and the shells.

use std::ops::Range;

use crate::buf::PacketBuf;
use crate::time::Time;
use crate::wire::PathId;
use crate::wire::v2::{Class, Flags, FrameType};

/// Packets after which a batch takes no more data: 44 full packets are what one segmented send can carry.
pub const BATCH_PACKETS_MAX: usize = 44;
/// Bytes after which a batch takes no more data, under the 65,507 that one UDP send takes.
pub const BATCH_BYTES_MAX: usize = 65_000;

/// Where one datagram lies in a [`TxBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxSegment {
    /// First byte in the slab.
    pub offset: u32,
    /// Length, clear header and room for the tag included.
    pub len: u16,
    /// Its path sequence: the nonce it must be sealed with.
    pub path_seq: u64,
}

impl TxSegment {
    /// Where it lies in the slab.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start + usize::from(self.len)
    }
}

/// Unsealed datagrams for one path, back to back in one slab, in path-sequence order.
#[derive(Debug)]
pub struct TxBatch {
    /// The path that must carry them.
    pub path: PathId,
    /// Datagrams: clear header, plaintext, room for the tag. About [`BATCH_BYTES_MAX`] bytes at the
    /// most: resends, skips, reports and heartbeats are added to a full batch, so a sender of batches
    /// must split them to what one call takes.
    pub slab: Vec<u8>,
    /// About [`BATCH_PACKETS_MAX`] datagrams at the most, likewise.
    pub segments: Vec<TxSegment>,
}

impl TxBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { path: PathId(0), slab: Vec::new(), segments: Vec::new() }
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.slab.clear();
        self.segments.clear();
    }

    /// Whether it carries nothing.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }
}

impl Default for TxBatch {
    fn default() -> Self {
        Self::new()
    }
}

/// One opened datagram on its way to the [`Receiver`](crate::bond::Receiver).
#[derive(Debug)]
pub struct RxItem {
    /// The path that carried it.
    pub path: PathId,
    /// Its path sequence, authenticated and new.
    pub path_seq: u64,
    /// When the kernel received it.
    pub arrival: Time,
    /// Bytes of UDP payload.
    pub wire_len: u16,
    /// Whether the outer header carried CE.
    pub ce: bool,
    /// Frame type of its clear header.
    pub frame: FrameType,
    /// Flags of its clear header.
    pub flags: Flags,
    /// Class of its clear header.
    pub class: Class,
    /// The decrypted body.
    pub plain: PacketBuf,
}
