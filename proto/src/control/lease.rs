//! Leases: a lender's consent to carry a borrower's datagrams over one of its uplinks, to one address
//! of one exit.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::message::{Bounded, TEXT_MAX, cut_text, text_holds};

/// The most grants in one message.
pub const GRANTS_MAX: usize = 64;

/// The borrower wants a lease, or wants to keep it: asking again with the same number renews it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Number of the lease, chosen at random by the borrower.
    pub lease: u64,
    /// The lender's number of the uplink, from its announcement.
    pub uplink: u8,
    /// Node id of the exit.
    pub exit: [u8; 32],
    /// Which of the exit's addresses.
    pub address: SocketAddr,
}

/// The lender's consent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseAccept {
    /// Number of the lease.
    pub lease: u64,
    /// UDP port at the lender's LAN address: what the borrower sends there goes to the exit.
    pub port: u16,
    /// The lease ends when it is not renewed for so long, ms.
    pub ttl_ms: u32,
    /// Bytes that the lender will still carry for this borrower, both ways; `u64::MAX` for no bound.
    pub bytes_left: u64,
}

/// The lender's refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseRefuse {
    /// Number of the lease.
    pub lease: u64,
    /// For programs.
    pub reason: LeaseRefuseReason,
    /// For people; at most [`TEXT_MAX`] bytes.
    pub text: String,
}

/// Either side ends a lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseEnd {
    /// Number of the lease.
    pub lease: u64,
    /// Why, for people; at most [`TEXT_MAX`] bytes.
    pub text: String,
}

/// What the lender leaves to its borrower's leases from now on; sent often, so that none may last.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RateGrants {
    /// At most [`GRANTS_MAX`].
    pub grants: Vec<RateGrant>,
}

/// The grant of one lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RateGrant {
    /// Number of the lease.
    pub lease: u64,
    /// Towards the internet, bit/s on the wire; `u64::MAX` for as much as there is.
    pub up: u64,
    /// From the internet, bit/s on the wire; `u64::MAX` for as much as there is.
    pub down: u64,
    /// Bytes carried so far, both ways.
    pub bytes: u64,
}

/// On the stream of a path that has joined: the edge asks the exit to send no faster over this path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathLimit {
    /// Bit/s on the wire; `u64::MAX` for no limit.
    pub rate_max: u64,
}

/// Why a lease was refused. One byte on the wire; a newer peer's reasons are kept as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub enum LeaseRefuseReason {
    /// 1: the lender lends nothing, or not to this node.
    NoConsent,
    /// 2: the lender has no such uplink, or it does not work now.
    NoUplink,
    /// 3: the lender does not know this exit, or not at this address.
    UnknownExit,
    /// 4: both are behind the same router.
    SameUplink,
    /// 5: the borrower has used up its bytes.
    UsedUp,
    /// 6: the lender has no room for more leases.
    Full,
    /// Any other number.
    Other(u8),
}

impl From<u8> for LeaseRefuseReason {
    fn from(code: u8) -> Self {
        match code {
            1 => Self::NoConsent,
            2 => Self::NoUplink,
            3 => Self::UnknownExit,
            4 => Self::SameUplink,
            5 => Self::UsedUp,
            6 => Self::Full,
            other => Self::Other(other),
        }
    }
}

impl From<LeaseRefuseReason> for u8 {
    fn from(reason: LeaseRefuseReason) -> Self {
        match reason {
            LeaseRefuseReason::NoConsent => 1,
            LeaseRefuseReason::NoUplink => 2,
            LeaseRefuseReason::UnknownExit => 3,
            LeaseRefuseReason::SameUplink => 4,
            LeaseRefuseReason::UsedUp => 5,
            LeaseRefuseReason::Full => 6,
            LeaseRefuseReason::Other(other) => other,
        }
    }
}

impl Bounded for LeaseRequest {
    fn cut(&mut self) {}

    fn holds(&self) -> bool {
        true
    }
}

impl Bounded for LeaseAccept {
    fn cut(&mut self) {}

    fn holds(&self) -> bool {
        true
    }
}

impl Bounded for LeaseRefuse {
    fn cut(&mut self) {
        cut_text(&mut self.text, TEXT_MAX);
    }

    fn holds(&self) -> bool {
        text_holds(&self.text, TEXT_MAX)
    }
}

impl Bounded for LeaseEnd {
    fn cut(&mut self) {
        cut_text(&mut self.text, TEXT_MAX);
    }

    fn holds(&self) -> bool {
        text_holds(&self.text, TEXT_MAX)
    }
}

impl Bounded for RateGrants {
    fn cut(&mut self) {
        self.grants.truncate(GRANTS_MAX);
    }

    fn holds(&self) -> bool {
        self.grants.len() <= GRANTS_MAX
    }
}

impl Bounded for PathLimit {
    fn cut(&mut self) {}

    fn holds(&self) -> bool {
        true
    }
}
