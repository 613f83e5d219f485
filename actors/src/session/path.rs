//! The shell's side of a path: its keys, its remote address, its receiver index.
//!
//! A path endpoint is made when a path joins and lives until its successor is heard or its
//! connection ends. The link drivers on both directions share it; it survives all of them.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use mwb_proto::bond::{PathSetup, TxBatch};
use mwb_proto::health::HealthState;
use mwb_proto::seal::{Opened, Opener, Sealer};
use mwb_proto::time::{Stamp, Time};
use mwb_proto::wire::{PathId, Refusal};
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::Notify;

use super::Session;
use crate::wan_link::Link;

/// How far ahead a restarted router begins: what its predecessor sent but did not tell is less.
const RESTART_GAP: u64 = 1 << 10;
/// Until a new address has answered, this many times the bytes it sent may be sent to it.
const UNPROVEN_FACTOR: u64 = 3;

/// What a path endpoint is made from.
#[derive(Debug)]
pub struct PathPlan {
    /// Path id, chosen by the edge.
    pub id: PathId,
    /// Name of the edge's uplink, as the edge calls it: at its exit all paths have the link of the listen address.
    pub name: String,
    /// Our receiver index, in every datagram that reaches us.
    pub local_receiver: u32,
    /// The peer's receiver index.
    pub peer_receiver: u32,
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Which of our addresses it knows, where that is a choice.
    pub local_ip: Option<IpAddr>,
    /// Largest datagram to send.
    pub datagram_max: usize,
    /// Configured ceiling of the rate, bit/s.
    pub rate_max: Option<u64>,
    /// Weight for the weighted modes.
    pub weight: u32,
    /// Whether the peer opens bundles.
    pub bundles: bool,
}

struct Remote {
    address: SocketAddr,
    local_ip: Option<IpAddr>,
    /// Bytes that may still be sent before the address has answered; `None` once it has.
    allowance: Option<u64>,
    moved_at: Time,
}

struct TxKeys {
    sealer: Sealer,
    /// Least path sequence that was not sealed yet.
    next: u64,
}

/// One generation of a path: the keys of one join.
pub struct PathEndpoint {
    plan: PathPlan,
    session: Arc<Session>,
    link: Arc<Link>,
    generation: u64,
    opener: Mutex<Opener>,
    tx: Mutex<TxKeys>,
    remote: Mutex<Remote>,
    /// Next path sequence never given to a sender.
    next_path_seq: AtomicU64,
    heard: AtomicBool,
    last_heard: AtomicU64,
    received: AtomicU64,
    health: AtomicU8,
    given_up: AtomicBool,
    given_up_changed: Notify,
    /// Ceiling of the rate beside the plan's, bit/s; `u64::MAX` for none.
    rate_cap: AtomicU64,
}

impl PathEndpoint {
    /// A path of `session` over `link`, sealed and opened with these keys.
    pub fn new(
        plan: PathPlan,
        session: &Arc<Session>,
        link: &Arc<Link>,
        sealer: Sealer,
        opener: Opener,
        now: Time,
    ) -> Arc<Self> {
        let remote = Remote { address: plan.remote, local_ip: plan.local_ip, allowance: None, moved_at: now };
        Arc::new(Self {
            plan,
            session: Arc::clone(session),
            link: Arc::clone(link),
            generation: session.next_generation(),
            opener: Mutex::new(opener),
            tx: Mutex::new(TxKeys { sealer, next: 0 }),
            remote: Mutex::new(remote),
            next_path_seq: AtomicU64::new(1),
            heard: AtomicBool::new(false),
            last_heard: AtomicU64::new(now.as_nanos()),
            received: AtomicU64::new(0),
            health: AtomicU8::new(HealthState::Down as u8),
            given_up: AtomicBool::new(false),
            given_up_changed: Notify::new(),
            rate_cap: AtomicU64::new(u64::MAX),
        })
    }

    /// Path id.
    pub fn id(&self) -> PathId {
        self.plan.id
    }

    /// Name of the edge's uplink.
    pub fn name(&self) -> &str {
        &self.plan.name
    }

    /// Our receiver index.
    pub fn local_receiver(&self) -> u32 {
        self.plan.local_receiver
    }

    /// The session it belongs to.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The link it uses.
    pub fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Grows with every join of any path of the session.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the sender must know of the path. Numbers that an earlier sender may have used are
    /// skipped.
    pub fn setup(&self) -> PathSetup {
        let next = self.next_path_seq.load(Ordering::Acquire);
        PathSetup {
            receiver: self.plan.peer_receiver,
            first_path_seq: if next == 1 { 1 } else { next + RESTART_GAP },
            datagram_max: self.plan.datagram_max,
            rate_max: self.rate_max(),
            weight: self.plan.weight,
            bundles: self.plan.bundles,
        }
    }

    /// Changes the ceiling of what we send over this path, bit/s; the configured one holds beside it. The
    /// router is woken when it is another one.
    pub fn set_rate_cap(&self, cap: Option<u64>) {
        let cap = cap.unwrap_or(u64::MAX);
        if self.rate_cap.swap(cap, Ordering::Relaxed) != cap {
            self.session.router_bell().notify_one();
        }
    }

    /// The ceiling of what we send over this path, bit/s.
    pub fn rate_max(&self) -> Option<u64> {
        let cap = self.rate_cap.load(Ordering::Relaxed);
        let cap = (cap != u64::MAX).then_some(cap);
        cap.into_iter().chain(self.plan.rate_max).min()
    }

    /// Remembers that `path_seq` is in use, before its batch leaves the router.
    pub fn note_used(&self, path_seq: u64) {
        self.next_path_seq.fetch_max(path_seq + 1, Ordering::AcqRel);
    }

