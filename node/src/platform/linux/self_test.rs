//! Whether what comes out of the TUN gets through this host, and if not, who eats it.
//!
//! An accept in our nftables table is not the last word: every table at the hook is asked, and Docker, ufw and firewalld
//! drop what they do not know. So the exit sends itself a packet: it enters by the TUN as if from an edge, towards the
//! internet. A table of its own lets the kernel trace it, and takes it out of the way at the end:
//!
//! ```text
//! table inet mwb_probe {
//!   counter arrived
//!   chain begin { type filter hook prerouting priority -350; … meta nftrace set 1 }
//!   chain end { type filter hook postrouting priority 90; … counter name arrived drop } }   before masquerade: nothing leaves
//! ```
//!
//! Once it has arrived the table is removed. Else `nft monitor trace` tells the last rule that it met. Only the way
//! out is tried: an answer would have to come from outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use mwb_actors::spec::{Forwarding, Gateways};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout_at};

use super::{IPV6_INTERNET, PlatformError, nftables};

/// The table of the test.
pub(super) const TABLE: &str = "mwb_probe";
/// A name server of the internet's root, as [`IPV6_INTERNET`] is.
const IPV4_INTERNET: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);
/// "mw", in ASCII.
const PORT: u16 = 0x6d77;
const HTTPS: u16 = 443;
/// How long a packet may take through the kernel, and how often it is tried before somebody is looked for.
const PASSAGE: Duration = Duration::from_millis(100);
const TRIES: usize = 3;
/// How long `nft monitor` takes to listen, and how long it is listened to.
const LISTEN: Duration = Duration::from_millis(300);
const TRACE: Duration = Duration::from_secs(3);
const TCP: u8 = 6;

/// Tries it. `inject` gives a packet to the kernel as if it came from an edge.
pub(super) async fn forwarding(
    tun: &str,
    gateways: Gateways,
    inject: &(dyn Fn(&[u8]) -> bool + Send + Sync),
) -> Forwarding {
    let v4 = (last_v4(gateways.v4).into(), IPV4_INTERNET.into());
    let v6 = gateways.v6.map(|pool| (last_v6(pool).into(), IPV6_INTERNET.into()));
    for (source, destination) in [v4].into_iter().chain(v6) {
        let found = one(tun, (source, destination), inject).await;
        // Whatever happened, it is of no more use; a table that stays takes nothing but the test's own packets.
        let removed = nftables::run(&["delete", "table", "inet", TABLE], "").await;
        match (found, removed) {
            (Ok(None), Ok(_)) => {}
            (Ok(Some(problem)), _) => return Forwarding::Blocked(problem),
            (Err(error), _) | (_, Err(error)) => return Forwarding::Unknown(error.to_string()),
        }
    }
    Forwarding::Works
}

/// What is wrong, for people; `None` when the packet has arrived.
async fn one(
    tun: &str,
    addresses: (IpAddr, IpAddr),
    inject: &(dyn Fn(&[u8]) -> bool + Send + Sync),
) -> Result<Option<String>, PlatformError> {
    let packet = syn(addresses);
    nftables::run(&["-f", "-"], &ruleset(tun, addresses)).await?;
    for _ in 0..TRIES {
        inject(&packet);
        sleep(PASSAGE).await;
        if has_arrived().await? {
            return Ok(None);
        }
    }
    let eater = trace(|| inject(&packet)).await?;
    if has_arrived().await? {
        return Ok(None);
    }
    let family = if addresses.0.is_ipv4() { "IPv4" } else { "IPv6" };
    Ok(Some(match eater {
        Some(eater) => {
            let fix = fix(&eater, tun, addresses.0.is_ipv4()).await;
            let Eater { family: of, table, chain, what } = eater;
            format!(
                "{family} of edges is dropped by the table {of} {table}, chain {chain}, {what}; let it through: {fix}"
            )
        }
        None if !forwards(addresses.0.is_ipv4()) => {
            let key =
                if addresses.0.is_ipv4() { "net.ipv4.ip_forward" } else { "net.ipv6.conf.all.forwarding" };
            format!(
                "{family} of edges is not forwarded: another program has set {key} to 0; set it with sysctl -w {key}=1"
            )
        }
        None => format!(
            "{family} of edges does not get through this host, and no nftables rule drops it: look at iptables-legacy -S FORWARD, \
             at ip rule and at net.ipv4.conf.all.rp_filter"
        ),
    }))
}

