//! Scheduling: which packet, which path, now or later.
//!
//! This is the `adaptive` mode; the others choose otherwise (see `mode`). Order of service: reports, skips, resends, express packets, then what FQ-CoDel offers. A sparse
//! or express packet and a resend take the path of earliest predicted arrival, even one that is
//! booked a few milliseconds ahead. A bulk packet takes the earliest arrival among the paths that
//! are *open*: wire free within `ahead`, room in flight, not parked, not stuck, admitted. When none
//! is, it stays in the queue: that is the waiting decision. Packets of priority above 200 are never
//! held back for the sake of batching: they take the earliest arrival of all that may be booked.
//! Those below 50 are offered by the queue only when nothing else waits, and take the path of least
//! utilisation.

use std::time::Duration;

use crate::bond::arq::{Key, NewHeld, SENDS_MAX};
use crate::bond::classify::Verdict;
use crate::bond::sender::mode::{RoutingMode, members};
use crate::bond::sender::path::{Content, OUTER_HEADERS};
use crate::bond::sender::repair::Care;
use crate::bond::sender::{LANE_UNORDERED, LANES, Sender};
use crate::buf::PacketBuf;
use crate::time::Time;
use crate::wire::v2::{Class, DATA_LEN, DATA_OVERHEAD, DataHeader, Flags, FrameType};
use crate::wire::{Heartbeat, PathId, Skip, SkipRun};

/// Skip runs of one datagram.
const SKIP_RUNS_MAX: usize = 64;
/// A skip is told at most this often; then the receiver's deadline has to do.
const SKIP_SENDS_MAX: u8 = 3;
/// Above this priority the least delay counts, below the other only spare capacity is used.
const URGENT_ABOVE: u8 = 200;
const SPARE_BELOW: u8 = 50;

impl Sender {
    pub(super) fn pump(&mut self, now: Time) {
        self.wake_at = None;
        self.policy.awaited = 0;
        self.pump_reports(now);
        self.pump_skips(now);
        // Each goes as far as it can: what waits for one path must not keep the others idle. Nothing
        // is overtaken on the path it waits for, because bulk may book less far ahead.
        let resends = self.pump_resends(now);
        let parity = self.pump_parity(now);
        let express = self.pump_express(now);
        if !express {
            self.policy.awaited = u64::MAX;
        }
        let blocked = !self.pump_queue(now) || !express || !resends || !parity;
        if blocked {
            self.wake_at = self.next_opening(now);
        }
        let backlog = blocked && !self.queue.is_empty();
        let adaptive = self.config.mode == RoutingMode::Adaptive;
        for i in 0..self.paths.len() {
            let p = &self.paths[i];
            // What a mode does not use although it could is limited by us, not by the path.
            let left_out = !adaptive && p.is_idle(self.config.ahead, now);
            if !backlog || p.parked || !p.admitted || !p.is_live() || p.is_stuck() || left_out {
                self.paths[i].dry = true;
            }
        }
    }

    /// When pacing lets the first live path send again. Paths that wait for a report need no timer.
    /// A mode that waits for certain paths is not woken for others.
    fn next_opening(&self, now: Time) -> Option<Time> {
        let soonest = now + Duration::from_micros(50);
        let any = self.config.mode == RoutingMode::Adaptive;
        self.paths
            .iter()
            .enumerate()
            .filter(|(i, p)| p.is_live() && p.has_room() && (any || self.policy.awaited >> i & 1 == 1))
            .map(|(_, p)| p.opens_at(self.config.ahead).max(soonest))
            .min()
    }

    fn pump_reports(&mut self, now: Time) {
        while let Some(body) = self.reports.pop_front() {
            for i in self.two_best().into_iter().flatten() {
                let stamp = now.stamp().raw().to_be_bytes();
                self.paths[i].emit(
                    FrameType::Ack,
                    Flags(0),
                    Class::BestEffort,
                    Content::Other,
                    now,
                    |slab| {
                        slab.extend_from_slice(&stamp[1..]);
                        slab.extend_from_slice(&body[3..]);
                    },
                );
            }
        }
    }

    /// The two live paths of least delay; suspected ones when there is no other.
    fn two_best(&self) -> [Option<usize>; 2] {
        let cost = |i: usize| {
            let p = &self.paths[i];
            let rank = if p.is_live() { 0.0 } else { 1e6 };
            let unmeasured = if p.delay.is_measured() { 0.0 } else { 1e3 };
            rank + unmeasured + p.delay.smoothed() + p.delay.deviation()
        };
        let mut order: Vec<usize> = (0..self.paths.len()).collect();
        order.sort_by(|&a, &b| cost(a).total_cmp(&cost(b)));
        [order.first().copied(), order.get(1).copied()]
    }

