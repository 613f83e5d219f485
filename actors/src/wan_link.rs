//! `WanLinkActor`: one per uplink of an edge, one per listen address of an exit.
//!
//! Its two drivers share one UDP socket: `receive` takes datagrams off it, tells QUIC from data by
//! the first byte of every segment, opens data in place and hands it to the sessions; `transmit`
//! takes batches from the routers, seals them in place and sends them. The [`Link`] with socket,
//! queues and QUIC endpoint belongs to the supervisor and outlives the actor.

mod quic_socket;
mod receive;
mod socket;
mod transmit;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwapOption;
use mwb_proto::bond::TxBatch;
use mwb_proto::buf::BufPool;
use mwb_proto::health::HealthConfig;
use mwb_proto::wire::Refusal;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use self::quic_socket::{QuicInbox, QuicSocket};
pub(crate) use self::socket::canonical;
pub use self::socket::{BUFFER_BYTES, LinkSocket, SendFailure, SocketOffer, SocketSpec, offer, unspecified};
use crate::channel::{BatchQueue, QueueStats};
use crate::driver::{Crew, Drive, DrivenActor, DriverError};
use crate::identity::Identity;
use crate::session::path::{PathEndpoint, SessionTable};

/// Transmit batches that may wait for a link: pacing lives in the routers, so a queue builds up only
/// when the socket blocks. 256 batches of at most 64 KiB.
const TX_MAX: usize = 256;

/// A batch and the path whose keys seal it.
#[derive(Debug)]
pub struct TxJob {
    /// The path.
    pub path: Arc<PathEndpoint>,
    /// Unsealed datagrams.
    pub batch: TxBatch,
}

/// What a link has done, since the node began.
#[derive(Debug, Default)]
pub struct LinkCounters {
    pub(crate) received: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) quic_received: AtomicU64,
    pub(crate) quic_dropped: AtomicU64,
    pub(crate) session_full: AtomicU64,
    pub(crate) feedback_full: AtomicU64,
    pub(crate) oversized: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) unsealed: AtomicU64,
    pub(crate) unproven: AtomicU64,
    pub(crate) blocked: AtomicU64,
    pub(crate) too_long: AtomicU64,
    pub(crate) unreachable: AtomicU64,
    pub(crate) send_failed: AtomicU64,
    pub(crate) reopened: AtomicU64,
    pub(crate) lent_up_bytes: AtomicU64,
    pub(crate) lent_down_bytes: AtomicU64,
    pub(crate) refused: [AtomicU64; Refusal::COUNT],
}

/// A copy of [`LinkCounters`] and the state of the link.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// Name of the link.
    pub name: String,
    /// Address of its socket; `None` while there is none, as its device is missing.
    pub local: Option<SocketAddr>,
    /// Why there is no socket.
    pub problem: Option<String>,
    /// Data datagrams received and opened.
    pub received: u64,
    /// Their UDP payload bytes.
    pub received_bytes: u64,
    /// Datagrams handed to QUIC.
    pub quic_received: u64,
    /// Datagrams for QUIC dropped because its inbox was full.
    pub quic_dropped: u64,
    /// Datagrams dropped because their session's resequencer was behind.
    pub session_full: u64,
    /// Reports dropped because their session's router was behind.
    pub feedback_full: u64,
    /// Datagrams too large for a packet buffer.
    pub oversized: u64,
    /// Data datagrams sent.
    pub sent: u64,
    /// Their UDP payload bytes.
    pub sent_bytes: u64,
    /// Datagrams not sent because their path sequence was not new.
    pub unsealed: u64,
    /// Datagrams not sent because a new peer address had not answered yet.
    pub unproven: u64,
    /// Waits for room in the socket's buffer.
    pub blocked: u64,
    /// Datagrams larger than the MTU.
    pub too_long: u64,
    /// Datagrams without a way to their destination.
    pub unreachable: u64,
    /// Datagrams lost to other errors of sending.
    pub send_failed: u64,
    /// How often the socket was opened, the first time included.
    pub reopened: u64,
    /// Bytes of borrowers that went out by it, with IP and UDP headers; none of them are in `sent_bytes`.
    pub lent_up_bytes: u64,
    /// Bytes that came in by it for borrowers.
    pub lent_down_bytes: u64,
    /// Refused datagrams by reason; reasons that did not occur are left out.
    pub refused: std::collections::BTreeMap<&'static str, u64>,
    /// The queue from the routers.
    pub queue: QueueStats,
}

