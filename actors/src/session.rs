//! A session's queues, paths and published state: everything its actors and the links share, owned
//! by the session's supervisor.

pub mod path;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use mwb_proto::bond::{ReceiverSnapshot, RxItem, SenderSnapshot, SentMark, TxBatch};
use mwb_proto::buf::PacketBuf;
use mwb_proto::fec::{Decoded, Encoded, FecJob};
use mwb_proto::packet::clamp_mss;
use mwb_proto::time::Time;
use mwb_proto::wire::{Heartbeat, PathId, Report};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::{Notify, watch};

use self::path::{PathEndpoint, SessionTable};
use crate::channel::BatchQueue;
use crate::clock;
use crate::identity::NodeId;

/// Batches of packets from the TUN reader: 64 x 128 packets, 16 MiB of 2 KiB buffers. The router
/// empties it at each wake-up into the flow queues, where packets wait and are dropped by rule.
const FROM_TUN_MAX: usize = 64;
/// Reports of the peer: one every 5 ms over two paths fills it in 2.5 s of a dead router.
const FEEDBACK_MAX: usize = 1024;
/// Report bodies and heartbeats from our own receiver.
const FROM_RECEIVER_MAX: usize = 256;
/// Batches of opened datagrams from the links: 256 x 64 datagrams, 32 MiB of 2 KiB buffers.
const RECEIVED_MAX: usize = 256;
/// Requests for a ping.
const PINGS_MAX: usize = 64;
/// Jobs of both machines for the codec, 2 x 64 blocks of 32 packets at most: 6 MiB.
const FEC_JOBS_MAX: usize = 128;
/// Parity on its way back to the router: 64 blocks of 16 shards at most, 2 MiB.
const ENCODED_MAX: usize = 64;
/// Idle transmit batches kept for reuse: 64 x 64 KiB.
const IDLE_BATCHES_MAX: usize = 64;

/// Which end of the session this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Where the session begins: our own packets go in.
    Edge,
    /// Where it ends: packets go on to the internet.
    Exit,
}

/// Inner addresses of a session, as the exit assigned them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InnerAddresses {
    /// Address of the edge inside the session, with the length of the pool's prefix.
    pub v4: Option<(Ipv4Addr, u8)>,
    /// The same for IPv6.
    pub v6: Option<(Ipv6Addr, u8)>,
    /// The exit's own address inside.
    pub gateway_v4: Option<Ipv4Addr>,
    /// Largest inner packet.
    pub mtu: u16,
    /// Resolvers that the exit offers.
    pub dns: Vec<IpAddr>,
}

impl InnerAddresses {
    /// The edge's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.v4.map(|(address, _)| IpAddr::from(address));
        v4.into_iter().chain(self.v6.map(|(address, _)| IpAddr::from(address)))
    }

    /// Whether `address` is the edge's.
    pub fn owns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.is_some_and(|(own, _)| own == v4),
            IpAddr::V6(v6) => self.v6.is_some_and(|(own, _)| own == v6),
        }
    }
}

/// What a link hands to the resequencer, in order.
#[derive(Debug)]
pub enum Received {
    /// Opened datagrams.
    Items(Vec<RxItem>),
    /// What the codec has rebuilt.
    Decoded(Decoded),
    /// The path's numbers start again from here: it has new keys, or it has gone.
    Reset(PathId),
    /// How far a flow had been taken in by the router, and when.
    Mark(SentMark),
}

/// What our receiver wants sent.
#[derive(Debug)]
pub enum FromReceiver {
    /// The body of a report.
    Report(Vec<u8>),
    /// A heartbeat that arrived on a path.
    Heartbeat(PathId, Heartbeat),
}

