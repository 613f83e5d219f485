//! What members on one LAN tell each other: that they live, and which uplinks they have.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::message::{Bounded, NAME_MAX, cut_text, text_holds};

/// The most uplinks in one announcement.
pub const ANNOUNCED_MAX: usize = 32;

/// A sign of life on a connection between two members of a LAN.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerBeat {
    /// Counts the beats of this connection.
    pub sequence: u64,
}

/// All uplinks of the sender; what an earlier announcement said is forgotten.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UplinkAnnounce {
    /// At most [`ANNOUNCED_MAX`].
    pub uplinks: Vec<UplinkInfo>,
}

/// One uplink as its owner describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UplinkInfo {
    /// The owner's number for it.
    pub id: u8,
    /// Its name, for people; at most [`NAME_MAX`] bytes.
    pub name: String,
    /// What it is.
    pub kind: UplinkKind,
    /// Whether it carries traffic now.
    pub up: bool,
    /// Whether it may be leased.
    pub lend: bool,
    /// Whether its owner pays by volume.
    pub metered: bool,
    /// Measured rate towards the internet, bit/s; 0 when not known.
    pub rate_up: u64,
    /// Measured rate from the internet, bit/s; 0 when not known.
    pub rate_down: u64,
    /// Round-trip time to the exit, µs; 0 when not known.
    pub rtt_us: u32,
    /// Lost datagrams per million.
    pub loss_ppm: u32,
    /// The router behind it, where that is known: two hosts behind one router have one uplink.
    pub gateway: Option<Gateway>,
}

/// A router as its neighbours see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Gateway {
    /// Its address on the link.
    pub address: IpAddr,
    /// Its hardware address there.
    pub mac: [u8; 6],
}

/// What an uplink is. One byte on the wire; a newer peer's kinds are kept as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub enum UplinkKind {
    /// 0: not said.
    #[default]
    Unknown,
    /// 1: DSL.
    Dsl,
    /// 2: fibre.
    Fiber,
    /// 3: LTE or 5G.
    Lte,
    /// 4: Starlink or another low orbit.
    Starlink,
    /// 5: a geostationary satellite.
    Satellite,
    /// 6: cable.
    Cable,
    /// Any other number.
    Other(u8),
}

impl From<u8> for UplinkKind {
    fn from(code: u8) -> Self {
        match code {
            0 => Self::Unknown,
            1 => Self::Dsl,
            2 => Self::Fiber,
            3 => Self::Lte,
            4 => Self::Starlink,
            5 => Self::Satellite,
            6 => Self::Cable,
            other => Self::Other(other),
        }
    }
}

impl From<UplinkKind> for u8 {
    fn from(kind: UplinkKind) -> Self {
        match kind {
            UplinkKind::Unknown => 0,
            UplinkKind::Dsl => 1,
            UplinkKind::Fiber => 2,
            UplinkKind::Lte => 3,
            UplinkKind::Starlink => 4,
            UplinkKind::Satellite => 5,
            UplinkKind::Cable => 6,
            UplinkKind::Other(other) => other,
        }
    }
}

impl Bounded for PeerBeat {
    fn cut(&mut self) {}

    fn holds(&self) -> bool {
        true
    }
}

impl Bounded for UplinkAnnounce {
    fn cut(&mut self) {
        self.uplinks.truncate(ANNOUNCED_MAX);
        self.uplinks.iter_mut().for_each(|uplink| cut_text(&mut uplink.name, NAME_MAX));
    }

    fn holds(&self) -> bool {
        self.uplinks.len() <= ANNOUNCED_MAX
            && self.uplinks.iter().all(|uplink| text_holds(&uplink.name, NAME_MAX))
    }
}
