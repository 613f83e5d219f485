//! The configuration: a file (TOML, JSON or YAML), `MWB__…` environment variables and `--set`, read once into types
//! that cannot be wrong.
//!
//! [`mod@keys`] is the table of all keys, and what everything else goes by. [`load`] reads the file ([`mod@read`]),
//! turns second names into ours ([`mod@translate`]), lets the `config` crate merge the sources ([`mod@settings`]:
//! options over environment over file), checks the result against the table and completes it by its defaults
//! ([`mod@walk`]), and makes a [`NodeConfig`] of it ([`mod@file`], [`mod@check`]) or a list of [`Fault`]s: all that is
//! wrong, each with the key, where it was written, and what to write instead.

mod check;
mod document;
mod duration;
mod file;
mod judge;
mod keys;
mod place;
mod read;
mod schema;
mod settings;
mod show;
#[cfg(test)]
mod tests;
mod translate;
mod walk;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use config::{Config, ValueKind};
use ipnet::IpNet;
use mwb_actors::identity::NodeId;
use mwb_proto::bond::{ReceiverConfig, SenderConfig};
use mwb_proto::control::UplinkKind;
use mwb_proto::health::HealthConfig;
use mwb_proto::wire::v2::Class;

pub(crate) use check::host_name;
pub(crate) use document::markdown;
pub(crate) use duration::parse as duration;
pub(crate) use place::Typed;
pub(crate) use read::Format;
pub(crate) use schema::schema;
pub(crate) use show::{json as show_json, text as show};
pub(crate) use walk::Entry;

/// A documented sample with every key, as `mwb-node config default` prints it.
pub(crate) const SAMPLE: &str = include_str!("config/sample.toml");

/// What a node was told to be; everything in it has been checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeConfig {
    /// Our name, 1 to 64 bytes.
    pub(crate) name: String,
    /// Whether somebody chose that name; else it is the host's, and the mesh's name for this node is better.
    pub(crate) is_named: bool,
    /// Threads that carry packets and everything else, at least one; the program chooses when not given.
    pub(crate) workers: Option<usize>,
    /// The virtual interface.
    pub(crate) tun: Tun,
    /// Enabled uplinks in the order of the file; empty on an exit.
    pub(crate) uplinks: Vec<Uplink>,
    /// What is found by the node itself, as far as that is for the file to say; an exit looks for nothing.
    pub(crate) discovery: Discovery,
    /// The nodes we talk to.
    pub(crate) peers: Vec<Peer>,
    /// Set when this node is an exit.
    pub(crate) exit: Option<Exit>,
    /// Set when this node meets others on a LAN, or looks for one.
    pub(crate) lan: Option<Lan>,
    /// What a person may set of the bond's machines.
    pub(crate) bond: Bond,
    /// Tracing directives.
    pub(crate) log: String,
    /// What was accepted and is not what whoever wrote it may expect.
    pub(crate) warnings: Vec<Warning>,
}

/// The virtual interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tun {
    /// 1 to 15 characters, none of which the kernel refuses.
    pub(crate) name: String,
    /// 1280 to 9000 bytes.
    pub(crate) mtu: u16,
    /// On an edge, whether what has no route of its own goes by it.
    pub(crate) default_route: bool,
    /// On an edge, what its host asks while the bond is up.
    pub(crate) dns: Dns,
}

/// Which resolvers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Dns {
    /// On an exit those of its host, on an edge those of its exit.
    #[default]
    Auto,
    /// None are named or set.
    Off,
    /// These, at least one.
    Given(Vec<IpAddr>),
}

/// What the node finds by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Discovery {
    /// Whether uplinks are looked for.
    pub(crate) uplinks: bool,
    /// Whether interfaces that lead to a LAN are, once this node is a member of a mesh.
    pub(crate) lan: bool,
    /// Names of interfaces that are left alone, with `*` and `?`; those of disabled uplinks among them.
    pub(crate) ignore: Vec<String>,
}

