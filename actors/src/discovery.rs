//! `DiscoveryActor`: announces this node on the LAN by mDNS (RFC 6762) and turns the announcements of
//! others into [`LanHints`] for whoever dials.
//!
//! Only the LAN's interfaces are used; when they become others, it begins anew with those. Only announcements of our mesh, or of nodes that the
//! configuration names, become hints. Hints outlive the actor; its next incarnation withdraws those that
//! are not announced any more.

mod daemon;
mod sightings;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use mdns_sd::{Metrics, Receiver, ResolvedService, ScopedIp, ServiceEvent};
use mwb_proto::discovery::{Announcement, BlindMesh, Tag, hex, node_tag};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

pub use self::daemon::Slot;
use self::daemon::{Daemon, Load, port_is_free};
use self::sightings::{Sightings, Standing};
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::identity::NodeId;
use crate::lan::{LanHint, LanHints};
use crate::membership::Access;

/// Between two tries for the port of mDNS while another program keeps it for itself.
const PORT_RETRY: Duration = Duration::from_secs(30);
/// How often the daemon is asked how much it remembers.
const LOAD_CHECK: Duration = Duration::from_secs(1);
/// How long it may take to answer: it reads packets as long as there are any before it answers.
const LOAD_PATIENCE: Duration = Duration::from_secs(5);
/// When hints from before this incarnation must have been announced again: a browser asks after 0, 1, 3
/// and 7 s.
const SETTLED: Duration = Duration::from_secs(10);

/// What the actor is lent.
#[derive(Clone, Debug)]
pub struct DiscoveryLent {
    /// Who we are.
    pub node: NodeId,
    /// Whom we may meet.
    pub access: Arc<Access>,
    /// The LAN's interfaces; followed.
    pub interfaces: watch::Receiver<Vec<String>>,
    /// Our UDP port there.
    pub port: u16,
    /// Where the findings go.
    pub hints: Arc<LanHints>,
    /// Keeps the daemon from before until it has ended.
    pub slot: Slot,
}

/// Marker of [`DiscoveryActor`].
#[derive(Debug)]
pub struct Discovery;

/// The actor that finds members on the LAN.
pub type DiscoveryActor = DrivenActor<Discovery>;

impl Drive for Discovery {
    type Lent = DiscoveryLent;

    fn launch(lent: &DiscoveryLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("browse", |pulse| run(lent, pulse));
        Ok(())
    }
}

async fn run(lent: DiscoveryLent, pulse: Pulse) -> Result<(), DriverError> {
    let mut interfaces = lent.interfaces.clone();
    loop {
        let names = interfaces.borrow_and_update().clone();
        if names.is_empty() {
            pulse.alive_during(changed(&mut interfaces)).await?;
        } else {
            browse(&lent, &names, &mut interfaces, &pulse).await?;
        }
    }
}

/// Waits for other interfaces.
async fn changed(interfaces: &mut watch::Receiver<Vec<String>>) {
    // Nobody tells any more: they stay.
    if interfaces.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Announces and looks on the interfaces `names`, until they are others.
async fn browse(
    lent: &DiscoveryLent,
    names: &[String],
    interfaces: &mut watch::Receiver<Vec<String>>,
    pulse: &Pulse,
) -> Result<(), DriverError> {
    let claim = pulse.alive_during(lent.slot.claim()).await?;
    let mut told = false;
    while !port_is_free() {
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(
                port = mdns_sd::MDNS_PORT,
                "another program keeps the port of mDNS for itself: members on the LAN are not found; \
                 end it, or give their addresses as `lan` of [[peers]]"
            );
        }
        pulse.alive_during(sleep(PORT_RETRY)).await?;
    }
    let mut circle = Circle::new(lent);
    let daemon = Daemon::start(claim, names, lent.port, &circle.announcement())
        .map_err(|error| DriverError::Failed(format!("mDNS cannot be started: {error}")))?;
    let mut sightings = Sightings::default();
    let mut load = LoadWatch::default();
    let mut check = interval(LOAD_CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (began, mut settled) = (Instant::now(), false);
    loop {
        pulse.beat().await?;
        tokio::select! {
            () = pulse.asked() => {}
            () = changed(interfaces) => return Ok(()),
            event = daemon.events.recv_async() => {
                let event = event.map_err(|_| DriverError::Failed("the thread of mDNS has ended".to_owned()))?;
                pulse.count_handled(1);
                handle(event, &mut circle, &mut sightings, (lent, names));
            }
            _ = check.tick() => {
                load.check(&daemon)?;
                if !settled && began.elapsed() >= SETTLED {
                    settled = true;
                    lent.hints.retain(|hint| sightings.contains(hint));
                }
            }
        }
    }
}

fn handle(
    event: ServiceEvent,
    circle: &mut Circle,
    sightings: &mut Sightings,
    (lent, interfaces): (&DiscoveryLent, &[String]),
) {
    match event {
        ServiceEvent::ServiceResolved(service) => {
            let txt = service.txt_properties.iter().map(|property| (property.key(), property.val()));
            let judged = match Announcement::from_txt(txt) {
                Ok(announcement) => circle.judge(&announcement).map(|standing| (announcement.tag, standing)),
                Err(error) => {
                    tracing::debug!(instance = service.fullname, %error, "not an announcement");
                    None
                }
            };
            let Some((tag, standing)) = judged else {
                // It may have been another's before.
                sightings.removed(&service.fullname, &lent.hints);
                return;
            };
            let found = hints_of(&service, tag, interfaces);
            tracing::debug!(tag = hex(&tag), ?standing, ?found, "announced on the LAN");
            sightings.resolved(&service.fullname, standing, found, &lent.hints);
        }
        ServiceEvent::ServiceRemoved(_, instance) => {
            if let Some(tag) = sightings.tag(&instance) {
                tracing::debug!(tag = hex(&tag), "not announced any more");
            }
            sightings.removed(&instance, &lent.hints);
        }
        _ => {}
    }
}

/// The addresses of `service` on `interfaces` that can be dialled, IPv4 first.
fn hints_of(service: &ResolvedService, tag: Tag, interfaces: &[String]) -> Vec<LanHint> {
    let mut found = BTreeSet::new();
    for address in &service.addresses {
        match address {
            ScopedIp::V4(v4) => {
                let ip = IpAddr::from(*v4.addr());
                found.extend(v4.interface_ids().iter().map(|interface| (ip, 0, interface.name.as_str())));
            }
            ScopedIp::V6(v6) => {
                let scope = if v6.addr().is_unicast_link_local() { v6.scope_id().index } else { 0 };
                found.insert((IpAddr::from(*v6.addr()), scope, v6.scope_id().name.as_str()));
            }
            // No other kind is known.
            _ => {}
        }
    }
    let ours = |(ip, _, name): &(IpAddr, u32, &str)| {
        // Nodes on one machine may meet on its loopback interface; elsewhere such an address is a lie.
        let can_be_there = is_host(*ip) || (ip.is_loopback() && *name == "lo");
        service.port != 0 && can_be_there && interfaces.iter().any(|interface| interface == name)
    };
    let hint = |(ip, scope, name): (IpAddr, u32, &str)| {
        let address = match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, service.port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, service.port, 0, scope).into(),
        };
        LanHint { tag, address, port: name.into() }
    };
    found.into_iter().filter(ours).map(hint).collect()
}

