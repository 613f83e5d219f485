//! The members of a mesh, as far as this node has been told.

use std::collections::BTreeMap;

use super::codec::FieldError;
use super::{
    MemberRecord, MeshId, NodeId, Revocation, Roles, RootKey, RootPublicKey, SignedRecord, SignedRevocation,
};
use crate::control::NAME_MAX;

/// The most members of a mesh, and the most revocations kept.
pub const MEMBERS_MAX: usize = 256;

/// Why a record or revocation was not taken; nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum RecordRefused {
    /// It is of another mesh.
    #[error("the record belongs to another mesh")]
    ForeignMesh,
    /// The root has not signed it.
    #[error("the record's signature is wrong")]
    Signature,
    /// The root has revoked it.
    #[error("this node's membership was revoked")]
    Revoked,
    /// There are [`MEMBERS_MAX`] already.
    #[error("the mesh is full")]
    Full,
}

/// Why a node is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum AdmitError {
    /// It has shown no record.
    #[error("this node has shown no membership record")]
    NoRecord,
    /// What it has shown is no record.
    #[error("the membership record is malformed: {0}")]
    Malformed(FieldError),
    /// The record is of another node.
    #[error("the membership record is another node's")]
    AnotherNode,
    /// The node that judges was revoked itself.
    #[error("the membership of the node that was asked was revoked")]
    Outside,
    /// The record does not count here.
    #[error(transparent)]
    Refused(#[from] RecordRefused),
}

/// Records and revocations under one root.
///
/// The state depends only on *what* was taken, not on the order: per node the highest serial counts (of
/// two with one serial, which an honest root never signs, the greater bytes), unless a revocation
/// reaches it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Members {
    root: RootPublicKey,
    mesh: MeshId,
    records: BTreeMap<NodeId, SignedRecord>,
    revocations: BTreeMap<NodeId, SignedRevocation>,
}

impl Members {
    /// A mesh that nobody is known of.
    pub fn new(root: RootPublicKey) -> Self {
        Self { root, mesh: root.mesh(), records: BTreeMap::new(), revocations: BTreeMap::new() }
    }

    /// The root's public key.
    pub fn root(&self) -> &RootPublicKey {
        &self.root
    }

    /// The mesh.
    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Takes a record; true when it changes anything.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn handle_record(&mut self, signed: &SignedRecord) -> Result<bool, RecordRefused> {
        let record = signed.record();
        if record.mesh != self.mesh {
            return Err(RecordRefused::ForeignMesh);
        }
        let node = record.node();
        let known = self.records.get(&node);
        if known == Some(signed) {
            return Ok(false);
        }
        if !signed.is_signed_by(&self.root) {
            return Err(RecordRefused::Signature);
        }
        if self.revoked_serial(node).is_some_and(|serial| record.serial <= serial) {
            return Err(RecordRefused::Revoked);
        }
        match known {
            Some(known) if rank(known) >= rank(signed) => return Ok(false),
            None if self.records.len() >= MEMBERS_MAX => return Err(RecordRefused::Full),
            _ => {}
        }
        self.records.insert(node, signed.clone());
        Ok(true)
    }

