//! Forwarding, masquerade and egress policy of an exit: one table of ours, applied as one atomic batch.
//!
//! ```text
//! table inet mwb {
//!   set rate_up { … }                                                     with max_rate; two more for IPv6, and for the way back
//!   chain from_edge {
//!     ip saddr update @rate_up { limit rate over … } drop                 with max_rate
//!     ip daddr { 127.0.0.0/8, 169.254.0.0/16 } drop                       this host's own and cloud metadata: never
//!     ip daddr { 10.0.0.53 } th dport 53 accept                           the resolvers that edges are told to ask
//!     ip daddr { exit.allow } accept
//!     ip daddr { 10.0.0.0/8, … } reject                                   what is behind this host is not the internet
//!     ct state new ip saddr add @connections { ct count over … } reject   with max_connections
//!     accept }
//!   chain forward { type filter hook forward priority filter; policy accept;
//!     iifname "mwb0" jump from_edge
//!     oifname "mwb0" ip daddr update @rate_down { limit rate over … } drop
//!     oifname "mwb0" ct state established,related accept
//!     oifname "mwb0" drop }                                               nobody calls an edge from outside
//!   chain input { type filter hook input priority filter; policy accept;
//!     iifname "mwb0" ip daddr != 10.109.119.1 ip daddr { 10.0.0.0/8, … } jump from_edge }
//!   chain postrouting { type nat hook postrouting priority srcnat; policy accept;
//!     ip saddr 10.109.119.0/24 oifname != "mwb0" masquerade
//!     ip6 saddr fd6d:7762::/64 oifname != "mwb0" masquerade }             where this host has IPv6 itself
//! }
//! ```
//!
//! An accept here does not undo a drop in another table (Docker's, ufw's, firewalld's): [`super::self_test`] looks for that.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use mwb_actors::spec::Gateways;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::PlatformError;
use crate::config::Egress;

const TABLE: &str = "mwb";
/// How long `nft` may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where nobody gets through an exit, whatever it allows: the host itself, its links, and where a cloud tells its hosts about themselves.
const NEVER_V4: &str = "127.0.0.0/8, 169.254.0.0/16";
const NEVER_V6: &str = "::1, fe80::/10, fd00:ec2::/32";
/// What is not the internet (RFC 6890): networks of the exit and of others beside it, and what no unicast goes to.
const PRIVATE_V4: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16, 224.0.0.0/3";
const PRIVATE_V6: &str = "fc00::/7, ff00::/8";
/// As a program is told that a firewall is in its way.
const REJECT: &str = "reject with icmpx type admin-prohibited";
/// Nodes that are told apart.
const NODES_MAX: u32 = 65_536;
/// What may come at once beside a second's worth, which the kernel always grants: two of the largest super-packets.
const BURST: u32 = 128 * 1024;

/// Replaces our table with the one for `tun`, whose networks are those of `gateways`. Edges are told to ask `resolvers`.
///
/// # Errors
/// When `nft` is missing or refuses; nothing has changed then.
pub(super) async fn masquerade(
    tun: &str,
    gateways: Gateways,
    egress: &Egress,
    resolvers: &[IpAddr],
) -> Result<(), PlatformError> {
    run(&["-f", "-"], &ruleset(tun, gateways, egress, resolvers)).await.map(drop)
}

/// Whether our table is there.
///
/// # Errors
/// When `nft` is missing or refuses.
pub(super) async fn is_there() -> Result<bool, PlatformError> {
    let tables = run(&["list", "tables"], "").await?;
    Ok(tables.lines().any(|listed| listed == format!("table inet {TABLE}")))
}

/// Removes our tables. `true` if one was there.
///
/// # Errors
/// When `nft` is missing or refuses.
pub(super) async fn remove() -> Result<bool, PlatformError> {
    let tables = run(&["list", "tables"], "").await?;
    let mut found = false;
    for table in [TABLE, super::self_test::TABLE] {
        let line = format!("table inet {table}");
        if tables.lines().any(|listed| listed == line) {
            run(&["delete", "table", "inet", table], "").await?;
            found = true;
        }
    }
    Ok(found)
}

