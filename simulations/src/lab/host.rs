//! A host of the lab: where closures run and programs start.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use super::namespace::Namespace;
use super::process::LabChild;
use super::{LabError, process, sys};

/// An uplink of a host.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Interface in the host's namespace: `up0`, `up1` and so on.
    pub interface: String,
    /// Name of the emulated link behind it.
    pub link: String,
    /// The host's address there, in a /24.
    pub address: Ipv4Addr,
    /// The router's.
    pub gateway: Ipv4Addr,
    /// The host's IPv6 address there, in a /64.
    pub address_v6: Ipv6Addr,
    /// The router's.
    pub gateway_v6: Ipv6Addr,
    /// The router's hardware address.
    pub gateway_mac: [u8; 6],
}

/// A host of a [`super::Lab`]. Cheap to clone; its namespace lives until the lab and all clones are
/// dropped.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    namespace: Namespace,
    uplinks: Vec<Uplink>,
    addresses: Vec<IpAddr>,
    logs: PathBuf,
    started: AtomicU32,
}

impl Host {
    pub(super) fn new(
        namespace: Namespace,
        uplinks: Vec<Uplink>,
        addresses: Vec<IpAddr>,
        logs: &Path,
    ) -> Self {
        let inner =
            Inner { namespace, uplinks, addresses, logs: logs.to_owned(), started: AtomicU32::new(0) };
        Self { inner: Arc::new(inner) }
    }

    /// The name in the topology.
    pub fn name(&self) -> &str {
        self.inner.namespace.name()
    }

    /// The uplinks, none on exit and server.
    pub fn uplinks(&self) -> &[Uplink] {
        &self.inner.uplinks
    }

    /// The interface names of the uplinks.
    pub fn uplink_names(&self) -> Vec<String> {
        self.inner.uplinks.iter().map(|uplink| uplink.interface.clone()).collect()
    }

    /// All addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.inner.addresses
    }

    /// The first IPv4 address: on exit and server the public one, on the hosts of a LAN the LAN's.
    pub fn address(&self) -> IpAddr {
        self.inner.addresses[0]
    }

    /// Runs `work` inside the namespace and waits for its value. Calls from several threads run at the
    /// same time. Threads that `work` starts are inside too.
    ///
    /// # Panics
    /// When `work` panics, or the machine has no more threads.
    pub fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> R {
        self.start(work).join()
    }

    /// Runs `work` inside the namespace, on a thread of its own.
    ///
    /// # Panics
    /// When the machine has no more threads.
    pub fn start<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Running<R> {
        let builder = std::thread::Builder::new().name(format!("in-{}", self.name()));
        let thread = self.inner.namespace.call(move |_| builder.spawn(work));
        let thread = thread.expect("the thread of a namespace lives as long as its host");
        Running { thread: thread.expect("the machine can start a thread") }
    }

    /// Starts a program inside the namespace. Its output goes to files, its input is empty. It is
    /// killed when the result is dropped, and when this process ends in whatever way.
    pub fn spawn(&self, mut command: Command) -> Result<LabChild, LabError> {
        let number = self.inner.started.fetch_add(1, Ordering::Relaxed);
        let files = process::Output::create(&self.inner.logs, self.name(), &command, number);
        let what = format!("starting {}", command.get_program().display());
        // The program dies with the thread that starts it, hence the long-lived one.
        self.inner.namespace.system(what, move || LabChild::start(&mut command, files?))
    }

    /// Runs a program inside the namespace to its end.
    pub fn output(&self, mut command: Command) -> Result<std::process::Output, LabError> {
        let what = format!("running {}", command.get_program().display());
        let name = self.name().to_owned();
        self.run(move || command.output()).map_err(|source| LabError::System {
            what,
            namespace: name,
            source,
        })
    }

    /// Takes the carrier of an uplink away or gives it back, as pulling a cable does. Setting it back
    /// restores the default routes. A failing provider is rather a cut of the link in the emulator.
    pub fn set_carrier(&self, interface: &str, on: bool) -> Result<(), LabError> {
        let name = interface.to_owned();
        let uplink = self.inner.uplinks.iter().position(|uplink| uplink.interface == interface);
        self.inner.namespace.netlink(format!("setting {interface} up or down"), move |netlink| {
            if on { netlink.link_up(&name) } else { netlink.link_down(&name) }
        })?;
        match uplink {
            Some(index) if on => self.add_routes(index),
            Some(_) | None => Ok(()),
        }
    }

    /// Switches a feature of an interface on or off, by the kernel's name for it, such as `tx-udp-segmentation`.
    /// One that the kernel does not know is an error; one that the driver cannot change stays as it is.
    pub fn set_feature(&self, interface: &str, feature: &str, on: bool) -> Result<(), LabError> {
        let what = format!("switching {feature} of {interface}");
        let (interface, feature) = (interface.to_owned(), feature.to_owned());
        self.inner.namespace.system(what, move || {
            match sys::set_features(&interface, |name| name == feature, on)? {
                0 => Err(std::io::ErrorKind::Unsupported.into()),
                _ => Ok(()),
            }
        })
    }

    /// The default routes of one uplink and its neighbour, which the kernel forgets, with global IPv6
    /// addresses, when the interface goes down. The neighbour is fixed since the router of a real uplink
    /// stands in front of the lossy part, not behind it: its address must not get lost there.
    pub(super) fn add_routes(&self, index: usize) -> Result<(), LabError> {
        let uplink = self.inner.uplinks[index].clone();
        self.inner.namespace.netlink(format!("routing over {}", uplink.interface), move |netlink| {
            let metric = 100 + index as u32;
            // The address is there already unless the interface was down.
            let _ = netlink.add_address(&uplink.interface, uplink.address_v6.into(), 64);
            for gateway in [IpAddr::from(uplink.gateway), IpAddr::from(uplink.gateway_v6)] {
                netlink.add_neighbour(&uplink.interface, gateway, uplink.gateway_mac)?;
                netlink.add_default(&uplink.interface, gateway, metric)?;
            }
            Ok(())
        })
    }
}

/// A closure at work inside a namespace.
#[derive(Debug)]
pub struct Running<R> {
    thread: JoinHandle<R>,
}

impl<R> Running<R> {
    /// Waits for the end.
    ///
    /// # Panics
    /// When the closure panicked, with its panic.
    pub fn join(self) -> R {
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}
