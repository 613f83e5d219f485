//! Which interfaces are uplinks, and what kind of line each is; which lead to a LAN. No I/O: what was read goes in.
//!
//! An interface is an uplink when all of this holds:
//! - It is up. Whether it has a carrier is not asked: Wi-Fi loses it for a moment at every change of cell, and a path's
//!   own health knows better.
//! - It has a default route, in whichever table and with whichever metric (policy routing puts that of a second uplink into
//!   a table of its own), and an address of the same family.
//! - It stands alone: a port of a bridge or bond has its traffic taken over by that.
//! - By its kind (`IFLA_INFO_KIND`) it is hardware, or something that a host has instead of it, see
//!   [`STANDS_FOR_HARDWARE`]. What is not on that list is left alone: tunnels and VPNs would carry the bond inside what it
//!   is to replace, and our own interface is one of them. A kind that is not known is left alone too.
//! - A bridge has a port that is hardware. Those of Docker and libvirt have none, and no default route either.
//! - The configuration neither names it nor has it ignored.
//!
//! A pair (`veth`) that has a default route is an uplink: so a container reaches the internet. Its other end, on the host, has
//! no default route, and mostly stands in a bridge.
//!
//! An interface leads to a LAN when it is up, stands alone and is hardware or the like, as above, is a cable or Wi-Fi and not
//! metered, and has a private address. It may be an uplink as well: a host with one interface has both there.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::Ipv4Net;

use super::sysfs::Hardware;
use crate::config::LinkType;

/// Kinds of interfaces made by software that a host has as its way to the internet.
const STANDS_FOR_HARDWARE: [&str; 14] = [
    "vlan",
    "bond",
    "team",
    "macvlan",
    "ipvlan",
    "macsec",
    "veth",
    "ppp",
    "wwan",
    "rmnet",
    "virt_wifi",
    "ipoib",
    "dsa",
    "hsr",
];
/// Drivers of a telephone at the other end of a USB cable; `cdc_ether` and `cdc_ncm` also of LTE sticks that are
/// routers.
const TETHERING_DRIVERS: [&str; 5] = ["rndis_host", "ipheth", "cdc_ether", "cdc_ncm", "cdc_eem"];
/// Networks that telephones hand out, of which nobody else makes use by default: Android over USB, Wi-Fi, Bluetooth
/// (`TetherController`, until version 10), Wi-Fi Direct; iOS.
const TETHERING_NETWORKS: [&str; 5] =
    ["192.168.42.0/24", "192.168.43.0/24", "192.168.44.0/24", "192.168.49.0/24", "172.20.10.0/28"];
/// Largest packet over PPPoE (RFC 2516, section 7): such a line is no modem's.
const PPPOE_MTU: u32 = 1492;

/// What the configuration says of finding uplinks and LANs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// Whether uplinks are.
    pub(crate) uplinks: bool,
    /// Whether LANs are.
    pub(crate) lans: bool,
    /// Names of interfaces to leave alone, with `*` and `?` as in a shell.
    pub(crate) ignore: Vec<String>,
    /// Interfaces that the configuration names as uplinks.
    pub(crate) named: BTreeSet<String>,
    /// Addresses that the configuration names: their interfaces are not found.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Whether interfaces that lead to the same router as a better one are of use: the configuration may want both.
    pub(crate) doubles: bool,
}

/// An interface that is an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Its name.
    pub(crate) interface: String,
    /// What kind of line it seems to be.
    pub(crate) line: LinkType,
    /// Whether its volume is paid for, probably.
    pub(crate) metered: bool,
    /// The router of its best default route; none where the link has only one other end.
    pub(crate) gateway: Option<IpAddr>,
    /// What it is attached to, for people and to be compared.
    pub(crate) attached: String,
}

/// What of a link matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// The host itself.
    Loopback,
    /// The point-to-point protocol.
    Ppp,
    /// Anything else.
    Other,
}

