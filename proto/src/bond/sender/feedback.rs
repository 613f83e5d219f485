//! What the sender learns from reports: arrivals, losses, silence.
//!
//! A report speaks of all paths and may come over any of them, so the silence of a cut path is
//! noticed without waiting for that path's own round trip:
//!
//! ```text
//!            copies of late packets          all in flight sent again elsewhere
//!  Up ── late > 25 ms, nothing queued ──► Up ── late > 50 ms x patience ──► Suspect ── 1 s ──► Down
//!   ▲                                                                          │                │
//!   └──────────── two arrivals of packets sent since, or three reports ◄───────┴────────────────┘
//! ```

use std::time::Duration;

use crate::bond::arq::Key;
use crate::bond::sender::mode::RoutingMode;
use crate::bond::sender::path::{Content, OUTER_HEADERS, PathSender};
use crate::bond::sender::{SKIPS_MAX, Sender, SenderEvent};
use crate::bond::snapshot::PathState;
use crate::path::delay::STAMP_UNIT_SECS;
use crate::path::flight::Resolution;
use crate::time::Time;
use crate::wire::v2::{CLEAR_LEN, DATA_OVERHEAD, TAG_LEN};
use crate::wire::{Bundle, Bundled, PathId, Report, SkipRun};

/// Lateness after which packets are copied to another path while nothing waits, seconds.
const COPY_AFTER: f64 = 0.025;
/// Packets copied per suspicion-to-be.
const COPY_MAX: usize = 40;
/// A suspected path that stays silent this long is down.
const DOWN_AFTER: Duration = Duration::from_secs(1);
/// How much longer than others a path may be silent of whose delay one packet alone has told: what it varies by is not
/// known, and its bound here (200 ms) is longer than a stall.
const STARTING_PATIENCE: f64 = 4.0;
/// Without any report for this long beyond twice the feedback time, no path can be trusted.
const MUTE_AFTER: Duration = Duration::from_millis(300);
/// A far path that was parked is used once it brings so many times what the near ones bring together: a flow over both
/// has the far one's round trip, and needs a window for that.
const WORTH_TAKING: f64 = 1.2;
/// It is parked again below this.
const WORTH_KEEPING: f64 = 0.8;
/// A path that has carried copies of so much of what the near ones can is not known by its guesses only.
const CARRIES_ALL: f64 = 0.7;
/// Whatever the paths, nothing older than this is sent again, seconds.
const RESEND_AGE_LIMIT: f64 = 3.0;
/// A path that is up for so long was not set up together with one that comes now.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
/// The admission of a path waits no longer than this for the trial of its rate,
const TRIAL_FOR: Duration = Duration::from_secs(2);
/// which is over when less than this is left of the queue that ended it, seconds.
const TRIAL_QUEUE: f64 = 0.008;
/// A path without suspicion for this long earns back some strictness.
const STRICTER_EVERY: Duration = Duration::from_secs(10);

impl Sender {
    /// Takes a report of the peer's receiver. Old and repeated ones are ignored.
    pub fn handle_report(&mut self, report: &Report, now: Time) {
        if let Some((number, _)) = self.last_report {
            // Each report travels twice; a restarted receiver starts far away from the last number.
            let ahead = report.number.wrapping_sub(number) as i32;
            if (-1000..=0).contains(&ahead) {
                return;
            }
        }
        self.last_report = Some((report.number, now));
        self.counters.reports += 1;
        let clock = self.receiver_clock.secs(report.time);
        let mut out = std::mem::take(&mut self.resolution);
        let running = self.is_running(now);
        for heard in &report.paths {
            let Some(i) = self.paths.iter().position(|p| p.id == heard.path) else { continue };
            out.clear();
            let p = &mut self.paths[i];
            if !p.flight.resolve(heard, now, &mut out) {
                continue;
            }
            let by_chance = p.on_sizes(&mut out, now);
            p.lost += out.lost_packets;
            p.acked += out.acked_packets;
            p.spurious += out.spurious;
            let runs = out.lost_runs.min(by_chance);
            p.rate.on_fate(out.acked_packets, out.acked_bytes, by_chance, runs);
            p.load.on_report(out.acked_packets, by_chance);
            if let Some(milestone) = out.highest {
                let arrival = clock - f64::from(heard.highest_age) * STAMP_UNIT_SECS;
                self.owd.units(heard.owd_min);
                let sample = p.on_progress(heard, milestone, arrival, &self.owd, now);
                if let Some(sample) = sample.filter(|s| !s.app_limited) {
                    self.gain.on_rate(heard.path, sample.rate, now);
                }
                let new = p.state == PathState::Starting;
                if p.state != PathState::Up && p.on_proof(out.acked_packets, now) {
                    p.admitted &= !(new && running);
                    self.events.push_back(SenderEvent::PathState { path: p.id, state: PathState::Up });
                }
            }
            p.note_random_loss(out.acked_packets, by_chance, out.spurious, now);
            p.update_limits(now);
            self.settle(&mut out, now);
        }
        self.resolution = out;
        self.check_silence(report, now);
        self.admit(now);
        self.adapt_codel(now);
    }

