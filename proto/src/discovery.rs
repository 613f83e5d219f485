//! What a node announces of itself on the LAN by DNS-SD (RFC 6763), and whose announcement it is.
//!
//! | key | value |
//! |---|---|
//! | `v` | `2`, the version of the wire format |
//! | `t` | 16 hex digits: the node's tag, [`node_tag`] |
//! | `s` | 4 hex digits: a random salt; only with `m` |
//! | `m` | 16 hex digits: the mesh, blinded with the salt, [`BlindMesh`]; absent when the node is in none |
//!
//! Who listens learns neither the node's id nor which mesh it is in, but who knows an id or a mesh can
//! recognise it. Nothing here proves anything: the answer to a dial does.

use std::fmt::{self, Write};

use aws_lc_rs::digest::{Context, SHA256};

use crate::mesh::{MeshId, NodeId};

/// The service type, with the domain of mDNS (RFC 6762).
pub const SERVICE_TYPE: &str = "_mwb._udp.local.";
/// Value of the key `v`.
pub const VERSION: &str = "2";

/// Stands for a node in announcements.
pub type Tag = [u8; 8];

/// The tag of `node`: the first 8 bytes of SHA-256(`"mwb mdns node"` ‖ node id).
pub fn node_tag(node: NodeId) -> Tag {
    hash(&[b"mwb mdns node", node.as_bytes()])
}

fn hash(parts: &[&[u8]]) -> [u8; 8] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let digest = context.finish();
    let (short, _) = digest.as_ref().split_first_chunk().expect("SHA-256 has 32 bytes");
    *short
}

/// A mesh as an announcement shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlindMesh {
    /// Chosen at random whenever the node begins to announce: one mesh looks different each time.
    pub salt: [u8; 2],
    /// The first 8 bytes of SHA-256(`"mwb mdns mesh"` ‖ mesh id ‖ salt).
    pub blinded: [u8; 8],
}

impl BlindMesh {
    /// Blinds `mesh`.
    pub fn new(mesh: MeshId, salt: [u8; 2]) -> Self {
        Self { salt, blinded: hash(&[b"mwb mdns mesh", mesh.as_bytes(), &salt]) }
    }

    /// Whether this is `mesh`. Another mesh passes once in 2^64.
    pub fn is(&self, mesh: MeshId) -> bool {
        *self == Self::new(mesh, self.salt)
    }
}

/// What one node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Who it is.
    pub tag: Tag,
    /// The mesh that it belongs to.
    pub mesh: Option<BlindMesh>,
}

/// Why a TXT record is no announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TxtError {
    /// `v` is missing or of another version.
    #[error("not of version {VERSION}")]
    Version,
    /// `t` is missing or not 16 hex digits.
    #[error("no tag")]
    Tag,
    /// `m` is not 16 hex digits or has no salt of 4 hex digits beside it.
    #[error("bad mesh")]
    Mesh,
}

impl Announcement {
    /// The TXT record: keys and values in the order of the table above.
    pub fn to_txt(&self) -> Vec<(&'static str, String)> {
        let mut txt = vec![("v", VERSION.to_owned()), ("t", hex(&self.tag))];
        if let Some(mesh) = &self.mesh {
            txt.extend([("s", hex(&mesh.salt)), ("m", hex(&mesh.blinded))]);
        }
        txt
    }

    /// Reads a TXT record. As RFC 6763 section 6.4 wants it, keys are compared without case, the first
    /// of equal keys counts, and keys that are not known are ignored.
    ///
    /// # Errors
    /// When it says nothing that this version understands.
    pub fn from_txt<'a>(
        properties: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
    ) -> Result<Self, TxtError> {
        let mut values: [Option<&[u8]>; 4] = [None; 4];
        for (key, value) in properties {
            let slot = ["v", "t", "s", "m"].iter().position(|known| key.eq_ignore_ascii_case(known));
            if let Some(slot) = slot
                && values[slot].is_none()
            {
                values[slot] = Some(value.unwrap_or_default());
            }
        }
        let [version, tag, salt, blinded] = values;
        if version != Some(VERSION.as_bytes()) {
            return Err(TxtError::Version);
        }
        let tag = tag.and_then(unhex).ok_or(TxtError::Tag)?;
        let mesh = match blinded {
            None => None,
            Some(blinded) => {
                let (salt, blinded) = (salt.and_then(unhex), unhex(blinded));
                let (salt, blinded) = salt.zip(blinded).ok_or(TxtError::Mesh)?;
                Some(BlindMesh { salt, blinded })
            }
        };
        Ok(Self { tag, mesh })
    }
}

/// A tag as it is shown: 16 hex digits. Also the name of the service instance and of the host.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _: fmt::Result = write!(text, "{byte:02x}");
        text
    })
}

fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = [digits[0], digits[1]].map(|digit| char::from(digit).to_digit(16));
        *byte = (high? << 4 | low?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Property<'a> = (&'a str, Option<&'a [u8]>);

    fn read(txt: &[Property<'_>]) -> Result<Announcement, TxtError> {
        Announcement::from_txt(txt.iter().copied())
    }

    fn read_back(announcement: &Announcement) -> Result<Announcement, TxtError> {
        let txt = announcement.to_txt();
        Announcement::from_txt(txt.iter().map(|(key, value)| (*key, Some(value.as_bytes()))))
    }

    /// Two nodes that disagree about a hash never meet: the values are part of the wire format.
    #[test]
    fn tags_and_blinded_meshes_are_fixed() {
        let tag = node_tag(NodeId::from_bytes([7; 32]));
        assert_eq!(hex(&tag), "3357599061cd737e");
        let mesh = BlindMesh::new(MeshId::from_bytes([9; 16]), [0xab, 0xcd]);
        let txt = Announcement { tag, mesh: Some(mesh) }.to_txt();
        let txt: Vec<_> = txt.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(txt, ["v=2", "t=3357599061cd737e", "s=abcd", "m=74a0c1d450de84f7"]);
    }

    #[test]
    fn what_is_no_announcement_is_refused_by_reason() {
        let tag: &[u8] = b"0011223344556677";
        let table: [(&[Property<'_>], Result<(), TxtError>); 12] = [
            (&[], Err(TxtError::Version)),
            (&[("v", None), ("t", Some(tag))], Err(TxtError::Version)),
            (&[("v", Some(b"1")), ("t", Some(tag))], Err(TxtError::Version)),
            (&[("v", Some(b"3")), ("v", Some(b"2")), ("t", Some(tag))], Err(TxtError::Version)),
            (&[("v", Some(b"2"))], Err(TxtError::Tag)),
            (&[("v", Some(b"2")), ("t", None)], Err(TxtError::Tag)),
            (&[("v", Some(b"2")), ("t", Some(b"001122334455667"))], Err(TxtError::Tag)),
            (&[("v", Some(b"2")), ("t", Some(b"+011223344556677"))], Err(TxtError::Tag)),
            (&[("v", Some(b"2")), ("t", Some(tag)), ("m", Some(tag))], Err(TxtError::Mesh)),
            (&[("v", Some(b"2")), ("t", Some(tag)), ("m", None), ("s", Some(b"0000"))], Err(TxtError::Mesh)),
            (&[("v", Some(b"2")), ("t", Some(tag)), ("s", Some(b"zz"))], Ok(())),
            (&[("x", None), ("V", Some(b"2")), ("T", Some(tag)), ("t", Some(b"!"))], Ok(())),
        ];
        for (txt, expected) in table {
            assert_eq!(read(txt).map(|_| ()), expected, "{txt:?}");
        }
    }

    /// Keys that matter, with values that are nearly right, among keys and values that are not.
    fn hostile_property() -> impl Strategy<Value = (String, Option<Vec<u8>>)> {
        let key = prop_oneof![
            3 => prop::sample::select(vec!["v", "t", "s", "m", "V", "T"]).prop_map(str::to_owned),
            1 => any::<String>(),
        ];
        let value = prop_oneof![
            Just(b"2".to_vec()),
            "[0-9a-fA-F]{16}".prop_map(String::into_bytes),
            "[0-9a-f]{3,5}".prop_map(String::into_bytes),
            prop::collection::vec(any::<u8>(), 0..300),
        ];
        (key, prop::option::of(value))
    }

    proptest! {
        #[test]
        fn hostile_records_never_panic(txt in prop::collection::vec(hostile_property(), 0..12)) {
            let read = Announcement::from_txt(txt.iter().map(|(key, value)| (key.as_str(), value.as_deref())));
            // Whatever was understood means the same when it is said again.
            if let Ok(announcement) = read {
                prop_assert_eq!(read_back(&announcement), Ok(announcement));
            }
        }

        #[test]
        fn only_who_knows_the_mesh_recognises_it(mesh: [u8; 16], other: [u8; 16], salt: [u8; 2], tag: Tag) {
            let (mesh, other) = (MeshId::from_bytes(mesh), MeshId::from_bytes(other));
            let announcement = Announcement { tag, mesh: Some(BlindMesh::new(mesh, salt)) };
            let read = read_back(&announcement).expect("our own");
            prop_assert_eq!(read, announcement);
            let blind = read.mesh.expect("announced");
            prop_assert!(blind.is(mesh));
            prop_assert_eq!(blind.is(other), other == mesh);
            // Neither the mesh nor any half of it is in what is sent.
            let text = announcement.to_txt().into_iter().map(|(_, value)| value).collect::<String>();
            let (front, back) = (hex(&mesh.as_bytes()[..8]), hex(&mesh.as_bytes()[8..]));
            prop_assert!(tag == mesh.as_bytes()[..8] || tag == mesh.as_bytes()[8..]
                || (!text.contains(&front) && !text.contains(&back)));
        }
    }
}