/// The shared state of one session.
pub struct Session {
    name: String,
    role: Role,
    peer: NodeId,
    id: u64,
    begun: Time,
    incarnation: AtomicU8,
    generations: AtomicU64,
    paths_version: AtomicU64,
    paths: RwLock<BTreeMap<PathId, Arc<PathEndpoint>>>,
    table: Arc<SessionTable>,
    inner: ArcSwapOption<InnerAddresses>,
    router_bell: Arc<Notify>,
    /// From the TUN reader to the router.
    pub from_tun: BatchQueue<Vec<PacketBuf>>,
    /// Reports of the peer, from the links to the router. They may not be lost.
    pub feedback: BatchQueue<Report>,
    /// From our receiver to the router.
    pub from_receiver: BatchQueue<FromReceiver>,
    /// Paths that somebody wants to be pinged.
    pub pings: BatchQueue<PathId>,
    /// From the links to the resequencer.
    pub received: BatchQueue<Received>,
    /// From router and resequencer to the codec.
    pub fec_jobs: BatchQueue<FecJob>,
    /// Parity from the codec to the router.
    pub encoded: BatchQueue<Encoded>,
    /// Empty transmit batches on their way back to the router, the one used last at the end: its memory is still in the
    /// processor's cache.
    idle_batches: Mutex<Vec<TxBatch>>,
    /// The sender's state, every 100 ms.
    pub sender: watch::Sender<SenderSnapshot>,
    /// The receiver's state, every 100 ms.
    pub receiver: watch::Sender<ReceiverSnapshot>,
    /// Largest inner packet that crosses every path whole; 0 while none is known.
    packet_max: AtomicU16,
    /// Inner packets dropped because an address was not the session's.
    pub(crate) foreign: AtomicU64,
    /// Transmit batches that found their link's queue full.
    pub(crate) link_full: AtomicU64,
}

impl Session {
    /// A session without paths. `id` and the first incarnation are random, so that a peer that
    /// knew an earlier run of this node does not mistake this one for it.
    pub fn new(name: String, role: Role, peer: NodeId, id: u64, table: Arc<SessionTable>) -> Arc<Self> {
        let bell = Arc::new(Notify::new());
        Arc::new(Self {
            name,
            role,
            peer,
            id,
            begun: clock::now(),
            incarnation: AtomicU8::new(rand::random()),
            generations: AtomicU64::new(0),
            paths_version: AtomicU64::new(0),
            paths: RwLock::default(),
            table,
            inner: ArcSwapOption::empty(),
            from_tun: BatchQueue::with_bell(FROM_TUN_MAX, Arc::clone(&bell)),
            feedback: BatchQueue::with_bell(FEEDBACK_MAX, Arc::clone(&bell)),
            from_receiver: BatchQueue::with_bell(FROM_RECEIVER_MAX, Arc::clone(&bell)),
            pings: BatchQueue::with_bell(PINGS_MAX, Arc::clone(&bell)),
            fec_jobs: BatchQueue::new(FEC_JOBS_MAX),
            encoded: BatchQueue::with_bell(ENCODED_MAX, Arc::clone(&bell)),
            router_bell: bell,
            received: BatchQueue::new(RECEIVED_MAX),
            idle_batches: Mutex::default(),
            sender: watch::Sender::new(SenderSnapshot::default()),
            receiver: watch::Sender::new(ReceiverSnapshot::default()),
            packet_max: AtomicU16::new(0),
            foreign: AtomicU64::new(0),
            link_full: AtomicU64::new(0),
        })
    }

    /// When this node made it.
    pub(crate) fn begun(&self) -> Time {
        self.begun
    }

    /// Name of the session, in the tree and in traces.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which end this node is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The node at the other end.
    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// The session's id, chosen by the edge at its start.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Tells what crosses every path whole, bytes of inner packet; 0 when that is not known.
    pub(crate) fn set_packet_max(&self, bytes: usize) {
        self.packet_max.store(u16::try_from(bytes).unwrap_or(u16::MAX), Ordering::Relaxed);
    }

    /// Lowers the MSS that a passing SYN announces to what crosses every path, and the TUN of `tun_mtu` bytes,
    /// without fragments.
    pub(crate) fn clamp_mss(&self, packet: &mut [u8], tun_mtu: u16) {
        const HEADERS_V4: u16 = 40;
        const HEADERS_V6: u16 = 60;
        let mtu = match self.packet_max.load(Ordering::Relaxed) {
            0 => tun_mtu,
            max => max.min(tun_mtu),
        };
        clamp_mss(packet, mtu.saturating_sub(HEADERS_V4), mtu.saturating_sub(HEADERS_V6));
    }

