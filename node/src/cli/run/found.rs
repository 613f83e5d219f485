//! What an edge finds by itself, uplinks and LANs: from the host to the node that runs.

use std::sync::Arc;

use mwb_actors::spec::FoundUplink;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::Failure;
use crate::config::{Lan, NodeConfig};
use crate::platform::{Candidate, LinuxPlatform, MARK, Wanted};

/// Weight of an uplink that the configuration says nothing of: as its default.
const WEIGHT: u32 = 10;

/// What is found, always complete.
pub(super) struct Found {
    /// Uplinks, if they are looked for.
    pub(super) uplinks: Option<watch::Receiver<Vec<FoundUplink>>>,
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
    if !discovery.uplinks && !discovery.lan {
        return Ok(None);
    }
    let wanted = Wanted {
        uplinks: discovery.uplinks,
        lans: discovery.lan,
        ignore: discovery.ignore.clone(),
        named: config.uplinks.iter().filter_map(|uplink| uplink.interface.clone()).collect(),
        addresses: config.uplinks.iter().filter_map(|uplink| uplink.address).collect(),
    };
    let lan = config.lan.clone();
    let make = move |candidates: Vec<Candidate>| -> Vec<_> {
        candidates.into_iter().map(|candidate| found(candidate, lan.as_ref())).collect()
    };
    let now = platform.find(&wanted).await.map_err(|error| Failure::new(error.to_string()))?;
    if discovery.uplinks && now.uplinks.is_empty() && config.uplinks.is_empty() {
        tracing::warn!("no interface with a default route: waiting for one to come");
    }
    let (tell_uplinks, uplinks) = watch::channel(make(now.uplinks));
    let (tell_lans, lans) = watch::channel(now.lans);
    let platform = Arc::clone(platform);
    let follow = tokio::spawn(async move {
        let tell = |now: crate::platform::OnHost| {
            replace(&tell_uplinks, make(now.uplinks));
            replace(&tell_lans, now.lans);
        };
        platform.follow(&wanted, tell).await;
    });
    let (uplinks, lans) = (discovery.uplinks.then_some(uplinks), discovery.lan.then_some(lans));
    Ok(Some(Found { uplinks, lans, follow }))
}

/// Tells a list if it is another one.
fn replace<T: PartialEq>(list: &watch::Sender<Vec<T>>, now: Vec<T>) {
    list.send_if_modified(|told| {
        let differs = *told != now;
        *told = now;
        differs
    });
}

fn found(candidate: Candidate, lan: Option<&Lan>) -> FoundUplink {
    FoundUplink {
        interface: candidate.interface,
        attached: candidate.attached,
        weight: WEIGHT,
        fwmark: Some(MARK),
        kind: candidate.line.announced(),
        line: candidate.line.name(),
        metered: candidate.metered,
        health: candidate.line.health(),
        lend: lan.is_some_and(|lan| lan.lends(candidate.metered)),
    }
}
