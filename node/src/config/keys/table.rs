//! Our own keys.

use std::time::Duration;

use mwb_actors::spec::UPLINK_ID_MAX;
use mwb_proto::bond::{
    DuplicationConfig, DuplicationMode, FecConfig, FecMode, ReceiverConfig, RoutingMode, SenderConfig,
};
use mwb_proto::health::HealthConfig;
use mwb_proto::wire::Parity;
use serde_json::json;

use super::{Given, Key, Kind, Section, key};
use crate::config::{LinkType, class_names};

/// More threads than any host has processors for.
const WORKERS_MAX: u64 = 256;
/// Below this IPv6 does not work (RFC 8200, section 5).
const MTU_MIN: u64 = 1280;
/// Jumbo frames end here.
const MTU_MAX: u64 = 9000;
/// Least parity per packet that means anything: `mode = "off"` is for none.
const REDUNDANCY_MIN: f64 = 0.01;
/// Least that a resequencer can work with: 50 ms of 100 Mbit/s, and more.
pub(super) const REORDER_BYTES_MIN: u64 = 1 << 20;
/// Most memory that a bond may be given for one purpose.
pub(super) const BYTES_MAX: u64 = 1 << 30;
/// Least ingress queue: some 40 packets.
pub(super) const QUEUE_BYTES_MIN: u64 = 64 << 10;
/// Most that the kernel's counters of a rate can hold.
const RATE_MAX: u64 = 10_000_000_000;
/// Bounds of the longest wait for a missing packet.
pub(super) const REORDER_TIMEOUT: Kind = Kind::Span(ms(1), ms(10_000));
/// Bounds of the interval of idle heartbeats.
pub(super) const HEARTBEAT: Kind = Kind::Span(ms(20), ms(30_000));

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn span(duration: Duration) -> serde_json::Value {
    json!(format!("{}ms", duration.as_millis()))
}

const NAME: Kind = Kind::Text("text of 1 to 64 bytes");
const INTERFACE: Kind = Kind::Text("an interface's name, 1 to 15 characters, as `ip link` shows it");
const DNS: Kind = Kind::ChoiceOr(|| vec!["auto", "off"], &Kind::List(&Kind::Text("an IP address")));
const SOCKET: Kind = Kind::Text("an address and a port");

/// The sections, in the order of the documentation.
pub(crate) const SECTIONS: &[Section] = &[
    section("node", "This node."),
    section("tun", "The virtual interface that takes the host's traffic."),
    section(
        "discovery",
        "What an edge finds by itself. It follows its host: what is plugged in is used within a second.",
    ),
    section(
        "uplinks[]",
        "One block for each way to the internet of this host. `wans` is another name for it.",
    ),
    section("peers[]", "One block for each node that this one talks to. A member of a mesh needs none."),
    section("lan", "How this node meets others on its LAN, to lend them uplinks and use theirs."),
    Section {
        path: "exit",
        optional: true,
        about: "Writing it makes this node an exit: its peers' traffic leaves to the internet here. A member that the \
                mesh made an exit needs it only to differ.",
    },
    section("routing", "How packets are spread over the uplinks."),
    section("bond", "The machinery that makes one link of many. The defaults suit most links."),
    section(
        "fec",
        "Parity: lost packets that are not TCP are rebuilt at the other end, without the wait for a resend.",
    ),
    section(
        "duplication",
        "Copies of packets that are not TCP over several uplinks; whichever comes first counts.",
    ),
    section("log", "What is written to standard error."),
];

const fn section(path: &'static str, about: &'static str) -> Section {
    Section { path, optional: false, about }
}

