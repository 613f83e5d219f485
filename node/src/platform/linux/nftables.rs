//! Masquerade and forwarding of an exit: one table of ours, applied as one atomic batch.
//!
//! ```text
//! table inet mwb {
//!   chain forward { type filter hook forward priority filter; policy accept;
//!     iifname "mwb0" ip daddr { 127.0.0.0/8, 169.254.0.0/16 } drop      this host's own and cloud metadata
//!     iifname "mwb0" ip6 daddr { ::1/128, fe80::/10, fd00:ec2::/32 } drop
//!     iifname "mwb0" accept
//!     oifname "mwb0" ct state { established, related } accept
//!     oifname "mwb0" drop }                                             nobody calls an edge from outside
//!   chain postrouting { type nat hook postrouting priority srcnat; policy accept;
//!     ip saddr 10.109.119.0/24 oifname != "mwb0" masquerade
//!     ip6 saddr fd6d:7762::/64 oifname != "mwb0" masquerade }           where this host has IPv6 itself
//! }
//! ```
//!
//! An accept here does not undo a drop in another table (Docker's, ufw's, firewalld's).

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mwb_actors::spec::Gateways;
use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem,
};
use nftables::helper::{self, NftablesError};
use nftables::schema::{Chain, NfListObject, Rule, Table};
use nftables::stmt::{Accept, Drop, Match, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::PlatformError;

const TABLE: &str = "mwb";

/// Replaces our table with the one for `tun`, whose networks are those of `gateways`.
///
/// # Errors
/// When `nft` is missing or refuses; nothing has changed then.
pub(super) async fn masquerade(tun: &str, gateways: Gateways) -> Result<(), PlatformError> {
    let batch = ruleset(tun.to_owned(), gateways);
    blocking(move || helper::apply_ruleset(&batch.to_nftables())).await
}

/// Removes our table. `true` if it was there.
///
/// # Errors
/// When `nft` is missing or refuses.
pub(super) async fn remove() -> Result<bool, PlatformError> {
    let list = || {
        helper::get_current_ruleset_raw(helper::DEFAULT_NFT, ["list", "tables"])
            .map(|text| text.contains("\"mwb\""))
    };
    if !blocking(list).await? {
        return Ok(false);
    }
    let mut batch = Batch::new();
    batch.delete(NfListObject::Table(table()));
    blocking(move || helper::apply_ruleset(&batch.to_nftables())).await?;
    Ok(true)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NftablesError> + Send + 'static,
) -> Result<T, PlatformError> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(|error| PlatformError::Nft(format!("running nft: {error}")))?.map_err(|error| {
        PlatformError::Nft(match error {
            NftablesError::NftExecution { inner, .. } if inner.kind() == std::io::ErrorKind::NotFound => {
                "the program nft is missing; an exit needs it: install the package nftables".to_owned()
            }
            NftablesError::NftFailed { stderr, hint, .. } => {
                format!("nft failed while {hint}: {}", stderr.trim())
            }
            other => other.to_string(),
        })
    })
}

fn table() -> Table<'static> {
    Table { family: NfFamily::INet, name: TABLE.into(), handle: None }
}

