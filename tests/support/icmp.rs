//! ICMP echo, which is neither TCP nor UDP.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketType, ipproto, recv, sendto, socket,
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether `target` answers an ICMP echo request (RFC 792, RFC 4443) with `number` in it. Needs the right to open
/// raw sockets, which a lab's hosts have.
pub(crate) fn ping(target: IpAddr, number: u16) -> bool {
    let (family, protocol, ask, answered) = match target {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let socket = socket(family, SocketType::RAW, Some(protocol)).unwrap();
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))
        .unwrap();
    let [high, low] = number.to_be_bytes();
    let (id, payload) = ([0x6d, 0x77], [0x5a; 56]);
    let mut request = vec![ask, 0, 0, 0, id[0], id[1], high, low];
    request.extend(payload);
    // The kernel computes that of ICMPv6, which covers the addresses.
    let checksum = checksum(&request).to_be_bytes();
    request[2..4].copy_from_slice(&checksum);
    let target = SocketAddrAny::from(std::net::SocketAddr::new(target, 0));
    sendto(&socket, &request, SendFlags::empty(), &target).unwrap();
    let end = Instant::now() + PATIENCE;
    let mut packet = [0; 1500];
    while Instant::now() < end {
        let Ok((len, _)) = recv(&socket, &mut packet, RecvFlags::empty()) else { continue };
        // Raw sockets give the IPv4 header too, not that of IPv6.
        let header = if family == AddressFamily::INET { usize::from(packet[0] & 15) * 4 } else { 0 };
        let answer = packet.get(header..len).unwrap_or_default();
        if answer.first() == Some(&answered) && answer.get(4..) == Some(&request[4..]) {
            return true;
        }
    }
    false
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}
