//! The one queue of a session: FQ-CoDel (RFC 8290), the only place where inner packets are dropped
//! or marked.
//!
//! Packets come from the TUN device by way of the classifier and are taken by the scheduler as late
//! as possible, when a path has room. Each flow has a queue of its own (flows whose hashes collide
//! share one), served by DRR++: a flow that just began to send, or sends little, is on the *new*
//! list and goes before the backlogged flows on the *old* list for at most one quantum. CoDel
//! (RFC 8289) runs in each queue and marks ECN-capable packets instead of dropping them.
//!
//! Four additions to the RFC:
//! - The quantum is weighted by class: voice 4, video 3, best effort 2, background 1 halves of
//!   [`FlowQueueConfig::quantum`].
//! - Express packets (TCP acknowledgements, SYN, DNS, small echoes) wait in queues of their own that
//!   go before all others, until they have had [`EXPRESS_LEAD_QUANTA`] more than the rest: a flood of
//!   them then gets half of the bytes, not all.
//! - With [`FlowQueue::set_spare`] background packets wait in queues of their own that are served only
//!   while nothing else waits (RFC 8622: lower effort may starve).
//! - When full, it drops from the fattest queue by bytes, or by packets when those are too many:
//!   buffers have one size, so packets are what bounds memory.
//!
//! [`FlowQueue::peek`] and [`FlowQueue::pop`] agree as long as nothing is pushed in between and the
//! time is the same. Pushing and popping take constant time, except for the drops at overflow, which
//! look at every queue once per batch of up to [`DROP_BATCH`] packets.

mod codel;
mod store;
mod tier;

use std::time::Duration;

use codel::Params;
use store::Store;
use tier::{FlowState, Place, Rank, Slot, Tier, weight};

use super::classify::Verdict;
use crate::buf::PacketBuf;
use crate::packet;
use crate::time::Time;

/// Packets dropped at most when the queue overflows (RFC 8290, section 4.1: half of the fattest
/// queue, but not more than 64), so that the search for the fattest is paid once per batch.
pub const DROP_BATCH: usize = 64;

/// How many quanta express packets may be ahead of all others before these get every second byte.
/// Eight quanta are 12 kB, some 230 acknowledgements.
pub const EXPRESS_LEAD_QUANTA: usize = 8;

/// Packets held at most per this many bytes of [`FlowQueueConfig::bytes_max`]: a queue of nothing but
/// acknowledgements holds no more than this share of full-sized buffers.
const BYTES_PER_PACKET: usize = 256;

/// Express packets are few and leave at once; more queues would only be more to search at overflow.
const EXPRESS_QUEUES_MAX: usize = 128;

/// Background flows are few and not in a hurry.
const SPARE_QUEUES_MAX: usize = 128;

/// Below this priority a packet is background (see [`Verdict::priority`]).
const SPARE_BELOW: u8 = 50;

/// Settings of a [`FlowQueue`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowQueueConfig {
    /// Number of queues that flows are hashed to; default 1024 as in RFC 8290. With 100 flows, one
    /// in ten then shares its queue.
    pub queues: usize,
    /// Bytes a best-effort flow may send per round; default 1514, one full packet. Smaller values
    /// favour small packets.
    pub quantum: usize,
    /// Bytes of packets held at most, at least one packet; default 4 MiB, 80 ms at 400 Mbit/s.
    /// Overflow drops from the fattest flow. Packets are bounded too, to one per 256 of these bytes.
    pub bytes_max: usize,
    /// CoDel's acceptable standing delay; default 20 ms, for the RTTs of 60 to 100 ms that a bonded
    /// bulk flow sees. Longer paths want 50 ms.
    pub target: Duration,
    /// CoDel's interval, about the longest usual RTT; default 150 ms.
    pub interval: Duration,
    /// Mark ECN-capable packets instead of dropping them; default true.
    pub ecn: bool,
}

impl Default for FlowQueueConfig {
    fn default() -> Self {
        Self {
            queues: 1024,
            quantum: 1514,
            bytes_max: 4 << 20,
            target: Duration::from_millis(20),
            interval: Duration::from_millis(150),
            ecn: true,
        }
    }
}

/// A packet with what is known about it.
#[derive(Debug)]
pub struct Queued {
    /// The inner packet.
    pub packet: PacketBuf,
    /// The classifier's verdict on it.
    pub verdict: Verdict,
    /// When it was handed to [`FlowQueue::push`]; its sojourn counts from here.
    pub enqueued: Time,
}

