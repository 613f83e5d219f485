//! LAN ports: the link on each LAN interface, and which of them an address can be reached by.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mwb_proto::buf::BufPool;
use mwb_proto::health::HealthConfig;

use crate::control::lan_transport;
use crate::identity::Identity;
use crate::session::path::SessionTable;
use crate::spec::{StartError, lan_link_name};
use crate::tls::{self, Allowed, TlsError};
use crate::wan_link::{Link, LinkSpec, SocketSpec, unspecified};

/// Weight of the paths over a LAN port where modes weigh: as an uplink's default.
const WEIGHT: u32 = 10;

/// One LAN interface of this node.
#[derive(Clone, Debug)]
pub struct LanPort {
    /// The interface.
    pub interface: Arc<str>,
    /// Its socket and QUIC endpoint, which accepts connections and dials.
    pub link: Arc<Link>,
    /// Whether it was found, and not named by the configuration.
    pub(crate) found: bool,
}

/// What ports are made from.
#[derive(Clone)]
pub struct PortParts {
    /// UDP port on each interface.
    pub port: u16,
    /// Firewall mark of what is sent there.
    pub fwmark: Option<u32>,
    /// Our key.
    pub identity: Arc<Identity>,
    /// Receiver indexes of all paths.
    pub table: Arc<SessionTable>,
    /// Packet buffers.
    pub pool: BufPool,
}

impl LanPort {
    /// The ports of all interfaces, as far as these exist already open: a taken port is a mistake to be
    /// told at once, a missing interface is waited for.
    ///
    /// # Errors
    /// When a port is taken, or our key cannot be used.
    pub(crate) fn open_all(interfaces: &[String], parts: &PortParts) -> Result<Vec<Self>, StartError> {
        let mut ports = Vec::new();
        for interface in interfaces {
            let port = Self::new(interface, parts, false)?;
            match port.link.open() {
                Err(source) if source.kind() == io::ErrorKind::AddrInUse => {
                    return Err(StartError::LanPort {
                        interface: interface.clone(),
                        port: parts.port,
                        source,
                    });
                }
                // The link's own actor says why, and goes on trying.
                Ok(()) | Err(_) => {}
            }
            ports.push(port);
        }
        Ok(ports)
    }

    /// A port whose socket is not open yet.
    ///
    /// # Errors
    /// When our key cannot be used.
    pub(crate) fn new(interface: &str, parts: &PortParts, found: bool) -> Result<Self, TlsError> {
        let bind = SocketAddr::new(unspecified(has_ipv6()), parts.port);
        let tls = tls::server_config(&parts.identity, Allowed::AnyNode)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(lan_transport());
        let socket = SocketSpec { bind, device: Some(interface.to_owned()), mark: parts.fwmark };
        let (name, health) = (lan_link_name(interface), HealthConfig::default());
        let link = LinkSpec { name, socket, rate_max: None, weight: WEIGHT, health };
        let (table, pool) = (Arc::clone(&parts.table), parts.pool.clone());
        let link = Link::new(link, Arc::clone(&parts.identity), Some(server), table, pool);
        Ok(Self { interface: interface.into(), link, found })
    }
}

/// Whether sockets of both families can be had.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind(SocketAddr::new(unspecified(true), 0)).is_ok()
}

/// An address of a LAN interface, with its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) interface: String,
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let shared = |ours: u128, theirs: u128, width: u32| {
            let rest = width.saturating_sub(u32::from(self.prefix));
            (ours ^ theirs).checked_shr(rest).unwrap_or(0) == 0
        };
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                shared(u128::from(ours.to_bits()), u128::from(theirs.to_bits()), 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => shared(ours.to_bits(), theirs.to_bits(), 128),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// The addresses of the LAN interfaces at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks(pub(crate) Vec<Network>);

impl Networks {
    /// Asks the system; a short blocking call.
    pub(crate) fn read() -> io::Result<Self> {
        let networks = if_addrs::get_if_addrs()?.into_iter().map(|found| match found.addr {
            if_addrs::IfAddr::V4(v4) => {
                Network { interface: found.name, address: v4.ip.into(), prefix: v4.prefixlen }
            }
            if_addrs::IfAddr::V6(v6) => {
                Network { interface: found.name, address: v6.ip.into(), prefix: v6.prefixlen }
            }
        });
        Ok(Self(networks.collect()))
    }

    /// Whether `address` is in a network of `interface` and not this host's own: only such an address is
    /// dialled. Link-local IPv6 is left out, since links forget the scope of an address.
    pub(crate) fn reaches(&self, interface: &str, address: IpAddr) -> bool {
        let is_host = match address {
            IpAddr::V4(v4) => !v4.is_broadcast() && !v4.is_loopback(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
        };
        is_host
            && !address.is_multicast()
            && !address.is_unspecified()
            && !self.0.iter().any(|network| network.address == address)
            && self.0.iter().any(|network| network.interface == interface && network.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_neighbours_on_the_interface_are_reached() {
        let network = |interface: &str, address: &str, prefix| Network {
            interface: interface.to_owned(),
            address: ip(address),
            prefix,
        };
        let networks = Networks(vec![
            network("lan0", "192.168.50.11", 24),
            network("lan0", "fd00::11", 64),
            network("lan0", "fe80::11", 64),
            network("wan0", "10.0.0.2", 8),
            network("ppp0", "100.64.0.1", 32),
        ]);
        for near in ["192.168.50.12", "192.168.50.254", "fd00::1234"] {
            assert!(networks.reaches("lan0", ip(near)), "{near}");
        }
        let own = ["192.168.50.11", "fd00::11"];
        let far = ["192.168.51.12", "10.0.0.3", "203.0.113.1", "fd00:0:0:1::1", "fe80::12"];
        let none = ["0.0.0.0", "255.255.255.255", "224.0.0.251", "ff02::1", "::", "127.0.0.1", "100.64.0.1"];
        for other in own.into_iter().chain(far).chain(none) {
            assert!(!networks.reaches("lan0", ip(other)), "{other}");
        }
        assert!(networks.reaches("wan0", ip("10.255.255.1")));
        assert!(!networks.reaches("ppp0", ip("100.64.0.2")));
        assert!(!networks.reaches("eth9", ip("192.168.50.12")));
    }

    #[test]
    fn the_system_can_be_asked() {
        let networks = Networks::read().expect("addresses");
        assert!(networks.0.iter().all(|network| network.prefix <= 128), "{networks:?}");
    }
}