    /// An empty batch.
    pub(crate) fn take_idle(&self) -> TxBatch {
        self.idle_batches.lock().pop().unwrap_or_default()
    }

    /// Gives an empty batch back. A full stock means that it is not needed.
    pub(crate) fn give_idle(&self, batch: TxBatch) {
        let mut idle = self.idle_batches.lock();
        if idle.len() < IDLE_BATCHES_MAX {
            idle.push(batch);
        }
    }

    /// Incarnation for the next sender: the peer's lanes start anew with it.
    pub fn next_incarnation(&self) -> u8 {
        self.incarnation.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Incarnation of the present sender.
    pub fn incarnation(&self) -> u8 {
        self.incarnation.load(Ordering::Relaxed)
    }

    pub(crate) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Rings when anything waits for the router.
    pub fn router_bell(&self) -> &Notify {
        &self.router_bell
    }

    /// The inner addresses, once the exit has assigned them.
    pub fn inner(&self) -> Option<Arc<InnerAddresses>> {
        self.inner.load_full()
    }

    /// Sets the inner addresses.
    pub fn set_inner(&self, inner: Arc<InnerAddresses>) {
        self.inner.store(Some(inner));
    }

    /// Grows with every change of the set of paths.
    pub fn paths_version(&self) -> u64 {
        self.paths_version.load(Ordering::Acquire)
    }

    /// The present paths.
    pub fn paths(&self) -> BTreeMap<PathId, Arc<PathEndpoint>> {
        self.paths.read().clone()
    }

    /// Makes `endpoint` the way of its path: sending changes to it at once. Its predecessor can
    /// still be heard until the first datagram under the new keys arrives.
    pub fn install(&self, endpoint: &Arc<PathEndpoint>) {
        self.table.insert(endpoint);
        let replaced = self.paths.write().insert(endpoint.id(), Arc::clone(endpoint));
        if let Some(old) = replaced.filter(|old| !old.is_heard()) {
            self.table.remove(old.local_receiver());
        }
        self.paths_changed();
    }

    /// Notes the first authentic datagram of `endpoint` in front of its batch: older keys of the
    /// path end here. False when the resequencer's queue is full; the caller must try again with
    /// the next datagram.
    pub(crate) fn first_heard(&self, endpoint: &Arc<PathEndpoint>) -> bool {
        if self.received.try_push(Received::Reset(endpoint.id())).is_err() {
            return false;
        }
        endpoint.set_heard();
        let older = |other: &&Arc<PathEndpoint>| {
            std::ptr::eq(other.session().as_ref(), self)
                && other.id() == endpoint.id()
                && other.generation() < endpoint.generation()
        };
        let stale: Vec<u32> =
            self.table.load().values().filter(older).map(|other| other.local_receiver()).collect();
        for receiver in stale {
            self.table.remove(receiver);
        }
        true
    }

    /// Takes `endpoint` out of use. A successor of the same path is left alone.
    pub fn uninstall(&self, endpoint: &Arc<PathEndpoint>) {
        self.table.remove(endpoint.local_receiver());
        let mut paths = self.paths.write();
        if paths.get(&endpoint.id()).is_some_and(|present| Arc::ptr_eq(present, endpoint)) {
            paths.remove(&endpoint.id());
            drop(paths);
            let _ = self.received.try_push(Received::Reset(endpoint.id()));
            self.paths_changed();
        }
    }

    /// Takes all paths out of use: the session ends.
    pub fn uninstall_all(&self) {
        for endpoint in self.paths().values() {
            self.uninstall(endpoint);
        }
    }

    /// When anything authentic was last heard on any path.
    pub fn last_heard(&self) -> Option<Time> {
        self.paths.read().values().map(|path| path.last_heard()).max()
    }

    fn paths_changed(&self) {
        self.paths_version.fetch_add(1, Ordering::Release);
        self.router_bell.notify_one();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} {:016x})", self.name, self.id)
    }
}
