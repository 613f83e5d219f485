//! Format v2: ten clear bytes, a sealed body, a 16-byte tag.
//!
//! The clear header is what a receiver needs before it can open the datagram; all of it is
//! authenticated as associated data. [`crate::seal`] does the sealing.

use serde::{Deserialize, Serialize};

use super::{LANE_SEQ_MASK, Reader, Refusal, be24};
use crate::time::Stamp;

/// Bytes before the sealed body.
pub const CLEAR_LEN: usize = 10;
/// Sealed bytes before the inner packet of a data frame.
pub const DATA_LEN: usize = 10;
/// Bytes of the authentication tag at the end of a datagram.
pub const TAG_LEN: usize = 16;
/// What a lone inner packet costs between UDP and itself. WireGuard needs 32.
pub const DATA_OVERHEAD: usize = CLEAR_LEN + DATA_LEN + TAG_LEN;
const _: () = assert!(DATA_OVERHEAD == 36);

/// Bits 6..4 of the first byte.
pub(super) const VERSION_BITS: u8 = 0x20;
const VERSION_MASK: u8 = 0x70;
/// Bit 7 of the first byte: the parity of the key's epoch.
pub(crate) const PHASE_BIT: u8 = 0x80;
/// Where the path sequence lies in the clear header.
pub(crate) const PATH_SEQ_AT: usize = 6;

/// What a frame carries. The numbers up to 5 are those of format v1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FrameType {
    /// One inner packet behind a [`DataHeader`].
    Data = 0,
    /// What arrived over each path: a [`Report`](super::Report).
    Ack = 1,
    /// A probe: a [`Heartbeat`](super::Heartbeat).
    Heartbeat = 2,
    /// Session control outside of QUIC.
    Control = 3,
    /// Multicast data.
    Multicast = 4,
    /// Forward error correction.
    Fec = 5,
    /// Lane sequences that will not be repaired: a [`Skip`](super::Skip).
    Skip = 6,
    /// Several inner packets: a [`Bundle`](super::Bundle).
    Bundle = 7,
}

impl FrameType {
    /// The number on the wire, below 16.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The type of a number from the wire.
    ///
    /// # Errors
    /// [`Refusal::UnknownType`].
    pub const fn from_code(code: u8) -> Result<Self, Refusal> {
        Ok(match code {
            0 => Self::Data,
            1 => Self::Ack,
            2 => Self::Heartbeat,
            3 => Self::Control,
            4 => Self::Multicast,
            5 => Self::Fec,
            6 => Self::Skip,
            7 => Self::Bundle,
            _ => return Err(Refusal::UnknownType),
        })
    }
}

/// Six flag bits; the numbers are those of format v1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Flags(pub u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The packet was sent before, maybe on another path.
    pub const DUPLICATE: Self = Self(1);
    /// The packet belongs to a FEC block.
    pub const FEC: Self = Self(2);
    /// The inner packet is compressed.
    pub const COMPRESSED: Self = Self(4);
    /// The inner packet is encrypted by itself; v2 seals every frame whatever this says.
    pub const ENCRYPTED: Self = Self(8);
    /// A fragment of a packet.
    pub const FRAGMENT: Self = Self(16);
    /// The last fragment of a packet.
    pub const LAST_FRAGMENT: Self = Self(32);
    /// The bits that exist.
    pub const MASK: u8 = 0x3f;

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Traffic class, a 2-bit code on the wire. The order of the codes says nothing about urgency.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Class {
    /// Whatever is not marked.
    #[default]
    BestEffort = 0,
    /// May wait.
    Background = 1,
    /// Wants rate and little jitter.
    Video = 2,
    /// Wants the least delay.
    Voice = 3,
}

impl Class {
    /// All classes, by code.
    pub const ALL: [Self; 4] = [Self::BestEffort, Self::Background, Self::Video, Self::Voice];

    /// The code on the wire, below 4.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The class of the low two bits of `code`.
    pub const fn from_code(code: u8) -> Self {
        match code & 3 {
            0 => Self::BestEffort,
            1 => Self::Background,
            2 => Self::Video,
            _ => Self::Voice,
        }
    }
}

