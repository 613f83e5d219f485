//! What a node says about itself.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mwb_proto::bond::{ReceiverSnapshot, SenderSnapshot};
use mwb_proto::control::{Gateway, UplinkInfo};
use mwb_proto::health::HealthState;
use mwb_proto::mesh::MeshId;
use serde::Serialize;

use crate::channel::QueueStats;
use crate::clock;
use crate::control::dial::ExitPeer;
use crate::host::HostOffer;
use crate::identity::NodeId;
use crate::lan::plane::LanPlane;
use crate::lend::LeasesStatus;
use crate::membership::Membership;
use crate::registry::ActorStatus;
use crate::session::{InnerAddresses, Role, Session};
use crate::spec::Forwarding;
use crate::tun::TunStatus;
use crate::uplinks::UplinkStatus;
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
    /// Our own uplinks; each has a link of the same name.
    pub uplinks: Vec<UplinkStatus>,
    /// Uplinks, listen addresses and LAN ports.
    pub links: Vec<LinkStatus>,
    /// Peers.
    pub peers: Vec<PeerStatus>,
    /// Sessions.
    pub sessions: Vec<SessionStatus>,
    /// The mesh, when this node belongs, or belonged, to one.
    pub membership: Option<MembershipStatus>,
    /// The LAN, when this node takes part in one.
    pub lan: Option<LanStatus>,
    /// Uplinks lent and borrowed there.
    pub leases: Option<LeasesStatus>,
    /// What this node is as an exit, if it is one.
    pub exit: Option<ExitStatus>,
    /// The TUN device.
    pub tun: TunStatus,
}

/// What this node is in its mesh.
#[derive(Clone, Debug, Serialize)]
pub struct MembershipStatus {
    /// The mesh.
    pub mesh: MeshId,
    /// Its name there; `None` when it was sent away.
    pub name: Option<String>,
    /// Whether it was sent away.
    pub revoked: bool,
}

impl MembershipStatus {
    pub(crate) fn of(membership: &Membership) -> Self {
        let own = membership.own();
        Self { mesh: membership.mesh(), revoked: own.is_none(), name: own.map(|own| own.name) }
    }
}

/// An exit's host.
#[derive(Clone, Debug, Serialize)]
pub struct ExitStatus {
    /// Whether edges get IPv6.
    pub ipv6: bool,
    /// The resolvers that edges are told to ask.
    pub resolvers: Vec<IpAddr>,
    /// `untested`, `works`, `blocked` or `unknown`: whether the host lets through what comes from edges.
    pub forwarding: &'static str,
    /// Who drops it and what to do, or why it is not known.
    pub problem: Option<String>,
}

impl ExitStatus {
    pub(crate) fn of(offer: &HostOffer) -> Self {
        let (forwarding, problem) = match offer.forwarding() {
            Forwarding::Untested => ("untested", None),
            Forwarding::Works => ("works", None),
            Forwarding::Blocked(problem) => ("blocked", Some(problem)),
            Forwarding::Unknown(problem) => ("unknown", Some(problem)),
        };
        Self { ipv6: offer.ipv6(), resolvers: offer.resolvers(), forwarding, problem }
    }
}

/// The LAN as this node sees it.
#[derive(Clone, Debug, Serialize)]
pub struct LanStatus {
    /// Our ports; their counters are among the links.
    pub ports: Vec<LanPortStatus>,
    /// Our own uplinks as we have announced them.
    pub uplinks: Vec<LanUplinkStatus>,
    /// All members that have been seen since the node began.
    pub peers: Vec<LanPeerStatus>,
    /// Addresses at which nobody could be talked to, and why.
    pub problems: BTreeMap<SocketAddr, String>,
}

/// A LAN port.
#[derive(Clone, Debug, Serialize)]
pub struct LanPortStatus {
    /// The interface.
    pub interface: String,
    /// Name of its link.
    pub link: String,
    /// Address of its socket; `None` while there is none.
    pub local: Option<SocketAddr>,
}

/// A member on the LAN.
#[derive(Clone, Debug, Serialize)]
pub struct LanPeerStatus {
    /// Its name here.
    pub name: String,
    /// Its id.
    pub node_id: NodeId,
    /// What it may do, separated by commas.
    pub roles: String,
    /// Whether there is a connection.
    pub connected: bool,
    /// Its address on the LAN, while connected.
    pub address: Option<SocketAddr>,
    /// The link that the connection uses.
    pub link: Option<String>,
    /// Seconds since it connected.
    pub connected_seconds: Option<f64>,
    /// Round-trip time of the connection.
    pub rtt_ms: Option<f64>,
    /// The uplinks that it has announced.
    pub uplinks: Vec<LanUplinkStatus>,
    /// Messages about leases dropped because nobody took them in time.
    pub lease_messages_dropped: u64,
}

