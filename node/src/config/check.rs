//! From what was written to what is meant: names, addresses, references and duplicates, all faults at once. What a key
//! may hold by itself was judged before, by the table of keys.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;

use ipnet::{Ipv4Net, Ipv6Net};
use mwb_actors::identity::NodeId;
use mwb_actors::spec::{EXIT_ADDRESSES_MAX, UPLINK_ID_MAX};
use mwb_proto::bond::{ReceiverConfig, RoutingMode, SenderConfig};
use mwb_proto::health::HealthConfig;
use serde_json::Value as Json;

use super::file::{LanDiscovery, UplinkDiscovery};
use super::walk::{DEFAULT, Entry, Places};
use super::{Bond, Discovery, Exit, Fault, Lan, NodeConfig, Peer, Tun, Uplink, Warning, file};

mod egress;
mod repair;

/// Longest name on the wire.
const NAME_MAX: usize = 64;
/// Longest interface name (IFNAMSIZ less the ending zero).
const INTERFACE_MAX: usize = 15;

/// Collects faults while the rest is still read.
struct Faults<'a> {
    places: &'a Places,
    /// Paths that were refused before: nothing more is said of them.
    refused: &'a [String],
    found: Vec<Fault>,
    warnings: Vec<Warning>,
    entries: &'a mut [Entry],
}

impl Faults<'_> {
    fn add(&mut self, key: impl Into<String>, problem: impl Into<String>, fix: impl Into<String>) {
        let path = key.into();
        if !self.refused(&path) {
            let (key, origin) = self.place(&path);
            self.found.push(Fault { key, origin, problem: problem.into(), fix: fix.into() });
        }
    }

    /// Whether `path` was refused before.
    fn refused(&self, path: &str) -> bool {
        self.refused.iter().any(|refused| refused == path)
    }

    /// The key as it was written, and where.
    fn place(&self, path: &str) -> (String, String) {
        let entry = self.entries.iter().find(|entry| entry.key == path && entry.origin != DEFAULT);
        match entry {
            Some(entry) if entry.source() != "file" => (path.to_owned(), entry.origin.clone()),
            _ => (self.places.written(path), self.places.origin(path).to_owned()),
        }
    }

    /// Says that `path`, which nobody wrote, is `value`.
    fn fill(&mut self, path: &str, value: impl Into<Json>) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.key == path && entry.value.is_none())
        {
            entry.value = Some(value.into());
        }
    }

    fn interface(&mut self, key: &str, name: String) -> String {
        let odd = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > INTERFACE_MAX || name.contains(odd) || name == "." || name == ".."
        {
            let fix = format!("write 1 to {INTERFACE_MAX} characters, as `ip link` shows them");
            self.add(key, format!("{name:?} cannot be an interface's name"), fix);
        }
        name
    }

    fn name(&mut self, key: &str, name: String) -> String {
        if name.is_empty() || name.len() > NAME_MAX || name.contains(|c: char| c == '/' || c.is_control()) {
            let problem = format!("{name:?} is empty, too long, or holds a slash or control characters");
            self.add(key, problem, format!("write 1 to {NAME_MAX} bytes of text"));
        }
        name
    }

    fn sockets(&mut self, key: &str, texts: &[String]) -> Vec<SocketAddr> {
        let mut addresses = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match text.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 => addresses.push(address),
                _ => self.add(
                    format!("{key}[{index}]"),
                    format!("{text:?} is not an address and a port"),
                    "write it as \"203.0.113.5:9000\" or \"[2001:db8::5]:9000\"",
                ),
            }
        }
        addresses
    }

    /// Says so when `value` was seen before under another key.
    fn unique(&mut self, seen: &mut BTreeMap<String, String>, key: String, value: &str, fix: &str) {
        if let Some(first) = seen.get(value) {
            let problem = format!("{value:?} is already used by {first}");
            self.add(key, problem, fix);
        } else {
            seen.insert(value.to_owned(), key);
        }
    }
}

