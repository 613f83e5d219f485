//! The sending half of a session: inner packets in, datagrams for paths out.
//!
//! ```text
//!  enqueue ─► classify ─► FQ-CoDel ─┐
//!  handle_report ─► resends, skips ─┼─► schedule (late binding) ─► one TxBatch per path ─► poll_transmit
//!  send_report, heartbeats ─────────┘            ▲ pacing, in-flight room, path states
//! ```
//! Inner packets wait in one place only, the FQ-CoDel ingress; a packet is bound to a path when
//! that path's wire is free, at most a few milliseconds ahead. Which path: see `pump`. What is
//! learned from reports: see `feedback`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bond::arq::ResendStore;
use crate::bond::batch::TxBatch;
use crate::bond::classify::Classifier;
use crate::bond::config::SenderConfig;
use crate::bond::flow_queue::{FlowQueue, FlowQueueConfig, Queued};
use crate::bond::receiver::SentMark;
use crate::bond::snapshot::{PathSnapshot, PathState, SenderSnapshot};
use crate::buf::{BufPool, PacketBuf};
use crate::path::delay::Unwrap;
use crate::path::flight::Resolution;
use crate::time::{Stamp, Time};
use crate::wire::v2::DATA_OVERHEAD;
use crate::wire::{Heartbeat, HeartbeatKind, PathId, SkipRun};

mod bundle;
mod emit;
mod express;
mod feedback;
mod gain;
mod guard;
mod mode;
mod path;
mod patience;
mod pump;
mod random_loss;
mod repair;
mod reports;
mod train;
mod unfilled;

use express::Express;
use gain::Gain;
use guard::Guard;
use mode::Policy;
pub use mode::{RoutingMode, UnknownMode};
pub use path::PathSetup;
use path::{Content, PathSender};
use patience::Removed;
use repair::Repair;
use reports::Reports;
use unfilled::Unfilled;

/// Lane of everything that is not put in order.
pub const LANE_UNORDERED: u16 = u16::MAX;
/// Ordered lanes: flows are hashed onto them.
pub const LANES: u16 = 1024;

/// Skip runs waiting to be told; more are left to the receiver's deadlines.
const SKIPS_MAX: usize = 1024;
/// The session counts as active this long after traffic.
const ACTIVE_FOR: Duration = Duration::from_secs(1);
/// So long without any path the queue is old: of each flow the newest packet is kept.
const STALE_AFTER: Duration = Duration::from_millis(500);
/// Housekeeping interval while active.
const HOUSEKEEPING: Duration = Duration::from_millis(5);
/// Pings that ask for an answer, per path, while active.
const PING_EVERY: Duration = Duration::from_millis(200);

/// Facts the shell may want to act upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SenderEvent {
    /// A path changed its state.
    PathState {
        /// The path.
        path: PathId,
        /// Its new state.
        state: PathState,
    },
    /// How far a flow has come; for [`Receiver::handle_mark`](crate::bond::Receiver::handle_mark) of this side.
    Mark(SentMark),
}

/// Counters that the snapshot shows.
#[derive(Debug, Default)]
struct Counters {
    packets_in: u64,
    packets_sent: u64,
    resent: u64,
    copied: u64,
    broadcast: u64,
    fragments: u64,
    bundled: u64,
    given_up: u64,
    dropped_invalid: u64,
    reports: u64,
}

/// The sending machine. See the module's documentation.
pub struct Sender {
    config: SenderConfig,
    incarnation: u8,
    classifier: Classifier,
    queue: FlowQueue,
    /// When something was last left waiting in the queue.
    waited_at: Time,
    /// When a path was last seen that carries data.
    live_at: Time,
    /// The path that was taken away last, or one that carried more shortly before.
    removed: Option<Removed>,
    policy: Policy,
    repair: Repair,
    gain: Gain,
    guard: Guard,
    unfilled: Unfilled,
    express: Express,
    store: ResendStore,
    skips: VecDeque<(SkipRun, u8)>,
    reports: Reports,
    pool: BufPool,
    paths: Vec<PathSender>,
    lane_seqs: Vec<u32>,
    unordered_seq: u32,
    /// One-way delays of all paths on one scale.
    owd: Unwrap,
    receiver_clock: Unwrap,
    last_report: Option<(u32, Time)>,
    last_traffic: Time,
    housekeeping_at: Time,
    wake_at: Option<Time>,
    events: VecDeque<SenderEvent>,
    resolution: Resolution<Content>,
    counters: Counters,
}

