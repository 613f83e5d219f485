//! TCP segments in IPv4, as bytes.

use std::net::Ipv4Addr;

use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::packet::{self, Ecn, PROTO_TCP};

const IP_HEADER: usize = 20;
const TCP_HEADER: usize = 20;
/// SACK blocks that fit beside the time stamp.
pub(super) const SACK_BLOCKS_MAX: usize = 3;

const OPTION_NOP: u8 = 1;
const OPTION_SACK: u8 = 5;
const OPTION_TIMESTAMP: u8 = 8;

/// Addresses and ports of one direction of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    /// Source address and port.
    pub source: (Ipv4Addr, u16),
    /// Destination address and port.
    pub destination: (Ipv4Addr, u16),
}

impl Tuple {
    /// The other direction.
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// What a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Flags as in [`packet::tcp_flags`].
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Time-stamp value: the number of this segment among all of its side.
    pub tsval: u32,
    /// Time-stamp echo reply.
    pub tsecr: u32,
    /// SACK blocks, the newest first; `None` fills the rest.
    pub sack: [Option<(u32, u32)>; SACK_BLOCKS_MAX],
    /// Bytes of payload.
    pub payload_len: usize,
    /// ECN field of the IP header.
    pub ecn: Ecn,
}

impl Segment {
    /// The packet; `None` when it exceeds the pool's buffers. Its payload begins with the time-stamp value, if it
    /// has room for it, and is zero otherwise.
    pub fn encode(&self, tuple: Tuple, pool: &BufPool) -> Option<PacketBuf> {
        let blocks = self.sack.iter().flatten().count();
        let options = 12 + if blocks > 0 { 4 + 8 * blocks } else { 0 };
        let header = IP_HEADER + TCP_HEADER + options;
        let len = header + self.payload_len;
        let mut buf = pool.take();
        if len > buf.capacity() {
            return None;
        }
        buf.set_len(len);
        buf.fill(0);
        buf[0] = 0x45;
        buf[1] = match self.ecn {
            Ecn::NotEct => 0,
            Ecn::Ect1 => 1,
            Ecn::Ect0 => 2,
            Ecn::Ce => 3,
        };
        put16(&mut buf, 2, len as u16);
        buf[6] = 0x40;
        buf[8] = 64;
        buf[9] = PROTO_TCP;
        buf[12..16].copy_from_slice(&tuple.source.0.octets());
        buf[16..20].copy_from_slice(&tuple.destination.0.octets());
        let checksum = header_checksum(&buf[..IP_HEADER]);
        put16(&mut buf, 10, checksum);

        let tcp = &mut buf[IP_HEADER..];
        put16(tcp, 0, tuple.source.1);
        put16(tcp, 2, tuple.destination.1);
        put32(tcp, 4, self.seq);
        put32(tcp, 8, self.ack);
        tcp[12] = (((TCP_HEADER + options) / 4) as u8) << 4;
        tcp[13] = self.flags;
        put16(tcp, 14, u16::MAX);
        tcp[20..24].copy_from_slice(&[OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMP, 10]);
        put32(tcp, 24, self.tsval);
        put32(tcp, 28, self.tsecr);
        if blocks > 0 {
            tcp[32..36].copy_from_slice(&[OPTION_NOP, OPTION_NOP, OPTION_SACK, (2 + 8 * blocks) as u8]);
            for (i, (start, end)) in self.sack.iter().flatten().enumerate() {
                put32(tcp, 36 + 8 * i, *start);
                put32(tcp, 40 + 8 * i, *end);
            }
        }
        if self.payload_len >= 4 {
            put32(tcp, TCP_HEADER + options, self.tsval);
        }
        Some(buf)
    }

    /// Reads a packet that [`encode`](Self::encode) wrote; `None` for anything else, a damaged payload or a wrong
    /// header checksum among them.
    pub fn decode(bytes: &[u8]) -> Option<(Tuple, Self)> {
        let inner = packet::parse(bytes).ok()?;
        let tcp = inner.tcp?;
        let (std::net::IpAddr::V4(source), std::net::IpAddr::V4(destination)) =
            (inner.source, inner.destination)
        else {
            return None;
        };
        if header_checksum(&bytes[..IP_HEADER]) != 0 {
            return None;
        }
        let header = bytes.get(inner.transport_offset..)?;
        let options = header.get(TCP_HEADER..tcp.header_len)?;
        let (tsval, tsecr) = (get32(options, 4)?, get32(options, 8)?);
        let mut sack = [None; SACK_BLOCKS_MAX];
        if let Some(len) = options.get(15) {
            let blocks = usize::from(len.checked_sub(2)?) / 8;
            for (i, block) in sack.iter_mut().enumerate().take(blocks) {
                *block = Some((get32(options, 16 + 8 * i)?, get32(options, 20 + 8 * i)?));
            }
        }
        if tcp.payload_len >= 4 && get32(header, tcp.header_len)? != tsval {
            return None;
        }
        let (source_port, destination_port) = inner.ports?;
        let tuple = Tuple { source: (source, source_port), destination: (destination, destination_port) };
        let segment = Self {
            flags: tcp.flags,
            seq: tcp.seq,
            ack: tcp.ack,
            tsval,
            tsecr,
            sack,
            payload_len: tcp.payload_len,
            ecn: inner.ecn,
        };
        Some((tuple, segment))
    }
}

/// The checksum to write while the field is zero; zero when the field is right.
pub(super) fn header_checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn get32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
