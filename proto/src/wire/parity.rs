//! Parity of a block of data packets (frame type FEC).

use super::{LANE_SEQ_MASK, Reader, Refusal, be24};
use crate::time::Stamp;
use crate::wire::v2::Class;

/// The lane of protected packets of class code 0; those of the other classes follow. Their packets are
/// handed on as they arrive, like those of the unordered lane.
pub const LANE_PROTECTED: u16 = 0xfffb;
/// How many lanes of protected packets there are: one per class.
pub const PROTECTED_LANES: usize = 4;

/// The lane of protected packets of a class.
pub const fn protected_lane(class: Class) -> u16 {
    LANE_PROTECTED + class.code() as u16
}

/// The number of a lane of protected packets, below [`PROTECTED_LANES`]; `None` for other lanes.
pub fn protected_index(lane: u16) -> Option<usize> {
    lane.checked_sub(LANE_PROTECTED).map(usize::from).filter(|&index| index < PROTECTED_LANES)
}

/// The body of a FEC frame before the parity shard, [`LEN`](Self::LEN) bytes: send stamp 3, lane 2, first lane
/// sequence 3, incarnation 1, data shards 1, parity shards 1, index 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Parity {
    /// The sender's clock when it left.
    pub sent: Stamp,
    /// The lane of the protected packets, [`LANE_PROTECTED`] and the three above it.
    pub lane: u16,
    /// Lane sequence of the first of them, 24 bits; the others follow without a gap.
    pub lane_seq: u32,
    /// Which life of the sending router counts the lanes.
    pub incarnation: u8,
    /// How many packets the block protects, 1 to [`DATA_MAX`](Self::DATA_MAX).
    pub data: u8,
    /// How many parity shards the block has, 1 to [`PARITY_MAX`](Self::PARITY_MAX).
    pub parity: u8,
    /// Which of them this is, from 0.
    pub index: u8,
}

impl Parity {
    /// Length of the header; the shard follows.
    pub const LEN: usize = 12;
    /// Most packets of a block.
    pub const DATA_MAX: u8 = 32;
    /// Most parity shards of a block.
    pub const PARITY_MAX: u8 = 16;
    /// Bytes of a data shard before its packet: the packet's length.
    pub const SHARD_HEADER: usize = 2;

    /// The header as it is sent, of the lane sequence the low 24 bits.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..3].copy_from_slice(&be24(self.sent.raw()));
        out[3..5].copy_from_slice(&self.lane.to_be_bytes());
        out[5..8].copy_from_slice(&be24(self.lane_seq & LANE_SEQ_MASK));
        out[8..].copy_from_slice(&[self.incarnation, self.data, self.parity, self.index]);
        out
    }

    /// Reads the header off an opened body; the rest of the body is the parity shard.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], also for a shard without room for a packet; [`Refusal::BadRange`] for a lane that
    /// is not protected, for counts of zero and an index beyond its count; [`Refusal::TooMany`].
    pub fn decode(plain: &[u8]) -> Result<(Self, &[u8]), Refusal> {
        let mut r = Reader(plain);
        let header = Self {
            sent: r.stamp()?,
            lane: r.u16()?,
            lane_seq: r.u24()?,
            incarnation: r.u8()?,
            data: r.u8()?,
            parity: r.u8()?,
            index: r.u8()?,
        };
        let shard = r.rest();
        if header.data > Self::DATA_MAX || header.parity > Self::PARITY_MAX {
            return Err(Refusal::TooMany);
        }
        if protected_index(header.lane).is_none() || header.data == 0 || header.index >= header.parity {
            return Err(Refusal::BadRange);
        }
        if shard.len() <= Self::SHARD_HEADER {
            return Err(Refusal::Truncated);
        }
        Ok((header, shard))
    }
}
