//! Repair without a round trip: parity and duplicates for what a resend would bring too late.
//!
//! | packet | care |
//! |---|---|
//! | TCP, large QUIC packets, whatever is ordered | resend |
//! | other packets, on a path that loses nothing | resend |
//! | other packets, where feedback comes within the class's patience | resend |
//! | voice, with two paths | a duplicate at once |
//! | voice on one path, video, small packets; others while the paths are not full | parity |
//! | background | resend |
//! | a packet too long for a parity datagram of its size | resend |
//!
//! This is `fec = adaptive`; `enabled` gives parity to all that is not TCP. Protected packets go by the lane of
//! their class, so that a block is a run of consecutive sequences. A block ends when it is full or its first packet
//! has waited for long enough; it never waits for more. Its parity goes first to the paths that carried least of
//! it, within their pacing. A lost packet of a block is sent again only when the block has lost more than its
//! parity makes good: until then the receiver can rebuild it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bond::arq::Key;
use crate::bond::classify::Verdict;
use crate::bond::config::{DuplicationMode, FecMode};
use crate::bond::sender::Sender;
use crate::bond::sender::mode::{RoutingMode, members};
use crate::bond::sender::path::{Content, PathSender};
use crate::bond::snapshot::PathState;
use crate::fec::plan::parity_for;
use crate::fec::{Block, EncodeJob, Encoded, FecJob, PARITY_OVERHEAD, Standing};
use crate::time::Time;
use crate::wire::v2::{CLEAR_LEN, Class, Flags, FrameType, TAG_LEN};
use crate::wire::{LANE_PROTECTED, PROTECTED_LANES, Parity, protected_lane};

/// Share of packets that may stay lost in spite of adaptive parity.
const RESIDUAL: f64 = 5e-5;
/// The loss is taken for this much more than measured: it is measured from few packets.
const LOSS_MARGIN: f64 = 1.25;
/// Blocks whose fate is not known; the oldest is given up beyond.
const BLOCKS_MAX: usize = 4096;
/// Parity that could not be sent for so long is of no use.
const PARITY_AGE_MAX: Duration = Duration::from_millis(100);
/// A codec that has not answered for so long will not.
const CODEC_PATIENCE: Duration = Duration::from_millis(60);
/// Jobs that wait for a codec.
const JOBS_MAX: usize = 64;
/// The published redundancy is that of blocks not older than this.
const REDUNDANCY_FRESH: Duration = Duration::from_secs(1);
/// Packets up to this length are those of games, calls and signalling rather than of transfers, bytes.
const SMALL: usize = 400;
/// From a queue of so much time on the paths are full, seconds.
const SATURATED: f64 = 0.060;
/// Stands for no loss where loss is a factor.
const LOSS_FLOOR: f64 = 1e-3;

/// How long a block may wait for more packets.
const fn block_wait(class: Class) -> Duration {
    Duration::from_millis(match class {
        Class::Voice => 3,
        Class::Video | Class::BestEffort => 8,
        Class::Background => 20,
    })
}

/// How much later than the others a packet that was sent again may come, seconds.
const fn patience(class: Class) -> f64 {
    match class {
        Class::Voice => 0.020,
        Class::Video | Class::BestEffort => 0.050,
        Class::Background => f64::INFINITY,
    }
}

/// How losses of a packet are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Care {
    /// Sent again when lost.
    Resend,
    /// In a block with parity.
    Parity,
    /// On several paths at once.
    Copies(DuplicationMode),
}

/// Parity that waits for a path.
#[derive(Debug)]
struct Ready {
    block: u64,
    at: Time,
    /// How many shards the block has.
    parity: u8,
    shards: VecDeque<Vec<u8>>,
}

/// Counters that the snapshot shows.
#[derive(Debug, Default)]
pub(super) struct RepairCounters {
    pub(super) protected: u64,
    pub(super) parity_sent: u64,
    pub(super) rebuilt: u64,
    pub(super) duplicated: u64,
}

