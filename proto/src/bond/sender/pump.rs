//! Scheduling: which packet, which path, now or later.
//!
//! This is the `adaptive` mode; the others choose otherwise (see `mode`). Order of service: reports, skips, resends,
//! express packets in turns with what FQ-CoDel offers (a packet of its for as many bytes of theirs), then the rest of that. A
//! sparse or express packet and a resend take the path of earliest predicted arrival, even one that is
//! booked a few milliseconds ahead. A bulk packet takes the earliest arrival among the paths that
//! are *open*: wire free within `ahead`, room in flight, not parked, not stuck, admitted. When none
//! is, it stays in the queue: that is the waiting decision. Packets of priority above 200 are never
//! held back for the sake of batching: they take the earliest arrival of all that may be booked.
//! Those below 50 are offered by the queue only when nothing else waits, and take the path of least
//! utilisation.

use std::time::Duration;

use crate::bond::arq::SENDS_MAX;
use crate::bond::sender::Sender;
use crate::bond::sender::mode::RoutingMode;
use crate::bond::sender::path::{Content, OUTER_HEADERS};
use crate::time::Time;
use crate::wire::v2::{Class, DATA_OVERHEAD, Flags, FrameType};
use crate::wire::{PathId, Skip, SkipRun};

/// Skip runs of one datagram.
const SKIP_RUNS_MAX: usize = 64;
/// A skip is told at most this often; then the receiver's deadline has to do.
const SKIP_SENDS_MAX: u8 = 3;
/// What a resend that is lost again costs beyond the path's feedback time, seconds.
const RESEND_AGAIN: f64 = 0.020;
/// Loss that the path which lost a packet is charged with at the least: it may just have become bad.
const RESEND_LOSS_MIN: f64 = 0.2;
/// Sparse flows have their turn after so many bytes of express packets: five acknowledgements, some 4 ms at 1 Mbit/s.
const SPARSE_OWED: i64 = 256;
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
        if backlog {
            self.waited_at = now;
        }
        let adaptive = self.config.mode == RoutingMode::Adaptive;
        for i in 0..self.paths.len() {
            let p = &self.paths[i];
            // What a mode does not use although it could is limited by us, not by the path.
            let left_out = !adaptive && p.is_idle(self.config.ahead, now);
            if !backlog
                || ((p.parked || !p.admitted) && !p.is_on_trial())
                || !p.is_live()
                || p.is_stuck()
                || left_out
            {
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

    fn pump_skips(&mut self, now: Time) {
        while !self.skips.is_empty() {
            let Some(i) = self.best_any(PathId(0), false, now) else { return };
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
        let age_max = self.resend_age_max();
        while let Some(key) = self.store.next() {
            let held = self.store.held(key);
            let old = held.last_path;
            let expired = now - held.first_sent > age_max || held.sends >= SENDS_MAX;
            if expired || !self.config.resend {
                self.store.pop();
                self.give_up(key);
                continue;
            }
            let last = held.sends + 1 == SENDS_MAX;
            let bytes = held.packet.len() + DATA_OVERHEAD + OUTER_HEADERS;
            let kept = self.kept_path(old, now);
            if kept.is_none() && !self.usable().any(|i| !self.paths[i].flight.is_full()) {
                return self.paths.iter().all(|p| !p.is_live());
            }
            let Some(i) = kept.or_else(|| self.resend_path(old, bytes, now)) else { return false };
            if !self.paths[i].is_free(self.config.ahead_sparse, now) {
                self.policy.awaited |= 1 << i;
                return false;
            }
            self.store.pop();
            self.counters.resent += 1;
            // The queue's reference becomes the datagram's.
            self.emit_copy(i, key, now);
            let second = if last && !self.config.mode.keeps_to_path() {
                self.best_any(self.paths[i].id, true, now)
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

    /// The path by which a resend is expected first, counting what another loss would cost: of the paths that are free,
    /// unless the best of all will have sent everything that waits before any of these delivers. The path that lost it
    /// is as good as its loss lets it be, but never the first choice while another is near.
    fn resend_path(&self, old: PathId, bytes: usize, now: Time) -> Option<usize> {
        let candidates = || self.usable().filter(|&i| !self.paths[i].flight.is_full());
        let risk = |i: usize| {
            let p = &self.paths[i];
            let loss = p.load.loss().max(if p.id == old { RESEND_LOSS_MIN } else { 0.0 }).min(0.9);
            loss / (1.0 - loss) * (p.delay.feedback() + RESEND_AGAIN)
        };
        let cost = |i: usize, bytes: usize| self.paths[i].arrival(bytes, now) + risk(i);
        let best = candidates().min_by(|&a, &b| cost(a, bytes).total_cmp(&cost(b, bytes)))?;
        let ahead = self.config.ahead_sparse;
        if self.paths[best].is_free(ahead, now) {
            return Some(best);
        }
        let wait = cost(best, self.store.queued() * bytes);
        candidates()
            .filter(|&i| self.paths[i].is_free(ahead, now) && cost(i, bytes) < wait)
            .min_by(|&a, &b| cost(a, bytes).total_cmp(&cost(b, bytes)))
            .or(Some(best))
    }

    fn pump_express(&mut self, now: Time) -> bool {
        let mut last: Option<usize> = None;
        loop {
            self.serve_owed(now);
            let Some(head) = self.express.front() else { return true };
            let bytes = head.packet.len() + DATA_OVERHEAD + OUTER_HEADERS;
            // When no wire is free any more, what waits goes along with the one before it, at half the price.
            let along = || last.filter(|&i| self.paths[i].takes_along(&head.packet, &head.verdict, now));
            let Some(i) = self.express_path(bytes, now).or_else(along) else { return false };
            last = Some(i);
            let beside = !self.queue.is_empty();
            if let Some(queued) = self.express.pop_front(beside) {
                self.emit_first(i, queued.packet, queued.verdict, now);
            }
        }
    }

    /// Gives the flow queues a packet's turn before the next express packet, when those have had enough: else a flood of
    /// acknowledgements keeps the wire booked so far ahead that nothing else is ever sent. Sparse flows are to wait for
    /// a few acknowledgements at the most.
    fn serve_owed(&mut self, now: Time) {
        let owed = self.express.owed();
        if owed < SPARSE_OWED {
            return;
        }
        let Some(head) = self.queue.peek(now) else { return };
        let bytes = head.len + DATA_OVERHEAD + OUTER_HEADERS;
        let (sparse, priority) = (head.sparse, head.verdict.priority);
        if priority < SPARE_BELOW || (!sparse && owed < head.len as i64) {
            return;
        }
        let ahead = self.config.ahead_sparse;
        let path = self.earliest(bytes, now).filter(|&i| {
            let p = &self.paths[i];
            p.is_free(ahead, now) && (sparse || (p.has_room() && !p.is_stuck() && p.admitted))
        });
        if let Some(i) = path {
            self.send_queued(i, now);
        }
    }

    /// Sends what the flow queues offer; false when they are empty.
    fn send_queued(&mut self, i: usize, now: Time) -> bool {
        let Some(popped) = self.queue.pop(now) else { return false };
        self.express.on_queue_sent(popped.queued.packet.len());
        self.emit_first(i, popped.queued.packet, popped.queued.verdict, now);
        true
    }

    /// The path of earliest arrival while its wire is free; when what waits would keep it busy for
    /// longer than a detour takes, the best of those that are free. So it is when the first has waited for as long: what
    /// does not wait for anybody, as reports do not, may keep a thin wire busy for ever.
    fn express_path(&self, bytes: usize, now: Time) -> Option<usize> {
        let ahead = self.config.ahead_sparse;
        let best = self.earliest(bytes, now)?;
        if self.paths[best].is_free(ahead, now) {
            return Some(best);
        }
        let waiting = self.express.len() * bytes;
        let waited = self.express.front().map_or(0.0, |head| (now - head.enqueued).as_secs_f64());
        let wait = self.paths[best].arrival(waiting, now) + waited;
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
            if !self.send_queued(i, now) {
                return true;
            }
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
    fn best_any(&self, old: PathId, avoid: bool, now: Time) -> Option<usize> {
        let pick = |skip_old: bool| {
            self.usable()
                .filter(|&i| !skip_old || self.paths[i].id != old)
                .filter(|&i| !self.paths[i].flight.is_full())
                .min_by(|&a, &b| {
                    self.paths[a].arrival(1500, now).total_cmp(&self.paths[b].arrival(1500, now))
                })
        };
        if avoid { pick(true).or_else(|| pick(false)) } else { pick(false) }
    }
}
