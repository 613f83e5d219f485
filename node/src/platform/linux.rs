//! The Linux host. Everything made here is idempotent, recognisable as ours, and undone by
//! [`cleanup::clean`] whether the node stopped, was killed, or never ran.

pub(crate) mod cleanup;
mod dns;
mod gateway;
mod journal;
mod keep;
mod netlink;
mod nftables;
mod routes;
mod rules;
mod self_test;
pub(crate) mod sysctl;
#[cfg(test)]
mod tests;
mod uplinks;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::dns::HostNames;
use crate::config::{Dns, Egress};
pub(crate) use dns::is_elsewhere;
use futures_util::future::BoxFuture;
pub(crate) use journal::Journal;
use mwb_actors::session::InnerAddresses;
use mwb_actors::spec::{Forwarding, Gateways, Platform};
use mwb_proto::control::Gateway;
use netlink::{Changes, Netlink};
use rtnetlink::MulticastGroup;
pub(crate) use uplinks::{Candidate, NoUplink, OnHost, Survey, Surveyed, Wanted, survey};

/// Mark of our outer packets, number of our routing table, and ("mw" in ASCII) our signature.
pub(crate) const MARK: u32 = 0x6d77;

/// Name servers of the internet's root: which way to them is taken tells of the way to the internet. Nothing is sent.
const IPV4_INTERNET: Ipv4Addr = Ipv4Addr::new(193, 0, 14, 129);
const IPV6_INTERNET: Ipv6Addr = Ipv6Addr::new(0x2001, 0x7fd, 0, 0, 0, 0, 0, 1);

/// How long interfaces may take to settle after the first message about a change.
const SETTLE: Duration = Duration::from_millis(300);
/// How often interfaces are looked at when the kernel does not tell.
const LOOK: Duration = Duration::from_secs(10);

/// Why a change to the host failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlatformError {
    /// The kernel refused a netlink request.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was being done, with its object.
        doing: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A file of the kernel or the runtime directory.
    #[error("{doing}: {source}")]
    File {
        /// What was being done, with its object.
        doing: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An exit that may not forward.
    #[error(
        "this host does not forward, and cannot be made to ({0}): set net.ipv4.ip_forward to 1 from outside, in a container with \
         docker run --sysctl net.ipv4.ip_forward=1"
    )]
    NoForwarding(#[source] std::io::Error),
    /// Routes and rules lead to a running node.
    #[error(
        "a node that runs with another --runtime-dir has the interface {0}, and this host's routes, rules and names: they stay; stop that \
         node first"
    )]
    InUse(String),
    /// An interface does not exist.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The `nft` program failed or is missing.
    #[error("{0}")]
    Nft(String),
}

impl PlatformError {
    fn file(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::File { doing, source }
    }

    fn netlink(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Netlink { doing, source }
    }
}

/// What the configuration says of the host.
#[derive(Clone, Debug)]
pub(crate) struct HostSettings {
    /// On an edge, whether the bond takes whatever has no route of its own, or what asks for it alone.
    pub(crate) default_route: bool,
    /// On an edge, what its host asks for names while a session is up.
    pub(crate) edge_dns: Dns,
    /// On an exit, what edges are told to ask.
    pub(crate) exit_dns: Dns,
    /// On an exit, what edges may reach, and how much of it.
    pub(crate) egress: Egress,
}

#[cfg(test)]
impl Default for HostSettings {
    fn default() -> Self {
        Self { default_route: true, edge_dns: Dns::Auto, exit_dns: Dns::Auto, egress: Egress::default() }
    }
}

/// The addresses that the exit gave us, as the host needs them.
pub(crate) struct EdgeAddresses {
    /// Ours inside the tunnel, with the prefix lengths of their networks.
    pub(crate) inner: Vec<(IpAddr, u8)>,
    /// Largest inner packet, when the exit said one.
    pub(crate) mtu: Option<u16>,
}

/// The host of one running node.
pub(crate) struct LinuxPlatform {
    runtime_dir: PathBuf,
    /// Held by who reads the notes and writes them again: uplinks of which was said that they cannot be prepared.
    noting: tokio::sync::Mutex<BTreeSet<String>>,
    default_route: bool,
    names: HostNames,
    offered: Dns,
    egress: Egress,
    /// What [`Platform::disturbed`] looks after.
    set_up: parking_lot::Mutex<keep::SetUp>,
}

