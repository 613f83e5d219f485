//! What an edge finds by itself, uplinks and LANs: from the host to the node that runs. Uplinks that the configuration
//! describes by their type alone are among what is found.

use std::sync::Arc;

use mwb_actors::spec::FoundUplink;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::Failure;
use crate::config::{Lan, NodeConfig, Typed, Uplink};
use crate::platform::{Candidate, LinuxPlatform, MARK, OnHost, Wanted};

/// Weight of an uplink that the configuration says nothing of: as its default.
const WEIGHT: u32 = 10;

/// What is found, always complete.
pub(super) struct Found {
    /// Uplinks, if they are looked for.
    pub(super) uplinks: Option<watch::Receiver<Vec<FoundUplink>>>,
    /// Numbers and names of those that the configuration describes.
    pub(super) reserved: Vec<(u8, String)>,
    /// Interfaces that lead to a LAN, if they are looked for.
    pub(super) lans: Option<watch::Receiver<Vec<String>>>,
    /// Keeps both so; does not end.
    pub(super) follow: JoinHandle<()>,
}

/// Looks at the host and goes on doing so; `None` when the configuration wants nothing to be found.
///
/// # Errors
/// When the host cannot be looked at.
pub(super) async fn begin(
    config: &NodeConfig,
    platform: &Arc<LinuxPlatform>,
) -> Result<Option<Found>, Failure> {
    let discovery = &config.discovery;
    let typed = Typed::of(&config.uplinks);
    let looks = discovery.uplinks || !typed.is_empty();
    if !looks && !discovery.lan {
        return Ok(None);
    }
    let wanted = Wanted {
        uplinks: looks,
        lans: discovery.lan,
        ignore: discovery.ignore.clone(),
        named: config.uplinks.iter().filter_map(|uplink| uplink.interface.clone()).collect(),
        addresses: config.uplinks.iter().filter_map(|uplink| uplink.address).collect(),
        doubles: !typed.is_empty(),
    };
    let reserved = typed.all().iter().map(|uplink| (uplink.id, uplink.name.clone())).collect();
    let mut maker = Maker { typed, others: discovery.uplinks, lan: config.lan.clone() };
    let now = platform.find(&wanted).await.map_err(|error| Failure::new(error.to_string()))?;
    if discovery.uplinks && now.uplinks.is_empty() && config.uplinks.is_empty() {
        tracing::warn!("no interface with a default route: waiting for one to come");
    }
    let (tell_lans, lans) = watch::channel(now.lans.clone());
    let (tell_uplinks, uplinks) = watch::channel(maker.make(now));
    let waiting = maker.typed.all().iter().filter(|typed| {
        !uplinks.borrow().iter().any(|found| found.own.as_ref().is_some_and(|own| own.0 == typed.id))
    });
    for Uplink { name, kind, .. } in waiting {
        tracing::warn!(
            uplink = name,
            "no free interface of type {} has a default route: waiting for one; name it with interface = \"…\" if it is \
             there",
            kind.name()
        );
    }
    let platform = Arc::clone(platform);
    let follow = tokio::spawn(async move {
        let tell = |now: OnHost| {
            replace(&tell_lans, now.lans.clone());
            replace(&tell_uplinks, maker.make(now));
        };
        platform.follow(&wanted, tell).await;
    });
    let (uplinks, lans) = (looks.then_some(uplinks), discovery.lan.then_some(lans));
    Ok(Some(Found { uplinks, reserved, lans, follow }))
}

/// Tells a list if it is another one.
fn replace<T: PartialEq>(list: &watch::Sender<Vec<T>>, now: Vec<T>) {
    list.send_if_modified(|told| {
        let differs = *told != now;
        *told = now;
        differs
    });
}

/// Makes uplinks of what is found.
struct Maker {
    typed: Typed,
    /// Whether those are used that the configuration says nothing of.
    others: bool,
    lan: Option<Lan>,
}

impl Maker {
    fn make(&mut self, now: OnHost) -> Vec<FoundUplink> {
        let OnHost { uplinks, doubles, .. } = now;
        let present: Vec<_> =
            uplinks.iter().chain(&doubles).map(|one| (one.interface.as_str(), one.line)).collect();
        let places = self.typed.place(&present);
        let lan = self.lan.as_ref();
        let described =
            |one: &Candidate| places.get(&one.interface).map(|uplink| described(one.clone(), uplink, lan));
        let doubles = doubles.iter().filter_map(described);
        let found = uplinks
            .iter()
            .filter_map(|one| described(one).or_else(|| self.others.then(|| found(one.clone(), lan))));
        found.chain(doubles).collect()
    }
}

fn found(candidate: Candidate, lan: Option<&Lan>) -> FoundUplink {
    FoundUplink {
        interface: candidate.interface,
        attached: candidate.attached,
        own: None,
        rate_max: None,
        weight: WEIGHT,
        fwmark: Some(MARK),
        kind: candidate.line.announced(),
        line: candidate.line.name(),
        metered: candidate.metered,
        health: candidate.line.health(),
        lend: lan.is_some_and(|lan| lan.lends(candidate.metered)),
    }
}

/// An uplink of the configuration, at the interface that it was given.
fn described(candidate: Candidate, uplink: &Uplink, lan: Option<&Lan>) -> FoundUplink {
    FoundUplink {
        own: Some((uplink.id, uplink.name.clone())),
        rate_max: uplink.rate_max(),
        weight: uplink.weight,
        kind: uplink.kind.announced(),
        line: uplink.kind.name(),
        metered: uplink.metered,
        health: uplink.health.clone(),
        lend: uplink.lend && lan.is_some_and(|lan| lan.lends(uplink.metered)),
        ..found(candidate, lan)
    }
}
