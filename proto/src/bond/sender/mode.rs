//! Routing modes: which of the usable paths takes a packet.
//!
//! A mode only chooses. Pacing, in-flight room, path states, parking and resends are the same for
//! all: a path whose wire is booked is waited for (a few milliseconds at most), a path that cannot
//! take more (no room in flight, or what was sent hangs) is passed over where the mode has a choice.
//!
//! | mode | a packet takes |
//! |---|---|
//! | `adaptive` | the earliest predicted arrival among the open paths, see `pump` |
//! | `round_robin` | the next path in turn, packet by packet |
//! | `weighted` | the path that is furthest below its share; the shares are as the scores |
//! | `least_used` | of the open paths the one of least utilisation |
//! | `least_latency` | the path of least delay |
//! | `per_flow` | the path that its flow was given, until that path dies |
//! | `active_backup` | the one best path: greatest weight, then least delay; another when it dies |
//! | `broadcast` | every path |
//!
//! `score = weight x (100 / latency in ms) x (1 - loss) x (1 - utilisation)`. Waiting for a certain
//! path has its price: round robin and broadcast are as fast as the slowest path allows.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bond::classify::FlowHash;
use crate::bond::sender::path::PathSender;
use crate::bond::sender::{LANES, Sender};
use crate::bond::snapshot::PathState;
use crate::time::Time;
use crate::wire::PathId;

/// Time constant of the load, seconds: long beside a batch, short beside a human.
const LOAD_SECS: f64 = 0.5;
/// A report of this many packets replaces the measured loss.
const LOSS_PACKETS: f64 = 512.0;
/// Least `1 - utilisation` of a score, so that a full path keeps a share.
const HEADROOM_MIN: f64 = 0.05;
/// Least latency of a score, ms: differences below are noise.
const LATENCY_MIN_MS: f64 = 1.0;
/// A path takes over from another of its kind when its delay is less by this, seconds: more than
/// the queue that traffic makes on the path that has it.
const LATENCY_BETTER: f64 = 0.010;
/// A better path that died gets the traffic of `active_backup` back after this long without trouble.
const RETURN_AFTER: Duration = Duration::from_secs(5);
/// A flow that was silent this long may be given another path.
const PIN_IDLE: Duration = Duration::from_secs(60);

/// How packets are spread over the paths of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingMode {
    /// Packet by packet over all paths in turn.
    RoundRobin,
    /// In proportion to weight x (100 / latency) x (1 - loss) x (1 - utilisation).
    Weighted,
    /// To the least utilised path.
    LeastUsed,
    /// To the path of least latency.
    LeastLatency,
    /// A flow stays on its path until that dies.
    PerFlow,
    /// Earliest predicted arrival; high priority least delay, low priority spare capacity.
    #[default]
    Adaptive,
    /// The best path only; others when it dies.
    ActiveBackup,
    /// A copy on every path.
    Broadcast,
}

impl RoutingMode {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::RoundRobin,
        Self::Weighted,
        Self::LeastUsed,
        Self::LeastLatency,
        Self::PerFlow,
        Self::Adaptive,
        Self::ActiveBackup,
        Self::Broadcast,
    ];

    /// Its name in configurations and snapshots.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Weighted => "weighted",
            Self::LeastUsed => "least_used",
            Self::LeastLatency => "least_latency",
            Self::PerFlow => "per_flow",
            Self::Adaptive => "adaptive",
            Self::ActiveBackup => "active_backup",
            Self::Broadcast => "broadcast",
        }
    }

    /// Whether lost packets go again on the mode's own path, and nothing is copied to others early.
    pub(super) const fn keeps_to_path(self) -> bool {
        matches!(self, Self::LeastLatency | Self::PerFlow | Self::ActiveBackup)
    }
}

impl fmt::Display for RoutingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is no mode's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a routing mode; they are adaptive, round_robin, weighted, least_used, least_latency, per_flow, \
     active_backup and broadcast"
)]
pub struct UnknownMode;

