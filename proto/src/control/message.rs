//! The messages, their kinds and their bounds.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::lan::{PeerBeat, UplinkAnnounce};
use super::lease::{LeaseAccept, LeaseEnd, LeaseRefuse, LeaseRequest, PathLimit, RateGrants};
use crate::mesh::{INVITE_ID_LEN, PROOF_LEN, RECORD_LEN_MAX, REVOCATION_LEN};

/// The most bytes of a name (UTF-8, no control characters).
pub const NAME_MAX: usize = 64;
/// The most bytes of a text meant for people (UTF-8, no control characters).
pub const TEXT_MAX: usize = 256;
/// The most versions in a hello.
const VERSIONS_MAX: usize = 16;
/// The most cipher suites in an offer.
const SUITES_MAX: usize = 8;
/// The most resolvers in an accept.
const DNS_MAX: usize = 8;
/// The most addresses in a join's request.
const JOIN_ADDRESSES_MAX: usize = 4;
/// The most records, and the most revocations, in one list: a full one is far below a frame.
pub const LIST_MAX: usize = 64;

/// A control message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Kind 1: the first message of the side that connected.
    Hello(Hello),
    /// Kind 2: the answer to it. Only now is the connection known to be accepted.
    HelloAck(Hello),
    /// Kind 3: the edge wants this connection's path in a session.
    PathJoin(PathJoin),
    /// Kind 4: the path is in.
    PathAccept(PathAccept),
    /// Kind 5: it is not.
    PathRefuse(PathRefuse),
    /// Kind 6: the sender is about to close, and why.
    Bye(Bye),
    /// Kind 16: between members of a LAN: the sender lives.
    PeerBeat(PeerBeat),
    /// Kind 17: between members of a LAN: the sender's uplinks.
    UplinkAnnounce(UplinkAnnounce),
    /// Kind 32: the sender wants to use an uplink of the receiver.
    LeaseRequest(LeaseRequest),
    /// Kind 33: it may.
    LeaseAccept(LeaseAccept),
    /// Kind 34: it may not.
    LeaseRefuse(LeaseRefuse),
    /// Kind 35: a lease is over.
    LeaseEnd(LeaseEnd),
    /// Kind 36: how much the sender's leases may carry.
    RateGrants(RateGrants),
    /// Kind 37: on a path's stream: how fast the exit may send over it.
    PathLimit(PathLimit),
    /// Kind 48: the first message of a node that wants to become a member.
    JoinRequest(JoinRequest),
    /// Kind 49: it is one.
    JoinAccept(JoinAccept),
    /// Kind 50: it is not.
    JoinRefuse(JoinRefuse),
    /// Kind 51: records and revocations that the sender knows.
    MemberList(MemberList),
}

impl Message {
    /// The number of the kind on the wire.
    pub const fn kind(&self) -> u16 {
        match self {
            Self::Hello(_) => 1,
            Self::HelloAck(_) => 2,
            Self::PathJoin(_) => 3,
            Self::PathAccept(_) => 4,
            Self::PathRefuse(_) => 5,
            Self::Bye(_) => 6,
            Self::PeerBeat(_) => 16,
            Self::UplinkAnnounce(_) => 17,
            Self::LeaseRequest(_) => 32,
            Self::LeaseAccept(_) => 33,
            Self::LeaseRefuse(_) => 34,
            Self::LeaseEnd(_) => 35,
            Self::RateGrants(_) => 36,
            Self::PathLimit(_) => 37,
            Self::JoinRequest(_) => 48,
            Self::JoinAccept(_) => 49,
            Self::JoinRefuse(_) => 50,
            Self::MemberList(_) => 51,
        }
    }
}

/// Who a node is and what it can do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Data-plane versions that the node speaks, best first; at most 16.
    pub versions: Vec<u16>,
    /// Bits of optional features, of which [`BUNDLES`](Self::BUNDLES) is one; unknown bits are ignored.
    pub capabilities: u64,
    /// The node's name, for people; at most [`NAME_MAX`] bytes.
    pub name: String,
    /// Chosen at random when the node starts: tells a restart from a new connection.
    pub node_instance: u64,
    /// The node's own [signed record](crate::mesh::SignedRecord), at most [`RECORD_LEN_MAX`] bytes;
    /// empty when it has none.
    pub record: Vec<u8>,
}

/// An edge's wish to bring a path into a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathJoin {
    /// Session id, chosen by the edge; the first join makes the session.
    pub session: u64,
    /// Path id inside the session. Joining it again gives it new keys.
    pub path: u8,
    /// The initiator's share of the key schedule.
    pub nonce: [u8; 16],
    /// The receiver index that the exit is to send to.
    pub receiver: u32,
    /// Codes of [`Suite`](crate::seal::Suite), best first; at most 8.
    pub suites: Vec<u8>,
    /// Which life of the edge's router counts the lanes.
    pub incarnation: u8,
    /// Name of the uplink, for people; at most [`NAME_MAX`] bytes.
    pub link_name: String,
}