/// The sender's blocks.
#[derive(Debug)]
pub(super) struct Repair {
    lane_seqs: [u32; PROTECTED_LANES],
    open: [Option<u64>; PROTECTED_LANES],
    blocks: VecDeque<Block<Key>>,
    /// Number of the first of `blocks`.
    base: u64,
    jobs: VecDeque<FecJob>,
    ready: VecDeque<Ready>,
    /// Parity per packet of the latest blocks.
    redundancy: f64,
    redundancy_at: Time,
    pub(super) counters: RepairCounters,
}

impl Repair {
    pub(super) fn new() -> Self {
        Self {
            lane_seqs: [0; PROTECTED_LANES],
            open: [None; PROTECTED_LANES],
            blocks: VecDeque::new(),
            base: 0,
            jobs: VecDeque::new(),
            ready: VecDeque::new(),
            redundancy: 0.0,
            redundancy_at: Time::ZERO,
            counters: RepairCounters::default(),
        }
    }

    fn block(&mut self, number: u64) -> Option<&mut Block<Key>> {
        let index = number.checked_sub(self.base)?;
        self.blocks.get_mut(usize::try_from(index).ok()?)
    }

    /// Parity shards per packet lately, 0 when nothing is protected.
    pub(super) fn redundancy(&self, now: Time) -> f64 {
        if now - self.redundancy_at < REDUNDANCY_FRESH { self.redundancy } else { 0.0 }
    }

    /// When a block that is being filled ends.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let ends = |(class, number): (&Class, &Option<u64>)| {
            let index = usize::try_from((*number)?.checked_sub(self.base)?).ok()?;
            self.blocks.get(index).map(|block| block.since + block_wait(*class))
        };
        Class::ALL.iter().zip(&self.open).filter_map(ends).min()
    }
}

impl Sender {
    /// How the packet is to be cared for that is about to go by path `i`.
    pub(super) fn care(&self, i: usize, verdict: &Verdict, len: usize) -> Care {
        if !verdict.datagram || verdict.ordered || self.config.mode == RoutingMode::Broadcast {
            return Care::Resend;
        }
        let duplication = &self.config.duplication;
        let asked = matches!(
            duplication.mode,
            DuplicationMode::First | DuplicationMode::Fastest | DuplicationMode::Best
        );
        if asked && duplication.classes.contains(verdict.class) {
            return Care::Copies(duplication.mode);
        }
        match self.config.fec.mode {
            FecMode::Off => return Care::Resend,
            FecMode::Enabled => {}
            FecMode::Adaptive => {
                let p = &self.paths[i];
                let in_time = self.config.resend && p.delay.feedback() <= patience(verdict.class);
                if verdict.class == Class::Background || !p.random.is_lossy() || in_time {
                    return Care::Resend;
                }
                let alone = self.config.mode.keeps_to_path() || self.usable().nth(1).is_none();
                if verdict.class == Class::Voice && !alone && duplication.mode == DuplicationMode::Auto {
                    return Care::Copies(DuplicationMode::Fastest);
                }
                // What is large and not urgent must not lose throughput to its own parity.
                if verdict.class == Class::BestEffort && len > SMALL && self.is_saturated() {
                    return Care::Resend;
                }
            }
        }
        let fits = self.usable().all(|j| len + PARITY_OVERHEAD <= self.paths[j].mtu.current());
        if fits { Care::Parity } else { Care::Resend }
    }

    /// Whether what waits is more than the dips of a rate that suffices.
    fn is_saturated(&self) -> bool {
        let rate: f64 = self.usable().map(|j| self.paths[j].rate.rate()).sum();
        (self.queue.bytes() * 8) as f64 > SATURATED * rate
    }