impl FromStr for RoutingMode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or(UnknownMode)
    }
}

/// What a path carries and loses, smoothed.
#[derive(Debug, Default)]
pub(crate) struct Load {
    bits_per_sec: f64,
    at: Time,
    loss: f64,
}

impl Load {
    pub(crate) fn add(&mut self, bytes: usize, now: Time) {
        self.bits_per_sec = self.rate(now) + (bytes * 8) as f64 / LOAD_SECS;
        self.at = now;
    }

    pub(crate) fn on_report(&mut self, acked: u64, lost: u64) {
        let packets = (acked + lost) as f64;
        if packets > 0.0 {
            self.loss += (lost as f64 / packets - self.loss) * (packets / LOSS_PACKETS).min(1.0);
        }
    }

    /// What the path was given lately, bit/s on the wire.
    pub(crate) fn rate(&self, now: Time) -> f64 {
        // The packets of a batch share their time.
        if now == self.at {
            return self.bits_per_sec;
        }
        self.bits_per_sec * (-(now - self.at).as_secs_f64() / LOAD_SECS).exp()
    }

    /// Share of packets lost lately.
    pub(crate) fn loss(&self) -> f64 {
        self.loss
    }
}

impl PathSender {
    /// Share of the path's rate that is in use, 0 to 1.
    pub(crate) fn utilisation(&self, now: Time) -> f64 {
        (self.load.rate(now) / self.rate.rate()).min(1.0)
    }

    /// Share that the weighted mode gives the path, relative to the others'.
    pub(crate) fn score(&self, now: Time) -> f64 {
        let latency_ms = self.rtt.map_or(self.delay.feedback(), |rtt| rtt.as_secs_f64()) * 1e3;
        let free = (1.0 - self.utilisation(now)).max(HEADROOM_MIN);
        f64::from(self.setup.weight.max(1))
            * (100.0 / latency_ms.max(LATENCY_MIN_MS))
            * (1.0 - self.load.loss())
            * free
    }
}

/// The path of a slot of flows.
#[derive(Debug, Clone, Copy)]
struct Pin {
    path: PathId,
    used: Time,
}

/// What the modes remember between packets. Changing the mode needs no more than a new one.
#[derive(Debug)]
pub(super) struct Policy {
    /// Round robin: the turn that is being served; see [`PathSender::turn`].
    turn: u64,
    /// The path in use of the modes that use one.
    current: Option<PathId>,
    /// Per flow, by hash: flows that share a slot share a path, as they share a lane.
    pins: Vec<Option<Pin>>,
    /// Paths (by index) that some packet waits for.
    pub(super) awaited: u64,
    /// Paths (by index) that must take a copy of the packet just placed.
    pub(super) copies: u64,
}

impl Policy {
    pub(super) fn new() -> Self {
        Self { turn: 0, current: None, pins: vec![None; usize::from(LANES)], awaited: 0, copies: 0 }
    }

    /// `i` if it can take a packet now; otherwise the packet waits for it. A path without room waits
    /// for a report, not for a moment.
    pub(super) fn if_open(
        &mut self,
        i: usize,
        path: &mut PathSender,
        ahead: Duration,
        now: Time,
    ) -> Option<usize> {
        if !path.has_room() {
            return None;
        }
        if path.is_open(ahead, now) {
            return Some(i);
        }
        self.awaited |= 1 << i;
        None
    }

