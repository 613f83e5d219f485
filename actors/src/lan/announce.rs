//! `AnnounceActor`: tells the members on the LAN which uplinks this node has, what they are measured to
//! carry, and whether they may be leased. Every 2 s, and at once when more than a measurement changes
//! or a member connects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::bond::{PathSnapshot, PathState};
use mwb_proto::control::{ANNOUNCED_MAX, Gateway, Message, UplinkAnnounce, UplinkInfo, UplinkKind};
use mwb_proto::time::Time;

use super::LanPeers;
use crate::clock;
use crate::control::exits::Exits;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::identity::NodeId;
use crate::spec::Platform;
use crate::uplinks::{Uplink, Uplinks};
use crate::wan_link::Link;

/// How often everything is said again.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// How often our uplinks are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the routers behind our uplinks are asked for, and sooner while one is not known.
const GATEWAY_EVERY: Duration = Duration::from_secs(10);
const GATEWAY_RETRY: Duration = Duration::from_secs(2);
/// How long the platform may take to find one.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(1);
/// Received bytes are turned into rates over this time; the greatest of the last [`RATES_KEPT`] counts.
const RATE_SPAN: Duration = Duration::from_secs(1);
const RATES_KEPT: usize = 60;
/// An uplink over which no path carries traffic is down after this time, not sooner: a path that has just
/// joined, or stalls for a moment, must not cost its borrowers their leases. Theirs notice a death themselves.
const DOWN_AFTER: Duration = Duration::from_secs(1);
/// Bits of a path id that number the uplink.
const UPLINK_MASK: u8 = 0x3f;

/// What the actor is lent.
#[derive(Clone)]
pub struct AnnounceLent {
    /// Who is told.
    pub peers: Arc<LanPeers>,
    /// Our uplinks.
    pub uplinks: Arc<Uplinks>,
    /// On an edge, the exits whose sessions measure the uplinks.
    pub exits: Option<Arc<Exits>>,
    /// Knows the routers.
    pub platform: Arc<dyn Platform>,
}

impl fmt::Debug for AnnounceLent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnnounceLent").field("uplinks", &self.uplinks).finish_non_exhaustive()
    }
}

/// Marker of [`AnnounceActor`].
#[derive(Debug)]
pub struct Announce;

/// The actor that announces our uplinks.
pub type AnnounceActor = DrivenActor<Announce>;

impl Drive for Announce {
    type Lent = AnnounceLent;

    fn launch(lent: &AnnounceLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("tell", |pulse| run(lent, pulse));
        Ok(())
    }
}

