//! Forward error correction: packets that are lost can be rebuilt without asking for them again.
//!
//! A *block* is a run of consecutive packets of one protected lane (data shards; source symbols in RFC 6363).
//! From them the sender computes parity shards (repair symbols); of all shards of a block as many as it has data
//! shards are enough to rebuild the rest. The code is systematic: data packets travel as they are, and who has
//! them all never computes anything.
//!
//! ```text
//!  packets ─► Block (sender) ─► EncodeJob ─► FecCodec ─► Encoded ─► parity datagrams
//!  packets, parity ─► Decoder (receiver) ─► DecodeJob ─► FecCodec ─► Decoded ─► as if received
//! ```
//! The two machines only gather and count. The arithmetic is a job for [`FecCodec`], which may run elsewhere and
//! may die: a job without an answer costs its block, nothing else. How much parity a loss asks for: [`plan`].

mod code;
mod decoder;
mod encoder;
pub mod plan;

pub use code::{DecodeJob, Decoded, EncodeJob, Encoded, FecCodec, FecDone, FecJob, Packed};
pub(crate) use decoder::Decoder;
pub(crate) use encoder::{Block, Standing};

use crate::wire::Parity;
use crate::wire::v2::{CLEAR_LEN, TAG_LEN};

/// What a parity datagram costs beyond the longest packet of its block, bytes.
pub const PARITY_OVERHEAD: usize = CLEAR_LEN + Parity::LEN + Parity::SHARD_HEADER + TAG_LEN;

#[cfg(test)]
mod tests;