    /// The path of the flow's slot. A slot without one gets it by weighted rendezvous hashing, so
    /// that flows are spread as weight and rate are. The rate of a path that was never full is not known: it starts low,
    /// and only what carries flows grows, so that such a path would never get one. It counts as the mean of the others.
    pub(super) fn pinned(
        &mut self,
        flow: FlowHash,
        paths: &[PathSender],
        usable: u64,
        seed: u64,
        now: Time,
    ) -> Option<usize> {
        let slot = flow.0 % u64::from(LANES);
        let pin = self.pins[slot as usize].filter(|pin| now - pin.used < PIN_IDLE);
        let held = pin.and_then(|pin| paths.iter().position(|p| p.id == pin.path));
        // That others have been measured sooner is no reason to leave a path that comes up.
        let held = held.filter(|&i| usable >> i & 1 == 1 || paths[i].state == PathState::Starting);
        let is_known = |i: usize| !paths[i].is_startup() || paths[i].rate.is_hinted();
        let known = || members(usable).filter(|&i| is_known(i));
        let mean = match known().count() {
            0 => 1.0,
            n => known().map(|i| paths[i].rate.rate()).sum::<f64>() / n as f64,
        };
        let cost = |i: usize| {
            let p = &paths[i];
            let rate = if is_known(i) { p.rate.rate() } else { mean };
            -uniform(seed ^ slot, p.id).ln() / (f64::from(p.setup.weight.max(1)) * rate)
        };
        let i = held.or_else(|| members(usable).min_by(|&a, &b| cost(a).total_cmp(&cost(b))))?;
        self.pins[slot as usize] = Some(Pin { path: paths[i].id, used: now });
        Some(i)
    }
}

/// Indexes of a set.
pub(super) fn members(set: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |i| set & 1 << i != 0)
}

impl Sender {
    /// Changes the mode: packets from now on are placed by it, what is in flight stays.
    pub fn set_mode(&mut self, mode: RoutingMode) {
        if self.config.mode != mode {
            self.config.mode = mode;
            self.policy = Policy::new();
            self.queue.set_spare(mode == RoutingMode::Adaptive);
        }
    }

    /// The path for a packet of `flow` by a mode other than `adaptive`, if it may go now. If not,
    /// `awaited` tells for which paths it waits.
    pub(super) fn mode_path(&mut self, flow: FlowHash, now: Time) -> Option<usize> {
        self.policy.copies = 0;
        let usable = self.usable_set();
        match self.config.mode {
            RoutingMode::RoundRobin => self.next_turn(usable, now),
            RoutingMode::Weighted => {
                let behind = |p: &PathSender| p.load.rate(now) / p.score(now);
                let i = self.least(self.able(usable), behind)?;
                self.if_open(i, now)
            }
            RoutingMode::LeastUsed | RoutingMode::Adaptive => self.least_used(usable, now),
            RoutingMode::LeastLatency => {
                let i = self.quickest(usable)?;
                self.if_open(i, now)
            }
            RoutingMode::PerFlow => {
                let seed = self.config.seed[0];
                let i = self.policy.pinned(flow, &self.paths, usable, seed, now)?;
                self.if_open(i, now)
            }
            RoutingMode::ActiveBackup => {
                let i = self.active(usable, now)?;
                self.if_open(i, now)
            }
            RoutingMode::Broadcast => self.everywhere(usable, now),
        }
    }

    /// Those of `usable` that can take more; all of them when none can.
    fn able(&self, usable: u64) -> u64 {
        let pick = |stuck_too: bool| {
            members(usable)
                .filter(|&i| self.paths[i].has_room() && (stuck_too || !self.paths[i].is_stuck()))
                .fold(0, |set, i| set | 1 << i)
        };
        match pick(false) {
            0 => pick(true),
            able => able,
        }
    }

    fn open_of(&mut self, set: u64, now: Time) -> u64 {
        let ahead = self.config.ahead;
        members(set).filter(|&i| self.paths[i].is_open(ahead, now)).fold(0, |open, i| open | 1 << i)
    }

    fn if_open(&mut self, i: usize, now: Time) -> Option<usize> {
        self.policy.if_open(i, &mut self.paths[i], self.config.ahead, now)
    }