async fn run(lent: AnnounceLent, pulse: Pulse) -> Result<(), DriverError> {
    let mut changes = lent.peers.changes();
    let mut gateways = Gateways::default();
    let mut own = lent.uplinks.changes();
    let mut looks: BTreeMap<u8, (Arc<Link>, Look)> = BTreeMap::new();
    let mut told: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut said: Vec<UplinkInfo> = Vec::new();
    let mut say_at = clock::now();
    loop {
        pulse.beat().await?;
        changes.mark_unchanged();
        let uplinks = lent.uplinks.all();
        pulse.alive_during(gateways.refresh(&lent, &uplinks, clock::now())).await?;
        let now = clock::now();
        let measured = measured(&lent);
        let neighbours: Vec<IpAddr> =
            lent.peers.all().iter().filter_map(|peer| Some(peer.connection()?.remote().ip())).collect();
        // Another link with the same id is another uplink.
        looks.retain(|id, (link, _)| {
            uplinks.iter().any(|uplink| uplink.spec.id == *id && Arc::ptr_eq(&uplink.link, link))
        });
        let infos: Vec<_> = (uplinks.iter().take(ANNOUNCED_MAX))
            .map(|Uplink { spec: uplink, link, .. }| {
                let new = || (Arc::clone(link), Look::default());
                let (_, look) = looks.entry(uplink.id).or_insert_with(new);
                let measured = measured.get(&uplink.id).copied().unwrap_or_default();
                let rate_down = look.rate.sample(now, link.status().received_bytes);
                let is_silent = look.is_silent(measured, now);
                let gateway = uplink.interface.as_ref().and_then(|interface| gateways.of(interface));
                // What a member routes for us is that member's uplink, and nobody's else to lend.
                let is_ours = gateway.is_none_or(|gateway| !neighbours.contains(&gateway.address));
                UplinkInfo {
                    id: uplink.id,
                    name: uplink.name.clone(),
                    kind: uplink.kind,
                    up: link.socket().is_some() && !is_silent,
                    lend: uplink.lend && is_ours,
                    metered: uplink.metered,
                    rate_up: (measured.rate_mbit.max(0.0) * 1e6) as u64,
                    rate_down,
                    rtt_us: (measured.rtt_ms.max(0.0) * 1e3) as u32,
                    loss_ppm: (measured.loss.clamp(0.0, 1.0) * 1e6) as u32,
                    gateway,
                }
            })
            .collect();
        let due = now >= say_at || !said.iter().map(settled).eq(infos.iter().map(settled));
        if due {
            say_at = now + SAY_EVERY;
            said.clone_from(&infos);
            lent.peers.set_own_uplinks(infos);
        }
        let mut present = BTreeMap::new();
        for peer in lent.peers.all() {
            let Some(connection) = peer.connection() else { continue };
            let mut is_told = told.get(&peer.node()) == Some(&connection.generation);
            if due || !is_told {
                // A full outbox is tried again with the next look.
                is_told = peer.send(Message::UplinkAnnounce(UplinkAnnounce { uplinks: said.clone() }));
                pulse.count_handled(1);
            }
            if is_told {
                present.insert(peer.node(), connection.generation);
            }
        }
        told = present;
        tokio::select! {
            _ = changes.changed() => {}
            _ = own.changed() => gateways.next = None,
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = pulse.asked() => {}
        }
    }
}

/// What of an announcement is no measurement: a change of it is told at once.
pub(super) fn settled(uplink: &UplinkInfo) -> (u8, &str, UplinkKind, (bool, bool, bool), Option<Gateway>) {
    (uplink.id, &uplink.name, uplink.kind, (uplink.up, uplink.lend, uplink.metered), uplink.gateway)
}

/// What the sessions know of one uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Measured {
    /// Paths that have joined over it, and those that carry traffic.
    paths: u32,
    paths_up: u32,
    rate_mbit: f64,
    /// Of the path with the shortest round trip.
    rtt_ms: f64,
    loss: f64,
}

impl Measured {
    fn add(&mut self, path: &PathSnapshot) {
        self.paths += 1;
        if path.state == PathState::Up {
            self.paths_up += 1;
        }
        // A path without enough to send shows what was wanted, which is less than the uplink can.
        let rate = if path.app_limited { path.capacity_mbit } else { path.rate_mbit };
        self.rate_mbit = self.rate_mbit.max(rate);
        if path.rtt_ms > 0.0 && (self.rtt_ms == 0.0 || path.rtt_ms < self.rtt_ms) {
            (self.rtt_ms, self.loss) = (path.rtt_ms, path.loss);
        }
    }
}

/// What all sessions know of our own uplinks, by uplink id.
fn measured(lent: &AnnounceLent) -> BTreeMap<u8, Measured> {
    let mut measured: BTreeMap<u8, Measured> = BTreeMap::new();
    for exit in lent.exits.iter().flat_map(|exits| exits.all()) {
        for path in &exit.session.sender.borrow().paths {
            measured.entry(path.path & UPLINK_MASK).or_default().add(path);
        }
    }
    measured
}

/// What is remembered of one uplink from look to look.
#[derive(Debug, Default)]
struct Look {
    rate: ReceiveRate,
    /// Since when its paths carry no traffic.
    silent_since: Option<Time>,
}