/// Judges `file`. What was chosen for keys that nobody wrote is filled into `entries`.
///
/// # Errors
/// Every fault that was found; none when all that is wrong was `refused` before.
pub(super) fn check(
    file: file::File,
    places: &Places,
    refused: &[String],
    entries: &mut [Entry],
) -> Result<NodeConfig, Vec<Fault>> {
    let mut faults = Faults { places, refused, found: Vec::new(), warnings: Vec::new(), entries };
    let is_named = file.node.name.is_some();
    let name = match file.node.name {
        Some(name) => faults.name("node.name", name),
        None => host_name(),
    };
    faults.fill("node.name", name.clone());
    let workers = file.node.workers.map(|workers| usize::try_from(workers).unwrap_or(usize::MAX));
    let mtu = u16::try_from(file.tun.mtu).unwrap_or(u16::MAX);
    let tun = Tun {
        name: faults.interface("tun.name", file.tun.name),
        mtu,
        default_route: file.tun.default_route,
        dns: egress::dns("tun.dns", &file.tun.dns, false, &mut faults),
    };
    let disabled = file.uplinks.iter().filter(|uplink| !uplink.enabled);
    let mut ignore: Vec<_> = disabled.filter_map(|uplink| uplink.interface.clone()).collect();
    let uplinks = uplinks(file.uplinks, &tun, &mut faults);
    for (index, pattern) in file.discovery.ignore.into_iter().enumerate() {
        ignore.push(faults.interface(&format!("discovery.ignore[{index}]"), pattern));
    }
    let discovery = Discovery {
        uplinks: match file.discovery.uplinks {
            UplinkDiscovery::Auto => uplinks.is_empty() && file.exit.is_none(),
            UplinkDiscovery::Off => false,
            UplinkDiscovery::Also => true,
        },
        lan: file.discovery.lan == LanDiscovery::Auto
            && file.lan.interfaces.is_empty()
            && file.exit.is_none(),
        ignore,
    };
    let peers = peers(file.peers, &mut faults);
    let exit = file.exit.map(|exit| self::exit(&exit, &mut faults));
    let lan = lan(file.lan, &tun, discovery.lan, &mut faults);
    let mut bond = bond(&file.bond, &file.routing);
    bond.sender.fec = repair::fec(&file.fec);
    bond.sender.duplication = repair::duplication(&file.duplication);
    let names_lan = lan.as_ref().is_some_and(|lan| !lan.interfaces.is_empty());
    let has_ways = !uplinks.is_empty() || names_lan || discovery.uplinks;
    roles(&uplinks, &discovery, &peers, (exit.is_some(), has_ways), &mut faults);
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&file.log.level) {
        let fix = "write error, warn, info, debug or trace, or directives such as \"info,mwb_actors=debug\"";
        faults.add("log.level", format!("{:?} is no filter: {error}", file.log.level), fix);
    }
    if faults.found.is_empty() {
        let warnings = faults.warnings;
        Ok(NodeConfig {
            name,
            is_named,
            workers,
            tun,
            uplinks,
            discovery,
            peers,
            exit,
            lan,
            bond,
            log: file.log.level,
            warnings,
        })
    } else {
        Err(faults.found)
    }
}

fn uplinks(written: Vec<file::Uplink>, tun: &Tun, faults: &mut Faults<'_>) -> Vec<Uplink> {
    let taken: Vec<u64> = written.iter().filter_map(|uplink| uplink.id).collect();
    let mut free = (1..=u64::from(UPLINK_ID_MAX)).filter(|id| !taken.contains(id));
    let (mut ids, mut names, mut binds) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut uplinks = Vec::new();
    for (index, uplink) in written.into_iter().enumerate() {
        let key = |field: &str| format!("uplinks[{index}].{field}");
        let id = uplink.id.or_else(|| free.next()).unwrap_or_else(|| {
            let problem = format!("this is uplink {}, of at most {UPLINK_ID_MAX}", index + 1);
            faults.add(key("id"), problem, "remove those that are not used");
            u64::from(UPLINK_ID_MAX)
        });
        faults.fill(&key("id"), id);
        faults.unique(&mut ids, key("id"), &id.to_string(), "give each uplink its own id, or none");
        let name = uplink.name.or_else(|| uplink.interface.clone()).unwrap_or_else(|| format!("uplink{id}"));
        let name = faults.name(&key("name"), name);
        faults.fill(&key("name"), name.clone());
        faults.unique(&mut names, key("name"), &name, "give each uplink its own name");
        let interface = uplink.interface.map(|interface| faults.interface(&key("interface"), interface));
        if interface.as_deref() == Some(&tun.name) {
            let fix = "name the interface that leads to the internet, not the one that mwb-node makes";
            faults.add(key("interface"), "is the tunnel's own interface", fix);
        }
        let address = uplink.address.as_ref().and_then(|text| {
            let address = text.parse::<IpAddr>().ok().filter(|a| !a.is_unspecified() && !a.is_multicast());
            if address.is_none() {
                let fix = "write an address of this host, such as \"192.168.1.100\", or remove the key";
                faults.add(key("address"), format!("{text:?} is not a local address"), fix);
            }
            address
        });
        let usual = uplink.kind.health();
        let latency_max = uplink.max_latency.map_or(usual.latency_max, |latency| latency.0);
        faults.fill(&key("max_latency"), format!("{latency_max:?}"));
        if !uplink.enabled {
            continue;
        }
        let health = HealthConfig {
            latency_max,
            jitter_max: uplink.max_jitter.0,
            loss_max: uplink.max_packet_loss / 100.0,
            failure_threshold: u32::try_from(uplink.failure_threshold).unwrap_or(u32::MAX),
            ..usual
        };
        let bind = format!(
            "{}{}",
            interface.as_deref().unwrap_or(""),
            match address {
                Some(address) => format!(" from {address}"),
                None => String::new(),
            }
        );
        let fix = "give each uplink an interface or an address of its own";
        // Without both it means any interface of its type, each another one.
        if !bind.is_empty() && !faults.refused(&key("address")) && !faults.refused(&key("interface")) {
            faults.unique(&mut binds, key("interface"), &bind, fix);
        }
        uplinks.push(Uplink {
            id: u8::try_from(id).unwrap_or(u8::MAX),
            name,
            interface,
            address,
            kind: uplink.kind,
            max_bandwidth: uplink.max_bandwidth.and_then(NonZeroU64::new),
            weight: u32::try_from(uplink.weight).unwrap_or(u32::MAX),
            metered: uplink.metered,
            lend: uplink.lend,
            health,
        });
    }
    uplinks
}