/// The exit's consent.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathAccept {
    /// The responder's share of the key schedule.
    pub nonce: [u8; 16],
    /// The receiver index that the edge is to send to.
    pub receiver: u32,
    /// The chosen suite.
    pub suite: u8,
    /// The session's inner IPv4 address and prefix length.
    pub inner_v4: Option<([u8; 4], u8)>,
    /// The session's inner IPv6 address and prefix length.
    pub inner_v6: Option<([u8; 16], u8)>,
    /// The exit's inner IPv4 address.
    pub gateway_v4: Option<[u8; 4]>,
    /// MTU of the tunnel, in bytes of inner packet.
    pub inner_mtu: u16,
    /// Resolvers to use behind the exit; at most 8.
    pub dns: Vec<IpAddr>,
}

/// The exit's refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PathRefuse {
    /// For programs.
    pub reason: RefuseReason,
    /// For people; at most [`TEXT_MAX`] bytes.
    pub text: String,
}

/// Why a path was refused. One byte on the wire; a newer peer's reasons are kept as numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub enum RefuseReason {
    /// 1: this node may not use the exit.
    NotAllowed,
    /// 2: the exit has no room for more sessions or paths.
    Full,
    /// 3: no common cipher suite.
    NoSuite,
    /// 4: no common version of the data plane.
    NoVersion,
    /// 5: the session belongs to another node.
    WrongSession,
    /// 6: no inner address is left.
    NoAddress,
    /// 7: the exit can not serve now; try again later.
    Unavailable,
    /// Any other number.
    Other(u8),
}

impl From<u8> for RefuseReason {
    fn from(code: u8) -> Self {
        match code {
            1 => Self::NotAllowed,
            2 => Self::Full,
            3 => Self::NoSuite,
            4 => Self::NoVersion,
            5 => Self::WrongSession,
            6 => Self::NoAddress,
            7 => Self::Unavailable,
            other => Self::Other(other),
        }
    }
}

impl From<RefuseReason> for u8 {
    fn from(reason: RefuseReason) -> Self {
        match reason {
            RefuseReason::NotAllowed => 1,
            RefuseReason::Full => 2,
            RefuseReason::NoSuite => 3,
            RefuseReason::NoVersion => 4,
            RefuseReason::WrongSession => 5,
            RefuseReason::NoAddress => 6,
            RefuseReason::Unavailable => 7,
            RefuseReason::Other(other) => other,
        }
    }
}

/// A farewell.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bye {
    /// For people; at most [`TEXT_MAX`] bytes.
    pub reason: String,
}

/// A token's bearer asks to be let in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The mesh that the token is for.
    pub mesh: [u8; 16],
    /// The token's invite.
    pub invite: [u8; INVITE_ID_LEN],
    /// [`JoinProof::request`](crate::mesh::JoinProof::request).
    pub proof: [u8; PROOF_LEN],
    /// The name it would like; at most [`NAME_MAX`] bytes.
    pub name: String,
    /// Where it can be reached, should it become an exit; at most 4.
    pub addresses: Vec<SocketAddr>,
}

/// The inviter has let it in. Lists of the other members follow on the same stream; an empty one ends them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinAccept {
    /// [`JoinProof::accept`](crate::mesh::JoinProof::accept) over `record`.
    pub proof: [u8; PROOF_LEN],
    /// The new member's signed record, at most [`RECORD_LEN_MAX`] bytes.
    pub record: Vec<u8>,
}

/// The inviter has not let it in.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinRefuse {
    /// For programs.
    pub reason: JoinRefuseReason,
    /// For people; at most [`TEXT_MAX`] bytes.
    pub text: String,
}

/// Why a node was not let into the mesh. One byte on the wire; a newer peer's reasons are kept as
/// numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "u8", into = "u8")]
pub enum JoinRefuseReason {
    /// 1: the token is for another mesh than the inviter's.
    ForeignMesh,
    /// 2: the inviter knows no such invite.
    UnknownInvite,
    /// 3: the proof is wrong.
    Proof,
    /// 4: the invite has expired.
    Expired,
    /// 5: the invite is used up.
    UsedUp,
    /// 6: the name or the addresses will not do; an exit needs an address.
    Description,
    /// 7: the mesh has no room for another member.
    Full,
    /// 8: this node cannot let anybody in: it does not have the root key, or cannot use it now.
    NotInviter,
    /// Any other number.
    Other(u8),
}

impl From<u8> for JoinRefuseReason {
    fn from(code: u8) -> Self {
        match code {
            1 => Self::ForeignMesh,
            2 => Self::UnknownInvite,
            3 => Self::Proof,
            4 => Self::Expired,
            5 => Self::UsedUp,
            6 => Self::Description,
            7 => Self::Full,
            8 => Self::NotInviter,
            other => Self::Other(other),
        }
    }
}

impl From<JoinRefuseReason> for u8 {
    fn from(reason: JoinRefuseReason) -> Self {
        match reason {
            JoinRefuseReason::ForeignMesh => 1,
            JoinRefuseReason::UnknownInvite => 2,
            JoinRefuseReason::Proof => 3,
            JoinRefuseReason::Expired => 4,
            JoinRefuseReason::UsedUp => 5,
            JoinRefuseReason::Description => 6,
            JoinRefuseReason::Full => 7,
            JoinRefuseReason::NotInviter => 8,
            JoinRefuseReason::Other(other) => other,
        }
    }
}

