//! The clothes of QUIC: a segment of the model in a UDP packet of port 443, as a bond sees it.

use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::packet::{PROTO_TCP, PROTO_UDP};

use super::segment::header_checksum;

const PORT: u16 = 443;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// Puts a segment into a UDP packet; `to_server` says which of the ports is the server's. `None` when it exceeds the
/// pool's buffers.
pub fn wrap(segment: &[u8], to_server: bool, pool: &BufPool) -> Option<PacketBuf> {
    let mut buf = pool.take();
    let len = segment.len() + UDP_HEADER;
    if len > buf.capacity() || segment.len() < IP_HEADER + 4 {
        return None;
    }
    buf.set_len(len);
    let (ip, inner) = segment.split_at(IP_HEADER);
    buf[..IP_HEADER].copy_from_slice(ip);
    buf[9] = PROTO_UDP;
    set_len(&mut buf[..IP_HEADER], len);
    let mut ports = [inner[0], inner[1], inner[2], inner[3]];
    ports[if to_server { 2..4 } else { 0..2 }].copy_from_slice(&PORT.to_be_bytes());
    buf[IP_HEADER..IP_HEADER + 4].copy_from_slice(&ports);
    buf[IP_HEADER + 4..IP_HEADER + 6].copy_from_slice(&((len - IP_HEADER) as u16).to_be_bytes());
    buf[IP_HEADER + 6..IP_HEADER + 8].fill(0);
    buf[IP_HEADER + UDP_HEADER..].copy_from_slice(inner);
    Some(buf)
}

/// The segment in a packet that [`wrap`] made; `None` for anything else.
pub fn unwrap(packet: &[u8]) -> Option<Vec<u8>> {
    let (ip, rest) = packet.split_at_checked(IP_HEADER)?;
    let (udp, inner) = rest.split_at_checked(UDP_HEADER)?;
    let port = PORT.to_be_bytes();
    if ip[9] != PROTO_UDP || header_checksum(ip) != 0 || (udp[..2] != port && udp[2..4] != port) {
        return None;
    }
    let mut segment = [ip, inner].concat();
    segment[9] = PROTO_TCP;
    let len = segment.len();
    set_len(&mut segment[..IP_HEADER], len);
    Some(segment)
}

fn set_len(ip: &mut [u8], len: usize) {
    ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    ip[10..12].fill(0);
    let checksum = header_checksum(ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
}
