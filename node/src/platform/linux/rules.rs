//! The policy routing rules of an edge, and where they stand among those of others.
//!
//! Ours are the last before the kernel's own lookup of the main table: the bond takes the place of that table's default
//! route, and of nothing else. The rules of others, another VPN's first of all, are asked before ours whoever came first: of
//! equal priority the newer one is asked later, and who names none gets the lowest. That is also why ours do not read like those
//! of wg-quick, which on its way out deletes every rule that reads as its own does.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion};

use super::netlink::Netlink;
use super::routes::{FAMILIES, NOT_SUPPORTED, PROTOCOL, TABLE, gone_is_fine, is_code, name};
use super::{MARK, PlatformError};

/// Priority of the kernel's own lookup of the main table, where nobody has moved it.
const PRIORITY_MAIN: u32 = 32766;
const TABLE_MAIN: u32 = 254;
/// Tables that every host has: default, main, local.
const THE_KERNELS: [u32; 3] = [253, TABLE_MAIN, 255];

/// What the bond carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Led {
    /// Whatever has no route of its own.
    All,
    /// Packets of programs that ask for it: bound to the TUN device, or to one of its addresses.
    Bound {
        /// The TUN device.
        tun: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
}

/// A rule of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ours {
    /// Whatever is not our own outer packet looks for a specific route in the main table,
    Specific,
    /// and takes our table's default.
    Rest,
    /// Packets that are to leave by this device take it,
    By(String),
    /// and those that leave from this address.
    From(IpAddr),
}

impl Led {
    /// The rules of a family, in the order in which they are asked.
    fn rules(&self, family: &IpVersion) -> Vec<Ours> {
        match self {
            Self::All => vec![Ours::Specific, Ours::Rest],
            Self::Bound { tun, addresses } => {
                let same = addresses.iter().filter(|one| one.is_ipv6() == matches!(family, IpVersion::V6));
                std::iter::once(Ours::By(tun.clone())).chain(same.map(|one| Ours::From(*one))).collect()
            }
        }
    }
}

impl Ours {
    fn message(&self, family: &IpVersion, priority: u32) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match family {
            IpVersion::V4 => AddressFamily::Inet,
            IpVersion::V6 => AddressFamily::Inet6,
        };
        message.header.action = RuleAction::ToTable;
        let table = if *self == Self::Specific { TABLE_MAIN } else { TABLE };
        message.attributes = vec![
            RuleAttribute::Table(table),
            RuleAttribute::Priority(priority),
            RuleAttribute::Protocol(PROTOCOL),
        ];
        match self {
            Self::Specific | Self::Rest => {
                message.header.flags |= RuleFlags::Invert;
                message.attributes.push(RuleAttribute::FwMark(MARK));
                if *self == Self::Specific {
                    message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
                }
            }
            Self::By(device) => message.attributes.push(RuleAttribute::Oifname(device.clone())),
            Self::From(address) => {
                message.header.src_len = if address.is_ipv4() { 32 } else { 128 };
                message.attributes.push(RuleAttribute::Source(*address));
            }
        }
        message
    }

    fn of(rule: &RuleMessage) -> Option<Self> {
        if !rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL)) {
            return None;
        }
        match table(rule) {
            TABLE_MAIN => Some(Self::Specific),
            TABLE => Some(
                rule.attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        RuleAttribute::Oifname(device) => Some(Self::By(device.clone())),
                        RuleAttribute::Source(address) => Some(Self::From(*address)),
                        _ => None,
                    })
                    .unwrap_or(Self::Rest),
            ),
            _ => None,
        }
    }
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
    for family in FAMILIES {
        let name = name(&family);
        let rules = list(netlink.handle(), family).await?;
        let last = before_main(&rules);
        for rule in &rules {
            let (priority, table) = (priority(rule), table(rule));
            let says = format!("{name} rule {priority} (table {table})");
            if Ours::of(rule).is_some() {
                found.ours.push(says);
            } else if priority <= last && !THE_KERNELS.contains(&table) {
                found.before.push(says);
            }
        }
    }
    Ok(found)
}

