//! Puts the packets of each lane back in order, without ever making one lane wait for another.
//!
//! A missing sequence gets its own deadline when it is first noticed; it is never restarted. The
//! wait ends when the packet comes, when the sender says that it will not (skip), or at the
//! deadline. What comes later still is handed on out of order rather than dropped.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bond::config::ReceiverConfig;
use crate::bond::sender::{LANE_UNORDERED, LANES};
use crate::bond::snapshot::ReceiverSnapshot;
use crate::buf::PacketBuf;
use crate::packet::is_tcp;
use crate::time::Time;
use crate::wire::v2::DataHeader;
use crate::wire::{PROTECTED_LANES, PathId, Skip, protected_index};

mod lane;
mod pauses;
mod seen;

use lane::{Lane, Placed};
use seen::{Seen, Sight};

/// Missing and held sequences of all lanes together (40 B each).
const SLOTS_MAX: usize = 1 << 17;
/// The time for a second resend ends here beyond spread and round trip, because an inner TCP's retransmission timer is
/// its round trip, which contains both, and at least 200 ms.
const AGAIN_MAX: Duration = Duration::from_millis(180);
/// Margin of every deadline for scheduling jitter.
const HOLD_MARGIN: Duration = Duration::from_millis(5);
/// A path that carries less of all data is idle.
const IDLE_SHARE: f64 = 0.06;
/// If it was heard this recently.
const IDLE_HEARD: Duration = Duration::from_millis(500);
/// And nothing has waited at the sender for as long: tens of milliseconds, as data headers have it. What is not short of
/// window keeps a queue there.
const UNQUEUED_MIN: u8 = 100;
/// What paths carry is forgotten by half in this many seconds.
const CARRIED_HALF: f64 = 0.3;
/// Round trip assumed before one was measured.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);
/// A path not heard for this long no longer counts in the spread.
const STALE_AFTER: Duration = Duration::from_secs(2);
/// The largest delay of a path decays by half in this many seconds.
const DECAY_HALF: f64 = 1.0;

/// What the resequencer knows of a path, for the allowance of gaps.
#[derive(Debug)]
struct PathDelay {
    path: PathId,
    high: f64,
    low: f64,
    rtt: Option<Duration>,
    /// Bytes of data, halved every [`CARRIED_HALF`] seconds.
    carried: f64,
    at: Time,
}

/// The resequencers of all lanes of a session.
pub(crate) struct Reorder {
    config: ReceiverConfig,
    lanes: Vec<Option<Box<Lane>>>,
    /// Lanes that hold something.
    blocked: Vec<u16>,
    /// Of the lane that is not ordered, and of those of protected packets.
    unordered: [Seen; 1 + PROTECTED_LANES],
    incarnation: Option<u8>,
    delays: Vec<PathDelay>,
    hold: Duration,
    /// Whether a path is idle that longer windows would fill.
    idle_path: bool,
    hold_at: Time,
    out: VecDeque<PacketBuf>,
    slots: usize,
    /// Memory is short: nothing is held back that could leave.
    hurry: bool,
    stats: ReceiverSnapshot,
}

impl Reorder {
    pub(crate) fn new(config: ReceiverConfig) -> Self {
        Self {
            hold: allowance(&config, Duration::ZERO, RTT_UNKNOWN),
            config,
            idle_path: false,
            lanes: (0..LANES).map(|_| None).collect(),
            blocked: Vec::new(),
            unordered: Default::default(),
            incarnation: None,
            delays: Vec::new(),
            hold_at: Time::ZERO,
            out: VecDeque::new(),
            slots: 0,
            hurry: false,
            stats: ReceiverSnapshot::default(),
        }
    }

    /// Takes a delay sample of a path, seconds on the session's common scale.
    pub(crate) fn note_delay(&mut self, path: PathId, delay: f64, now: Time) {
        match self.delays.iter_mut().find(|d| d.path == path) {
            Some(d) => {
                // The packets of a batch share their time.
                if now > d.at {
                    let keep = (-(now - d.at).as_secs_f64() / DECAY_HALF).exp2();
                    d.high = delay + (d.high - delay) * keep;
                    d.low = delay + (d.low - delay) * keep;
                    d.carried *= (-(now - d.at).as_secs_f64() / CARRIED_HALF).exp2();
                    d.at = now;
                }
                d.high = d.high.max(delay);
                d.low = d.low.min(delay);
            }
            None => self.delays.push(PathDelay {
                path,
                high: delay,
                low: delay,
                rtt: None,
                carried: 0.0,
                at: now,
            }),
        }
    }

    /// Takes the size of a data frame of a path.
    pub(crate) fn note_data(&mut self, path: PathId, len: usize) {
        if let Some(d) = self.delays.iter_mut().find(|d| d.path == path) {
            d.carried += len as f64;
        }
    }

