//! Merging of a flow's packets into super-packets (GRO) without moving them: the plan says which packets of a batch
//! follow each other, the writer hands the kernel their headers and payloads as one list.
//!
//! Merged is what the kernel's own GRO would merge, and what it takes apart again into the same packets: TCP
//! segments with payload, back to back, and UDP datagrams of one size. What an earlier hop corrupted is never
//! merged, because that would give it a good checksum.

use mwb_proto::buf::PacketBuf;
use mwb_proto::packet::{PROTO_TCP, PROTO_UDP, tcp_flags};
use tun_rs::{VirtioNetHdr, checksum};

/// Most packets planned at once.
pub(super) const PACKETS_MAX: usize = 128;
/// Longest IP packet.
const PACKET_LEN_MAX: usize = 65_535;
/// Most datagrams in one UDP super-packet (`UDP_MAX_SEGMENTS` of older kernels).
const DATAGRAMS_MAX: usize = 64;
/// Flows that are merged at the same time; of more, those seen longest ago end.
const OPEN_MAX: usize = 16;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum holds only the pseudo header's part.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV4`, `_TCPV6` and `_UDP_L4`.
const GSO_TCP_V4: u8 = 1;
const GSO_TCP_V6: u8 = 4;
const GSO_UDP: u8 = 5;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER_MIN: usize = 20;
const UDP_HEADER: usize = 8;
/// Offset of the checksum in the transport header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// End of a group's list.
const NONE: u16 = u16::MAX;

/// What merging asks of one packet.
#[derive(Clone, Copy, Debug)]
struct Facts {
    v6: bool,
    tcp: bool,
    /// Where the transport header begins.
    transport: usize,
    /// Bytes of both headers.
    header: usize,
    payload: usize,
    seq: u32,
    push: bool,
    /// Whether it may be merged at all.
    fit: bool,
}

/// Packets that are written as one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    head: u16,
    tail: u16,
    count: u16,
    facts: Facts,
    /// Payload bytes of all.
    bytes: usize,
    /// Whether the head's checksum has been found good.
    verified: bool,
    push: bool,
}

/// The plan for one batch; kept for its memory.
#[derive(Debug, Default)]
pub(super) struct Plan {
    groups: Vec<Group>,
    /// For each packet the one behind it in its group.
    next: Vec<u16>,
    /// Groups that may still grow, the one seen last at the end.
    open: Vec<usize>,
}

impl Plan {
    /// Sorts packets into groups, each in order. A flow's packets stay in order also across groups, because a group is
    /// closed by the first packet of its flow that does not fit. With `udp` datagrams are merged too.
    ///
    /// # Panics
    /// When there are more than [`PACKETS_MAX`] packets.
    pub(super) fn make(&mut self, packets: &[PacketBuf], udp: bool) {
        assert!(packets.len() <= PACKETS_MAX, "a batch is bounded");
        self.groups.clear();
        self.open.clear();
        self.next.clear();
        self.next.resize(packets.len(), NONE);
        for (i, packet) in packets.iter().enumerate() {
            match read(packet) {
                Some(facts) => self.place(packets, i, facts, udp),
                None => {
                    // Whose it is cannot be told, so nothing may pass it.
                    self.open.clear();
                    self.begin(i, Facts::ALONE);
                }
            }
        }
    }

    /// The groups, in the order of their first packets.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The packets of a group behind its head.
    pub(super) fn rest(&self, group: &Group) -> impl Iterator<Item = usize> {
        let mut at = group.head;
        std::iter::from_fn(move || {
            at = *self.next.get(usize::from(at))?;
            (at != NONE).then_some(usize::from(at))
        })
    }

    fn begin(&mut self, i: usize, facts: Facts) {
        let (head, push) = (i as u16, facts.push);
        let bytes = facts.payload;
        self.groups.push(Group { head, tail: head, count: 1, facts, bytes, verified: false, push });
    }