impl Look {
    /// Whether no path over the uplink has carried traffic for [`DOWN_AFTER`].
    fn is_silent(&mut self, measured: Measured, now: Time) -> bool {
        if measured.paths == 0 || measured.paths_up > 0 {
            self.silent_since = None;
            return false;
        }
        now - *self.silent_since.get_or_insert(now) >= DOWN_AFTER
    }
}

/// The greatest rate at which a link has received lately: no more than it can, and often less.
#[derive(Debug, Default)]
struct ReceiveRate {
    begin: Option<(Time, u64)>,
    rates: VecDeque<u64>,
}

impl ReceiveRate {
    /// Takes the counter of received bytes; gives bit/s.
    fn sample(&mut self, now: Time, bytes: u64) -> u64 {
        let (since, before) = *self.begin.get_or_insert((now, bytes));
        let span = now - since;
        if span >= RATE_SPAN {
            let rate = bytes.saturating_sub(before) as f64 * 8.0 / span.as_secs_f64();
            self.rates.push_back(rate as u64);
            if self.rates.len() > RATES_KEPT {
                self.rates.pop_front();
            }
            self.begin = Some((now, bytes));
        }
        self.rates.iter().copied().max().unwrap_or(0)
    }
}

/// The routers behind our interfaces.
#[derive(Debug, Default)]
struct Gateways {
    known: BTreeMap<String, Gateway>,
    next: Option<Time>,
}

impl Gateways {
    fn of(&self, interface: &str) -> Option<Gateway> {
        self.known.get(interface).copied()
    }

    /// Asks the platform when it is time to.
    async fn refresh(&mut self, lent: &AnnounceLent, uplinks: &[Uplink], now: Time) {
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        let mut complete = true;
        let interfaces: BTreeSet<_> =
            uplinks.iter().filter_map(|uplink| uplink.spec.interface.as_ref()).collect();
        self.known.retain(|interface, _| interfaces.contains(interface));
        for interface in interfaces {
            let asked = tokio::time::timeout(GATEWAY_TIMEOUT, lent.platform.gateway(interface)).await;
            match asked {
                Ok(Some(gateway)) => {
                    if self.known.insert(interface.clone(), gateway) != Some(gateway) {
                        tracing::debug!(interface, ?gateway, "router behind an uplink");
                    }
                }
                Ok(None) => {
                    self.known.remove(interface);
                    complete = false;
                }
                // Slow is not gone: what was known stays.
                Err(_elapsed) => complete = false,
            }
        }
        self.next = Some(clock::now() + if complete { GATEWAY_EVERY } else { GATEWAY_RETRY });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uplink_is_down_when_its_paths_stay_silent() {
        let mut look = Look::default();
        let at = Time::from_millis;
        let joined = Measured { paths: 1, ..Measured::default() };
        let up = Measured { paths_up: 1, ..joined };
        assert!(!look.is_silent(joined, at(1_000)), "it has just joined");
        assert!(!look.is_silent(up, at(1_250)));
        assert!(!look.is_silent(joined, at(5_000)), "it stalls");
        assert!(!look.is_silent(joined, at(5_999)));
        assert!(look.is_silent(joined, at(6_000)));
        assert!(!look.is_silent(up, at(6_250)));
        assert!(!look.is_silent(Measured::default(), at(60_000)), "nothing is known of an unused one");
    }

    #[test]
    fn the_greatest_rate_of_the_last_minute_counts() {
        let mut rate = ReceiveRate::default();
        let at = |seconds: u64| Time::from_millis(1000 * seconds);
        assert_eq!(rate.sample(at(10), 5_000_000), 0, "what was before is not known");
        assert_eq!(rate.sample(at(11), 6_000_000), 8_000_000);
        assert_eq!(rate.sample(at(12), 6_000_100), 8_000_000);
        for second in 13..72 {
            rate.sample(at(second), 6_000_100);
        }
        assert_eq!(rate.sample(at(72), 6_000_100), 0, "both are older than a minute");
        for second in 73..140 {
            rate.sample(at(second), 6_000_100);
        }
        assert_eq!(rate.sample(at(140), 6_000_100), 0);
    }
}
