//! What a node is started from, and what it asks of the platform it runs on.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use mwb_proto::bond::{ReceiverConfig, SenderConfig};
use mwb_proto::control::{Gateway, UplinkKind};
use mwb_proto::health::HealthConfig;
use tokio::sync::watch;

use crate::identity::{Identity, NodeId};
use crate::membership::Membership;
use crate::session::InnerAddresses;
use crate::tun::TunSpec;

/// Highest uplink id: those above, to 63, are of paths over uplinks that others lend; the upper bits of a
/// path id number the exit's addresses.
pub const UPLINK_ID_MAX: u8 = 31;
/// Most addresses of one exit.
pub const EXIT_ADDRESSES_MAX: usize = 4;

/// Everything a node needs to know.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// The node's name, for people.
    pub name: String,
    /// Its key.
    pub identity: Arc<Identity>,
    /// Its uplinks. An exit alone needs none.
    pub uplinks: Vec<UplinkSpec>,
    /// On an edge, the uplinks that the host is found to have beside those, always complete; followed while the node
    /// runs. Not looked for when unset.
    pub found: Option<watch::Receiver<Vec<FoundUplink>>>,
    /// Numbers and names of uplinks that the configuration describes and the host may be found to have: nobody else gets
    /// them.
    pub reserved: Vec<(u8, String)>,
    /// Peers known from the configuration. Exits among them are dialled over every uplink.
    pub peers: Vec<PeerSpec>,
    /// Present when this node is an exit.
    pub exit: Option<ExitSpec>,
    /// The mesh, if the node belongs to one: its members are let in, its exits are used unless `peers`
    /// names one.
    pub membership: Option<Arc<Membership>>,
    /// Present when this node meets others on a LAN.
    pub lan: Option<LanSpec>,
    /// The TUN device.
    pub tun: TunSpec,
    /// Settings of the bond.
    pub bond: BondSpec,
    /// Where run-time files may be put.
    pub runtime_dir: PathBuf,
    /// File for trace lines, or an existing directory to put one in; none when unset.
    pub trace: Option<PathBuf>,
}

/// One uplink.
#[derive(Clone, Debug)]
pub struct UplinkSpec {
    /// Part of its paths' ids; 0 to [`UPLINK_ID_MAX`], unique in the node.
    pub id: u8,
    /// Name, for people; unique in the node.
    pub name: String,
    /// Device that its datagrams must use.
    pub interface: Option<String>,
    /// Address to send from; any when unset.
    pub address: Option<IpAddr>,
    /// Ceiling of its rate, bit/s.
    pub rate_max: Option<u64>,
    /// Weight for the weighted modes.
    pub weight: u32,
    /// Firewall mark of its datagrams.
    pub fwmark: Option<u32>,
    /// What it is, as others are told.
    pub kind: UplinkKind,
    /// What it is, in the word that `status` shows.
    pub line: &'static str,
    /// Whether its volume is paid for.
    pub metered: bool,
    /// Whether others on the LAN may lease it.
    pub lend: bool,
    /// What its paths are judged by.
    pub health: HealthConfig,
}

/// An uplink that the host was found to have.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundUplink {
    /// Device that its datagrams must use; unique in the list.
    pub interface: String,
    /// What it is attached to: device, addresses and routers, in words. When that changes, it is another network.
    pub attached: String,
    /// Its number and name, if the configuration describes it; one of [`NodeSpec::reserved`].
    pub own: Option<(u8, String)>,
    /// Ceiling of the rate of each path over it, bit/s.
    pub rate_max: Option<u64>,
    /// Weight for the weighted modes.
    pub weight: u32,
    /// Firewall mark of its datagrams.
    pub fwmark: Option<u32>,
    /// What it is, as others are told.
    pub kind: UplinkKind,
    /// What it is, in the word that `status` shows.
    pub line: &'static str,
    /// Whether its volume is paid for.
    pub metered: bool,
    /// Whether others on the LAN may lease it.
    pub lend: bool,
    /// What its paths are judged by.
    pub health: HealthConfig,
}

