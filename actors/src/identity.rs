//! Who a node is: an Ed25519 key, and the node id derived from its public half.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
pub use mwb_proto::mesh::{NodeId, NodeIdError};

/// What is wrong with a stored key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a PKCS#8 document with an Ed25519 key.
    #[error("not an Ed25519 key in PKCS#8: {0}")]
    Key(String),
    /// The system gave no randomness.
    #[error("the system gave no randomness for a key")]
    Randomness,
}

/// The key of this node.
pub struct Identity {
    pkcs8: Vec<u8>,
    public_key: [u8; 32],
    node_id: NodeId,
}

impl Identity {
    /// Makes a new key, as PKCS#8 to be stored and given to [`from_pkcs8`](Self::from_pkcs8).
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn generate() -> Result<Vec<u8>, IdentityError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_unspecified| IdentityError::Randomness)?;
        Ok(document.as_ref().to_vec())
    }

    /// Reads a stored key.
    ///
    /// # Errors
    /// When `pkcs8` holds no Ed25519 key.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, IdentityError> {
        let pair =
            Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|error| IdentityError::Key(error.to_string()))?;
        let public_key: [u8; 32] =
            pair.public_key().as_ref().try_into().map_err(|_| IdentityError::Key("length".to_owned()))?;
        let node_id = NodeId::of_public_key(&public_key);
        Ok(Self { pkcs8: pkcs8.to_vec(), public_key, node_id })
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The Ed25519 public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key of QUIC's stateless resets. It follows from the identity, so that a restarted node can
    /// still tell its peers that it has forgotten their connections.
    pub(crate) fn reset_key(&self) -> hmac::Key {
        let root = hmac::Key::new(hmac::HMAC_SHA256, &self.pkcs8);
        hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&root, b"mwb stateless reset").as_ref())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.node_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_key_gives_the_same_node() {
        let pkcs8 = Identity::generate().expect("key");
        let (a, b) = (Identity::from_pkcs8(&pkcs8).expect("a"), Identity::from_pkcs8(&pkcs8).expect("b"));
        assert_eq!(a.node_id(), b.node_id());
        assert_eq!(a.node_id().to_string().parse(), Ok(a.node_id()));
        assert!(Identity::from_pkcs8(b"no key").is_err());
        assert_eq!("abc".parse::<NodeId>(), Err(NodeIdError));
        assert_eq!("ü".repeat(32).parse::<NodeId>(), Err(NodeIdError));
    }
}
