//! `TunActor`: where inner packets enter and leave.
//!
//! Its two drivers share the device: `reader` splits the kernel's super-packets and hands the
//! packets to their session's router, `writer` merges what the resequencers deliver and writes it.
//! The device belongs to the node's supervisor; it is not persistent and ends with the process.

mod merge;
pub(crate) mod outlet;
mod reader;
mod refuse;
mod split;
mod writer;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use mwb_proto::buf::BufPool;
use serde::Serialize;
use tokio::sync::watch;
use tun_rs::{DeviceBuilder, SyncDevice};

use self::outlet::Outlet;
use crate::channel::QueueStats;
use crate::driver::{Crew, Drive, DrivenActor, DriverError};
use crate::session::Session;

/// Packets the kernel keeps for us while we are busy.
const TX_QUEUE_LEN: u32 = 1000;

/// Name and size of the device.
#[derive(Clone, Debug)]
pub struct TunSpec {
    /// Interface name, at most 15 bytes.
    pub name: String,
    /// Largest inner packet. 1436 fills a 1,500-byte outer packet over IPv4.
    pub mtu: u16,
}

impl Default for TunSpec {
    fn default() -> Self {
        Self { name: "mwb0".to_owned(), mtu: 1436 }
    }
}

/// Which session a packet from the TUN belongs to.
#[derive(Debug, Default)]
pub struct TunRoutes {
    by_destination: HashMap<IpAddr, Arc<Session>>,
    default: Option<Arc<Session>>,
}

impl TunRoutes {
    fn find(&self, destination: IpAddr) -> Option<&Arc<Session>> {
        self.by_destination.get(&destination).or(self.default.as_ref())
    }
}

/// Counters of the TUN.
#[derive(Debug, Default)]
pub(crate) struct TunCounters {
    pub(crate) read: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) oversized: AtomicU64,
    pub(crate) no_session: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) router_full: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) write_failed: AtomicU64,
}

/// A copy of the TUN's counters.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TunStatus {
    /// Interface name.
    pub name: String,
    /// Packets read, after splitting.
    pub read: u64,
    /// Reads that gave them.
    pub reads: u64,
    /// Super-packets that could not be split.
    pub malformed: u64,
    /// Packets larger than a packet buffer.
    pub oversized: u64,
    /// Packets for no session, or not from the edge's own address.
    pub no_session: u64,
    /// How many of them, of IPv6, were answered with "no route".
    pub refused: u64,
    /// Packets that found their router's queue full.
    pub router_full: u64,
    /// Packets written, before merging.
    pub written: u64,
    /// Writes that took them.
    pub writes: u64,
    /// Packets the device refused.
    pub write_failed: u64,
    /// The queue to the writer.
    pub queue: QueueStats,
}

/// The device and what belongs to it; survives the actor.
pub struct Tun {
    device: ArcSwap<SyncDevice>,
    /// Counts the devices made: one that was deleted is replaced, and needs its addresses again.
    made: watch::Sender<u64>,
    name: String,
    mtu: u16,
    pool: BufPool,
    routes: ArcSwap<TunRoutes>,
    to_tun: Outlet,
    counters: TunCounters,
}

impl Tun {
    /// Creates the device.
    ///
    /// # Errors
    /// The system's: no permission, no `/dev/net/tun`, or the name is taken.
    pub fn create(spec: &TunSpec, pool: BufPool) -> io::Result<Arc<Self>> {
        let device = make_device(&spec.name, spec.mtu)?;
        Ok(Arc::new(Self {
            name: device.name()?,
            device: ArcSwap::from_pointee(device),
            made: watch::Sender::new(1),
            mtu: spec.mtu,
            pool,
            routes: ArcSwap::default(),
            to_tun: Outlet::new(),
            counters: TunCounters::default(),
        }))
    }

