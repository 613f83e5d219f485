//! The borrower's half: asks for what is wanted, renews it, and notices what is lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::{GRANT_SILENCE_MAX, LEASE_TTL, RENEW_EVERY};
use crate::control::{LeaseAccept, LeaseEnd, LeaseRefuse, LeaseRequest, Message, RateGrants};
use crate::mesh::NodeId;
use crate::time::Time;

/// A request without an answer is repeated after this.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// First wait after a refusal or an end; doubles with each.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest wait after a refusal.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A lease that lasted so long was a good one: the wait after its end is the shortest again.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// What may be leased: one uplink of a lender, towards one address of an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Want {
    /// The lender.
    pub lender: NodeId,
    /// Its number of the uplink.
    pub uplink: u8,
    /// Node id of the exit.
    pub exit: NodeId,
    /// Its address.
    pub address: SocketAddr,
}

/// What has become of a want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BorrowEvent {
    /// The lender carries what is sent to this port.
    Leased {
        /// What.
        want: Want,
        /// UDP port at the lender.
        port: u16,
    },
    /// The lender's grant: bit/s on the wire, `u64::MAX` for no limit.
    Granted {
        /// What.
        want: Want,
        /// Towards the internet.
        up: u64,
        /// From the internet.
        down: u64,
    },
    /// The lease is no more.
    Ended {
        /// What.
        want: Want,
        /// Why, for people.
        why: &'static str,
    },
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// To be asked for at this time, for the first time or again.
    Waiting {
        at: Time,
    },
    /// Asked for, not answered yet.
    Asked {
        again: Time,
    },
    Leased {
        port: u16,
        since: Time,
        asked: Time,
        accepted: Time,
        heard: Time,
        grant: (u64, u64),
    },
}

#[derive(Debug, Clone)]
struct Entry {
    lease: u64,
    state: State,
    retry: Duration,
}

/// The borrower's machine.
#[derive(Debug)]
pub struct Borrower {
    entries: BTreeMap<Want, Entry>,
    /// State of the generator of lease numbers (SplitMix64).
    seed: u64,
    messages: VecDeque<(NodeId, Message)>,
    events: VecDeque<BorrowEvent>,
}

impl Borrower {
    /// A borrower that wants nothing yet; `seed` makes the numbers of its leases.
    pub fn new(seed: u64) -> Self {
        Self { entries: BTreeMap::new(), seed, messages: VecDeque::new(), events: VecDeque::new() }
    }

    /// Says what is wanted from now on; what no longer is, is given back.
    pub fn set_wants(&mut self, wants: &BTreeSet<Want>, now: Time) {
        let dropped: Vec<Want> = self.entries.keys().filter(|want| !wants.contains(want)).copied().collect();
        for want in dropped {
            let Some(entry) = self.entries.remove(&want) else { continue };
            if let State::Leased { .. } = entry.state {
                self.give_back(want.lender, entry.lease, "not wanted any more");
                self.events.push_back(BorrowEvent::Ended { want, why: "not wanted any more" });
            }
        }
        for want in wants {
            if !self.entries.contains_key(want) {
                let lease = self.number();
                let state = State::Waiting { at: now };
                self.entries.insert(*want, Entry { lease, state, retry: RETRY_MIN });
            }
        }
        self.handle_timeout(now);
    }

    /// Takes a lender's consent; one that answers no question is given back.
    pub fn handle_accept(&mut self, lender: NodeId, accept: &LeaseAccept, now: Time) {
        let Some((want, entry)) = self.find(lender, accept.lease) else {
            return self.give_back(lender, accept.lease, "this lease is not known");
        };
        match &mut entry.state {
            State::Leased { port, accepted, .. } if *port == accept.port => *accepted = now,
            state => {
                let grant = (u64::MAX, u64::MAX);
                let moved = matches!(state, State::Leased { .. });
                *state = State::Leased {
                    port: accept.port,
                    since: now,
                    asked: now,
                    accepted: now,
                    heard: now,
                    grant,
                };
                if moved {
                    self.events.push_back(BorrowEvent::Ended { want, why: "the lender's port has changed" });
                }
                self.events.push_back(BorrowEvent::Leased { want, port: accept.port });
            }
        }
    }

    /// Takes a lender's refusal.
    pub fn handle_refuse(&mut self, lender: NodeId, refuse: &LeaseRefuse, now: Time) {
        self.lose(lender, refuse.lease, "refused", now);
    }

    /// Takes the end of a lease.
    pub fn handle_end(&mut self, lender: NodeId, end: &LeaseEnd, now: Time) {
        self.lose(lender, end.lease, "ended by the lender", now);
    }