    fn pump_skips(&mut self, now: Time) {
        while !self.skips.is_empty() {
            let Some(i) = self.best_any(PathId(0), false, 0, now) else { return };
            let n = self.skips.len().min(SKIP_RUNS_MAX);
            let sends = self.skips.iter().take(n).map(|s| s.1).max().unwrap_or(0);
            let runs: Vec<SkipRun> = self.skips.drain(..n).map(|s| s.0).collect();
            let skip = Skip { sent: now.stamp(), incarnation: self.incarnation, runs };
            let mut body = Vec::new();
            skip.encode_into(&mut body);
            let content = if sends + 1 < SKIP_SENDS_MAX {
                Content::Skip(skip.runs.into_boxed_slice(), sends + 1)
            } else {
                Content::Other
            };
            self.paths[i].emit(FrameType::Skip, Flags(0), Class::BestEffort, content, now, |slab| {
                slab.extend_from_slice(&body);
            });
        }
    }

    /// Whether all due resends were sent.
    fn pump_resends(&mut self, now: Time) -> bool {
        while let Some(key) = self.store.next() {
            let held = self.store.held(key);
            let old = held.last_path;
            let expired = now - held.first_sent > self.config.resend_age_max || held.sends >= SENDS_MAX;
            if expired || !self.config.resend {
                self.store.pop();
                self.give_up(key);
                continue;
            }
            let last = held.sends + 1 == SENDS_MAX;
            let len = held.packet.len();
            let path = self.kept_path(old, len, now).or_else(|| self.best_any(old, true, len, now));
            let Some(i) = path else {
                if (0..self.paths.len()).any(|i| self.paths[i].is_live() && self.fits(i, len)) {
                    return false;
                }
                if self.paths.iter().any(|p| p.is_live()) {
                    // No path that is left can carry it.
                    self.store.pop();
                    self.give_up(key);
                    continue;
                }
                return true;
            };
            if !self.paths[i].is_free(self.config.ahead_sparse, now) {
                self.policy.awaited |= 1 << i;
                return false;
            }
            self.store.pop();
            self.counters.resent += 1;
            // The queue's reference becomes the datagram's.
            self.emit_copy(i, key, now);
            let second = if last && !self.config.mode.keeps_to_path() {
                self.best_any(self.paths[i].id, true, len, now)
            } else {
                None
            };
            // A long queue of last resends must not all go into one batch.
            if let Some(j) = second.filter(|&j| j != i && self.paths[j].fits_batch()) {
                self.store.retain(key);
                self.emit_copy(j, key, now);
            }
        }
        true
    }

    fn pump_express(&mut self, now: Time) -> bool {
        while let Some(head) = self.express.front() {
            let bytes = head.packet.len() + DATA_OVERHEAD + OUTER_HEADERS;
            let Some(i) = self.express_path(bytes, now) else { return false };
            if let Some(queued) = self.express.pop_front() {
                self.emit_first(i, queued.packet, queued.verdict, now);
            }
        }
        true
    }

    /// The path of earliest arrival while its wire is free; when what waits would keep it busy for
    /// longer than a detour takes, the best of those that are free.
    fn express_path(&self, bytes: usize, now: Time) -> Option<usize> {
        let ahead = self.config.ahead_sparse;
        let best = self.earliest(bytes, now)?;
        if self.paths[best].is_free(ahead, now) {
            return Some(best);
        }
        let waiting = self.express.len() * bytes;
        let wait = self.paths[best].arrival(waiting, now);
        self.usable()
            .filter(|&i| !self.paths[i].flight.is_full() && self.paths[i].is_free(ahead, now))
            .map(|i| (i, self.paths[i].arrival(bytes, now)))
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .filter(|&(_, arrival)| arrival < wait)
            .map(|(i, _)| i)
    }

    fn pump_queue(&mut self, now: Time) -> bool {
        match self.config.mode {
            RoutingMode::Adaptive => self.pump_adaptive(now),
            RoutingMode::PerFlow => self.pump_pinned(now),
            _ => self.pump_mode(now),
        }
    }

