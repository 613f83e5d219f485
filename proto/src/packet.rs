//! Inner packets: what the bond needs to know about an IP packet, and the two edits it may make.
//!
//! Input is the bytes of one packet as the TUN device hands them over (no link header). The
//! classifier takes flow and kind from [`parse`], CoDel marks through [`set_ce`], and the TUN side
//! calls [`clamp_mss`]. Nothing here allocates or panics, whatever the bytes are: a header that
//! does not hold together is refused, a transport that does not is left unread (`ports` and `tcp`
//! are then `None`).

mod checksum;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol number of ICMP for IPv4.
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

const IPV4_HEADER_MIN: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER_MIN: usize = 20;
const UDP_HEADER: usize = 8;

/// IPv6 extension headers followed at most; a longer chain is treated as an unknown transport.
/// Real packets carry one or two, and RFC 8504 allows hosts to limit the chain at eight.
const EXTENSION_HEADERS_MAX: usize = 8;

/// TCP flag bits (RFC 9293), as found in [`TcpInfo::flags`].
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push function.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is valid.
    pub const URG: u8 = 0x20;
    /// ECN echo (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// The ECN field (RFC 3168).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ecn {
    /// The sender does not understand ECN.
    NotEct,
    /// ECN-capable, codepoint 01 (L4S, RFC 9331).
    Ect1,
    /// ECN-capable, codepoint 10.
    Ect0,
    /// Congestion experienced.
    Ce,
}

impl Ecn {
    /// From the low two bits of the traffic class.
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::NotEct,
            1 => Self::Ect1,
            2 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// Whether a congested queue may mark instead of dropping.
    pub const fn is_ect(self) -> bool {
        !matches!(self, Self::NotEct)
    }
}

/// What of a TCP header the bond looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpInfo {
    /// Flag byte, see [`tcp_flags`].
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number; meaningless without ACK.
    pub ack: u32,
    /// Header length with options, in bytes.
    pub header_len: usize,
    /// Bytes of payload, by the IP length (padding does not count).
    pub payload_len: usize,
}

/// The facts about one inner packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inner {
    /// 4 or 6.
    pub version: u8,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Upper-layer protocol: for IPv6 the first header that is not an extension header.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP; `None` for everything else and wherever the
    /// header is not in this packet (later fragments, truncated transport).
    pub ports: Option<(u16, u16)>,
    /// Differentiated services code point, 0..=63.
    pub dscp: u8,
    /// ECN field.
    pub ecn: Ecn,
    /// The TCP header, when there is a whole one in this packet.
    pub tcp: Option<TcpInfo>,
    /// Type of an ICMP or ICMPv6 message, when its header is in this packet.
    pub icmp_type: Option<u8>,
    /// Part of a fragmented packet, first or later.
    pub fragment: bool,
    /// Where the upper-layer header begins.
    pub transport_offset: usize,
    /// Length by the IP header; the rest of the buffer is padding.
    pub len: usize,
}

/// Why a packet can not be carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PacketError {
    /// No bytes at all.
    #[error("empty packet")]
    Empty,
    /// Neither IPv4 nor IPv6.
    #[error("not an IP packet")]
    Version,
    /// Shorter than the IP header, or than the length it states.
    #[error("IP packet cut short")]
    Truncated,
    /// A header length that contradicts the packet.
    #[error("IP header with a wrong length")]
    BadLength,
}

/// Whether a packet is one of TCP, by its first protocol field; `false` for what is no IP packet, and for IPv6 with
/// extension headers.
pub fn is_tcp(packet: &[u8]) -> bool {
    let protocol = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(9),
        Some(6) => packet.get(6),
        _ => None,
    };
    protocol == Some(&PROTO_TCP)
}

/// Reads the headers of one packet.
///
/// # Errors
/// When the IP header is missing, incomplete or contradictory. Trouble further up (an unknown
/// protocol, a TCP header cut short) is no error.
pub fn parse(packet: &[u8]) -> Result<Inner, PacketError> {
    match packet.first().ok_or(PacketError::Empty)? >> 4 {
        4 => parse_v4(packet),
        6 => parse_v6(packet),
        _ => Err(PacketError::Version),
    }
}

