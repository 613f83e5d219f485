//! What an exit keeps about its edges: addresses, sessions, connections. Survives the actors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::buf::BufPool;
use mwb_proto::control::{PathAccept, PathJoin, PathRefuse, RefuseReason};
use mwb_proto::seal::{self, Opener, Sealer, Suite};
use mwb_proto::time::Time;
use mwb_proto::wire::PathId;
use parking_lot::Mutex;
use quinn::Connection;

use super::held::{HeldPaths, datagram_max};
use super::rivals::Rivals;
use super::serve::Server;
use super::{CloseCode, ControlStream, exporter};
use crate::address_pool::book::AddressBook;
use crate::channel::BatchQueue;
use crate::clock;
use crate::fec_codec::FecCodecs;
use crate::host::HostOffer;
use crate::identity::NodeId;
use crate::membership::{Access, Admitted};
use crate::reorder::{Reorder, ReorderLent};
use crate::router::{Router, RouterLent};
use crate::session::path::{PathEndpoint, PathPlan, SessionTable};
use crate::session::{InnerAddresses, Role, Session};
use crate::spec::BondSpec;
use crate::supervisor::{ChildSpec, Plan, Policy};
use crate::trace::Trace;
use crate::tun::Tun;
use crate::wan_link::Link;

/// Connections of one edge that may wait for its actor: one per path, twice.
const CONNECTIONS_MAX: usize = 64;
/// A session without paths is kept this long: its edge may be on the way back.
const SESSION_LINGER: Duration = Duration::from_secs(60);

/// What sessions are made from, on an edge and on an exit.
#[derive(Clone)]
pub struct SessionParts {
    /// Plan of the sessions' supervisor.
    pub sessions: Arc<Plan>,
    /// Receiver indexes.
    pub table: Arc<SessionTable>,
    /// The TUN.
    pub tun: Arc<Tun>,
    /// Largest inner packet.
    pub mtu: u16,
    /// Settings of the bond.
    pub bond: BondSpec,
    /// Packet buffers.
    pub pool: BufPool,
    /// Trace file.
    pub trace: Trace,
    /// Restarts.
    pub policy: Policy,
}

impl SessionParts {
    /// Adds a session's supervisor with its router, resequencer and codec to the tree.
    pub fn start(&self, session: &Arc<Session>) {
        let router = RouterLent {
            session: Arc::clone(session),
            config: self.bond.sender.clone(),
            pool: self.pool.clone(),
            trace: self.trace.clone(),
        };
        let reorder = ReorderLent {
            session: Arc::clone(session),
            config: self.bond.receiver.clone(),
            to_tun: self.tun.to_tun().clone(),
            mtu: self.mtu,
        };
        let plan = Plan::new([
            ChildSpec::driven::<Router>("router", router),
            ChildSpec::driven::<Reorder>("reorder", reorder),
            ChildSpec::driven::<FecCodecs>("fec", Arc::clone(session)),
        ]);
        self.sessions.add(ChildSpec::supervisor(session.name(), plan, self.policy));
    }
}

/// A connection that has passed the door.
pub struct Arrival {
    pub(crate) connection: Connection,
    /// The link that it came over.
    pub(crate) link: Arc<Link>,
    /// Whether its hello says that it opens bundles.
    pub(crate) bundles: bool,
    /// Its first stream, with the hello taken.
    pub(crate) stream: ControlStream,
}

/// One edge as the exit knows it.
pub struct EdgePeer {
    /// Its id.
    pub node: NodeId,
    /// Its name here.
    pub name: String,
    /// Connections that its actor has not yet taken.
    pub connections: BatchQueue<Arrival>,
    /// Joined paths.
    pub held: HeldPaths,
    session: Mutex<Option<Arc<Session>>>,
    /// Nodes that take turns with its key.
    rivals: Rivals,
    /// Why its last path was refused; `None` when it was not.
    pub(super) refused: Mutex<Option<RefuseReason>>,
    /// Since when the session has had no path.
    lonely_since: Mutex<Option<Time>>,
}

impl EdgePeer {
    /// Its session, if it has one.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.lock().clone()
    }
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arrival(from {} over {:?})", self.connection.remote_address(), self.link)
    }
}

impl std::fmt::Debug for EdgePeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EdgePeer({})", self.name)
    }
}