    fn least(&self, set: u64, measure: impl Fn(&PathSender) -> f64) -> Option<usize> {
        members(set).min_by(|&a, &b| measure(&self.paths[a]).total_cmp(&measure(&self.paths[b])))
    }

    /// The path of least utilisation among the open ones.
    pub(super) fn least_used(&mut self, usable: u64, now: Time) -> Option<usize> {
        let able = self.able(usable);
        let open = self.open_of(able, now);
        self.policy.awaited |= able & !open;
        self.least(open, |p| p.load.rate(now) / p.rate.rate())
    }

    /// Stride scheduling with equal strides: the path of least turn is next. One that was away or
    /// passed over does not catch up.
    fn next_turn(&mut self, usable: u64, now: Time) -> Option<usize> {
        let served = self.policy.turn;
        let i = members(self.able(usable)).min_by_key(|&i| self.paths[i].turn.max(served))?;
        let i = self.if_open(i, now)?;
        let turn = self.paths[i].turn.max(served);
        self.policy.turn = turn;
        self.paths[i].turn = turn + 1;
        Some(i)
    }

    /// The path in use unless another is clearly nearer.
    fn quickest(&mut self, usable: u64) -> Option<usize> {
        let delay = |p: &PathSender| p.delay.smoothed() + p.delay.deviation();
        let best = self.least(usable, delay)?;
        let current = members(usable).find(|&i| Some(self.paths[i].id) == self.policy.current);
        let stays = |&i: &usize| delay(&self.paths[i]) < delay(&self.paths[best]) + LATENCY_BETTER;
        let chosen = current.filter(stays).unwrap_or(best);
        self.policy.current = Some(self.paths[chosen].id);
        Some(chosen)
    }

    /// The path in use while it lives; one of greater weight gets its place when it is new, or has
    /// been back for long enough.
    fn active(&mut self, usable: u64, now: Time) -> Option<usize> {
        let weight = |i: usize| self.paths[i].setup.weight;
        let heaviest = members(usable).map(weight).max()?;
        let heavy = members(usable).filter(|&i| weight(i) == heaviest).fold(0, |set, i| set | 1 << i);
        let best = self.least(heavy, |p| p.delay.smoothed() + p.delay.deviation())?;
        let current = members(usable).find(|&i| Some(self.paths[i].id) == self.policy.current);
        let proven = self.paths[best].suspicions == 0 || now - self.paths[best].since > RETURN_AFTER;
        let chosen = current.filter(|&i| weight(i) == heaviest || !proven).unwrap_or(best);
        self.policy.current = Some(self.paths[chosen].id);
        Some(chosen)
    }

    /// Waits until every path that is able is open, then takes the first to arrive and marks the
    /// others for copies.
    fn everywhere(&mut self, usable: u64, now: Time) -> Option<usize> {
        let able = self.able(usable);
        let closed = able & !self.open_of(able, now);
        if closed != 0 {
            self.policy.awaited |= closed;
            return None;
        }
        let first = self.least(able, |p| p.arrival(1500, now))?;
        self.policy.copies = able & !(1 << first);
        Some(first)
    }

    /// Where a lost packet goes again in the modes that keep to a path; `None` leaves it to the
    /// earliest arrival.
    pub(super) fn kept_path(&mut self, last: PathId, now: Time) -> Option<usize> {
        let usable = self.usable_set();
        let i = match self.config.mode {
            RoutingMode::LeastLatency => self.quickest(usable),
            RoutingMode::ActiveBackup => self.active(usable, now),
            RoutingMode::PerFlow => members(usable).find(|&i| self.paths[i].id == last),
            _ => None,
        };
        i.filter(|&i| !self.paths[i].flight.is_full())
    }
}

/// A number in (0, 1] that seed and path decide (splitmix64).
fn uniform(seed: u64, path: PathId) -> f64 {
    let mut z = seed.wrapping_add((u64::from(path.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1u64 << 53) as f64
}
