//! What is known about every actor and driver of a node: state, restarts, last failure, work done.
//!
//! Entries are written with atomics by their owners and read by `status`; the map itself is locked
//! only when an actor appears, disappears or is listed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;

/// A fault to be injected into an actor or driver. A hook for tests and diagnosis: it shows what the
/// death of a part costs in a running node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The code panics.
    Panic,
    /// The code ends with an error.
    Error,
    /// The code awaits for ever.
    Hang,
}

/// State of an actor or driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorState {
    /// Its start has begun.
    Starting,
    /// It runs.
    Running,
    /// It died and will be started again soon.
    Restarting,
    /// It died too often in a row; it is retried slowly and needs attention.
    Parked,
    /// It ended on request.
    Stopped,
}

impl ActorState {
    const ALL: [Self; 5] = [Self::Starting, Self::Running, Self::Restarting, Self::Parked, Self::Stopped];
}

/// One row of the supervision tree as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ActorStatus {
    /// Path in the tree, without the node's prefix: `sessions/exit1/router`, a driver one level
    /// below its actor.
    pub name: String,
    /// Present state.
    pub state: ActorState,
    /// How often it was started again.
    pub restarts: u64,
    /// Number of the present start, from 1.
    pub incarnation: u64,
    /// Packets (drivers of the data plane), datagrams, messages or rounds handled since the node began.
    pub handled: u64,
    /// Why it died last.
    pub last_failure: Option<String>,
}

type FaultPort = Arc<dyn Fn(Fault) -> bool + Send + Sync>;

/// The record of one actor or driver; it outlives its incarnations.
pub struct Entry {
    name: String,
    state: AtomicU8,
    restarts: AtomicU64,
    incarnation: AtomicU64,
    handled: AtomicU64,
    pong: AtomicU64,
    last_failure: Mutex<Option<String>>,
    fault_port: Mutex<Option<FaultPort>>,
}

impl Entry {
    fn new(name: String) -> Self {
        Self {
            name,
            state: AtomicU8::new(ActorState::Starting as u8),
            restarts: AtomicU64::new(0),
            incarnation: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            pong: AtomicU64::new(0),
            last_failure: Mutex::new(None),
            fault_port: Mutex::new(None),
        }
    }

    /// Path in the tree.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Present state.
    pub fn state(&self) -> ActorState {
        ActorState::ALL[usize::from(self.state.load(Ordering::Relaxed))]
    }

    /// Adds `n` to the work counter.
    pub fn count_handled(&self, n: u64) {
        self.handled.fetch_add(n, Ordering::Relaxed);
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Number of the present start, from 1; 0 before the first.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// Why it died last.
    pub fn last_failure(&self) -> Option<String> {
        self.last_failure.lock().clone()
    }

    pub(crate) fn set_state(&self, state: ActorState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Begins a new incarnation and returns its number.
    pub(crate) fn begin(&self) -> u64 {
        let incarnation = self.incarnation.fetch_add(1, Ordering::Relaxed) + 1;
        if incarnation > 1 {
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }
        self.set_state(ActorState::Starting);
        incarnation
    }

    pub(crate) fn fail(&self, reason: &str) {
        *self.last_failure.lock() = Some(reason.to_owned());
    }

    pub(crate) fn answer(&self, ping: u64) {
        self.pong.store(ping, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self) -> u64 {
        self.pong.load(Ordering::Relaxed)
    }

    pub(crate) fn set_fault_port(&self, port: FaultPort) {
        *self.fault_port.lock() = Some(port);
    }

    fn status(&self) -> ActorStatus {
        ActorStatus {
            name: self.name.clone(),
            state: self.state(),
            restarts: self.restarts(),
            incarnation: self.incarnation(),
            handled: self.handled.load(Ordering::Relaxed),
            last_failure: self.last_failure(),
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({} {:?})", self.name, self.state())
    }
}

/// All entries of one node.
#[derive(Debug, Default)]
pub struct Registry {
    entries: RwLock<BTreeMap<String, Arc<Entry>>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The entry called `name`, made when it is new: a restarted actor finds its old one.
    pub fn entry(&self, name: &str) -> Arc<Entry> {
        if let Some(entry) = self.entries.read().get(name) {
            return Arc::clone(entry);
        }
        let mut entries = self.entries.write();
        Arc::clone(entries.entry(name.to_owned()).or_insert_with(|| Arc::new(Entry::new(name.to_owned()))))
    }

    /// The entry called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<Arc<Entry>> {
        self.entries.read().get(name).cloned()
    }

    /// Forgets `name` and everything below it.
    pub fn forget(&self, name: &str) {
        let below = format!("{name}/");
        self.entries.write().retain(|key, _| key != name && !key.starts_with(&below));
    }

    /// Injects `fault` into `name`; false when there is no such actor or driver alive.
    pub fn inject(&self, name: &str, fault: Fault) -> bool {
        let port = self.find(name).and_then(|entry| entry.fault_port.lock().clone());
        port.is_some_and(|port| port(fault))
    }

    /// All rows, in the order of their names, which is the order of the tree.
    pub fn snapshot(&self) -> Vec<ActorStatus> {
        self.entries.read().values().map(|entry| entry.status()).collect()
    }
}
