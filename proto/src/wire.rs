//! The wire format: what our datagrams look like, byte for byte.
//!
//! Input: datagrams from the link drivers and bodies from the machines. Output: headers and bodies
//! as types that cannot be out of bounds, or a [`Refusal`]. Nothing here allocates more than the
//! bounds of the frame at hand allow, and no bytes can make it panic. `proto/README.md` draws every
//! frame.

mod bundle;
mod fragment;
mod heartbeat;
mod parity;
mod refusal;
mod report;
mod segments;
mod skip;
pub mod v1;
pub mod v2;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use bundle::{Bundle, Bundled};
pub use fragment::Fragment;
pub use heartbeat::{Heartbeat, HeartbeatKind};
pub use parity::{LANE_PROTECTED, PROTECTED_LANES, Parity, protected_index, protected_lane};
pub use refusal::Refusal;
pub use report::{MissingRange, PathReport, Report};
pub use segments::{Segments, segments};
pub use skip::{Skip, SkipRun};

use crate::time::Stamp;

/// Sequence numbers inside a lane are 24 bits wide.
pub const LANE_SEQ_MASK: u32 = 0xff_ffff;

/// Who a UDP datagram is for, told by its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Plane {
    /// A QUIC packet: its fixed bit 0x40 is set (RFC 9000 section 17, with bit greasing off).
    Quic,
    /// The open format with the 38-byte header, [`v1`].
    V1,
    /// The sealed format, [`v2`].
    V2,
    /// None of ours.
    Unknown,
}

/// Sorts a datagram by its first byte. Must be asked for every segment of a GRO buffer: the kernel
/// merges by address and length, not by content.
pub const fn plane(first_byte: u8) -> Plane {
    if first_byte & 0x40 != 0 {
        Plane::Quic
    } else if first_byte & 0x70 == v2::VERSION_BITS {
        Plane::V2
    } else if first_byte == v1::VERSION {
        Plane::V1
    } else {
        Plane::Unknown
    }
}

/// A path inside a session: (edge uplink, exit address), numbered by the edge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PathId(pub u8);

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads big-endian fields off the front of a slice; every read says when the bytes run out.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Refusal::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, Refusal> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u24(&mut self) -> Result<u32, Refusal> {
        let [a, b, c] = self.array()?;
        Ok(u32::from_be_bytes([0, a, b, c]))
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn stamp(&mut self) -> Result<Stamp, Refusal> {
        Ok(Stamp::new(self.u24()?))
    }

    fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Refuses bytes after the last field: a frame has exactly one encoding.
    fn end(self) -> Result<(), Refusal> {
        if self.0.is_empty() { Ok(()) } else { Err(Refusal::BadLength) }
    }
}

/// The low 24 bits of `value`, big-endian.
const fn be24(value: u32) -> [u8; 3] {
    let [_, a, b, c] = value.to_be_bytes();
    [a, b, c]
}
