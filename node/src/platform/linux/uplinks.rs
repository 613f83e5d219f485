//! The uplinks that the host is found to have, and the interfaces that lead to a LAN: read from the kernel,
//! [judged](judge), and followed.
//!
//! The kernel tells of links, addresses, routes and rules that come and go; what it tells is only a reason to read
//! everything again, so that a message that was lost costs no more than the time until the next look.

mod judge;
mod sysfs;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use mwb_proto::control::Gateway;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};

pub(crate) use self::judge::{Candidate, NoUplink, Wanted};
use self::judge::{DefaultRoute, HostState, Interface, Layer, Network};
use super::netlink::{Changes, Netlink};
use super::{LinuxPlatform, MARK, PlatformError, gateway, routes};

/// How long interfaces may take to settle after the first message about a change: an address and a route come after
/// their link.
const SETTLE: Duration = Duration::from_millis(200);
/// How often everything is read although the kernel tells nothing.
const LOOK: Duration = Duration::from_secs(10);
/// Reading takes at most this part of the time: a host may have a million routes that change all the time.
const REST: u32 = 10;
/// What is followed.
const GROUPS: [MulticastGroup; 7] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OnHost {
    /// The uplinks, the best first.
    pub(crate) uplinks: Vec<Candidate>,
    /// Those that lead to the same router as one of them, if they are of use.
    pub(crate) doubles: Vec<Candidate>,
    /// The interfaces that lead to a LAN, by name.
    pub(crate) lans: Vec<String>,
}

impl LinuxPlatform {
    /// What this host has as of now, as far as it is wanted; each uplink is prepared as
    /// [`prepare_uplinks`](Self::prepare_uplinks) does.
    ///
    /// # Errors
    /// What the kernel says, or when its settings cannot be changed.
    pub(crate) async fn find(&self, wanted: &Wanted) -> Result<OnHost, PlatformError> {
        let netlink = Netlink::open()?;
        let state = read(&netlink).await?;
        let (uplinks, doubles) = without_doubles(judge::uplinks(&state, wanted)).await;
        let doubles = doubles.into_iter().map(|(double, _)| double).filter(|_| wanted.doubles);
        let doubles: Vec<_> = doubles.collect();
        let all = uplinks.iter().chain(&doubles);
        let interfaces: Vec<_> = all.map(|one| (Some(one.interface.clone()), None)).collect();
        self.prepare_uplinks(&interfaces).await?;
        Ok(OnHost { uplinks, doubles, lans: judge::lans(&state, wanted) })
    }

    /// Tells what [`find`](Self::find) gives, whenever it may have changed. Does not end.
    pub(crate) async fn follow(&self, wanted: &Wanted, mut tell: impl FnMut(OnHost)) {
        let mut changes = None;
        loop {
            if changes.is_none() {
                changes = Changes::open(&GROUPS)
                    .inspect_err(|error| tracing::warn!(%error, "uplinks that come or go are seen late"))
                    .ok();
            }
            let begin = Instant::now();
            match self.find(wanted).await {
                Ok(found) => tell(found),
                // What was found before stays.
                Err(error) => tracing::warn!(%error, "the uplinks of this host cannot be read"),
            }
            let rest = begin.elapsed() * REST;
            let change = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            if tokio::time::timeout(LOOK, change).await == Ok(false) {
                changes = None;
            }
            tokio::time::sleep(SETTLE.max(rest)).await;
        }
    }
}

/// Leaves those out that lead to the same router as one before them, as a notebook's cable and its Wi-Fi do: the line
/// behind them is one. Two routers may have the same address, but not the same hardware address.
/// Those that are left out come second, each with the one that is used instead.
async fn without_doubles(found: Vec<Candidate>) -> (Vec<Candidate>, Vec<(Candidate, String)>) {
    let mut doubles = Vec::new();
    let mut kept: Vec<(Candidate, Option<Gateway>)> = Vec::with_capacity(found.len());
    for candidate in found {
        let mut router = None;
        let same_address = |other: &Candidate| other.gateway.is_some() && other.gateway == candidate.gateway;
        if kept.iter().any(|(other, _)| same_address(other)) {
            router = router_of(&candidate).await;
            for (other, known) in kept.iter_mut().filter(|(other, _)| same_address(other)) {
                if known.is_none() {
                    *known = router_of(other).await;
                }
            }
            let double = kept.iter().find(|(_, known)| known.is_some() && *known == router);
            if let Some((other, _)) = double {
                let (interface, other) = (&candidate.interface, other.interface.clone());
                tracing::debug!(interface, other, "the same router is behind both: one of them is used");
                doubles.push((candidate, other));
                continue;
            }
        }
        kept.push((candidate, router));
    }
    (kept.into_iter().map(|(candidate, _)| candidate).collect(), doubles)
}

/// All interfaces of this host, judged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    /// In the kernel's order, without the loopback interface.
    pub(crate) interfaces: Vec<Surveyed>,
    /// Interfaces with the same router as a better one, and that one.
    pub(crate) doubles: Vec<(String, String)>,
}

/// One interface.
#[derive(Clone, Debug)]
pub(crate) struct Surveyed {
    /// Its name.
    pub(crate) name: String,
    /// Largest packet, bytes.
    pub(crate) mtu: u32,
    /// The uplink that it could be, or why it is none.
    pub(crate) verdict: Result<Candidate, NoUplink>,
}