/// Signed records and revocations; who hears them judges each by its signature.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberList {
    /// At most [`LIST_MAX`] [signed records](crate::mesh::SignedRecord).
    pub records: Vec<Vec<u8>>,
    /// At most [`LIST_MAX`] [signed revocations](crate::mesh::SignedRevocation).
    pub revocations: Vec<Vec<u8>>,
}

/// The bounds of a message's fields: cut to on the way out, demanded on the way in.
pub(super) trait Bounded {
    /// Cuts what exceeds the bounds.
    fn cut(&mut self);
    /// Whether all fields are within their bounds.
    fn holds(&self) -> bool;
}

/// Control characters are kept out because names and texts end up on terminals and in logs.
pub(super) fn text_holds(text: &str, max: usize) -> bool {
    text.len() <= max && !text.chars().any(char::is_control)
}

pub(super) fn cut_text(text: &mut String, max: usize) {
    if !text_holds(text, max) {
        *text = text.replace(char::is_control, " ");
        let end = (0..=max.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
    }
}

impl Hello {
    /// The capability to open [bundles](crate::wire::Bundle): who has not announced it is sent none.
    pub const BUNDLES: u64 = 1;

    /// Whether the node has announced all of these capabilities.
    pub fn can(&self, capabilities: u64) -> bool {
        self.capabilities & capabilities == capabilities
    }
}

impl Bounded for Hello {
    fn cut(&mut self) {
        self.versions.truncate(VERSIONS_MAX);
        cut_text(&mut self.name, NAME_MAX);
        self.record.truncate(RECORD_LEN_MAX);
    }

    fn holds(&self) -> bool {
        self.versions.len() <= VERSIONS_MAX
            && text_holds(&self.name, NAME_MAX)
            && self.record.len() <= RECORD_LEN_MAX
    }
}

impl Bounded for PathJoin {
    fn cut(&mut self) {
        self.suites.truncate(SUITES_MAX);
        cut_text(&mut self.link_name, NAME_MAX);
    }

    fn holds(&self) -> bool {
        self.suites.len() <= SUITES_MAX && text_holds(&self.link_name, NAME_MAX)
    }
}

impl Bounded for PathAccept {
    fn cut(&mut self) {
        self.dns.truncate(DNS_MAX);
        if let Some((_, prefix)) = &mut self.inner_v4 {
            *prefix = (*prefix).min(32);
        }
        if let Some((_, prefix)) = &mut self.inner_v6 {
            *prefix = (*prefix).min(128);
        }
    }

    fn holds(&self) -> bool {
        self.dns.len() <= DNS_MAX
            && self.inner_v4.is_none_or(|(_, prefix)| prefix <= 32)
            && self.inner_v6.is_none_or(|(_, prefix)| prefix <= 128)
    }
}

impl Bounded for PathRefuse {
    fn cut(&mut self) {
        cut_text(&mut self.text, TEXT_MAX);
    }

    fn holds(&self) -> bool {
        text_holds(&self.text, TEXT_MAX)
    }
}

impl Bounded for Bye {
    fn cut(&mut self) {
        cut_text(&mut self.reason, TEXT_MAX);
    }

    fn holds(&self) -> bool {
        text_holds(&self.reason, TEXT_MAX)
    }
}

impl Bounded for JoinRequest {
    fn cut(&mut self) {
        cut_text(&mut self.name, NAME_MAX);
        self.addresses.truncate(JOIN_ADDRESSES_MAX);
    }

    fn holds(&self) -> bool {
        text_holds(&self.name, NAME_MAX) && self.addresses.len() <= JOIN_ADDRESSES_MAX
    }
}

impl Bounded for JoinAccept {
    fn cut(&mut self) {
        self.record.truncate(RECORD_LEN_MAX);
    }

    fn holds(&self) -> bool {
        self.record.len() <= RECORD_LEN_MAX
    }
}

impl Bounded for JoinRefuse {
    fn cut(&mut self) {
        cut_text(&mut self.text, TEXT_MAX);
    }

    fn holds(&self) -> bool {
        text_holds(&self.text, TEXT_MAX)
    }
}

impl Bounded for MemberList {
    fn cut(&mut self) {
        self.records.truncate(LIST_MAX);
        self.records.iter_mut().for_each(|record| record.truncate(RECORD_LEN_MAX));
        self.revocations.truncate(LIST_MAX);
        self.revocations.iter_mut().for_each(|revocation| revocation.truncate(REVOCATION_LEN));
    }

    fn holds(&self) -> bool {
        self.records.len() <= LIST_MAX
            && self.records.iter().all(|record| record.len() <= RECORD_LEN_MAX)
            && self.revocations.len() <= LIST_MAX
            && self.revocations.iter().all(|revocation| revocation.len() <= REVOCATION_LEN)
    }
}
