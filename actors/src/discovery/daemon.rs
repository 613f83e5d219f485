//! The mDNS responder and querier of `mdns-sd`, which is a thread of its own, and how it is ended.
//!
//! Its handle has no `Drop`: a thread that is not told to end goes on for ever, with its sockets and its
//! announcement. So there is one [`Slot`] per node, which outlives the actor; whoever starts a daemon
//! holds the slot, tells the daemon to end when it lets the slot go, and waits for the end of the one
//! before.
//!
//! Nothing bounds what the thread remembers of what it heard, hence [`Load`].

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mdns_sd::{DaemonStatus, IfKind, MDNS_PORT, Metrics, Receiver, ServiceDaemon, ServiceEvent, ServiceInfo};
use mwb_proto::discovery::{Announcement, SERVICE_TYPE, hex};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How often the thread looks for new and lost addresses of the interfaces, in seconds.
const INTERFACE_CHECK: u32 = 1;
/// How long to wait for the end of a thread before it is told again.
const END_PATIENCE: Duration = Duration::from_millis(200);
/// Records of other hosts that the thread may remember: 500 nodes' worth, about 2 MB.
const RECORDS_MAX: i64 = 8192;
/// Deadlines of such records.
const TIMERS_MAX: i64 = 65_536;

/// Where a node's only daemon is, or the one before that still has to end.
#[derive(Clone, Default)]
pub struct Slot {
    daemon: Arc<Mutex<Option<ServiceDaemon>>>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl Slot {
    /// Waits until there is no daemon, and holds the slot.
    pub(super) async fn claim(&self) -> Claim {
        let mut guard = Arc::clone(&self.daemon).lock_owned().await;
        if let Some(before) = guard.take() {
            end(&before).await;
        }
        Claim { guard }
    }
}

/// Tells a thread to end until it has.
async fn end(daemon: &ServiceDaemon) {
    loop {
        match daemon.shutdown() {
            Err(mdns_sd::Error::DaemonShutdown) => return,
            Ok(answer) => {
                let answer = tokio::time::timeout(END_PATIENCE, answer.recv_async()).await;
                if matches!(answer, Ok(Ok(DaemonStatus::Shutdown))) {
                    return;
                }
            }
            // Its command queue is full: it is busy with what it hears.
            Err(_) => tokio::time::sleep(END_PATIENCE).await,
        }
    }
}

/// The right to run the node's daemon.
pub(super) struct Claim {
    guard: OwnedMutexGuard<Option<ServiceDaemon>>,
}

/// A daemon that announces and browses; says goodbye and ends when dropped.
pub(super) struct Daemon {
    claim: Claim,
    /// What it finds.
    pub(super) events: Receiver<ServiceEvent>,
}

impl Daemon {
    /// Starts announcing `announcement` with `port` on `interfaces`, those among them that appear later
    /// included, and looking for others there.
    pub(super) fn start(
        mut claim: Claim,
        interfaces: &[String],
        port: u16,
        announcement: &Announcement,
    ) -> Result<Self, mdns_sd::Error> {
        let daemon = claim.guard.insert(ServiceDaemon::new()?);
        let ours = || interfaces.iter().map(|name| IfKind::Name(name.clone())).collect::<Vec<_>>();
        daemon.set_ip_check_interval(INTERFACE_CHECK)?;
        // It begins with all interfaces, and the later word counts. These commands are handled in one go,
        // before there is anything to send.
        daemon.disable_interface(IfKind::All)?;
        daemon.enable_interface(ours())?;
        let events = daemon.browse(SERVICE_TYPE)?;

        let name = hex(&announcement.tag);
        let (host, txt) = (format!("{name}.local."), announcement.to_txt());
        let mut service =
            ServiceInfo::new(SERVICE_TYPE, &name, &host, (), port, &txt[..])?.enable_addr_auto();
        service.set_interfaces(ours());
        // The name is a hash of a key that is nobody else's. Probing for it would take 0.75 s, and the
        // announcement of our predecessor with its other salt would look like a conflict.
        service.set_requires_probe(false);
        daemon.register(service)?;
        Ok(Self { claim, events })
    }

    /// Asks how much it remembers.
    pub(super) fn ask_load(&self) -> Option<Receiver<Metrics>> {
        self.claim.guard.as_ref()?.get_metrics().ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(daemon) = self.claim.guard.as_ref() {
            // If it cannot be told now, who claims the slot next tells it.
            let _ = daemon.shutdown();
        }
    }
}

/// How much a daemon remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    records: i64,
    timers: i64,
}

impl Load {
    pub(super) fn of(metrics: &Metrics) -> Self {
        let records = metrics.iter().filter(|(name, _)| name.starts_with("cached-")).map(|(_, count)| count);
        Self { records: records.sum(), timers: metrics.get("timer").copied().unwrap_or_default() }
    }

    /// Whether it is more than any honest LAN brings about.
    pub(super) fn is_flood(self) -> bool {
        self.records > RECORDS_MAX || self.timers > TIMERS_MAX
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mDNS records, {} deadlines", self.records, self.timers)
    }
}

/// Whether the port of mDNS can be shared. The daemon would say nothing when it cannot.
pub(super) fn port_is_free() -> bool {
    let unspecified = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    unspecified.into_iter().any(|ip| {
        let address = SocketAddr::new(ip, MDNS_PORT);
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())
        };
        bind().is_ok()
    })
}