fn parse_v4(packet: &[u8]) -> Result<Inner, PacketError> {
    let header: &[u8; IPV4_HEADER_MIN] = packet.first_chunk().ok_or(PacketError::Truncated)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header_len < IPV4_HEADER_MIN || len < header_len {
        return Err(PacketError::BadLength);
    }
    let packet = packet.get(..len).ok_or(PacketError::Truncated)?;
    let fragment_field = u16::from_be_bytes([header[6], header[7]]);
    let offset = fragment_field & 0x1fff;
    let more = fragment_field & 0x2000 != 0;
    let mut inner = Inner {
        version: 4,
        source: IpAddr::V4(Ipv4Addr::new(header[12], header[13], header[14], header[15])),
        destination: IpAddr::V4(Ipv4Addr::new(header[16], header[17], header[18], header[19])),
        protocol: header[9],
        ports: None,
        dscp: header[1] >> 2,
        ecn: Ecn::from_bits(header[1]),
        tcp: None,
        icmp_type: None,
        fragment: more || offset != 0,
        transport_offset: header_len,
        len,
    };
    if offset == 0 {
        read_transport(&mut inner, &packet[header_len..]);
    }
    Ok(inner)
}

fn parse_v6(packet: &[u8]) -> Result<Inner, PacketError> {
    let header: &[u8; IPV6_HEADER] = packet.first_chunk().ok_or(PacketError::Truncated)?;
    // A jumbogram (length zero, RFC 2675) can not come from a TUN device; read as "no payload".
    let len = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let packet = packet.get(..len).ok_or(PacketError::Truncated)?;
    let traffic_class = (header[0] << 4) | (header[1] >> 4);
    let mut inner = Inner {
        version: 6,
        source: IpAddr::V6(address_v6(&header[8..24])),
        destination: IpAddr::V6(address_v6(&header[24..40])),
        protocol: header[6],
        ports: None,
        dscp: traffic_class >> 2,
        ecn: Ecn::from_bits(traffic_class),
        tcp: None,
        icmp_type: None,
        fragment: false,
        transport_offset: IPV6_HEADER,
        len,
    };
    if walk_extensions(&mut inner, packet) {
        let transport = &packet[inner.transport_offset..];
        read_transport(&mut inner, transport);
    }
    Ok(inner)
}

fn address_v6(bytes: &[u8]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    Ipv6Addr::from(octets)
}

/// Moves `protocol` and `transport_offset` past the extension headers (RFC 8200, section 4).
/// Returns whether an upper-layer header begins there, inside `packet`.
fn walk_extensions(inner: &mut Inner, packet: &[u8]) -> bool {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const NO_NEXT_HEADER: u8 = 59;
    const DESTINATION: u8 = 60;
    const MOBILITY: u8 = 135;
    const HIP: u8 = 139;
    const SHIM6: u8 = 140;

    for _ in 0..EXTENSION_HEADERS_MAX {
        let rest = &packet[inner.transport_offset..];
        let header_len = match (inner.protocol, rest.get(1)) {
            (HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6, Some(&units)) => {
                (usize::from(units) + 1) * 8
            }
            (AUTHENTICATION, Some(&units)) => (usize::from(units) + 2) * 4,
            (FRAGMENT, _) => {
                let Some(header) = rest.first_chunk::<8>() else { return false };
                let offset_and_more = u16::from_be_bytes([header[2], header[3]]);
                // An "atomic" fragment (offset 0, nothing follows) is a whole packet, RFC 6946.
                inner.fragment |= offset_and_more & 0xfff9 != 0;
                if offset_and_more & 0xfff8 != 0 {
                    inner.protocol = header[0];
                    inner.transport_offset += 8;
                    return false;
                }
                8
            }
            (
                HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 | AUTHENTICATION | NO_NEXT_HEADER,
                _,
            ) => return false,
            _ => return true,
        };
        if rest.len() < header_len {
            return false;
        }
        inner.protocol = rest[0];
        inner.transport_offset += header_len;
    }
    false
}

/// Fills ports, TCP facts and ICMP type from the upper-layer header at the start of `bytes`.
fn read_transport(inner: &mut Inner, bytes: &[u8]) {
    match inner.protocol {
        PROTO_TCP => {
            let Some(header) = bytes.first_chunk::<TCP_HEADER_MIN>() else { return };
            inner.ports = Some(ports_of(header));
            let header_len = usize::from(header[12] >> 4) * 4;
            if header_len < TCP_HEADER_MIN || header_len > bytes.len() {
                return;
            }
            inner.tcp = Some(TcpInfo {
                flags: header[13],
                seq: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                ack: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
                header_len,
                payload_len: bytes.len() - header_len,
            });
        }
        PROTO_UDP => inner.ports = bytes.first_chunk::<UDP_HEADER>().map(|h| ports_of(h)),
        PROTO_ICMP if inner.version == 4 => inner.icmp_type = bytes.first_chunk::<8>().map(|h| h[0]),
        PROTO_ICMPV6 if inner.version == 6 => inner.icmp_type = bytes.first_chunk::<8>().map(|h| h[0]),
        _ => {}
    }
}

