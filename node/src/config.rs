//! The configuration: a TOML file and `MWB__…` environment variables, read once into types that
//! cannot be wrong.
//!
//! [`load`] merges the sources (environment over file over defaults), [`mod@file`] describes what may be
//! written, [`mod@check`] turns it into a [`NodeConfig`] or into a list of [`Fault`]s, each with the key, where
//! it came from, what is wrong and what to write instead.

mod check;
mod duration;
mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::Path;

use config::{Config, Environment, File, FileFormat};
use mwb_actors::identity::NodeId;
use mwb_proto::bond::{ReceiverConfig, SenderConfig};
use mwb_proto::control::UplinkKind;

pub(crate) use check::{Place, host_name};
pub(crate) use duration::parse as duration;

/// A documented sample with every key, as `mwb-node config default` prints it.
pub(crate) const SAMPLE: &str = include_str!("config/sample.toml");

/// What a node was told to be; everything in it has been checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodeConfig {
    /// Our name, 1 to 64 bytes.
    pub(crate) name: String,
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
}

/// The virtual interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tun {
    /// 1 to 15 characters, none of which the kernel refuses.
    pub(crate) name: String,
    /// 1280 to 9000 bytes.
    pub(crate) mtu: u16,
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl LinkType {
    /// As the file writes it.
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
    /// Dotted key, empty when the whole file is meant.
    pub(crate) key: String,
    /// The file or "the environment"; empty when nobody set it.
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

/// Reads `path`, applies the environment of this process and checks the result.
///
/// # Errors
/// All faults found; nothing is half applied.
pub(crate) fn load(path: &Path) -> Result<NodeConfig, Refused> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Refused(vec![Fault {
            key: String::new(),
            origin: path.display().to_string(),
            problem: format!("cannot be read: {error}"),
            fix: format!("write one, starting from the sample: mwb-node config default > {}", path.display()),
        }])
    })?;
    parse(&text, &path.display().to_string(), environment())
}

/// As [`load`], without a file.
///
/// # Errors
/// All faults found in the environment.
pub(crate) fn defaults() -> Result<NodeConfig, Refused> {
    parse("", "no file", environment())
}

/// The environment of this process.
fn environment() -> Environment {
    Environment::with_prefix("MWB").prefix_separator("__").separator("__").try_parsing(true)
}

/// As [`load`], of a text that came from `origin`.
fn parse(text: &str, origin: &str, environment: Environment) -> Result<NodeConfig, Refused> {
    let whole = |problem: String, fix: &str| {
        Refused(vec![Fault { key: String::new(), origin: origin.to_owned(), problem, fix: fix.to_owned() }])
    };
    let merged = Config::builder()
        .add_source(File::from_str(text, FileFormat::Toml))
        .add_source(environment)
        .build()
        .map_err(|error| whole(format!("is not TOML: {error}"), "correct the line that is named"))?;
    let place = Place::new(&merged.cache, origin);
    let file: file::File =
        merged.clone().try_deserialize().map_err(|error| Refused(vec![file::fault(&error, &place)]))?;
    check::check(file, &place)
}
