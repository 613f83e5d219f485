//! Settings of the bond's two machines. Every field has a default that suits most links.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bond::sender::RoutingMode;
use crate::wire::v2::Class;

/// Settings of the sending half of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SenderConfig {
    /// How packets are spread over the paths. Default adaptive.
    pub mode: RoutingMode,
    /// Most bytes of inner packets waiting at the ingress, all flows together. Default 8 MiB.
    pub queue_bytes_max: usize,
    /// Flow queues of FQ-CoDel. Default 1024, as RFC 8290.
    pub flow_queues: usize,
    /// CoDel's target while all paths are near; it follows the longest round trip in use. Default 20 ms.
    pub codel_target: Duration,
    /// CoDel's interval, following likewise. Default 150 ms.
    pub codel_interval: Duration,
    /// Mark ECN-capable packets instead of dropping them. Default true.
    pub ecn: bool,
    /// How far ahead of the wire a path is filled. Default 2 ms.
    pub ahead: Duration,
    /// How far ahead a sparse flow, an ACK or a resend may book. Default 5 ms.
    pub ahead_sparse: Duration,
    /// A path whose delay exceeds the least by more than this carries data only when no other can.
    /// Default 150 ms.
    pub spread_max: Duration,
    /// Park paths that make the others worse. Default true.
    pub guard: bool,
    /// Let small packets that leave together share a datagram, where the peer opens such. Default true.
    pub bundles: bool,
    /// Resend lost packets. Default true.
    pub resend: bool,
    /// Age after which a lost packet is given up. Default 600 ms.
    pub resend_age_max: Duration,
    /// Parity. Default adaptive.
    pub fec: FecConfig,
    /// Copies on several paths at once. Default as adaptive parity asks for them.
    pub duplication: DuplicationConfig,
    /// Silence after which a path is suspected, beyond the expected arrival and four times its
    /// deviation. Default 50 ms.
    pub silence: Duration,
    /// Heartbeat interval while traffic flows. Default 20 ms.
    pub heartbeat_active: Duration,
    /// Heartbeat interval while idle. Default 200 ms.
    pub heartbeat_idle: Duration,
    /// Keyed-hash seed of the flow classifier: fresh random bits per session.
    pub seed: [u64; 2],
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            mode: RoutingMode::default(),
            queue_bytes_max: 8 << 20,
            flow_queues: 1024,
            codel_target: Duration::from_millis(20),
            codel_interval: Duration::from_millis(150),
            ecn: true,
            ahead: Duration::from_millis(2),
            ahead_sparse: Duration::from_millis(5),
            spread_max: Duration::from_millis(150),
            guard: true,
            bundles: true,
            resend: true,
            resend_age_max: Duration::from_millis(600),
            fec: FecConfig::default(),
            duplication: DuplicationConfig::default(),
            silence: Duration::from_millis(50),
            heartbeat_active: Duration::from_millis(20),
            heartbeat_idle: Duration::from_millis(200),
            seed: [0, 0],
        }
    }
}

/// Settings of the receiving half of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceiverConfig {
    /// Hard cap of how long a packet may wait for an earlier one of its lane. Default 800 ms; the adaptive time is
    /// mostly far below, but paths that differ by 300 ms need more than that.
    pub reorder_timeout: Duration,
    /// What a gap is given beyond the path spread and one fast round trip. Default 80 ms.
    pub reorder_slack: Duration,
    /// Most bytes held by all resequencers together. Default 32 MiB.
    pub reorder_bytes_max: usize,
    /// Most bytes of buffers in which packets are remembered that may help to rebuild others. Default 8 MiB: at
    /// 100 Mbit/s of full packets half a second.
    pub fec_bytes_max: usize,
    /// Least interval of reports while packets arrive. Default 5 ms.
    pub report_interval: Duration,
    /// Interval of reports without news while the session is active. Default 15 ms.
    pub report_quiet: Duration,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            reorder_timeout: Duration::from_millis(800),
            reorder_slack: Duration::from_millis(80),
            reorder_bytes_max: 32 << 20,
            fec_bytes_max: 8 << 20,
            report_interval: Duration::from_millis(5),
            report_quiet: Duration::from_millis(15),
        }
    }
}

/// Whether packets get parity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FecMode {
    /// Nothing does.
    Off,
    /// All that is not TCP: `parity_shards` for every `data_shards`.
    Enabled,
    /// What a resend would bring too late, on paths that lose packets at random, as much as the measured loss asks
    /// for. Nothing where nothing is lost.
    #[default]
    Adaptive,
}

impl FecMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Adaptive, Self::Enabled, Self::Off];

    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Enabled => "enabled",
            Self::Adaptive => "adaptive",
        }
    }
}

/// Settings of parity.
#[derive(Debug, Clone, PartialEq)]
pub struct FecConfig {
    /// When. Default adaptive.
    pub mode: FecMode,
    /// Most packets of a block, 1 to 32; a block also ends a few milliseconds after its first packet. Default 16.
    pub data_shards: u8,
    /// Parity shards of a full block, 1 to 16, when the mode is [`Enabled`](FecMode::Enabled); a shorter block gets
    /// its share, rounded up. Default 4.
    pub parity_shards: u8,
    /// Most parity per packet when the mode is [`Adaptive`](FecMode::Adaptive), 0.01 to 1. A block of one packet may
    /// always have one. Default 0.5.
    pub redundancy: f64,
}

impl Default for FecConfig {
    fn default() -> Self {
        Self { mode: FecMode::default(), data_shards: 16, parity_shards: 4, redundancy: 0.5 }
    }
}

/// Which paths get a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DuplicationMode {
    /// None.
    Off,
    /// None, except for voice where adaptive parity finds that a resend would be too late: as `fastest`.
    #[default]
    Auto,
    /// Every path that is up: whatever comes first counts.
    First,
    /// The two of earliest predicted arrival.
    Fastest,
    /// The two of least loss x delay.
    Best,
}

impl DuplicationMode {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Auto, Self::Off, Self::First, Self::Fastest, Self::Best];

    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::First => "first",
            Self::Fastest => "fastest",
            Self::Best => "best",
        }
    }
}

/// A set of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classes(u8);

impl Classes {
    /// Those of `classes`.
    pub fn of(classes: &[Class]) -> Self {
        Self(classes.iter().fold(0, |set, class| set | 1 << class.code()))
    }

    /// Whether `class` is one of them.
    pub fn contains(self, class: Class) -> bool {
        self.0 >> class.code() & 1 == 1
    }
}

/// Settings of duplication. TCP is never duplicated.
#[derive(Debug, Clone, PartialEq)]
pub struct DuplicationConfig {
    /// Where copies go. Default auto.
    pub mode: DuplicationMode,
    /// Whose packets are copied in the modes `first`, `fastest` and `best`. Default voice.
    pub classes: Classes,
}

impl Default for DuplicationConfig {
    fn default() -> Self {
        Self { mode: DuplicationMode::default(), classes: Classes::of(&[Class::Voice]) }
    }
}
