//! The uplinks of this node, and `UplinksActor`, which follows those that come and go.
//!
//! Those of the configuration are there from the start until the node stops. Those that the host is found to have
//! come from the platform as a list that is always complete ([`NodeSpec::found`](crate::spec::NodeSpec)). The actor
//! brings links, paths and what is announced in line with it; doing so twice changes nothing, so its death costs
//! nothing. An uplink that leaves the list is closed in this order: its ways to the exits, which tells these if
//! anything still gets through, its QUIC endpoint, its socket, its actor. Leases over it end when the lender finds it gone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::buf::BufPool;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::control::exits::Exits;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::identity::Identity;
use crate::membership::Membership;
use crate::session::path::SessionTable;
use crate::spec::{FoundUplink, UPLINK_ID_MAX, UplinkSpec};
use crate::supervisor::{ChildSpec, Plan};
use crate::wan_link::{Link, LinkSpec, SocketSpec, WanLink, bind_address};

/// Time for QUIC's goodbye before the socket of an uplink that leaves is closed.
const FAREWELL: Duration = Duration::from_millis(50);
/// Least id of an uplink; 0 stays free, as in the configuration.
const UPLINK_ID_MIN: u8 = 1;

/// What uplinks are made from.
pub struct UplinksParts {
    /// Our key.
    pub identity: Arc<Identity>,
    /// Receiver indexes of all paths.
    pub table: Arc<SessionTable>,
    /// Packet buffers.
    pub pool: BufPool,
    /// Plan of the link supervisor.
    pub links: Arc<Plan>,
    /// Addresses of the exits that the configuration names.
    pub exits: Vec<SocketAddr>,
    /// The mesh, whose exits have addresses as well.
    pub membership: Option<Arc<Membership>>,
    /// Names of other links.
    pub names: BTreeSet<String>,
    /// Numbers and names that only found uplinks have which the configuration describes.
    pub reserved: Vec<(u8, String)>,
}

/// One uplink in use.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// What it was made from.
    pub spec: UplinkSpec,
    /// Its socket and queues.
    pub link: Arc<Link>,
    /// What it is attached to, when it was found; the configuration names the others.
    found: Option<String>,
    /// Whether the configuration describes it, found or not.
    described: bool,
}

/// An uplink, as `status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct UplinkStatus {
    /// Its number in path ids.
    pub id: u8,
    /// Its name; its link has the same.
    pub name: String,
    /// The device that it uses, if that is fixed.
    pub interface: Option<String>,
    /// What it is.
    #[serde(rename = "type")]
    pub line: &'static str,
    /// Whether its volume is paid for.
    pub metered: bool,
    /// Whether others on the LAN may lease it.
    pub lend: bool,
    /// Whether it was found, and the configuration says nothing of it.
    pub found: bool,
}

/// The uplinks in use; survives its actor.
pub struct Uplinks {
    parts: UplinksParts,
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    present: BTreeMap<u8, Uplink>,
    /// Ids of the interfaces that were found, also of those that have gone: who comes back has the same.
    ids: BTreeMap<String, u8>,
    /// Taken out of use and not closed yet.
    leaving: Vec<Uplink>,
}

impl Uplinks {
    /// The uplinks of the configuration.
    pub fn new(parts: UplinksParts, fixed: &[UplinkSpec]) -> Arc<Self> {
        let uplinks = Self { parts, state: Mutex::default(), version: watch::Sender::new(0) };
        for spec in fixed {
            uplinks.begin(&mut uplinks.state.lock(), spec.clone(), None, true);
        }
        Arc::new(uplinks)
    }

    /// All that are in use, by id.
    pub fn all(&self) -> Vec<Uplink> {
        self.state.lock().present.values().cloned().collect()
    }

    /// The link of the uplink with this id.
    pub fn link(&self, id: u8) -> Option<Arc<Link>> {
        self.state.lock().present.get(&id).map(|uplink| Arc::clone(&uplink.link))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.state.lock().present.is_empty()
    }

    /// Grows whenever one comes, goes, or becomes another.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// What `status` shows.
    pub fn status(&self) -> Vec<UplinkStatus> {
        let status = |uplink: Uplink| UplinkStatus {
            id: uplink.spec.id,
            name: uplink.spec.name,
            interface: uplink.spec.interface,
            line: uplink.spec.line,
            metered: uplink.spec.metered,
            lend: uplink.spec.lend,
            found: !uplink.described,
        };
        self.all().into_iter().map(status).collect()
    }

