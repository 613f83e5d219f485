//! What the root signs.
//!
//! ```text
//! record      version 1 | mesh 16 | public key 32 | serial 8 | roles 1 | name | addresses
//! revocation  version 1 | mesh 16 | node id 32 | serial 8
//! name        length 1 | UTF-8
//! addresses   count 1 | count x ( family 1: 4 or 6 | 4 or 16 bytes | port 2 )
//! signed      one of them | signature 64
//! signature   Ed25519(root, domain | one of them)
//! ```
//!
//! Numbers are big-endian and the version is 1. The domains end in a zero byte and differ for the
//! two, so that neither can be taken for the other, nor for anything else a key may sign.

use std::fmt;
use std::net::SocketAddr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::Serialize;

use super::codec::{ADDRESSES_MAX, FieldError, Fields, addresses_hold, name_holds, put_addresses, put_name};
use super::{MeshId, NodeId, Roles};
use crate::control::NAME_MAX;

const VERSION: u8 = 1;
const RECORD_DOMAIN: &[u8] = b"mwb member record v1\0";
const REVOCATION_DOMAIN: &[u8] = b"mwb revocation v1\0";
const SIGNATURE_LEN: usize = 64;
const RECORD_BODY_MAX: usize = 1 + 16 + 32 + 8 + 1 + 1 + NAME_MAX + 1 + ADDRESSES_MAX * 19;
const REVOCATION_BODY: usize = 1 + 16 + 32 + 8;
/// The most bytes of a signed record.
pub const RECORD_LEN_MAX: usize = RECORD_BODY_MAX + SIGNATURE_LEN;
/// Bytes of a signed revocation.
pub const REVOCATION_LEN: usize = REVOCATION_BODY + SIGNATURE_LEN;

/// The public half of a mesh's root key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootPublicKey([u8; 32]);

impl RootPublicKey {
    /// From the 32 bytes of an Ed25519 public key. Bytes that are no point of the curve verify nothing.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The mesh of this root.
    pub fn mesh(&self) -> MeshId {
        MeshId::of_root(self)
    }

    fn verifies(&self, domain: &[u8], body: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        let message = [domain, body].concat();
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&message, signature).is_ok()
    }
}

impl fmt::Debug for RootPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootPublicKey(of {})", self.mesh())
    }
}

/// A stored root key that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 key in PKCS#8: {0}")]
pub struct RootKeyError(String);

/// The root key: whoever has it decides who belongs to the mesh.
pub struct RootKey {
    pair: Ed25519KeyPair,
    public_key: RootPublicKey,
}

impl RootKey {
    /// From a PKCS#8 document.
    ///
    /// # Errors
    /// When it holds no Ed25519 key.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, RootKeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|error| RootKeyError(error.to_string()))?;
        let public_key = pair.public_key().as_ref().try_into();
        let public_key = RootPublicKey(public_key.map_err(|_| RootKeyError("length".to_owned()))?);
        Ok(Self { pair, public_key })
    }

    /// The public half.
    pub fn public_key(&self) -> RootPublicKey {
        self.public_key
    }

    /// Signs `record`. Its mesh becomes this root's.
    ///
    /// # Errors
    /// When its name or its addresses are out of bounds.
    pub fn sign_record(&self, mut record: MemberRecord) -> Result<SignedRecord, FieldError> {
        record.mesh = self.public_key.mesh();
        for address in &mut record.addresses {
            *address = SocketAddr::new(address.ip().to_canonical(), address.port());
        }
        if !name_holds(&record.name) {
            return Err(FieldError::Name);
        }
        if !addresses_hold(&record.addresses) {
            return Err(FieldError::Address);
        }
        let signature = self.sign(RECORD_DOMAIN, &record.encode());
        Ok(SignedRecord { record, signature })
    }

    /// Revokes all records of `node` up to `serial`.
    pub fn sign_revocation(&self, node: NodeId, serial: u64) -> SignedRevocation {
        let revocation = Revocation { mesh: self.public_key.mesh(), node, serial };
        let signature = self.sign(REVOCATION_DOMAIN, &revocation.encode());
        SignedRevocation { revocation, signature }
    }

    fn sign(&self, domain: &[u8], body: &[u8]) -> [u8; SIGNATURE_LEN] {
        let signature = self.pair.sign(&[domain, body].concat());
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootKey(of {})", self.public_key.mesh())
    }
}