/// Makes the rules of `led` the last ones before the main table's, in their order; what is so already stays.
///
/// # Errors
/// The first request that the kernel refused.
pub(super) async fn add(handle: &Handle, family: &IpVersion, led: &Led) -> Result<(), PlatformError> {
    let rules = list(handle, family.clone()).await?;
    let (last, wanted) = (before_main(&rules), led.rules(family));
    if are_whole(&rules, &wanted, last) {
        return Ok(());
    }
    for rule in rules.into_iter().filter(|rule| Ours::of(rule).is_some()) {
        let result = gone_is_fine(handle.rule().del(rule).execute().await);
        result.map_err(PlatformError::netlink("replacing a routing rule"))?;
    }
    for ours in wanted {
        let mut request = handle.rule().add();
        *request.message_mut() = ours.message(family, last);
        let result = match family {
            IpVersion::V4 => request.v4().execute().await,
            IpVersion::V6 => request.v6().execute().await,
        };
        result.map_err(PlatformError::netlink("adding a routing rule"))?;
    }
    Ok(())
}

/// Whether all rules of `led` are there, in their order and place.
///
/// # Errors
/// When the kernel does not list them.
pub(super) async fn are_there(handle: &Handle, family: &IpVersion, led: &Led) -> Result<bool, PlatformError> {
    let rules = list(handle, family.clone()).await?;
    Ok(are_whole(&rules, &led.rules(family), before_main(&rules)))
}

/// Removes all rules of ours. Returns what was removed, in words.
///
/// # Errors
/// The first request that the kernel refused for another reason than that the rule is gone.
pub(super) async fn remove(handle: &Handle, family: &IpVersion) -> Result<Vec<String>, PlatformError> {
    let (mut done, name) = (Vec::new(), name(family));
    let rules = list(handle, family.clone()).await?;
    for rule in rules.into_iter().filter(|rule| Ours::of(rule).is_some()) {
        let result = handle.rule().del(rule).execute().await;
        if gone_is_fine(result).map_err(PlatformError::netlink(format!("removing an {name} rule")))? {
            done.push(format!("{name} rule"));
        }
    }
    Ok(done)
}

/// All rules in the order in which they are asked; none where the kernel does not know the family.
async fn list(handle: &Handle, family: IpVersion) -> Result<Vec<RuleMessage>, PlatformError> {
    let name = name(&family);
    match handle.rule().get(family).execute().try_collect().await {
        Err(error) if is_code(&error, NOT_SUPPORTED) => Ok(Vec::new()),
        other => other.map_err(PlatformError::netlink(format!("listing {name} rules"))),
    }
}

/// The priority of the last rules that are asked before the main table: that of its own rule, less one.
fn before_main(rules: &[RuleMessage]) -> u32 {
    let main = rules.iter().find(|rule| {
        let picks = |attribute: &RuleAttribute| {
            !matches!(
                attribute,
                RuleAttribute::Priority(_)
                    | RuleAttribute::Table(_)
                    | RuleAttribute::Protocol(_)
                    // "None", as the kernel says it.
                    | RuleAttribute::SuppressPrefixLen(u32::MAX)
                    | RuleAttribute::SuppressIfGroup(u32::MAX)
            )
        };
        let any = rule.header.src_len == 0 && rule.header.dst_len == 0 && rule.header.tos == 0;
        table(rule) == TABLE_MAIN && any && !rule.attributes.iter().any(picks)
    });
    main.map_or(PRIORITY_MAIN, priority).saturating_sub(1).max(1)
}

/// Whether `wanted`, and no others of ours, are there in their order.
fn are_whole(rules: &[RuleMessage], wanted: &[Ours], at: u32) -> bool {
    let ours = rules.iter().filter_map(|rule| Some((priority(rule), Ours::of(rule)?)));
    ours.eq(wanted.iter().map(|rule| (at, rule.clone())))
}

fn priority(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    // The first rule of all has none.
    found.unwrap_or(0)
}

fn table(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    found.unwrap_or(rule.header.table.into())
}
