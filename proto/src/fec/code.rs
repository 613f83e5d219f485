//! The arithmetic: Reed-Solomon over GF(2^8), a block at a time.

use std::collections::BTreeMap;

use reed_solomon_erasure::galois_8::ReedSolomon;

use crate::wire::Parity;

/// Codes kept between jobs: making one costs as much as using it. The bound is far above what a session uses.
const CODES_MAX: usize = 64;

/// Packets back to back: cheaper to hand over than one buffer each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    bytes: Vec<u8>,
    lens: Vec<u16>,
}

impl Packed {
    /// Appends a packet. One of more than 65,535 bytes is cut; there are none.
    pub fn push(&mut self, packet: &[u8]) {
        let len = u16::try_from(packet.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&packet[..usize::from(len)]);
        self.lens.push(len);
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.lens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lens.is_empty()
    }

    /// Length of a shard that holds any of them.
    pub fn shard_len(&self) -> usize {
        Parity::SHARD_HEADER + usize::from(self.lens.iter().copied().max().unwrap_or(0))
    }

    /// The data shards: length, packet, zeros up to the longest.
    fn shards(&self) -> Vec<Vec<u8>> {
        let shard_len = self.shard_len();
        let mut rest = self.bytes.as_slice();
        let shard = |len: &u16| {
            let (packet, after) = rest.split_at(usize::from(*len));
            rest = after;
            data_shard(packet, shard_len)
        };
        self.lens.iter().map(shard).collect()
    }
}

/// The data shard of a packet: length, packet, zeros up to `shard_len`.
pub(super) fn data_shard(packet: &[u8], shard_len: usize) -> Vec<u8> {
    let mut shard = Vec::with_capacity(shard_len);
    shard.extend_from_slice(&(packet.len() as u16).to_be_bytes());
    shard.extend_from_slice(packet);
    shard.resize(shard_len, 0);
    shard
}

/// A block that wants parity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeJob {
    /// The sender's number of the block.
    pub block: u64,
    /// Its packets, 1 to [`Parity::DATA_MAX`].
    pub packets: Packed,
    /// Parity shards wanted, 1 to [`Parity::PARITY_MAX`].
    pub parity: u8,
}

/// Parity of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// The sender's number of the block.
    pub block: u64,
    /// Its parity shards, of equal length; none when the job could not be done.
    pub shards: Vec<Vec<u8>>,
}

/// A block of which enough has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodeJob {
    /// The lane of its packets.
    pub lane: u16,
    /// Lane sequence of its first packet.
    pub lane_seq: u32,
    /// Which life of the sending router counts the lanes.
    pub incarnation: u8,
    /// How many of the shards are data.
    pub data: u8,
    /// All shards, data first; `None` is missing.
    pub shards: Vec<Option<Vec<u8>>>,
}

impl DecodeJob {
    /// The result when nobody does the job.
    pub fn abandoned(&self) -> Decoded {
        let data = self.shards.iter().take(usize::from(self.data));
        let failed = data.filter(|shard| shard.is_none()).count() as u32;
        Decoded { lane: self.lane, incarnation: self.incarnation, packets: Vec::new(), failed }
    }
}

/// What was rebuilt of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The lane.
    pub lane: u16,
    /// Which life of the sending router counts the lanes.
    pub incarnation: u8,
    /// Lane sequences and packets that were missing. Fewer than that when the block contradicts itself.
    pub packets: Vec<(u32, Vec<u8>)>,
    /// Missing packets that could not be rebuilt all the same.
    pub failed: u32,
}

/// Work for a codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FecJob {
    /// Compute parity.
    Encode(EncodeJob),
    /// Rebuild packets.
    Decode(DecodeJob),
}

/// Its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FecDone {
    /// For the sender.
    Encoded(Encoded),
    /// For the receiver.
    Decoded(Decoded),
}

/// Does the arithmetic. Holds only codes that it has used before; any codec can do any job.
#[derive(Default)]
pub struct FecCodec {
    codes: BTreeMap<(u8, u8), ReedSolomon>,
}

impl FecCodec {
    /// A codec that has no code yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Does a job. What is out of bounds gives an empty result.
    pub fn run(&mut self, job: FecJob) -> FecDone {
        match job {
            FecJob::Encode(job) => FecDone::Encoded(self.encode(&job)),
            FecJob::Decode(job) => FecDone::Decoded(self.decode(job)),
        }
    }

    /// Computes the parity of a block.
    pub fn encode(&mut self, job: &EncodeJob) -> Encoded {
        let mut done = Encoded { block: job.block, shards: Vec::new() };
        let Ok(data) = u8::try_from(job.packets.len()) else { return done };
        let Some(code) = self.code(data, job.parity) else { return done };
        let shards = job.packets.shards();
        let mut parity = vec![vec![0; job.packets.shard_len()]; usize::from(job.parity)];
        if code.encode_sep(&shards, &mut parity).is_ok() {
            done.shards = parity;
        }
        done
    }

    /// Rebuilds what is missing of a block.
    pub fn decode(&mut self, mut job: DecodeJob) -> Decoded {
        let data = usize::from(job.data).min(job.shards.len());
        let missing: Vec<usize> = (0..data).filter(|&i| job.shards[i].is_none()).collect();
        let mut done = job.abandoned();
        let Ok(parity) = u8::try_from(job.shards.len() - data) else { return done };
        let Some(code) = self.code(job.data, parity) else { return done };
        if code.reconstruct_data(&mut job.shards).is_err() {
            return done;
        }
        for i in missing {
            // The shards may be of different blocks that a broken peer calls one: then this is noise.
            if let Some(packet) = job.shards[i].as_deref().and_then(packet_of) {
                let lane_seq = job.lane_seq.wrapping_add(i as u32) & crate::wire::LANE_SEQ_MASK;
                done.packets.push((lane_seq, packet.to_vec()));
                done.failed -= 1;
            }
        }
        done
    }

    fn code(&mut self, data: u8, parity: u8) -> Option<&ReedSolomon> {
        if data == 0 || data > Parity::DATA_MAX || parity == 0 || parity > Parity::PARITY_MAX {
            return None;
        }
        if self.codes.len() >= CODES_MAX && !self.codes.contains_key(&(data, parity)) {
            self.codes.clear();
        }
        match self.codes.entry((data, parity)) {
            std::collections::btree_map::Entry::Occupied(known) => Some(known.into_mut()),
            std::collections::btree_map::Entry::Vacant(place) => {
                let code = ReedSolomon::new(usize::from(data), usize::from(parity)).ok()?;
                Some(place.insert(code))
            }
        }
    }
}

impl std::fmt::Debug for FecCodec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FecCodec({} codes)", self.codes.len())
    }
}

/// The packet in a data shard; `None` when it contradicts itself.
fn packet_of(shard: &[u8]) -> Option<&[u8]> {
    let (len, rest) = shard.split_first_chunk::<2>()?;
    let (packet, padding) = rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
    (!packet.is_empty() && padding.iter().all(|&byte| byte == 0)).then_some(packet)
}
