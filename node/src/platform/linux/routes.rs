//! Leads the host's traffic into the tunnel as wg-quick does.
//!
//! ```text
//! priority 32765: not from all fwmark 0x6d77 lookup main suppress_prefixlength 0   LANs and specific routes stay as they are
//! priority 32765: not from all fwmark 0x6d77 lookup 28023                          all else but our own outer packets
//! table 28023:    default dev mwb0
//! ```
//!
//! Where they stand among the rules of others, and what they are when only those who ask for it use the bond, see [`rules`].
//!
//! Outer packets carry the mark, skip both rules and find the host's own default routes. The table
//! number and the mark are 0x6d77; routes and rules are labelled with protocol
//! number 109 ("m"), by which they are found again. When the TUN device of a killed node disappears, so do
//! the default routes, and the rules lead nowhere: the host works.
//!
//! Where the exit gives IPv6, all the same happens for it. Where it gives none, the IPv6 default leads into the tunnel all the same, but the device has no
//! IPv6 address and no other may stand in for it (`use_oif_addrs_only`): a program finds no source address
//! and falls back to IPv4 at once, and nothing leaves past the bond. An unreachable route would belong to no
//! device and outlive a killed node; the kernel ignores an expiry on it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::netlink::Netlink;
use super::rules::{self, Led};
use super::{MARK, PlatformError};

/// Our routing table.
pub(super) const TABLE: u32 = MARK;
/// Who made a route or rule, in the kernel's field for it; free in iproute2's list.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(109);
pub(super) const FAMILIES: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// Leads what `led` says into `tun`.
///
/// # Errors
/// The first request that the kernel refused.
pub(super) async fn lead_into(
    netlink: &Netlink,
    tun: &str,
    index: u32,
    led: &Led,
) -> Result<(), PlatformError> {
    let handle = netlink.handle();
    let doing = || PlatformError::netlink(format!("adding the default route through {tun}"));
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .table_id(TABLE)
        .protocol(PROTOCOL)
        .scope(RouteScope::Link)
        .output_interface(index)
        .build();
    handle.route().add(route).replace().execute().await.map_err(doing())?;
    rules::add(handle, &IpVersion::V4, led).await?;
    if has_ipv6() {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(TABLE)
            .protocol(PROTOCOL)
            .output_interface(index)
            .build();
        handle.route().add(route).replace().execute().await.map_err(doing())?;
        rules::add(handle, &IpVersion::V6, led).await?;
    }
    Ok(())
}

/// The TUN device of a running node to which routes of ours lead: that of a killed one is gone, or at least has no carrier.
///
/// # Errors
/// When the kernel does not list them.
pub(super) async fn in_use(netlink: &Netlink) -> Result<Option<String>, PlatformError> {
    for family in families() {
        for route in routes_of(netlink.handle(), &family).await?.iter().filter(|route| is_our_route(route)) {
            let index = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            });
            let Some(index) = index else { continue };
            let device = netlink.with_carrier(index).await?;
            if device.is_some() {
                return Ok(device);
            }
        }
    }
    Ok(None)
}

/// Removes every rule and route of ours. Returns what was removed, in words.
///
/// # Errors
/// The first request that the kernel refused for another reason than that the thing is gone.
pub(super) async fn remove(netlink: &Netlink) -> Result<Vec<String>, PlatformError> {
    let handle = netlink.handle();
    let mut done = Vec::new();
    for family in FAMILIES {
        let name = name(&family);
        // Rules first: without them the table is not used.
        done.extend(rules::remove(handle, &family).await?);
        let routes = routes_of(handle, &family).await?;
        for route in routes.into_iter().filter(is_our_route) {
            let result = handle.route().del(route).execute().await;
            if gone_is_fine(result).map_err(PlatformError::netlink(format!("removing an {name} route")))? {
                done.push(format!("{name} route"));
            }
        }
    }
    Ok(done)
}

/// What of that which [`lead_into`] makes for the interface `index` is not there, in words.
///
/// # Errors
/// When the kernel does not list it.
pub(super) async fn missing(
    netlink: &Netlink,
    index: u32,
    led: &Led,
) -> Result<Option<String>, PlatformError> {
    for family in families() {
        let name = name(&family);
        if !rules::are_there(netlink.handle(), &family, led).await? {
            return Ok(Some(format!("the {name} rules of table {TABLE}")));
        }
        let routes = routes_of(netlink.handle(), &family).await?;
        let device = RouteAttribute::Oif(index);
        if !routes.iter().any(|route| is_our_route(route) && route.attributes.contains(&device)) {
            return Ok(Some(format!("the {name} default route of table {TABLE}")));
        }
    }
    Ok(None)
}

/// Whether a message tells that something like what [`lead_into`] makes has been removed, or a rule of anybody's.
pub(super) fn is_removal(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::DelRule(_) => true,
        RouteNetlinkMessage::DelRoute(route) => is_our_route(route),
        _ => false,
    }
}

async fn routes_of(handle: &Handle, family: &IpVersion) -> Result<Vec<RouteMessage>, PlatformError> {
    let all = match family {
        IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    let routes = handle.route().get(all).execute().try_collect().await;
    routes.map_err(PlatformError::netlink(format!("listing {} routes", name(family))))
}

fn is_our_route(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL && route.attributes.contains(&RouteAttribute::Table(TABLE))
}

/// Whether something was removed; that it was gone already is no error.
pub(super) fn gone_is_fine(result: Result<(), rtnetlink::Error>) -> Result<bool, rtnetlink::Error> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if [NO_ENTRY, NO_PROCESS, NO_DEVICE].iter().any(|code| is_code(&error, *code)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn is_code(error: &rtnetlink::Error, code: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -code)
}

pub(super) fn name(family: &IpVersion) -> &'static str {
    match family {
        IpVersion::V4 => "IPv4",
        IpVersion::V6 => "IPv6",
    }
}

/// The families that the kernel speaks.
fn families() -> impl Iterator<Item = IpVersion> {
    FAMILIES.into_iter().filter(|family| matches!(family, IpVersion::V4) || has_ipv6())
}

/// Whether the kernel speaks IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

// The kernel's error numbers that have a meaning here.
const NO_ENTRY: i32 = 2;
const NO_PROCESS: i32 = 3;
const NO_DEVICE: i32 = 19;
pub(super) const NOT_SUPPORTED: i32 = 95;