/// One interface.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Its kind when software made it.
    pub(super) kind: Option<String>,
    pub(super) layer: Layer,
    /// The bridge or bond that it is a port of.
    pub(super) controller: Option<u32>,
    pub(super) is_up: bool,
    pub(super) has_carrier: bool,
    pub(super) mtu: u32,
    pub(super) hardware: Hardware,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

/// A default route over an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct DefaultRoute {
    pub(super) index: u32,
    pub(super) is_v4: bool,
    pub(super) gateway: Option<IpAddr>,
    pub(super) metric: u32,
}

/// All that was read.
#[derive(Clone, Debug, Default)]
pub(super) struct HostState {
    pub(super) interfaces: Vec<Interface>,
    pub(super) networks: Vec<Network>,
    pub(super) defaults: Vec<DefaultRoute>,
}

/// The uplinks, those with a carrier first, then by the metrics of their routes, IPv4 first.
pub(super) fn uplinks(state: &HostState, wanted: &Wanted) -> Vec<Candidate> {
    if !wanted.uplinks {
        return Vec::new();
    }
    let found = state.interfaces.iter().filter_map(|interface| {
        let (route, candidate) = judge(interface, state, wanted).ok()?;
        let rank = (!interface.has_carrier, !route.is_v4, route.metric, interface.name.clone());
        Some((rank, candidate))
    });
    let mut found: Vec<_> = found.collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Why an interface is not an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoUplink {
    /// It is the host itself.
    Loopback,
    /// It is down.
    Down,
    /// It is a port of a bridge or bond.
    Port,
    /// The configuration has it ignored.
    Ignored,
    /// It is made by software and stands for no hardware: a tunnel, a VPN, a bridge of containers. Its kind.
    Software(String),
    /// The configuration names it.
    Named,
    /// No default route leads over it.
    NoRoute,
    /// It has a default route, but no address of the same family.
    NoAddress,
}

impl fmt::Display for NoUplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "it is the host itself",
            Self::Down => "it is down",
            Self::Port => "it is a port of a bridge or bond",
            Self::Ignored => "discovery.ignore names it",
            Self::Software(kind) => {
                return write!(f, "its kind is {kind}; tunnels, VPNs and bridges are left alone");
            }
            Self::Named => "the configuration names it",
            Self::NoRoute => "no default route leads over it",
            Self::NoAddress => "it has a default route, but no address of the same family",
        })
    }
}

/// The uplink that `interface` is, or why it is none; what the configuration names is judged like all others if
/// `wanted` does not say it.
pub(super) fn judge(
    interface: &Interface,
    state: &HostState,
    wanted: &Wanted,
) -> Result<(DefaultRoute, Candidate), NoUplink> {
    let has_named_address =
        of_interface(state, interface).any(|network| wanted.addresses.contains(&network.address));
    if let Some(why) = unusable(interface, state, wanted) {
        return Err(why);
    }
    if wanted.named.contains(&interface.name) || has_named_address {
        return Err(NoUplink::Named);
    }
    match best_route(interface, state) {
        Some(route) => Ok((route, candidate(interface, &route, state))),
        None if state.defaults.iter().any(|route| route.index == interface.index) => Err(NoUplink::NoAddress),
        None => Err(NoUplink::NoRoute),
    }
}

/// Why it does not lead out of this host, or is left alone.
fn unusable(interface: &Interface, state: &HostState, wanted: &Wanted) -> Option<NoUplink> {
    let kind = || interface.kind.clone().unwrap_or_default();
    [
        (interface.layer == Layer::Loopback, NoUplink::Loopback),
        (wanted.ignore.iter().any(|pattern| matches(pattern, &interface.name)), NoUplink::Ignored),
        (interface.controller.is_some(), NoUplink::Port),
        (!stands_for_hardware(interface, state), NoUplink::Software(kind())),
        (!interface.is_up, NoUplink::Down),
    ]
    .into_iter()
    .find_map(|(holds, why)| holds.then_some(why))
}

fn is_usable(interface: &Interface, state: &HostState, wanted: &Wanted) -> bool {
    unusable(interface, state, wanted).is_none()
}

