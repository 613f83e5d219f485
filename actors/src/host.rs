//! `HostActor`: makes the host follow the sessions: addresses and routes on an edge, forwarding on an
//! exit. The platform's calls are slow and may fail; here they hold up nobody and are tried again.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::session::InnerAddresses;
use crate::spec::{Forwarding, Gateways, Platform};
use crate::tun::Tun;

/// First and longest time between two tries.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often an exit looks whether it has come to or lost the IPv6 internet, and which resolvers it has.
const LOOK: Duration = Duration::from_secs(10);
/// How often an exit tries whether its host forwards, while it does and while it does not.
const TEST_GOOD: Duration = Duration::from_secs(300);
const TEST_BAD: Duration = Duration::from_secs(15);
/// Whoever removes what was set up once in this time does so by accident, as a service that is restarted.
const CALM: Duration = Duration::from_secs(60);
/// A firewall that starts with us has made its tables by then.
const TEST_FIRST: Duration = Duration::from_secs(1);

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
    /// What its host has for edges; kept up to date here.
    pub offer: Arc<HostOffer>,
}

/// What an exit's host has for edges, as far as it changes.
#[derive(Debug, Default)]
pub struct HostOffer {
    ipv6: AtomicBool,
    resolvers: Mutex<Vec<IpAddr>>,
    forwarding: Mutex<Forwarding>,
}

impl HostOffer {
    /// Whether edges are given IPv6 addresses.
    pub fn ipv6(&self) -> bool {
        self.ipv6.load(Ordering::Relaxed)
    }

    /// The resolvers that edges are told to use.
    pub fn resolvers(&self) -> Vec<IpAddr> {
        self.resolvers.lock().clone()
    }

    /// Whether the host lets through what comes from edges.
    pub fn forwarding(&self) -> Forwarding {
        self.forwarding.lock().clone()
    }
}

impl HostExit {
    /// Looks what the host has, for those who tell edges; `true` when it has to be set up anew.
    pub fn look(&self, platform: &dyn Platform) -> bool {
        let ipv6 = self.gateways.v6.is_some() && platform.reaches_ipv6();
        let had_ipv6 = self.offer.ipv6.swap(ipv6, Ordering::Relaxed);
        let resolvers = platform.resolvers();
        let had_resolvers = std::mem::replace(&mut *self.offer.resolvers.lock(), resolvers.clone());
        had_ipv6 != ipv6 || had_resolvers != resolvers
    }

    /// What is to be set up at present.
    fn gateways(&self) -> Gateways {
        let v6 = self.gateways.v6.filter(|_| self.offer.ipv6());
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
    let (mut again, mut disturbed) = (RETRY_MIN, Instant::now());
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
                result = changes.changed() => result.map(|()| None),
                result = devices.changed() => result.map(|()| None),
                () = host_change(&lent) => Ok(None),
                () = test_forwarding(&lent) => Ok(None),
                gone = lent.platform.disturbed(name) => Ok(Some(gone)),
            }
        };
        let gone = pulse
            .alive_during(change)
            .await?
            .map_err(|_closed| DriverError::Failed("nobody can announce changes any more".to_owned()))?;
        if let Some(gone) = gone {
            // Whoever insists on it is not fought with.
            again = if disturbed.elapsed() > CALM { RETRY_MIN } else { (2 * again).min(RETRY_MAX) };
            disturbed = Instant::now();
            tracing::warn!(tun = name, wait = ?again, "another program has removed {gone}: it is set up again");
            pulse.alive_during(tokio::time::sleep(again)).await?;
        }
    }
}

/// Waits until this exit has come to or lost the IPv6 internet, or has other resolvers. Sessions hear of it with their
/// next path.
async fn host_change(lent: &HostLent) {
    let Some(exit) = &lent.exit else { return std::future::pending().await };
    loop {
        tokio::time::sleep(LOOK).await;
        if exit.look(lent.platform.as_ref()) {
            return;
        }
    }
}

/// Keeps what is known of the host's forwarding up to date, and says when that changes. Does not end.
async fn test_forwarding(lent: &HostLent) {
    let Some(exit) = &lent.exit else { return std::future::pending().await };
    let inject = |packet: &[u8]| lent.tun.inject(packet);
    tokio::time::sleep(TEST_FIRST).await;
    loop {
        let now = lent.platform.test_forwarding(lent.tun.name(), exit.gateways(), &inject).await;
        let before = std::mem::replace(&mut *exit.offer.forwarding.lock(), now.clone());
        if now != before {
            match &now {
                Forwarding::Works => tracing::info!("this host lets through what comes from edges"),
                Forwarding::Blocked(problem) => tracing::warn!("{problem}"),
                Forwarding::Unknown(problem) => {
                    tracing::warn!(problem, "whether this host lets edges through is not known");
                }
                Forwarding::Untested => {}
            }
        }
        tokio::time::sleep(if now == Forwarding::Works { TEST_GOOD } else { TEST_BAD }).await;
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
