//! The router behind an interface: the gateway of its best default route, and its hardware address from
//! the kernel's table of neighbours, which is made to look for it if it has to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use futures_util::TryStreamExt;
use mwb_proto::control::Gateway;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use socket2::SockRef;

use super::netlink::Netlink;
use super::{MARK, PlatformError};

/// Waits for the answer of a router that is not among the neighbours; one on the same link needs far less.
const WAITS: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(300)];
/// Where nobody listens: the discard service (RFC 863).
const DISCARD: u16 = 9;

/// The router behind `interface`, if it has one that answers.
///
/// # Errors
/// What the kernel says.
pub(super) async fn find(interface: &str) -> Result<Option<Gateway>, PlatformError> {
    let netlink = Netlink::open()?;
    let index = netlink.index(interface).await?;
    let Some(address) = of_routes(&netlink, index).await? else { return Ok(None) };
    for wait in [None].into_iter().chain(WAITS.map(Some)) {
        if let Some(wait) = wait {
            provoke(interface, address);
            tokio::time::sleep(wait).await;
        }
        if let Some(mac) = neighbour(&netlink, index, address).await? {
            return Ok(Some(Gateway { address, mac }));
        }
    }
    tracing::debug!(interface, %address, "the router has no hardware address, or does not answer");
    Ok(None)
}

/// The gateway of the default route of least metric over the interface, IPv4 first.
async fn of_routes(netlink: &Netlink, index: u32) -> Result<Option<IpAddr>, PlatformError> {
    let all =
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
    for family in all {
        let routes = netlink.handle().route().get(family).execute().try_collect().await;
        let routes: Vec<RouteMessage> = routes.map_err(PlatformError::netlink("listing routes"))?;
        let best =
            routes.iter().filter_map(|route| default_over(route, index)).min_by_key(|(metric, _)| *metric);
        if let Some((_, gateway)) = best {
            return Ok(Some(gateway));
        }
    }
    Ok(None)
}

/// Metric and gateway of a default route over the interface.
fn default_over(route: &RouteMessage, index: u32) -> Option<(u32, IpAddr)> {
    let is_over = route.attributes.contains(&RouteAttribute::Oif(index));
    if route.header.destination_prefix_length != 0 || !is_over {
        return None;
    }
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    });
    Some((metric.unwrap_or(0), gateway?))
}

/// The hardware address of a neighbour, unless it is being looked for or was not found.
async fn neighbour(netlink: &Netlink, index: u32, address: IpAddr) -> Result<Option<[u8; 6]>, PlatformError> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let neighbours = netlink.handle().neighbours().get().set_address_family(family).execute();
    let found: Vec<NeighbourMessage> =
        neighbours.try_collect().await.map_err(PlatformError::netlink("listing neighbours"))?;
    let wanted = NeighbourAttribute::Destination(match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    });
    let lost = [NeighbourState::Incomplete, NeighbourState::Failed, NeighbourState::None];
    Ok(found
        .into_iter()
        .filter(|neighbour| neighbour.header.ifindex == index && !lost.contains(&neighbour.header.state))
        .filter(|neighbour| neighbour.attributes.contains(&wanted))
        .find_map(|neighbour| {
            neighbour.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok(),
                _ => None,
            })
        }))
}

/// Sends an empty datagram, so that the kernel asks for the hardware address. Whether it arrives does not
/// matter.
fn provoke(interface: &str, address: IpAddr) {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let sent = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        // Not into the tunnel, and over no other interface.
        let options = SockRef::from(&socket);
        options.set_mark(MARK)?;
        options.bind_device(Some(interface.as_bytes()))?;
        socket.send_to(&[], SocketAddr::new(address, DISCARD))
    });
    if let Err(error) = sent {
        tracing::debug!(interface, %address, %error, "the router cannot be looked for");
    }
}