fn peers(written: Vec<file::Peer>, faults: &mut Faults<'_>) -> Vec<Peer> {
    let (mut names, mut node_ids) = (BTreeMap::new(), BTreeMap::new());
    let mut peers = Vec::new();
    for (index, peer) in written.into_iter().enumerate() {
        let key = |field: &str| format!("peers[{index}].{field}");
        let name = faults.name(&key("name"), peer.name.unwrap_or_else(|| format!("peer{}", index + 1)));
        faults.fill(&key("name"), name.clone());
        faults.unique(&mut names, key("name"), &name, "give each peer its own name");
        let nobody = NodeId::from_bytes([0; 32]);
        let problem = match peer.node_id.parse() {
            Ok(id) if id == nobody => Err("it is the sample's".to_owned()),
            Ok(id) => Ok(id),
            Err(error) => Err(format!("{error}")),
        };
        let node_id = problem.unwrap_or_else(|problem| {
            let fix = "write the 64 hex digits that `mwb-node key` prints on that node";
            faults.add(key("node_id"), format!("{:?} is no node id: {problem}", peer.node_id), fix);
            nobody
        });
        let text = peer.node_id.to_ascii_lowercase();
        faults.unique(&mut node_ids, key("node_id"), &text, "list each node once, with all its addresses");
        let addresses = faults.sockets(&key("addresses"), &peer.addresses);
        if peer.exit && peer.addresses.is_empty() {
            let fix = "write where the exit listens: addresses = [\"203.0.113.5:9000\"]";
            faults.add(key("addresses"), "an exit needs at least one", fix);
        }
        if peer.exit && peer.addresses.len() > EXIT_ADDRESSES_MAX {
            let fix = format!("keep the {EXIT_ADDRESSES_MAX} best");
            faults.add(key("addresses"), format!("{} are too many", peer.addresses.len()), fix);
        }
        let lan = faults.sockets(&key("lan"), &peer.lan);
        peers.push(Peer { name, node_id, addresses, lan, exit: peer.exit });
    }
    peers
}

/// The LAN plane, off without an interface unless one is to be found.
fn lan(written: file::Lan, tun: &Tun, find: bool, faults: &mut Faults<'_>) -> Option<Lan> {
    let mut seen = BTreeMap::new();
    let mut interfaces = Vec::new();
    for (index, interface) in written.interfaces.into_iter().enumerate() {
        let key = format!("lan.interfaces[{index}]");
        let interface = faults.interface(&key, interface);
        if interface == tun.name {
            faults.add(&key, "is the tunnel's own interface", "name the interface that leads to the LAN");
        }
        faults.unique(&mut seen, key, &interface, "list each interface once");
        interfaces.push(interface);
    }
    (find || !interfaces.is_empty()).then(|| Lan {
        interfaces,
        port: u16::try_from(written.port).unwrap_or(u16::MAX),
        lend: written.lend,
        lend_metered: written.lend_metered,
        lend_budget: written.lend_budget.and_then(NonZeroU64::new),
        mdns: written.mdns,
    })
}