    /// Takes those out of use that are found no more. They are [closed](Self::close_leaving) later.
    pub(crate) fn take_out(&self, found: &[FoundUplink]) {
        let mut state = self.state.lock();
        let State { present, leaving, .. } = &mut *state;
        // An interface that is another uplink by the configuration now has another number.
        let is_there = |uplink: &Uplink| {
            found.iter().any(|found| {
                let same = match &found.own {
                    Some((id, _)) => *id == uplink.spec.id,
                    None => !uplink.described,
                };
                same && Some(&found.interface) == uplink.spec.interface.as_ref()
            })
        };
        let gone: Vec<u8> = (present.iter())
            .filter(|(_, uplink)| uplink.found.is_some() && !is_there(uplink))
            .map(|(id, _)| *id)
            .collect();
        for uplink in gone.iter().filter_map(|id| present.remove(id)) {
            tracing::info!(uplink = uplink.spec.name, "uplink has gone");
            leaving.push(uplink);
        }
        if !gone.is_empty() {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Closes those that were taken out.
    ///
    /// # Errors
    /// As [`Pulse::alive_during`]; what was not closed then is closed by the next call.
    pub(crate) async fn close_leaving(&self, pulse: &Pulse) -> Result<(), DriverError> {
        let leaving = self.state.lock().leaving.clone();
        if leaving.is_empty() {
            return Ok(());
        }
        for uplink in &leaving {
            uplink.link.close();
        }
        pulse.alive_during(tokio::time::sleep(FAREWELL)).await?;
        for uplink in &leaving {
            uplink.link.shut();
            self.parts.links.remove(uplink.link.name());
        }
        let closed = |uplink: &Uplink| leaving.iter().any(|other| Arc::ptr_eq(&other.link, &uplink.link));
        self.state.lock().leaving.retain(|uplink| !closed(uplink));
        Ok(())
    }

    /// Takes those into use that are new, and notes what others have become.
    pub(crate) fn take_in(&self, found: &[FoundUplink]) {
        let mut state = self.state.lock();
        let mut changed = false;
        for found in found {
            let interface = Some(&found.interface);
            let known =
                |uplink: &&mut Uplink| uplink.found.is_some() && uplink.spec.interface.as_ref() == interface;
            if let Some(uplink) = state.present.values_mut().find(known) {
                changed |= uplink.becomes(found);
                continue;
            }
            let own = found.own.clone();
            let free = || {
                let id = state.id_for(&found.interface, &self.parts.reserved)?;
                Some((id, self.free_name(&state, &found.interface)))
            };
            let Some((id, name)) = own.or_else(free) else {
                tracing::warn!(found.interface, "more than {UPLINK_ID_MAX} uplinks: this one is not used");
                continue;
            };
            tracing::info!(
                uplink = name,
                found.interface,
                found.line,
                found.metered,
                attached = found.attached,
                "uplink found"
            );
            let spec = UplinkSpec {
                id,
                name,
                interface: Some(found.interface.clone()),
                address: None,
                rate_max: found.rate_max,
                weight: found.weight,
                fwmark: found.fwmark,
                kind: found.kind,
                line: found.line,
                metered: found.metered,
                lend: found.lend,
                health: found.health.clone(),
            };
            self.begin(&mut state, spec, Some(found.attached.clone()), found.own.is_some());
            changed = true;
        }
        drop(state);
        if changed {
            self.version.send_modify(|version| *version += 1);
        }
    }

    fn begin(&self, state: &mut State, spec: UplinkSpec, found: Option<String>, described: bool) {
        let parts = &self.parts;
        let learnt = parts.membership.iter().flat_map(|membership| membership.exits());
        let learnt: Vec<_> = learnt.flat_map(|exit| exit.addresses).collect();
        let dual = parts.exits.iter().chain(&learnt).any(SocketAddr::is_ipv6);
        let socket = SocketSpec {
            bind: bind_address(spec.address, dual),
            device: spec.interface.clone(),
            mark: spec.fwmark,
        };
        let (name, rate_max, weight) = (spec.name.clone(), spec.rate_max, spec.weight);
        let link = LinkSpec { name: name.clone(), socket, rate_max, weight, health: spec.health.clone() };
        let (table, pool) = (Arc::clone(&parts.table), parts.pool.clone());
        let link = Link::new(link, Arc::clone(&parts.identity), None, table, pool);
        parts.links.add(ChildSpec::driven::<WanLink>(name, Arc::clone(&link)));
        state.present.insert(spec.id, Uplink { spec, link, found, described });
    }

    /// A name for an interface that no link has.
    fn free_name(&self, state: &State, interface: &str) -> String {
        let taken = |name: &str| {
            self.parts.names.contains(name)
                || self.parts.reserved.iter().any(|(_, reserved)| reserved == name)
                || state.present.values().any(|other| other.spec.name == name)
        };
        // Links of other kinds come, too, and have such names.
        let is_others = ["lan-", "listen-", "probe-"].iter().any(|kind| interface.starts_with(kind));
        let first = if is_others { format!("uplink-{interface}") } else { interface.to_owned() };
        let numbered = (2..).map(|number| format!("{first}-{number}"));
        let mut names = std::iter::once(first.clone()).chain(numbered);
        names.find(|name| !taken(name)).unwrap_or_default()
    }
}

impl State {
    /// The id of an interface: the one it had, else one that nobody had, else one of an interface that has gone.
    fn id_for(&mut self, interface: &str, reserved: &[(u8, String)]) -> Option<u8> {
        let free = |present: &BTreeMap<u8, Uplink>, id: &u8| {
            !present.contains_key(id) && !reserved.iter().any(|(reserved, _)| reserved == id)
        };
        let all = UPLINK_ID_MIN..=UPLINK_ID_MAX;
        let had = self.ids.get(interface).copied().filter(|id| free(&self.present, id));
        let fresh =
            || all.clone().find(|id| free(&self.present, id) && !self.ids.values().any(|used| used == id));
        let id = had.or_else(fresh).or_else(|| all.clone().find(|id| free(&self.present, id)))?;
        self.ids.retain(|_, used| *used != id);
        self.ids.insert(interface.to_owned(), id);
        Some(id)
    }
}

impl Uplink {
    /// Notes what the same interface is found to be now. On another network the socket is opened anew, since relays
    /// and QUIC keep the address that they began with. True when anything has changed.
    fn becomes(&mut self, found: &FoundUplink) -> bool {
        let spec = &mut self.spec;
        let now = (found.kind, found.line, found.metered, found.lend);
        let mut changed = (spec.kind, spec.line, spec.metered, spec.lend) != now;
        (spec.kind, spec.line, spec.metered, spec.lend) = now;
        if self.found.as_ref() != Some(&found.attached) {
            tracing::info!(uplink = spec.name, attached = found.attached, "uplink is attached elsewhere");
            self.found = Some(found.attached.clone());
            self.link.reopen();
            changed = true;
        }
        changed
    }
}

impl fmt::Debug for Uplinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().iter().map(|uplink| &uplink.spec.name)).finish()
    }
}