    /// Whether flows may have settled on the paths that there are, so that another one has to be admitted to them.
    fn is_running(&self, now: Time) -> bool {
        let settled =
            |p: &PathSender| p.state == PathState::Up && p.admitted && now - p.since > SETTLED_AFTER;
        self.is_active(now) && self.paths.iter().any(settled)
    }

    /// Lets go of what arrived and queues what was lost.
    fn settle(&mut self, out: &mut Resolution<Content>, now: Time) {
        for content in out.acked.drain(..) {
            match content {
                Content::Data(key) => self.packet_arrived(key, DATA_OVERHEAD + OUTER_HEADERS, true, now),
                Content::Copy(key) => self.packet_arrived(key, DATA_OVERHEAD + OUTER_HEADERS, false, now),
                Content::Bundle(keys) => {
                    let shared = CLEAR_LEN + Bundle::LEN + TAG_LEN + OUTER_HEADERS;
                    let overhead = Bundled::LEN + shared / keys.len().max(1);
                    for key in keys {
                        self.packet_arrived(key, overhead, true, now);
                    }
                }
                Content::Part(key, part, cut) => {
                    let before = self.store.held(key).delivered;
                    self.store.part_arrived(key, part, cut);
                    let held = self.store.held(key);
                    let block = held.block.filter(|_| held.delivered && !before);
                    if held.delivered && !before {
                        self.gain.on_arrival(held.packet.len() + DATA_OVERHEAD + OUTER_HEADERS, now);
                    }
                    self.store.release(key);
                    if let Some(block) = block {
                        self.shard_arrived(block, now);
                    }
                }
                Content::Parity(block) => self.shard_arrived(block, now),
                Content::Probe(_) | Content::Skip(..) | Content::Other => {}
            }
        }
        self.requeue_lost(&mut out.lost, now);
    }

    /// A datagram arrived that carried this packet and `overhead` bytes for it. `judged`: whether it was one of the
    /// packet's own sendings, which say something about its path.
    fn packet_arrived(&mut self, key: Key, overhead: usize, judged: bool, now: Time) {
        let held = self.store.held_mut(key);
        let block = held.block.filter(|_| !held.delivered);
        let first = !std::mem::replace(&mut held.delivered, true);
        if first {
            self.gain.on_arrival(held.packet.len() + overhead, now);
        }
        if judged {
            self.judge_arrival(key, first);
        }
        self.store.release(key);
        if let Some(block) = block {
            self.shard_arrived(block, now);
        }
    }

    pub(super) fn requeue_lost(&mut self, lost: &mut Vec<Content>, now: Time) {
        for content in lost.drain(..) {
            match content {
                // Another datagram that carries it decides.
                Content::Copy(key) if self.store.is_shared(key) => self.store.release(key),
                // Its other fragments are no other copies.
                Content::Part(key, ..) => self.resend_lost(key, now),
                Content::Data(key) | Content::Copy(key) => self.packet_lost_with(key, now),
                Content::Bundle(keys) => keys.into_iter().for_each(|key| self.packet_lost_with(key, now)),
                Content::Skip(runs, sends) => {
                    for run in runs {
                        self.push_skip(run, sends);
                    }
                }
                Content::Parity(block) => self.parity_lost(block, now),
                Content::Probe(_) | Content::Other => {}
            }
        }
    }

    /// A datagram was lost that carried this packet.
    fn packet_lost_with(&mut self, key: Key, now: Time) {
        let held = self.store.held(key);
        // Of a broadcast packet another copy is on its way as long as one is.
        let copied = self.config.mode == RoutingMode::Broadcast || held.duplicated;
        if held.delivered || (copied && self.store.is_shared(key)) {
            self.store.release(key);
        } else if !held.block.is_some_and(|block| self.packet_lost(key, block, now)) {
            self.resend_lost(key, now);
        }
    }

    /// A packet older than this is not sent again: as configured, but time for a second resend on a long path.
    pub(super) fn resend_age_max(&self) -> Duration {
        let live = self.paths.iter().filter(|p| p.is_live() && p.delay.is_measured());
        let slowest = live.map(|p| p.delay.feedback()).fold(0.0, f64::max);
        self.config.resend_age_max.max(Duration::from_secs_f64((4.0 * slowest).min(RESEND_AGE_LIMIT)))
    }