/// Runs `nft` with `input` and returns what it prints.
///
/// # Errors
/// When it is missing, refuses, or takes too long.
pub(super) async fn run(arguments: &[&str], input: &str) -> Result<String, PlatformError> {
    let failed = |error: &dyn std::fmt::Display| PlatformError::Nft(format!("running nft: {error}"));
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => PlatformError::Nft(
            "the program nft is missing; an exit needs it: install the package nftables".to_owned(),
        ),
        _ => failed(&error),
    })?;
    let mut stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin.take() {
            // One that ends without reading says why itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(PATIENCE, talk).await {
        Ok(output) => output.map_err(|error| failed(&error))?,
        Err(_late) => return Err(failed(&format!("it takes longer than {PATIENCE:?}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let problem = String::from_utf8_lossy(&output.stderr);
    Err(PlatformError::Nft(format!("nft {} failed: {}", arguments.join(" "), problem.trim())))
}

/// One family's words.
struct Family {
    ip: &'static str,
    /// Of sets.
    address: &'static str,
    suffix: &'static str,
    never: &'static str,
    private: &'static str,
    allowed: String,
    resolvers: String,
    /// The exit's own address inside, and its pool.
    pool: Option<(IpAddr, String)>,
}

impl Family {
    fn v4(gateways: Gateways, egress: &Egress, resolvers: &[IpAddr]) -> Self {
        let (address, prefix) = gateways.v4;
        Self {
            ip: "ip",
            address: "ipv4_addr",
            suffix: "",
            never: NEVER_V4,
            private: PRIVATE_V4,
            allowed: list(egress.allow.iter().filter(|net| matches!(net, IpNet::V4(_)))),
            resolvers: list(resolvers.iter().filter(|server| server.is_ipv4())),
            pool: Some((address.into(), format!("{}/{prefix}", network(gateways.v4)))),
        }
    }

    fn v6(gateways: Gateways, egress: &Egress, resolvers: &[IpAddr]) -> Self {
        Self {
            ip: "ip6",
            address: "ipv6_addr",
            suffix: "_v6",
            never: NEVER_V6,
            private: PRIVATE_V6,
            allowed: list(egress.allow.iter().filter(|net| matches!(net, IpNet::V6(_)))),
            resolvers: list(resolvers.iter().filter(|server| server.is_ipv6())),
            pool: gateways.v6.map(|(address, prefix)| {
                (address.into(), format!("{}/{prefix}", network_v6((address, prefix))))
            }),
        }
    }
}

fn list<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

fn ruleset(tun: &str, gateways: Gateways, egress: &Egress, resolvers: &[IpAddr]) -> String {
    let families = [Family::v4(gateways, egress, resolvers), Family::v6(gateways, egress, resolvers)];
    let (mut sets, mut from, mut back) = (String::new(), String::new(), String::new());
    let (mut input, mut nat) = (String::new(), String::new());
    let limit =
        egress.max_rate.map(|rate| format!("limit rate over {rate} bytes/second burst {BURST} bytes"));
    // Writing to a String cannot fail.
    for Family { ip, address, suffix, .. } in &families {
        if let Some(limit) = &limit {
            for way in ["up", "down"] {
                let _ = writeln!(
                    sets,
                    "set rate_{way}{suffix} {{ type {address}; size {NODES_MAX}; flags dynamic,timeout; timeout 1m; }}"
                );
            }
            let _ = writeln!(from, "update @rate_up{suffix} {{ {ip} saddr {limit} }} drop");
            let _ =
                writeln!(back, "oifname \"{tun}\" update @rate_down{suffix} {{ {ip} daddr {limit} }} drop");
        }
    }
    for Family { ip, never, .. } in &families {
        let _ = writeln!(from, "{ip} daddr {{ {never} }} drop");
    }
    for Family { ip, private, allowed, resolvers, pool, .. } in &families {
        if !resolvers.is_empty() {
            let _ =
                writeln!(from, "{ip} daddr {{ {resolvers} }} meta l4proto {{ tcp, udp }} th dport 53 accept");
        }
        if !allowed.is_empty() {
            let _ = writeln!(from, "{ip} daddr {{ {allowed} }} accept");
        }
        let _ = writeln!(from, "{ip} daddr {{ {private} }} {REJECT}");
        let other = pool.as_ref().map(|(own, _)| format!("{ip} daddr != {own} ")).unwrap_or_default();
        let _ = writeln!(input, "iifname \"{tun}\" {other}{ip} daddr {{ {private} }} jump from_edge");
        if let Some((_, pool)) = pool {
            let _ = writeln!(nat, "{ip} saddr {pool} oifname != \"{tun}\" masquerade");
        }
    }
    if let Some(most) = egress.max_connections {
        for Family { ip, address, suffix, .. } in &families {
            let _ = writeln!(
                sets,
                "set connections{suffix} {{ type {address}; size {NODES_MAX}; flags dynamic; }}"
            );
            let _ = writeln!(
                from,
                "ct state new add @connections{suffix} {{ {ip} saddr ct count over {most} }} {REJECT}"
            );
        }
    }
    // Adding before deleting makes the deletion succeed whether or not the table was there.
    format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n{sets}\
         chain from_edge {{\n{from}accept\n}}\n\
         chain forward {{\ntype filter hook forward priority 0; policy accept;\n\
         iifname \"{tun}\" jump from_edge\n{back}\
         oifname \"{tun}\" ct state established,related accept\noifname \"{tun}\" drop\n}}\n\
         chain input {{\ntype filter hook input priority 0; policy accept;\n{input}}}\n\
         chain postrouting {{\ntype nat hook postrouting priority 100; policy accept;\n{nat}}}\n}}\n"
    )
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
    fn what_is_never_allowed_comes_before_what_is_and_that_before_what_is_private() {
        let gateways = Gateways { v4: (Ipv4Addr::new(10, 9, 8, 1), 24), v6: None };
        let egress = Egress {
            allow: vec!["10.1.0.0/16".parse().expect("network")],
            max_rate: None,
            max_connections: None,
        };
        let rules = ruleset("mwb0", gateways, &egress, &["10.0.0.53".parse().expect("address")]);
        assert!(rules.starts_with("table inet mwb\ndelete table inet mwb\n"), "the whole table is replaced");
        let at = |text: &str| rules.find(text).unwrap_or_else(|| panic!("{text} in {rules}"));
        let order = [
            at("ip daddr { 127.0.0.0/8"),
            at("ip daddr { 10.0.0.53 } meta l4proto { tcp, udp } th dport 53 accept"),
            at("ip daddr { 10.1.0.0/16 } accept"),
            at("10.0.0.0/8, 100.64.0.0/10"),
        ];
        assert!(order.is_sorted(), "{rules}");
        assert_eq!(rules.matches("masquerade").count(), 1);
        assert!(!rules.contains("limit") && !rules.contains("ct count"));
        let gateways = Gateways { v6: Some(("fd00:9::1".parse().expect("address"), 64)), ..gateways };
        let egress =
            Egress { max_rate: 1_000_000.try_into().ok(), max_connections: 100.try_into().ok(), ..egress };
        let rules = ruleset("mwb0", gateways, &egress, &[]);
        assert_eq!(rules.matches("masquerade").count(), 2);
        assert_eq!(rules.matches("limit rate over 1000000 bytes/second burst 131072 bytes").count(), 4);
        assert_eq!(rules.matches("ct count over 100").count(), 2);
    }
}
