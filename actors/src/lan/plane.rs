//! What the actors of the LAN share: our ports, whom we talk to, and how a connection comes into use.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::Hello;
use mwb_proto::time::Time;
use parking_lot::Mutex;
use quinn::Connection;
use tokio::sync::watch;

use super::port::LanPort;
use super::talk::{LanStream, LanTalk, LanTalker};
use super::{LanHints, LanPeer, LanPeers};
use crate::clock;
use crate::control::{CloseCode, ControlStream, JoinError, lan_transport};
use crate::identity::{Identity, NodeId};
use crate::membership::{Access, Admitted};
use crate::supervisor::{ChildSpec, Plan};
use crate::tls::{self, Allowed, TlsError};
use crate::wan_link::Link;

/// Two connections that begin within this time were dialled from both ends at once.
const CROSSING: Duration = Duration::from_secs(1);
/// A node that comes back as another instance more often than this within [`TWINS_WINDOW`] is two.
const TWINS_CHANGES: usize = 3;
const TWINS_WINDOW: Duration = Duration::from_secs(10);

/// What the plane is made from.
pub struct LanParts {
    /// Our own name, for the greeting.
    pub node_name: String,
    /// Random at each start of the node.
    pub instance: u64,
    /// Our key.
    pub identity: Arc<Identity>,
    /// Who may talk to us.
    pub access: Arc<Access>,
    /// Addresses of peers from the configuration.
    pub known: Vec<(NodeId, SocketAddr)>,
    /// Addresses at which members may be.
    pub hints: Arc<LanHints>,
    /// Our ports, to begin with.
    pub ports: Vec<LanPort>,
    /// Plan of the control supervisor, for the actor of each peer.
    pub control: Arc<Plan>,
}

/// The LAN as this node takes part in it; survives its actors.
pub struct LanPlane {
    pub(crate) parts: LanParts,
    ports: Mutex<Vec<LanPort>>,
    /// Ports that were taken out of use and are not closed yet.
    leaving: Mutex<Vec<LanPort>>,
    /// The interfaces of the ports.
    interfaces: watch::Sender<Vec<String>>,
    peers: Arc<LanPeers>,
    talks: Mutex<BTreeMap<NodeId, Talking>>,
    /// Why the last dial of an address failed.
    problems: Mutex<BTreeMap<SocketAddr, String>>,
    /// When a node was last seen that has our own key.
    twin_of_us: Mutex<Option<Time>>,
}

/// A peer with what is known of its present connection.
struct Talking {
    talk: Arc<LanTalk>,
    instance: u64,
    since: Time,
    /// Whether the present connection was dialled by the node of the smaller id.
    smaller_dialled: bool,
    /// When another instance took over.
    changes: VecDeque<Time>,
    warned: Option<Time>,
}

/// Which end began a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialledBy {
    Us,
    Them,
}

/// A connection whose node was admitted.
pub(crate) struct Arrival<'a> {
    pub(crate) node: NodeId,
    pub(crate) admitted: Admitted,
    pub(crate) hello: &'a Hello,
    pub(crate) by: DialledBy,
    pub(crate) connection: Connection,
    pub(crate) port: Arc<Link>,
}

impl LanPlane {
    /// A plane that fills `peers`.
    pub fn new(mut parts: LanParts, peers: Arc<LanPeers>) -> Arc<Self> {
        let ports = std::mem::take(&mut parts.ports);
        Arc::new(Self {
            parts,
            interfaces: watch::Sender::new(interfaces(&ports)),
            ports: Mutex::new(ports),
            leaving: Mutex::default(),
            peers,
            talks: Mutex::default(),
            problems: Mutex::default(),
            twin_of_us: Mutex::new(None),
        })
    }

    /// The members on the LAN.
    pub fn peers(&self) -> &Arc<LanPeers> {
        &self.peers
    }

    /// Addresses at which members may be, for the dialler.
    pub fn hints(&self) -> &Arc<LanHints> {
        &self.parts.hints
    }

    /// Our ports.
    pub fn ports(&self) -> Vec<LanPort> {
        self.ports.lock().clone()
    }

    /// Follows the interfaces of our ports.
    pub fn interfaces(&self) -> watch::Receiver<Vec<String>> {
        self.interfaces.subscribe()
    }

    /// Takes a port into use.
    pub(crate) fn add_port(&self, port: LanPort) {
        let mut ports = self.ports.lock();
        ports.push(port);
        self.interfaces.send_replace(interfaces(&ports));
    }

    /// Takes the ports out of use that were found and are not among `found` any more.
    pub(crate) fn take_out_ports(&self, found: &[String]) {
        let mut ports = self.ports.lock();
        let gone = |port: &mut LanPort| port.found && !found.iter().any(|name| **name == *port.interface);
        let gone: Vec<_> = ports.extract_if(.., gone).collect();
        if !gone.is_empty() {
            self.leaving.lock().extend(gone);
            self.interfaces.send_replace(interfaces(&ports));
        }
    }

    /// Ports that are to be closed.
    pub(crate) fn leaving_ports(&self) -> Vec<LanPort> {
        self.leaving.lock().clone()
    }

    /// Notes that a port was closed.
    pub(crate) fn forget_port(&self, port: &LanPort) {
        self.leaving.lock().retain(|other| !Arc::ptr_eq(&other.link, &port.link));
    }

    /// This node.
    pub(crate) fn me(&self) -> NodeId {
        self.parts.identity.node_id()
    }

    /// Since when the peer's present connection has been in use.
    pub fn connected_since(&self, peer: &LanPeer) -> Option<Time> {
        peer.connection()?;
        self.talks.lock().get(&peer.node()).map(|talking| talking.since)
    }