/// The clear header, [`CLEAR_LEN`] bytes.
///
/// ```text
/// byte 0  phase(1) | 010 | frame type(4)
///      1  flags(6) | class(2)
///   2..6  receiver index
///  6..10  low 32 bits of the path sequence
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Clear {
    /// Parity of the epoch of the key. An encoder may leave it false: the sealer sets it.
    pub key_phase: bool,
    /// What the sealed body is.
    pub frame: FrameType,
    /// Flags of the packet.
    pub flags: Flags,
    /// Class of the packet.
    pub class: Class,
    /// The index that the receiver gave for this path and direction when the path joined.
    pub receiver: u32,
    /// The low half of the path sequence; [`crate::seal::Opener`] rebuilds the rest.
    pub path_seq_low: u32,
}

impl Clear {
    /// Writes the header. Flag bits that do not exist are cut off.
    pub fn encode(&self, out: &mut [u8; CLEAR_LEN]) {
        out[0] = VERSION_BITS | self.frame.code() | if self.key_phase { PHASE_BIT } else { 0 };
        out[1] = (self.flags.0 & Flags::MASK) << 2 | self.class.code();
        out[2..6].copy_from_slice(&self.receiver.to_be_bytes());
        out[PATH_SEQ_AT..].copy_from_slice(&self.path_seq_low.to_be_bytes());
    }

    /// Reads the header at the front of `datagram`. Nothing in it is authenticated yet.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], [`Refusal::BadVersion`], [`Refusal::UnknownType`].
    pub fn decode(datagram: &[u8]) -> Result<Self, Refusal> {
        let mut r = Reader(datagram.get(..CLEAR_LEN).ok_or(Refusal::Truncated)?);
        let first = r.u8()?;
        if first & VERSION_MASK != VERSION_BITS {
            return Err(Refusal::BadVersion);
        }
        let frame = FrameType::from_code(first & 0x0f)?;
        let second = r.u8()?;
        Ok(Self {
            key_phase: first & PHASE_BIT != 0,
            frame,
            flags: Flags(second >> 2),
            class: Class::from_code(second),
            receiver: r.u32()?,
            path_seq_low: r.u32()?,
        })
    }

    /// Reads the header and asks `find` whose the receiver index is.
    ///
    /// # Errors
    /// Those of [`decode`](Self::decode), and [`Refusal::UnknownReceiver`] when `find` knows nobody.
    pub fn route<T>(datagram: &[u8], find: impl FnOnce(u32) -> Option<T>) -> Result<(Self, T), Refusal> {
        let clear = Self::decode(datagram)?;
        let target = find(clear.receiver).ok_or(Refusal::UnknownReceiver)?;
        Ok((clear, target))
    }
}

/// The sealed header of a data frame, [`DATA_LEN`] bytes; the inner packet follows.
///
/// ```text
///   0..3  send stamp
///   3..5  lane
///   5..8  lane sequence
///      8  incarnation
///      9  unqueued
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataHeader {
    /// The sender's clock when the packet left.
    pub sent: Stamp,
    /// Ordering domain of the packet.
    pub lane: u16,
    /// Number inside the lane, 24 bits.
    pub lane_seq: u32,
    /// Which life of the sending router counts the lanes.
    pub incarnation: u8,
    /// For how long nothing has waited for a path at the sender, in tens of milliseconds, at most 255; 0: something
    /// waits, or it is not said.
    pub unqueued: u8,
}

impl DataHeader {
    /// Writes the header; of the lane sequence the low 24 bits.
    pub fn encode(&self, out: &mut [u8; DATA_LEN]) {
        out[..3].copy_from_slice(&be24(self.sent.raw()));
        out[3..5].copy_from_slice(&self.lane.to_be_bytes());
        out[5..8].copy_from_slice(&be24(self.lane_seq & LANE_SEQ_MASK));
        out[8] = self.incarnation;
        out[9] = self.unqueued;
    }

    /// Reads the header off an opened body; the rest of the body is the inner packet.
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn decode(plain: &[u8]) -> Result<(Self, &[u8]), Refusal> {
        let mut r = Reader(plain);
        let header = Self {
            sent: r.stamp()?,
            lane: r.u16()?,
            lane_seq: r.u24()?,
            incarnation: r.u8()?,
            unqueued: r.u8()?,
        };
        Ok((header, r.rest()))
    }
}
