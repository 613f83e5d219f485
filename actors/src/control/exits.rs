//! Which exit an edge uses: the one that the configuration names, or else the mesh's.
//!
//! Of several exits in the mesh the first by name is used. Exits and addresses that become known while
//! the node runs are followed: an exit that joins later is used as soon as its record arrives. So are our own uplinks:
//! each exit has a way over each of them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use mwb_proto::mesh::MemberRecord;
use mwb_proto::wire::PathId;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::dial::{Dialler, ExitPeer};
use super::exit::SessionParts;
use super::held::HeldPaths;
use super::rivals::Rivals;
use super::slots::{Slot, Slots};
use super::{CloseCode, transport};
use crate::identity::Identity;
use crate::membership::{Access, Membership};
use crate::session::{InnerAddresses, Role, Session};
use crate::spec::{PeerSpec, UPLINK_ID_MAX};
use crate::supervisor::{ChildSpec, Plan};
use crate::tls::{self, TlsError};
use crate::uplinks::Uplinks;

/// Path ids of one address of an exit: our own uplinks have the lower half of them, borrowed ones the upper.
const PATHS_PER_ADDRESS: u8 = 64;

/// What an edge's exits are made from.
pub struct ExitsParts {
    /// Our own name, for the greeting.
    pub node_name: String,
    /// Random at each start of the node.
    pub instance: u64,
    /// Our key.
    pub identity: Arc<Identity>,
    /// Who may be an exit.
    pub access: Arc<Access>,
    /// Our uplinks.
    pub uplinks: Arc<Uplinks>,
    /// What sessions are made from.
    pub session: SessionParts,
    /// Plan of the control supervisor.
    pub control: Arc<Plan>,
    /// Plan of the link supervisor.
    pub links: Arc<Plan>,
    /// Told when an exit has assigned addresses.
    pub inner: watch::Sender<Option<Arc<InnerAddresses>>>,
}

/// The exits in use.
pub struct Exits {
    parts: ExitsParts,
    in_use: Mutex<Vec<(PeerSpec, Arc<ExitPeer>)>>,
    /// The configuration names an exit: the mesh's are not followed.
    pinned: bool,
}