    /// Addresses whose last dial failed, and why.
    pub fn problems(&self) -> BTreeMap<SocketAddr, String> {
        self.problems.lock().clone()
    }

    pub(crate) fn note_problems(&self, problems: BTreeMap<SocketAddr, String>) {
        *self.problems.lock() = problems;
    }

    /// QUIC's settings for dialling `node`, or an address of which it is not known who is there.
    pub(crate) fn client(&self, node: Option<NodeId>) -> Result<quinn::ClientConfig, TlsError> {
        let allowed = node.map_or(Allowed::AnyNode, Allowed::Only);
        let crypto = tls::client_config_for(&self.parts.identity, allowed)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(lan_transport());
        Ok(config)
    }

    /// Whether the node at the other end is this one. A different instance under our key is told.
    pub(crate) fn is_me(&self, node: NodeId, hello: Option<&Hello>, remote: SocketAddr) -> bool {
        if node != self.me() {
            return false;
        }
        if hello.is_some_and(|hello| hello.node_instance != self.parts.instance) {
            let now = clock::now();
            let mut told = self.twin_of_us.lock();
            if told.is_none_or(|told| now - told >= TWINS_WINDOW) {
                *told = Some(now);
                tracing::warn!(%remote, "another node uses the key of this one; give it a key of its own");
            }
        }
        true
    }

    /// Whether a connection that begins now may take the place of the peer's present one. Of two that
    /// were dialled from both ends at once both ends keep the one that the smaller id dialled.
    pub(crate) fn may_replace(&self, node: NodeId, instance: u64, by: DialledBy) -> bool {
        let talks = self.talks.lock();
        talks.get(&node).is_none_or(|present| self.yields(present, node, instance, by))
    }

    fn yields(&self, present: &Talking, node: NodeId, instance: u64, by: DialledBy) -> bool {
        let alive = present.talk.peer().connection().is_some_and(|c| c.connection.close_reason().is_none());
        let crossing = alive && present.instance == instance && clock::now() - present.since < CROSSING;
        !(crossing && present.smaller_dialled && !self.smaller_dialled(node, by))
    }

    fn smaller_dialled(&self, node: NodeId, by: DialledBy) -> bool {
        match by {
            DialledBy::Us => self.me() < node,
            DialledBy::Them => node < self.me(),
        }
    }

    /// Takes a connection into use; starts the peer's actor when it is new.
    ///
    /// # Errors
    /// [`JoinError::NotNeeded`], with the connection closed, when another is to be kept.
    pub(crate) fn arrived(&self, arrival: Arrival<'_>, stream: ControlStream) -> Result<(), JoinError> {
        let Arrival { node, admitted, hello, by, connection, port } = arrival;
        let mut talks = self.talks.lock();
        if talks.get(&node).is_some_and(|present| !self.yields(present, node, hello.node_instance, by)) {
            CloseCode::Replaced.close(&connection);
            return Err(JoinError::NotNeeded);
        }
        let name = self.free_name(node, &admitted.name);
        let (peer, present, replaced) =
            self.peers.connected((node, &name, admitted.roles), connection.clone(), port);
        if let Some(replaced) = replaced {
            CloseCode::Replaced.close(&replaced.connection);
        }
        let (remote, port, generation) = (present.remote(), present.port.name(), present.generation);
        let (peer_name, id) = (peer.name(), node.short());
        tracing::info!(peer = peer_name, node = %id, %remote, port, generation, ?by, "on the LAN");
        self.parts.access.connected(node, &connection);
        let since = clock::now();
        let smaller_dialled = self.smaller_dialled(node, by);
        let talking = talks.entry(node).or_insert_with(|| {
            let talk = LanTalk::new(Arc::clone(&self.peers), Arc::clone(&peer));
            let child = format!("peer-lan-{}", peer.name());
            self.parts.control.add(ChildSpec::driven::<LanTalker>(child, Arc::clone(&talk)));
            let (changes, instance) = (VecDeque::new(), hello.node_instance);
            Talking { talk, instance, since, smaller_dialled, changes, warned: None }
        });
        if talking.instance != hello.node_instance {
            talking.note_change(since, peer.name());
        }
        (talking.instance, talking.since, talking.smaller_dialled) =
            (hello.node_instance, since, smaller_dialled);
        talking.talk.begin(LanStream::new(present, stream));
        Ok(())
    }

    /// The name of a peer: its own, unless another node that was seen on the LAN had it before.
    fn free_name(&self, node: NodeId, name: &str) -> String {
        let taken = |name: &str| self.peers.all().iter().any(|p| p.node() != node && p.name() == name);
        if taken(name) { format!("{name}-{}", node.short()) } else { name.to_owned() }
    }

    /// Closes all connections: the node stops.
    pub(crate) fn close(&self) {
        for peer in self.peers.all() {
            if let Some(present) = peer.connection() {
                CloseCode::Done.close(&present.connection);
                self.peers.disconnected(&peer, present.generation);
            }
        }
    }
}

fn interfaces(ports: &[LanPort]) -> Vec<String> {
    ports.iter().map(|port| port.interface.to_string()).collect()
}

impl Talking {
    /// The node came as another instance: once is a restart, again and again are two nodes with one key.
    fn note_change(&mut self, now: Time, name: &str) {
        self.changes.push_back(now);
        while self.changes.front().is_some_and(|at| now - *at > TWINS_WINDOW) {
            self.changes.pop_front();
        }
        let due = self.warned.is_none_or(|warned| now - warned >= TWINS_WINDOW);
        if self.changes.len() > TWINS_CHANGES && due {
            self.warned = Some(now);
            tracing::warn!(peer = name, "two nodes on the LAN use one key; give each a key of its own");
        }
    }
}

impl fmt::Debug for LanPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LanPlane({:?})", self.peers)
    }
}