/// Looks at the host with the same eyes as a node that finds its uplinks, and changes nothing. What the configuration names
/// is judged as well.
///
/// # Errors
/// What the kernel says.
pub(crate) async fn survey(ignore: &[String]) -> Result<Survey, PlatformError> {
    let state = read(&Netlink::open()?).await?;
    let wanted = Wanted { uplinks: true, ignore: ignore.to_vec(), ..Wanted::default() };
    let (_, doubles) = without_doubles(judge::uplinks(&state, &wanted)).await;
    let doubles = doubles.into_iter().map(|(double, other)| (double.interface, other)).collect();
    let surveyed = state.interfaces.iter().filter(|interface| interface.layer != Layer::Loopback);
    let interfaces = surveyed.map(|interface| Surveyed {
        name: interface.name.clone(),
        mtu: interface.mtu,
        verdict: judge::judge(interface, &state, &wanted).map(|(_, candidate)| candidate),
    });
    Ok(Survey { interfaces: interfaces.collect(), doubles })
}

async fn router_of(candidate: &Candidate) -> Option<Gateway> {
    gateway::find(&candidate.interface).await.ok().flatten()
}

/// Everything that matters of the host's interfaces, addresses and routes.
async fn read(netlink: &Netlink) -> Result<HostState, PlatformError> {
    let handle = netlink.handle();
    let links = handle.link().get().execute().try_collect::<Vec<_>>().await;
    let addresses = handle.address().get().execute().try_collect::<Vec<_>>().await;
    let mut state = HostState {
        interfaces: links
            .map_err(PlatformError::netlink("listing interfaces"))?
            .into_iter()
            .filter_map(interface)
            .collect(),
        networks: addresses
            .map_err(PlatformError::netlink("listing addresses"))?
            .iter()
            .filter_map(network)
            .collect(),
        defaults: Vec::new(),
    };
    let mut all = vec![RouteMessageBuilder::<Ipv4Addr>::new().build()];
    if routes::has_ipv6() {
        all.push(RouteMessageBuilder::<Ipv6Addr>::new().build());
    }
    for family in all {
        let is_v4 = family.header.address_family == rtnetlink::packet_route::AddressFamily::Inet;
        let mut routes = handle.route().get(family).execute();
        // One at a time: a router of the internet has a million.
        while let Some(route) = routes.try_next().await.map_err(PlatformError::netlink("listing routes"))? {
            state.defaults.extend(default_routes(&route, is_v4));
        }
    }
    Ok(state)
}

fn interface(link: LinkMessage) -> Option<Interface> {
    let LinkMessage { header, attributes, .. } = link;
    let mut interface = Interface {
        index: header.index,
        name: String::new(),
        kind: None,
        layer: match header.link_layer_type {
            LinkLayerType::Loopback => Layer::Loopback,
            LinkLayerType::Ppp => Layer::Ppp,
            _ => Layer::Other,
        },
        controller: None,
        is_up: header.flags.contains(LinkFlags::Up),
        has_carrier: header.flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        hardware: sysfs::Hardware::default(),
    };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = name,
            LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
            LinkAttribute::Controller(index) if index != 0 => interface.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                interface.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if interface.name.is_empty() {
        return None;
    }
    interface.hardware = sysfs::hardware(&interface.name, interface.index);
    Some(interface)
}

/// An address that a packet to the internet can have. Temporary IPv6 ones are left out: they change every day, and the
/// network stays the same.
fn network(address: &AddressMessage) -> Option<Network> {
    let is_v6 = address.header.family == rtnetlink::packet_route::AddressFamily::Inet6;
    if is_v6 && address.header.flags.contains(AddressHeaderFlags::Secondary) {
        return None;
    }
    let of = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some((0, *address)),
        AddressAttribute::Address(address) => Some((1, *address)),
        _ => None,
    };
    // Of a point-to-point link the one is ours, the other the peer's; IPv6 has only the other.
    let (_, ip) = address.attributes.iter().filter_map(of).min_by_key(|(rank, _)| *rank)?;
    let usable = match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    };
    usable.then_some(Network { index: address.header.index, address: ip, prefix: address.header.prefix_len })
}

/// The interfaces of a default route that is not ours: one, or several that share it.
fn default_routes(route: &RouteMessage, is_v4: bool) -> Vec<DefaultRoute> {
    let ours =
        route.header.protocol == routes::PROTOCOL || route.attributes.contains(&RouteAttribute::Table(MARK));
    if route.header.destination_prefix_length != 0
        || route.header.source_prefix_length != 0
        || route.header.kind != RouteType::Unicast
        || ours
    {
        return Vec::new();
    }
    let mut found = DefaultRoute { index: 0, is_v4, gateway: None, metric: 0 };
    let mut hops = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.index = *index,
            RouteAttribute::Priority(metric) => found.metric = *metric,
            RouteAttribute::MultiPath(all) => hops.clone_from(all),
            other => found.gateway = found.gateway.or_else(|| gateway_of(other)),
        }
    }
    if hops.is_empty() {
        return if found.index == 0 { Vec::new() } else { vec![found] };
    }
    hops.iter()
        .map(|hop| DefaultRoute {
            index: hop.interface_index,
            gateway: hop.attributes.iter().find_map(gateway_of),
            ..found
        })
        .collect()
}

fn gateway_of(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    }
}