fn exit(written: &file::Exit, faults: &mut Faults<'_>) -> Exit {
    let listen = faults.sockets("exit.listen", &written.listen);
    if written.listen.is_empty() {
        faults.add("exit.listen", "an exit has to listen", "write listen = [\"0.0.0.0:9000\"]");
    }
    Exit {
        listen,
        pool: pool(&written.pool, faults),
        pool_v6: pool_v6(&written.pool_v6, faults),
        dns: egress::dns("exit.dns", &written.dns, true, faults),
        egress: egress::egress(written, faults),
    }
}

fn pool(written: &str, faults: &mut Faults<'_>) -> (Ipv4Addr, u8) {
    let fix = "write a private network that you do not use: \"10.109.119.0/24\"";
    let pool = written.parse::<Ipv4Net>().ok().filter(|net| net.prefix_len() <= 30);
    let Some(pool) = pool else {
        faults.add("exit.pool", format!("{written:?} is no IPv4 network with room for two nodes"), fix);
        return (Ipv4Addr::UNSPECIFIED, 0);
    };
    let unusable =
        pool.network().is_loopback() || pool.network().is_multicast() || pool.network().is_unspecified();
    if unusable || pool.prefix_len() < 8 {
        faults.add("exit.pool", format!("{pool} cannot be handed out"), fix);
    }
    let gateway = pool.hosts().next().unwrap_or_else(|| pool.network());
    (gateway, pool.prefix_len())
}

/// The exit's own address in the IPv6 pool; none when nothing is written.
fn pool_v6(written: &str, faults: &mut Faults<'_>) -> Option<(Ipv6Addr, u8)> {
    if written.is_empty() {
        return None;
    }
    let usable = |net: &Ipv6Net| {
        let network = net.network();
        (32..=120).contains(&net.prefix_len())
            && !(network.is_multicast() || network.is_unicast_link_local() || network.is_unspecified())
    };
    let Some(pool) = written.parse::<Ipv6Net>().ok().filter(usable) else {
        let fix = "write a network of your own like \"fd6d:7762::/64\", or \"\" to carry no IPv6";
        let problem = format!("{written:?} is no IPv6 network to hand out, with a prefix of 32 to 120 bits");
        faults.add("exit.pool_v6", problem, fix);
        return None;
    };
    Some((Ipv6Addr::from(u128::from(pool.network()) | 1), pool.prefix_len()))
}

fn bond(written: &file::Bond, routing: &file::Routing) -> Bond {
    Bond {
        sender: SenderConfig {
            mode: routing.mode.parse::<RoutingMode>().unwrap_or_default(),
            queue_bytes_max: written.queue_bytes_max,
            spread_max: written.spread_max.0,
            heartbeat_idle: written.heartbeat_idle.0,
            resend: written.resend,
            ecn: written.ecn,
            ..SenderConfig::default()
        },
        receiver: ReceiverConfig {
            reorder_timeout: written.reorder_timeout.0,
            reorder_bytes_max: written.reorder_bytes_max,
            ..ReceiverConfig::default()
        },
    }
}

/// A node has one role. Whether it has all that its role needs shows when it runs: it may be a member
/// of a mesh.
fn roles(
    uplinks: &[Uplink],
    discovery: &Discovery,
    peers: &[Peer],
    (exit, has_ways): (bool, bool),
    faults: &mut Faults<'_>,
) {
    let exits = peers.iter().filter(|peer| peer.exit).count();
    match (exit, exits) {
        (true, 0) => {
            if !uplinks.is_empty() {
                faults.add(
                    "uplinks",
                    "an exit does not bond uplinks",
                    "remove [[uplinks]], or remove [exit]",
                );
            }
            if discovery.uplinks {
                faults.add(
                    "discovery.uplinks",
                    "an exit does not bond uplinks",
                    "remove the key, or remove [exit]",
                );
            }
        }
        (true, _) => {
            let fix = "remove [exit] on an edge, or exit = true from the peers on an exit";
            faults.add("exit", "this node is an exit and has one", fix);
        }
        // The mesh may have one.
        (false, 0) => {}
        (false, 1) => {
            if !has_ways {
                let fix = "write at least one [[uplinks]] block with its interface, remove discovery.uplinks, or write \
                           lan.interfaces to use those of others";
                faults.add("uplinks", "no uplink is enabled", fix);
            }
        }
        (false, _) => {
            let fix = "mark the one exit to use with exit = true, remove it from the others";
            faults.add("peers", format!("{exits} peers are marked as exit"), fix);
        }
    }
}

/// The host's name, cut to what fits on the wire.
pub(crate) fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    let name: String = name.chars().filter(|c| !c.is_control() && *c != '/').take(NAME_MAX / 4).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}