fn ruleset(tun: String, gateways: Gateways) -> Batch<'static> {
    let mut batch = Batch::new();
    // Adding before deleting makes the deletion succeed whether or not the table was there.
    batch.add(NfListObject::Table(table()));
    batch.delete(NfListObject::Table(table()));
    batch.add(NfListObject::Table(table()));
    batch.add(chain("forward", NfChainType::Filter, NfHook::Forward, 0));
    batch.add(chain("postrouting", NfChainType::NAT, NfHook::Postrouting, 100));
    let set = |networks: &[(IpAddr, u8)]| {
        let elements = networks.iter().map(|(address, len)| SetItem::Element(prefix(*address, *len)));
        Expression::Named(NamedExpression::Set(elements.collect()))
    };
    let local_v4 =
        set(&[(Ipv4Addr::new(127, 0, 0, 0).into(), 8), (Ipv4Addr::new(169, 254, 0, 0).into(), 16)]);
    let v6 = |a, b| Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0).into();
    // The last one is where a cloud tells its hosts about themselves, over IPv6.
    let local_v6 = set(&[(Ipv6Addr::LOCALHOST.into(), 128), (v6(0xfe80, 0), 10), (v6(0xfd00, 0xec2), 32)]);
    let states = vec![Expression::String("established".into()), Expression::String("related".into())];
    let tun = || Expression::String(tun.clone().into());
    let from_tun = || equal(meta(MetaKey::Iifname), tun());
    let to_tun = || equal(meta(MetaKey::Oifname), tun());
    let drop = || Statement::Drop(Some(Drop {}));
    let masquerade = |family, network: IpAddr, len| {
        let elsewhere =
            Statement::Match(Match { left: meta(MetaKey::Oifname), right: tun(), op: Operator::NEQ });
        let source = equal(field(family, "saddr"), prefix(network, len));
        ("postrouting", vec![source, elsewhere, Statement::Masquerade(None)])
    };
    let mut rules = vec![
        ("forward", vec![from_tun(), equal(field("ip", "daddr"), local_v4), drop()]),
        ("forward", vec![from_tun(), equal(field("ip6", "daddr"), local_v6), drop()]),
        ("forward", vec![from_tun(), Statement::Accept(Some(Accept {}))]),
        (
            "forward",
            vec![
                to_tun(),
                Statement::Match(Match {
                    left: Expression::Named(NamedExpression::CT(CT {
                        key: "state".into(),
                        family: None,
                        dir: None,
                    })),
                    right: Expression::List(states),
                    op: Operator::IN,
                }),
                Statement::Accept(Some(Accept {})),
            ],
        ),
        ("forward", vec![to_tun(), drop()]),
        masquerade("ip", network(gateways.v4).into(), gateways.v4.1),
    ];
    rules.extend(gateways.v6.map(|v6| masquerade("ip6", network_v6(v6).into(), v6.1)));
    for (chain, expr) in rules {
        batch.add(NfListObject::Rule(Rule {
            family: NfFamily::INet,
            table: TABLE.into(),
            chain: chain.into(),
            expr: Cow::Owned(expr),
            ..Rule::default()
        }));
    }
    batch
}

fn chain(name: &'static str, kind: NfChainType, hook: NfHook, priority: i32) -> NfListObject<'static> {
    NfListObject::Chain(Chain {
        family: NfFamily::INet,
        table: TABLE.into(),
        name: name.into(),
        _type: Some(kind),
        hook: Some(hook),
        prio: Some(priority),
        policy: Some(NfChainPolicy::Accept),
        ..Chain::default()
    })
}

fn equal(left: Expression<'static>, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op: Operator::EQ })
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn prefix(address: IpAddr, len: u8) -> Expression<'static> {
    let addr = Box::new(Expression::String(address.to_string().into()));
    Expression::Named(NamedExpression::Prefix(Prefix { addr, len: u32::from(len) }))
}

/// The network that `address` is in.
fn network((address, prefix): (Ipv4Addr, u8)) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() & mask)
}

/// The IPv6 network that `address` is in.
fn network_v6((address, prefix): (Ipv6Addr, u8)) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_cut_at_the_prefix() {
        assert_eq!(network((Ipv4Addr::new(10, 1, 2, 3), 24)), Ipv4Addr::new(10, 1, 2, 0));
        assert_eq!(network((Ipv4Addr::new(10, 1, 2, 3), 0)), Ipv4Addr::UNSPECIFIED);
        assert_eq!(network((Ipv4Addr::new(10, 1, 2, 3), 32)), Ipv4Addr::new(10, 1, 2, 3));
        let address: Ipv6Addr = "fd6d:7762::1".parse().expect("address");
        assert_eq!(network_v6((address, 64)).to_string(), "fd6d:7762::");
        assert_eq!(network_v6((address, 0)), Ipv6Addr::UNSPECIFIED);
    }

    #[test]
    fn the_batch_replaces_the_whole_table() {
        let batch = |v6| {
            let gateways = Gateways { v4: (Ipv4Addr::new(10, 9, 8, 1), 24), v6 };
            serde_json::to_value(ruleset("mwb0".to_owned(), gateways).to_nftables()).expect("JSON")
        };
        let json = batch(None);
        let commands = json["nftables"].as_array().expect("list");
        let name = |n: usize| commands[n].as_object().expect("command").keys().next().expect("one").clone();
        assert_eq!([name(0), name(1), name(2)], ["add", "delete", "add"]);
        assert_eq!(commands.len(), 11);
        assert!(json.to_string().contains("10.9.8.0"));
        let json = batch(Some(("fd00:9::1".parse().expect("address"), 64)));
        assert_eq!(json["nftables"].as_array().expect("list").len(), 12);
        assert!(json.to_string().contains("fd00:9::\""));
    }
}