/// An uplink as its owner has announced it.
#[derive(Clone, Debug, Serialize)]
pub struct LanUplinkStatus {
    /// The owner's number for it.
    pub id: u8,
    /// Its name there.
    pub name: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it carries traffic.
    pub up: bool,
    /// Whether it may be leased.
    pub lend: bool,
    /// Whether its volume is paid for.
    pub metered: bool,
    /// Measured rate towards the internet, bit/s; 0 when not known.
    pub rate_up: u64,
    /// Measured rate from the internet, bit/s; 0 when not known.
    pub rate_down: u64,
    /// Round-trip time to the exit; 0 when not known.
    pub rtt_ms: f64,
    /// Share of datagrams lost, 0 to 1.
    pub loss: f64,
    /// Address and hardware address of the router behind it.
    pub gateway: Option<String>,
}

impl LanUplinkStatus {
    fn of(uplink: &UplinkInfo) -> Self {
        let gateway = uplink.gateway.map(|Gateway { address, mac: [a, b, c, d, e, f] }| {
            format!("{address} ({a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x})")
        });
        Self {
            id: uplink.id,
            name: uplink.name.clone(),
            kind: format!("{:?}", uplink.kind).to_lowercase(),
            up: uplink.up,
            lend: uplink.lend,
            metered: uplink.metered,
            rate_up: uplink.rate_up,
            rate_down: uplink.rate_down,
            rtt_ms: f64::from(uplink.rtt_us) / 1e3,
            loss: f64::from(uplink.loss_ppm) / 1e6,
            gateway,
        }
    }
}

impl LanStatus {
    pub(crate) fn of(lan: &LanPlane) -> Self {
        let ports = lan.ports().into_iter().map(|port| LanPortStatus {
            interface: port.interface.to_string(),
            link: port.link.name().to_owned(),
            local: port.link.socket().map(|socket| socket.local_addr()),
        });
        let now = clock::now();
        let peers = lan.peers().all().into_iter().map(|peer| {
            let connection = peer.connection();
            LanPeerStatus {
                name: peer.name().to_owned(),
                node_id: peer.node(),
                roles: peer.roles().to_string(),
                connected: connection.is_some(),
                address: connection.as_ref().map(|present| present.remote()),
                link: connection.as_ref().map(|present| present.port.name().to_owned()),
                connected_seconds: lan.connected_since(&peer).map(|since| (now - since).as_secs_f64()),
                rtt_ms: connection.as_ref().map(|present| present.connection.rtt().as_secs_f64() * 1e3),
                uplinks: peer.uplinks().iter().map(LanUplinkStatus::of).collect(),
                lease_messages_dropped: peer.lease_inbox.stats().dropped_full,
            }
        });
        let uplinks = lan.peers().own_uplinks().iter().map(LanUplinkStatus::of).collect();
        Self { ports: ports.collect(), uplinks, peers: peers.collect(), problems: lan.problems() }
    }
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

impl PeerStatus {
    /// Of an exit, as an edge sees it.
    pub(crate) fn of(exit: &ExitPeer) -> Self {
        let slots = exit.slots.all().into_iter().map(|slot| SlotStatus {
            path: slot.path.0,
            link: slot.name.clone(),
            address: slot.address,
            problem: slot.problem.lock().clone(),
        });
        Self {
            name: exit.name.clone(),
            node_id: exit.session.peer(),
            paths_joined: exit.session.paths().len(),
            slots: slots.collect(),
        }
    }
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
    /// Seconds since this node made it.
    pub age_seconds: f64,
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
    /// Router and resequencer to the codec.
    pub fec_jobs: QueueStats,
    /// Codec to router.
    pub encoded: QueueStats,
}

/// A path as the shells see it; the machines' view is in the session's snapshots.
#[derive(Clone, Debug, Serialize)]
pub struct PathStatus {
    /// Path id.
    pub path: u8,
    /// Link.
    pub link: String,
    /// Name of the edge's uplink, `lender/uplink` for a borrowed one.
    pub name: String,
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
            name: path.name().to_owned(),
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
            age_seconds: (now - session.begun()).as_secs_f64(),
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
                fec_jobs: session.fec_jobs.stats(),
                encoded: session.encoded.stats(),
                received: session.received.stats(),
            },
        }
    }
}