    /// Adds a packet that goes by path `i` to the open block of its class. Gives lane, sequence and block.
    pub(super) fn protect(&mut self, i: usize, class: Class, packet: &[u8], now: Time) -> (u16, u32, u64) {
        let path = self.paths[i].id.0;
        let index = usize::from(class.code());
        let lane = protected_lane(class);
        let repair = &mut self.repair;
        let lane_seq = repair.lane_seqs[index];
        repair.lane_seqs[index] = (lane_seq + 1) & crate::wire::LANE_SEQ_MASK;
        let number = match repair.open[index] {
            Some(number) => number,
            None => {
                let planned = self.config.fec.parity_shards;
                repair.blocks.push_back(Block::new(lane, lane_seq, planned, now));
                let number = repair.base + repair.blocks.len() as u64 - 1;
                repair.open[index] = Some(number);
                number
            }
        };
        repair.counters.protected += 1;
        if let Some(block) = repair.block(number) {
            block.packets.push(packet);
            block.data += 1;
            block.note_path(path);
        }
        (lane, lane_seq, number)
    }

    /// Ends the open block of a class if it is full.
    pub(super) fn close_full(&mut self, class: Class, now: Time) {
        let full = self.config.fec.data_shards.clamp(1, Parity::DATA_MAX);
        let number = self.repair.open[usize::from(class.code())];
        if let Some(number) = number
            && self.repair.block(number).is_some_and(|block| block.data >= full)
        {
            self.close(class, now);
        }
    }

    /// Ends the blocks that have waited for long enough, and gives up what nobody will answer for.
    pub(super) fn age_blocks(&mut self, now: Time) {
        for class in Class::ALL {
            let number = self.repair.open[usize::from(class.code())];
            let since = number.and_then(|number| self.repair.block(number)).map(|block| block.since);
            if since.is_some_and(|since| now >= since + block_wait(class)) {
                self.close(class, now);
            }
        }
        let unanswered = |block: &Block<Key>| block.awaited && now - block.since > CODEC_PATIENCE;
        for index in 0..self.repair.blocks.len() {
            if unanswered(&self.repair.blocks[index]) {
                self.drop_parity(self.repair.base + index as u64, u8::MAX, now);
            }
        }
        while let Some(front) = self.repair.blocks.front() {
            let settled = front.is_settled() && front.waiting.is_empty();
            let old = front.closed && now - front.since > self.config.resend_age_max;
            if !settled && !old && self.repair.blocks.len() <= BLOCKS_MAX {
                break;
            }
            let Some(mut block) = self.repair.blocks.pop_front() else { break };
            self.repair.base += 1;
            for key in block.waiting.drain(..) {
                self.store.held_mut(key).block = None;
                self.resend_lost(key, now);
            }
        }
    }

    fn close(&mut self, class: Class, now: Time) {
        let Some(number) = self.repair.open[usize::from(class.code())].take() else { return };
        let Some(block) = self.repair.block(number) else { return };
        block.closed = true;
        let (data, packets) = (block.data, std::mem::take(&mut block.packets));
        let carriers = block.per_path.clone();
        let parity = self.parity_for(data, &carriers);
        let weight = if self.repair.redundancy(now) > 0.0 { 1.0 / 16.0 } else { 1.0 };
        let repair = &mut self.repair;
        repair.redundancy += (f64::from(parity) / f64::from(data) - repair.redundancy) * weight;
        repair.redundancy_at = now;
        let asked = parity > 0 && repair.jobs.len() < JOBS_MAX;
        if asked {
            repair.jobs.push_back(FecJob::Encode(EncodeJob { block: number, packets, parity }));
        }
        if let Some(block) = repair.block(number) {
            block.parity = if asked { parity } else { 0 };
            block.awaited = asked;
        }
        self.settle_block(number, now);
    }

