//! Blocks at the receiver: recent packets are remembered, parity says which of them make a block, and as soon as
//! there are enough shards of one, what is missing is rebuilt.
//!
//! Bounds: packets remembered by bytes and age, blocks by number and age, jobs by number. Parity about packets that
//! are long gone, of another incarnation, or that contradicts what is known of its block, is refused and counted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::buf::{BufPool, PacketBuf};
use crate::fec::code::data_shard;
use crate::fec::{DecodeJob, FecJob};
use crate::time::Time;
use crate::wire::{LANE_PROTECTED, LANE_SEQ_MASK, PROTECTED_LANES, Parity, Refusal, protected_index};

/// Packets and blocks are remembered this long: parity is sent a few milliseconds after its packets, perhaps over
/// a path that is slower by up to the longest spread.
const AGE_MAX: Duration = Duration::from_millis(500);
/// Blocks remembered, those that are done included (400 B and their parity each).
const BLOCKS_MAX: usize = 1024;
/// Bytes of parity remembered.
const PARITY_BYTES_MAX: usize = 2 << 20;
/// Jobs that wait for a codec: what it cannot take is lost, and the codec is behind anyway.
const JOBS_MAX: usize = 64;
/// Parity about packets that lie further from the newest of their lane is of no use.
const REACH: u32 = 1 << 13;
/// Idle buffers kept.
const POOL_IDLE_MAX: usize = 256;

/// A lane and a sequence in it.
type Place = (u8, u32);

/// Counters for the snapshot.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct DecoderStats {
    /// Parity datagrams taken.
    pub(crate) parity: u64,
    /// Packets of blocks that ended incomplete.
    pub(crate) failed: u64,
    /// Parity datagrams refused.
    pub(crate) refused: u64,
}

#[derive(Debug)]
struct Block {
    data: u8,
    shard_len: usize,
    /// Parity shards by index; none once the block is done.
    parity: Vec<Option<Vec<u8>>>,
    /// Bit `i`: packet `i` has arrived.
    arrived: u32,
    done: bool,
}

impl Block {
    fn missing(&self) -> u32 {
        u32::from(self.data) - self.arrived.count_ones()
    }

    fn parity_bytes(&self) -> usize {
        self.parity.iter().flatten().map(Vec::len).sum()
    }
}

/// The receiving half of FEC.
#[derive(Debug)]
pub(crate) struct Decoder {
    bytes_max: usize,
    pool: Option<BufPool>,
    incarnation: Option<u8>,
    newest: [Option<u32>; PROTECTED_LANES],
    kept: BTreeMap<Place, PacketBuf>,
    kept_order: VecDeque<(Place, Time)>,
    kept_bytes: usize,
    blocks: BTreeMap<Place, Block>,
    block_order: VecDeque<(Place, Time)>,
    parity_bytes: usize,
    jobs: VecDeque<FecJob>,
    stats: DecoderStats,
}