    /// Queues a lost packet for another sending, if it is worth one.
    pub(super) fn resend_lost(&mut self, key: Key, now: Time) {
        let held = self.store.held(key);
        if held.delivered {
            self.store.release(key);
        } else if now - held.first_sent > self.resend_age_max() || !self.config.resend {
            self.give_up(key);
        } else {
            self.store.queue(key);
        }
    }

    /// The packet will not be sent again: tell the receiver not to wait for it. As long as another
    /// copy is on its way, that one decides.
    pub(super) fn give_up(&mut self, key: Key) {
        if self.store.is_shared(key) {
            self.store.release(key);
            return;
        }
        let held = self.store.held(key);
        self.counters.given_up += 1;
        let run = SkipRun { lane: held.lane, lane_seq: held.lane_seq, len: 1 };
        let ordered = held.ordered;
        self.store.release(key);
        if ordered {
            self.push_skip(run, 0);
        }
    }

    fn push_skip(&mut self, run: SkipRun, sends: u8) {
        if let Some((last, n)) = self.skips.back_mut() {
            let next = (last.lane_seq + u32::from(last.len)) & 0xff_ffff;
            let joins = last.lane == run.lane && next == run.lane_seq && *n == sends;
            if let Some(len) = last.len.checked_add(run.len).filter(|_| joins) {
                last.len = len;
                return;
            }
        }
        if self.skips.len() < SKIPS_MAX {
            self.skips.push_back((run, sends));
        }
    }

    fn check_silence(&mut self, report: &Report, now: Time) {
        self.watch_lateness(now);
        let live = self.paths.iter().filter(|p| p.state == PathState::Up).count();
        let mode = self.config.mode;
        let copies = !mode.keeps_to_path() && mode != RoutingMode::Broadcast;
        for i in 0..self.paths.len() {
            let p = &mut self.paths[i];
            // One that has been heard of once is used for data, though it has not proved itself.
            let patience = match p.state {
                PathState::Up => p.patience,
                PathState::Starting if p.delay.is_measured() => STARTING_PATIENCE,
                PathState::Starting | PathState::Suspect | PathState::Down => continue,
            };
            p.update_lateness(report.time);
            let deviation = p.delay.deviation();
            let suspect_after = self.config.silence.as_secs_f64() * patience + 4.0 * deviation;
            if p.lateness > suspect_after {
                self.suspect(i, now);
            } else if p.state != PathState::Up {
                continue;
            } else if p.lateness > COPY_AFTER + 2.0 * deviation && live > 1 && copies && self.queue.is_empty()
            {
                self.copy_late(i, now);
            } else if now - p.since > STRICTER_EVERY && p.patience > 1.0 {
                p.patience = (p.patience * 0.9).max(1.0);
                p.since = now;
            }
        }
    }

    /// The path is silent: everything in flight on it is sent again elsewhere.
    fn suspect(&mut self, i: usize, now: Time) {
        let mut out = std::mem::take(&mut self.resolution);
        out.clear();
        let p = &mut self.paths[i];
        p.flight.abandon(&mut out);
        p.suspect(now);
        self.events.push_back(SenderEvent::PathState { path: p.id, state: PathState::Suspect });
        self.requeue_lost(&mut out.lost, now);
        self.resolution = out;
    }

    /// Sends copies of what is late on path `i` by the best other path, once per packet.
    fn copy_late(&mut self, i: usize, now: Time) {
        let p = &self.paths[i];
        let from = p.id;
        let mut keys: Vec<Key> = Vec::new();
        for content in p.flight.unseen(COPY_MAX) {
            match content {
                Content::Data(key) | Content::Part(key, ..) => keys.push(*key),
                Content::Bundle(several) => keys.extend(several),
                Content::Copy(_)
                | Content::Probe(_)
                | Content::Skip(..)
                | Content::Parity(_)
                | Content::Other => {}
            }
        }
        for key in keys {
            let held = self.store.held(key);
            if held.delivered || held.sends > 1 || held.last_path != from {
                continue;
            }
            let Some(j) = self.copy_target(i) else { return };
            self.store.retain(key);
            self.counters.copied += 1;
            self.emit_copy(j, key, now);
        }
    }

    fn copy_target(&self, not: usize) -> Option<usize> {
        (0..self.paths.len())
            .filter(|&j| {
                let p = &self.paths[j];
                j != not && p.state == PathState::Up && !p.flight.is_full() && p.fits_batch()
            })
            .min_by(|&a, &b| {
                let cost = |j: usize| {
                    let p = &self.paths[j];
                    p.free_at.as_secs_f64() + p.delay.smoothed() + p.delay.deviation()
                };
                cost(a).total_cmp(&cost(b))
            })
    }

