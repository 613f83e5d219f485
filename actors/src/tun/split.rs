//! Splitting of what the kernel hands over: up to 64 KiB of TCP or UDP payload behind one header,
//! with the checksum left to us.

use std::io;

use mwb_proto::buf::{BufPool, PacketBuf};
use tun_rs::{VIRTIO_NET_HDR_LEN, VirtioNetHdr, checksum, gso_split};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum holds only the pseudo header's part.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_NONE`: one packet, not a super-packet.
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP: u8 = 5;
/// Length of a UDP header.
const UDP_HEADER: usize = 8;

/// Why a read could not be turned into packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SplitError {
    /// Header and packet contradict each other.
    Malformed,
    /// A packet is larger than a packet buffer.
    Oversized,
}

/// Appends the packets in `raw` (virtio header first) to `out`.
pub(super) fn split(raw: &mut [u8], pool: &BufPool, out: &mut Vec<PacketBuf>) -> Result<(), SplitError> {
    let mut header = VirtioNetHdr::decode(raw).map_err(|_short| SplitError::Malformed)?;
    let packet = &mut raw[VIRTIO_NET_HDR_LEN..];
    let version = packet.first().ok_or(SplitError::Malformed)? >> 4;
    if header.gso_type == GSO_NONE {
        if header.flags & NEEDS_CHECKSUM != 0 {
            finish_checksum(packet, header.csum_start.into(), header.csum_offset.into())?;
        }
        out.push(pool.copy_from(packet).ok_or(SplitError::Oversized)?);
        return Ok(());
    }
    // The kernel's header length is a hint that may be wrong for forwarded packets: take it from
    // the transport header itself.
    let transport = usize::from(header.csum_start);
    let transport_len = if header.gso_type == GSO_UDP {
        UDP_HEADER
    } else {
        usize::from(packet.get(transport + 12).ok_or(SplitError::Malformed)? >> 4) * 4
    };
    let header_len = transport + transport_len;
    header.hdr_len = u16::try_from(header_len).map_err(|_large| SplitError::Malformed)?;
    if header.gso_size == 0 || header_len >= packet.len() {
        return Err(SplitError::Malformed);
    }
    if header_len + usize::from(header.gso_size) > pool.capacity() {
        return Err(SplitError::Oversized);
    }
    let count = (packet.len() - header_len).div_ceil(header.gso_size.into());
    let first = out.len();
    out.extend((0..count).map(|_| pool.take()));
    let mut sizes = vec![0; count];
    let result: io::Result<usize> = {
        let mut slots: Vec<&mut [u8]> = out[first..].iter_mut().map(PacketBuf::spare).collect();
        gso_split(packet, header, &mut slots, &mut sizes, 0, version == 6)
    };
    match result {
        Ok(made) => {
            for (buf, size) in out[first..].iter_mut().zip(&sizes[..made]) {
                buf.set_len(*size);
            }
            out.truncate(first + made);
            Ok(())
        }
        Err(_contradiction) => {
            out.truncate(first);
            Err(SplitError::Malformed)
        }
    }
}

/// Completes a transport checksum of which the field holds the pseudo header's part.
fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> Result<(), SplitError> {
    let at = start + offset;
    let field: [u8; 2] =
        packet.get(at..at + 2).and_then(|f| f.try_into().ok()).ok_or(SplitError::Malformed)?;
    packet[at..at + 2].fill(0);
    let sum = !checksum(&packet[start..], u16::from_be_bytes(field).into());
    // Zero means "no checksum" in UDP, whose field lies at offset 6; its equal is all ones.
    let sum = if sum == 0 && offset == 6 { u16::MAX } else { sum };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
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
    }
}
