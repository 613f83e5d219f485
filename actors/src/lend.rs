//! Lending and borrowing uplinks on the LAN.
//!
//! [`Lending`] is the state, shared by two actors and outliving them: [`lender`] answers requests, keeps a
//! [`relay`](crate::relay) per lease and publishes grants; [`borrow`] asks for what others announce and
//! makes a way to the exit of each lease. Which message is whose is sorted here: both read one inbox.

pub mod borrow;
pub mod lender;

use std::net::SocketAddr;
use std::sync::Arc;

use mwb_proto::control::Message;
use serde::Serialize;

use crate::channel::BatchQueue;
use crate::control::exits::Exits;
use crate::identity::NodeId;
use crate::lan::{LanPeer, LanPeers};
use crate::membership::Membership;
use crate::relay::RelayStats;
use crate::supervisor::Plan;
use crate::uplinks::Uplinks;
use crate::wan_link::Link;

/// Messages about leases that may wait for either actor.
const MAIL_MAX: usize = 256;

/// What lending and borrowing are made from.
pub struct LendingParts {
    /// The members on the LAN.
    pub peers: Arc<LanPeers>,
    /// Our uplinks.
    pub uplinks: Arc<Uplinks>,
    /// The exits that the configuration names, with their addresses.
    pub named_exits: Vec<(NodeId, Vec<SocketAddr>)>,
    /// The mesh, whose exits are known as well.
    pub membership: Option<Arc<Membership>>,
    /// The exits in use; `None` when this node uses none, and so borrows nothing.
    pub exits: Option<Arc<Exits>>,
    /// Plan of the relays' supervisor.
    pub relays: Arc<Plan>,
    /// Bytes that each peer may have carried in a day.
    pub budget: Option<u64>,
}

/// What the actors share; survives them.
pub struct Lending {
    parts: LendingParts,
    to_lender: BatchQueue<(Arc<LanPeer>, Message)>,
    to_borrower: BatchQueue<(Arc<LanPeer>, Message)>,
    lender: parking_lot::Mutex<lender::LenderState>,
    borrower: parking_lot::Mutex<borrow::BorrowerState>,
}

impl Lending {
    /// Nothing lent, nothing borrowed.
    pub fn new(parts: LendingParts) -> Arc<Self> {
        Arc::new(Self {
            lender: parking_lot::Mutex::new(lender::LenderState::new(&parts)),
            borrower: parking_lot::Mutex::new(borrow::BorrowerState::new(rand::random())),
            to_lender: BatchQueue::new(MAIL_MAX),
            to_borrower: BatchQueue::new(MAIL_MAX),
            parts,
        })
    }

    /// Hands the peers' messages to whom they are for. Either actor does it for both: one of them is
    /// woken, and the other may be dead.
    fn sort(&self) {
        for peer in self.parts.peers.all() {
            while let Some(message) = peer.lease_inbox.pop() {
                // What does not fit is lost: both sides ask again.
                match message {
                    Message::LeaseRequest(_) => {
                        let _ = self.to_lender.try_push((Arc::clone(&peer), message));
                    }
                    // Both have numbers; that of a lease is known to one of them.
                    Message::LeaseEnd(_) => {
                        let _ = self.to_lender.try_push((Arc::clone(&peer), message.clone()));
                        let _ = self.to_borrower.try_push((Arc::clone(&peer), message));
                    }
                    other => {
                        let _ = self.to_borrower.try_push((Arc::clone(&peer), other));
                    }
                }
            }
        }
    }

    /// Whether we know ourselves that `exit` is at `address`.
    fn knows_exit(&self, exit: NodeId, address: SocketAddr) -> bool {
        let named = &self.parts.named_exits;
        named.iter().any(|(node, addresses)| *node == exit && addresses.contains(&address))
            || self.parts.membership.iter().any(|membership| {
                membership.exits().iter().any(|e| e.node() == exit && e.addresses.contains(&address))
            })
    }

    /// The link of an uplink of ours.
    fn link(&self, uplink: u8) -> Option<Arc<Link>> {
        self.parts.uplinks.link(uplink)
    }

    /// What is lent and borrowed now.
    pub fn status(&self) -> LeasesStatus {
        LeasesStatus { lent: self.lender.lock().status(), borrowed: self.borrower.lock().status() }
    }
}

impl std::fmt::Debug for Lending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lending")
    }
}

/// What is lent and borrowed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LeasesStatus {
    /// Our uplinks, as others use them.
    pub lent: Vec<LentStatus>,
    /// Uplinks of others, as we use them.
    pub borrowed: Vec<BorrowedStatus>,
}

/// A lease that we have given.
#[derive(Clone, Debug, Serialize)]
pub struct LentStatus {
    /// The borrower.
    pub peer: String,
    /// Our uplink.
    pub uplink: String,
    /// The actor that carries it.
    pub relay: String,
    /// The exit's address.
    pub address: SocketAddr,
    /// Towards the internet.
    pub up: RelayStats,
    /// From the internet.
    pub down: RelayStats,
    /// What the borrower may send, bit/s; no limit when unset.
    pub grant_up: Option<u64>,
    /// What it may receive, bit/s; no limit when unset.
    pub grant_down: Option<u64>,
    /// Bytes that the borrower has left today; no bound when unset.
    pub bytes_left: Option<u64>,
    /// Age of the lease.
    pub seconds: f64,
}

/// A lease that we have got.
#[derive(Clone, Debug, Serialize)]
pub struct BorrowedStatus {
    /// The lender.
    pub peer: String,
    /// Its uplink.
    pub uplink: String,
    /// The exit.
    pub exit: String,
    /// The path over it.
    pub path: u8,
    /// Where our datagrams go on the LAN.
    pub address: SocketAddr,
    /// What we may send, bit/s; no limit when unset.
    pub grant_up: Option<u64>,
    /// What we may receive, bit/s; no limit when unset.
    pub grant_down: Option<u64>,
    /// Age of the lease.
    pub seconds: f64,
}

/// A rate on the wire of control messages as an optional limit.
fn limit(rate: u64) -> Option<u64> {
    (rate != u64::MAX).then_some(rate)
}