fn ports_of(header: &[u8]) -> (u16, u16) {
    (u16::from_be_bytes([header[0], header[1]]), u16::from_be_bytes([header[2], header[3]]))
}

/// Marks congestion: sets the ECN field to CE if the packet is ECN-capable, and keeps the IPv4
/// header checksum right. Returns whether the packet now carries CE; false changes nothing.
pub fn set_ce(packet: &mut [u8]) -> bool {
    match packet.first().map(|b| b >> 4) {
        Some(4) if packet.len() >= IPV4_HEADER_MIN => {
            if !Ecn::from_bits(packet[1]).is_ect() {
                return false;
            }
            let old = [packet[0], packet[1]];
            packet[1] |= 3;
            let new = [packet[0], packet[1]];
            checksum::replace(packet, 10, u16::from_be_bytes(old), u16::from_be_bytes(new));
            true
        }
        Some(6) if packet.len() >= IPV6_HEADER => {
            // The traffic class straddles bytes 0 and 1; its ECN bits are bits 5 and 4 of byte 1.
            if !Ecn::from_bits(packet[1] >> 4).is_ect() {
                return false;
            }
            packet[1] |= 0x30;
            true
        }
        _ => false,
    }
}

/// Lowers the MSS option of a TCP SYN to `mss_v4` or `mss_v6`, whichever fits the packet, and keeps
/// the TCP checksum right. Returns whether something was changed: a smaller MSS stays as it is,
/// and so does a SYN without the option (its peer then uses the small default of RFC 9293).
pub fn clamp_mss(packet: &mut [u8], mss_v4: u16, mss_v6: u16) -> bool {
    const OPTION_END: u8 = 0;
    const OPTION_NOP: u8 = 1;
    const OPTION_MSS: u8 = 2;
    /// Offset of the checksum in the TCP header.
    const CHECKSUM: usize = 16;

    if !may_be_syn(packet) {
        return false;
    }
    let Ok(inner) = parse(packet) else { return false };
    let Some(tcp) = inner.tcp.filter(|tcp| tcp.flags & tcp_flags::SYN != 0) else { return false };
    let limit = if inner.version == 4 { mss_v4 } else { mss_v6 };
    let Some(header) = packet.get_mut(inner.transport_offset..inner.transport_offset + tcp.header_len) else {
        return false;
    };
    let mut at = TCP_HEADER_MIN;
    while at < header.len() {
        match header[at] {
            OPTION_END => return false,
            OPTION_NOP => at += 1,
            kind => {
                let Some(&len) = header.get(at + 1) else { return false };
                let len = usize::from(len);
                if len < 2 || at + len > header.len() {
                    return false;
                }
                if kind == OPTION_MSS && len == 4 {
                    let old = u16::from_be_bytes([header[at + 2], header[at + 3]]);
                    if old <= limit {
                        return false;
                    }
                    header[at + 2..at + 4].copy_from_slice(&limit.to_be_bytes());
                    // At an odd offset the two bytes belong to different words of the sum, which
                    // is the same as replacing the word with its bytes swapped (RFC 1071).
                    let (old, new) = if at.is_multiple_of(2) {
                        (old, limit)
                    } else {
                        (old.swap_bytes(), limit.swap_bytes())
                    };
                    checksum::replace(header, CHECKSUM, old, new);
                    return true;
                }
                at += len;
            }
        }
    }
    false
}

/// False for nearly everything that is no TCP SYN, at the price of a look at two bytes.
fn may_be_syn(packet: &[u8]) -> bool {
    let (protocol, transport) = match packet {
        [first, ..] if first >> 4 == 4 => (packet.get(9), usize::from(first & 0x0f) * 4),
        [first, ..] if first >> 4 == 6 => (packet.get(6), IPV6_HEADER),
        _ => return false,
    };
    match protocol {
        Some(&PROTO_TCP) => packet.get(transport + 13).is_some_and(|flags| flags & tcp_flags::SYN != 0),
        Some(&PROTO_UDP) | None => false,
        // Extension headers, perhaps.
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests;
