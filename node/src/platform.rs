//! What a node changes on its host: addresses, routes, rules, forwarding, masquerade, and all of it back.

pub(crate) mod linux;

pub(crate) use linux::{
    Candidate, HostSettings, LinuxPlatform, MARK, NoUplink, OnHost, Survey, Surveyed, Wanted, is_elsewhere,
    survey,
};

use std::net::IpAddr;

/// The interface that has `address` now.
pub(crate) fn interface_of(address: IpAddr) -> Option<String> {
    if_addrs::get_if_addrs().ok()?.into_iter().find(|found| found.ip() == address).map(|found| found.name)
}

/// Whether this host has an interface of that name now.
pub(crate) fn has_interface(name: &str) -> bool {
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    socket(AddressFamily::INET, SocketType::DGRAM, None)
        .is_ok_and(|socket| netdevice::name_to_index(&socket, name).is_ok())
}