    fn place(&mut self, packets: &[PacketBuf], i: usize, facts: Facts, udp: bool) {
        let packet = &packets[i];
        let same = |&at: &usize| {
            let group = &self.groups[at];
            is_same_flow(&group.facts, &packets[usize::from(group.head)], &facts, packet)
        };
        let known = self.open.iter().rposition(same);
        if let Some(position) = known {
            let at = self.open.remove(position);
            let group = &mut self.groups[at];
            if group.takes(&packets[usize::from(group.head)], &facts, packet) {
                self.next[usize::from(group.tail)] = i as u16;
                group.tail = i as u16;
                group.count += 1;
                group.bytes += facts.payload;
                group.push = facts.push;
                // Nothing comes behind a short one, or one that says that it is the last.
                if facts.payload == group.facts.payload && !facts.push {
                    self.open.push(at);
                }
                return;
            }
        }
        self.begin(i, facts);
        if facts.fit && !facts.push && (facts.tcp || udp) {
            if self.open.len() == OPEN_MAX {
                self.open.remove(0);
            }
            self.open.push(self.groups.len() - 1);
        }
    }
}

impl Facts {
    /// For a packet that is written as it is.
    const ALONE: Self =
        Self { v6: false, tcp: false, transport: 0, header: 0, payload: 0, seq: 0, push: false, fit: false };
}

impl Group {
    /// Index of the packet whose headers stand for all.
    pub(super) fn head(&self) -> usize {
        usize::from(self.head)
    }

    /// Packets in it.
    pub(super) fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes of headers, which only the head contributes.
    pub(super) fn header_len(&self) -> usize {
        self.facts.header
    }

    /// Whether a packet of its flow can be the next. Finds out on the way whether head and packet are as they were sent.
    fn takes(&mut self, head: &[u8], facts: &Facts, packet: &[u8]) -> bool {
        let most = if facts.tcp { PACKETS_MAX } else { DATAGRAMS_MAX };
        let total = self.facts.header + self.bytes + facts.payload;
        if !facts.fit
            || facts.payload > self.facts.payload
            || usize::from(self.count) >= most
            || total > PACKET_LEN_MAX
            || (facts.tcp && facts.seq != self.facts.seq.wrapping_add(self.bytes as u32))
            || !are_headers_alike(&self.facts, head, facts, packet, self.count)
        {
            return false;
        }
        if !self.verified {
            if !is_checksum_good(&self.facts, head) {
                return false;
            }
            self.verified = true;
        }
        is_checksum_good(facts, packet)
    }