    /// Takes a round-trip time of a path.
    pub(crate) fn note_rtt(&mut self, path: PathId, rtt: Duration) {
        if let Some(d) = self.delays.iter_mut().find(|d| d.path == path) {
            d.rtt = Some(d.rtt.map_or(rtt, |old| (old * 7 + rtt) / 8));
        }
    }

    pub(crate) fn remove_path(&mut self, path: PathId) {
        self.delays.retain(|d| d.path != path);
    }

    /// How long a gap noticed now may stay open: the spread of the paths, one fast round trip for a
    /// resend, and some slack, because an early give-up costs more than a late one; and the same again for a resend
    /// that is lost, as far as inner TCP's patience goes. What the sender will not send it skips, so this is for skips
    /// that got lost.
    fn hold(&mut self, now: Time) -> Duration {
        if now - self.hold_at < Duration::from_millis(5) {
            return self.hold;
        }
        self.hold_at = now;
        let fresh = || self.delays.iter().filter(|d| now - d.at < STALE_AFTER);
        let high = fresh().map(|d| d.high).fold(f64::NEG_INFINITY, f64::max);
        let low = fresh().map(|d| d.low).fold(f64::INFINITY, f64::min);
        let spread =
            if high >= low { Duration::from_secs_f64((high - low).min(10.0)) } else { Duration::ZERO };
        let rtt = fresh().filter_map(|d| d.rtt).min().unwrap_or(RTT_UNKNOWN);
        self.hold = allowance(&self.config, spread, rtt);
        let all: f64 = fresh().map(|d| d.carried).sum();
        self.idle_path = fresh()
            .any(|d| now - d.at < IDLE_HEARD && d.carried < IDLE_SHARE * all && pauses::reach(d.low - low));
        self.hold
    }

    /// Takes a packet with its header.
    pub(crate) fn handle(&mut self, header: DataHeader, packet: PacketBuf, now: Time) {
        match self.incarnation {
            Some(current) if current == header.incarnation => {}
            Some(current) if (header.incarnation.wrapping_sub(current) as i8) < 0 => {
                // A straggler of a sender that has been replaced: its lanes are gone, it is not.
                self.deliver(packet);
                return;
            }
            _ => {
                self.flush();
                self.incarnation = Some(header.incarnation);
            }
        }
        let unordered =
            if header.lane == LANE_UNORDERED { Some(0) } else { protected_index(header.lane).map(|i| i + 1) };
        if let Some(i) = unordered {
            match self.unordered[i].insert(header.lane_seq) {
                Sight::New => self.deliver(packet),
                Sight::Known => self.stats.duplicates += 1,
                Sight::TooOld => self.stats.too_old += 1,
            }
            return;
        }
        let deadline = now + self.hold(now);
        let id = header.lane % LANES;
        let cost = packet.capacity();
        let lane = self.lanes[usize::from(id)].get_or_insert_with(|| Box::new(Lane::new(header.lane_seq)));
        let before = lane.slots();
        // What else sends bulk may be a call, which pauses would spoil.
        let short = self.idle_path && header.unqueued >= UNQUEUED_MIN;
        if is_tcp(&packet) && lane.pauses.on_packet(packet.len(), short, now) {
            self.stats.pauses += 1;
        }
        let placed = lane.place(header.lane_seq, packet, deadline);
        self.slots = self.slots + lane.slots() - before;
        match placed {
            Placed::Held => {
                self.stats.held_packets += 1;
                self.stats.held_bytes += cost;
                self.stats.held_bytes_max = self.stats.held_bytes_max.max(self.stats.held_bytes);
                self.advance(id, now);
            }
            Placed::Late(packet) => {
                self.stats.late += 1;
                self.deliver(packet);
            }
            Placed::Duplicate => self.stats.duplicates += 1,
            Placed::TooOld => self.stats.too_old += 1,
            Placed::Restarted(held) => {
                for p in held {
                    self.unhold(&p);
                    self.deliver(p);
                }
                self.stats.held_packets += 1;
                self.stats.held_bytes += cost;
                self.advance(id, now);
            }
        }
        self.bound(now);
    }

    /// Takes a skip: the sender will not send those sequences.
    pub(crate) fn handle_skip(&mut self, skip: &Skip, now: Time) {
        if self.incarnation != Some(skip.incarnation) {
            return;
        }
        let deadline = now + self.hold(now);
        for run in &skip.runs {
            let Some(lane) = self.lanes.get_mut(usize::from(run.lane)).and_then(Option::as_mut) else {
                continue;
            };
            let before = lane.slots();
            let skipped = lane.skip(run.lane_seq, run.len, deadline);
            self.slots = self.slots + lane.slots() - before;
            self.stats.skipped += skipped;
            self.advance(run.lane, now);
        }
        self.bound(now);
    }

