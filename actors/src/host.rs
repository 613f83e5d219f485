//! `HostActor`: makes the host follow the sessions: addresses and routes on an edge, forwarding on an
//! exit. The platform's calls are slow and may fail; here they hold up nobody and are tried again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::session::InnerAddresses;
use crate::spec::{Gateways, Platform};
use crate::tun::Tun;

/// First and longest time between two tries.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often an exit looks whether it has come to or lost the IPv6 internet.
const IPV6_LOOK: Duration = Duration::from_secs(10);

/// What the actor is lent.
#[derive(Clone)]
pub struct HostLent {
    /// The platform.
    pub platform: Arc<dyn Platform>,
    /// The TUN device.
    pub tun: Arc<Tun>,
    /// Inner addresses of the edge's session, once there are some.
    pub inner: watch::Sender<Option<Arc<InnerAddresses>>>,
    /// What an exit needs, when this node is one.
    pub exit: Option<HostExit>,
}

/// What the actor is lent on an exit.
#[derive(Clone, Debug)]
pub struct HostExit {
    /// The exit's inner addresses, of both families if it is to carry both.
    pub gateways: Gateways,
    /// Whether edges are given IPv6 addresses; kept up to date here.
    pub ipv6: Arc<AtomicBool>,
}

impl HostExit {
    /// Looks whether the host has IPv6, for those who hand out addresses; `true` when that has changed.
    pub fn look(&self, platform: &dyn Platform) -> bool {
        let now = self.gateways.v6.is_some() && platform.reaches_ipv6();
        self.ipv6.swap(now, Ordering::Relaxed) != now
    }

    /// What is to be set up at present.
    fn gateways(&self) -> Gateways {
        let v6 = self.gateways.v6.filter(|_| self.ipv6.load(Ordering::Relaxed));
        Gateways { v6, ..self.gateways }
    }
}

/// Marker of [`HostActor`].
#[derive(Debug)]
pub struct Host;

/// The actor that sets up the host.
pub type HostActor = DrivenActor<Host>;

impl Drive for Host {
    type Lent = HostLent;

    fn launch(lent: &HostLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("apply", |pulse| run(lent, pulse));
        Ok(())
    }
}

async fn run(lent: HostLent, pulse: Pulse) -> Result<(), DriverError> {
    let (mut changes, mut devices) = (lent.inner.subscribe(), lent.tun.made());
    let name = lent.tun.name();
    loop {
        pulse.beat().await?;
        devices.mark_unchanged();
        let inner = changes.borrow_and_update().clone();
        if let Some(exit) = &lent.exit {
            let gateways = exit.gateways();
            apply(&pulse, "exit", || lent.platform.exit_up(name, &gateways)).await?;
            tracing::info!(tun = name, ?gateways, "the host is an exit");
        }
        if let Some(inner) = inner {
            lent.tun.limit_mtu(inner.mtu);
            apply(&pulse, "session", || lent.platform.session_up(name, &inner)).await?;
            tracing::info!(tun = name, ?inner, "the host uses the session");
        }
        // The senders are held by ourselves: these end only with a change.
        let change = async {
            tokio::select! {
                result = changes.changed() => result,
                result = devices.changed() => result,
                () = ipv6_change(&lent) => Ok(()),
            }
        };
        pulse
            .alive_during(change)
            .await?
            .map_err(|_closed| DriverError::Failed("nobody can announce changes any more".to_owned()))?;
    }
}

/// Waits until this exit has come to or lost the IPv6 internet. Sessions hear of it with their next path.
async fn ipv6_change(lent: &HostLent) {
    let Some(exit) = lent.exit.as_ref().filter(|exit| exit.gateways.v6.is_some()) else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(IPV6_LOOK).await;
        if exit.look(lent.platform.as_ref()) {
            return;
        }
    }
}

/// Calls until it succeeds.
async fn apply<F, Fut>(pulse: &Pulse, what: &str, call: F) -> Result<(), DriverError>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), String>>,
{
    let mut wait = RETRY_MIN;
    loop {
        pulse.count_handled(1);
        match pulse.alive_during(call()).await? {
            Ok(()) => return Ok(()),
            Err(problem) => {
                tracing::error!(what, problem, ?wait, "the host could not be set up, trying again")
            }
        }
        pulse.alive_during(tokio::time::sleep(wait)).await?;
        wait = (2 * wait).min(RETRY_MAX);
    }
}
