//! `BorrowActor`: asks for the uplinks that others announce, and makes a way to the exit of each lease.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::Message;
use mwb_proto::lend::{BorrowEvent, Borrower, Want};
use mwb_proto::time::Time;
use mwb_proto::wire::PathId;

use super::{BorrowedStatus, Lending, limit};
use crate::clock;
use crate::control::dial::ExitPeer;
use crate::control::slots::{Limits, Slot};
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::identity::NodeId;
use crate::lan::LanPeer;
use crate::spec::{EXIT_ADDRESSES_MAX, UPLINK_ID_MAX};

/// Uplinks of others in use at the same time: as many path ids are kept for them.
const BORROWED_MAX: usize = 32;
/// How often exits and gateways are looked at, and the longest wait.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Marker of [`BorrowActor`].
#[derive(Debug)]
pub struct Borrow;

/// The actor that borrows the uplinks of others.
pub type BorrowActor = DrivenActor<Borrow>;

impl Drive for Borrow {
    type Lent = Arc<Lending>;

    fn launch(lending: &Arc<Lending>, crew: &mut Crew) -> Result<(), DriverError> {
        let lending = Arc::clone(lending);
        crew.launch("borrow", |pulse| run(lending, pulse));
        Ok(())
    }
}

/// A lease that we have got, with the way that it makes.
struct Borrowed {
    exit: Arc<ExitPeer>,
    slot: Arc<Slot>,
    lender: String,
    uplink: String,
    since: Time,
}

/// The borrower's memory; survives its actor.
pub(super) struct BorrowerState {
    machine: Borrower,
    borrowed: BTreeMap<Want, Borrowed>,
    /// Numbers of the uplinks in use, for their path ids.
    numbers: BTreeMap<(NodeId, u8), u8>,
}

impl BorrowerState {
    pub(super) fn new(seed: u64) -> Self {
        Self { machine: Borrower::new(seed), borrowed: BTreeMap::new(), numbers: BTreeMap::new() }
    }

    pub(super) fn status(&self) -> Vec<BorrowedStatus> {
        let now = clock::now();
        let borrowed = self.borrowed.values().map(|borrowed| {
            let limits = *borrowed.slot.limits.borrow();
            BorrowedStatus {
                peer: borrowed.lender.clone(),
                uplink: borrowed.uplink.clone(),
                exit: borrowed.exit.name.clone(),
                path: borrowed.slot.path.0,
                address: borrowed.slot.address,
                grant_up: limits.up,
                grant_down: limits.down,
                seconds: (now - borrowed.since).as_secs_f64(),
            }
        });
        borrowed.collect()
    }

    /// The number of an uplink, the same for all addresses of all exits.
    fn number(&mut self, want: &Want) -> Option<u8> {
        let key = (want.lender, want.uplink);
        if let Some(number) = self.numbers.get(&key) {
            return Some(*number);
        }
        let number = (0..BORROWED_MAX as u8).find(|n| !self.numbers.values().any(|used| used == n))?;
        self.numbers.insert(key, number);
        Some(number)
    }
}

async fn run(lending: Arc<Lending>, pulse: Pulse) -> Result<(), DriverError> {
    let peers = &lending.parts.peers;
    let mut changes = peers.changes();
    loop {
        pulse.beat().await?;
        changes.mark_unchanged();
        lending.sort();
        let handled = lending.borrow();
        pulse.count_handled(handled);
        let wait = lending.borrower.lock().machine.poll_timeout();
        let wait = wait.map_or(LOOK_EVERY, |at| (at - clock::now()).min(LOOK_EVERY));
        tokio::select! {
            _ = changes.changed() => {}
            () = peers.lease_bell().notified() => {}
            () = lending.to_borrower.wait() => {}
            // Never at once: a machine that wants the same again and again does not spin here.
            () = tokio::time::sleep(wait.max(Duration::from_millis(5))) => {}
            () = pulse.asked() => {}
        }
    }
}