impl Exits {
    /// Uses the exits `named` in the configuration.
    ///
    /// # Errors
    /// When our key cannot be used.
    pub fn new<'a>(
        parts: ExitsParts,
        named: impl Iterator<Item = &'a PeerSpec>,
    ) -> Result<Arc<Self>, TlsError> {
        let named: Vec<_> = named.cloned().collect();
        let exits = Self { parts, in_use: Mutex::default(), pinned: !named.is_empty() };
        for exit in named {
            exits.begin(exit)?;
        }
        Ok(Arc::new(exits))
    }

    /// The exits in use.
    pub fn all(&self) -> Vec<Arc<ExitPeer>> {
        self.in_use.lock().iter().map(|(_, peer)| Arc::clone(peer)).collect()
    }

    /// The exits in use with their addresses, in the order of their numbers.
    pub(crate) fn in_use(&self) -> Vec<(Vec<SocketAddr>, Arc<ExitPeer>)> {
        self.in_use.lock().iter().map(|(spec, peer)| (spec.addresses.clone(), Arc::clone(peer))).collect()
    }

    /// Uses the exit that the mesh has now. One that was in use stays so while it is an exit of the mesh
    /// with the same addresses: another with a name that sorts before it is no reason to change.
    ///
    /// # Errors
    /// When our key cannot be used.
    pub fn follow(&self, membership: &Membership) -> Result<(), TlsError> {
        if self.pinned {
            return Ok(());
        }
        let wanted: Vec<PeerSpec> = membership.exits().into_iter().map(|exit| self.spec(exit)).collect();
        let present = self.in_use.lock().first().cloned();
        if let Some((spec, peer)) = present {
            let same =
                |wanted: &PeerSpec| wanted.node_id == spec.node_id && wanted.addresses == spec.addresses;
            // An exit without a record is sent away as every member is; until there is another, its
            // sessions have nowhere to go.
            if wanted.is_empty() || wanted.iter().any(same) {
                return Ok(());
            }
            self.end(&peer);
        }
        match wanted.into_iter().next() {
            Some(exit) => self.begin(exit),
            None => Ok(()),
        }
    }

    fn spec(&self, exit: MemberRecord) -> PeerSpec {
        let node_id = exit.node();
        let name = self.parts.access.free_name(node_id, exit.name);
        PeerSpec { name, node_id, addresses: exit.addresses, lan: Vec::new(), is_exit: true }
    }

    fn begin(&self, exit: PeerSpec) -> Result<(), TlsError> {
        let parts = &self.parts;
        let peer = self.peer(&exit)?;
        tracing::info!(exit = exit.name, node = %exit.node_id.short(), addresses = ?exit.addresses, "exit");
        parts.session.start(&peer.session);
        let mut in_use = self.in_use.lock();
        if in_use.is_empty() {
            parts.session.tun.set_default_session(Some(Arc::clone(&peer.session)));
        }
        parts.control.add(ChildSpec::driven::<Dialler>(child_name(&peer), Arc::clone(&peer)));
        self.match_slots(&exit, &peer);
        in_use.push((exit, peer));
        Ok(())
    }

    /// Gives each exit a way over each of our uplinks, and takes those over former ones away with their paths.
    pub(crate) fn follow_uplinks(&self) {
        for (exit, peer) in &*self.in_use.lock() {
            self.match_slots(exit, peer);
        }
    }

    /// The same for one exit; under the lock of [`Self::in_use`], as two must not do it at once.
    fn match_slots(&self, exit: &PeerSpec, peer: &ExitPeer) {
        let mut wanted = Vec::new();
        for (number, address) in (0_u8..).zip(&exit.addresses) {
            for uplink in self.parts.uplinks.all() {
                if address.is_ipv4() || uplink.link.is_dual() {
                    wanted.push((PathId(PATHS_PER_ADDRESS * number + uplink.spec.id), uplink.link, *address));
                }
            }
        }
        let is_own = |slot: &Slot| slot.path.0 % PATHS_PER_ADDRESS <= UPLINK_ID_MAX;
        let is_wanted = |slot: &Slot| {
            wanted.iter().any(|(path, link, _)| *path == slot.path && Arc::ptr_eq(link, &slot.link))
        };
        let present = peer.slots.all();
        for slot in present.iter().filter(|slot| is_own(slot) && !is_wanted(slot)) {
            peer.remove_slot(slot);
        }
        for (path, link, address) in wanted {
            if !present.iter().any(|slot| slot.path == path && Arc::ptr_eq(&link, &slot.link)) {
                let name = link.name().to_owned();
                peer.add_slot(Slot::new(path, link, name, address));
            }
        }
    }

    fn end(&self, peer: &Arc<ExitPeer>) {
        tracing::info!(exit = peer.name, "this exit is not used any more");
        self.parts.control.remove(&child_name(peer));
        peer.held.remove_all(CloseCode::Done);
        self.parts.session.sessions.remove(peer.session.name());
        self.parts.session.tun.set_default_session(None);
        self.in_use.lock().retain(|(_, other)| !Arc::ptr_eq(other, peer));
    }

    fn peer(&self, exit: &PeerSpec) -> Result<Arc<ExitPeer>, TlsError> {
        let parts = &self.parts;
        let table = Arc::clone(&parts.session.table);
        let session = Session::new(exit.name.clone(), Role::Edge, exit.node_id, rand::random(), table);
        let crypto = tls::client_config(&parts.identity, exit.node_id)?;
        let mut tls = quinn::ClientConfig::new(Arc::new(crypto));
        tls.transport_config(transport());
        Ok(Arc::new(ExitPeer {
            node_name: parts.node_name.clone(),
            instance: parts.instance,
            access: Arc::clone(&parts.access),
            name: exit.name.clone(),
            session,
            slots: Slots::new([]),
            held: HeldPaths::new(Arc::clone(&parts.links)),
            table: Arc::clone(&parts.session.table),
            tls,
            mtu: parts.session.mtu,
            renew_before: AtomicU64::new(0),
            rivals: Rivals::default(),
            inner: parts.inner.clone(),
        }))
    }
}

fn child_name(peer: &ExitPeer) -> String {
    format!("peer-{}", peer.name)
}

impl fmt::Debug for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}
