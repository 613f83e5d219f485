//! Key schedule of a path: one chain of keys per direction.
//!
//! ```text
//! exporter, nonces -- HKDF-Extract --> prk -- Expand "mwb2 i2r" | "mwb2 r2i", path --> secret(0)
//! secret(e) -- Expand "mwb2 key ..." --> key(e)
//! secret(e) -- Expand "mwb2 next"    --> secret(e + 1)
//! ```
//!
//! HKDF-SHA256, RFC 5869. A chain holds only the secret of the epoch to come, so what is kept in
//! memory does not give back a key that has been used up.

use std::fmt;

use aws_lc_rs::aead::{AES_128_GCM, Algorithm, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};

use crate::wire::PathId;

/// Label of the TLS exporter (RFC 8446 section 7.5) of a path's connection; its context is empty and
/// it gives the 32 bytes that [`derive()`] wants.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-mwb-path-v2";

const LABEL_INITIATOR: &[u8] = b"mwb2 i2r";
const LABEL_RESPONDER: &[u8] = b"mwb2 r2i";
const LABEL_KEY_AES: &[u8] = b"mwb2 key aes-128-gcm";
const LABEL_KEY_CHACHA: &[u8] = b"mwb2 key chacha20-poly1305";
const LABEL_NEXT: &[u8] = b"mwb2 next";

/// Cipher of a path, chosen when it joins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Suite {
    /// For processors with AES instructions: about 300 ns per 1,400 bytes.
    Aes128Gcm = 1,
    /// For processors without them.
    ChaCha20Poly1305 = 2,
}

impl Suite {
    /// All suites.
    pub const ALL: [Self; 2] = [Self::Aes128Gcm, Self::ChaCha20Poly1305];

    /// The fast one on this machine.
    pub fn preferred() -> Self {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        let aes =
            std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let aes = std::arch::is_aarch64_feature_detected!("aes");
        #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
        let aes = false;
        if aes { Self::Aes128Gcm } else { Self::ChaCha20Poly1305 }
    }

    /// What to offer in a path join, best first.
    pub fn offer() -> Vec<u8> {
        match Self::preferred() {
            first @ Self::Aes128Gcm => vec![first.code(), Self::ChaCha20Poly1305.code()],
            first @ Self::ChaCha20Poly1305 => vec![first.code(), Self::Aes128Gcm.code()],
        }
    }

    /// What to accept of an offer: AES only when it comes first for both sides. `None` when no code
    /// is known.
    pub fn choose(offered: &[u8]) -> Option<Self> {
        Self::choose_preferring(Self::preferred(), offered)
    }

    fn choose_preferring(mine: Self, offered: &[u8]) -> Option<Self> {
        let mut known = offered.iter().filter_map(|&code| Self::from_code(code));
        let first = known.next()?;
        if first == mine || !known.any(|other| other != first) {
            return Some(first);
        }
        Some(Self::ChaCha20Poly1305)
    }

    /// Number of the suite in control messages.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The suite of a number; `None` when it is not known here.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Aes128Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    fn algorithm(self) -> (&'static Algorithm, &'static [u8]) {
        match self {
            Self::Aes128Gcm => (&AES_128_GCM, LABEL_KEY_AES),
            Self::ChaCha20Poly1305 => (&CHACHA20_POLY1305, LABEL_KEY_CHACHA),
        }
    }
}

/// Which end of the path a node is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// Sent the path join (the edge).
    Initiator,
    /// Accepted it (the exit).
    Responder,
}

/// Where the keys of one direction come from. Erased on drop, never printed.
#[derive(Clone)]
pub struct Secret(Prk);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The two directions of a path, seen from one end.
#[derive(Debug)]
pub struct PathSecrets {
    /// For this end's [`Sealer`](super::Sealer).
    pub tx: Secret,
    /// For this end's [`Opener`](super::Opener).
    pub rx: Secret,
}

/// The secrets of epoch 0, from the path's TLS exporter, its id, and the 16 random bytes that each
/// end gave when the path joined. The fresh bytes keep a restarted end from meeting an old key again.
pub fn derive(
    exporter: &[u8; 32],
    path: PathId,
    initiator: &[u8; 16],
    responder: &[u8; 16],
    role: Role,
) -> PathSecrets {
    let mut salt = [0; 32];
    salt[..16].copy_from_slice(initiator);
    salt[16..].copy_from_slice(responder);
    let prk = Salt::new(HKDF_SHA256, &salt).extract(exporter);
    let forward = expand(&prk, &[LABEL_INITIATOR, &[path.0]]);
    let backward = expand(&prk, &[LABEL_RESPONDER, &[path.0]]);
    match role {
        Role::Initiator => PathSecrets { tx: forward, rx: backward },
        Role::Responder => PathSecrets { tx: backward, rx: forward },
    }
}

fn expand(prk: &Prk, info: &[&[u8]]) -> Secret {
    Secret(prk.expand(info, HKDF_SHA256).expect("32 bytes are within HKDF's length limit").into())
}

/// The keys of one direction, epoch after epoch.
#[derive(Clone)]
pub(super) struct Chain {
    suite: Suite,
    /// Secret of the epoch whose key is given out next.
    secret: Secret,
}

impl Chain {
    pub(super) const fn new(secret: Secret, suite: Suite) -> Self {
        Self { suite, secret }
    }

    /// The key of the next epoch. The secret it came from is gone afterwards.
    pub(super) fn next_key(&mut self) -> LessSafeKey {
        let (algorithm, label) = self.suite.algorithm();
        let info: [&[u8]; 1] = [label];
        let key = self.secret.0.expand(&info, algorithm).expect("a key is within HKDF's length limit");
        let key = LessSafeKey::new(UnboundKey::from(key));
        self.secret = expand(&self.secret.0, &[LABEL_NEXT]);
        key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aes_is_chosen_only_when_both_sides_are_fast_at_it() {
        use Suite::{Aes128Gcm as Aes, ChaCha20Poly1305 as ChaCha};
        let choose = Suite::choose_preferring;
        assert_eq!(choose(Aes, &[1, 2]), Some(Aes));
        assert_eq!(choose(Aes, &[2, 1]), Some(ChaCha));
        assert_eq!(choose(ChaCha, &[1, 2]), Some(ChaCha));
        assert_eq!(choose(ChaCha, &[2, 1]), Some(ChaCha));
        assert_eq!(choose(ChaCha, &[1]), Some(Aes));
        assert_eq!(choose(ChaCha, &[1, 1]), Some(Aes));
        assert_eq!(choose(Aes, &[77, 2, 99]), Some(ChaCha));
        assert_eq!(choose(Aes, &[]), None);
        assert_eq!(choose(Aes, &[0, 3, 255]), None);
        assert_eq!(Suite::choose(&Suite::offer()), Some(Suite::preferred()));
        for suite in Suite::ALL {
            assert_eq!(Suite::from_code(suite.code()), Some(suite));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secrets = derive(&[7; 32], PathId(1), &[1; 16], &[2; 16], Role::Initiator);
        assert_eq!(format!("{secrets:?}"), "PathSecrets { tx: Secret(..), rx: Secret(..) }");
    }
}