impl Sender {
    /// A sender without paths. `incarnation` differs from the one of the sender it replaces, so
    /// that the peer's lanes start afresh; `pool` lends buffers for report bodies.
    pub fn new(config: SenderConfig, incarnation: u8, pool: BufPool, now: Time) -> Self {
        let mut queue = FlowQueue::new(FlowQueueConfig {
            queues: config.flow_queues,
            quantum: 1514,
            bytes_max: config.queue_bytes_max,
            target: config.codel_target,
            interval: config.codel_interval,
            ecn: config.ecn,
        });
        queue.set_spare(config.mode == RoutingMode::Adaptive);
        Self {
            policy: Policy::new(),
            repair: Repair::new(),
            gain: Gain::default(),
            guard: Guard::default(),
            unfilled: Unfilled::default(),
            classifier: Classifier::new(config.seed),
            queue,
            express: Express::default(),
            store: ResendStore::default(),
            skips: VecDeque::new(),
            reports: Reports::default(),
            pool,
            paths: Vec::new(),
            lane_seqs: vec![0; usize::from(LANES)],
            unordered_seq: 0,
            owd: Unwrap::default(),
            receiver_clock: Unwrap::default(),
            last_report: None,
            last_traffic: now,
            housekeeping_at: now,
            wake_at: None,
            events: VecDeque::new(),
            resolution: Resolution::default(),
            counters: Counters::default(),
            config,
            incarnation,
            waited_at: now,
            live_at: now,
            removed: None,
        }
    }

    /// Adds a path, or makes it anew under new keys: what was in flight on it is sent again.
    pub fn add_path(&mut self, path: PathId, setup: PathSetup, now: Time) {
        self.remove_path(path, now);
        let fresh = PathSender::new(path, setup, now);
        self.paths.push(fresh);
        self.paths.sort_by_key(|p| p.id);
        self.housekeeping_at = now;
    }

    /// Removes a path; what was in flight on it is sent again on the others.
    pub fn remove_path(&mut self, path: PathId, now: Time) {
        let Some(i) = self.paths.iter().position(|p| p.id == path) else { return };
        let mut out = std::mem::take(&mut self.resolution);
        out.clear();
        self.paths[i].flight.abandon(&mut out);
        self.note_removed(i, now);
        self.paths.remove(i);
        self.requeue_lost(&mut out.lost, now);
        self.resolution = out;
    }

    /// Changes the ceiling of a path's rate, bit/s on the wire; `None` lifts it. What [`PathSetup::rate_max`]
    /// said is forgotten.
    pub fn set_rate_max(&mut self, path: PathId, rate_max: Option<u64>, now: Time) {
        let Some(p) = self.paths.iter_mut().find(|p| p.id == path) else { return };
        p.setup.rate_max = rate_max;
        p.rate.set_cap(rate_max.map(|rate| rate as f64));
        p.update_limits(now);
    }

    /// Takes an inner packet. It waits in the flow queues until a path is free; what exceeds their
    /// bound is dropped from the fattest flow, what is not IP is refused and counted.
    pub fn enqueue(&mut self, packet: PacketBuf, now: Time) {
        self.counters.packets_in += 1;
        let Ok(verdict) = self.classifier.classify(&packet) else {
            self.counters.dropped_invalid += 1;
            return;
        };
        self.last_traffic = now;
        let queued = Queued { packet, verdict, enqueued: now };
        let adaptive = self.config.mode == RoutingMode::Adaptive;
        let express = adaptive && queued.verdict.express;
        let rest = if express { self.express.push(queued) } else { Some(queued) };
        if let Some(queued) = rest {
            self.queue.push(queued);
        }
    }

    /// Takes an encoded report of our receiver, to be sent on the two best paths. The first three
    /// bytes, the send stamp, are rewritten at sending.
    pub fn send_report(&mut self, body: &[u8], _now: Time) {
        if let Some(body) = self.pool.copy_from(body) {
            self.reports.push(body);
        }
    }