/// How this node meets others on a LAN.
#[derive(Clone, Debug)]
pub struct LanSpec {
    /// Devices of the LAN.
    pub interfaces: Vec<String>,
    /// Devices that are found to lead to a LAN, beside those; always complete, and followed while the node runs. Not
    /// looked for when unset.
    pub found: Option<watch::Receiver<Vec<String>>>,
    /// UDP port on each of them.
    pub port: u16,
    /// Firewall mark of what is sent there.
    pub fwmark: Option<u32>,
    /// Whether this node lends uplinks at all; [`UplinkSpec::lend`] tells which.
    pub lend: bool,
    /// Bytes that each peer may send and receive over our uplinks in a day; no bound when unset.
    pub lend_budget: Option<u64>,
    /// Whether members are looked for by mDNS.
    pub mdns: bool,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerSpec {
    /// Name, for people; unique in the node.
    pub name: String,
    /// Its id.
    pub node_id: NodeId,
    /// Where it can be reached.
    pub addresses: Vec<SocketAddr>,
    /// Where it can be reached on the LAN.
    pub lan: Vec<SocketAddr>,
    /// Whether it is an exit that we use.
    pub is_exit: bool,
}

/// What an exit is told.
#[derive(Clone, Debug)]
pub struct ExitSpec {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Network of inner IPv4 addresses and the length of its prefix; the first host is the exit.
    pub pool_v4: (Ipv4Addr, u8),
    /// The same for IPv6; edges get none when unset, or while this host has no IPv6 internet itself.
    pub pool_v6: Option<(Ipv6Addr, u8)>,
    /// Where it writes down who has which inner address; without it, after a restart an edge may get another.
    pub addresses_file: Option<PathBuf>,
    /// The nodes that may use it beside the mesh's edges.
    pub allowed: Vec<NodeId>,
}

/// Settings of the bond.
#[derive(Clone, Debug, Default)]
pub struct BondSpec {
    /// Of the sending half.
    pub sender: SenderConfig,
    /// Of the receiving half.
    pub receiver: ReceiverConfig,
}

/// An exit's own inner addresses, with the lengths of its pools' prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateways {
    /// IPv4.
    pub v4: (Ipv4Addr, u8),
    /// IPv6; none where the exit carries no IPv6.
    pub v6: Option<(Ipv6Addr, u8)>,
}

/// Whether an exit's host lets through what comes from edges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// Not tried, or not yet.
    #[default]
    Untested,
    /// It does.
    Works,
    /// It does not: who drops it, and what to do, in words.
    Blocked(String),
    /// It could not be tried, and why.
    Unknown(String),
}

/// What only the platform can do. Calls may be repeated with the same or new arguments and must end
/// in the state of the last call.
pub trait Platform: Send + Sync + 'static {
    /// Edge: gives the TUN device its addresses, and makes routes and name resolution use it.
    fn session_up(&self, tun: &str, inner: &InnerAddresses) -> BoxFuture<'_, Result<(), String>>;
    /// Edge: takes all that back.
    fn session_down(&self, tun: &str) -> BoxFuture<'_, ()>;
    /// Exit: gives the TUN device the gateways' addresses, and forwards and masquerades for the pools.
    fn exit_up(&self, tun: &str, gateways: &Gateways) -> BoxFuture<'_, Result<(), String>>;
    /// Waits until something that [`session_up`](Self::session_up) or [`exit_up`](Self::exit_up) made is gone although
    /// nobody took it back, and says what: another program's restart may delete what it does not know. A platform that cannot
    /// tell waits for ever.
    fn disturbed<'a>(&'a self, tun: &'a str) -> BoxFuture<'a, String> {
        let _ = tun;
        Box::pin(std::future::pending())
    }
    /// Exit: whether this host has a way to the IPv6 internet. Must not block.
    fn reaches_ipv6(&self) -> bool;
    /// Exit: tries whether the host lets through what comes out of `tun`; `inject` gives a packet to its kernel as if it came
    /// from an edge, and says whether it could. No packet may leave the host.
    fn test_forwarding<'a>(
        &'a self,
        tun: &'a str,
        gateways: Gateways,
        inject: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Forwarding> {
        let _ = (tun, gateways, inject);
        Box::pin(async { Forwarding::Untested })
    }
    /// Exit: the resolvers that edges are told to use. Must not block. None where the platform does not know any.
    fn resolvers(&self) -> Vec<IpAddr> {
        Vec::new()
    }
    /// The router behind `interface`, if it has one whose hardware address can be found. Two hosts that
    /// name the same one share an uplink. A platform that cannot tell has none.
    fn gateway(&self, interface: &str) -> BoxFuture<'_, Option<Gateway>> {
        let _ = interface;
        Box::pin(async { None })
    }
}

