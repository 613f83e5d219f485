//! What a node changes on its host: addresses, routes, rules, forwarding, masquerade, and all of it back.

pub(crate) mod linux;

pub(crate) use linux::{
    Candidate, HostSettings, LinuxPlatform, MARK, NoUplink, OnHost, Survey, Surveyed, Wanted, is_elsewhere,
    survey,
};

use std::net::IpAddr;

/// Interfaces with a default route in the main table, the preferred first (proc(5), net/route and net/ipv6_route).
pub(crate) fn default_interfaces() -> Vec<String> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
    let mut found: Vec<(u64, String)> = Vec::new();
    for line in read("route").lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [interface, "00000000", _, flags, _, _, metric, "00000000", ..] = fields[..] {
            // RTF_UP, and not RTF_REJECT.
            let flags = u32::from_str_radix(flags, 16).unwrap_or_default();
            if flags & 0x201 == 1 {
                found.push((metric.parse().unwrap_or(u64::MAX), interface.to_owned()));
            }
        }
    }
    for line in read("ipv6_route").lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [to, "00", _, _, _, metric, _, _, _, interface] = fields[..]
            && to.bytes().all(|digit| digit == b'0')
            && interface != "lo"
        {
            found.push((u64::from_str_radix(metric, 16).unwrap_or(u64::MAX), interface.to_owned()));
        }
    }
    // IPv4's metrics begin at 0 and IPv6's at 1024: each counts among its own only.
    let mut interfaces = Vec::new();
    found.sort_by_key(|(metric, _)| *metric);
    for (_, interface) in found {
        if !interfaces.contains(&interface) {
            interfaces.push(interface);
        }
    }
    interfaces
}

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