    /// Makes the head's headers those of the whole; `head` is the head packet. Says what the kernel has to know.
    pub(super) fn finish(&self, head: &mut [u8]) -> VirtioNetHdr {
        if self.count <= 1 {
            return VirtioNetHdr::default();
        }
        let Facts { v6, tcp, transport, header, payload, .. } = self.facts;
        let transport_len = (header - transport + self.bytes) as u16;
        if v6 {
            head[4..6].copy_from_slice(&transport_len.to_be_bytes());
        } else {
            head[2..4].copy_from_slice(&(transport as u16 + transport_len).to_be_bytes());
            head[10..12].fill(0);
            let sum = !checksum(&head[..transport], 0);
            head[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let csum_offset = if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        if tcp {
            if self.push {
                head[transport + 13] |= tcp_flags::PSH;
            }
        } else {
            head[transport + 4..transport + 6].copy_from_slice(&transport_len.to_be_bytes());
        }
        // The kernel adds the rest.
        let sum = checksum(&[], pseudo(&self.facts, head, transport_len));
        head[transport + csum_offset..transport + csum_offset + 2].copy_from_slice(&sum.to_be_bytes());
        VirtioNetHdr {
            flags: NEEDS_CHECKSUM,
            gso_type: match (tcp, v6) {
                (false, _) => GSO_UDP,
                (true, false) => GSO_TCP_V4,
                (true, true) => GSO_TCP_V6,
            },
            hdr_len: header as u16,
            gso_size: payload as u16,
            csum_start: transport as u16,
            csum_offset: csum_offset as u16,
        }
    }
}

/// What a packet is to merging; `None` for what it does not understand.
fn read(packet: &[u8]) -> Option<Facts> {
    let (v6, transport, protocol) = match packet.first()? {
        0x45 => {
            let whole = packet.len() >= IPV4_HEADER
                && usize::from(u16::from_be_bytes([packet[2], packet[3]])) == packet.len();
            // More fragments, or an offset.
            if !whole || packet[6] & 0x3f != 0 || packet[7] != 0 {
                return None;
            }
            (false, IPV4_HEADER, packet[9])
        }
        0x60..=0x6f => {
            let whole = packet.len() >= IPV6_HEADER
                && usize::from(u16::from_be_bytes([packet[4], packet[5]])) + IPV6_HEADER == packet.len();
            if !whole {
                return None;
            }
            (true, IPV6_HEADER, packet[6])
        }
        _ => return None,
    };
    let rest = &packet[transport..];
    match protocol {
        PROTO_TCP => {
            let fixed: &[u8; TCP_HEADER_MIN] = rest.first_chunk()?;
            let header = usize::from(fixed[12] >> 4) * 4;
            if header < TCP_HEADER_MIN || header > rest.len() {
                return None;
            }
            let payload = rest.len() - header;
            Some(Facts {
                v6,
                tcp: true,
                transport,
                header: transport + header,
                payload,
                seq: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
                push: fixed[13] & tcp_flags::PSH != 0,
                fit: payload > 0 && fixed[13] & !tcp_flags::PSH == tcp_flags::ACK,
            })
        }
        PROTO_UDP => {
            let fixed: &[u8; UDP_HEADER] = rest.first_chunk()?;
            let payload = rest.len() - UDP_HEADER;
            let whole = usize::from(u16::from_be_bytes([fixed[4], fixed[5]])) == rest.len();
            // Without a checksum nobody can say that it is good.
            let fit = whole && payload > 0 && fixed[6..] != [0, 0];
            let header = transport + UDP_HEADER;
            Some(Facts { v6, tcp: false, transport, header, payload, seq: 0, push: false, fit })
        }
        _ => None,
    }
}

fn is_same_flow(a: &Facts, a_packet: &[u8], b: &Facts, b_packet: &[u8]) -> bool {
    // Addresses and ports lie behind each other, as IPv4 options are not understood.
    let from = if a.v6 { 8 } else { 12 };
    a.v6 == b.v6 && a.tcp == b.tcp && a_packet[from..a.transport + 4] == b_packet[from..a.transport + 4]
}

/// Whether a flow's packet differs from its group's head only in what the kernel makes anew when it takes the group
/// apart. `count` packets are there already.
fn are_headers_alike(a: &Facts, a_packet: &[u8], b: &Facts, b_packet: &[u8], count: u16) -> bool {
    let ip = if a.v6 {
        // Traffic class and flow label; hop limit.
        a_packet[..4] == b_packet[..4] && a_packet[7] == b_packet[7]
    } else {
        let id = |packet: &[u8]| u16::from_be_bytes([packet[4], packet[5]]);
        const DONT_FRAGMENT: u8 = 0x40;
        // Type of service, flags, time to live; the identification matters to those that may be fragmented.
        a_packet[1] == b_packet[1]
            && a_packet[6] == b_packet[6]
            && a_packet[8] == b_packet[8]
            && (a_packet[6] & DONT_FRAGMENT != 0 || id(b_packet) == id(a_packet).wrapping_add(count))
    };
    if !ip || a.header != b.header {
        return false;
    }
    if !a.tcp {
        return true;
    }
    let (x, y) = (&a_packet[a.transport..a.header], &b_packet[b.transport..b.header]);
    // Acknowledgement number and header length; window; urgent pointer and options.
    x[8..13] == y[8..13] && x[14..16] == y[14..16] && x[18..] == y[18..]
}

/// Sum of the pseudo header.
fn pseudo(facts: &Facts, packet: &[u8], transport_len: u16) -> u64 {
    let addresses = if facts.v6 { 8..40 } else { 12..20 };
    let protocol = if facts.tcp { PROTO_TCP } else { PROTO_UDP };
    u64::from(checksum(&packet[addresses], 0)) + u64::from(protocol) + u64::from(transport_len)
}

fn is_checksum_good(facts: &Facts, packet: &[u8]) -> bool {
    let transport = &packet[facts.transport..];
    checksum(transport, pseudo(facts, packet, transport.len() as u16)) == u16::MAX
}

#[cfg(test)]
mod tests;