    /// Makes the device anew if somebody has deleted it.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn revive(&self) -> io::Result<()> {
        // Asking a device that is gone for its name fails.
        if self.device.load().name().is_ok() {
            return Ok(());
        }
        self.device.store(Arc::new(make_device(&self.name, self.mtu)?));
        self.made.send_modify(|made| *made += 1);
        tracing::warn!(tun = self.name, "the TUN device was deleted and has been made anew");
        Ok(())
    }

    /// Changes whenever the device has been made anew.
    pub fn made(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }

    /// Interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes inner packets no larger than the exit can take.
    pub fn limit_mtu(&self, mtu: u16) {
        let mtu = mtu.min(self.mtu);
        let device = self.device.load();
        if device.mtu().is_ok_and(|present| present == mtu) {
            return;
        }
        if let Err(error) = device.set_mtu(mtu) {
            tracing::warn!(tun = self.name, mtu, %error, "the MTU cannot be set");
        }
    }

    /// The queue to the writer.
    pub fn to_tun(&self) -> &Outlet {
        &self.to_tun
    }

    /// All packets without another session go to `session`: an edge's way out.
    pub fn set_default_session(&self, session: Option<Arc<Session>>) {
        self.routes.rcu(|routes| TunRoutes {
            by_destination: routes.by_destination.clone(),
            default: session.clone(),
        });
    }

    /// Packets to `destination` go to `session`: an exit's way back.
    pub fn add_session(&self, destination: IpAddr, session: &Arc<Session>) {
        self.routes.rcu(|routes| {
            let mut by_destination = routes.by_destination.clone();
            by_destination.insert(destination, Arc::clone(session));
            TunRoutes { by_destination, default: routes.default.clone() }
        });
    }

    /// Packets to `destination` go nowhere, if they went to `session`.
    pub fn remove_session(&self, destination: IpAddr, session: &Arc<Session>) {
        self.routes.rcu(|routes| {
            let mut by_destination = routes.by_destination.clone();
            if by_destination.get(&destination).is_some_and(|known| Arc::ptr_eq(known, session)) {
                by_destination.remove(&destination);
            }
            TunRoutes { by_destination, default: routes.default.clone() }
        });
    }

    /// Gives the kernel `packet` as if a session had delivered it; false when it is too long or too many wait.
    pub fn inject(&self, packet: &[u8]) -> bool {
        self.pool.copy_from(packet).is_some_and(|packet| self.to_tun.push(vec![packet]))
    }

    /// The counters.
    pub fn status(&self) -> TunStatus {
        let c = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TunStatus {
            name: self.name.clone(),
            read: get(&c.read),
            reads: get(&c.reads),
            malformed: get(&c.malformed),
            oversized: get(&c.oversized),
            no_session: get(&c.no_session),
            refused: get(&c.refused),
            router_full: get(&c.router_full),
            written: get(&c.written),
            writes: get(&c.writes),
            write_failed: get(&c.write_failed),
            queue: self.to_tun.stats(),
        }
    }
}

fn make_device(name: &str, mtu: u16) -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new().name(name).mtu(mtu).offload(true).build_sync()?;
    device.set_nonblocking(true)?;
    let _ = device.set_tx_queue_len(TX_QUEUE_LEN);
    Ok(device)
}

impl std::fmt::Debug for Tun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tun({})", self.name)
    }
}

/// Marker of [`TunActor`].
#[derive(Debug)]
pub struct TunPort;

/// The actor around the TUN device.
pub type TunActor = DrivenActor<TunPort>;

impl Drive for TunPort {
    type Lent = Arc<Tun>;

    fn launch(tun: &Arc<Tun>, crew: &mut Crew) -> Result<(), DriverError> {
        tun.revive().map_err(DriverError::io("make the TUN device anew"))?;
        let device = tun.device.load_full();
        let readable = crate::readiness::watch(device.as_ref(), reader::INTEREST)
            .map_err(DriverError::io("watch the TUN device"))?;
        crew.launch("read", |pulse| reader::run(Arc::clone(tun), Arc::clone(&device), readable, pulse));
        crew.launch("write", |pulse| writer::run(Arc::clone(tun), device, pulse));
        Ok(())
    }
}