    /// By a mode for which all flows are alike.
    fn pump_mode(&mut self, now: Time) -> bool {
        loop {
            let Some(head) = self.queue.peek(now) else { return true };
            let flow = head.verdict.flow;
            let Some(i) = self.mode_path(flow, now) else { return false };
            let Some(popped) = self.queue.pop(now) else { return true };
            self.emit_first(i, popped.queued.packet, popped.queued.verdict, now);
        }
    }

    /// Each flow on its own path: flows whose path is busy do not hold up the others.
    fn pump_pinned(&mut self, now: Time) -> bool {
        loop {
            let usable = self.usable_set();
            let mut chosen = None;
            let Self { queue, policy, paths, config, .. } = self;
            let popped = queue.pop_where(now, |head| {
                let pinned = policy.pinned(head.verdict.flow, paths, usable, config.seed[0], now);
                chosen = pinned.and_then(|i| policy.if_open(i, &mut paths[i], config.ahead, now));
                chosen.is_some()
            });
            let (Some(popped), Some(i)) = (popped, chosen) else { return self.queue.is_empty() };
            self.emit_first(i, popped.queued.packet, popped.queued.verdict, now);
        }
    }

    fn pump_adaptive(&mut self, now: Time) -> bool {
        loop {
            let Some(head) = self.queue.peek(now) else { return true };
            let bytes = head.len + DATA_OVERHEAD + OUTER_HEADERS;
            let sparse = head.sparse;
            let priority = head.verdict.priority;
            let mut choice = None;
            if priority < SPARE_BELOW {
                let usable = self.usable_set();
                let Some(i) = self.least_used(usable, now) else { return false };
                choice = Some(i);
            } else if priority > URGENT_ABOVE {
                choice = self.soonest(bytes, now);
            } else if sparse {
                choice = self
                    .earliest(bytes, now)
                    .filter(|&i| self.paths[i].is_free(self.config.ahead_sparse, now));
            }
            let Some(i) = choice.or_else(|| self.open_path(bytes, now)) else { return false };
            let Some(popped) = self.queue.pop(now) else { return true };
            self.emit_first(i, popped.queued.packet, popped.queued.verdict, now);
        }
    }

    /// Earliest arrival among the paths that may be booked for what cannot wait.
    fn soonest(&self, bytes: usize, now: Time) -> Option<usize> {
        let ahead = self.config.ahead_sparse;
        self.usable()
            .filter(|&i| !self.paths[i].flight.is_full() && self.paths[i].is_free(ahead, now))
            .min_by(|&a, &b| self.paths[a].arrival(bytes, now).total_cmp(&self.paths[b].arrival(bytes, now)))
    }

    /// [`usable`](Self::usable) as a set of indexes.
    pub(super) fn usable_set(&self) -> u64 {
        self.usable().filter(|&i| i < 64).fold(0, |set, i| set | 1 << i)
    }

    /// Paths fit for data: live, and measured if any live one is.
    pub(super) fn usable(&self) -> impl Iterator<Item = usize> {
        let measured = self.paths.iter().any(|p| p.is_live() && p.delay.is_measured() && !p.parked);
        let unparked = self.paths.iter().any(|p| p.is_live() && !p.parked);
        (0..self.paths.len()).filter(move |&i| {
            let p = &self.paths[i];
            p.is_live() && (p.delay.is_measured() || !measured) && (!p.parked || !unparked)
        })
    }

    /// Path of earliest predicted arrival, whether its wire is free or not.
    fn earliest(&self, bytes: usize, now: Time) -> Option<usize> {
        self.usable()
            .filter(|&i| !self.paths[i].flight.is_full())
            .min_by(|&a, &b| self.paths[a].arrival(bytes, now).total_cmp(&self.paths[b].arrival(bytes, now)))
    }

    /// Path of earliest predicted arrival among those that are open for bulk.
    fn open_path(&mut self, bytes: usize, now: Time) -> Option<usize> {
        let usable = self.usable_set();
        let alone = usable.count_ones() == 1;
        let mut best: Option<(f64, usize)> = None;
        for i in 0..self.paths.len().min(64) {
            if usable & 1 << i == 0 {
                continue;
            }
            let p = &mut self.paths[i];
            if !p.is_open(self.config.ahead, now) || !p.has_room() {
                continue;
            }
            if !alone && (p.is_stuck() || !p.admitted) {
                continue;
            }
            let arrival = p.arrival(bytes, now);
            if best.is_none_or(|(a, _)| arrival < a) {
                best = Some((arrival, i));
            }
        }
        best.map(|b| b.1)
    }

