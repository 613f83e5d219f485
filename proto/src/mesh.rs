//! Who belongs to a mesh: records that its root has signed, invitations to it, and proofs of them.
//!
//! The *root* of a mesh is an Ed25519 key. It signs a [`MemberRecord`] for every node it lets in and a
//! [`Revocation`] for every node it sends away; nothing else makes a member. [`Members`] keeps what
//! was signed and judges what a peer shows. An [`Invites`] keeps what was promised to whom holds a
//! [`Token`], and [`JoinProof`] is how a node shows that it does, over a TLS connection, without
//! showing the secret.
//!
//! The shells move the bytes: records travel in a hello, in a join's answer and in member lists, and
//! lie in a file. Everything read here comes from a network or a disk that may lie, so nothing panics
//! and everything is bounded.

mod codec;
mod invite;
mod join;
mod members;
mod node_id;
mod record;
mod token;

#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

pub use codec::{ADDRESSES_MAX, FieldError};
pub use invite::{
    INVITES_MAX, Invite, Invites, IssueError, RedeemError, Redeemed, TTL_MAX, TTL_MIN, USES_MAX,
};
pub use join::{JOIN_EXPORTER_LABEL, JoinProof, PROOF_LEN};
pub use members::{AdmitError, EnrolError, MEMBERS_MAX, Members, RecordRefused};
pub use node_id::{NodeId, NodeIdError};
pub use record::{
    MemberRecord, RECORD_LEN_MAX, REVOCATION_LEN, Revocation, RootKey, RootKeyError, RootPublicKey,
    SignedRecord, SignedRevocation,
};
pub use token::{INVITE_ID_LEN, SECRET_LEN, TOKEN_TEXT_MAX, Token, TokenError};

/// Name of a mesh: the first 16 bytes of SHA-256 of its root's public key. Shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshId([u8; 16]);

impl MeshId {
    /// From the 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The mesh of this root.
    pub fn of_root(root: &RootPublicKey) -> Self {
        let hash = digest::digest(&digest::SHA256, root.as_bytes());
        let (short, _) = hash.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
        Self(*short)
    }
}

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshId({self})")
    }
}

impl Serialize for MeshId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a member may do; one byte, a bit for each role. Bits that are not known are kept: a newer
/// root may have given more than this node understands.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Roles(u8);

impl Roles {
    /// No role.
    pub const NONE: Self = Self(0);
    /// Bit 0: may use the mesh's exits.
    pub const EDGE: Self = Self(1);
    /// Bit 1: may lend uplinks.
    pub const LENDER: Self = Self(2);
    /// Bit 2: is an exit.
    pub const EXIT: Self = Self(4);

    const NAMED: [(Self, &'static str); 3] =
        [(Self::EDGE, "edge"), (Self::LENDER, "lender"), (Self::EXIT, "exit")];

    /// From the byte.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The byte.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other` are among these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The names of the known ones, in the order of their bits.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMED.into_iter().filter(move |(role, _)| self.contains(*role)).map(|(_, name)| name)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.names();
        match names.next() {
            None => f.write_str("none"),
            Some(first) => {
                f.write_str(first)?;
                names.try_for_each(|name| write!(f, ",{name}"))
            }
        }
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

/// What is wrong with a text that should be roles.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no role: the roles are edge, lender and exit, separated by commas")]
pub struct RolesError(pub String);

impl FromStr for Roles {
    type Err = RolesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(str::trim).try_fold(Self::NONE, |roles, word| {
            let named = Self::NAMED.into_iter().find(|(_, name)| *name == word);
            named.map(|(role, _)| roles.with(role)).ok_or_else(|| RolesError(word.to_owned()))
        })
    }
}
