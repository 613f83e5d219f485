//! The shape of a checked configuration: one field for each of our keys, filled from the table's defaults before.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

use super::{LinkType, duration};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) node: Node,
    pub(super) tun: Tun,
    pub(super) discovery: Discovery,
    pub(super) uplinks: Vec<Uplink>,
    pub(super) peers: Vec<Peer>,
    pub(super) exit: Option<Exit>,
    pub(super) lan: Lan,
    pub(super) routing: Routing,
    pub(super) bond: Bond,
    pub(super) fec: Fec,
    pub(super) duplication: Duplication,
    pub(super) log: Log,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: Option<String>,
    pub(super) workers: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tun {
    pub(super) name: String,
    pub(super) mtu: u64,
    pub(super) default_route: bool,
    pub(super) dns: Words,
}

/// A word, or a list of texts.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Words {
    /// One of those that the table has for the key.
    Word(String),
    /// Judged later.
    List(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discovery {
    pub(super) uplinks: UplinkDiscovery,
    pub(super) lan: LanDiscovery,
    pub(super) ignore: Vec<String>,
}

/// Whether interfaces of a LAN are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LanDiscovery {
    /// When the file names none and the node is a member of a mesh.
    Auto,
    /// Never.
    Off,
}

/// Whether uplinks are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UplinkDiscovery {
    /// When none is enabled in the file.
    Auto,
    /// Never.
    Off,
    /// Beside those in the file.
    Also,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Uplink {
    pub(super) id: Option<u64>,
    pub(super) name: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) address: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: LinkType,
    pub(super) max_bandwidth: Option<u64>,
    pub(super) max_latency: Option<Span>,
    pub(super) max_jitter: Span,
    pub(super) max_packet_loss: f64,
    pub(super) failure_threshold: u64,
    pub(super) weight: u64,
    pub(super) metered: bool,
    pub(super) lend: bool,
    pub(super) enabled: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    pub(super) name: Option<String>,
    pub(super) node_id: String,
    pub(super) addresses: Vec<String>,
    pub(super) lan: Vec<String>,
    pub(super) exit: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lan {
    pub(super) interfaces: Vec<String>,
    pub(super) port: u64,
    pub(super) lend: bool,
    pub(super) lend_metered: bool,
    pub(super) lend_budget: Option<u64>,
    pub(super) mdns: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Exit {
    pub(super) listen: Vec<String>,
    pub(super) pool: String,
    pub(super) pool_v6: String,
    pub(super) dns: Words,
    pub(super) allow: Vec<String>,
    pub(super) max_rate: Option<u64>,
    pub(super) max_connections: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Routing {
    pub(super) mode: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bond {
    pub(super) reorder_timeout: Span,
    pub(super) reorder_bytes_max: usize,
    pub(super) queue_bytes_max: usize,
    pub(super) spread_max: Span,
    pub(super) heartbeat_idle: Span,
    pub(super) resend: bool,
    pub(super) ecn: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fec {
    pub(super) mode: String,
    pub(super) data_shards: u8,
    pub(super) parity_shards: u8,
    pub(super) redundancy: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Duplication {
    pub(super) mode: String,
    pub(super) classes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) level: String,
}

/// A time as people write it.
pub(super) struct Span(pub(super) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        duration::parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}