impl LinuxPlatform {
    /// Keeps its notes for undoing in `runtime_dir`.
    pub(crate) fn new(runtime_dir: &Path, settings: HostSettings) -> Self {
        // Who keeps the host's own ways to the internet keeps its names too, unless they say otherwise.
        let names = match settings.edge_dns {
            Dns::Auto if !settings.default_route => Dns::Off,
            given => given,
        };
        Self {
            runtime_dir: runtime_dir.to_owned(),
            noting: tokio::sync::Mutex::default(),
            default_route: settings.default_route,
            names: HostNames::new(names, runtime_dir),
            offered: settings.exit_dns,
            egress: settings.egress,
            set_up: parking_lot::Mutex::default(),
        }
    }

    /// Tells when another program takes name resolution from the bond. Does not end.
    pub(crate) async fn watch_names(&self) {
        self.names.watch().await;
    }

    /// Before any packet: lets replies arrive on `uplinks` although the host's default route is
    /// another one. Where settings are fixed, that is said once for each uplink and no error: others may do.
    ///
    /// # Errors
    /// When the kernel's settings cannot be read or written.
    pub(crate) async fn prepare_uplinks(
        &self,
        uplinks: &[(Option<String>, Option<IpAddr>)],
    ) -> Result<(), PlatformError> {
        let netlink = Netlink::open()?;
        let mut told = self.noting.lock().await;
        let mut journal = Journal::open(&self.runtime_dir)?;
        for (interface, address) in uplinks {
            let interface = match (interface, address) {
                (Some(interface), _) => Some(interface.clone()),
                (None, Some(address)) => netlink.interface_of(*address).await?,
                (None, None) => None,
            };
            let Some(interface) = interface else {
                tracing::debug!(?address, "no interface has this address yet");
                continue;
            };
            match sysctl::loosen_reverse_path_filter(&interface, &mut journal) {
                Err(PlatformError::File { source, .. }) if sysctl::is_fixed(&source) => {
                    if told.insert(interface.clone()) {
                        tracing::warn!(
                            interface,
                            %source,
                            "nothing may arrive on this uplink: its reverse path filter is strict and cannot be changed from \
                             here; outside: sysctl -w net.ipv4.conf.{interface}.rp_filter=2"
                        );
                    }
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Does [`Self::prepare_uplinks`] again whenever interfaces come: a modem may be plugged in later. Does not end.
    pub(crate) async fn watch_uplinks(&self, uplinks: &[(Option<String>, Option<IpAddr>)]) {
        if uplinks.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let mut changes = Changes::open(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr])
                .inspect_err(
                    |error| tracing::warn!(%error, "interfaces that come later are looked for now and then"),
                )
                .ok();
            let mut told = true;
            while told {
                if let Err(error) = self.prepare_uplinks(uplinks).await {
                    tracing::warn!(%error, "an uplink may not receive");
                }
                told = match &mut changes {
                    Some(changes) => changes.next().await,
                    None => false,
                };
                // Several messages tell of one change.
                tokio::time::sleep(SETTLE).await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A session with an exit is up: gives `tun` its addresses and leads the host's traffic into it.
    ///
    /// # Errors
    /// The first change that failed; what was made before it stays until [`Self::edge_down`].
    pub(crate) async fn edge_up(&self, tun: &str, addresses: &EdgeAddresses) -> Result<(), PlatformError> {
        let netlink = Netlink::open()?;
        let index = netlink.index(tun).await?;
        match sysctl::accept_from(tun) {
            // Without another VPN the route back is ours.
            Err(PlatformError::File { source, .. }) if sysctl::is_fixed(&source) => {}
            other => other?,
        }
        if routes::has_ipv6() {
            match sysctl::only_assigned_ipv6(tun) {
                Err(PlatformError::File { source, .. }) if sysctl::is_fixed(&source) => tracing::warn!(
                    %source,
                    "where the exit has no IPv6, programs here may wait before they fall back to IPv4: settings of {tun} cannot be \
                     changed"
                ),
                other => other?,
            }
        }
        netlink.up(tun, index, addresses.mtu).await?;
        // Without the pool's prefix: the kernel's route for it would go before that of a LAN whose network overlaps
        // the pool. What is for other edges follows the default route.
        let alone = |address: IpAddr| (address, if address.is_ipv4() { 32 } else { 128 });
        let inner: Vec<_> = addresses.inner.iter().map(|(address, _)| alone(*address)).collect();
        netlink.remove_addresses_but(tun, index, &inner).await?;
        for (address, prefix) in &inner {
            netlink.add_address(tun, index, *address, *prefix).await?;
        }
        let led = match self.default_route {
            true => rules::Led::All,
            false => rules::Led::Bound {
                tun: tun.to_owned(),
                addresses: inner.iter().map(|(address, _)| *address).collect(),
            },
        };
        routes::lead_into(&netlink, tun, index, &led).await?;
        self.set_up.lock().edge = Some(keep::Edge { index, addresses: inner, led });
        Ok(())
    }

    /// The session is gone: the host uses its own routes again.
    pub(crate) async fn edge_down(&self) {
        self.set_up.lock().edge = None;
        let result = match Netlink::open() {
            Ok(netlink) => routes::remove(&netlink).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "routes and rules of the session stay until the node stops");
        }
    }

    /// Makes this host an exit for what comes out of `tun`.
    ///
    /// # Errors
    /// The first change that failed; what was made before it stays until [`cleanup::clean`].
    pub(crate) async fn exit_up(&self, tun: &str, gateways: &Gateways) -> Result<(), PlatformError> {
        let netlink = Netlink::open()?;
        let index = netlink.index(tun).await?;
        netlink.up(tun, index, None).await?;
        netlink.add_address(tun, index, gateways.v4.0.into(), gateways.v4.1).await?;
        if let Some((address, prefix)) = gateways.v6 {
            netlink.add_address(tun, index, address.into(), prefix).await?;
        }
        let _alone = self.noting.lock().await;
        let mut journal = Journal::open(&self.runtime_dir)?;
        journal.note_nftables()?;
        nftables::masquerade(tun, *gateways, &self.egress, &dns::offered(&self.offered)).await?;
        sysctl::forward_ipv4(&mut journal)?;
        if gateways.v6.is_some() {
            sysctl::forward_ipv6(&mut journal)?;
        }
        self.set_up.lock().exit = Some(gateways.v6.is_some());
        Ok(())
    }
}

/// The address from which a program of this host would send to `destination`; `None` when there is no route.
fn source_towards(destination: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket looks up the route and the source address, no more.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((destination, 53)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

impl Platform for LinuxPlatform {
    fn session_up(&self, tun: &str, inner: &InnerAddresses) -> BoxFuture<'_, Result<(), String>> {
        let v4 = inner.v4.map(|(address, prefix)| (IpAddr::from(address), prefix));
        let v6 = inner.v6.map(|(address, prefix)| (IpAddr::from(address), prefix));
        let families = (v4.is_some(), v6.is_some());
        let addresses = EdgeAddresses { inner: v4.into_iter().chain(v6).collect(), mtu: Some(inner.mtu) };
        let (tun, mut offered) = (tun.to_owned(), inner.dns.clone());
        Box::pin(async move {
            self.edge_up(&tun, &addresses).await.map_err(|error| error.to_string())?;
            let is_ours =
                |source: Option<IpAddr>| addresses.inner.iter().any(|(own, _)| source == Some(*own));
            if self.default_route && families.0 && !is_ours(source_towards(IPV4_INTERNET.into())) {
                tracing::info!(
                    "another program's rules have this host's traffic, a VPN's as a rule: what it sends itself uses the bond; \
                     mwb-node doctor names them"
                );
            }
            // A private network here may have the addresses of one behind the exit: what is asked there is not the exit's.
            offered.retain(|to| is_ours(source_towards(*to)));
            self.names.set(&tun, &offered, families).await;
            Ok(())
        })
    }

    fn session_down(&self, _tun: &str) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // While names can still be asked there.
            self.names.revert().await;
            self.edge_down().await;
        })
    }

    fn exit_up(&self, tun: &str, gateways: &Gateways) -> BoxFuture<'_, Result<(), String>> {
        let (tun, gateways) = (tun.to_owned(), *gateways);
        Box::pin(async move { Self::exit_up(self, &tun, &gateways).await.map_err(|error| error.to_string()) })
    }

    fn disturbed<'a>(&'a self, tun: &'a str) -> BoxFuture<'a, String> {
        let what = self.set_up.lock().clone();
        Box::pin(keep::disturbed(tun, what))
    }

    fn reaches_ipv6(&self) -> bool {
        if !sysctl::may_forward_ipv6() {
            return false;
        }
        source_towards(IPV6_INTERNET.into()).is_some_and(|source| match source {
            IpAddr::V6(address) => !address.is_unicast_link_local() && !address.is_loopback(),
            IpAddr::V4(_) => false,
        })
    }

    fn test_forwarding<'a>(
        &'a self,
        tun: &'a str,
        gateways: Gateways,
        inject: &'a (dyn Fn(&[u8]) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Forwarding> {
        Box::pin(self_test::forwarding(tun, gateways, inject))
    }

    fn resolvers(&self) -> Vec<IpAddr> {
        dns::offered(&self.offered)
    }

    fn gateway(&self, interface: &str) -> BoxFuture<'_, Option<Gateway>> {
        let interface = interface.to_owned();
        Box::pin(async move {
            let found = gateway::find(&interface).await;
            found.unwrap_or_else(|error| {
                tracing::debug!(interface, %error, "no router is known behind this interface");
                None
            })
        })
    }
}