impl Decoder {
    /// A decoder that remembers packets of up to `bytes_max` bytes of buffers.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            pool: None,
            incarnation: None,
            newest: [None; PROTECTED_LANES],
            kept: BTreeMap::new(),
            kept_order: VecDeque::new(),
            kept_bytes: 0,
            blocks: BTreeMap::new(),
            block_order: VecDeque::new(),
            parity_bytes: 0,
            jobs: VecDeque::new(),
            stats: DecoderStats::default(),
        }
    }

    /// Says how long packets may be, bytes: what is rebuilt needs a buffer, even if no packet has arrived before.
    pub(crate) fn prepare(&mut self, capacity: usize) {
        self.pool.get_or_insert_with(|| BufPool::new(capacity, POOL_IDLE_MAX));
    }

    /// Takes note of a packet that arrived; those of other lanes than the protected ones are none of ours.
    pub(crate) fn handle_packet(
        &mut self,
        lane: u16,
        lane_seq: u32,
        incarnation: u8,
        packet: &PacketBuf,
        now: Time,
    ) {
        let Some(index) = protected_index(lane) else { return };
        if !self.enter(incarnation) {
            return;
        }
        let place = (index as u8, lane_seq);
        let ahead = self.newest[index].map_or(1, |newest| signed(lane_seq, newest));
        if ahead > 0 {
            self.newest[index] = Some(lane_seq);
        }
        self.keep(place, packet, now);
        let Some(first) = self.covering(place) else { return };
        let Some(block) = self.blocks.get_mut(&first) else { return };
        if packet.len() + Parity::SHARD_HEADER > block.shard_len {
            // Not of this block, whatever its parity claims.
            self.stats.refused += 1;
            self.finish(first);
            return;
        }
        block.arrived |= 1 << distance(lane_seq, first.1);
        self.look(first);
    }

    /// Takes a parity datagram's body.
    ///
    /// # Errors
    /// When it breaks a rule or contradicts an earlier one of its block; it has changed nothing then.
    pub(crate) fn handle_parity(&mut self, body: &[u8], now: Time) -> Result<(), Refusal> {
        let result = self.take_parity(body, now);
        match result {
            Ok(()) => self.stats.parity += 1,
            Err(_) => self.stats.refused += 1,
        }
        result
    }

    fn take_parity(&mut self, body: &[u8], now: Time) -> Result<(), Refusal> {
        let (header, shard) = Parity::decode(body)?;
        let index = protected_index(header.lane).ok_or(Refusal::BadRange)?;
        if !self.enter(header.incarnation) {
            return Ok(()); // Of a sender that has been replaced.
        }
        let first = (index as u8, header.lane_seq);
        if let Some(newest) = self.newest[index]
            && signed(header.lane_seq, newest).unsigned_abs() > REACH
        {
            return Err(Refusal::BadRange);
        }
        if !self.blocks.contains_key(&first) {
            self.open(first, &header, shard.len(), now);
        }
        let Some(block) = self.blocks.get_mut(&first) else { return Ok(()) };
        if block.data != header.data || block.shard_len != shard.len() {
            return Err(Refusal::BadLength);
        }
        if block.done {
            return Ok(());
        }
        let place = block.parity.get_mut(usize::from(header.index)).ok_or(Refusal::BadRange)?;
        if place.is_none() {
            *place = Some(shard.to_vec());
            self.parity_bytes += shard.len();
        }
        self.look(first);
        self.bound();
        Ok(())
    }

    /// The next job for a codec.
    pub(crate) fn poll_job(&mut self) -> Option<FecJob> {
        self.jobs.pop_front()
    }

    /// Forgets what is too old.
    pub(crate) fn expire(&mut self, now: Time) {
        while self.kept_order.front().is_some_and(|(_, at)| now - *at > AGE_MAX) {
            self.forget_oldest();
        }
        while self.block_order.front().is_some_and(|(_, at)| now - *at > AGE_MAX) {
            self.drop_oldest_block();
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let oldest = [self.kept_order.front(), self.block_order.front()];
        // In steps: what is remembered a little longer costs less than a timer for each.
        oldest.into_iter().flatten().map(|(_, at)| *at + AGE_MAX + AGE_MAX / 4).min()
    }

    /// A packet in a buffer of ours.
    pub(crate) fn buffer(&self, packet: &[u8]) -> Option<PacketBuf> {
        self.pool.as_ref()?.copy_from(packet)
    }

    /// Which life of the sender is current.
    pub(crate) fn incarnation(&self) -> Option<u8> {
        self.incarnation
    }

    pub(crate) fn stats(&self) -> DecoderStats {
        self.stats
    }

    /// Counts packets that a codec could not rebuild.
    pub(crate) fn note_failed(&mut self, packets: u32) {
        self.stats.failed += u64::from(packets);
    }

    /// Bytes of packets and parity remembered.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.kept_bytes + self.parity_bytes
    }

    /// Makes `incarnation` the current one unless it is older; false when it is.
    fn enter(&mut self, incarnation: u8) -> bool {
        match self.incarnation {
            Some(current) if current == incarnation => true,
            Some(current) if (incarnation.wrapping_sub(current) as i8) < 0 => false,
            _ => {
                *self = Self {
                    pool: self.pool.take(),
                    incarnation: Some(incarnation),
                    stats: self.stats,
                    ..Self::new(self.bytes_max)
                };
                true
            }
        }
    }

    fn keep(&mut self, place: Place, packet: &PacketBuf, now: Time) {
        if self.kept.contains_key(&place) {
            return;
        }
        self.prepare(packet.capacity());
        let Some(copy) = self.buffer(packet) else { return };
        self.kept_bytes += copy.capacity();
        self.kept.insert(place, copy);
        self.kept_order.push_back((place, now));
        while self.kept_bytes > self.bytes_max {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((place, _)) = self.kept_order.pop_front() else { return };
        if let Some(packet) = self.kept.remove(&place) {
            self.kept_bytes -= packet.capacity();
        }
    }

    fn open(&mut self, first: Place, header: &Parity, shard_len: usize, now: Time) {
        let mut arrived = 0;
        for i in 0..u32::from(header.data) {
            let seq = first.1.wrapping_add(i) & LANE_SEQ_MASK;
            arrived |= u32::from(self.kept.contains_key(&(first.0, seq))) << i;
        }
        let block = Block {
            data: header.data,
            shard_len,
            parity: vec![None; usize::from(header.parity)],
            arrived,
            done: false,
        };
        self.blocks.insert(first, block);
        self.block_order.push_back((first, now));
    }

    fn bound(&mut self) {
        while self.blocks.len() > BLOCKS_MAX || self.parity_bytes > PARITY_BYTES_MAX {
            self.drop_oldest_block();
        }
    }

    fn drop_oldest_block(&mut self) {
        let Some((first, _)) = self.block_order.pop_front() else { return };
        if let Some(block) = self.blocks.remove(&first) {
            self.parity_bytes -= block.parity_bytes();
            if !block.done {
                self.stats.failed += u64::from(block.missing());
            }
        }
    }

    /// The first place of the block that a packet belongs to, if one is known.
    fn covering(&self, (lane, seq): Place) -> Option<Place> {
        let before = self.blocks.range((lane, 0)..=(lane, seq)).next_back();
        let wrapped = || self.blocks.range((lane, seq)..=(lane, LANE_SEQ_MASK)).next_back();
        let covers = |(first, block): &(&Place, &Block)| distance(seq, first.1) < u32::from(block.data);
        before.filter(covers).or_else(|| wrapped().filter(covers)).map(|(first, _)| *first)
    }

    /// Ends the block when it is complete, or hands it to a codec when there is enough of it.
    fn look(&mut self, first: Place) {
        let Some(block) = self.blocks.get(&first).filter(|block| !block.done) else { return };
        if block.missing() == 0 {
            return self.finish(first);
        }
        let parity = block.parity.iter().flatten().count();
        if (parity as u32) < block.missing() {
            return;
        }
        let (data, shard_len) = (block.data, block.shard_len);
        let shard = |i: u8| {
            let seq = first.1.wrapping_add(u32::from(i)) & LANE_SEQ_MASK;
            let packet = self.kept.get(&(first.0, seq))?;
            (packet.len() + Parity::SHARD_HEADER <= shard_len).then(|| data_shard(packet, shard_len))
        };
        let mut shards: Vec<Option<Vec<u8>>> = (0..data).map(shard).collect();
        let missing = shards.iter().filter(|shard| shard.is_none()).count();
        if missing > parity {
            return; // Some were forgotten before the parity came.
        }
        if self.jobs.len() >= JOBS_MAX {
            self.stats.failed += missing as u64;
        } else {
            shards.extend(block.parity.iter().cloned());
            self.jobs.push_back(FecJob::Decode(DecodeJob {
                lane: LANE_PROTECTED + u16::from(first.0),
                lane_seq: first.1,
                incarnation: self.incarnation.unwrap_or(0),
                data,
                shards,
            }));
        }
        self.finish(first);
    }

    /// Nothing more is to be done about the block; it is remembered so that its late parity is known.
    fn finish(&mut self, first: Place) {
        if let Some(block) = self.blocks.get_mut(&first) {
            self.parity_bytes -= block.parity_bytes();
            block.parity.iter_mut().for_each(|shard| *shard = None);
            block.done = true;
        }
    }
}

/// `seq - first` of 24-bit sequences.
fn distance(seq: u32, first: u32) -> u32 {
    seq.wrapping_sub(first) & LANE_SEQ_MASK
}

/// `a - b` of 24-bit sequences, as a signed number.
fn signed(a: u32, b: u32) -> i32 {
    ((a.wrapping_sub(b) << 8) as i32) >> 8
}