/// The exit's memory.
pub struct Exit {
    /// Our own name, for the greeting.
    pub node_name: String,
    /// Random at each start of the node.
    pub instance: u64,
    access: Arc<Access>,
    /// Where edges get their inner addresses from.
    addresses: Arc<AddressBook>,
    /// What the host has for edges.
    offer: Arc<HostOffer>,
    peers: Mutex<BTreeMap<NodeId, Arc<EdgePeer>>>,
    parts: SessionParts,
    /// Plan of the control supervisor.
    control: Arc<Plan>,
    /// Plan of the link supervisor.
    links: Arc<Plan>,
}

impl Exit {
    /// An exit without edges; `access` judges who may become one. While `offer` has no IPv6, none of them gets an
    /// address of it.
    #[allow(clippy::too_many_arguments, reason = "called once, at the start of a node")]
    pub fn new(
        node_name: String,
        instance: u64,
        access: Arc<Access>,
        addresses: Arc<AddressBook>,
        offer: Arc<HostOffer>,
        parts: SessionParts,
        control: Arc<Plan>,
        links: Arc<Plan>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node_name,
            instance,
            access,
            addresses,
            offer,
            peers: Mutex::default(),
            parts,
            control,
            links,
        })
    }

    /// What its host has for edges.
    pub fn offer(&self) -> &HostOffer {
        &self.offer
    }

    /// Who may use this exit.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// The edges known so far.
    pub fn peers(&self) -> Vec<Arc<EdgePeer>> {
        self.peers.lock().values().cloned().collect()
    }

    /// Hands a connection of `node`, which was admitted, to its actor; starts one for a new edge.
    pub fn connected(self: &Arc<Self>, node: NodeId, admitted: Admitted, arrival: Arrival) {
        self.access.connected(node, &arrival.connection);
        let mut peers = self.peers.lock();
        let peer = peers.entry(node).or_insert_with(|| {
            let name = admitted.name;
            let peer = Arc::new(EdgePeer {
                node,
                name: name.clone(),
                connections: BatchQueue::new(CONNECTIONS_MAX),
                held: HeldPaths::new(Arc::clone(&self.links)),
                session: Mutex::new(None),
                rivals: Rivals::default(),
                refused: Mutex::new(None),
                lonely_since: Mutex::new(None),
            });
            let lent = (Arc::clone(self), Arc::clone(&peer));
            self.control.add(ChildSpec::driven::<Server>(format!("peer-{name}"), lent));
            peer
        });
        if let Err(refused) = peer.connections.try_push(arrival) {
            CloseCode::Timeout.close(&refused.connection);
        }
    }

    /// Brings a path into a session. A session id that is not the present one makes a new session:
    /// the edge or this exit has been started anew.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn join(
        &self,
        peer: &Arc<EdgePeer>,
        connection: &Connection,
        (link, bundles): (&Arc<Link>, bool),
        join: &PathJoin,
    ) -> Result<(PathAccept, Arc<PathEndpoint>), PathRefuse> {
        let refuse = |reason, text: &str| PathRefuse { reason, text: text.to_owned() };
        let suite = Suite::choose(&join.suites)
            .ok_or_else(|| refuse(RefuseReason::NoSuite, "no common cipher suite"))?;
        let secret =
            exporter(connection).map_err(|_error| refuse(RefuseReason::Unavailable, "no keying material"))?;
        let session = self
            .session(peer, join.session)
            .ok_or_else(|| refuse(RefuseReason::NoAddress, &self.no_address()))?;
        let (path, nonce) = (PathId(join.path), rand::random());
        let secrets = seal::derive(&secret, path, &join.nonce, &nonce, seal::Role::Responder);
        let plan = PathPlan {
            id: path,
            name: join.link_name.clone(),
            local_receiver: self.parts.table.reserve(),
            peer_receiver: join.receiver,
            remote: crate::wan_link::canonical(connection.remote_address()),
            // Answers must come from the address that the edge has dialled.
            local_ip: connection.local_ip().map(|ip| ip.to_canonical()),
            datagram_max: datagram_max(self.parts.mtu),
            rate_max: None,
            weight: link.spec().weight,
            bundles,
        };
        let (sealer, opener) = (Sealer::new(secrets.tx, suite), Opener::new(secrets.rx, suite));
        let receiver = plan.local_receiver;
        let endpoint = PathEndpoint::new(plan, &session, link, sealer, opener, clock::now());
        let inner = session.inner().unwrap_or_default();
        let accept = PathAccept {
            nonce,
            receiver,
            suite: suite.code(),
            inner_v4: inner.v4.map(|(address, prefix)| (address.octets(), prefix)),
            inner_v6: inner.v6.map(|(address, prefix)| (address.octets(), prefix)),
            gateway_v4: inner.gateway_v4.map(|address| address.octets()),
            inner_mtu: inner.mtu,
            dns: inner.dns.clone(),
        };
        Ok((accept, endpoint))
    }

    /// The peer's session of this id; a new one takes the place of another.
    fn session(&self, peer: &Arc<EdgePeer>, id: u64) -> Option<Arc<Session>> {
        let mut current = peer.session.lock();
        let inner = Arc::new(self.assign(peer.node)?);
        if let Some(session) = current.as_ref().filter(|session| session.id() == id) {
            // The host may have come to the IPv6 internet, or lost it, or have other resolvers.
            self.settle(session, inner);
            return Some(Arc::clone(session));
        }
        if let Some(old) = current.take() {
            if !peer.rivals.gives_way(old.id(), id) {
                tracing::info!(edge = peer.name, "a new session takes the place of the old one");
            } else if peer.rivals.is_due(clock::now()) {
                tracing::warn!(
                    edge = peer.name,
                    node = %peer.node,
                    "two nodes use this node's key and throw each other out; stop one, or remove its state folder so \
                     that it makes a key of its own"
                );
            }
            for address in old.inner().iter().flat_map(|inner| inner.addresses()) {
                self.parts.tun.remove_session(address, &old);
            }
            old.uninstall_all();
            peer.held.remove_all(CloseCode::Replaced);
        }
        let table = Arc::clone(&self.parts.table);
        let session = Session::new(peer.name.clone(), Role::Exit, peer.node, id, table);
        self.parts.start(&session);
        tracing::info!(edge = peer.name, addresses = ?inner.addresses().collect::<Vec<_>>(), "session");
        self.settle(&session, inner);
        *current = Some(Arc::clone(&session));
        Some(session)
    }

    /// The inner addresses of `node` as they are now; `None` when the IPv4 pool is used up.
    fn assign(&self, node: NodeId) -> Option<InnerAddresses> {
        let (v4, v6) = self.addresses.assign(node, self.offer.ipv6())?;
        Some(InnerAddresses {
            v4: Some(v4),
            v6,
            gateway_v4: Some(self.addresses.gateway()),
            mtu: self.parts.mtu,
            dns: self.offer.resolvers(),
        })
    }

    /// Why an edge gets no address, and what to do.
    fn no_address(&self) -> String {
        format!(
            "all {} inner addresses of the exit are in use; give it a larger exit.pool",
            self.addresses.room()
        )
    }

    /// Gives `session` its addresses, and leads what comes for them into it.
    fn settle(&self, session: &Arc<Session>, inner: Arc<InnerAddresses>) {
        let before = session.inner();
        if before.as_ref() == Some(&inner) {
            return;
        }
        for gone in before.iter().flat_map(|before| before.addresses()).filter(|old| !inner.owns(*old)) {
            self.parts.tun.remove_session(gone, session);
        }
        for address in inner.addresses() {
            self.parts.tun.add_session(address, session);
        }
        session.set_inner(inner);
    }

    /// Ends the peer's session when it has had no path for a minute.
    pub fn expire(&self, peer: &EdgePeer) {
        let mut current = peer.session.lock();
        let Some(session) = current.clone() else { return };
        let mut lonely = peer.lonely_since.lock();
        if !session.paths().is_empty() {
            *lonely = None;
            return;
        }
        let now = clock::now();
        if now - *lonely.get_or_insert(now) < SESSION_LINGER {
            return;
        }
        *lonely = None;
        tracing::info!(edge = peer.name, "the session has ended");
        for address in session.inner().iter().flat_map(|inner| inner.addresses()) {
            self.parts.tun.remove_session(address, &session);
        }
        self.parts.sessions.remove(session.name());
        self.addresses.release(peer.node);
        *current = None;
    }
}

impl std::fmt::Debug for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exit")
    }
}
