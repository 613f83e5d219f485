//! What this node knows of its mesh, who may talk to it, and how a node is let in.
//!
//! [`Membership`] is the state, shared by all actors and outliving them; the machine in it is
//! [`Members`]. [`store`] keeps it on disk, [`keeper`] is the actor that saves what is new, takes what
//! other programs have saved, sends away whose membership has ended, and runs [`spread`] on every
//! connection with a member. [`join`] is both sides of a join.

pub mod join;
pub mod keeper;
mod spread;
pub mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mwb_proto::control::MemberList;
use mwb_proto::mesh::{
    AdmitError, MemberRecord, Members, MeshId, NodeId, Roles, SignedRecord, SignedRevocation,
};
use parking_lot::Mutex;
use quinn::Connection;
use tokio::sync::watch;

use self::store::{Store, StoreError};

/// The mesh as this node knows it.
pub struct Membership {
    store: Store,
    me: NodeId,
    members: Mutex<Members>,
    /// Grows with every change of `members`.
    version: watch::Sender<u64>,
    connections: Mutex<BTreeMap<usize, (NodeId, Connection)>>,
    /// Grows with every new connection.
    connected: watch::Sender<u64>,
}

impl Membership {
    /// What is stored in the state folder of the node `me`; `None` when it belongs to no mesh.
    ///
    /// # Errors
    /// When the files cannot be read or do not hold what they should.
    pub fn open(store: Store, me: NodeId) -> Result<Option<Arc<Self>>, StoreError> {
        let Some(members) = store.load()? else { return Ok(None) };
        Ok(Some(Arc::new(Self {
            store,
            me,
            members: Mutex::new(members),
            version: watch::Sender::new(0),
            connections: Mutex::default(),
            connected: watch::Sender::new(0),
        })))
    }

    /// The mesh.
    pub fn mesh(&self) -> MeshId {
        self.members.lock().mesh()
    }

    /// Our own record with its signature, to be shown in a hello; empty when it was revoked.
    pub fn own_record(&self) -> Vec<u8> {
        self.members.lock().signed(self.me).map(SignedRecord::encode).unwrap_or_default()
    }

    /// Our own record; `None` when it was revoked.
    pub fn own(&self) -> Option<MemberRecord> {
        self.members.lock().record(self.me).cloned()
    }

    /// The exits other than this node, by name.
    pub fn exits(&self) -> Vec<MemberRecord> {
        let members = self.members.lock();
        members.exits().into_iter().filter(|exit| exit.node() != self.me).cloned().collect()
    }

    /// All members, by node id.
    pub fn records(&self) -> Vec<MemberRecord> {
        self.members.lock().records().map(|signed| signed.record().clone()).collect()
    }

    /// Follows the changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn admit(&self, node: NodeId, record: &[u8]) -> Result<MemberRecord, AdmitError> {
        let mut members = self.members.lock();
        let (record, news) = members.admit(node, record)?;
        let record = record.clone();
        drop(members);
        if news {
            self.changed();
        }
        Ok(record)
    }

    /// Takes what a member has said; what is not signed by the root is left out.
    fn learn(&self, list: &MemberList) {
        let mut news = false;
        let mut members = self.members.lock();
        for bytes in &list.revocations {
            let Ok(signed) = SignedRevocation::decode(bytes) else { continue };
            news |= members.handle_revocation(&signed).unwrap_or(false);
        }
        for bytes in &list.records {
            let Ok(signed) = SignedRecord::decode(bytes) else { continue };
            match members.handle_record(&signed) {
                Ok(new) => news |= new,
                Err(error) => tracing::debug!(node = %signed.record().node(), %error, "record not taken"),
            }
        }
        drop(members);
        if news {
            self.changed();
        }
    }

    /// Takes all of `other`, which may lack some of ours.
    fn merge(&self, other: &Members) {
        let mut members = self.members.lock();
        if store::merge(&mut members, other) {
            drop(members);
            self.changed();
        }
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn snapshot(&self) -> Members {
        self.members.lock().clone()
    }

    /// From now on records are exchanged over `connection`, with a node that was admitted.
    pub(crate) fn connected(&self, node: NodeId, connection: &Connection) {
        self.connections.lock().insert(connection.stable_id(), (node, connection.clone()));
        self.connected.send_modify(|number| *number += 1);
    }

    /// The connections that have not ended.
    fn connections(&self) -> Vec<(usize, NodeId, Connection)> {
        let mut connections = self.connections.lock();
        connections.retain(|_, (_, connection)| connection.close_reason().is_none());
        connections.iter().map(|(id, (node, connection))| (*id, *node, connection.clone())).collect()
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Membership(in {})", self.mesh())
    }
}

/// Who a node is that was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Its name here, unique among those that may be let in.
    pub name: String,
    /// What it may do.
    pub roles: Roles,
}

