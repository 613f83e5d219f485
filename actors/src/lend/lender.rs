//! `LendActor`: answers requests, opens and ends relays, counts, and publishes grants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mwb_proto::control::{
    GRANTS_MAX, LeaseEnd, LeaseRefuse, LeaseRefuseReason, LeaseRequest, Message, RateGrant, RateGrants,
};
use mwb_proto::lend::{
    Decision, Facts, GRANT_EVERY, Grants, LeaseKey, Lender, LenderConfig, UNLIMITED, UplinkFacts,
};
use mwb_proto::time::Time;
use tokio::time::MissedTickBehavior;

use super::{Lending, LendingParts, LentStatus, limit};
use crate::clock;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::identity::NodeId;
use crate::lan::LanPeer;
use crate::relay::{OUTER_HEADERS, Relay, Relaying};
use crate::supervisor::ChildSpec;
use crate::wan_link::{Link, SocketSpec, unspecified};

/// Relays opened within a second; each costs two sockets and an actor, and a borrower can give them back as
/// fast as it asks.
const OPENED_PER_SECOND_MAX: u32 = 64;

/// Marker of [`LendActor`].
#[derive(Debug)]
pub struct Lend;

/// The actor that lends our uplinks.
pub type LendActor = DrivenActor<Lend>;

impl Drive for Lend {
    type Lent = Arc<Lending>;

    fn launch(lending: &Arc<Lending>, crew: &mut Crew) -> Result<(), DriverError> {
        let lending = Arc::clone(lending);
        crew.launch("lend", |pulse| run(lending, pulse));
        Ok(())
    }
}

/// A lease that we have given.
struct Lent {
    peer: Arc<LanPeer>,
    uplink: u8,
    /// The uplink's link: one that comes back has another.
    link: Arc<Link>,
    address: SocketAddr,
    relay: Arc<Relay>,
    /// Name of its actor.
    child: String,
    since: Time,
    /// Bytes that were counted already, up and down.
    counted: [u64; 2],
    /// How often the uplink's socket had been opened: with another device come other addresses.
    reopened: u64,
    /// Bit/s, up and down.
    granted: [u64; 2],
}

impl Lent {
    /// What its relay has carried since the last call, bytes up and down. The uplink has carried it, too.
    fn count(&mut self) -> [u64; 2] {
        let (up, down) = self.relay.stats();
        let total = [up.bytes, down.bytes];
        let carried = [total[0] - self.counted[0], total[1] - self.counted[1]];
        self.counted = total;
        let counters = self.link.counters();
        counters.lent_up_bytes.fetch_add(carried[0], Ordering::Relaxed);
        counters.lent_down_bytes.fetch_add(carried[1], Ordering::Relaxed);
        carried
    }
}

/// Both directions of one uplink, up and down.
struct Meter {
    link: Arc<Link>,
    grants: [Grants; 2],
    /// Own bytes that were counted already.
    counted: [u64; 2],
}

impl Meter {
    fn of(link: &Arc<Link>) -> Self {
        Self { link: Arc::clone(link), grants: Default::default(), counted: [0; 2] }
    }
}

/// The lender's memory; survives its actor.
pub(super) struct LenderState {
    machine: Lender,
    lent: BTreeMap<LeaseKey, Lent>,
    meters: BTreeMap<u8, Meter>,
    relays: u64,
    /// Relays opened in the second that began then.
    opened: (Time, u32),
}

impl LenderState {
    pub(super) fn new(parts: &LendingParts) -> Self {
        let config = LenderConfig { budget: parts.budget, ..LenderConfig::default() };
        Self {
            machine: Lender::new(config),
            lent: BTreeMap::new(),
            meters: BTreeMap::new(),
            relays: 0,
            opened: (clock::now(), 0),
        }
    }

    pub(super) fn status(&self) -> Vec<LentStatus> {
        let now = clock::now();
        let lent = self.lent.iter().map(|((node, _), lent)| {
            let (up, down) = lent.relay.stats();
            LentStatus {
                peer: lent.peer.name().to_owned(),
                uplink: lent.link.name().to_owned(),
                relay: lent.child.clone(),
                address: lent.address,
                up,
                down,
                grant_up: limit(lent.granted[0]),
                grant_down: limit(lent.granted[1]),
                bytes_left: limit(self.machine.bytes_left(*node, now)),
                seconds: (now - lent.since).as_secs_f64(),
            }
        });
        lent.collect()
    }
}