/// Our own keys, in the order of the documentation.
pub(super) const KEYS: &[Key] = &[
    key("node.name", NAME, Given::Nothing("its name in the mesh, else the host's"), "How this node calls itself to its peers and in logs."),
    key(
        "node.workers",
        Kind::Whole(1, WORKERS_MAX),
        Given::Nothing("one for every two processors"),
        "Threads that carry packets.",
    )
    .unit("threads")
    .advice("More than one for every two processors costs more in handing packets over than it brings."),
    key("tun.name", INTERFACE, Given::Value(|| json!("mwb0")), "Name of the virtual interface."),
    key("tun.mtu", Kind::Whole(MTU_MIN, MTU_MAX), Given::Value(|| json!(1408)), "Largest packet that it carries.")
        .unit("bytes")
        .advice("1408 fits uplinks of 1492 bytes (PPPoE) over IPv6; what does not fit a path is fragmented."),
    key(
        "tun.default_route",
        Kind::Bool,
        Given::Value(|| json!(true)),
        "Whether an edge's host sends by the bond whatever has no route of its own; if not, only what asks for it.",
    )
    .advice(
        "With false a program asks by binding to the interface (curl --interface mwb0), and ip route add NETWORK dev mwb0 \
         leads a network there.",
    ),
    key(
        "tun.dns",
        DNS,
        Given::Value(|| json!("auto")),
        "What an edge's host asks for names while the bond is up. auto: the resolvers that the exit names, if the bond has \
         the default route; off: as before; or a list: these.",
    )
    .advice("Told to systemd-resolved where it runs, else written to /etc/resolv.conf, which comes back on stop."),
    key(
        "discovery.uplinks",
        Kind::Choice(|| vec!["auto", "also", "off"]),
        Given::Value(|| json!("auto")),
        "auto: the uplinks are all interfaces with a default route, unless `[[uplinks]]` names some; also: those beside \
         the ones that are named; off: only what is named.",
    ),
    key(
        "discovery.lan",
        Kind::Choice(|| vec!["auto", "off"]),
        Given::Value(|| json!("auto")),
        "auto: a member of a mesh meets others on every cable and Wi-Fi with a private address, unless `lan.interfaces` \
         names some; off: only on those.",
    ),
    key(
        "discovery.ignore",
        Kind::List(&Kind::Text("an interface's name, with * and ? as in a shell")),
        Given::Value(|| json!([])),
        "Interfaces to leave alone.",
    )
    .advice("Those of uplinks with `enabled` false are left alone too, and so are tunnels, VPNs and bridges of Docker."),
    key(
        "uplinks[].id",
        Kind::Whole(1, UPLINK_ID_MAX as u64),
        Given::Nothing("the lowest free number, in the order of the blocks"),
        "Number of the uplink, unique.",
    ),
    key(
        "uplinks[].name",
        NAME,
        Given::Nothing("the interface, else `uplink` and the id"),
        "How people call it, unique.",
    ),
    key(
        "uplinks[].interface",
        INTERFACE,
        Given::Nothing("the one that has `address`; without both, any of its `type` that has a default route"),
        "The interface to send by.",
    )
    .advice("One that is not there yet is waited for: a modem may be plugged in later."),
    key(
        "uplinks[].address",
        Kind::Text("a local IP address"),
        Given::Nothing("the interface's own"),
        "The address to send from.",
    )
    .advice("Needed only where an interface has several, or to choose the interface by its address."),
    key(
        "uplinks[].type",
        Kind::Choice(LinkType::names),
        Given::Value(|| json!("other")),
        "What kind of line it is: shown to people and told to others on the LAN; `max_latency` follows from it.",
    ),
    key(
        "uplinks[].max_bandwidth",
        Kind::Whole(1, u64::MAX / 8),
        Given::Nothing("no cap: the rate is measured"),
        "Never send more than this by it.",
    )
    .unit("bytes per second")
    .advice("12500000 is 100 Mbit/s. Not needed for bonding; a cap leaves room for what does not use the bond."),
    key(
        "uplinks[].max_latency",
        Kind::Span(ms(1), ms(10_000)),
        Given::Nothing("twice what is usual for its `type`, 100ms at least"),
        "A path with a longer round trip is called degraded.",
    )
    .advice(
        "For people and for those who watch: the bond goes by what it measures, and uses what is of use. See bond.spread_max.",
    ),
    key(
        "uplinks[].max_jitter",
        Kind::Span(ms(1), ms(10_000)),
        Given::Value(|| span(HealthConfig::default().jitter_max)),
        "A path whose delay varies by more is called degraded.",
    ),
    key(
        "uplinks[].max_packet_loss",
        Kind::Number(0.0, 100.0),
        Given::Value(|| json!(HealthConfig::default().loss_max * 100.0)),
        "A path that loses more is called degraded.",
    )
    .unit("percent"),
    key(
        "uplinks[].failure_threshold",
        Kind::Whole(1, 100),
        Given::Value(|| json!(HealthConfig::default().failure_threshold)),
        "A path that is silent for so many looks, one a second, is called down.",
    )
    .advice("What the bond sends leaves a silent uplink within some 100 ms, whatever is written here."),
    key(
        "uplinks[].weight",
        Kind::Whole(1, 1000),
        Given::Value(|| json!(10)),
        "Its share where uplinks are weighed: `routing.mode` weighted and active_backup.",
    ),
    key(
        "uplinks[].metered",
        Kind::Bool,
        Given::Value(|| json!(false)),
        "Its volume is paid for: others do not get it unless `lan.lend_metered` says so.",
    ),
    key("uplinks[].lend", Kind::Bool, Given::Value(|| json!(true)), "Whether others on the LAN may use it."),
    key(
        "uplinks[].enabled",
        Kind::Bool,
        Given::Value(|| json!(true)),
        "Whether it is used; a block that is not is still checked, and its interface is not found either.",
    ),
    key(
        "peers[].name",
        NAME,
        Given::Nothing("`peer` and its place in the list"),
        "How people call it, unique.",
    ),
    key("peers[].node_id", Kind::Text("64 hex digits"), Given::Required, "What `mwb-node key` prints on that node."),
    key(
        "peers[].addresses",
        Kind::List(&SOCKET),
        Given::Value(|| json!([])),
        "Where it listens: an exit needs 1 to 4, others none. Each is dialled over every uplink.",
    ),
    key(
        "peers[].lan",
        Kind::List(&SOCKET),
        Given::Value(|| json!([])),
        "Where it listens on our LAN, when mDNS is not to be relied on.",
    ),
    key("peers[].exit", Kind::Bool, Given::Value(|| json!(false)), "This peer is our way to the internet; one at most.")
        .advice("Without one the mesh's exit is used, of several the first by name."),
    key(
        "lan.interfaces",
        Kind::List(&INTERFACE),
        Given::Value(|| json!([])),
        "Where this node meets others, to lend them its uplinks and use theirs. None: see `discovery.lan`.",
    )
    .advice("A node with such an interface needs no uplinks of its own."),
    key(
        "lan.port",
        Kind::Whole(1, u16::MAX as u64),
        Given::Value(|| json!(9100)),
        "UDP port on each of them, the same on all nodes unless mDNS or `peers[].lan` tell.",
    ),
    key(
        "lan.lend",
        Kind::Bool,
        Given::Value(|| json!(true)),
        "Whether others may use this node's uplinks. Own traffic always goes first.",
    ),
    key("lan.lend_metered", Kind::Bool, Given::Value(|| json!(false)), "Whether that includes those that are metered."),
    key(
        "lan.lend_budget",
        Kind::Whole(1, u64::MAX / 8),
        Given::Nothing("no bound"),
        "Most that each peer gets in a day, both directions together.",
    )
    .unit("bytes per day and peer")
    .advice("10000000000 is 10 GB; to lend nothing write lan.lend = false."),
    key("lan.mdns", Kind::Bool, Given::Value(|| json!(true)), "Look for members by mDNS, and be found."),
    key(
        "exit.listen",
        Kind::List(&SOCKET),
        Given::Value(|| json!(["0.0.0.0:9000"])),
        "Where edges reach this exit, UDP; at least one.",
    ),
    key(
        "exit.pool",
        Kind::Text("an IPv4 network"),
        Given::Value(|| json!("10.109.119.0/24")),
        "Inner addresses handed out to edges; the exit has the first.",
    )
    .advice("May overlap a LAN of an edge, not one of the exit."),
    key(
        "exit.pool_v6",
        Kind::Text("an IPv6 network, or \"\""),
        Given::Value(|| json!("fd6d:7762::/64")),
        "The same for IPv6, given out while this host has IPv6 internet itself; `\"\"` carries none.",
    ),
    key(
        "exit.dns",
        DNS,
        Given::Value(|| json!("auto")),
        "The resolvers that edges are told to ask. auto: those that this host asks itself, loopback addresses aside; off: \
         none; or a list of at most 8: these.",
    )
    .advice("Write some where this host asks only itself (127.0.0.1)."),
    key(
        "exit.allow",
        Kind::List(&Kind::Text("a network")),
        Given::Value(|| json!([])),
        "Private networks that edges may reach through this exit, `exit.pool` for each other. The internet is always open \
         to them, loopback, link-local and cloud metadata addresses never.",
    )
    .advice("192.168.1.0/24 where the exit stands in a LAN of yours that edges are to use."),
    key(
        "exit.max_rate",
        Kind::Whole(10_000, RATE_MAX),
        Given::Nothing("no cap"),
        "Most that each node gets in each direction, after a first second's worth at once; what is more is dropped. IPv4 and IPv6 \
         count apart.",
    )
    .unit("bytes per second and node")
    .advice("12500000 is 100 Mbit/s."),
    key(
        "exit.max_connections",
        Kind::Whole(1, u32::MAX as u64),
        Given::Nothing("no bound"),
        "Most connections of each node at a time, as the kernel tracks them; new ones beyond are refused. IPv4 and IPv6 \
         count apart.",
    )
    .unit("connections per node")
    .advice("A question for a name is one too, for half a minute."),
    key(
        "routing.mode",
        Kind::Choice(|| RoutingMode::ALL.map(RoutingMode::name).to_vec()),
        Given::Value(|| json!(RoutingMode::default().name())),
        "How this node spreads what it sends; the exit's own mode rules downloads.",
    )
    .advice("adaptive is the sum of all uplinks; active_backup, least_latency and broadcast trade it for something."),
    key(
        "bond.reorder_timeout",
        REORDER_TIMEOUT,
        Given::Value(|| span(ReceiverConfig::default().reorder_timeout)),
        "Longest wait for a packet that is missing in its flow before the later ones are handed on.",
    )
    .advice("A hard bound: the usual wait is measured, and far shorter."),
    key(
        "bond.reorder_bytes_max",
        Kind::Whole(REORDER_BYTES_MIN, BYTES_MAX),
        Given::Value(|| json!(ReceiverConfig::default().reorder_bytes_max)),
        "Most that is held while waiting for missing packets, all flows together.",
    )
    .unit("bytes"),
    key(
        "bond.queue_bytes_max",
        Kind::Whole(QUEUE_BYTES_MIN, BYTES_MAX),
        Given::Value(|| json!(SenderConfig::default().queue_bytes_max)),
        "Most that waits for a free uplink; the longest flow's packets are dropped beyond.",
    )
    .unit("bytes"),
    key(
        "bond.spread_max",
        Kind::Span(ms(10), ms(2000)),
        Given::Value(|| span(SenderConfig::default().spread_max)),
        "An uplink slower than the fastest by more than this carries data only when no other can.",
    ),
    key(
        "bond.heartbeat_idle",
        HEARTBEAT,
        Given::Value(|| span(SenderConfig::default().heartbeat_idle)),
        "How often an idle uplink is probed.",
    )
    .advice("Longer saves volume on metered uplinks; a silent one is then found later."),
    key("bond.resend", Kind::Bool, Given::Value(|| json!(SenderConfig::default().resend)), "Send lost packets again."),
    key(
        "bond.ecn",
        Kind::Bool,
        Given::Value(|| json!(SenderConfig::default().ecn)),
        "Mark packets of flows that understand ECN instead of dropping them.",
    ),
    key(
        "fec.mode",
        Kind::Choice(|| FecMode::ALL.map(FecMode::name).to_vec()),
        Given::Value(|| json!(FecMode::default().name())),
        "adaptive: where a resend would come too late, as much as the measured loss asks for; enabled: always, \
         `parity_shards` for every `data_shards`; off: never.",
    ),
    key(
        "fec.data_shards",
        Kind::Whole(1, Parity::DATA_MAX as u64),
        Given::Value(|| json!(FecConfig::default().data_shards)),
        "Most packets of a block.",
    )
    .unit("packets"),
    key(
        "fec.parity_shards",
        Kind::Whole(1, Parity::PARITY_MAX as u64),
        Given::Value(|| json!(FecConfig::default().parity_shards)),
        "Parity of a full block with `mode` enabled.",
    )
    .unit("packets"),
    key(
        "fec.redundancy",
        Kind::Number(REDUNDANCY_MIN, 1.0),
        Given::Value(|| json!(FecConfig::default().redundancy)),
        "Most parity per packet with `mode` adaptive.",
    ),
    key(
        "duplication.mode",
        Kind::Choice(|| DuplicationMode::ALL.map(DuplicationMode::name).to_vec()),
        Given::Value(|| json!(DuplicationConfig::default().mode.name())),
        "auto: voice by the two fastest uplinks where adaptive parity would be asked for; first: every uplink that is \
         up; fastest: the two of earliest arrival; best: the two of least loss x delay; off: none.",
    ),
    key(
        "duplication.classes",
        Kind::List(&Kind::Choice(class_names)),
        Given::Value(|| json!(["voice"])),
        "Whose packets the modes first, fastest and best copy.",
    ),
    key(
        "log.level",
        Kind::Text("a level or tracing directives"),
        Given::Value(|| json!("info")),
        "error, warn, info, debug or trace, or directives: `info,mwb_actors=debug`.",
    ),
];