/// Who a member is. Only its signed form means anything.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MemberRecord {
    /// The mesh.
    pub mesh: MeshId,
    /// The node's Ed25519 public key; its id follows from it.
    #[serde(skip)]
    pub public_key: [u8; 32],
    /// Its name, unique in the mesh; 1 to [`NAME_MAX`] bytes without slash or control characters.
    pub name: String,
    /// What it may do.
    pub roles: Roles,
    /// Grows with every record of the node; the highest counts.
    pub serial: u64,
    /// Where an exit can be reached; at most [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
}

impl MemberRecord {
    /// The node it speaks of.
    pub fn node(&self) -> NodeId {
        NodeId::of_public_key(&self.public_key)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(RECORD_LEN_MAX);
        out.push(VERSION);
        out.extend_from_slice(self.mesh.as_bytes());
        out.extend_from_slice(&self.public_key);
        out.extend_from_slice(&self.serial.to_be_bytes());
        out.push(self.roles.bits());
        put_name(&mut out, &self.name);
        put_addresses(&mut out, &self.addresses);
        out
    }
}

/// A record with a signature that has not been judged: [`Members`](super::Members) does that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedRecord {
    record: MemberRecord,
    signature: [u8; SIGNATURE_LEN],
}

impl SignedRecord {
    /// Reads [`encode`](Self::encode)'s bytes; the only ones that give this record.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut fields = Fields(bytes);
        version(fields.u8()?)?;
        let (mesh, public_key) = (MeshId::from_bytes(fields.array()?), fields.array()?);
        let (serial, roles) = (fields.u64()?, Roles::from_bits(fields.u8()?));
        let (name, addresses) = (fields.name()?, fields.addresses()?);
        let signature = fields.array()?;
        fields.end()?;
        Ok(Self { record: MemberRecord { mesh, public_key, name, roles, serial, addresses }, signature })
    }

    /// The bytes, at most [`RECORD_LEN_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.record.encode();
        out.extend_from_slice(&self.signature);
        out
    }

    /// What it says.
    pub fn record(&self) -> &MemberRecord {
        &self.record
    }

    /// Whether `root` has signed it.
    pub fn is_signed_by(&self, root: &RootPublicKey) -> bool {
        root.verifies(RECORD_DOMAIN, &self.record.encode(), &self.signature)
    }
}

/// The end of a node's records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Revocation {
    /// The mesh.
    pub mesh: MeshId,
    /// The node.
    pub node: NodeId,
    /// Its records up to this serial count no more.
    pub serial: u64,
}

impl Revocation {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(REVOCATION_LEN);
        out.push(VERSION);
        out.extend_from_slice(self.mesh.as_bytes());
        out.extend_from_slice(self.node.as_bytes());
        out.extend_from_slice(&self.serial.to_be_bytes());
        out
    }
}

/// A revocation with a signature that has not been judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedRevocation {
    revocation: Revocation,
    signature: [u8; SIGNATURE_LEN],
}

impl SignedRevocation {
    /// Reads [`encode`](Self::encode)'s bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, FieldError> {
        let mut fields = Fields(bytes);
        version(fields.u8()?)?;
        let (mesh, node) = (MeshId::from_bytes(fields.array()?), NodeId::from_bytes(fields.array()?));
        let (serial, signature) = (fields.u64()?, fields.array()?);
        fields.end()?;
        Ok(Self { revocation: Revocation { mesh, node, serial }, signature })
    }

    /// The bytes, always [`REVOCATION_LEN`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.revocation.encode();
        out.extend_from_slice(&self.signature);
        out
    }

    /// What it says.
    pub fn revocation(&self) -> &Revocation {
        &self.revocation
    }

    /// Whether `root` has signed it.
    pub fn is_signed_by(&self, root: &RootPublicKey) -> bool {
        root.verifies(REVOCATION_DOMAIN, &self.revocation.encode(), &self.signature)
    }
}

fn version(version: u8) -> Result<(), FieldError> {
    if version == VERSION { Ok(()) } else { Err(FieldError::Version(version)) }
}