    /// Seals the datagrams of a batch in place. Those whose number is not above all sealed before, which would repeat a
    /// nonce, are taken out of it; says how many.
    pub fn seal(&self, batch: &mut TxBatch) -> usize {
        let before = batch.segments.len();
        let TxBatch { slab, segments, .. } = batch;
        let mut tx = self.tx.lock();
        segments.retain(|segment| {
            if segment.path_seq < tx.next {
                return false;
            }
            tx.next = segment.path_seq + 1;
            tx.sealer.seal(segment.path_seq, &mut slab[segment.range()]);
            true
        });
        before - segments.len()
    }

    /// Changes to the next sending key.
    pub fn ratchet(&self) {
        self.tx.lock().sealer.ratchet();
    }

    /// Opens a datagram into the front of `plain`.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn open(&self, datagram: &[u8], plain: &mut [u8]) -> Result<Opened, Refusal> {
        self.opener.lock().open(datagram, plain)
    }

    /// Notes an authentic datagram of `len` bytes. True when the path has moved to a new address.
    pub fn note_heard(
        &self,
        newest: bool,
        len: usize,
        from: SocketAddr,
        to: Option<IpAddr>,
        now: Time,
    ) -> bool {
        self.last_heard.store(now.as_nanos(), Ordering::Relaxed);
        self.received.fetch_add(1, Ordering::Relaxed);
        let mut remote = self.remote.lock();
        if remote.address == from {
            if let Some(allowance) = &mut remote.allowance {
                *allowance += UNPROVEN_FACTOR * len as u64;
            }
            return false;
        }
        // Only the newest datagram moves a path: an old one that someone kept and replays from
        // elsewhere does not.
        if !newest {
            return false;
        }
        tracing::debug!(path = %self.id(), old = %remote.address, new = %from, "path has moved");
        let local_ip = if remote.local_ip.is_some() { to } else { None };
        *remote =
            Remote { address: from, local_ip, allowance: Some(UNPROVEN_FACTOR * len as u64), moved_at: now };
        true
    }

    /// Notes a pong: it proves a new address when it answers a ping sent after the move.
    pub fn note_pong(&self, echo: Stamp, from: SocketAddr) {
        let mut remote = self.remote.lock();
        if remote.allowance.is_some()
            && remote.address == from
            && echo.signed_since(remote.moved_at.stamp()) >= 0
        {
            remote.allowance = None;
        }
    }

    /// Where to send `len` bytes, and from which address; `None` while a new address has not yet
    /// earned that many.
    pub fn destination(&self, len: usize) -> Option<(SocketAddr, Option<IpAddr>)> {
        let mut remote = self.remote.lock();
        if let Some(allowance) = &mut remote.allowance {
            *allowance = allowance.checked_sub(len as u64)?;
        }
        Some((remote.address, remote.local_ip))
    }

    /// Where the peer is now.
    pub fn remote(&self) -> SocketAddr {
        self.remote.lock().address
    }

    /// When the last authentic datagram came; the time of the join before the first.
    pub fn last_heard(&self) -> Time {
        Time::from_nanos(self.last_heard.load(Ordering::Relaxed))
    }

    /// Authentic datagrams so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Health as the path's probe sees it.
    pub fn health(&self) -> HealthState {
        const ALL: [HealthState; 5] = [
            HealthState::Down,
            HealthState::Starting,
            HealthState::Up,
            HealthState::Degraded,
            HealthState::Recovering,
        ];
        ALL[usize::from(self.health.load(Ordering::Relaxed))]
    }

    pub(crate) fn set_health(&self, state: HealthState) {
        self.health.store(state as u8, Ordering::Relaxed);
    }

    /// Whether the sender has given it up: what it sends there does not arrive.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    pub(crate) fn set_given_up(&self, given_up: bool) {
        if self.given_up.swap(given_up, Ordering::Relaxed) != given_up {
            self.given_up_changed.notify_one();
        }
    }

    /// Returns when the sender has given it up, or uses it again.
    pub(crate) async fn given_up_changed(&self) {
        self.given_up_changed.notified().await;
    }

    /// Whether anything authentic has come yet.
    pub fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    pub(crate) fn set_heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for PathEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PathEndpoint({} of {}, {:08x})", self.id(), self.session.name(), self.local_receiver())
    }
}

/// Receiver index to path endpoint, for all links of a node. Read per batch without a lock.
#[derive(Debug, Default)]
pub struct SessionTable {
    paths: ArcSwap<HashMap<u32, Arc<PathEndpoint>>>,
    reserved: Mutex<std::collections::HashSet<u32>>,
}

impl SessionTable {
    /// The present table.
    pub fn load(&self) -> arc_swap::Guard<Arc<HashMap<u32, Arc<PathEndpoint>>>> {
        self.paths.load()
    }

    /// A receiver index that nobody uses; random, so that it tells nothing and cannot be guessed.
    pub fn reserve(&self) -> u32 {
        let mut reserved = self.reserved.lock();
        loop {
            let index: u32 = rand::rng().random();
            if reserved.insert(index) {
                return index;
            }
        }
    }

    /// Puts `endpoint` under its receiver index.
    pub fn insert(&self, endpoint: &Arc<PathEndpoint>) {
        self.paths.rcu(|paths| {
            let mut paths = HashMap::clone(paths);
            paths.insert(endpoint.local_receiver(), Arc::clone(endpoint));
            paths
        });
    }

    /// Frees a receiver index, whether it was used or only reserved.
    pub fn remove(&self, receiver: u32) {
        self.paths.rcu(|paths| {
            let mut paths = HashMap::clone(paths);
            paths.remove(&receiver);
            paths
        });
        self.reserved.lock().remove(&receiver);
    }
}