/// An exit in use, with its addresses in the order of their numbers.
type ExitInUse = (Vec<SocketAddr>, Arc<ExitPeer>);

impl Lending {
    /// One turn: takes messages, brings wants and ways up to date. Gives the number of messages.
    fn borrow(&self) -> u64 {
        let now = clock::now();
        let exits: Vec<ExitInUse> = self.parts.exits.iter().flat_map(|exits| exits.in_use()).collect();
        let mut wants = self.wants(&exits);
        let mut state = self.borrower.lock();
        let mut handled = 0;
        while let Some((peer, message)) = self.to_borrower.pop() {
            handled += 1;
            let (lender, machine) = (peer.node(), &mut state.machine);
            match message {
                Message::LeaseAccept(accept) => machine.handle_accept(lender, &accept, now),
                Message::LeaseRefuse(refuse) => {
                    tracing::debug!(lender = peer.name(), reason = ?refuse.reason, text = refuse.text, "no lease");
                    machine.handle_refuse(lender, &refuse, now);
                }
                Message::LeaseEnd(end) => machine.handle_end(lender, &end, now),
                Message::RateGrants(grants) => machine.handle_grants(lender, &grants, now),
                _ => {}
            }
            self.drain(&mut state, &exits, now);
        }
        // A connection that breaks, or is replaced (both may dial at once), says nothing of the uplink behind it:
        // until the lender announces again, what was asked for is awaited, and what is leased is ended by the
        // silence of its grants only.
        let silent = |want: &Want| {
            let in_use = exits.iter().any(|(addresses, exit)| {
                exit.session.peer() == want.exit && addresses.contains(&want.address)
            });
            in_use && self.parts.peers.get(want.lender).is_some_and(|peer| peer.uplinks().is_empty())
        };
        wants.extend(state.machine.pending().filter(silent));
        // A LAN port that was closed does not come back: the lease is given back, and asked for anew over another.
        let over = |want: &Want| state.borrowed.get(want).is_some_and(|b| b.slot.link.is_closed());
        wants.retain(|want| !over(want));
        state.machine.set_wants(&wants, now);
        self.drain(&mut state, &exits, now);
        handled
    }

    /// What may be leased now, by what the others announce: never an uplink behind a router that is behind
    /// one of ours, and one only of several behind the same router.
    fn wants(&self, exits: &[ExitInUse]) -> BTreeSet<Want> {
        let mut wants = BTreeSet::new();
        let own = self.parts.peers.own_uplinks();
        if own.is_empty() && !self.parts.uplinks.is_empty() {
            // Which routers are behind ours is not known yet.
            return wants;
        }
        let mut routers: Vec<_> = own.iter().filter_map(|uplink| uplink.gateway).collect();
        let mut uplinks = 0;
        for peer in self.parts.peers.all() {
            for uplink in peer.uplinks().iter().filter(|uplink| uplink.lend && uplink.up) {
                if let Some(gateway) = uplink.gateway {
                    if routers.contains(&gateway) {
                        continue;
                    }
                    routers.push(gateway);
                }
                uplinks += 1;
                if uplinks > BORROWED_MAX {
                    return wants;
                }
                for (addresses, exit) in exits {
                    let (lender, exit) = (peer.node(), exit.session.peer());
                    // A lender that is the exit itself needs no relay to itself.
                    if lender == exit {
                        continue;
                    }
                    let want =
                        |address: &SocketAddr| Want { lender, uplink: uplink.id, exit, address: *address };
                    wants.extend(addresses.iter().take(EXIT_ADDRESSES_MAX).map(want));
                }
            }
        }
        wants
    }

