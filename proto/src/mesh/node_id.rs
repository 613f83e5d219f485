//! The name of a node.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

/// DER of `SubjectPublicKeyInfo` for Ed25519 up to the key itself (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Length of an Ed25519 `SubjectPublicKeyInfo`.
const SPKI_LEN: usize = 44;

/// The `SubjectPublicKeyInfo` of an Ed25519 public key, as TLS raw public keys carry it.
fn spki(public_key: &[u8; 32]) -> [u8; SPKI_LEN] {
    let mut out = [0; SPKI_LEN];
    out[..SPKI_PREFIX.len()].copy_from_slice(&SPKI_PREFIX);
    out[SPKI_PREFIX.len()..].copy_from_slice(public_key);
    out
}

/// Name of a node everywhere: SHA-256 of its `SubjectPublicKeyInfo`. Shown as 64 hex digits; in
/// control messages its 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// From the 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of the node with this public key; `None` when `spki` is not an Ed25519 key.
    pub fn of_spki(spki: &[u8]) -> Option<Self> {
        if spki.len() != SPKI_LEN || !spki.starts_with(&SPKI_PREFIX) {
            return None;
        }
        let hash = digest::digest(&digest::SHA256, spki);
        Some(Self(hash.as_ref().try_into().expect("SHA-256 has 32 bytes")))
    }

    /// The id of the node with this Ed25519 public key.
    pub fn of_public_key(public_key: &[u8; 32]) -> Self {
        Self::of_spki(&spki(public_key)).expect("made from the prefix")
    }

    /// The first eight hex digits, for names and logs.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// What is wrong with a text that should be a node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 64 hexadecimal digits")]
pub struct NodeIdError;

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(NodeIdError);
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| NodeIdError)?;
        }
        Ok(Self(bytes))
    }
}
