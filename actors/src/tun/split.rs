//! Splitting of what the kernel hands over: up to 64 KiB of TCP or UDP payload behind one header,
//! with the checksum left to us.

use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::packet::{PROTO_TCP, PROTO_UDP, tcp_flags};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr, checksum};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum holds only the pseudo header's part.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_NONE`: one packet, not a super-packet.
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6` and `_UDP_L4`.
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: CWR is set, and belongs to the first segment only (RFC 3168, section 6.1.2).
const GSO_ECN: u8 = 0x80;

const IPV4_HEADER_MIN: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER_MIN: usize = 20;
const UDP_HEADER: usize = 8;
/// Offset of the flags in a TCP header, and of the checksum in both.
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Why a read could not be turned into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SplitError {
    /// Header and packet contradict each other.
    Malformed,
    /// A packet is larger than a packet buffer.
    Oversized,
}

/// Appends the packets in `raw` (virtio header first) to `out`; none when it fails.
pub(super) fn split(raw: &mut [u8], pool: &BufPool, out: &mut Vec<PacketBuf>) -> Result<(), SplitError> {
    let header = VirtioNetHdr::decode(raw).map_err(|_short| SplitError::Malformed)?;
    let packet = &mut raw[VIRTIO_NET_HDR_LEN..];
    if packet.is_empty() {
        return Err(SplitError::Malformed);
    }
    if header.gso_type == GSO_NONE {
        if header.flags & NEEDS_CHECKSUM != 0 {
            finish_checksum(packet, header.csum_start.into(), header.csum_offset.into())?;
        }
        out.push(pool.copy_from(packet).ok_or(SplitError::Oversized)?);
        return Ok(());
    }
    cut(packet, &header, pool, out)
}

/// Cuts a super-packet. Its own headers become those of one packet after the other: so a packet is only written, and
/// its checksum is made of bytes that have been read lately, not of those that are on their way to memory. `packet` is
/// not empty.
fn cut(
    packet: &mut [u8],
    header: &VirtioNetHdr,
    pool: &BufPool,
    out: &mut Vec<PacketBuf>,
) -> Result<(), SplitError> {
    let v6 = packet[0] >> 4 == 6;
    let (tcp, checksum_at) = match (header.gso_type & !GSO_ECN, v6) {
        (GSO_TCP_V4, false) | (GSO_TCP_V6, true) => (true, TCP_CHECKSUM),
        (GSO_UDP, _) if header.gso_type & GSO_ECN == 0 => (false, UDP_CHECKSUM),
        _ => return Err(SplitError::Malformed),
    };
    let transport = usize::from(header.csum_start);
    let ip_min = if v6 { IPV6_HEADER } else { IPV4_HEADER_MIN };
    if transport < ip_min || usize::from(header.csum_offset) != checksum_at || header.gso_size == 0 {
        return Err(SplitError::Malformed);
    }
    // The kernel's header length is a hint that may be wrong for forwarded packets: take it from
    // the transport header itself.
    let transport_len = if tcp {
        usize::from(packet.get(transport + 12).ok_or(SplitError::Malformed)? >> 4) * 4
    } else {
        UDP_HEADER
    };
    let header_len = transport + transport_len;
    if (tcp && transport_len < TCP_HEADER_MIN) || header_len >= packet.len() {
        return Err(SplitError::Malformed);
    }
    let size = usize::from(header.gso_size);
    if header_len + size > pool.capacity().min(usize::from(u16::MAX)) {
        return Err(SplitError::Oversized);
    }
    let (head, payload) = packet.split_at_mut(header_len);
    let addresses = if v6 { 8..40 } else { 12..20 };
    let protocol = if tcp { PROTO_TCP } else { PROTO_UDP };
    let pseudo = u64::from(checksum(&head[addresses], 0)) + u64::from(protocol);
    let id = u16::from_be_bytes([head[4], head[5]]);
    let (seq, flags) = if tcp {
        let seq = &head[transport + 4..transport + 8];
        (u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]), head[transport + TCP_FLAGS])
    } else {
        (0, 0)
    };
    let last = payload.len().div_ceil(size) - 1;
    for (i, part) in payload.chunks(size).enumerate() {
        let len = (header_len + part.len()) as u16;
        if v6 {
            head[4..6].copy_from_slice(&(len - IPV6_HEADER as u16).to_be_bytes());
        } else {
            head[2..4].copy_from_slice(&len.to_be_bytes());
            head[4..6].copy_from_slice(&id.wrapping_add(i as u16).to_be_bytes());
            head[10..12].fill(0);
            let sum = !checksum(&head[..transport], 0);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let len = len - transport as u16;
        let rest = &mut head[transport..];
        if tcp {
            rest[4..8].copy_from_slice(&seq.wrapping_add((i * size) as u32).to_be_bytes());
            let not_first = if i > 0 { tcp_flags::CWR } else { 0 };
            let not_yet = if i < last { tcp_flags::FIN | tcp_flags::PSH } else { 0 };
            rest[TCP_FLAGS] = flags & !(not_first | not_yet);
        } else {
            rest[4..6].copy_from_slice(&len.to_be_bytes());
        }
        rest[checksum_at..checksum_at + 2].fill(0);
        let head_sum = checksum(rest, pseudo + u64::from(len));
        let sum = nonzero(!checksum(part, head_sum.into()), tcp);
        rest[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut buf = pool.take();
        let fits = buf.extend_from_slice(head) && buf.extend_from_slice(part);
        debug_assert!(fits, "the largest fits");
        out.push(buf);
    }
    Ok(())
}

/// Zero means "no checksum" in UDP; its equal is all ones.
fn nonzero(sum: u16, tcp: bool) -> u16 {
    if sum == 0 && !tcp { u16::MAX } else { sum }
}

/// Completes a transport checksum of which the field holds the pseudo header's part.
fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), SplitError> {
    let at = start + offset;
    let field: [u8; 2] =
        packet.get(at..at + 2).and_then(|f| f.try_into().ok()).ok_or(SplitError::Malformed)?;
    packet[at..at + 2].fill(0);
    let sum = !checksum(&packet[start..], u16::from_be_bytes(field).into());
    let sum = nonzero(sum, offset != UDP_CHECKSUM);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use tun_rs::gso_split;

    use super::*;

    fn super_packet(payload: usize, gso_size: u16) -> Vec<u8> {
        let mut raw = vec![0_u8; VIRTIO_NET_HDR_LEN + 40 + payload];
        let header = VirtioNetHdr {
            flags: NEEDS_CHECKSUM,
            gso_type: 1,
            hdr_len: 4_000, // a lie, as forwarding produces it
            gso_size,
            csum_start: 20,
            csum_offset: 16,
        };
        header.encode(&mut raw).expect("room");
        let packet = &mut raw[VIRTIO_NET_HDR_LEN..];
        packet[0] = 0x45;
        packet[8..10].copy_from_slice(&[64, 6]);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet[32] = 5 << 4;
        packet[33] = 0x18; // PSH, ACK
        for (i, byte) in packet[40..].iter_mut().enumerate() {
            *byte = i as u8;
        }
        raw
    }

    #[test]
    fn a_super_packet_becomes_packets_with_good_checksums() {
        let pool = BufPool::new(2048, 8);
        let mut out = Vec::new();
        split(&mut super_packet(3_000, 1_000), &pool, &mut out).expect("splits");
        assert_eq!(out.iter().map(|p| p.len()).collect::<Vec<_>>(), [1_040, 1_040, 1_040]);
        for (i, packet) in out.iter().enumerate() {
            assert_eq!(packet[24..28], ((i * 1_000) as u32).to_be_bytes(), "sequence");
            assert_eq!(packet[33] & 8 != 0, i == 2, "PSH on the last only");
            let mut pseudo = packet[12..20].to_vec();
            pseudo.extend([0, 6]);
            pseudo.extend(((packet.len() - 20) as u16).to_be_bytes());
            pseudo.extend(&packet[20..]);
            assert_eq!(checksum(&pseudo, 0), 0xffff, "transport checksum");
            assert_eq!(checksum(&packet[..20], 0), 0xffff, "IPv4 checksum");
        }
    }

    /// What tun-rs makes of it, in buffers of its own.
    fn reference(raw: &[u8]) -> Vec<Vec<u8>> {
        let mut header = VirtioNetHdr::decode(raw).expect("a header");
        let mut packet = raw[VIRTIO_NET_HDR_LEN..].to_vec();
        let v6 = packet[0] >> 4 == 6;
        let transport = usize::from(header.csum_start);
        let len = if header.gso_type == GSO_UDP { 8 } else { usize::from(packet[transport + 12] >> 4) * 4 };
        header.hdr_len = (transport + len) as u16;
        let (mut parts, mut sizes) = (vec![vec![0; 2048]; 64], vec![0; 64]);
        let made = gso_split(&mut packet, header, &mut parts, &mut sizes, 0, v6).expect("splits");
        parts.into_iter().zip(sizes).take(made).map(|(part, size)| part[..size].to_vec()).collect()
    }

    #[test]
    fn it_cuts_as_the_library_does() {
        let pool = BufPool::new(2048, 8);
        for (v6, gso_type) in [
            (false, GSO_TCP_V4),
            (true, GSO_TCP_V6),
            (false, GSO_TCP_V4 | GSO_ECN),
            (false, GSO_UDP),
            (true, GSO_UDP),
        ] {
            let tcp = gso_type != GSO_UDP;
            let transport = if v6 { IPV6_HEADER } else { 24 };
            for (payload, gso_size) in [(1, 1), (5_000, 1_000), (5_001, 1_000), (4_999, 1_357), (700, 1_400)]
            {
                let header_len = transport + if tcp { 32 } else { UDP_HEADER };
                let mut raw = vec![0_u8; VIRTIO_NET_HDR_LEN + header_len + payload];
                let header = VirtioNetHdr {
                    flags: NEEDS_CHECKSUM,
                    gso_type,
                    hdr_len: 9,
                    gso_size,
                    csum_start: transport as u16,
                    csum_offset: if tcp { 16 } else { 6 },
                };
                header.encode(&mut raw).expect("room");
                let packet = &mut raw[VIRTIO_NET_HDR_LEN..];
                packet.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * 31 % 251) as u8);
                packet[0] = if v6 { 0x60 } else { 0x46 };
                if tcp {
                    packet[transport + 12] = 8 << 4;
                    packet[transport + 13] = 0xff;
                }
                let expected = reference(&raw);
                let mut out = Vec::new();
                split(&mut raw, &pool, &mut out).expect("splits");
                let out: Vec<Vec<u8>> = out.iter().map(|packet| packet.to_vec()).collect();
                assert_eq!(out, expected, "v6 {v6}, type {gso_type}, {payload} bytes by {gso_size}");
            }
        }
    }

    #[test]
    fn contradictions_are_refused_and_leave_nothing_behind() {
        let pool = BufPool::new(2048, 8);
        let mut out = Vec::new();
        let mut refused = |raw: &mut [u8], why| {
            assert_eq!(split(raw, &pool, &mut out), Err(why));
            assert!(out.is_empty());
        };
        refused(&mut [0; 4], SplitError::Malformed);
        refused(&mut [0; VIRTIO_NET_HDR_LEN], SplitError::Malformed);
        refused(&mut super_packet(3_000, 0), SplitError::Malformed);
        refused(&mut super_packet(0, 1_000), SplitError::Malformed);
        refused(&mut super_packet(9_000, 4_000), SplitError::Oversized);
        let mut bad = super_packet(3_000, 1_000);
        bad[7] = 0xff; // the checksum starts behind the end
        refused(&mut bad, SplitError::Malformed);
        for (at, value) in [(1, 4), (1, 9), (1, 0x85), (6, 19), (8, 6), (VIRTIO_NET_HDR_LEN + 32, 4 << 4)] {
            let mut bad = super_packet(3_000, 1_000);
            bad[at] = value;
            refused(&mut bad, SplitError::Malformed);
        }
    }
}