    /// Does what the machine says.
    fn drain(&self, state: &mut BorrowerState, exits: &[ExitInUse], now: Time) {
        while let Some(event) = state.machine.poll_event() {
            match event {
                BorrowEvent::Leased { want, port } => self.begin(state, exits, want, port, now),
                BorrowEvent::Granted { want, up, down } => {
                    if let Some(borrowed) = state.borrowed.get(&want) {
                        let limits = Limits { up: limit(up), down: limit(down) };
                        borrowed.slot.limits.send_replace(limits);
                    }
                }
                BorrowEvent::Ended { want, why } => finish(state, want, why),
            }
        }
        while let Some((lender, message)) = state.machine.poll_message() {
            if let Some(peer) = self.parts.peers.get(lender) {
                peer.send(message);
            }
        }
        self.follow_exits(state, exits);
    }

    /// Makes a way to the exit of a new lease.
    fn begin(&self, state: &mut BorrowerState, exits: &[ExitInUse], want: Want, port: u16, now: Time) {
        finish(state, want, "leased anew");
        let Some(peer) = self.parts.peers.get(want.lender) else { return };
        let Some((slot, exit)) = self.way(state, exits, &peer, want, port) else { return };
        if !exit.add_slot(Arc::clone(&slot)) {
            tracing::error!(lender = peer.name(), path = %slot.path, "the path id of a lease is in use");
            return;
        }
        let uplink = uplink_name(&peer, want.uplink);
        let (lender, address) = (peer.name().to_owned(), slot.address);
        tracing::info!(lender, uplink, exit = exit.name, path = %slot.path, %address, "uplink borrowed");
        state.borrowed.insert(want, Borrowed { exit, slot, lender, uplink, since: now });
    }

    fn way(
        &self,
        state: &mut BorrowerState,
        exits: &[ExitInUse],
        peer: &Arc<LanPeer>,
        want: Want,
        port: u16,
    ) -> Option<(Arc<Slot>, Arc<ExitPeer>)> {
        let lan = peer.connection()?;
        let (addresses, exit) = exits.iter().find(|(_, exit)| exit.session.peer() == want.exit)?;
        let number = addresses.iter().position(|address| *address == want.address)? as u8;
        let path = PathId(64 * number + UPLINK_ID_MAX + 1 + state.number(&want)?);
        let name = format!("{}/{}", peer.name(), uplink_name(peer, want.uplink));
        let address = SocketAddr::new(lan.remote().ip(), port);
        Some((Slot::new(path, Arc::clone(&lan.port), name, address), Arc::clone(exit)))
    }

    /// An exit that was left and is used again is another one: the ways go with it.
    fn follow_exits(&self, state: &mut BorrowerState, exits: &[ExitInUse]) {
        for (want, borrowed) in &mut state.borrowed {
            let present = exits.iter().find(|(_, exit)| exit.session.peer() == want.exit);
            let Some((_, exit)) = present.filter(|(_, exit)| !Arc::ptr_eq(exit, &borrowed.exit)) else {
                continue;
            };
            borrowed.exit.remove_slot(&borrowed.slot);
            let old = &borrowed.slot;
            let slot = Slot::new(old.path, Arc::clone(&old.link), old.name.clone(), old.address);
            slot.limits.send_replace(*old.limits.borrow());
            exit.add_slot(Arc::clone(&slot));
            (borrowed.exit, borrowed.slot) = (Arc::clone(exit), slot);
        }
    }
}

/// Takes the way of a lease away.
fn finish(state: &mut BorrowerState, want: Want, why: &str) {
    let Some(borrowed) = state.borrowed.remove(&want) else { return };
    let (lender, uplink, path) = (&borrowed.lender, &borrowed.uplink, borrowed.slot.path);
    tracing::info!(lender, uplink, %path, why, "lease over");
    borrowed.exit.remove_slot(&borrowed.slot);
    let key = (want.lender, want.uplink);
    if !state.borrowed.keys().any(|other| (other.lender, other.uplink) == key) {
        state.numbers.remove(&key);
    }
}

fn uplink_name(peer: &LanPeer, id: u8) -> String {
    let uplinks = peer.uplinks();
    let known = uplinks.iter().find(|uplink| uplink.id == id);
    known.map_or_else(|| format!("uplink-{id}"), |uplink| uplink.name.clone())
}
