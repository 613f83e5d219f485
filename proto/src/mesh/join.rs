//! Proofs of an invite's secret, in both directions.
//!
//! ```text
//! request = HMAC-SHA256(secret, "mwb join v1 request" | exporter 32 | joiner 32 | inviter 32)
//! accept  = HMAC-SHA256(secret, "mwb join v1 accept"  | exporter 32 | joiner 32 | inviter 32 | signed record)
//! ```
//!
//! The exporter (RFC 8446 section 7.5) belongs to one TLS connection, so a proof that someone catches
//! is worth nothing on another; the two labels keep a proof from being sent back as its own answer.

use aws_lc_rs::hmac;

use super::NodeId;
use super::token::SECRET_LEN;

/// Label of the TLS exporter of a join; its context is empty and it gives 32 bytes.
pub const JOIN_EXPORTER_LABEL: &[u8] = b"EXPORTER-mwb-join-v1";
/// Bytes of a proof.
pub const PROOF_LEN: usize = 32;

const REQUEST: &[u8] = b"mwb join v1 request";
const ACCEPT: &[u8] = b"mwb join v1 accept";

/// What both ends of a join know: makes and checks its proofs.
#[derive(Clone, Copy)]
pub struct JoinProof<'a> {
    /// The invite's secret.
    pub secret: &'a [u8; SECRET_LEN],
    /// From the connection, under [`JOIN_EXPORTER_LABEL`].
    pub exporter: &'a [u8; 32],
    /// Who joins.
    pub joiner: NodeId,
    /// Through whom.
    pub inviter: NodeId,
}

impl JoinProof<'_> {
    /// The joiner's proof.
    pub fn request(&self) -> [u8; PROOF_LEN] {
        self.make(REQUEST, &[])
    }

    /// Whether `proof` is the joiner's, in constant time.
    pub fn is_request(&self, proof: &[u8]) -> bool {
        self.check(REQUEST, &[], proof)
    }

    /// The inviter's proof, for the signed record that it gives.
    pub fn accept(&self, record: &[u8]) -> [u8; PROOF_LEN] {
        self.make(ACCEPT, record)
    }

    /// Whether `proof` is the inviter's for `record`, in constant time.
    pub fn is_accept(&self, record: &[u8], proof: &[u8]) -> bool {
        self.check(ACCEPT, record, proof)
    }

    fn message(&self, label: &[u8], record: &[u8]) -> Vec<u8> {
        [label, self.exporter, self.joiner.as_bytes(), self.inviter.as_bytes(), record].concat()
    }

    fn make(&self, label: &[u8], record: &[u8]) -> [u8; PROOF_LEN] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret);
        let tag = hmac::sign(&key, &self.message(label, record));
        tag.as_ref().try_into().expect("HMAC-SHA256 has 32 bytes")
    }

    fn check(&self, label: &[u8], record: &[u8], proof: &[u8]) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret);
        hmac::verify(&key, &self.message(label, record), proof).is_ok()
    }
}

impl std::fmt::Debug for JoinProof<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinProof({:?} through {:?})", self.joiner, self.inviter)
    }
}