    /// Parity shards for a block of `data` packets that went by certain paths.
    fn parity_for(&self, data: u8, carriers: &[(u8, u8)]) -> u8 {
        let fec = &self.config.fec;
        let share = |ratio: f64| ((f64::from(data) * ratio).ceil() as u8).clamp(1, Parity::PARITY_MAX);
        match fec.mode {
            FecMode::Off => 0,
            FecMode::Enabled => share(f64::from(fec.parity_shards) / f64::from(fec.data_shards.max(1))),
            FecMode::Adaptive => {
                let carried = |p: &&PathSender| carriers.iter().any(|(id, _)| *id == p.id.0);
                let losses = self.paths.iter().filter(carried).map(|p| p.random.loss());
                let loss = losses.fold(0.0, f64::max) * LOSS_MARGIN;
                parity_for(data, loss, RESIDUAL, share(fec.redundancy))
            }
        }
    }

    /// The next job for a codec.
    pub fn poll_fec_job(&mut self) -> Option<FecJob> {
        self.repair.jobs.pop_front()
    }

    /// Takes the parity of a block. What nobody asked for, or came too late, is ignored.
    pub fn handle_encoded(&mut self, encoded: Encoded, now: Time) {
        let number = encoded.block;
        let Some(block) = self.repair.block(number).filter(|block| block.awaited) else { return };
        block.awaited = false;
        let parity = block.parity;
        if encoded.shards.len() != usize::from(parity) {
            return self.drop_parity(number, u8::MAX, now);
        }
        self.repair.ready.push_back(Ready { block: number, at: now, parity, shards: encoded.shards.into() });
    }

    /// `count` parity shards of a block will not be sent.
    fn drop_parity(&mut self, number: u64, count: u8, now: Time) {
        if let Some(block) = self.repair.block(number) {
            block.awaited = false;
            block.parity = block.parity.saturating_sub(count);
            self.settle_block(number, now);
        }
    }

    /// Sends parity. False when some waits for a path.
    pub(super) fn pump_parity(&mut self, now: Time) -> bool {
        while let Some(front) = self.repair.ready.front() {
            let (number, len) = (front.block, front.shards.front().map_or(0, Vec::len));
            let known = number >= self.repair.base;
            if front.shards.is_empty() || !known || now - front.at > PARITY_AGE_MAX {
                let left = front.shards.len() as u8;
                self.repair.ready.pop_front();
                self.drop_parity(number, left, now);
                continue;
            }
            let Some(i) = self.parity_path(number, len, now) else {
                self.policy.awaited |= self.usable_set();
                return false;
            };
            self.emit_parity(i, now);
        }
        true
    }

    /// The path that has carried least of the block, the nearest of them, among those whose wire is free.
    fn parity_path(&self, number: u64, shard_len: usize, now: Time) -> Option<usize> {
        let index = usize::try_from(number.checked_sub(self.repair.base)?).ok()?;
        let block = self.repair.blocks.get(index)?;
        let datagram = CLEAR_LEN + Parity::LEN + shard_len + TAG_LEN;
        let cost = |i: usize| (block.on_path(self.paths[i].id.0), self.paths[i].arrival(datagram, now));
        // A mode that keeps to a path spends nothing on the others.
        let kept = self.config.mode.keeps_to_path();
        self.usable()
            .filter(|&i| {
                let p = &self.paths[i];
                (!kept || block.on_path(p.id.0) > 0)
                    && p.has_room()
                    && p.is_free(self.config.ahead_sparse, now)
                    && datagram <= p.mtu.current()
            })
            .min_by(|&a, &b| {
                let ((on_a, at_a), (on_b, at_b)) = (cost(a), cost(b));
                on_a.cmp(&on_b).then(at_a.total_cmp(&at_b))
            })
    }