/// What the actor is lent.
#[derive(Clone, Debug)]
pub struct FollowLent {
    /// The uplinks.
    pub uplinks: Arc<Uplinks>,
    /// The exits, whose ways follow.
    pub exits: Arc<Exits>,
    /// What the host is found to have.
    pub found: watch::Receiver<Vec<FoundUplink>>,
}

/// Marker of [`UplinksActor`].
#[derive(Debug)]
pub struct Follow;

/// The actor that follows the uplinks which the host is found to have.
pub type UplinksActor = DrivenActor<Follow>;

impl Drive for Follow {
    type Lent = FollowLent;

    fn launch(lent: &FollowLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("follow", |pulse| run(lent, pulse));
        Ok(())
    }
}

async fn run(lent: FollowLent, pulse: Pulse) -> Result<(), DriverError> {
    let mut found = lent.found.clone();
    loop {
        pulse.beat().await?;
        let now = found.borrow_and_update().clone();
        lent.uplinks.take_out(&now);
        lent.exits.follow_uplinks();
        lent.uplinks.close_leaving(&pulse).await?;
        lent.uplinks.take_in(&now);
        lent.exits.follow_uplinks();
        pulse.count_handled(1);
        let change = async {
            // Nobody tells any more: what was told last stays.
            if found.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        pulse.alive_during(change).await?;
    }
}

#[cfg(test)]
mod tests;
