//! What an inner packet is to the bond: which flow, how important, and how it may travel.
//!
//! Input is each packet the TUN device delivers, before it is queued; the verdict travels with the
//! packet through the flow queue (flow, class, express), the scheduler (priority) and the lanes
//! (ordered). Nothing is remembered between packets.

use std::net::IpAddr;

use crate::packet::{self, Inner, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, PacketError, tcp_flags};
use crate::wire::v2::Class;

/// UDP port of QUIC, whose large packets are bulk that suffers from reordering.
const QUIC_PORT: u16 = 443;
/// Below this a QUIC packet is an acknowledgement or a lone frame, which gains from not waiting.
/// Bytes of the inner packet.
const QUIC_BULK_LEN: usize = 600;
/// Port of DNS.
const DNS_PORT: u16 = 53;
/// Longest DNS packet that is let through first: EDNS(0) at 1,232 bytes (DNS flag day 2020) with
/// IPv6 and UDP headers. A tunnel over port 53 gains nothing from fuller packets.
const DNS_LEN_MAX: usize = 1280;
/// Longest echo request or reply that is let through first, in bytes of the inner packet: the usual
/// `ping` is 84 (IPv4) or 104 (IPv6).
const ECHO_LEN_MAX: usize = 128;

/// Keyed hash of a flow's 5-tuple.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowHash(pub u64);

/// How one packet is to be treated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The flow: protocol, addresses and ports of this direction. All fragments of a packet share
    /// one, without the ports that only the first of them shows.
    pub flow: FlowHash,
    /// Class of service, from the DSCP.
    pub class: Class,
    /// 220 voice, 160 video, 128 best effort, 40 background: above 200 the scheduler asks for the
    /// least delay, below 50 it gives spare capacity only.
    pub priority: u8,
    /// Goes through a lane and its resequencer: TCP segments with payload, FIN or RST, and large
    /// QUIC packets. Everything else is delivered as it arrives.
    pub ordered: bool,
    /// Not TCP: nobody but the application notices when it is lost.
    pub datagram: bool,
    /// Goes before everything else: TCP acknowledgements without payload, SYN, DNS, small echoes.
    pub express: bool,
}

/// Gives verdicts; holds only the key of the flow hash.
#[derive(Clone, Debug)]
pub struct Classifier {
    seed: [u64; 2],
}

impl Classifier {
    /// A classifier whose flow hashes nobody can predict without `seed`, and everybody can repeat
    /// with it.
    pub fn new(seed: [u64; 2]) -> Self {
        Self { seed }
    }

    /// The verdict on one packet.
    ///
    /// # Errors
    /// When `packet` is not an IP packet; see [`packet::parse`].
    pub fn classify(&self, packet: &[u8]) -> Result<Verdict, PacketError> {
        let inner = packet::parse(packet)?;
        let (class, priority) = class_of(inner.dscp);
        Ok(Verdict {
            flow: self.flow(&inner),
            class,
            priority,
            ordered: is_ordered(&inner),
            datagram: inner.protocol != PROTO_TCP,
            express: is_express(&inner),
        })
    }

    fn flow(&self, inner: &Inner) -> FlowHash {
        let ports = if inner.fragment { None } else { inner.ports };
        let (source_port, destination_port) = ports.unwrap_or((0, 0));
        let [s0, s1] = address_words(inner.source);
        let [d0, d1] = address_words(inner.destination);
        let last = u64::from(inner.protocol) << 40
            | u64::from(inner.version) << 32
            | u64::from(source_port) << 16
            | u64::from(destination_port);
        FlowHash(sip_hash_1_3(self.seed, [s0, s1, d0, d1, last]))
    }
}

fn address_words(address: IpAddr) -> [u64; 2] {
    let wide = match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    [(wide >> 64) as u64, wide as u64]
}

/// Class and priority of a DSCP (RFC 4594, RFC 8622 for LE).
fn class_of(dscp: u8) -> (Class, u8) {
    match dscp {
        // EF, VOICE-ADMIT, CS5 (signalling), CS6 and CS7 (routing, network control)
        46 | 44 | 40 | 48 | 56 => (Class::Voice, 220),
        // AF41..43 (conferencing), CS4 (real-time interactive), AF31..33 (streaming)
        34 | 36 | 38 | 32 | 26 | 28 | 30 => (Class::Video, 160),
        // CS1 and LE
        8 | 1 => (Class::Background, 40),
        _ => (Class::BestEffort, 128),
    }
}

fn is_ordered(inner: &Inner) -> bool {
    match (inner.protocol, inner.tcp) {
        (PROTO_TCP, Some(tcp)) => {
            tcp.flags & tcp_flags::SYN == 0
                && (tcp.payload_len > 0 || tcp.flags & (tcp_flags::FIN | tcp_flags::RST) != 0)
        }
        (PROTO_UDP, _) => {
            inner.ports.is_some_and(|(source, destination)| source == QUIC_PORT || destination == QUIC_PORT)
                && inner.len > QUIC_BULK_LEN
        }
        _ => false,
    }
}

fn is_express(inner: &Inner) -> bool {
    if inner.fragment {
        return false;
    }
    match (inner.protocol, inner.tcp, inner.ports) {
        (PROTO_TCP, Some(tcp), _) => {
            tcp.flags & tcp_flags::SYN != 0
                || (tcp.payload_len == 0
                    && tcp.flags & (tcp_flags::FIN | tcp_flags::RST) == 0
                    && tcp.flags & tcp_flags::ACK != 0)
        }
        (PROTO_UDP, _, Some((source, destination))) => {
            (source == DNS_PORT || destination == DNS_PORT) && inner.len <= DNS_LEN_MAX
        }
        (PROTO_ICMP, ..) => matches!(inner.icmp_type, Some(0 | 8)) && inner.len <= ECHO_LEN_MAX,
        (PROTO_ICMPV6, ..) => matches!(inner.icmp_type, Some(128 | 129)) && inner.len <= ECHO_LEN_MAX,
        _ => false,
    }
}

/// SipHash-1-3 of five words: the strength that hash tables use against chosen collisions, and the
/// same on every machine and toolchain, so that a seed replays a run.
fn sip_hash_1_3(key: [u64; 2], words: [u64; 5]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    // The last word of SipHash carries the length in its top byte.
    for word in words.into_iter().chain([(words.len() as u64 * 8) << 56]) {
        v[3] ^= word;
        sip_round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..3 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests;