/// The packet that [`FlowQueue::pop`] would give.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Its bytes, already marked if CoDel wanted so.
    pub packet: &'a [u8],
    /// Its length in bytes.
    pub len: usize,
    /// The classifier's verdict on it.
    pub verdict: &'a Verdict,
    /// It comes from a flow that was not backlogged (the new list), or is express.
    pub sparse: bool,
    /// How long it has waited.
    pub sojourn: Duration,
}

/// A packet taken from the queue.
#[derive(Debug)]
pub struct Popped {
    /// The packet.
    pub queued: Queued,
    /// It came from a flow that was not backlogged (the new list), or is express.
    pub sparse: bool,
}

/// Counters since the queue was made. `enqueued = dequeued + dropped_codel + dropped_overflow +
/// dropped_stale + packets()` at any time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub struct FlowQueueStats {
    /// Packets pushed, those dropped at once included.
    pub enqueued: u64,
    /// Packets popped.
    pub dequeued: u64,
    /// Packets CoDel dropped.
    pub dropped_codel: u64,
    /// Packets dropped because the queue was full.
    pub dropped_overflow: u64,
    /// Packets dropped by [`FlowQueue::keep_newest`].
    pub dropped_stale: u64,
    /// Packets CoDel marked; they were, or will be, dequeued.
    pub marked: u64,
    /// Most bytes ever held.
    pub bytes_max_seen: usize,
}

/// FQ-CoDel for one session; see the module's description.
#[derive(Debug)]
pub struct FlowQueue {
    store: Store,
    /// Indexed by [`Rank`].
    tiers: [Tier; 3],
    /// Background waits for spare capacity.
    spare: bool,
    /// Bytes that express packets may still go ahead of the others.
    express_credit: i64,
    params: Params,
    quantum: usize,
    bytes_max: usize,
    packets_max: usize,
    ecn: bool,
    /// Largest packet seen, CoDel's measure of a queue that is short enough.
    packet_max: usize,
    bytes: usize,
    stats: FlowQueueStats,
}

impl FlowQueue {
    /// An empty queue.
    ///
    /// # Panics
    /// When `queues`, `quantum` or `bytes_max` is zero, or `queues` exceeds 2^16.
    pub fn new(config: FlowQueueConfig) -> Self {
        assert!((1..=1 << 16).contains(&config.queues), "1 to 65536 queues");
        assert!(config.quantum > 0 && config.bytes_max > 0, "room for something");
        Self {
            store: Store::new(),
            tiers: [
                Tier::new(config.queues.min(EXPRESS_QUEUES_MAX)),
                Tier::new(config.queues),
                Tier::new(config.queues.min(SPARE_QUEUES_MAX)),
            ],
            spare: false,
            express_credit: (EXPRESS_LEAD_QUANTA * config.quantum) as i64,
            params: Params { target: config.target, interval: config.interval },
            quantum: config.quantum,
            bytes_max: config.bytes_max,
            packets_max: (config.bytes_max / BYTES_PER_PACKET).max(DROP_BATCH),
            ecn: config.ecn,
            packet_max: 0,
            bytes: 0,
            stats: FlowQueueStats::default(),
        }
    }

    /// Takes a packet in. Returns how many packets had to be dropped to stay within the bounds, from
    /// the fattest queue; the new packet may be among them.
    pub fn push(&mut self, queued: Queued) -> usize {
        let len = queued.packet.len();
        let quantum = (self.quantum * weight(queued.verdict.class) / 2).max(1) as i64;
        let rank = if queued.verdict.express {
            Rank::Express
        } else if self.spare && queued.verdict.priority < SPARE_BELOW {
            Rank::Spare
        } else {
            Rank::Bulk
        };
        let tier = &mut self.tiers[rank as usize];
        let index = (queued.verdict.flow.0 % tier.flows.len() as u64) as usize;
        let flow = &mut tier.flows[index];
        flow.quantum = quantum;
        self.store.push_back(&mut flow.list, queued);
        tier.packets += 1;
        if flow.place == Place::Idle {
            flow.place = Place::New;
            flow.deficit = quantum;
            tier.new.push_back(index as u32);
        }
        self.packet_max = self.packet_max.max(len);
        self.bytes += len;
        self.stats.enqueued += 1;

        let mut dropped = 0;
        while self.bytes > self.bytes_max || self.packets() > self.packets_max {
            dropped += self.drop_from_fattest();
        }
        self.stats.bytes_max_seen = self.stats.bytes_max_seen.max(self.bytes);
        dropped
    }