    /// Takes a revocation; true when it changes anything.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn handle_revocation(&mut self, signed: &SignedRevocation) -> Result<bool, RecordRefused> {
        let Revocation { mesh, node, serial } = *signed.revocation();
        if mesh != self.mesh {
            return Err(RecordRefused::ForeignMesh);
        }
        if self.revocations.get(&node) == Some(signed) {
            return Ok(false);
        }
        if !signed.is_signed_by(&self.root) {
            return Err(RecordRefused::Signature);
        }
        match self.revoked_serial(node) {
            Some(known) if known >= serial => return Ok(false),
            None if self.revocations.len() >= MEMBERS_MAX => return Err(RecordRefused::Full),
            _ => {}
        }
        self.revocations.insert(node, signed.clone());
        if self.records.get(&node).is_some_and(|known| known.record().serial <= serial) {
            self.records.remove(&node);
        }
        Ok(true)
    }

    /// Judges a node that has proved its key and shows `record`: the one question whose answer makes a
    /// member. Gives what counts of it, which may be newer than what it has shown, and whether this
    /// was news.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn admit(&mut self, node: NodeId, record: &[u8]) -> Result<(&MemberRecord, bool), AdmitError> {
        if record.is_empty() {
            // A revoked node that has learnt of it has nothing to show.
            let revoked = self.revoked_serial(node).is_some() && !self.records.contains_key(&node);
            return Err(if revoked { RecordRefused::Revoked.into() } else { AdmitError::NoRecord });
        }
        let signed = SignedRecord::decode(record).map_err(AdmitError::Malformed)?;
        if signed.record().node() != node {
            return Err(AdmitError::AnotherNode);
        }
        let news = self.handle_record(&signed)?;
        let counts = self.records.get(&node).expect("a record that is taken or older than another is known");
        Ok((counts.record(), news))
    }

    /// The record of `node`.
    pub fn record(&self, node: NodeId) -> Option<&MemberRecord> {
        self.records.get(&node).map(SignedRecord::record)
    }

    /// The record of `node` with its signature, to be shown to others.
    pub fn signed(&self, node: NodeId) -> Option<&SignedRecord> {
        self.records.get(&node)
    }

    /// All records, by node id.
    pub fn records(&self) -> impl ExactSizeIterator<Item = &SignedRecord> {
        self.records.values()
    }

    /// All revocations, by node id.
    pub fn revocations(&self) -> impl ExactSizeIterator<Item = &SignedRevocation> {
        self.revocations.values()
    }

    /// The exits that can be reached, by name.
    pub fn exits(&self) -> Vec<&MemberRecord> {
        let records = self.records.values().map(SignedRecord::record);
        let mut exits: Vec<_> =
            records.filter(|r| r.roles.contains(Roles::EXIT) && !r.addresses.is_empty()).collect();
        exits.sort_by(|a, b| (&a.name, a.public_key).cmp(&(&b.name, b.public_key)));
        exits
    }

    /// Signs and takes a record for the node with `public_key`: a new one with the next serial, unless
    /// the present one says the same already. A name that another member has gets a number.
    ///
    /// # Errors
    /// When the name or addresses are out of bounds, or the mesh is full.
    pub fn enrol(
        &mut self,
        root: &RootKey,
        public_key: [u8; 32],
        (name, roles, addresses): (&str, Roles, &[std::net::SocketAddr]),
    ) -> Result<SignedRecord, EnrolError> {
        let node = NodeId::of_public_key(&public_key);
        let name = self.free_name(node, name);
        if let Some(known) = self.records.get(&node) {
            let record = known.record();
            if (record.name.as_str(), record.roles, &record.addresses[..]) == (&name, roles, addresses) {
                return Ok(known.clone());
            }
        }
        let known = self.records.get(&node).map(|known| known.record().serial);
        let serial = known.max(self.revoked_serial(node)).map_or(1, |serial| serial.saturating_add(1));
        let record =
            MemberRecord { mesh: self.mesh, public_key, name, roles, serial, addresses: addresses.to_vec() };
        let signed = root.sign_record(record)?;
        self.handle_record(&signed)?;
        Ok(signed)
    }

    /// Signs and takes a revocation of the present record of `node`; `None` when it is no member.
    ///
    /// # Errors
    /// When there are too many revocations, or the root is another mesh's.
    pub fn revoke(&mut self, root: &RootKey, node: NodeId) -> Result<Option<Revocation>, RecordRefused> {
        let Some(record) = self.record(node) else { return Ok(None) };
        let signed = root.sign_revocation(node, record.serial);
        self.handle_revocation(&signed)?;
        Ok(Some(*signed.revocation()))
    }

    fn revoked_serial(&self, node: NodeId) -> Option<u64> {
        self.revocations.get(&node).map(|signed| signed.revocation().serial)
    }

    fn free_name(&self, node: NodeId, wanted: &str) -> String {
        let taken = |name: &str| {
            self.records.iter().any(|(other, signed)| *other != node && signed.record().name == name)
        };
        if !taken(wanted) {
            return wanted.to_owned();
        }
        let numbered = (2..).map(|number: u32| {
            let end = format!("-{number}");
            let room = NAME_MAX - end.len();
            let cut = (0..=room.min(wanted.len())).rev().find(|&at| wanted.is_char_boundary(at)).unwrap_or(0);
            format!("{}{end}", &wanted[..cut])
        });
        numbered.into_iter().find(|name| !taken(name)).expect("members are fewer than numbers")
    }
}

/// Why a node could not become a member.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnrolError {
    /// What it says of itself is out of bounds.
    #[error("the node's description is wrong: {0}")]
    Field(#[from] FieldError),
    /// The mesh does not take it.
    #[error(transparent)]
    Refused(#[from] RecordRefused),
}

fn rank(signed: &SignedRecord) -> (u64, Vec<u8>) {
    (signed.record().serial, signed.encode())
}