    /// Ends pauses, and gives up what is overdue.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        let mut i = 0;
        while i < self.blocked.len() {
            let id = self.blocked[i];
            self.advance(id, now);
            if self.blocked.get(i) != Some(&id) {
                continue;
            }
            while self.lane(id).and_then(Lane::head_deadline).is_some_and(|at| at <= now) {
                self.stats.timed_out += 1;
                self.drop_head(id, now);
            }
            // `advance` removes the lane from the list when it is empty.
            if self.blocked.get(i) == Some(&id) {
                i += 1;
            }
        }
    }

    /// The next deadline of any lane's first gap, or the end of its pause.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let due = |lane: &Lane| lane.head_deadline().unwrap_or_else(|| lane.pauses.open_at());
        self.blocked.iter().filter_map(|&id| self.lane(id).map(due)).min()
    }

    pub(crate) fn poll(&mut self) -> Option<PacketBuf> {
        self.out.pop_front()
    }

    pub(crate) fn snapshot(&self) -> ReceiverSnapshot {
        ReceiverSnapshot { hold_ms: self.hold.as_secs_f64() * 1e3, ..self.stats.clone() }
    }

    /// Packets handed on so far.
    pub(crate) fn delivered(&self) -> u64 {
        self.stats.delivered
    }

    fn lane(&self, id: u16) -> Option<&Lane> {
        self.lanes.get(usize::from(id)).and_then(|l| l.as_deref())
    }

    fn deliver(&mut self, packet: PacketBuf) {
        self.stats.delivered += 1;
        self.stats.delivered_bytes += packet.len() as u64;
        self.out.push_back(packet);
    }

    fn unhold(&mut self, packet: &PacketBuf) {
        self.stats.held_packets -= 1;
        self.stats.held_bytes -= packet.capacity();
    }

    /// Hands on what is in order, and keeps the list of blocked lanes true.
    fn advance(&mut self, id: u16, now: Time) {
        let Some(lane) = self.lanes[usize::from(id)].as_mut() else { return };
        let before = lane.slots();
        let open = self.hurry || lane.pauses.open_at() <= now;
        while open && let Some(packet) = lane.pop_ready() {
            self.stats.held_packets -= 1;
            self.stats.held_bytes -= packet.capacity();
            self.stats.delivered += 1;
            self.stats.delivered_bytes += packet.len() as u64;
            self.out.push_back(packet);
        }
        self.slots -= before - lane.slots();
        let listed = self.blocked.iter().position(|&b| b == id);
        match (lane.slots() > 0, listed) {
            (true, None) => self.blocked.push(id),
            (false, Some(i)) => {
                self.blocked.swap_remove(i);
            }
            _ => {}
        }
    }

    fn drop_head(&mut self, id: u16, now: Time) {
        if let Some(lane) = self.lanes[usize::from(id)].as_mut() {
            let before = lane.slots();
            lane.drop_head_gap();
            self.slots -= before - lane.slots();
        }
        self.advance(id, now);
    }

    /// Memory is short: the gap that has waited longest is given up.
    fn bound(&mut self, now: Time) {
        while self.stats.held_bytes > self.config.reorder_bytes_max || self.slots > SLOTS_MAX {
            if !self.hurry {
                self.hurry = true;
                self.blocked.clone().into_iter().for_each(|id| self.advance(id, now));
                continue;
            }
            let oldest = self
                .blocked
                .iter()
                .filter_map(|&id| self.lane(id).and_then(Lane::head_deadline).map(|at| (at, id)))
                .min();
            let Some((_, id)) = oldest else { break };
            self.stats.evicted += 1;
            self.drop_head(id, now);
        }
        self.hurry = false;
    }

    /// A new sender has taken over: hand on all that is held and start every lane afresh.
    fn flush(&mut self) {
        for id in std::mem::take(&mut self.blocked) {
            if let Some(lane) = self.lanes[usize::from(id)].take() {
                for packet in lane.into_held() {
                    self.unhold(&packet);
                    self.deliver(packet);
                }
            }
        }
        self.lanes.iter_mut().for_each(|l| *l = None);
        self.slots = 0;
        self.unordered.iter_mut().for_each(Seen::clear);
    }
}

fn allowance(config: &ReceiverConfig, spread: Duration, rtt: Duration) -> Duration {
    let once = spread + rtt + config.reorder_slack + HOLD_MARGIN;
    once.max((2 * once).min(spread + rtt + AGAIN_MAX)).min(config.reorder_timeout)
}

#[cfg(test)]
mod tests;
