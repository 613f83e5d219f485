//! The uplinks that an edge finds by itself: from the host to the node that runs.

use std::sync::Arc;

use mwb_actors::spec::FoundUplink;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::cli::Failure;
use crate::config::{Lan, NodeConfig};
use crate::platform::{Candidate, LinuxPlatform, MARK, Wanted};

/// Weight of an uplink that the configuration says nothing of: as its default.
const WEIGHT: u32 = 10;

/// What is found, always complete, and the task that keeps it so.
type Following = (watch::Receiver<Vec<FoundUplink>>, JoinHandle<()>);

/// Looks for uplinks and goes on doing so; `None` when the configuration does not want that.
///
/// # Errors
/// When the host cannot be looked at.
pub(super) async fn begin(
    config: &NodeConfig,
    platform: &Arc<LinuxPlatform>,
) -> Result<Option<Following>, Failure> {
    if !config.discovery.uplinks {
        return Ok(None);
    }
    let wanted = Wanted {
        ignore: config.discovery.ignore.clone(),
        named: config.uplinks.iter().filter_map(|uplink| uplink.interface.clone()).collect(),
        addresses: config.uplinks.iter().filter_map(|uplink| uplink.address).collect(),
    };
    let lan = config.lan.clone();
    let make = move |candidate| found(candidate, lan.as_ref());
    let now = platform.find_uplinks(&wanted).await.map_err(|error| Failure::new(error.to_string()))?;
    if now.is_empty() && config.uplinks.is_empty() {
        tracing::warn!("no interface with a default route: waiting for one to come");
    }
    let (sender, list) = watch::channel(now.into_iter().map(&make).collect());
    let platform = Arc::clone(platform);
    let follow = tokio::spawn(async move { platform.follow_uplinks(wanted, sender, make).await });
    Ok(Some((list, follow)))
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
        lend: lan.is_some_and(|lan| lan.lends(candidate.metered)),
    }
}
