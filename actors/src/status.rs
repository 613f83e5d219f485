//! What a node says about itself.

use std::net::SocketAddr;

use mwb_proto::bond::{ReceiverSnapshot, SenderSnapshot};
use mwb_proto::health::HealthState;
use serde::Serialize;

use crate::channel::QueueStats;
use crate::clock;
use crate::identity::NodeId;
use crate::registry::ActorStatus;
use crate::session::{InnerAddresses, Role, Session};
use crate::tun::TunStatus;
use crate::wan_link::LinkStatus;

/// The whole node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// The node's name.
    pub name: String,
    /// Its id.
    pub node_id: NodeId,
    /// The supervision tree, in the order of the names.
    pub actors: Vec<ActorStatus>,
    /// Uplinks and listen addresses.
    pub links: Vec<LinkStatus>,
    /// Peers.
    pub peers: Vec<PeerStatus>,
    /// Sessions.
    pub sessions: Vec<SessionStatus>,
    /// The TUN device.
    pub tun: TunStatus,
}

/// A peer, an exit for an edge or an edge for an exit.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its id.
    pub node_id: NodeId,
    /// Paths that have joined.
    pub paths_joined: usize,
    /// Ways to an exit, in the order of uplinks and addresses; empty on an exit.
    pub slots: Vec<SlotStatus>,
}

/// One way to an exit.
#[derive(Clone, Debug, Serialize)]
pub struct SlotStatus {
    /// Path id.
    pub path: u8,
    /// Uplink.
    pub link: String,
    /// Address of the exit.
    pub address: SocketAddr,
    /// Why the last dial failed; `None` when it did not.
    pub problem: Option<String>,
}

/// A session.
#[derive(Clone, Debug, Serialize)]
pub struct SessionStatus {
    /// Its name.
    pub name: String,
    /// Which end this node is.
    pub role: Role,
    /// The other end.
    pub peer: NodeId,
    /// Session id, hexadecimal.
    pub id: String,
    /// Incarnation of the sender.
    pub incarnation: u8,
    /// Inner addresses.
    pub inner: Option<InnerAddresses>,
    /// Paths by id.
    pub paths: Vec<PathStatus>,
    /// The sending machine.
    pub sender: SenderSnapshot,
    /// The receiving machine.
    pub receiver: ReceiverSnapshot,
    /// Inner packets dropped because an address was not the session's.
    pub foreign: u64,
    /// Transmit batches dropped because a link's queue was full.
    pub link_full: u64,
    /// Queues between the drivers.
    pub queues: SessionQueues,
}

/// Queues of a session.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SessionQueues {
    /// TUN reader to router.
    pub from_tun: QueueStats,
    /// Links to router.
    pub feedback: QueueStats,
    /// Resequencer to router.
    pub from_receiver: QueueStats,
    /// Links to resequencer.
    pub received: QueueStats,
}

/// A path as the shells see it; the machines' view is in the session's snapshots.
#[derive(Clone, Debug, Serialize)]
pub struct PathStatus {
    /// Path id.
    pub path: u8,
    /// Link.
    pub link: String,
    /// Where the peer is.
    pub remote: SocketAddr,
    /// Health.
    pub health: HealthState,
    /// Seconds since anything authentic was heard.
    pub silent_seconds: f64,
    /// Authentic datagrams received.
    pub received: u64,
}

impl SessionStatus {
    pub(crate) fn of(session: &Session) -> Self {
        let now = clock::now();
        let paths = session.paths().into_values().map(|path| PathStatus {
            path: path.id().0,
            link: path.link().name().to_owned(),
            remote: path.remote(),
            health: path.health(),
            silent_seconds: (now - path.last_heard()).as_secs_f64(),
            received: path.received(),
        });
        Self {
            name: session.name().to_owned(),
            role: session.role(),
            peer: session.peer(),
            id: format!("{:016x}", session.id()),
            incarnation: session.incarnation(),
            inner: session.inner().map(|inner| InnerAddresses::clone(&inner)),
            paths: paths.collect(),
            sender: session.sender.borrow().clone(),
            receiver: session.receiver.borrow().clone(),
            foreign: session.foreign.load(std::sync::atomic::Ordering::Relaxed),
            link_full: session.link_full.load(std::sync::atomic::Ordering::Relaxed),
            queues: SessionQueues {
                from_tun: session.from_tun.stats(),
                feedback: session.feedback.stats(),
                from_receiver: session.from_receiver.stats(),
                received: session.received.stats(),
            },
        }
    }
}
