//! The edge's side: a keeper per way to the exit (uplink, exit address) that dials, joins the path, watches it and
//! replaces it, make before break.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mwb_proto::control::{Hello, Message, PathAccept, PathJoin};
use mwb_proto::mesh::Roles;
use mwb_proto::seal::{self, Opener, Sealer, Suite};
use quinn::ClientConfig;
use tokio::task::{AbortHandle, JoinSet};

use super::door::admit;
use super::held::{HeldPath, HeldPaths, REPLACED_GRACE};
use super::rivals::Rivals;
use super::slots::{Slot, Slots};
use super::{CloseCode, ControlStream, JoinError, STEP_TIMEOUT, exporter, hello};
use crate::clock;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::membership::Access;
use crate::session::path::{PathEndpoint, PathPlan, SessionTable};
use crate::session::{InnerAddresses, Session};
use crate::supervisor::{Backoff, Policy, Verdict};
use crate::tls::SERVER_NAME;

/// Silence after which a path is dialled anew; the old keys stay in use until the new path is in.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
/// A path gets new keys this often.
const RENEW_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long a dial may take until the handshake is done.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Another node with our key has taken the path: so long it is left to it, or the two would throw each other out as
/// fast as they can dial.
const RIVAL_PAUSE: Duration = Duration::from_secs(3);
/// How often a held path is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(100);
/// Redialling: 0.1 s, doubling to 5 s, jittered, and never given up.
const REDIAL: Policy = Policy {
    delay_min: Duration::from_millis(100),
    delay_max: Duration::from_secs(5),
    jitter: 0.25,
    healthy_after: Duration::from_secs(10),
    park_after: u32::MAX,
    park_retry: Duration::from_secs(5),
    ping_every: Duration::from_millis(200),
};

/// An exit as an edge knows it; survives its actor.
pub struct ExitPeer {
    /// Our own name, for the greeting.
    pub node_name: String,
    /// Random at each start of the node.
    pub instance: u64,
    /// Whether the exit still is one that we may use.
    pub access: Arc<Access>,
    /// The exit's name.
    pub name: String,
    /// The session with it.
    pub session: Arc<Session>,
    /// All ways to it.
    pub slots: Slots,
    /// Joined paths.
    pub held: HeldPaths,
    /// Receiver indexes.
    pub table: Arc<SessionTable>,
    /// TLS towards this exit.
    pub tls: ClientConfig,
    /// Largest inner packet of the TUN.
    pub mtu: u16,
    /// Paths that joined before this time get new keys.
    pub renew_before: AtomicU64,
    /// Whether another node uses our key.
    pub rivals: Rivals,
    /// Told when the exit has assigned addresses.
    pub inner: tokio::sync::watch::Sender<Option<Arc<InnerAddresses>>>,
}

impl ExitPeer {
    /// Adds a way to it; false when the path id is taken.
    pub fn add_slot(&self, slot: Arc<Slot>) -> bool {
        self.slots.add(slot)
    }

    /// Takes a way away, and at once the path that it has.
    pub fn remove_slot(&self, slot: &Arc<Slot>) {
        if self.slots.remove(slot) {
            self.held.remove_id(slot.path, CloseCode::Done);
        }
    }

    /// Gives all present paths new keys, make before break.
    pub fn renew(&self) {
        self.renew_before.store(clock::now().as_nanos(), Ordering::Relaxed);
    }

    /// Whether the keys of `held` are due for renewal.
    fn is_old(&self, held: &HeldPath) -> bool {
        held.since.as_nanos() < self.renew_before.load(Ordering::Relaxed)
            || clock::now() - held.since >= RENEW_EVERY
    }
}

impl std::fmt::Debug for ExitPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExitPeer({})", self.name)
    }
}

/// Marker of an edge's [`PeerActor`].
#[derive(Debug)]
pub struct Dialler;

/// The actor that keeps an edge's paths to one exit.
pub type PeerActor = DrivenActor<Dialler>;

impl Drive for Dialler {
    type Lent = Arc<ExitPeer>;

    fn launch(peer: &Arc<ExitPeer>, crew: &mut Crew) -> Result<(), DriverError> {
        let peer = Arc::clone(peer);
        crew.launch("paths", |pulse| run(peer, pulse));
        Ok(())
    }
}