fn ruleset(tun: &str, (source, destination): (IpAddr, IpAddr)) -> String {
    let ip = if source.is_ipv4() { "ip" } else { "ip6" };
    let packet = format!("{ip} saddr {source} {ip} daddr {destination} tcp sport {PORT} tcp dport {HTTPS}");
    format!(
        "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\ncounter arrived {{\n}}\n\
         chain begin {{\ntype filter hook prerouting priority -350;\niifname \"{tun}\" {packet} meta nftrace set 1\n}}\n\
         chain end {{\ntype filter hook postrouting priority 90;\n{packet} counter name arrived drop\n}}\n}}\n"
    )
}

async fn has_arrived() -> Result<bool, PlatformError> {
    let text = nftables::run(&["list", "counter", "inet", TABLE, "arrived"], "").await?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    Ok(words.nth(1).and_then(|count| count.parse::<u64>().ok()).is_some_and(|count| count > 0))
}

/// Who has dropped a packet.
#[derive(Debug, PartialEq, Eq)]
struct Eater {
    family: String,
    table: String,
    chain: String,
    /// The rule or the policy.
    what: String,
}

impl Eater {
    /// From a line of `nft monitor trace`.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("trace id ")?;
        let mut words = rest.split_whitespace().skip(1);
        let mut word = || words.next().map(str::to_owned);
        let (family, table, chain) = (word()?, word()?, word()?);
        let after = format!(" {family} {table} {chain} ");
        let what = rest.split_once(&after)?.1.trim();
        let rule = ["(verdict drop)", "(verdict stolen)", "(verdict queue)"]
            .iter()
            .find_map(|verdict| what.strip_suffix(verdict))
            .and_then(|what| what.strip_prefix("rule "))
            .map(|rule| format!("rule \"{}\"", rule.trim()));
        let policy = || (what == "policy drop").then(|| "policy drop".to_owned());
        let what = rule.or_else(policy)?;
        (table != TABLE).then_some(Self { family, table, chain, what })
    }
}