/// What a link is made from.
#[derive(Clone, Debug)]
pub struct LinkSpec {
    /// Name, unique in the node.
    pub name: String,
    /// How to open its socket.
    pub socket: SocketSpec,
    /// Ceiling of the rate of each path over it, bit/s.
    pub rate_max: Option<u64>,
    /// Weight for the weighted modes.
    pub weight: u32,
    /// What its paths are judged by.
    pub health: HealthConfig,
}

/// The part of a link that survives its actor.
pub struct Link {
    spec: LinkSpec,
    table: Arc<SessionTable>,
    pool: BufPool,
    socket: ArcSwapOption<LinkSocket>,
    problem: Mutex<Option<String>>,
    renew: Notify,
    closed: AtomicBool,
    tx: BatchQueue<TxJob>,
    quic_inbox: QuicInbox,
    endpoint: Mutex<Option<quinn::Endpoint>>,
    server: Option<quinn::ServerConfig>,
    identity: Arc<Identity>,
    counters: LinkCounters,
}

impl Link {
    /// A link without a socket yet. With `server` its QUIC endpoint also accepts connections.
    pub fn new(
        spec: LinkSpec,
        identity: Arc<Identity>,
        server: Option<quinn::ServerConfig>,
        table: Arc<SessionTable>,
        pool: BufPool,
    ) -> Arc<Self> {
        Arc::new(Self {
            spec,
            table,
            pool,
            socket: ArcSwapOption::empty(),
            problem: Mutex::new(None),
            renew: Notify::new(),
            closed: AtomicBool::new(false),
            tx: BatchQueue::new(TX_MAX),
            quic_inbox: QuicInbox::new(),
            endpoint: Mutex::new(None),
            server,
            identity,
            counters: LinkCounters::default(),
        })
    }

    /// Name of the link.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What it was made from.
    pub fn spec(&self) -> &LinkSpec {
        &self.spec
    }

    /// Whether its socket carries both address families.
    pub fn is_dual(&self) -> bool {
        self.spec.socket.bind.is_ipv6()
    }

    /// The queue of batches to seal and send.
    pub fn tx(&self) -> &BatchQueue<TxJob> {
        &self.tx
    }

    /// The socket, while there is one.
    pub fn socket(&self) -> Option<Arc<LinkSocket>> {
        self.socket.load_full()
    }