async fn run(lending: Arc<Lending>, pulse: Pulse) -> Result<(), DriverError> {
    let mut tick = tokio::time::interval(GRANT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pulse.beat().await?;
        lending.sort();
        while let Some((peer, message)) = lending.to_lender.pop() {
            pulse.count_handled(1);
            lending.lend(&peer, message);
        }
        tokio::select! {
            _ = tick.tick() => lending.publish(),
            () = lending.parts.peers.lease_bell().notified() => {}
            () = lending.to_lender.wait() => {}
            () = pulse.asked() => {}
        }
    }
}

impl Lending {
    fn lend(&self, peer: &Arc<LanPeer>, message: Message) {
        match message {
            Message::LeaseRequest(request) => {
                let answer = self.answer(peer, &request);
                peer.send(answer);
            }
            Message::LeaseEnd(end) => {
                let key = (peer.node(), end.lease);
                self.end(&mut self.lender.lock(), key, "given back");
            }
            _ => {}
        }
    }

    fn answer(&self, peer: &Arc<LanPeer>, request: &LeaseRequest) -> Message {
        let now = clock::now();
        let link = self.link(request.uplink);
        // What we announce is what we stand by: whether it is lent, whether it works, what is behind it.
        let own = self.parts.peers.own_uplinks();
        let announced = own.iter().find(|uplink| uplink.id == request.uplink);
        let borrowers: Vec<_> = peer.uplinks().iter().filter_map(|uplink| uplink.gateway).collect();
        let facts = Facts {
            uplink: announced.zip(link.as_ref()).map(|(uplink, link)| UplinkFacts {
                lend: uplink.lend,
                up: uplink.up && link.socket().is_some() && (link.is_dual() || request.address.is_ipv4()),
                gateway: uplink.gateway,
            }),
            exit_is_known: self.knows_exit(NodeId::from_bytes(request.exit), request.address),
            borrowers_gateways: &borrowers,
        };
        let key = (peer.node(), request.lease);
        let mut state = self.lender.lock();
        let decision = state.machine.handle_request(peer.node(), request, &facts, now);
        let open = match (decision, &link) {
            (Decision::Refuse(refuse), _) => Err(refuse),
            (Decision::Renewed, _) => Ok(()),
            (Decision::Open, Some(link)) => {
                self.open(&mut state, peer, link, request, now).map_err(|error| {
                    tracing::warn!(peer = peer.name(), uplink = link.name(), %error, "no relay");
                    LeaseRefuse {
                        lease: request.lease,
                        reason: LeaseRefuseReason::NoUplink,
                        text: format!("the lender cannot open a socket: {error}"),
                    }
                })
            }
            (Decision::Open, None) => return Message::LeaseRefuse(no_uplink(request.lease)),
        };
        match (open, state.lent.get(&key)) {
            (Ok(()), Some(lent)) => Message::LeaseAccept(state.machine.accept(key, lent.relay.port(), now)),
            (Ok(()), None) => Message::LeaseRefuse(no_uplink(request.lease)),
            (Err(refuse), _) => {
                tracing::debug!(peer = peer.name(), ?refuse, "no lease");
                self.end(&mut state, key, &refuse.text);
                Message::LeaseRefuse(refuse)
            }
        }
    }

    fn open(
        &self,
        state: &mut LenderState,
        peer: &Arc<LanPeer>,
        link: &Arc<Link>,
        request: &LeaseRequest,
        now: Time,
    ) -> std::io::Result<()> {
        if now - state.opened.0 >= Duration::from_secs(1) {
            state.opened = (now, 0);
        }
        state.opened.1 += 1;
        if state.opened.1 > OPENED_PER_SECOND_MAX {
            return Err(std::io::ErrorKind::QuotaExceeded.into());
        }
        let lan = peer.connection().ok_or(std::io::ErrorKind::NotConnected)?;
        let borrower = lan.remote().ip();
        let local = lan.connection.local_ip().map(|ip| ip.to_canonical());
        let local = local.filter(|ip| ip.is_ipv4() == borrower.is_ipv4());
        let bind = SocketAddr::new(local.unwrap_or_else(|| unspecified(borrower.is_ipv6())), 0);
        let lan = SocketSpec { bind, ..lan.port.spec().socket.clone() };
        let relay = Relay::open(&lan, borrower, &link.spec().socket, request.address)?;
        state.relays += 1;
        let child = format!("relay-{}", state.relays);
        let (name, uplink, exit) = (peer.name(), link.name(), request.address);
        tracing::info!(peer = name, uplink, %exit, relay = child, port = relay.port(), "uplink lent");
        self.parts.relays.add(ChildSpec::driven::<Relaying>(child.clone(), Arc::clone(&relay)));
        let lent = Lent {
            peer: Arc::clone(peer),
            uplink: request.uplink,
            link: Arc::clone(link),
            address: request.address,
            relay,
            child,
            since: now,
            counted: [0; 2],
            reopened: link.status().reopened,
            granted: [UNLIMITED; 2],
        };
        state.lent.insert((peer.node(), request.lease), lent);
        Ok(())
    }

