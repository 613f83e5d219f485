//! Paths that have joined, with the connection that each came from and its control stream.
//!
//! They are kept beside the actors that watch them: an actor that dies finds them when it returns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mwb_proto::control::{self, Decoded, FrameDecoder, Message, PathLimit};
use mwb_proto::time::Time;
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Mutex as AsyncMutex;

use super::{CloseCode, ControlStream, JoinError, READ_MAX};
use crate::clock;
use crate::health_probe::{HealthProbe, HealthProbeLent};
use crate::session::path::PathEndpoint;
use crate::supervisor::{ChildSpec, Plan};

/// A replaced connection stays open this long, for datagrams under its keys that are under way.
pub(super) const REPLACED_GRACE: Duration = Duration::from_secs(2);

/// A path and its connection.
#[derive(Clone, Debug)]
pub struct HeldPath {
    /// The connection whose exporter gave the path its keys.
    pub connection: Connection,
    /// The path.
    pub endpoint: Arc<PathEndpoint>,
    /// The connection's first stream.
    pub(crate) stream: Arc<PathStream>,
    /// When it joined.
    pub since: Time,
}

/// What the control stream of a path is for once the path has joined: the edge tells the exit how fast it
/// may send there. Both halves outlive the actors that use them.
#[derive(Debug)]
pub(crate) struct PathStream {
    send: AsyncMutex<SendStream>,
    receive: AsyncMutex<(RecvStream, FrameDecoder)>,
    /// The limit that the peer was told last.
    told: AtomicU64,
}

impl PathStream {
    pub(crate) fn new(stream: ControlStream) -> Arc<Self> {
        let (send, receive, decoder) = stream.into_parts();
        let (send, receive) = (AsyncMutex::new(send), AsyncMutex::new((receive, decoder)));
        Arc::new(Self { send, receive, told: AtomicU64::new(u64::MAX) })
    }

    /// Sends a message.
    pub(crate) async fn send(&self, message: &Message) -> Result<(), JoinError> {
        let mut bytes = Vec::new();
        control::encode(message, &mut bytes);
        Ok(self.send.lock().await.write_all(&bytes).await?)
    }

    /// Tells the peer how fast it may send over this path, unless that is what it was told last.
    pub(crate) async fn limit(&self, rate_max: Option<u64>) -> Result<(), JoinError> {
        let rate_max = rate_max.unwrap_or(u64::MAX);
        if self.told.load(Ordering::Relaxed) != rate_max {
            self.send(&Message::PathLimit(PathLimit { rate_max })).await?;
            self.told.store(rate_max, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The next message of a known kind; `None` at the stream's end. Nothing is lost when the wait is given
    /// up.
    pub(crate) async fn next(&self) -> Result<Option<Message>, JoinError> {
        let mut receive = self.receive.lock().await;
        let (stream, decoder) = &mut *receive;
        loop {
            match decoder.next()? {
                Some(Decoded::Message(message)) => return Ok(Some(message)),
                Some(Decoded::Unknown(_)) => continue,
                None => {}
            }
            match stream.read_chunk(READ_MAX, true).await {
                Ok(Some(chunk)) => decoder.push(&chunk.bytes),
                Ok(None) => return Ok(None),
                Err(error) => return Err(JoinError::Stream(error.to_string())),
            }
        }
    }
}

impl HeldPath {
    /// How long nothing authentic has come over it.
    pub fn silence(&self) -> Duration {
        clock::now() - self.endpoint.last_heard()
    }
}

/// All held paths of one peer.
#[derive(Debug)]
pub struct HeldPaths {
    paths: Mutex<BTreeMap<u64, HeldPath>>,
    /// Plan of the link supervisor, which runs a probe per path.
    probes: Arc<Plan>,
}

impl HeldPaths {
    /// No paths yet. Probes of coming ones are added to `probes`.
    pub fn new(probes: Arc<Plan>) -> Self {
        Self { paths: Mutex::default(), probes }
    }

    /// Holds a path that has just joined: installs it in its session and starts its probe.
    pub(crate) fn add(
        &self,
        connection: Connection,
        endpoint: Arc<PathEndpoint>,
        stream: ControlStream,
    ) -> HeldPath {
        let (stream, since) = (PathStream::new(stream), clock::now());
        let held = HeldPath { connection, endpoint: Arc::clone(&endpoint), stream, since };
        self.paths.lock().insert(endpoint.generation(), held.clone());
        endpoint.session().install(&endpoint);
        let lent =
            HealthProbeLent { path: Arc::clone(&endpoint), config: endpoint.link().spec().health.clone() };
        self.probes.add(ChildSpec::driven::<HealthProbe>(probe_name(&endpoint), lent));
        held
    }

    /// Lets go of a path: takes it out of its session, unless a newer one has its place, and closes
    /// its connection.
    pub fn remove(&self, held: &HeldPath, why: CloseCode) {
        let endpoint = &held.endpoint;
        self.paths.lock().remove(&endpoint.generation());
        let session = endpoint.session();
        session.uninstall(endpoint);
        if !session.paths().contains_key(&endpoint.id()) {
            self.probes.remove(&probe_name(endpoint));
        }
        why.close(&held.connection);
    }

    /// Lets go of all paths.
    pub fn remove_all(&self, why: CloseCode) {
        for held in self.all() {
            self.remove(&held, why);
        }
    }

    /// Lets go of everything that is held for `id`.
    pub fn remove_id(&self, id: mwb_proto::wire::PathId, why: CloseCode) {
        for held in self.all().iter().filter(|held| held.endpoint.id() == id) {
            self.remove(held, why);
        }
    }

    /// All paths, oldest first.
    pub fn all(&self) -> Vec<HeldPath> {
        self.paths.lock().values().cloned().collect()
    }

    /// The path in use for `id`.
    pub fn newest(&self, id: mwb_proto::wire::PathId) -> Option<HeldPath> {
        self.paths.lock().values().rev().find(|held| held.endpoint.id() == id).cloned()
    }

    /// Whether a newer path has the place of `held` and has been heard.
    pub fn is_superseded(&self, held: &HeldPath) -> bool {
        self.newest(held.endpoint.id()).is_some_and(|newest| {
            newest.endpoint.generation() > held.endpoint.generation() && newest.endpoint.is_heard()
        })
    }
}

/// Name of a path's probe below the link supervisor.
fn probe_name(endpoint: &PathEndpoint) -> String {
    format!("probe-{}-{}", endpoint.session().name(), endpoint.id())
}

/// Largest datagram for inner packets of `mtu` bytes: a full packet and our header and tag, room for the parity
/// of one, and never less than what IPv6 promises.
pub(super) fn datagram_max(mtu: u16) -> usize {
    (usize::from(mtu) + mwb_proto::fec::PARITY_OVERHEAD).max(1232)
}