    /// Opens the socket anew; the old one is closed once nobody uses it.
    ///
    /// # Errors
    /// The system's; the old socket stays in use then. A link that was [closed](Self::close) opens none.
    pub fn open(&self) -> io::Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // An exit's fixed port can be bound again only when the old socket is gone.
        if self.spec.socket.bind.port() != 0 {
            self.socket.store(None);
        }
        match LinkSocket::open(&self.spec.socket) {
            Ok(socket) => {
                let local = socket.local_addr();
                self.socket.store(Some(Arc::new(socket)));
                *self.problem.lock() = None;
                self.counters.reopened.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(link = self.name(), %local, "socket open");
                Ok(())
            }
            Err(error) => {
                let problem = error.to_string();
                let mut last = self.problem.lock();
                if last.as_ref() != Some(&problem) {
                    tracing::warn!(link = self.name(), %error, "no socket for this link");
                }
                *last = Some(problem);
                Err(error)
            }
        }
    }

    /// The QUIC endpoint over this link, made at first use and again should it ever end.
    ///
    /// # Errors
    /// When the endpoint cannot be made, or the link was [closed](Self::close).
    pub fn endpoint(self: &Arc<Self>) -> io::Result<quinn::Endpoint> {
        let mut endpoint = self.endpoint.lock();
        if self.closed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if let Some(endpoint) = &*endpoint {
            return Ok(endpoint.clone());
        }
        let mut config = quinn::EndpointConfig::new(Arc::new(self.identity.reset_key()));
        // Data datagrams are told from QUIC's by the fixed bit.
        config.grease_quic_bit(false);
        let socket = Arc::new(QuicSocket(Arc::clone(self)));
        let runtime = Arc::new(quinn::TokioRuntime);
        let made = quinn::Endpoint::new_with_abstract_socket(config, self.server.clone(), socket, runtime)?;
        *endpoint = Some(made.clone());
        Ok(made)
    }

    /// Closes all QUIC connections for good: the node stops, or the uplink has gone. The socket stays open for what
    /// QUIC still has to say; then [`shut`](Self::shut) it.
    pub fn close(&self) {
        let mut endpoint = self.endpoint.lock();
        self.closed.store(true, Ordering::Relaxed);
        if let Some(endpoint) = endpoint.take() {
            endpoint.close(quinn::VarInt::from_u32(0), b"done");
        }
    }

    /// Whether it was [closed](Self::close).
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Asks for a new socket: the device is attached to another network.
    pub fn reopen(&self) {
        self.renew.notify_one();
    }

    /// Closes the socket.
    pub fn shut(&self) {
        self.socket.store(None);
    }

    /// Forgets an endpoint that has stopped.
    pub fn renew_endpoint(&self) {
        *self.endpoint.lock() = None;
    }

    /// The counters and the state.
    pub fn status(&self) -> LinkStatus {
        let c = &self.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let refused = Refusal::ALL.iter().map(|r| (r.name(), get(&c.refused[r.index()])));
        LinkStatus {
            name: self.spec.name.clone(),
            local: self.socket().map(|socket| socket.local_addr()),
            problem: self.problem.lock().clone(),
            received: get(&c.received),
            received_bytes: get(&c.received_bytes),
            quic_received: get(&c.quic_received),
            quic_dropped: get(&c.quic_dropped),
            session_full: get(&c.session_full),
            feedback_full: get(&c.feedback_full),
            oversized: get(&c.oversized),
            sent: get(&c.sent),
            sent_bytes: get(&c.sent_bytes),
            unsealed: get(&c.unsealed),
            unproven: get(&c.unproven),
            blocked: get(&c.blocked),
            too_long: get(&c.too_long),
            unreachable: get(&c.unreachable),
            send_failed: get(&c.send_failed),
            reopened: get(&c.reopened),
            lent_up_bytes: get(&c.lent_up_bytes),
            lent_down_bytes: get(&c.lent_down_bytes),
            refused: refused.filter(|(_, count)| *count > 0).collect(),
            queue: self.tx.stats(),
        }
    }

    pub(crate) fn counters(&self) -> &LinkCounters {
        &self.counters
    }

    pub(crate) fn quic_inbox(&self) -> &QuicInbox {
        &self.quic_inbox
    }

    /// Counts a failed send of one datagram; a vanished device asks for a new socket.
    pub(crate) fn note_send_failure(&self, failure: SendFailure) {
        let c = &self.counters;
        let counter = match failure {
            SendFailure::TooLong => &c.too_long,
            SendFailure::Unreachable => &c.unreachable,
            SendFailure::DeviceGone => {
                self.renew.notify_one();
                &c.unreachable
            }
            SendFailure::Blocked
            | SendFailure::Congested
            | SendFailure::Segmentation
            | SendFailure::Other => &c.send_failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.spec.name)
    }
}

/// Marker of [`WanLinkActor`].
#[derive(Debug)]
pub struct WanLink;

/// The actor around a link's drivers.
pub type WanLinkActor = DrivenActor<WanLink>;

impl Drive for WanLink {
    type Lent = Arc<Link>;

    fn launch(link: &Arc<Link>, crew: &mut Crew) -> Result<(), DriverError> {
        crew.launch("receive", |pulse| receive::run(Arc::clone(link), pulse));
        crew.launch("transmit", |pulse| transmit::run(Arc::clone(link), pulse));
        Ok(())
    }
}

/// Address to bind an uplink's socket to: the given one, or any of the family that the peers need.
pub fn bind_address(address: Option<IpAddr>, dual: bool) -> SocketAddr {
    SocketAddr::new(address.unwrap_or_else(|| unspecified(dual)), 0)
}
