//! The members on this LAN: who they are, the connection with each, and what each has announced.
//!
//! [`LanPeers`] is the state, shared by all actors and outliving them. A connection belongs to one
//! [`LanPeer`]; of two connections with one node the newer wins. Messages about leases are not this
//! module's business: they are queued for the actor that lends and borrows. [`LanHints`] are addresses
//! at which members may be.
//!
//! Who fills it: a [`port`] per LAN interface, those that are found [`follow`]ed, on which a [`listen`]er accepts members and which the
//! [`dial`]ler uses to reach them; a [`talk`] per peer; what we [`announce`]; and what these share, the [`plane`].

pub mod announce;
pub mod dial;
pub mod follow;
mod hints;
pub mod listen;
pub mod plane;
pub mod port;
pub mod talk;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mwb_proto::control::{Message, UplinkInfo};
use mwb_proto::mesh::Roles;
use parking_lot::Mutex;
use quinn::Connection;
use tokio::sync::watch;

pub use self::hints::{HINTS_MAX, HINTS_PER_TAG_MAX, LanHint, LanHints};
use crate::channel::BatchQueue;
use crate::identity::NodeId;
use crate::wan_link::Link;

/// Messages that may wait to be sent to one peer.
const OUTBOX_MAX: usize = 64;
/// Messages about leases that may wait to be handled, of one peer.
const LEASE_INBOX_MAX: usize = 64;

/// A live connection with a member on the LAN.
#[derive(Clone, Debug)]
pub struct LanConnection {
    /// The connection.
    pub connection: Connection,
    /// The LAN port that it uses.
    pub port: Arc<Link>,
    /// Grows with every connection with any peer.
    pub generation: u64,
}

impl LanConnection {
    /// The peer's address on the LAN.
    pub fn remote(&self) -> SocketAddr {
        crate::wan_link::canonical(self.connection.remote_address())
    }
}

/// One member on the LAN.
pub struct LanPeer {
    node: NodeId,
    name: String,
    state: Mutex<PeerState>,
    /// Messages to be sent over the present connection.
    pub outbox: BatchQueue<Message>,
    /// Kinds 32 to 36 that it has sent.
    pub lease_inbox: BatchQueue<Message>,
}

struct PeerState {
    roles: Roles,
    connection: Option<LanConnection>,
    uplinks: Arc<Vec<UplinkInfo>>,
}

impl LanPeer {
    /// Its node id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its name here, unique in the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it may do, as of its last hello.
    pub fn roles(&self) -> Roles {
        self.state.lock().roles
    }

    /// The present connection.
    pub fn connection(&self) -> Option<LanConnection> {
        self.state.lock().connection.clone()
    }

    /// The uplinks that it has announced; empty while it is not connected.
    pub fn uplinks(&self) -> Arc<Vec<UplinkInfo>> {
        Arc::clone(&self.state.lock().uplinks)
    }

    /// Queues a message for the present connection; false when there is none, or its queue is full.
    pub fn send(&self, message: Message) -> bool {
        self.connection().is_some() && self.outbox.try_push(message).is_ok()
    }
}

impl fmt::Debug for LanPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LanPeer({})", self.name)
    }
}

/// All members that have been seen on the LAN since the node began.
pub struct LanPeers {
    peers: Mutex<BTreeMap<NodeId, Arc<LanPeer>>>,
    generations: AtomicU64,
    /// Grows with every connection made or lost and with every announcement.
    changes: watch::Sender<u64>,
    /// Rings when a message about a lease was queued.
    lease_bell: Arc<tokio::sync::Notify>,
    /// What we have announced last.
    own_uplinks: Mutex<Arc<Vec<UplinkInfo>>>,
}

impl Default for LanPeers {
    fn default() -> Self {
        Self {
            peers: Mutex::default(),
            generations: AtomicU64::new(0),
            changes: watch::Sender::new(0),
            lease_bell: Arc::default(),
            own_uplinks: Mutex::default(),
        }
    }
}

impl LanPeers {
    /// All peers, connected or not.
    pub fn all(&self) -> Vec<Arc<LanPeer>> {
        self.peers.lock().values().cloned().collect()
    }

    /// The peer with this id.
    pub fn get(&self, node: NodeId) -> Option<Arc<LanPeer>> {
        self.peers.lock().get(&node).cloned()
    }

    /// Follows connections and announcements.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Our own uplinks as we have announced them last; empty before that.
    pub fn own_uplinks(&self) -> Arc<Vec<UplinkInfo>> {
        Arc::clone(&self.own_uplinks.lock())
    }

    /// Notes what we announce. Whoever follows [`changes`](Self::changes) is told of other changes than
    /// those of measurements.
    pub fn set_own_uplinks(&self, uplinks: Vec<UplinkInfo>) {
        let uplinks = Arc::new(uplinks);
        let before = std::mem::replace(&mut *self.own_uplinks.lock(), Arc::clone(&uplinks));
        if !before.iter().map(announce::settled).eq(uplinks.iter().map(announce::settled)) {
            self.changed();
        }
    }

    /// Rings when any peer's [`LanPeer::lease_inbox`] has something.
    pub fn lease_bell(&self) -> &tokio::sync::Notify {
        &self.lease_bell
    }

    /// Takes a connection into use with a node that was admitted; gives the peer, the connection and the
    /// connection that it replaces.
    pub fn connected(
        &self,
        (node, name, roles): (NodeId, &str, Roles),
        connection: Connection,
        port: Arc<Link>,
    ) -> (Arc<LanPeer>, LanConnection, Option<LanConnection>) {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let connection = LanConnection { connection, port, generation };
        let mut peers = self.peers.lock();
        let peer = peers.entry(node).or_insert_with(|| {
            Arc::new(LanPeer {
                node,
                name: name.to_owned(),
                state: Mutex::new(PeerState { roles, connection: None, uplinks: Arc::default() }),
                outbox: BatchQueue::new(OUTBOX_MAX),
                lease_inbox: BatchQueue::with_bell(LEASE_INBOX_MAX, Arc::clone(&self.lease_bell)),
            })
        });
        let peer = Arc::clone(peer);
        drop(peers);
        let mut state = peer.state.lock();
        state.roles = roles;
        let replaced = state.connection.replace(connection.clone());
        drop(state);
        self.changed();
        (peer, connection, replaced)
    }

    /// Notes that the connection of `generation` has ended; a newer one stays.
    pub fn disconnected(&self, peer: &LanPeer, generation: u64) {
        let mut state = peer.state.lock();
        if state.connection.as_ref().is_some_and(|present| present.generation == generation) {
            state.connection = None;
            state.uplinks = Arc::default();
            drop(state);
            // What was meant for the connection that has ended means nothing to the next.
            while peer.outbox.pop().is_some() {}
            while peer.lease_inbox.pop().is_some() {}
            self.changed();
        }
    }

    /// Takes a peer's announcement.
    pub fn announced(&self, peer: &LanPeer, uplinks: Vec<UplinkInfo>) {
        let mut state = peer.state.lock();
        if *state.uplinks != uplinks {
            state.uplinks = Arc::new(uplinks);
            drop(state);
            self.changed();
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }
}

impl fmt::Debug for LanPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}
