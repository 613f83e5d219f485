//! Parts of an inner packet that is too long for its path.

use super::v2::Flags;
use super::{Reader, Refusal};

/// Stands between the data header and the bytes of a fragment, [`LEN`](Self::LEN) bytes: index 1, count 1.
///
/// All fragments of a packet carry its lane and lane sequence, and all but the last equally many bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Fragment {
    /// Which part, from 0.
    pub index: u8,
    /// Of how many, 2 to [`COUNT_MAX`](Self::COUNT_MAX).
    pub count: u8,
}

impl Fragment {
    /// Length of the header.
    pub const LEN: usize = 2;
    /// Most fragments of one packet: 64 of the base size hold the longest IP packet.
    pub const COUNT_MAX: u8 = 64;

    /// Appends the header to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.index, self.count]);
    }

    /// The flags of its datagram.
    pub fn flags(&self) -> Flags {
        if self.index + 1 == self.count {
            Flags::FRAGMENT.with(Flags::LAST_FRAGMENT)
        } else {
            Flags::FRAGMENT
        }
    }

    /// Reads the header off the rest of an opened body; gives the bytes of the fragment too.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], also when the fragment is empty; [`Refusal::TooMany`] for the count,
    /// [`Refusal::BadRange`] for an index that is not below it.
    pub fn decode(rest: &[u8]) -> Result<(Self, &[u8]), Refusal> {
        let mut r = Reader(rest);
        let fragment = Self { index: r.u8()?, count: r.u8()? };
        if !(2..=Self::COUNT_MAX).contains(&fragment.count) {
            return Err(Refusal::TooMany);
        }
        if fragment.index >= fragment.count {
            return Err(Refusal::BadRange);
        }
        let bytes = r.rest();
        if bytes.is_empty() {
            return Err(Refusal::Truncated);
        }
        Ok((fragment, bytes))
    }
}