/// One way to the internet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Uplink {
    /// 1 to 31, unique.
    pub(crate) id: u8,
    /// Unique.
    pub(crate) name: String,
    /// What sockets are bound to.
    pub(crate) interface: Option<String>,
    /// What sockets send from.
    pub(crate) address: Option<IpAddr>,
    /// For people only.
    pub(crate) kind: LinkType,
    /// Cap in bytes per second, as the file says it.
    pub(crate) max_bandwidth: Option<NonZeroU64>,
    /// 1 to 1000.
    pub(crate) weight: u32,
    /// Whether its volume is paid for.
    pub(crate) metered: bool,
    /// Whether others on the LAN may lease it; [`Lan`] may forbid it for all.
    pub(crate) lend: bool,
    /// Beyond what its paths are called degraded, and after how much silence down.
    pub(crate) health: HealthConfig,
}

/// What kind of line an uplink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LinkType {
    Adsl,
    Vdsl,
    Fiber,
    Starlink,
    Satellite,
    Lte,
    #[serde(rename = "5g")]
    FiveG,
    Cable,
    Ethernet,
    Wifi,
    /// A telephone that shares its line over a cable.
    Tethering,
    Other,
}

/// What lines of a kind are like as a rule. The bond measures its uplinks and assumes nothing of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Typical {
    /// Round trip, milliseconds, from and to.
    pub(crate) latency_ms: (u32, u32),
    /// Rate towards the subscriber, Mbit/s, from and to.
    pub(crate) mbit: (u32, u32),
    /// How dependable it is.
    pub(crate) reliability: &'static str,
}

impl LinkType {
    /// All of them, in the order of the documentation.
    pub(crate) const ALL: [Self; 12] = [
        Self::Adsl,
        Self::Vdsl,
        Self::Fiber,
        Self::Starlink,
        Self::Satellite,
        Self::Lte,
        Self::FiveG,
        Self::Cable,
        Self::Ethernet,
        Self::Wifi,
        Self::Tethering,
        Self::Other,
    ];

    /// Its name in configurations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Adsl => "adsl",
            Self::Vdsl => "vdsl",
            Self::Fiber => "fiber",
            Self::Starlink => "starlink",
            Self::Satellite => "satellite",
            Self::Lte => "lte",
            Self::FiveG => "5g",
            Self::Cable => "cable",
            Self::Ethernet => "ethernet",
            Self::Wifi => "wifi",
            Self::Tethering => "tethering",
            Self::Other => "other",
        }
    }

    /// All names.
    pub(crate) fn names() -> Vec<&'static str> {
        Self::ALL.map(Self::name).to_vec()
    }

    /// What such lines are like; nothing is said of those that can be anything.
    pub(crate) fn typical(self) -> Option<Typical> {
        let typical = |latency_ms, mbit, reliability| Some(Typical { latency_ms, mbit, reliability });
        match self {
            Self::Adsl => typical((20, 50), (1, 24), "medium"),
            Self::Vdsl => typical((10, 40), (10, 100), "medium to high"),
            Self::Fiber => typical((1, 20), (100, 10_000), "very high"),
            Self::Starlink => typical((20, 80), (50, 200), "medium"),
            Self::Satellite => typical((500, 700), (1, 25), "low to medium"),
            Self::Lte => typical((20, 80), (5, 100), "medium"),
            Self::FiveG => typical((10, 40), (100, 1000), "medium to high"),
            Self::Cable => typical((10, 30), (50, 500), "high"),
            Self::Ethernet | Self::Wifi | Self::Tethering | Self::Other => None,
        }
    }

    /// What paths over such a line are judged by unless somebody says otherwise: a round trip of twice what is usual is
    /// not, and one that a wire has is not held against a satellite.
    pub(crate) fn health(self) -> HealthConfig {
        let usual = self.typical().map_or(0, |typical| typical.latency_ms.1);
        let default = HealthConfig::default();
        let latency_max = default.latency_max.max(Duration::from_millis(2 * u64::from(usual)));
        HealthConfig { latency_max, ..default }
    }

    /// What others on the LAN are told.
    pub(crate) fn announced(self) -> UplinkKind {
        match self {
            Self::Adsl | Self::Vdsl => UplinkKind::Dsl,
            Self::Fiber => UplinkKind::Fiber,
            Self::Starlink => UplinkKind::Starlink,
            Self::Satellite => UplinkKind::Satellite,
            Self::Lte | Self::FiveG | Self::Tethering => UplinkKind::Lte,
            Self::Cable => UplinkKind::Cable,
            Self::Ethernet | Self::Wifi | Self::Other => UplinkKind::Unknown,
        }
    }
}