/// Why a node cannot start with this specification.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An uplink id is out of range or used twice.
    #[error("uplink {name}: id {id} is above {UPLINK_ID_MAX} or used twice")]
    UplinkId {
        /// The uplink.
        name: String,
        /// Its id.
        id: u8,
    },
    /// A name is used twice, is empty or holds a slash.
    #[error("the name {0:?} is empty, used twice or holds a slash")]
    Name(String),
    /// An exit has no or too many addresses.
    #[error("peer {0} must have 1 to {EXIT_ADDRESSES_MAX} addresses to be used as an exit")]
    ExitAddresses(String),
    /// There is nothing to do: neither an exit to use nor to be.
    #[error("nothing to do: no exit to use over an uplink, and not an exit itself")]
    Idle,
    /// The pool has no room for a gateway and an edge.
    #[error("the pool {0}/{1} is not a network with at least two hosts")]
    Pool(Ipv4Addr, u8),
    /// The IPv6 pool has a prefix that cannot be used.
    #[error("the pool {0}/{1} must have a prefix of 32 to 120 bits")]
    PoolV6(Ipv6Addr, u8),
    /// The TUN device cannot be made.
    #[error("cannot create the TUN device {name}: {source}")]
    Tun {
        /// Its name.
        name: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A listen address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The port of a LAN interface cannot be bound.
    #[error("cannot use UDP port {port} on {interface}: {source}")]
    LanPort {
        /// The interface.
        interface: String,
        /// The port.
        port: u16,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The key cannot be used for TLS.
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    /// The supervision tree did not start.
    #[error("the supervision tree did not start: {0}")]
    Tree(#[from] ractor::SpawnErr),
}

impl NodeSpec {
    /// The peers that this node uses as exits.
    pub fn exits(&self) -> impl Iterator<Item = &PeerSpec> {
        self.peers.iter().filter(|peer| peer.is_exit)
    }

    /// Whether this node is an edge: it has uplinks, its own, found ones or those of others on the LAN, and exits to
    /// use over them, or a mesh that may have one.
    pub fn is_edge(&self) -> bool {
        let borrows = self.lan.is_some() && self.exit.is_none();
        let has_ways = !self.uplinks.is_empty() || self.found.is_some() || borrows;
        has_ways && (self.exits().next().is_some() || self.membership.is_some())
    }

    /// Checks what the types do not guarantee.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn validate(&self) -> Result<(), StartError> {
        let mut ids = BTreeSet::new();
        let mut names = BTreeSet::new();
        let named = self.uplinks.iter().map(|uplink| (uplink.id, &uplink.name));
        for (id, name) in named.chain(self.reserved.iter().map(|(id, name)| (*id, name))) {
            if id > UPLINK_ID_MAX || !ids.insert(id) {
                return Err(StartError::UplinkId { name: name.clone(), id });
            }
            check_name(name, &mut names)?;
        }
        for interface in self.lan.iter().flat_map(|lan| &lan.interfaces) {
            check_name(&lan_link_name(interface), &mut names)?;
        }
        let mut names = BTreeSet::new();
        for peer in &self.peers {
            check_name(&peer.name, &mut names)?;
            let count = peer.addresses.len();
            if peer.is_exit && !(1..=EXIT_ADDRESSES_MAX).contains(&count) {
                return Err(StartError::ExitAddresses(peer.name.clone()));
            }
        }
        if self.exit.is_none() && !self.is_edge() {
            return Err(StartError::Idle);
        }
        Ok(())
    }
}

/// Name of the link on a LAN's device.
pub(crate) fn lan_link_name(interface: &str) -> String {
    format!("lan-{interface}")
}

fn check_name(name: &str, seen: &mut BTreeSet<String>) -> Result<(), StartError> {
    if name.is_empty() || name.contains('/') || !seen.insert(name.to_owned()) {
        return Err(StartError::Name(name.to_owned()));
    }
    Ok(())
}
