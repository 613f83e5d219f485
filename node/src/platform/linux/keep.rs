//! Sees when something that a node has set up is gone although the node runs.
//!
//! A restart of systemd-networkd deletes all rules that it does not know, one of nftables all tables; `sysctl --system`
//! may switch forwarding off. The bond or the exit would stand still until somebody restarts the node.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::netlink::{Changes, Netlink};
use super::rules::Led;
use super::{PlatformError, nftables, routes, sysctl};

/// What one program changes comes in several messages.
const SETTLE: Duration = Duration::from_millis(200);
/// Tables of a host with many containers change all the time: they are looked at no more often than this.
const REST: Duration = Duration::from_millis(500);
/// How often everything is looked at although the kernel tells nothing.
const LOOK: Duration = Duration::from_secs(10);
/// Who hears of changes of tables and rules (linux/netfilter/nfnetlink.h, NFNLGRP_NFTABLES, as a bit).
const NFTABLES_GROUP: u32 = 1 << 6;
/// What is followed on an edge.
const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// What the node has set up.
#[derive(Clone, Debug, Default)]
pub(super) struct SetUp {
    /// On an edge.
    pub(super) edge: Option<Edge>,
    /// On an exit: whether IPv6 is forwarded too.
    pub(super) exit: Option<bool>,
}

/// An edge.
#[derive(Clone, Debug)]
pub(super) struct Edge {
    /// Index of the TUN device.
    pub(super) index: u32,
    /// Its addresses, with the lengths of their prefixes.
    pub(super) addresses: Vec<(IpAddr, u8)>,
    /// What it carries.
    pub(super) led: Led,
}

/// Waits until something of `what` is gone, and names it.
pub(super) async fn disturbed(tun: &str, what: SetUp) -> String {
    tokio::select! {
        gone = edge(tun, what.edge) => gone,
        gone = exit(what.exit) => gone,
    }
}

async fn edge(tun: &str, edge: Option<Edge>) -> String {
    let Some(edge) = edge else { return std::future::pending().await };
    let concerns = |message: &RouteNetlinkMessage| match message {
        RouteNetlinkMessage::DelAddress(AddressMessage { header, .. }) => header.index == edge.index,
        other => routes::is_removal(other),
    };
    let mut changes = None;
    loop {
        // Heard of from before the look on.
        if changes.is_none() {
            changes = Changes::open(&GROUPS).ok();
        }
        match missing(tun, &edge).await {
            Ok(None) => {}
            Ok(Some(gone)) => return gone,
            Err(error) => tracing::debug!(%error, "whether all is there cannot be seen"),
        }
        let change = async {
            match &mut changes {
                Some(changes) => changes.until(concerns).await,
                None => std::future::pending().await,
            }
        };
        match tokio::time::timeout(LOOK, change).await {
            Ok(true) => tokio::time::sleep(SETTLE).await,
            Ok(false) => changes = None,
            Err(_quiet) => {}
        }
    }
}

async fn missing(tun: &str, edge: &Edge) -> Result<Option<String>, PlatformError> {
    let netlink = Netlink::open()?;
    match netlink.index(tun).await {
        Ok(index) if index == edge.index => {}
        // The device is somebody else's business.
        Ok(_) | Err(PlatformError::NoInterface(_)) => return Ok(None),
        Err(error) => return Err(error),
    }
    if let Some((address, _)) = netlink.lacks_address(tun, edge.index, &edge.addresses).await? {
        return Ok(Some(format!("the address {address} of {tun}")));
    }
    routes::missing(&netlink, edge.index, &edge.led).await
}

async fn exit(ipv6: Option<bool>) -> String {
    let Some(ipv6) = ipv6 else { return std::future::pending().await };
    let mut told = None;
    loop {
        if told.is_none() {
            told = listen().ok();
        }
        match nftables::is_there().await {
            Ok(true) => {}
            Ok(false) => return "the nftables table inet mwb".to_owned(),
            Err(error) => tracing::debug!(%error, "whether all is there cannot be seen"),
        }
        if let Some(setting) = sysctl::not_forwarding(ipv6) {
            return format!("the setting {setting} = 1");
        }
        let change = async {
            match &told {
                Some(socket) => tables_change(socket).await,
                None => std::future::pending().await,
            }
        };
        match tokio::time::timeout(LOOK, change).await {
            Ok(Ok(())) => tokio::time::sleep(REST).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the kernel tells nothing of tables");
                told = None;
                tokio::time::sleep(LOOK).await;
            }
            Err(_quiet) => {}
        }
    }
}

/// A socket that hears of changes of tables, chains and rules.
fn listen() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, NFTABLES_GROUP))?;
    Ok(socket)
}

/// Waits for a change and takes all that have come by then. What they say is not looked at, so short buffers do.
async fn tables_change(socket: &TokioSocket) -> io::Result<()> {
    /// ENOBUFS: more has changed than was kept for us.
    const NO_BUFFERS: i32 = 105;
    let mut buffer = Vec::with_capacity(64);
    match socket.recv(&mut buffer).await {
        Err(error) if error.raw_os_error() != Some(NO_BUFFERS) => return Err(error),
        _ => {}
    }
    tokio::time::sleep(SETTLE).await;
    loop {
        buffer.clear();
        match futures_util::FutureExt::now_or_never(socket.recv(&mut buffer)) {
            Some(Ok(_)) => {}
            Some(Err(error)) if error.raw_os_error() == Some(NO_BUFFERS) => {}
            Some(Err(error)) => return Err(error),
            None => return Ok(()),
        }
    }
}