    /// The packet that DRR++ sends next, after CoDel's drops and marks, left where it is.
    pub fn peek(&mut self, now: Time) -> Option<Head<'_>> {
        let (slot, sparse) = self.settle_next(now)?;
        self.head(slot, sparse, now)
    }

    fn head(&self, slot: Slot, sparse: bool, now: Time) -> Option<Head<'_>> {
        let waiting = self.store.front(&self.tiers[slot.rank as usize].flows[slot.index].list)?;
        let queued = &waiting.queued;
        Some(Head {
            packet: &queued.packet,
            len: queued.packet.len(),
            verdict: &queued.verdict,
            sparse,
            sojourn: now.since(queued.enqueued),
        })
    }

    /// Takes the packet that DRR++ sends next, after CoDel's drops and marks. `None` when empty.
    pub fn pop(&mut self, now: Time) -> Option<Popped> {
        let (slot, sparse) = self.settle_next(now)?;
        self.pop_slot(slot, sparse)
    }

    /// As [`pop`](Self::pop), but passes over the flows whose head `accept` refuses: they keep their
    /// deficit and go behind the others. `None` when all flows are empty or refused. Looks at every
    /// flow at most once.
    pub fn pop_where(&mut self, now: Time, mut accept: impl FnMut(&Head<'_>) -> bool) -> Option<Popped> {
        let first = self.first_rank();
        for rank in [first].into_iter().chain(Rank::ALL.into_iter().filter(|&rank| rank != first)) {
            let tier = &self.tiers[rank as usize];
            for _ in 0..tier.new.len() + tier.old.len() {
                let Some((slot, sparse)) = self.settle(rank, now) else { break };
                if self.head(slot, sparse, now).is_some_and(|head| accept(&head)) {
                    return self.pop_slot(slot, sparse);
                }
                self.defer(slot);
            }
        }
        None
    }

    /// Moves a queue that is first in its tier behind the others.
    fn defer(&mut self, slot: Slot) {
        let tier = &mut self.tiers[slot.rank as usize];
        match tier.flows[slot.index].place {
            Place::New => tier.new.pop_front(),
            Place::Old => tier.old.pop_front(),
            Place::Idle => None,
        };
        tier.flows[slot.index].place = Place::Old;
        tier.old.push_back(slot.index as u32);
    }

    fn pop_slot(&mut self, slot: Slot, sparse: bool) -> Option<Popped> {
        let queued = self.take_head(slot)?;
        let len = queued.packet.len() as i64;
        self.tiers[slot.rank as usize].flows[slot.index].deficit -= len;
        let lead = (EXPRESS_LEAD_QUANTA * self.quantum) as i64;
        let change = if slot.rank == Rank::Express { -len } else { len };
        self.express_credit = (self.express_credit + change).clamp(-lead, lead);
        self.stats.dequeued += 1;
        Some(Popped { queued, sparse })
    }

    /// Changes CoDel's parameters for all queues from now on.
    pub fn set_codel(&mut self, target: Duration, interval: Duration) {
        self.params = Params { target, interval };
    }

    /// Whether background packets that come from now on wait until nothing else does.
    pub fn set_spare(&mut self, spare: bool) {
        self.spare = spare;
    }

    /// Drops all but the newest packet of each queue: what is worth sending first after a time
    /// without any path. Returns the number of packets dropped.
    pub fn keep_newest(&mut self) -> usize {
        let mut dropped = 0;
        for rank in Rank::ALL {
            for index in 0..self.tiers[rank as usize].flows.len() {
                while self.tiers[rank as usize].flows[index].list.packets() > 1 {
                    self.take_head(Slot { rank, index });
                    dropped += 1;
                }
            }
        }
        self.stats.dropped_stale += dropped as u64;
        dropped
    }

    /// Bytes of the packets waiting.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Packets waiting.
    pub fn packets(&self) -> usize {
        self.tiers.iter().map(|tier| tier.packets).sum()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.packets() == 0
    }

    /// The counters.
    pub fn stats(&self) -> FlowQueueStats {
        self.stats
    }

    /// The tier that is served first.
    fn first_rank(&self) -> Rank {
        let waiting = |rank: Rank| self.tiers[rank as usize].packets;
        if waiting(Rank::Express) > 0 && (waiting(Rank::Bulk) == 0 || self.express_credit > 0) {
            Rank::Express
        } else {
            Rank::Bulk
        }
    }

    /// [`settle`](Self::settle) for what is served next. Bulk is settled even when nothing waits there:
    /// so its emptied flows become idle, and new when they come back.
    fn settle_next(&mut self, now: Time) -> Option<(Slot, bool)> {
        self.settle(self.first_rank(), now).or_else(|| self.settle(Rank::Spare, now))
    }

    /// Rotates the lists and lets CoDel act until the right packet is at the head of the right
    /// queue. Doing it again at the same time changes nothing: a queue with a positive deficit and
    /// an approved head stays first.
    fn settle(&mut self, rank: Rank, now: Time) -> Option<(Slot, bool)> {
        loop {
            let tier = &mut self.tiers[rank as usize];
            let (index, is_new) = match (tier.new.front(), tier.old.front()) {
                (Some(&index), _) => (index, true),
                (None, Some(&index)) => (index, false),
                (None, None) => return None,
            };
            let slot = Slot { rank, index: index as usize };
            let flow = &mut tier.flows[slot.index];
            if flow.deficit <= 0 {
                flow.deficit += flow.quantum;
                flow.place = Place::Old;
                if is_new {
                    tier.new.pop_front()
                } else {
                    tier.old.pop_front()
                };
                tier.old.push_back(index);
                continue;
            }
            if self.approve_head(slot, now) {
                return Some((slot, is_new || rank == Rank::Express));
            }
            // Empty. One that was new waits a round on the old list, or a flow could come back as
            // new each time and starve the old ones (RFC 8290, section 4.2).
            let tier = &mut self.tiers[rank as usize];
            let flow = &mut tier.flows[slot.index];
            flow.codel.emptied();
            if is_new {
                tier.new.pop_front();
                flow.place = Place::Old;
                tier.old.push_back(index);
            } else {
                tier.old.pop_front();
                flow.place = Place::Idle;
            }
        }
    }

    /// Lets CoDel drop from a queue until its head may go; false when nothing is left.
    fn approve_head(&mut self, slot: Slot, now: Time) -> bool {
        loop {
            let tier = &mut self.tiers[slot.rank as usize];
            let flow = &mut tier.flows[slot.index];
            let Some(waiting) = self.store.front_mut(&flow.list) else { return false };
            if waiting.marked {
                return true;
            }
            let queued = &mut waiting.queued;
            let behind = flow.list.bytes() - queued.packet.len();
            let sojourn = now.since(queued.enqueued);
            if !flow.codel.judge(self.params, sojourn, behind, self.packet_max, now) {
                return true;
            }
            let mark = self.ecn && packet::set_ce(&mut queued.packet);
            flow.codel.acted(self.params, mark, now);
            if mark {
                waiting.marked = true;
                self.stats.marked += 1;
                return true;
            }
            self.stats.dropped_codel += 1;
            self.take_head(slot);
        }
    }

    /// Removes the head of a queue from store, counts and all but the statistics.
    fn take_head(&mut self, slot: Slot) -> Option<Queued> {
        let tier = &mut self.tiers[slot.rank as usize];
        let waiting = self.store.pop_front(&mut tier.flows[slot.index].list)?;
        tier.packets -= 1;
        self.bytes -= waiting.queued.packet.len();
        Some(waiting.queued)
    }

    /// Drops half of the fattest queue, but at most [`DROP_BATCH`] packets and at least one, from its
    /// head: the sender hears of it soonest. Emptied queues leave their list when their turn comes.
    fn drop_from_fattest(&mut self) -> usize {
        let by_bytes = self.bytes > self.bytes_max;
        let fatness = |flow: &FlowState| if by_bytes { flow.list.bytes() } else { flow.list.packets() };
        // Of equals bulk, then express pays.
        let fattest = [Rank::Spare, Rank::Express, Rank::Bulk].into_iter().flat_map(|rank| {
            let flows = &self.tiers[rank as usize].flows;
            flows.iter().enumerate().map(move |(index, flow)| (fatness(flow), Slot { rank, index }))
        });
        let Some((fat, slot)) = fattest.max_by_key(|(fat, _)| *fat) else { return 0 };
        let (mut dropped, mut bytes) = (0, 0);
        while dropped < DROP_BATCH {
            let Some(queued) = self.take_head(slot) else { break };
            dropped += 1;
            bytes += queued.packet.len();
            if (if by_bytes { bytes } else { dropped }) >= fat / 2 {
                break;
            }
        }
        self.stats.dropped_overflow += dropped as u64;
        dropped
    }
}

#[cfg(test)]
mod tests;