/// A node we talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Unique.
    pub(crate) name: String,
    /// SHA-256 of its public key.
    pub(crate) node_id: NodeId,
    /// Where it can be dialled; not empty for an exit.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Where it can be dialled on the LAN.
    pub(crate) lan: Vec<SocketAddr>,
    /// Whether it is our way to the internet.
    pub(crate) exit: bool,
}

/// How we meet others on a LAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lan {
    /// Each once; none when they are to be found.
    pub(crate) interfaces: Vec<String>,
    /// Not 0.
    pub(crate) port: u16,
    /// Whether uplinks are lent at all.
    pub(crate) lend: bool,
    /// Whether metered ones are.
    pub(crate) lend_metered: bool,
    /// Bytes for each peer in a day.
    pub(crate) lend_budget: Option<NonZeroU64>,
    /// Whether members are looked for by mDNS.
    pub(crate) mdns: bool,
}

impl Lan {
    /// Whether others may lease an uplink, metered or not, whose own block does not forbid it.
    pub(crate) fn lends(&self, metered: bool) -> bool {
        self.lend && (!metered || self.lend_metered)
    }
}

/// What an exit needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Where edges reach us.
    pub(crate) listen: Vec<SocketAddr>,
    /// First usable address of the pool: the exit's own.
    pub(crate) pool: (Ipv4Addr, u8),
    /// The same for IPv6; none when it is not to be carried.
    pub(crate) pool_v6: Option<(Ipv6Addr, u8)>,
    /// What edges are told to ask; none of them is of this host only.
    pub(crate) dns: Dns,
    /// What edges may reach.
    pub(crate) egress: Egress,
}

/// What an exit lets its edges reach, beside the internet, and how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Egress {
    /// Private networks that they may reach.
    pub(crate) allow: Vec<IpNet>,
    /// Most for each of them and each direction, bytes per second.
    pub(crate) max_rate: Option<NonZeroU64>,
    /// Most connections of each of them at a time.
    pub(crate) max_connections: Option<NonZeroU64>,
}

impl Exit {
    /// An exit that the mesh knows at `public`: it listens on their ports on all its addresses.
    pub(crate) fn at(public: &[SocketAddr]) -> Self {
        let any = |address: &SocketAddr| -> IpAddr {
            let has_v6 = public.iter().any(|other| other.is_ipv6() && other.port() == address.port());
            if has_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
        };
        let listen: BTreeSet<_> =
            public.iter().map(|address| SocketAddr::new(any(address), address.port())).collect();
        Self {
            listen: listen.into_iter().collect(),
            pool: (Ipv4Addr::new(10, 109, 119, 1), 24),
            pool_v6: Some((Ipv6Addr::new(0xfd6d, 0x7762, 0, 0, 0, 0, 0, 1), 64)),
            dns: Dns::Auto,
            egress: Egress::default(),
        }
    }
}

/// Settings of the bond.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bond {
    /// Of the half that sends; its seed is not set.
    pub(crate) sender: SenderConfig,
    /// Of the half that receives.
    pub(crate) receiver: ReceiverConfig,
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Dotted key as it was written, empty when the whole file is meant.
    pub(crate) key: String,
    /// The file and the line, the variable or the option that set it.
    pub(crate) origin: String,
    /// What is wrong with it.
    pub(crate) problem: String,
    /// What to do.
    pub(crate) fix: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.is_empty(), self.origin.is_empty()) {
            (true, true) => {}
            (true, false) => write!(f, "{}: ", self.origin)?,
            (false, true) => write!(f, "{}: ", self.key)?,
            (false, false) => write!(f, "{} ({}): ", self.key, self.origin)?,
        }
        write!(f, "{}\n    fix: {}", self.problem, self.fix)
    }
}

