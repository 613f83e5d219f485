//! `HostActor`: makes the host follow the sessions: addresses and routes on an edge, forwarding on an
//! exit. The platform's calls are slow and may fail; here they hold up nobody and are tried again.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::session::InnerAddresses;
use crate::spec::Platform;
use crate::tun::Tun;

/// First and longest time between two tries.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What the actor is lent.
#[derive(Clone)]
pub struct HostLent {
    /// The platform.
    pub platform: Arc<dyn Platform>,
    /// The TUN device.
    pub tun: Arc<Tun>,
    /// Inner addresses of the edge's session, once there are some.
    pub inner: watch::Sender<Option<Arc<InnerAddresses>>>,
    /// The exit's gateway address, when this node is an exit.
    pub gateway: Option<(Ipv4Addr, u8)>,
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
        if let Some(gateway) = lent.gateway {
            apply(&pulse, "exit", || lent.platform.exit_up(name, gateway)).await?;
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
            }
        };
        pulse
            .alive_during(change)
            .await?
            .map_err(|_closed| DriverError::Failed("nobody can announce changes any more".to_owned()))?;
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