    /// Earliest arrival among all live paths, another than `old` if there is one.
    fn best_any(&self, old: PathId, avoid: bool, len: usize, now: Time) -> Option<usize> {
        let pick = |skip_old: bool| {
            self.usable()
                .filter(|&i| !skip_old || self.paths[i].id != old)
                .filter(|&i| !self.paths[i].flight.is_full() && self.fits(i, len))
                .min_by(|&a, &b| {
                    self.paths[a].arrival(1500, now).total_cmp(&self.paths[b].arrival(1500, now))
                })
        };
        if avoid { pick(true).or_else(|| pick(false)) } else { pick(false) }
    }

    fn emit_first(&mut self, i: usize, packet: PacketBuf, verdict: Verdict, now: Time) {
        let roomy = || self.best_any(PathId(0), false, packet.len(), now);
        let Some(i) = Some(i).filter(|&i| self.fits(i, packet.len())).or_else(roomy) else {
            self.counters.dropped_invalid += 1;
            return;
        };
        let care = self.care(i, &verdict, packet.len());
        let (i, copies) = match care {
            Care::Copies(mode) => self.copies(i, mode, packet.len(), now),
            Care::Resend | Care::Parity => (i, 0),
        };
        if care == Care::Parity {
            let (lane, lane_seq, block) = self.protect(i, verdict.class, &packet, now);
            let path = self.paths[i].id;
            let (class, block) = (verdict.class, Some(block));
            let new = NewHeld { packet, lane, lane_seq, ordered: false, class, path, block };
            let key = self.store.hold(new, now);
            self.counters.packets_sent += 1;
            self.emit_data(i, key, Flags::FEC, now);
            self.close_full(class, now);
            return;
        }
        let lane = if verdict.ordered { (verdict.flow.0 % u64::from(LANES)) as u16 } else { LANE_UNORDERED };
        let counter = match self.lane_seqs.get_mut(usize::from(lane)) {
            Some(c) => c,
            None => &mut self.unordered_seq,
        };
        let lane_seq = *counter;
        *counter = (lane_seq + 1) & 0xff_ffff;
        let (path, class, ordered) = (self.paths[i].id, verdict.class, verdict.ordered);
        let new = NewHeld { packet, lane, lane_seq, ordered, class, path, block: None };
        let key = self.store.hold(new, now);
        self.counters.packets_sent += 1;
        self.emit_data(i, key, Flags(0), now);
        self.emit_duplicates(copies, key, now);
        for j in members(std::mem::take(&mut self.policy.copies)) {
            if self.fits(j, self.store.held(key).packet.len()) {
                self.store.retain(key);
                self.counters.broadcast += 1;
                self.emit_data(j, key, Flags::DUPLICATE, now);
            }
        }
    }

    /// Sends a held packet once more; the caller has accounted for its reference.
    pub(super) fn emit_copy(&mut self, i: usize, key: Key, now: Time) {
        let path = self.paths[i].id;
        let held = self.store.held_mut(key);
        held.sends = held.sends.saturating_add(1);
        held.last_path = path;
        self.emit_data(i, key, Flags::DUPLICATE, now);
    }

    /// Whether an inner packet of `len` bytes fits into a datagram of path `i`.
    pub(super) fn fits(&self, i: usize, len: usize) -> bool {
        len + DATA_OVERHEAD <= self.paths[i].setup.datagram_max
    }

    pub(super) fn emit_data(&mut self, i: usize, key: Key, flags: Flags, now: Time) {
        let held = self.store.held(key);
        let header = DataHeader {
            sent: now.stamp(),
            lane: held.lane,
            lane_seq: held.lane_seq,
            incarnation: self.incarnation,
            prev_path: 0,
        };
        let mut head = [0; DATA_LEN];
        header.encode(&mut head);
        self.paths[i].emit(FrameType::Data, flags, held.class, Content::Data(key), now, |slab| {
            slab.extend_from_slice(&head);
            slab.extend_from_slice(&held.packet);
        });
    }

    pub(super) fn emit_heartbeat(&mut self, i: usize, heartbeat: &Heartbeat, now: Time) {
        let mut body = Vec::with_capacity(16);
        heartbeat.encode_into(&mut body);
        self.paths[i].emit(FrameType::Heartbeat, Flags(0), Class::BestEffort, Content::Other, now, |slab| {
            slab.extend_from_slice(&body);
        });
    }
}