    /// Ends a lease, if it is there.
    fn end(&self, state: &mut LenderState, key: LeaseKey, why: &str) {
        state.machine.end(key);
        let Some(mut lent) = state.lent.remove(&key) else { return };
        lent.count();
        self.parts.relays.remove(&lent.child);
        let (up, down) = lent.relay.stats();
        let seconds = (clock::now() - lent.since).as_secs_f64();
        tracing::info!(
            peer = lent.peer.name(),
            relay = lent.child,
            why,
            seconds,
            bytes_up = up.bytes,
            bytes_down = down.bytes,
            "lease over"
        );
    }

    /// One window: counts what was carried, ends what is over, and tells the borrowers what they may use.
    fn publish(&self) {
        let now = clock::now();
        let mut state = self.lender.lock();
        let mut over: Vec<(LeaseKey, &'static str)> =
            state.machine.take_expired(now).into_iter().map(|key| (key, "not renewed")).collect();
        let mut relayed: BTreeMap<u8, ([u64; 2], usize)> = BTreeMap::new();
        let LenderState { machine, lent, meters, .. } = &mut *state;
        for (key, lent) in lent.iter_mut() {
            let carried = lent.count();
            let (sum, count) = relayed.entry(lent.uplink).or_default();
            sum.iter_mut().zip(carried).for_each(|(sum, bytes)| *sum += bytes);
            *count += 1;
            if machine.note_carried(key.0, carried.iter().sum(), now) {
                over.push((*key, "the bytes of this day are used up"));
            }
            let link = self.link(lent.uplink).filter(|link| Arc::ptr_eq(link, &lent.link));
            let status = link.map(|link| link.status());
            let fresh = status.is_some_and(|s| s.local.is_some() && s.reopened == lent.reopened);
            if lent.relay.is_broken() || !fresh {
                over.push((*key, "the uplink has gone"));
            }
        }
        let mut shares: BTreeMap<u8, [u64; 2]> = BTreeMap::new();
        let uplinks = self.parts.uplinks.all();
        meters.retain(|id, meter| {
            uplinks.iter().any(|uplink| uplink.spec.id == *id && Arc::ptr_eq(&uplink.link, &meter.link))
        });
        for uplink in uplinks {
            let meter = meters.entry(uplink.spec.id).or_insert_with(|| Meter::of(&uplink.link));
            let status = uplink.link.status();
            let total = [
                status.sent_bytes + status.sent * OUTER_HEADERS,
                status.received_bytes + status.received * OUTER_HEADERS,
            ];
            let (carried, leases) = relayed.get(&uplink.spec.id).copied().unwrap_or_default();
            let mut share = [UNLIMITED; 2];
            for way in 0..2 {
                let own = total[way] - meter.counted[way];
                share[way] = meter.grants[way].handle_window(own, carried[way], leases, now);
            }
            meter.counted = total;
            shares.insert(uplink.spec.id, share);
        }
        let mut grants: BTreeMap<NodeId, (Arc<LanPeer>, Vec<RateGrant>)> = BTreeMap::new();
        for ((node, lease), lent) in lent.iter_mut() {
            let share = shares.get(&lent.uplink).copied().unwrap_or([UNLIMITED; 2]);
            lent.granted = share;
            let grant =
                RateGrant { lease: *lease, up: share[0], down: share[1], bytes: lent.counted.iter().sum() };
            grants.entry(*node).or_insert_with(|| (Arc::clone(&lent.peer), Vec::new())).1.push(grant);
        }
        for (peer, grants) in grants.into_values() {
            for part in grants.chunks(GRANTS_MAX) {
                peer.send(Message::RateGrants(RateGrants { grants: part.to_vec() }));
            }
        }
        for (key, why) in over {
            if let Some(lent) = state.lent.get(&key) {
                lent.peer.send(Message::LeaseEnd(LeaseEnd { lease: key.1, text: why.to_owned() }));
            }
            self.end(&mut state, key, why);
        }
    }
}

fn no_uplink(lease: u64) -> LeaseRefuse {
    let text = "the uplink does not work now".to_owned();
    LeaseRefuse { lease, reason: LeaseRefuseReason::NoUplink, text }
}
