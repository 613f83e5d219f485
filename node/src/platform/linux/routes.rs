//! Leads the host's traffic into the tunnel as wg-quick does.
//!
//! ```text
//! priority 28022: from all lookup main suppress_prefixlength 0     LANs and specific routes stay as they are
//! priority 28023: not from all fwmark 0x6d77 lookup 28023          all else but our own outer packets
//! table 28023:    default dev mwb0
//! ```
//!
//! Outer packets carry the mark, skip the second rule and find the host's own default routes. The table
//! number, the mark and the second rule's priority are 0x6d77; routes and rules are labelled with protocol
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
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::netlink::Netlink;
use super::{MARK, PlatformError};

/// Our routing table.
const TABLE: u32 = MARK;
/// Rule that lets specific routes of the main table win; before [`PRIORITY_TUNNEL`].
const PRIORITY_MAIN: u32 = MARK - 1;
/// Rule that leads into the tunnel; before the kernel's own lookup of the main table (32766).
const PRIORITY_TUNNEL: u32 = MARK;
/// Who made a route or rule, in the kernel's field for it; free in iproute2's list.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(109);
/// Tables that every host has: default, main, local.
const THE_KERNELS: [u32; 3] = [253, 254, 255];
const FAMILIES: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// Leads all traffic into `tun`.
///
/// # Errors
/// The first request that the kernel refused.
pub(super) async fn lead_into(netlink: &Netlink, tun: &str, index: u32) -> Result<(), PlatformError> {
    let handle = netlink.handle();
    let doing = || PlatformError::netlink(format!("adding the default route through {tun}"));
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .table_id(TABLE)
        .protocol(PROTOCOL)
        .scope(RouteScope::Link)
        .output_interface(index)
        .build();
    handle.route().add(route).replace().execute().await.map_err(doing())?;
    add_rules(handle, &IpVersion::V4).await?;
    if has_ipv6() {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(TABLE)
            .protocol(PROTOCOL)
            .output_interface(index)
            .build();
        handle.route().add(route).replace().execute().await.map_err(doing())?;
        add_rules(handle, &IpVersion::V6).await?;
    }
    Ok(())
}

/// Removes every rule and route of ours. Returns what was removed, in words.
///
/// # Errors
/// The first request that the kernel refused for another reason than that the thing is gone.
pub(super) async fn remove(netlink: &Netlink) -> Result<Vec<String>, PlatformError> {
    let handle = netlink.handle();
    let mut done = Vec::new();
    for family in FAMILIES {
        let name = match family {
            IpVersion::V4 => "IPv4",
            IpVersion::V6 => "IPv6",
        };
        // Rules first: without them the table is not used.
        let rules: Vec<RuleMessage> = match handle.rule().get(family.clone()).execute().try_collect().await {
            Ok(rules) => rules,
            Err(error) if is_code(&error, NOT_SUPPORTED) => continue,
            Err(error) => return Err(PlatformError::netlink(format!("listing {name} rules"))(error)),
        };
        for rule in rules.into_iter().filter(is_our_rule) {
            let result = handle.rule().del(rule).execute().await;
            if gone_is_fine(result).map_err(PlatformError::netlink(format!("removing an {name} rule")))? {
                done.push(format!("{name} rule"));
            }
        }
        let all = match family {
            IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
        };
        let routes: Vec<RouteMessage> = match handle.route().get(all).execute().try_collect().await {
            Ok(routes) => routes,
            Err(error) => return Err(PlatformError::netlink(format!("listing {name} routes"))(error)),
        };
        for route in routes.into_iter().filter(is_our_route) {
            let result = handle.route().del(route).execute().await;
            if gone_is_fine(result).map_err(PlatformError::netlink(format!("removing an {name} route")))? {
                done.push(format!("{name} route"));
            }
        }
    }
    Ok(done)
}

/// Rules of this host that matter to a person, by family and priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Ours.
    pub(crate) ours: Vec<String>,
    /// Of others, with a table of their own, and asked before ours: what they lead elsewhere does not use the bond.
    pub(crate) before: Vec<String>,
}

/// The rules that are there now.
///
/// # Errors
/// When the kernel does not list them.
pub(super) async fn rules(netlink: &Netlink) -> Result<Rules, PlatformError> {
    let mut found = Rules::default();
    for (family, name) in FAMILIES.into_iter().zip(["IPv4", "IPv6"]) {
        let rules = netlink.handle().rule().get(family).execute().try_collect::<Vec<_>>().await;
        let rules = match rules {
            Err(error) if is_code(&error, NOT_SUPPORTED) => continue,
            other => other.map_err(PlatformError::netlink(format!("listing {name} rules")))?,
        };
        for rule in &rules {
            let priority = rule.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Priority(priority) => Some(*priority),
                _ => None,
            });
            let table = rule.attributes.iter().find_map(|attribute| match attribute {
                RuleAttribute::Table(table) => Some(*table),
                _ => None,
            });
            let table = table.unwrap_or(rule.header.table.into());
            let priority = priority.unwrap_or(0);
            if is_our_rule(rule) {
                found.ours.push(format!("{name} rule {priority}"));
            } else if priority < PRIORITY_MAIN && !THE_KERNELS.contains(&table) {
                found.before.push(format!("{name} rule {priority} (table {table})"));
            }
        }
    }
    Ok(found)
}

async fn add_rules(handle: &Handle, family: &IpVersion) -> Result<(), PlatformError> {
    let mut main = handle.rule().add().priority(PRIORITY_MAIN).action(RuleAction::ToTable);
    main.message_mut()
        .attributes
        .extend([RuleAttribute::SuppressPrefixLen(0), RuleAttribute::Protocol(PROTOCOL)]);
    let mut tunnel = handle
        .rule()
        .add()
        .priority(PRIORITY_TUNNEL)
        .action(RuleAction::ToTable)
        .table_id(TABLE)
        .fw_mark(MARK);
    tunnel.message_mut().header.flags |= RuleFlags::Invert;
    tunnel.message_mut().header.table = 0;
    tunnel.message_mut().attributes.push(RuleAttribute::Protocol(PROTOCOL));
    for rule in [main, tunnel] {
        let result = match family {
            IpVersion::V4 => rule.v4().execute().await,
            IpVersion::V6 => rule.v6().execute().await,
        };
        match result {
            Err(error) if is_code(&error, EXISTS) => {}
            other => other.map_err(PlatformError::netlink("adding a routing rule"))?,
        }
    }
    Ok(())
}

fn is_our_rule(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
        && [PRIORITY_MAIN, PRIORITY_TUNNEL]
            .iter()
            .any(|priority| rule.attributes.contains(&RuleAttribute::Priority(*priority)))
}

fn is_our_route(route: &RouteMessage) -> bool {
    route.header.protocol == PROTOCOL && route.attributes.contains(&RouteAttribute::Table(TABLE))
}

/// Whether something was removed; that it was gone already is no error.
fn gone_is_fine(result: Result<(), rtnetlink::Error>) -> Result<bool, rtnetlink::Error> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if [NO_ENTRY, NO_PROCESS, NO_DEVICE].iter().any(|code| is_code(&error, *code)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn is_code(error: &rtnetlink::Error, code: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -code)
}

/// Whether the kernel speaks IPv6 at all.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

// The kernel's error numbers that have a meaning here.
const NO_ENTRY: i32 = 2;
const NO_PROCESS: i32 = 3;
const EXISTS: i32 = 17;
const NO_DEVICE: i32 = 19;
const NOT_SUPPORTED: i32 = 95;