/// Sends the packet by `again` until the kernel tells who drops it; `None` when nobody of nftables does.
async fn trace(again: impl Fn() -> bool) -> Result<Option<Eater>, PlatformError> {
    let failed = |error: std::io::Error| PlatformError::Nft(format!("running nft monitor: {error}"));
    let mut command = Command::new("nft");
    command.args(["monitor", "trace"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
    let Some(stdout) = child.stdout.take() else { return Ok(None) };
    let mut lines = BufReader::new(stdout).lines();
    sleep(LISTEN).await;
    let end = Instant::now() + TRACE;
    let mut next = Instant::now();
    while Instant::now() < end {
        again();
        next += LISTEN;
        while let Ok(line) = timeout_at(next, lines.next_line()).await {
            match line.map_err(failed)? {
                Some(line) => {
                    if let Some(eater) = Eater::parse(&line) {
                        return Ok(Some(eater));
                    }
                }
                None => return Ok(None),
            }
        }
    }
    Ok(None)
}

/// What to type so that `eater` lets through what comes from and goes to `tun`.
async fn fix(eater: &Eater, tun: &str, is_v4: bool) -> String {
    let iptables = if is_v4 { "iptables" } else { "ip6tables" };
    let Eater { family, table, chain, .. } = eater;
    let has = |chain: &'static str| async move {
        nftables::run(&["list", "chain", family, table, chain], "").await.is_ok()
    };
    let both = |chain: &str| {
        format!("{iptables} -I {chain} -i {tun} -j ACCEPT && {iptables} -I {chain} -o {tun} -j ACCEPT")
    };
    if table == "firewalld" {
        format!("firewall-cmd --permanent --zone=trusted --add-interface={tun} && firewall-cmd --reload")
    } else if !(table == "filter" && (family == "ip" || family == "ip6")) {
        format!(
            "nft insert rule {family} {table} {chain} iifname {tun} accept && nft insert rule {family} {table} {chain} oifname \
             {tun} accept"
        )
    } else if has("DOCKER-USER").await {
        both("DOCKER-USER")
    } else if has("ufw-before-forward").await || has("ufw6-before-forward").await {
        format!("ufw route allow in on {tun} && ufw route allow out on {tun}")
    } else {
        both("FORWARD")
    }
}

fn forwards(is_v4: bool) -> bool {
    let file = if is_v4 { "ipv4/ip_forward" } else { "ipv6/conf/all/forwarding" };
    std::fs::read_to_string(format!("/proc/sys/net/{file}")).is_ok_and(|value| value.trim() != "0")
}

/// The last host of the pool.
fn last_v4((address, prefix): (Ipv4Addr, u8)) -> Ipv4Addr {
    let hosts = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits((address.to_bits() | hosts).saturating_sub(1))
}

fn last_v6((address, prefix): (Ipv6Addr, u8)) -> Ipv6Addr {
    let hosts = u128::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv6Addr::from_bits((address.to_bits() | hosts).saturating_sub(1))
}

/// A SYN to HTTPS, with checksums that connection tracking finds right.
fn syn((source, destination): (IpAddr, IpAddr)) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let pair = [octets(source), octets(destination)].concat();
    let mut tcp = [PORT.to_be_bytes(), HTTPS.to_be_bytes()].concat();
    // Sequence number 1, header of 20 bytes, SYN, window 1024.
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0]);
    let pseudo = [&pair[..], &[0, TCP, 0, 20], &tcp].concat();
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum);
    let mut packet = match source {
        IpAddr::V4(_) => vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, TCP, 0, 0],
        IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, 20, TCP, 64],
    };
    packet.extend(&pair);
    if source.is_ipv4() {
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum);
    }
    packet.extend(&tcp);
    packet
}

/// RFC 1071; of an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (!(((folded & 0xffff) + (folded >> 16)) as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_who_drops_is_read_from_the_trace() {
        let eater = |line: &str| {
            Eater::parse(line)
                .map(|eater| format!("{} {} {} {}", eater.family, eater.table, eater.chain, eater.what))
        };
        for (line, said) in [
            ("trace id c579 ip filter FORWARD policy drop ", Some("ip filter FORWARD policy drop")),
            (
                "trace id c579 inet firewalld filter_FORWARD rule reject with icmpx admin-prohibited (verdict drop)",
                Some("inet firewalld filter_FORWARD rule \"reject with icmpx admin-prohibited\""),
            ),
            ("trace id c579 ip filter FORWARD rule jump X (verdict jump X)", None),
            ("trace id c579 ip filter FORWARD policy accept", None),
            ("trace id c579 ip filter FORWARD packet: iif \"mwb0\" oif \"eth0\"", None),
            ("trace id c579 inet mwb_probe end rule counter drop (verdict drop)", None),
            ("trace id", None),
            ("", None),
        ] {
            assert_eq!(eater(line).as_deref(), said, "{line}");
        }
    }

    #[test]
    fn the_packet_is_whole() {
        let v4 = (last_v4((Ipv4Addr::new(10, 9, 8, 1), 24)).into(), IPV4_INTERNET.into());
        let v6 = (last_v6(("fd00:9::1".parse().unwrap(), 64)).into(), IPV6_INTERNET.into());
        for addresses in [v4, v6] {
            let packet = syn(addresses);
            let inner = mwb_proto::packet::parse(&packet).expect("a packet");
            assert_eq!((inner.source, inner.destination), addresses);
            assert_eq!(inner.ports, Some((PORT, HTTPS)));
            let header = packet.len() - 20;
            let pair = &packet[if addresses.0.is_ipv4() { 12 } else { 8 }..header];
            assert_eq!(checksum(&[pair, &[0, TCP, 0, 20], &packet[header..]].concat()), [0, 0]);
        }
        assert_eq!(v4.0.to_string(), "10.9.8.254");
        assert_eq!(v6.0.to_string(), "fd00:9::ffff:ffff:ffff:fffe");
    }
}