    /// Takes a lender's grants.
    pub fn handle_grants(&mut self, lender: NodeId, grants: &RateGrants, now: Time) {
        for new in &grants.grants {
            let Some((want, entry)) = self.find(lender, new.lease) else { continue };
            let State::Leased { heard, grant, .. } = &mut entry.state else { continue };
            *heard = now;
            if *grant != (new.up, new.down) {
                *grant = (new.up, new.down);
                self.events.push_back(BorrowEvent::Granted { want, up: new.up, down: new.down });
            }
        }
    }

    /// Asks, renews, and gives up what is dead.
    pub fn handle_timeout(&mut self, now: Time) {
        let due: Vec<Want> =
            self.entries.iter().filter(|(_, e)| next(&e.state) <= now).map(|(want, _)| *want).collect();
        for want in due {
            let Some(entry) = self.entries.get_mut(&want) else { continue };
            let lease = entry.lease;
            let dead = match &mut entry.state {
                state @ (State::Waiting { .. } | State::Asked { .. }) => {
                    *state = State::Asked { again: now + ASK_AGAIN };
                    None
                }
                State::Leased { accepted, .. } if now - *accepted >= LEASE_TTL => Some("not renewed in time"),
                State::Leased { heard, .. } if now - *heard >= GRANT_SILENCE_MAX => {
                    Some("no grant was heard")
                }
                State::Leased { asked, .. } => {
                    if now - *asked < RENEW_EVERY {
                        continue;
                    }
                    *asked = now;
                    None
                }
            };
            if let Some(why) = dead {
                self.give_back(want.lender, lease, why);
                self.lose(want.lender, lease, why, now);
                continue;
            }
            let (uplink, exit, address) = (want.uplink, *want.exit.as_bytes(), want.address);
            let request = LeaseRequest { lease, uplink, exit, address };
            self.messages.push_back((want.lender, Message::LeaseRequest(request)));
        }
    }

    /// The next message to be sent to a lender.
    pub fn poll_message(&mut self) -> Option<(NodeId, Message)> {
        self.messages.pop_front()
    }

    /// The next fact for the shell.
    pub fn poll_event(&mut self) -> Option<BorrowEvent> {
        self.events.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) again.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.entries.values().map(|entry| next(&entry.state)).min()
    }

    /// The leases that are there now, with the lenders' ports.
    pub fn leased(&self) -> impl Iterator<Item = (Want, u16)> {
        self.entries.iter().filter_map(|(want, entry)| match entry.state {
            State::Leased { port, .. } => Some((*want, port)),
            State::Waiting { .. } | State::Asked { .. } => None,
        })
    }

    /// What is leased, and what a question is under way for.
    pub fn pending(&self) -> impl Iterator<Item = Want> {
        let pending = self.entries.iter().filter(|(_, e)| !matches!(e.state, State::Waiting { .. }));
        pending.map(|(want, _)| *want)
    }

    fn find(&mut self, lender: NodeId, lease: u64) -> Option<(Want, &mut Entry)> {
        let mut entries = self.entries.iter_mut();
        entries.find(|(want, e)| want.lender == lender && e.lease == lease).map(|(want, e)| (*want, e))
    }

    /// A lease is gone, or was not given: it is asked for again later, under a new number.
    fn lose(&mut self, lender: NodeId, lease: u64, why: &'static str, now: Time) {
        let fresh = self.number();
        let Some((want, entry)) = self.find(lender, lease) else { return };
        let was = entry.state;
        if let State::Leased { since, .. } = was
            && now - since >= GOOD_AFTER
        {
            entry.retry = RETRY_MIN;
        }
        entry.lease = fresh;
        entry.state = State::Waiting { at: now + entry.retry };
        entry.retry = (entry.retry * 2).min(RETRY_MAX);
        if let State::Leased { .. } = was {
            self.events.push_back(BorrowEvent::Ended { want, why });
        }
    }

    fn give_back(&mut self, lender: NodeId, lease: u64, why: &str) {
        let end = LeaseEnd { lease, text: why.to_owned() };
        self.messages.push_back((lender, Message::LeaseEnd(end)));
    }

    fn number(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// When something is due in this state.
fn next(state: &State) -> Time {
    match state {
        State::Waiting { at } | State::Asked { again: at } => *at,
        State::Leased { asked, accepted, heard, .. } => {
            (*asked + RENEW_EVERY).min(*accepted + LEASE_TTL).min(*heard + GRANT_SILENCE_MAX)
        }
    }
}
