//! One network namespace, with a mount namespace, held by one thread.
//!
//! The thread leaves the namespace of the process once and for all, and from then on does what it is
//! told: it configures links over netlink, and starts the threads and programs that live in the
//! namespace, which inherit it.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};
use tokio::runtime::Runtime;

use super::{LabError, Operation, mounts, sys};

/// A hardware address.
pub(super) type Mac = [u8; 6];

type Job = Box<dyn FnOnce(&Netlink) + Send>;

/// A namespace; ends with its thread when dropped, unless a program or socket still holds it.
#[derive(Debug)]
pub(super) struct Namespace {
    name: String,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    handle: OwnedFd,
}

impl Namespace {
    /// A new, empty namespace with its loopback interface up.
    pub(super) fn new(name: &str) -> Result<Self, LabError> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (ready, opened) = mpsc::sync_channel(1);
        let thread_name = format!("ns-{name}");
        let thread = std::thread::Builder::new().name(thread_name).spawn(move || {
            let start = || -> io::Result<(Netlink, OwnedFd)> {
                sys::unshare_network()?;
                mounts::make_private()?;
                let file = std::fs::File::open("/proc/thread-self/ns/net")?;
                Ok((Netlink::open()?, file.into()))
            };
            match start() {
                Ok((netlink, handle)) => {
                    // The other end waits for exactly this message.
                    let _ = ready.send(Ok(handle));
                    work.iter().for_each(|job| job(&netlink));
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        let refused = |source| LabError::Refused {
            operation: Operation::NetworkNamespace,
            source,
            cure: Operation::NetworkNamespace.cure(),
        };
        let thread = thread.map_err(refused)?;
        let handle = opened.recv().map_err(|_| LabError::Ended(name.to_owned()))?.map_err(refused)?;
        let namespace = Self { name: name.to_owned(), jobs: Some(jobs), thread: Some(thread), handle };
        namespace.netlink("setting lo up", |netlink| netlink.link_up("lo"))?;
        Ok(namespace)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// For moving links here; valid while the namespace lives.
    pub(super) fn raw_handle(&self) -> RawFd {
        self.handle.as_raw_fd()
    }

    /// Runs `job` on the thread. It must be short: others wait for the same thread.
    pub(super) fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&Netlink) -> R + Send + 'static,
    ) -> Result<R, LabError> {
        let ended = || LabError::Ended(self.name.clone());
        let (answer, wait) = mpsc::sync_channel(1);
        let jobs = self.jobs.as_ref().ok_or_else(ended)?;
        // The caller waits below, so that the answer always finds it.
        jobs.send(Box::new(move |netlink| drop(answer.send(job(netlink))))).map_err(|_| ended())?;
        wait.recv().map_err(|_| ended())
    }

    /// Runs a netlink request on the thread.
    pub(super) fn netlink(
        &self,
        what: impl Into<String>,
        job: impl FnOnce(&Netlink) -> Result<(), rtnetlink::Error> + Send + 'static,
    ) -> Result<(), LabError> {
        self.call(job)?.map_err(|source| LabError::Netlink {
            what: what.into(),
            namespace: self.name.clone(),
            source,
        })
    }

    /// Runs system calls on the thread.
    pub(super) fn system<R: Send + 'static>(
        &self,
        what: impl Into<String>,
        job: impl FnOnce() -> io::Result<R> + Send + 'static,
    ) -> Result<R, LabError> {
        self.call(move |_| job())?.map_err(|source| LabError::System {
            what: what.into(),
            namespace: self.name.clone(),
            source,
        })
    }

    /// Writes settings below `/proc/sys/net`; the thread sees those of its own namespace.
    pub(super) fn sysctls(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        for (key, value) in settings {
            let path = format!("/proc/sys/net/{key}");
            let value = (*value).to_owned();
            self.system(format!("writing {value} to {path}"), move || std::fs::write(path, value))?;
        }
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It has nothing to say any more.
            let _ = thread.join();
        }
    }
}

/// Netlink of the namespace of the thread that opened it.
pub(super) struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _) = rtnetlink::new_connection()?;
            runtime.spawn(connection);
            handle
        };
        Ok(Self { runtime, handle })
    }

    fn index(name: &str) -> Result<u32, rtnetlink::Error> {
        sys::interface_index(name)
            .map_err(|error| rtnetlink::Error::NamespaceError(format!("interface {name}: {error}")))
    }

    /// Adds a pair, one end here, the other in the namespace of `peer_handle`.
    pub(super) fn add_veth(
        &self,
        (name, mac): (&str, Mac),
        (peer_name, peer_mac): (&str, Mac),
        peer_handle: RawFd,
        mtu: u32,
    ) -> Result<(), rtnetlink::Error> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer_name)
            .address(peer_mac.to_vec())
            .mtu(mtu)
            .setns_by_fd(peer_handle)
            .build();
        let message = LinkMessageBuilder::<LinkVeth>::new(name, peer_name)
            .address(mac.to_vec())
            .mtu(mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.runtime.block_on(self.handle.link().add(message).execute())
    }

    /// Adds a bridge and sets it up.
    pub(super) fn add_bridge(&self, name: &str) -> Result<(), rtnetlink::Error> {
        self.runtime.block_on(self.handle.link().add(LinkBridge::new(name).build()).execute())
    }

    /// Makes a link a port of a bridge.
    pub(super) fn join_bridge(&self, name: &str, bridge: &str) -> Result<(), rtnetlink::Error> {
        let message = LinkUnspec::new_with_index(Self::index(name)?).controller(Self::index(bridge)?).build();
        self.runtime.block_on(self.handle.link().set(message).execute())
    }

    /// Sets a link up.
    pub(super) fn link_up(&self, name: &str) -> Result<(), rtnetlink::Error> {
        let message = LinkUnspec::new_with_index(Self::index(name)?).up().build();
        self.runtime.block_on(self.handle.link().set(message).execute())
    }

    /// Sets a link down.
    pub(super) fn link_down(&self, name: &str) -> Result<(), rtnetlink::Error> {
        let message = LinkUnspec::new_with_index(Self::index(name)?).down().build();
        self.runtime.block_on(self.handle.link().set(message).execute())
    }

    /// Adds an address.
    pub(super) fn add_address(
        &self,
        name: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), rtnetlink::Error> {
        let index = Self::index(name)?;
        self.runtime.block_on(self.handle.address().add(index, address, prefix).execute())
    }

    /// Says for good what hardware address a neighbour has.
    pub(super) fn add_neighbour(
        &self,
        name: &str,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), rtnetlink::Error> {
        let request = self.handle.neighbours().add(Self::index(name)?, address);
        self.runtime.block_on(request.link_layer_address(&mac).replace().execute())
    }

    /// Adds a default route with a metric.
    pub(super) fn add_default(
        &self,
        name: &str,
        gateway: IpAddr,
        metric: u32,
    ) -> Result<(), rtnetlink::Error> {
        let index = Self::index(name)?;
        let message: RouteMessage = match gateway {
            IpAddr::V4(gateway) => rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .gateway(gateway)
                .output_interface(index)
                .priority(metric)
                .build(),
            IpAddr::V6(gateway) => rtnetlink::RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .gateway(gateway)
                .output_interface(index)
                .priority(metric)
                .build(),
        };
        self.runtime.block_on(self.handle.route().add(message).execute())
    }
}