/// The one judge of who may talk to this node.
#[derive(Debug, Default)]
pub struct Access {
    known: BTreeMap<NodeId, String>,
    membership: Option<Arc<Membership>>,
}

impl Access {
    /// Lets in the nodes `known` from the configuration, with their names, and the members of the mesh.
    pub fn new(known: BTreeMap<NodeId, String>, membership: Option<Arc<Membership>>) -> Self {
        Self { known, membership }
    }

    /// The mesh, if this node belongs to one.
    pub fn membership(&self) -> Option<&Arc<Membership>> {
        self.membership.as_ref()
    }

    /// Our own record for a hello, or nothing.
    pub fn own_record(&self) -> Vec<u8> {
        self.membership.as_ref().map(|membership| membership.own_record()).unwrap_or_default()
    }

    /// Judges `node`, which has proved to own its key, and the record from its hello. A node that the
    /// configuration names may do everything; any other what its record says.
    ///
    /// # Errors
    /// Why it is not let in.
    pub fn admit(&self, node: NodeId, record: &[u8]) -> Result<Admitted, AdmitError> {
        let member = match &self.membership {
            Some(membership) => membership.admit(node, record),
            None => Err(AdmitError::NoRecord),
        };
        if let Some(name) = self.known.get(&node) {
            let roles = Roles::EDGE.with(Roles::LENDER).with(Roles::EXIT);
            return Ok(Admitted { name: name.clone(), roles });
        }
        // A node that was sent away knows nobody any more: else it would be met again and again by members that then look
        // at what it shows.
        if self.membership.as_ref().is_some_and(|membership| membership.own().is_none()) {
            return Err(AdmitError::Outside);
        }
        let MemberRecord { name, roles, .. } = member?;
        Ok(Admitted { name: self.free_name(node, name), roles })
    }

    /// Whether the configuration names `node`, so that it needs no record.
    pub fn is_known(&self, node: NodeId) -> bool {
        self.known.contains_key(&node)
    }

    /// The nodes that the configuration names.
    pub(crate) fn known(&self) -> impl Iterator<Item = NodeId> {
        self.known.keys().copied()
    }

    /// The root keeps the names of members apart, but the configuration may use the same.
    pub(crate) fn free_name(&self, node: NodeId, name: String) -> String {
        if self.known.values().any(|known| *known == name) {
            format!("{name}-{}", node.short())
        } else {
            name
        }
    }

    /// Notes a connection with `node`, which was admitted: members exchange records over it.
    pub(crate) fn connected(&self, node: NodeId, connection: &Connection) {
        if let Some(membership) = &self.membership {
            membership.connected(node, connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use mwb_proto::mesh::{RecordRefused, RootKey};

    use super::*;
    use crate::identity::Identity;

    fn identity() -> Identity {
        Identity::from_pkcs8(&Identity::generate().unwrap()).unwrap()
    }

    #[test]
    fn who_was_sent_away_knows_nobody_and_may_join_again() {
        let root = RootKey::from_pkcs8(&Identity::generate().unwrap()).unwrap();
        let (mine, other, named) = (identity(), identity(), identity());
        let mut members = Members::new(root.public_key());
        members.enrol(&root, mine.public_key(), ("mine", Roles::EDGE, &[])).unwrap();
        let record = members.enrol(&root, other.public_key(), ("other", Roles::EDGE, &[])).unwrap().encode();
        let dir = std::env::temp_dir().join(format!("mwb-membership-{}", std::process::id()));
        let (store, me) = (Store::new(&dir), mine.node_id());
        store.joined(me, &members).unwrap();
        assert!(matches!(store.prepare(me), Err(StoreError::Member { .. })));
        let membership = Membership::open(Store::new(&dir), me).unwrap().unwrap();
        let known = BTreeMap::from([(named.node_id(), "named".to_owned())]);
        let access = Access::new(known, Some(Arc::clone(&membership)));
        assert_eq!(access.admit(other.node_id(), &record).unwrap().name, "other");

        members.revoke(&root, me).unwrap();
        membership.merge(&members);
        assert_eq!(access.admit(other.node_id(), &record), Err(AdmitError::Outside));
        access.admit(named.node_id(), &[]).expect("the configuration is no mesh's to revoke");
        assert_eq!(members.admit(me, &[]), Err(AdmitError::Refused(RecordRefused::Revoked)));

        // A new record, and all is as before, also for the node that runs.
        store.merge(&members).unwrap();
        store.prepare(me).expect("it may join again");
        members.enrol(&root, mine.public_key(), ("mine", Roles::EDGE, &[])).unwrap();
        store.joined(me, &members).unwrap();
        membership.merge(&store.load().unwrap().unwrap());
        assert_eq!(access.admit(other.node_id(), &record).unwrap().name, "other");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
