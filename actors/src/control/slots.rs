//! The ways to an exit. They come and go with our own uplinks, and with the leases of those that others lend.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mwb_proto::wire::PathId;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::wan_link::Link;

/// Ceilings of a path's rate, bit/s on the wire; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Towards the internet: kept by our own sender.
    pub up: Option<u64>,
    /// From the internet: kept by the exit, which is told.
    pub down: Option<u64>,
}

/// One way to the exit.
#[derive(Debug)]
pub struct Slot {
    /// Its path id.
    pub path: PathId,
    /// The link that carries it: an uplink, or the LAN port towards a lender.
    pub link: Arc<Link>,
    /// Name of the uplink for people: the link's own, or `lender/uplink`.
    pub name: String,
    /// Where the link sends to: the exit's address, or the lender's port that leads there.
    pub address: SocketAddr,
    /// Why the last dial failed; `None` once one has succeeded.
    pub problem: Mutex<Option<String>>,
    /// What the path may use; followed while it is joined.
    pub limits: watch::Sender<Limits>,
    gone: AtomicBool,
}

impl Slot {
    /// A way without limits.
    pub fn new(path: PathId, link: Arc<Link>, name: String, address: SocketAddr) -> Arc<Self> {
        let (problem, limits) = (Mutex::new(None), watch::Sender::new(Limits::default()));
        Arc::new(Self { path, link, name, address, problem, limits, gone: AtomicBool::new(false) })
    }

    /// Whether it was taken away.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Notes why a dial failed; the log gets each new reason once.
    pub(super) fn note_problem(&self, exit: &str, problem: String) {
        let (link, address) = (&self.name, self.address);
        let mut last = self.problem.lock();
        if last.as_ref() == Some(&problem) {
            tracing::debug!(exit, link, %address, %problem, "no path");
        } else {
            tracing::warn!(exit, link, %address, %problem, "no path");
        }
        *last = Some(problem);
    }
}

/// All ways to one exit, at most one per path id.
#[derive(Debug)]
pub struct Slots {
    slots: Mutex<BTreeMap<PathId, Arc<Slot>>>,
    version: watch::Sender<u64>,
}

impl Slots {
    /// With these to begin with.
    pub fn new(slots: impl IntoIterator<Item = Arc<Slot>>) -> Self {
        let slots = slots.into_iter().map(|slot| (slot.path, slot)).collect();
        Self { slots: Mutex::new(slots), version: watch::Sender::new(0) }
    }

    /// All of them, by path id.
    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.lock().values().cloned().collect()
    }

    /// Follows additions and removals.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Adds a way; false when its path id is taken.
    pub(super) fn add(&self, slot: Arc<Slot>) -> bool {
        let mut slots = self.slots.lock();
        if slots.contains_key(&slot.path) {
            return false;
        }
        slots.insert(slot.path, slot);
        drop(slots);
        self.version.send_modify(|version| *version += 1);
        true
    }

    /// Takes a way away; false when it was not there.
    pub(super) fn remove(&self, slot: &Arc<Slot>) -> bool {
        slot.gone.store(true, Ordering::SeqCst);
        let mut slots = self.slots.lock();
        if !slots.get(&slot.path).is_some_and(|present| Arc::ptr_eq(present, slot)) {
            return false;
        }
        slots.remove(&slot.path);
        drop(slots);
        self.version.send_modify(|version| *version += 1);
        true
    }
}