/// Whether a host of a network can have this address.
fn is_host(ip: IpAddr) -> bool {
    let all_hosts = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    let mapped = matches!(ip, IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some());
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || all_hosts || mapped)
}

/// The nodes that we want to meet, by what can be seen of them.
struct Circle {
    own: Tag,
    peers: BTreeSet<Tag>,
    members: BTreeSet<Tag>,
    access: Arc<Access>,
    changes: Option<watch::Receiver<u64>>,
}

impl Circle {
    fn new(lent: &DiscoveryLent) -> Self {
        let mut changes = lent.access.membership().map(|membership| membership.changes());
        // So that the members are read at the first look.
        changes.iter_mut().for_each(watch::Receiver::mark_changed);
        let peers = lent.access.known().map(node_tag).collect();
        let access = Arc::clone(&lent.access);
        Self { own: node_tag(lent.node), peers, members: BTreeSet::new(), access, changes }
    }

    /// What we say of ourselves, with a new salt.
    fn announcement(&self) -> Announcement {
        let blind = |mesh| BlindMesh::new(mesh, rand::random());
        Announcement {
            tag: self.own,
            mesh: self.access.membership().map(|membership| blind(membership.mesh())),
        }
    }

    /// Who has announced itself; `None` when it is nobody for us, or ourselves.
    fn judge(&mut self, announcement: &Announcement) -> Option<Standing> {
        if announcement.tag == self.own {
            return None;
        }
        if self.peers.contains(&announcement.tag) {
            return Some(Standing::Known);
        }
        let membership = self.access.membership()?;
        if !announcement.mesh?.is(membership.mesh()) {
            return None;
        }
        if let Some(changes) = &mut self.changes
            && changes.has_changed().unwrap_or(false)
        {
            changes.mark_unchanged();
            self.members = membership.records().iter().map(|record| node_tag(record.node())).collect();
        }
        let is_member = self.members.contains(&announcement.tag);
        Some(if is_member { Standing::Known } else { Standing::Stranger })
    }
}

/// Watches how much the daemon remembers: it sets itself no limit, so it is ended and begun anew.
#[derive(Default)]
struct LoadWatch {
    answer: Option<(Receiver<Metrics>, Instant)>,
}

impl LoadWatch {
    fn check(&mut self, daemon: &Daemon) -> Result<(), DriverError> {
        if let Some((answer, asked)) = &self.answer {
            match answer.try_recv() {
                Ok(metrics) if Load::of(&metrics).is_flood() => {
                    let load = Load::of(&metrics);
                    return Err(DriverError::Failed(format!("somebody floods the LAN: {load}")));
                }
                Ok(_) => {}
                Err(_) if asked.elapsed() < LOAD_PATIENCE => return Ok(()),
                Err(_) => {
                    return Err(DriverError::Failed("the thread of mDNS does not answer".to_owned()));
                }
            }
        }
        self.answer = daemon.ask_load().map(|answer| (answer, Instant::now()));
        Ok(())
    }
}
