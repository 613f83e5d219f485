//! Keys that mean others of ours, or that nothing here answers to yet: files written for the session, WAN and mesh
//! sections of other bonding programs load as they are.

use mwb_proto::bond::DuplicationMode;

use super::table::{HEARTBEAT, REORDER_TIMEOUT};
use super::{Given, Key, Kind, Means, key};

/// Without effect while nothing is written.
const UNSET: Given = Given::Nothing("not written");
const ENDPOINT: Kind = Kind::Text("a host and a port");
/// Seconds.
const SECONDS: Kind = Kind::Whole(0, 86_400 * 365);

const fn turned(path: &'static str, kind: Kind, how: &'static str) -> Key {
    key(path, kind, UNSET, how).means(Means::Turned(how))
}

const fn nothing(path: &'static str, kind: Kind, why: &'static str) -> Key {
    key(path, kind, UNSET, why).means(Means::Nothing(why))
}

const fn same(path: &'static str, kind: Kind, ours: &'static str) -> Key {
    key(path, kind, UNSET, "Another name.").means(Means::Same(ours))
}

/// They stand in files only; the environment and `--set` take ours.
pub(super) const KEYS: &[Key] = &[
    same("wans", Kind::Anything, "uplinks"),
    turned(
        "session.local_endpoint",
        ENDPOINT,
        "`exit.listen` on an exit. An edge sends from free ports: no effect there.",
    ),
    turned(
        "session.remote_endpoint",
        ENDPOINT,
        "`addresses` of the peer that is the exit, if that has none. Names are not looked up, and without such a peer \
         it has no effect: a member of a mesh knows its exit.",
    ),
    turned(
        "session.duplicate_packets",
        Kind::Bool,
        "true: `duplication.mode` as `duplicate_mode` says, for all `classes`; false: `duplication.mode` off.",
    ),
    turned(
        "session.duplicate_mode",
        Kind::Choice(|| {
            let copies = |mode: &DuplicationMode| {
                matches!(mode, DuplicationMode::First | DuplicationMode::Fastest | DuplicationMode::Best)
            };
            DuplicationMode::ALL.into_iter().filter(copies).map(DuplicationMode::name).collect()
        }),
        "`duplication.mode` when `duplicate_packets` is true; fastest when not written.",
    ),
    turned(
        "session.reorder_buffer",
        Kind::Whole(1, 700_000),
        "`bond.reorder_bytes_max`, 1500 bytes for each packet, at least its lower bound.",
    )
    .unit("packets"),
    same("session.reorder_timeout", REORDER_TIMEOUT, "bond.reorder_timeout"),
    nothing("session.multicast_enabled", Kind::Bool, "multicast is not carried"),
    same("uplinks[].local_addr", Kind::Text("a local IP address"), "uplinks[].address"),
    turned(
        "uplinks[].remote_addr",
        ENDPOINT,
        "As `session.remote_endpoint`; each address is dialled over every uplink.",
    ),
    turned(
        "uplinks[].health_check_interval",
        HEARTBEAT,
        "`bond.heartbeat_idle`, the shortest of all uplinks for all of them.",
    ),
    turned(
        "fec.enabled",
        Kind::Bool,
        "true: `fec.mode` enabled, with `parity_shards` from `redundancy` where that alone is written; false: off.",
    ),
    turned(
        "mesh_network.interfaces.primary",
        Kind::Text("an interface's name"),
        "An uplink by this interface, of weight 20.",
    ),
    turned(
        "mesh_network.interfaces.backups",
        Kind::List(&Kind::Text("an interface's name")),
        "An uplink by each of these interfaces, of weight 10.",
    ),
    same("mesh_network.node_discovery.port", Kind::Whole(1, u16::MAX as u64), "lan.port"),
    nothing(
        "mesh_network.node_discovery.broadcast_interval",
        SECONDS,
        "members are found by mDNS, at the intervals of RFC 6762",
    )
    .unit("seconds"),
    nothing("mesh_network.node_discovery.node_timeout", SECONDS, "a member is gone when its connection is")
        .unit("seconds"),
    turned(
        "mesh_network.link_aggregation.mode",
        Kind::Choice(|| vec!["load_balance", "adaptive", "broadcast", "active_backup"]),
        "`routing.mode`: load_balance is round_robin, the others keep their names.",
    ),
    turned(
        "mesh_network.link_aggregation.max_queue_size",
        Kind::Whole(1, 700_000),
        "`bond.queue_bytes_max`, 1500 bytes for each packet.",
    )
    .unit("packets"),
    nothing(
        "mesh_network.link_aggregation.rebalance_interval",
        SECONDS,
        "each packet goes by what is measured at that moment",
    )
    .unit("seconds"),
    nothing(
        "mesh_network.failover.threshold",
        Kind::Anything,
        "a silent uplink is found by the reports that arrive over the others, within some 100 ms",
    ),
    nothing(
        "mesh_network.failover.recovery_threshold",
        Kind::Anything,
        "an uplink returns when it answers again",
    ),
    nothing(
        "mesh_network.failover.monitoring_interval",
        Kind::Anything,
        "uplinks in use are watched all the time",
    ),
    nothing("monitoring", Kind::Anything, "nothing reads it yet; see mwb-node status"),
    nothing("plugins", Kind::Anything, "there are no plugins yet"),
];