    /// No report at all for long while something is in flight: the feedback itself is cut.
    /// Without traffic reports come with the heartbeats only, and one may get lost.
    pub(super) fn check_mute(&mut self, now: Time) {
        let pace = if self.is_active(now) { Duration::ZERO } else { 2 * self.config.heartbeat_idle };
        for i in 0..self.paths.len() {
            let p = &self.paths[i];
            if p.state != PathState::Up {
                continue;
            }
            let heard = self.last_report.map_or(p.since, |r| r.1.max(p.since));
            let patience = MUTE_AFTER + pace + Duration::from_secs_f64(2.0 * p.delay.feedback());
            let waiting = p.flight.oldest_unseen().is_some_and(|sent| now - sent > patience);
            if waiting && now - heard > patience {
                self.suspect(i, now);
            }
        }
    }

    pub(super) fn age_states(&mut self, now: Time) {
        for p in &mut self.paths {
            if p.state == PathState::Suspect && now - p.since > DOWN_AFTER {
                // `since` stays: being away is counted from the suspicion.
                p.state = PathState::Down;
                self.events.push_back(SenderEvent::PathState { path: p.id, state: PathState::Down });
            }
        }
    }

    /// Parks paths that are too far behind the fastest, with some hysteresis, unless they carry so much that their delay
    /// is a fair price for bulk. What a parked path can do is learned with copies.
    pub(super) fn update_parking(&mut self) {
        let least = self
            .paths
            .iter()
            .filter(|p| p.is_live() && p.delay.is_measured())
            .map(|p| p.delay.base())
            .fold(f64::INFINITY, f64::min);
        if !least.is_finite() {
            return;
        }
        let limit = self.config.spread_max.as_secs_f64();
        let is_far = |p: &PathSender| {
            let behind = p.delay.base() - least;
            p.delay.is_measured() && behind > if p.parked { 0.8 * limit } else { limit }
        };
        // A rate that dips for a moment is no reason to go far.
        let near: f64 =
            self.paths.iter().filter(|p| p.is_live() && !is_far(p)).map(PathSender::carries).sum();
        for p in &mut self.paths {
            if !p.delay.is_measured() {
                continue;
            }
            // A rate that was not used is no more than a guess.
            let known = !p.is_startup() || p.rate.is_hinted() || p.rate.capacity() > CARRIES_ALL * near;
            let worth = if p.parked { WORTH_TAKING } else { WORTH_KEEPING };
            p.parked = p.conduct.is_parked() || (is_far(p) && !(known && p.rate.rate() > worth * near));
        }
    }

    /// A path that comes to a running flow joins when the backlog justifies its delay, and when its rate was tried with
    /// copies: feeling it out with the flow itself would make a queue that the flow has to bear. A flow over all paths has the
    /// round trip of the farthest of them: its packets by the others wait for those. So the queue must take the paths in
    /// use longer than the new one is behind the farthest of these, else the window would carry less than it does without.
    /// Until then CoDel must let the queue grow that far.
    /// The other modes take every path that they are given.
    fn admit(&mut self, now: Time) {
        if self.config.mode != RoutingMode::Adaptive {
            self.paths.iter_mut().for_each(|p| p.admitted |= p.state == PathState::Up);
            return;
        }
        for i in 0..self.paths.len() {
            let p = &self.paths[i];
            if p.admitted || p.state != PathState::Up {
                continue;
            }
            // With the queue that it has or will have.
            let target = p.rate.target(&p.delay, p.packet_bits(), now);
            let delay = p.delay.smoothed().max(p.delay.base() + target);
            let (rate, farthest) = self
                .paths
                .iter()
                .filter(|q| q.admitted && q.state == PathState::Up && !q.parked && q.delay.smoothed() < delay)
                .fold((0.0, f64::NEG_INFINITY), |(r, f), q| {
                    (r + q.rate.rate(), f64::max(f, q.delay.smoothed()))
                });
            let behind = if farthest.is_finite() { delay - farthest } else { 0.0 };
            self.paths[i].behind = behind;
            let p = &self.paths[i];
            let drain = if rate > 0.0 { (self.queue.bytes() * 8) as f64 / rate } else { f64::INFINITY };
            let tried = !p.is_on_trial() && p.delay.instant() < TRIAL_QUEUE;
            let trying = !tried && now - p.since < TRIAL_FOR;
            // What carries so much more than they do is better off alone than they are.
            let fat = p.rate.is_hinted() && p.rate.rate() > WORTH_TAKING * rate;
            if fat || drain >= behind && (behind <= 0.0 || !trying) {
                self.paths[i].admitted = true;
            }
        }
    }

    /// State of a path; `None` when it was never added or has been removed.
    pub fn path_state(&self, path: PathId) -> Option<PathState> {
        self.paths.iter().find(|p| p.id == path).map(|p| p.state)
    }
}