/// Keeps a keeper per slot.
async fn run(peer: Arc<ExitPeer>, pulse: Pulse) -> Result<(), DriverError> {
    let mut changes = peer.slots.changes();
    // Dropped, and so aborted, with this driver.
    let mut keepers = JoinSet::new();
    let mut kept: Vec<(Arc<Slot>, AbortHandle)> = Vec::new();
    loop {
        pulse.beat().await?;
        changes.mark_unchanged();
        let wanted = peer.slots.all();
        kept.retain(|(slot, keeper)| {
            let stays = !slot.is_gone();
            if !stays {
                keeper.abort();
            }
            stays
        });
        for slot in wanted {
            if !kept.iter().any(|(other, _)| Arc::ptr_eq(other, &slot)) {
                let (peer, lent, pulse) = (Arc::clone(&peer), Arc::clone(&slot), pulse.clone());
                let keeper = async move {
                    tokio::join!(keep(&peer, &lent, &pulse), limit(&peer, &lent));
                };
                kept.push((slot, keepers.spawn(keeper)));
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            Some(Err(error)) = keepers.join_next() => {
                if error.is_panic() {
                    return Err(DriverError::Failed(format!("a keeper died: {error}")));
                }
            }
            () = pulse.asked() => {}
        }
    }
}

/// Keeps both ends of a path to the slot's limits.
async fn limit(peer: &ExitPeer, slot: &Slot) {
    let mut limits = slot.limits.subscribe();
    loop {
        let wanted = *limits.borrow_and_update();
        if let Some(held) = peer.held.newest(slot.path) {
            held.endpoint.set_rate_cap(wanted.up);
            // A stream that takes nothing belongs to a connection that is about to end.
            let telling = tokio::time::timeout(STEP_TIMEOUT, held.stream.limit(wanted.down)).await;
            if !matches!(telling, Ok(Ok(()))) {
                tokio::time::sleep(WATCH_EVERY).await;
            }
        }
        tokio::select! {
            _ = limits.changed() => {}
            // A path that has just joined does not know them yet.
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
    }
}

/// Keeps one path for ever.
async fn keep(peer: &ExitPeer, slot: &Slot, pulse: &Pulse) {
    let mut backoff = Backoff::new(REDIAL);
    loop {
        let old = peer.held.newest(slot.path);
        if let Some(held) = &old {
            watch(peer, held).await;
        }
        let result = join(peer, slot, old.as_ref()).await;
        pulse.count_handled(1);
        match result {
            Ok(()) => {
                *slot.problem.lock() = None;
                backoff.reset();
            }
            Err(JoinError::NotNeeded) => {}
            Err(error) => {
                slot.note_problem(&peer.name, error.to_string());
                let delay = match backoff.died(Duration::ZERO, &mut rand::rng()) {
                    Verdict::Restart(delay) | Verdict::Park(delay) => delay,
                };
                tokio::time::sleep(delay).await;
            }
        }
    }
}

/// Returns when `held` needs a successor: its connection ended, it is silent, or its keys are old.
async fn watch(peer: &ExitPeer, held: &HeldPath) {
    loop {
        if let Some(reason) = held.connection.close_reason() {
            let (exit, path) = (&peer.name, held.endpoint.id());
            tracing::info!(exit, %path, %reason, "connection of the path has ended");
            peer.held.remove(held, CloseCode::Done);
            // Our own successor would be the newest: the path would not be watched any more.
            if CloseCode::Replaced.is_reason(&reason) {
                if peer.rivals.is_due(clock::now()) {
                    tracing::warn!(
                        exit,
                        "another node uses this node's key and has thrown us out; stop one, or remove its state \
                         folder so that it makes a key of its own"
                    );
                }
                tokio::time::sleep(RIVAL_PAUSE).await;
            }
            return;
        }
        if held.silence() >= SILENCE_MAX || peer.is_old(held) {
            return;
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Dials, joins and installs the path of `slot`, then retires `old`.
async fn join(peer: &ExitPeer, slot: &Slot, old: Option<&HeldPath>) -> Result<(), JoinError> {
    let endpoint = slot.link.endpoint().map_err(JoinError::Endpoint)?;
    let connecting = endpoint.connect_with(peer.tls.clone(), slot.address, SERVER_NAME);
    if matches!(connecting, Err(quinn::ConnectError::EndpointStopping)) {
        slot.link.renew_endpoint();
    }
    let connection =
        tokio::time::timeout(CONNECT_TIMEOUT, connecting?).await.map_err(|_elapsed| JoinError::Timeout)??;
    // TLS 1.3: the exit has not judged our key yet. Only its answer shows that we are in.
    let mut stream = ControlStream::new(connection.open_bi().await?);
    stream.trust();
    stream.send(&Message::Hello(hello(&peer.node_name, peer.instance, &peer.access))).await?;
    let bundles = match stream.next().await {
        Ok(Message::HelloAck(hello)) => {
            let exit = admit(&peer.access, &connection, &hello)?;
            if !exit.roles.contains(Roles::EXIT) {
                return Err(JoinError::Role(Roles::EXIT));
            }
            hello.can(Hello::BUNDLES)
        }
        Ok(other) => return Err(JoinError::Unexpected(other.kind())),
        // The reason for which the exit closed the connection says more than the broken stream.
        Err(error) => return Err(connection.close_reason().map_or(error, JoinError::Connection)),
    };
    // From here on the exit takes the new path for the only one: there is no way back.
    if old.is_some_and(|held| {
        held.connection.close_reason().is_none() && held.silence() < SILENCE_MAX && !peer.is_old(held)
    }) {
        CloseCode::Done.close(&connection);
        return Err(JoinError::NotNeeded);
    }
    let receiver = peer.table.reserve();
    let nonce = rand::random();
    let joined = async {
        stream
            .send(&Message::PathJoin(PathJoin {
                session: peer.session.id(),
                path: slot.path.0,
                nonce,
                receiver,
                suites: Suite::offer(),
                incarnation: peer.session.incarnation(),
                link_name: slot.name.clone(),
            }))
            .await?;
        match stream.next().await? {
            Message::PathAccept(accept) => Ok(accept),
            Message::PathRefuse(refuse) => {
                Err(JoinError::Refused { reason: refuse.reason, text: refuse.text })
            }
            other => Err(JoinError::Unexpected(other.kind())),
        }
    };
    let path = match joined.await {
        Ok(accept) => path(peer, slot, &connection, (receiver, bundles), &nonce, &accept),
        Err(error) => Err(error),
    };
    let path = path.inspect_err(|_error| peer.table.remove(receiver))?;
    let remote = path.remote();
    path.set_rate_cap(slot.limits.borrow().up);
    peer.access.connected(peer.session.peer(), &connection);
    let held = peer.held.add(connection, path, stream);
    if slot.is_gone() {
        peer.held.remove(&held, CloseCode::Done);
        return Err(JoinError::NotNeeded);
    }
    tracing::info!(exit = peer.name, path = %slot.path, link = slot.name, %remote, "path joined");
    if let Some(old) = old {
        retire(peer, old).await;
    }
    Ok(())
}

/// Ends the predecessor of a path once what is under way under its keys has arrived.
async fn retire(peer: &ExitPeer, old: &HeldPath) {
    tokio::time::sleep(REPLACED_GRACE).await;
    peer.held.remove(old, CloseCode::Replaced);
}

/// Derives the keys and makes the path.
fn path(
    peer: &ExitPeer,
    slot: &Slot,
    connection: &quinn::Connection,
    (receiver, bundles): (u32, bool),
    nonce: &[u8; 16],
    accept: &PathAccept,
) -> Result<Arc<PathEndpoint>, JoinError> {
    let suite = Suite::from_code(accept.suite).ok_or(JoinError::Keys)?;
    let secret = exporter(connection)?;
    let secrets = seal::derive(&secret, slot.path, nonce, &accept.nonce, seal::Role::Initiator);
    let mtu = accept.inner_mtu.min(peer.mtu);
    let inner = InnerAddresses {
        v4: accept.inner_v4.map(|(address, prefix)| (address.into(), prefix)),
        v6: accept.inner_v6.map(|(address, prefix)| (address.into(), prefix)),
        gateway_v4: accept.gateway_v4.map(Into::into),
        mtu,
        dns: accept.dns.clone(),
    };
    if peer.session.inner().as_deref() != Some(&inner) {
        let inner = Arc::new(inner);
        peer.session.set_inner(Arc::clone(&inner));
        peer.inner.send_replace(Some(inner));
    }
    let plan = PathPlan {
        id: slot.path,
        name: slot.name.clone(),
        local_receiver: receiver,
        peer_receiver: accept.receiver,
        remote: slot.address,
        local_ip: None,
        datagram_max: super::held::datagram_max(mtu),
        rate_max: slot.link.spec().rate_max,
        weight: slot.link.spec().weight,
        bundles,
    };
    let (sealer, opener) = (Sealer::new(secrets.tx, suite), Opener::new(secrets.rx, suite));
    Ok(PathEndpoint::new(plan, &peer.session, &slot.link, sealer, opener, clock::now()))
}