    fn emit_parity(&mut self, i: usize, now: Time) {
        let path = self.paths[i].id.0;
        let Some(front) = self.repair.ready.front_mut() else { return };
        let (number, parity) = (front.block, front.parity);
        let Some(shard) = front.shards.pop_front() else { return };
        let index = parity - 1 - front.shards.len() as u8;
        let Some(block) = self.repair.block(number) else { return };
        block.note_path(path);
        let class = Class::from_code((block.lane - LANE_PROTECTED) as u8);
        let header = Parity {
            sent: now.stamp(),
            lane: block.lane,
            lane_seq: block.lane_seq,
            incarnation: self.incarnation,
            data: block.data,
            parity,
            index,
        };
        self.repair.counters.parity_sent += 1;
        let p = &mut self.paths[i];
        p.parity += 1;
        p.emit(FrameType::Fec, Flags::FEC, class, Content::Parity(number), now, |slab| {
            slab.extend_from_slice(&header.encode());
            slab.extend_from_slice(&shard);
        });
    }

    /// A shard of a block arrived.
    pub(super) fn shard_arrived(&mut self, number: u64, now: Time) {
        if let Some(block) = self.repair.block(number) {
            block.shard_arrived();
            self.settle_block(number, now);
        }
    }

    /// A parity shard was lost.
    pub(super) fn parity_lost(&mut self, number: u64, now: Time) {
        if let Some(block) = self.repair.block(number) {
            block.shard_lost();
            self.settle_block(number, now);
        }
    }

    /// A packet of a block was lost: it is the block's while the block may be whole yet. False when it is not.
    pub(super) fn packet_lost(&mut self, key: Key, number: u64, now: Time) -> bool {
        let Some(block) = self.repair.block(number) else { return false };
        if block.waiting.contains(&key) {
            // A copy of it; the first loss stands for all.
            self.store.release(key);
            return true;
        }
        block.shard_lost();
        block.waiting.push(key);
        self.settle_block(number, now);
        true
    }

    /// Lets go of the block's lost packets when it is known what becomes of them.
    fn settle_block(&mut self, number: u64, now: Time) {
        let Some(block) = self.repair.block(number) else { return };
        match block.standing() {
            Standing::Open => {}
            Standing::Whole => {
                for key in std::mem::take(&mut block.waiting) {
                    let held = self.store.held_mut(key);
                    self.repair.counters.rebuilt += u64::from(!held.delivered);
                    held.delivered = true;
                    self.store.release(key);
                }
            }
            Standing::Broken => {
                for key in std::mem::take(&mut block.waiting) {
                    self.store.held_mut(key).block = None;
                    self.resend_lost(key, now);
                }
            }
        }
    }

    /// Where the packet of path `i` goes under a duplication mode: the path to count as its own, and those that
    /// get copies.
    pub(super) fn copies(&self, i: usize, mode: DuplicationMode, len: usize, now: Time) -> (usize, u64) {
        let ahead = self.config.ahead_sparse;
        let able = |j: &usize| {
            let p = &self.paths[*j];
            let free = p.state == PathState::Up && !p.flight.is_full() && p.is_free(ahead, now);
            *j == i || free
        };
        let mut ranked: Vec<usize> = self.usable().filter(able).filter(|&j| j < 64).collect();
        let cost = |j: usize| {
            let p = &self.paths[j];
            match mode {
                DuplicationMode::Best => (p.random.loss() + LOSS_FLOOR) * p.transit(),
                _ => p.arrival(len, now),
            }
        };
        ranked.sort_by(|&a, &b| cost(a).total_cmp(&cost(b)));
        if mode != DuplicationMode::First {
            ranked.truncate(2);
        }
        let first = if ranked.contains(&i) { i } else { ranked.first().copied().unwrap_or(i) };
        (first, ranked.into_iter().filter(|&j| j != first).fold(0, |set, j| set | 1 << j))
    }

    /// Sends the copies of a packet.
    pub(super) fn emit_duplicates(&mut self, set: u64, key: Key, now: Time) {
        for j in members(set) {
            self.store.retain(key);
            self.store.held_mut(key).duplicated = true;
            self.repair.counters.duplicated += 1;
            self.paths[j].duplicates += 1;
            self.emit_data(j, key, Flags::DUPLICATE, now);
        }
    }
}