/// Names of the interfaces that lead to a LAN, in order.
pub(super) fn lans(state: &HostState, wanted: &Wanted) -> Vec<String> {
    let found = state.interfaces.iter().filter(|interface| {
        let networks: Vec<Network> = of_interface(state, interface).copied().collect();
        wanted.lans
            && is_usable(interface, state, wanted)
            && matches!(line(interface, &networks), LinkType::Ethernet | LinkType::Wifi)
            && networks.iter().any(|network| is_private(network.address))
            && !networks.iter().any(|network| is_telephones(network.address))
    });
    let mut names: Vec<_> = found.map(|interface| interface.name.clone()).collect();
    names.sort();
    names
}

fn of_interface<'a>(state: &'a HostState, interface: &Interface) -> impl Iterator<Item = &'a Network> {
    let index = interface.index;
    state.networks.iter().filter(move |network| network.index == index)
}

/// Whether it is an address of a private network (RFC 1918, RFC 4193).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

fn stands_for_hardware(interface: &Interface, state: &HostState) -> bool {
    match interface.kind.as_deref() {
        None => true,
        Some("bridge") => state.interfaces.iter().any(|port| {
            let is_virtual = matches!(port.kind.as_deref(), Some("veth" | "bridge"));
            port.controller == Some(interface.index) && !is_virtual && stands_for_hardware(port, state)
        }),
        Some(kind) => STANDS_FOR_HARDWARE.contains(&kind),
    }
}

/// The default route of least metric for which the interface has an address, IPv4 first.
fn best_route(interface: &Interface, state: &HostState) -> Option<DefaultRoute> {
    let has_address = |is_v4: bool| {
        state.networks.iter().any(|n| n.index == interface.index && n.address.is_ipv4() == is_v4)
    };
    let over =
        state.defaults.iter().filter(|route| route.index == interface.index && has_address(route.is_v4));
    over.min_by_key(|route| (!route.is_v4, route.metric)).copied()
}

fn candidate(interface: &Interface, route: &DefaultRoute, state: &HostState) -> Candidate {
    let networks: Vec<Network> = (state.networks.iter())
        .filter(|network| network.index == interface.index && network.address.is_ipv4() == route.is_v4)
        .copied()
        .collect();
    let line = line(interface, &networks);
    let mut addresses: Vec<_> = networks.iter().map(|n| format!("{}/{}", n.address, n.prefix)).collect();
    addresses.sort();
    let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
    let hands_out = networks.iter().any(|network| is_telephones(network.address));
    Candidate {
        interface: interface.name.clone(),
        line,
        metered: hands_out || matches!(line, LinkType::Lte | LinkType::Tethering),
        gateway: route.gateway,
        attached: format!("{}{via}, interface {}", addresses.join(", "), interface.index),
    }
}

fn line(interface: &Interface, networks: &[Network]) -> LinkType {
    let hardware = &interface.hardware;
    let kind = interface.kind.as_deref().unwrap_or_default();
    let named = |prefix: &str| interface.name.starts_with(prefix);
    if hardware.device_type == "wwan" || ["wwan", "rmnet"].contains(&kind) || named("wwan") || named("wwp") {
        LinkType::Lte
    } else if interface.layer == Layer::Ppp {
        // A modem's, unless it is DSL's.
        if interface.mtu == PPPOE_MTU { LinkType::Other } else { LinkType::Lte }
    } else if hardware.is_wireless || hardware.device_type == "wlan" || kind == "virt_wifi" {
        LinkType::Wifi
    } else if TETHERING_DRIVERS.contains(&hardware.driver.as_str())
        || networks.iter().any(|network| is_telephones(network.address))
    {
        LinkType::Tethering
    } else {
        LinkType::Ethernet
    }
}

fn is_telephones(address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else { return false };
    TETHERING_NETWORKS.iter().any(|net| net.parse::<Ipv4Net>().is_ok_and(|net| net.contains(&address)))
}

/// Whether `pattern` with `*` (any characters) and `?` (one) is `name`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == '?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            // The last star takes one more.
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (p, n) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}