    /// Takes a heartbeat that arrived on `path`: answers a ping there, learns the round-trip time
    /// from a pong.
    pub fn handle_heartbeat(&mut self, path: PathId, heartbeat: &Heartbeat, now: Time) {
        let Some(p) = self.paths.iter_mut().position(|p| p.id == path) else { return };
        match heartbeat.kind {
            HeartbeatKind::Ping => {
                let pong = Heartbeat {
                    sent: now.stamp(),
                    kind: HeartbeatKind::Pong,
                    id: heartbeat.id,
                    echo: heartbeat.sent,
                };
                self.emit_heartbeat(p, &pong, now);
            }
            HeartbeatKind::Pong => {
                let units = now.stamp().signed_since(heartbeat.echo).max(0) as u64;
                self.paths[p].rtt = Some(Duration::from_nanos(units * crate::time::STAMP_UNIT_NANOS));
            }
            HeartbeatKind::Tail | HeartbeatKind::Probe => {}
        }
    }

    /// Asks for a ping on `path` as soon as possible.
    pub fn ping(&mut self, path: PathId, now: Time) {
        if let Some(i) = self.paths.iter().position(|p| p.id == path) {
            self.send_ping(i, HeartbeatKind::Ping, now);
        }
    }

    /// Does what is due: heartbeats, tail probes, silence of the whole session.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.repair.poll_timeout().is_some_and(|at| at <= now) {
            self.age_blocks(now);
        }
        if now < self.housekeeping_at {
            return;
        }
        let active = self.is_active(now);
        let beat = if active { self.config.heartbeat_active } else { self.config.heartbeat_idle };
        for i in 0..self.paths.len() {
            self.paths[i].update_limits(now);
            let p = &mut self.paths[i];
            if p.is_live()
                && p.fits_batch()
                && let Some(size) = p.mtu.poll_probe(now)
            {
                self.emit_probe(i, size, now);
            }
            self.pump_train(i, now);
            let p = &self.paths[i];
            let since = now - p.last_sent;
            let ping_every = if active { PING_EVERY } else { Duration::from_secs(1) };
            // A path that has been away for long is asked less often.
            let beat = if p.state == PathState::Down { self.config.heartbeat_idle } else { beat };
            let beat = beat.max(p.least_beat());
            if since >= beat || p.last_sent == Time::ZERO {
                let kind = if now - p.ping_at >= ping_every || p.rtt.is_none() {
                    HeartbeatKind::Ping
                } else {
                    HeartbeatKind::Tail
                };
                self.send_ping(i, kind, now);
            } else if active && since >= Duration::from_millis(6) && !p.tail_probed && p.flight.bytes() > 0 {
                // Without traffic nothing is in flight but reports and heartbeats, and the next one follows.
                self.send_ping(i, HeartbeatKind::Tail, now);
                self.paths[i].tail_probed = true;
            } else if now - p.ping_at >= ping_every {
                self.send_ping(i, HeartbeatKind::Ping, now);
            }
        }
        self.age_blocks(now);
        self.check_mute(now);
        self.age_states(now);
        if self.paths.iter().any(PathSender::is_live) {
            self.live_at = now;
        } else if now - self.live_at > STALE_AFTER {
            // Whoever sent it has sent it again by then, or will: what stands before that is in its way.
            self.queue.keep_newest();
        }
        self.weigh_conduct(now);
        self.weigh_filling(now);
        self.update_parking();
        self.housekeeping_at = now + if active { HOUSEKEEPING } else { self.config.heartbeat_idle / 4 };
    }

    /// Fills one batch for one path; false when there is nothing to send now. `batch` must be
    /// empty; its memory is kept in circulation.
    pub fn poll_transmit(&mut self, batch: &mut TxBatch, now: Time) -> bool {
        debug_assert!(batch.is_empty(), "the shell hands in empty batches");
        for round in 0..2 {
            if let Some(p) = self.paths.iter_mut().find(|p| !p.batch.is_empty()) {
                p.batch.path = p.id;
                std::mem::swap(&mut p.batch, batch);
                return true;
            }
            if round == 0 {
                self.pump(now);
            }
        }
        false
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) and
    /// [`poll_transmit`](Self::poll_transmit) again.
    pub fn poll_timeout(&self) -> Option<Time> {
        let housekeeping = (!self.paths.is_empty() || self.wake_at.is_some()).then_some(self.housekeeping_at);
        [self.wake_at, housekeeping, self.reports.wake_at, self.repair.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next fact for the shell.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    fn is_active(&self, now: Time) -> bool {
        now - self.last_traffic < ACTIVE_FOR
    }

    fn send_ping(&mut self, i: usize, kind: HeartbeatKind, now: Time) {
        let p = &mut self.paths[i];
        if kind == HeartbeatKind::Ping {
            p.ping_id = p.ping_id.wrapping_add(1);
            p.ping_at = now;
        }
        let beat = Heartbeat { sent: now.stamp(), kind, id: p.ping_id, echo: Stamp::new(0) };
        self.emit_heartbeat(i, &beat, now);
    }

    /// A copy of the machine's state for people.
    pub fn snapshot(&self, now: Time) -> SenderSnapshot {
        let least = self
            .paths
            .iter()
            .filter(|p| p.delay.is_measured())
            .map(|p| p.delay.base())
            .fold(f64::INFINITY, f64::min);
        let stats = self.queue.stats();
        SenderSnapshot {
            at: now.as_secs_f64(),
            mode: self.config.mode,
            paths: self.paths.iter().map(|p| path_snapshot(p, least, now)).collect(),
            bond_gain_ratio: self.gain.ratio(),
            queue_bytes: self.queue.bytes(),
            queue_packets: self.queue.packets() + self.express.len(),
            resend_queued: self.store.queued(),
            held_packets: self.store.packets(),
            packets_in: self.counters.packets_in,
            packets_sent: self.counters.packets_sent,
            resent: self.counters.resent,
            copied: self.counters.copied,
            broadcast: self.counters.broadcast,
            fragments: self.counters.fragments,
            bundled: self.counters.bundled,
            packet_max: self.packet_max(),
            protected: self.repair.counters.protected,
            parity_sent: self.repair.counters.parity_sent,
            redundancy: self.repair.redundancy(now),
            rebuilt: self.repair.counters.rebuilt,
            duplicated: self.repair.counters.duplicated,
            packets_arrived: self.store.arrived(),
            given_up: self.counters.given_up,
            dropped_codel: stats.dropped_codel,
            marked: stats.marked,
            dropped_overflow: stats.dropped_overflow + self.express.dropped(),
            dropped_stale: stats.dropped_stale,
            dropped_invalid: self.counters.dropped_invalid,
            reports: self.counters.reports,
        }
    }

    /// Largest inner packet that crosses every live path in one datagram, bytes; 0 without a path. Paths that
    /// are still being searched count with what is hoped of them.
    pub fn packet_max(&self) -> usize {
        let live = self.paths.iter().filter(|p| p.is_live() && !p.parked);
        let size = |p: &PathSender| if p.mtu.is_settled() { p.mtu.current() } else { p.mtu.ceiling() };
        live.map(|p| size(p).saturating_sub(DATA_OVERHEAD)).min().unwrap_or(0)
    }

    /// Bytes of packets held for a possible resend; with the flow queues' bound, the memory of
    /// this machine.
    pub fn held_bytes(&self) -> usize {
        self.store.bytes()
    }
}

fn path_snapshot(p: &PathSender, least: f64, now: Time) -> PathSnapshot {
    let sample = p.last_sample();
    let ms = |secs: f64| secs * 1e3;
    PathSnapshot {
        path: p.id.0,
        state: p.state,
        parked: p.parked,
        rate_mbit: p.rate.rate() / 1e6,
        delivery_mbit: sample.map_or(0.0, |s| s.rate / 1e6),
        capacity_mbit: p.rate.capacity() / 1e6,
        app_limited: sample.is_some_and(|s| s.app_limited),
        startup: p.is_startup(),
        contest: p.rate.is_contest(),
        queue_ms: ms(p.delay.queue()),
        target_ms: ms(p.rate.target(&p.delay, p.packet_bits(), now)),
        delay_ms: if p.delay.is_measured() { ms(p.delay.smoothed() - least) } else { 0.0 },
        deviation_ms: ms(p.delay.deviation()),
        feedback_ms: ms(p.delay.feedback()),
        rtt_ms: p.rtt.map_or(0.0, |r| ms(r.as_secs_f64())),
        in_flight: p.flight.bytes(),
        in_flight_max: p.rate.in_flight_max(&p.delay, p.packet_bits(), now) as u64,
        sent_bytes: p.flight.cumulative(),
        report_bytes: p.report_bytes,
        heartbeat_bytes: p.heartbeat_bytes,
        lost: p.lost,
        acked: p.acked,
        spurious: p.spurious,
        suspicions: p.suspicions,
        guarded: p.conduct.count,
        weight: p.setup.weight,
        datagram_max: p.mtu.current(),
        black_holes: p.black_holes,
        utilisation: p.utilisation(now),
        loss: p.load.loss(),
        random_loss: p.random.loss(),
        parity: p.parity,
        duplicates: p.duplicates,
        score: p.score(now),
    }
}