/// Everything that is wrong with a configuration, at least one thing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the configuration was refused:\n{}", self.0.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n"))]
pub(crate) struct Refused(pub(crate) Vec<Fault>);

/// Something that was accepted, yet has no or another effect than it seems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warning {
    /// As in [`Fault`].
    pub(crate) key: String,
    /// As in [`Fault`].
    pub(crate) origin: String,
    /// What is to be known.
    pub(crate) says: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.key, self.origin, self.says)
    }
}

/// A configuration, and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Loaded {
    /// What holds.
    pub(crate) node: NodeConfig,
    /// Every key of it, in the order of the documentation.
    pub(crate) entries: Vec<Entry>,
}

/// Reads `path`, if there is a file, applies the environment of this process and `options` (`KEY=VALUE`), and checks the
/// result.
///
/// # Errors
/// All faults found; nothing is half applied.
pub(crate) fn load(path: Option<&Path>, options: &[String]) -> Result<Loaded, Refused> {
    // What is not UTF-8 sets nothing, and is told by its name.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
    let Some(path) = path else { return parse("", Format::Toml, "no file", variables, options) };
    let text = read::text(path).map_err(|fault| Refused(vec![fault]))?;
    parse(&text, Format::of(path), &path.display().to_string(), variables, options)
}

/// As [`load`], of a text that came from `origin`, with the environment `variables`.
fn parse(
    text: &str,
    format: Format,
    origin: &str,
    variables: impl IntoIterator<Item = (String, String)>,
    options: &[String],
) -> Result<Loaded, Refused> {
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    let mut places = walk::Places { file: origin.to_owned(), ..walk::Places::default() };
    let mut values = read::parse(text, format, origin).map_err(|fault| Refused(vec![fault]))?;
    translate::translate(&mut values, &mut places, &mut faults, &mut warnings);
    places.note("", &values);
    // The `config` crate takes names at the top for paths: "a[9]" would make a list of ten.
    let (values, strange): (config::Map<_, _>, config::Map<_, _>) =
        values.into_iter().partition(|(name, _)| {
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        });
    let merged = Config::builder()
        .add_source(settings::Values(values))
        .add_source(settings::environment(variables, &mut faults))
        .add_source(settings::options(options, &mut faults))
        .build()
        .map_err(|error| {
            let problem = format!("cannot be merged: {error}");
            let fix = "remove what the message names".to_owned();
            Refused(vec![Fault { key: String::new(), origin: origin.to_owned(), problem, fix }])
        })?;
    let mut merged = match merged.cache.kind {
        ValueKind::Table(table) => table,
        _ => config::Map::new(),
    };
    merged.extend(strange);
    let mut walked = walk::walk(&merged, &places, &mut faults);
    let file: Result<file::File, _> = serde_json::from_value(walked.tree);
    let node = match file {
        Ok(file) => check::check(file, &places, &walked.refused, &mut walked.entries),
        // The table and the types do not agree; a test sees to it that they do.
        Err(error) => Err(vec![Fault {
            key: String::new(),
            origin: origin.to_owned(),
            problem: format!("cannot be understood: {error}"),
            fix: "write the key that is named as mwb-node config default shows it".to_owned(),
        }]),
    };
    match node {
        Ok(mut node) if faults.is_empty() => {
            warnings.append(&mut node.warnings);
            node.warnings = warnings;
            Ok(Loaded { node, entries: walked.entries })
        }
        Ok(_) => Err(Refused(faults)),
        Err(more) => {
            faults.extend(more);
            Err(Refused(faults))
        }
    }
}

/// Names of traffic classes in configurations.
fn class_name(class: Class) -> &'static str {
    match class {
        Class::BestEffort => "best_effort",
        Class::Background => "background",
        Class::Video => "video",
        Class::Voice => "voice",
    }
}

/// All of them.
fn class_names() -> Vec<&'static str> {
    Class::ALL.map(class_name).to_vec()
}
