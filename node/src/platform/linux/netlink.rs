//! One rtnetlink connection and what is asked of links and addresses.

use std::net::IpAddr;
use std::pin::Pin;

use futures_util::stream::Stream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, LinkUnspec, MulticastGroup};
use tokio::task::JoinHandle;

use super::PlatformError;

/// A connection to the kernel; its driver task ends with it.
pub(super) struct Netlink {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// Connects to the kernel, in the network namespace of this process.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub(super) fn open() -> Result<Self, PlatformError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(PlatformError::file("opening a netlink socket"))?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The index of interface `name`.
    ///
    /// # Errors
    /// [`PlatformError::NoInterface`], or what the kernel says.
    pub(super) async fn index(&self, name: &str) -> Result<u32, PlatformError> {
        match self.handle.link().get().match_name(name).execute().try_next().await {
            Ok(Some(link)) => Ok(link.header.index),
            Ok(None) => Err(PlatformError::NoInterface(name.to_owned())),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -NO_DEVICE => {
                Err(PlatformError::NoInterface(name.to_owned()))
            }
            Err(error) => Err(PlatformError::netlink(format!("looking for interface {name}"))(error)),
        }
    }

    /// The name of interface `index`, if it is there and has a carrier: a TUN device has it from the process that holds it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn with_carrier(&self, index: u32) -> Result<Option<String>, PlatformError> {
        let link = match self.handle.link().get().match_index(index).execute().try_next().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -NO_DEVICE => return Ok(None),
            other => other.map_err(PlatformError::netlink(format!("looking for interface {index}")))?,
        };
        let link = link.filter(|link| link.header.flags.contains(LinkFlags::LowerUp));
        Ok(link.and_then(|link| {
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        }))
    }

    /// The name of the interface that has `address`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn interface_of(&self, address: IpAddr) -> Result<Option<String>, PlatformError> {
        let doing = || PlatformError::netlink(format!("looking for the interface of {address}"));
        let found = self.handle.address().get().set_address_filter(address).execute().try_next().await;
        let Some(message) = found.map_err(doing())? else { return Ok(None) };
        let label = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Label(label) => Some(label.clone()),
            _ => None,
        });
        if label.is_some() {
            return Ok(label);
        }
        let link = self.handle.link().get().match_index(message.header.index).execute().try_next().await;
        Ok(link.map_err(doing())?.and_then(|link| {
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        }))
    }

    /// Brings `name` up, with `mtu` if given.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn up(&self, name: &str, index: u32, mtu: Option<u16>) -> Result<(), PlatformError> {
        let mut link = LinkUnspec::new_with_index(index).up();
        if let Some(mtu) = mtu {
            link = link.mtu(u32::from(mtu));
        }
        let result = self.handle.link().set(link.build()).execute().await;
        result.map_err(PlatformError::netlink(format!("bringing {name} up")))
    }

    /// Gives `name` an address; the same one again is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn add_address(
        &self,
        name: &str,
        index: u32,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), PlatformError> {
        let mut request = self.handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            // Nobody else on a tunnel could have it, and it may be used at once.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        let result = request.execute().await;
        result.map_err(PlatformError::netlink(format!("giving {name} the address {address}/{prefix}")))
    }

    /// Takes all addresses but those in `keep` from `name`, an IPv6 link-local one too.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn remove_addresses_but(
        &self,
        name: &str,
        index: u32,
        keep: &[(IpAddr, u8)],
    ) -> Result<(), PlatformError> {
        let doing = || PlatformError::netlink(format!("taking former addresses from {name}"));
        let kept = |message: &AddressMessage| keep.iter().any(|address| is(message, address));
        for message in self.addresses(name, index).await?.into_iter().filter(|message| !kept(message)) {
            self.handle.address().del(message).execute().await.map_err(doing())?;
        }
        Ok(())
    }

    /// The first of `wanted` that `name` does not have.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn lacks_address(
        &self,
        name: &str,
        index: u32,
        wanted: &[(IpAddr, u8)],
    ) -> Result<Option<(IpAddr, u8)>, PlatformError> {
        let found = self.addresses(name, index).await?;
        Ok(wanted.iter().find(|address| !found.iter().any(|message| is(message, address))).copied())
    }

    async fn addresses(&self, name: &str, index: u32) -> Result<Vec<AddressMessage>, PlatformError> {
        let found = self.handle.address().get().set_link_index_filter(index).execute().try_collect().await;
        found.map_err(PlatformError::netlink(format!("listing the addresses of {name}")))
    }
}

/// Whether `message` tells of this address with this length of its prefix.
fn is(message: &AddressMessage, (address, prefix): &(IpAddr, u8)) -> bool {
    message.header.prefix_len == *prefix && message.attributes.contains(&AddressAttribute::Address(*address))
}

/// What the kernel tells of links, addresses and the like that come and go.
pub(super) struct Changes {
    messages: Pin<Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send>>,
    driver: JoinHandle<()>,
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Changes {
    /// Changes of what `groups` name, from now on.
    ///
    /// # Errors
    /// When the kernel cannot be asked to tell.
    pub(super) fn open(groups: &[MulticastGroup]) -> Result<Self, PlatformError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(groups)
            .map_err(PlatformError::file("asking the kernel to tell of interfaces"))?;
        Ok(Self { messages: Box::pin(messages), driver: tokio::spawn(connection) })
    }

    /// Waits for the next change and takes all that have come by then; `false` when none will come any more.
    pub(super) async fn next(&mut self) -> bool {
        let told = self.messages.next().await.is_some();
        while let Some(Some(_)) = self.messages.next().now_or_never() {}
        told
    }

    /// Waits for a change that is `wanted`; `false` when none will come any more.
    pub(super) async fn until(&mut self, wanted: impl Fn(&RouteNetlinkMessage) -> bool) -> bool {
        while let Some((message, _)) = self.messages.next().await {
            match &message.payload {
                NetlinkPayload::InnerMessage(inner) if !wanted(inner) => {}
                // Or the kernel had to drop some.
                _ => return true,
            }
        }
        false
    }
}

/// ENODEV.
const NO_DEVICE: i32 = 19;
