//! The lender's half: which requests are granted, and when a lease is over.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::LEASE_TTL;
use crate::control::{Gateway, LeaseAccept, LeaseRefuse, LeaseRefuseReason, LeaseRequest};
use crate::mesh::NodeId;
use crate::time::Time;

/// A budget begins anew after so long.
const BUDGET_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Bounds of lending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LenderConfig {
    /// Leases at the same time, of all peers; each costs two sockets and 1 MiB of buffers.
    pub leases_max: usize,
    /// Leases at the same time, of one peer.
    pub leases_per_peer_max: usize,
    /// Bytes that one peer may have carried in a day, both ways; no bound when unset.
    pub budget: Option<u64>,
}

impl Default for LenderConfig {
    fn default() -> Self {
        Self { leases_max: 64, leases_per_peer_max: 32, budget: None }
    }
}

/// A lease: the borrower and its number.
pub type LeaseKey = (NodeId, u64);

/// One of our uplinks at the time of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkFacts {
    /// Whether its owner lends it.
    pub lend: bool,
    /// Whether it carries traffic.
    pub up: bool,
    /// The router behind it.
    pub gateway: Option<Gateway>,
}

/// What a request is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The uplink that is asked for.
    pub uplink: Option<UplinkFacts>,
    /// Whether we know ourselves that this exit is at this address.
    pub exit_is_known: bool,
    /// The routers behind the borrower's own uplinks, as it has announced them.
    pub borrowers_gateways: &'a [Gateway],
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Open a relay and tell its port with [`Lender::accept`]. The lease is counted from now on;
    /// [`Lender::end`] takes it back when the relay cannot be opened.
    Open,
    /// The lease is there already; it was renewed.
    Renewed,
    /// Tell the borrower.
    Refuse(LeaseRefuse),
}

#[derive(Debug, Clone)]
struct Lease {
    uplink: u8,
    exit: [u8; 32],
    address: SocketAddr,
    renewed: Time,
}

#[derive(Debug, Clone, Copy)]
struct Used {
    since: Time,
    bytes: u64,
}

/// The lender's machine.
#[derive(Debug)]
pub struct Lender {
    config: LenderConfig,
    leases: BTreeMap<LeaseKey, Lease>,
    used: BTreeMap<NodeId, Used>,
}

impl Lender {
    /// A lender without leases.
    pub fn new(config: LenderConfig) -> Self {
        Self { config, leases: BTreeMap::new(), used: BTreeMap::new() }
    }

    /// Judges a request of `peer`.
    pub fn handle_request(
        &mut self,
        peer: NodeId,
        request: &LeaseRequest,
        facts: &Facts<'_>,
        now: Time,
    ) -> Decision {
        let judged = self.judge(peer, request, facts, now);
        if let Err((reason, text)) = judged {
            self.leases.remove(&(peer, request.lease));
            return Decision::Refuse(LeaseRefuse { lease: request.lease, reason, text: text.to_owned() });
        }
        let key = (peer, request.lease);
        if let Some(lease) = self.leases.get_mut(&key) {
            lease.renewed = now;
            return Decision::Renewed;
        }
        let LeaseRequest { uplink, exit, address, .. } = *request;
        self.leases.insert(key, Lease { uplink, exit, address, renewed: now });
        Decision::Open
    }

    fn judge(
        &self,
        peer: NodeId,
        request: &LeaseRequest,
        facts: &Facts<'_>,
        now: Time,
    ) -> Result<(), (LeaseRefuseReason, &'static str)> {
        use LeaseRefuseReason::{Full, NoConsent, NoUplink, SameUplink, UnknownExit, UsedUp};
        let uplink = facts.uplink.as_ref().ok_or((NoUplink, "there is no such uplink"))?;
        if !uplink.lend {
            return Err((NoConsent, "this uplink is not lent"));
        }
        if !uplink.up {
            return Err((NoUplink, "the uplink does not work now"));
        }
        if !facts.exit_is_known {
            return Err((UnknownExit, "the lender does not know this exit at this address"));
        }
        if uplink.gateway.is_some_and(|gateway| facts.borrowers_gateways.contains(&gateway)) {
            return Err((SameUplink, "both are behind the same router"));
        }
        if self.bytes_left(peer, now) == 0 {
            return Err((UsedUp, "the bytes of this day are used up"));
        }
        if let Some(lease) = self.leases.get(&(peer, request.lease)) {
            let same = (lease.uplink, lease.exit, lease.address);
            if same != (request.uplink, request.exit, request.address) {
                return Err((LeaseRefuseReason::Other(0), "this number is of another lease"));
            }
            return Ok(());
        }
        let of_peer = self.leases.keys().filter(|(other, _)| *other == peer).count();
        if self.leases.len() >= self.config.leases_max || of_peer >= self.config.leases_per_peer_max {
            return Err((Full, "the lender has no room for more leases"));
        }
        Ok(())
    }

    /// The consent to be sent for a lease whose relay listens on `port`.
    pub fn accept(&self, (peer, lease): LeaseKey, port: u16, now: Time) -> LeaseAccept {
        let ttl_ms = LEASE_TTL.as_millis() as u32;
        LeaseAccept { lease, port, ttl_ms, bytes_left: self.bytes_left(peer, now) }
    }

    /// Bytes that may still be carried for `peer`; `u64::MAX` for no bound.
    pub fn bytes_left(&self, peer: NodeId, now: Time) -> u64 {
        let Some(budget) = self.config.budget else { return u64::MAX };
        let used = self.used.get(&peer).filter(|used| now - used.since < BUDGET_EVERY);
        budget.saturating_sub(used.map_or(0, |used| used.bytes))
    }

    /// Counts bytes carried for `peer`; true when its budget is used up.
    pub fn note_carried(&mut self, peer: NodeId, bytes: u64, now: Time) -> bool {
        if self.config.budget.is_none() {
            return false;
        }
        let used = self.used.entry(peer).or_insert(Used { since: now, bytes: 0 });
        if now - used.since >= BUDGET_EVERY {
            *used = Used { since: now, bytes: 0 };
        }
        used.bytes = used.bytes.saturating_add(bytes);
        self.bytes_left(peer, now) == 0
    }

    /// Leases that were not renewed in time; they are gone.
    pub fn take_expired(&mut self, now: Time) -> Vec<LeaseKey> {
        let is_over = |lease: &Lease| now - lease.renewed >= LEASE_TTL;
        let expired: Vec<_> = self.leases.iter().filter(|(_, l)| is_over(l)).map(|(key, _)| *key).collect();
        expired.iter().for_each(|key| self.end(*key));
        expired
    }

    /// Forgets a lease.
    pub fn end(&mut self, key: LeaseKey) {
        self.leases.remove(&key);
    }

    /// The present leases with their uplinks.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseKey, u8)> {
        self.leases.iter().map(|(key, lease)| (*key, lease.uplink))
    }
}
