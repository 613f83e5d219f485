//! What may be written: the shape of the file, unknown keys refused, nothing judged yet.

use std::time::Duration;

use config::ConfigError;
use mwb_proto::bond::{DuplicationMode, FecConfig, ReceiverConfig, SenderConfig};
use serde::Deserialize;

use super::{Fault, LinkType, Place};

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
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

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Node {
    pub(super) name: Option<String>,
    pub(super) workers: Option<u64>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tun {
    pub(super) name: String,
    pub(super) mtu: u64,
}

impl Default for Tun {
    fn default() -> Self {
        Self { name: "mwb0".to_owned(), mtu: 1408 }
    }
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Discovery {
    pub(super) uplinks: UplinkDiscovery,
    pub(super) lan: LanDiscovery,
    pub(super) ignore: Vec<String>,
}

/// Whether interfaces of a LAN are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LanDiscovery {
    /// When the file names none and the node is a member of a mesh.
    #[default]
    Auto,
    /// Never.
    Off,
}

/// Whether uplinks are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UplinkDiscovery {
    /// When none is enabled in the file.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Beside those in the file.
    Also,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Uplink {
    pub(super) id: Option<u64>,
    pub(super) name: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) address: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: LinkType,
    pub(super) max_bandwidth: Option<u64>,
    pub(super) weight: u64,
    pub(super) metered: bool,
    pub(super) lend: bool,
    pub(super) enabled: bool,
}

impl Default for Uplink {
    fn default() -> Self {
        Self {
            id: None,
            name: None,
            interface: None,
            address: None,
            kind: LinkType::Other,
            max_bandwidth: None,
            weight: 10,
            metered: false,
            lend: true,
            enabled: true,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Peer {
    pub(super) name: Option<String>,
    pub(super) node_id: String,
    pub(super) addresses: Vec<String>,
    pub(super) lan: Vec<String>,
    pub(super) exit: bool,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Lan {
    pub(super) interfaces: Vec<String>,
    pub(super) port: u64,
    pub(super) lend: bool,
    pub(super) lend_metered: bool,
    pub(super) lend_budget: Option<u64>,
    pub(super) mdns: bool,
}

impl Default for Lan {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            port: 9100,
            lend: true,
            lend_metered: false,
            lend_budget: None,
            mdns: true,
        }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Exit {
    pub(super) listen: Vec<String>,
    pub(super) pool: String,
    pub(super) pool_v6: String,
}

impl Default for Exit {
    fn default() -> Self {
        Self {
            listen: vec!["0.0.0.0:9000".to_owned()],
            pool: "10.109.119.0/24".to_owned(),
            pool_v6: "fd6d:7762::/64".to_owned(),
        }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Routing {
    pub(super) mode: String,
}

impl Default for Routing {
    fn default() -> Self {
        Self { mode: SenderConfig::default().mode.name().to_owned() }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Bond {
    pub(super) reorder_timeout: String,
    pub(super) reorder_bytes_max: u64,
    pub(super) queue_bytes_max: u64,
    pub(super) spread_max: String,
    pub(super) heartbeat_idle: String,
    pub(super) resend: bool,
    pub(super) ecn: bool,
}

impl Default for Bond {
    fn default() -> Self {
        let (sender, receiver) = (SenderConfig::default(), ReceiverConfig::default());
        let text = |duration: Duration| format!("{}ms", duration.as_millis());
        Self {
            reorder_timeout: text(receiver.reorder_timeout),
            reorder_bytes_max: receiver.reorder_bytes_max as u64,
            queue_bytes_max: sender.queue_bytes_max as u64,
            spread_max: text(sender.spread_max),
            heartbeat_idle: text(sender.heartbeat_idle),
            resend: sender.resend,
            ecn: sender.ecn,
        }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Fec {
    pub(super) mode: String,
    pub(super) data_shards: u64,
    pub(super) parity_shards: u64,
    pub(super) redundancy: f64,
}

impl Default for Fec {
    fn default() -> Self {
        let FecConfig { mode, data_shards, parity_shards, redundancy } = FecConfig::default();
        Self {
            mode: mode.name().to_owned(),
            data_shards: u64::from(data_shards),
            parity_shards: u64::from(parity_shards),
            redundancy,
        }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Duplication {
    pub(super) mode: String,
    pub(super) classes: Vec<String>,
}

impl Default for Duplication {
    fn default() -> Self {
        Self { mode: DuplicationMode::default().name().to_owned(), classes: vec!["voice".to_owned()] }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned() }
    }
}

/// What a refusal by shape (unknown key, wrong type) says to a person.
pub(super) fn fault(error: &ConfigError, place: &Place<'_>) -> Fault {
    let (key, problem) = describe(error);
    // The config crate forgets the dot between an index and a key.
    let key = key.replace(']', "].").replace("]..", "].").trim_end_matches('.').to_owned();
    let fix = if problem.contains("unknown field") {
        "remove the key or correct its spelling; mwb-node config default prints all of them"
    } else {
        "write a value of the expected type; mwb-node config default shows an example"
    };
    Fault { origin: place.origin(&key), key, problem, fix: fix.to_owned() }
}

fn describe(error: &ConfigError) -> (String, String) {
    match error {
        ConfigError::At { error, key, .. } => {
            let (inner, problem) = describe(error);
            (key.clone().unwrap_or(inner), problem)
        }
        ConfigError::Type { unexpected, expected, key, .. } => {
            (key.clone().unwrap_or_default(), format!("found {unexpected}, expected {expected}"))
        }
        other => (String::new(), other.to_string()),
    }
}
