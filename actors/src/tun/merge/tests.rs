use mwb_proto::buf::BufPool;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tun_rs::{VIRTIO_NET_HDR_LEN, gso_split};

use super::*;

/// One flow of packets with good checksums.
#[derive(Clone)]
struct Flow {
    v6: bool,
    tcp: bool,
    port: u16,
    seq: u32,
    id: u16,
    options: usize,
}

impl Flow {
    fn new(v6: bool, tcp: bool, port: u16) -> Self {
        Self { v6, tcp, port, seq: 1_000, id: 7, options: 12 }
    }

    fn header(&self) -> usize {
        let transport = if self.tcp { TCP_HEADER_MIN + self.options } else { UDP_HEADER };
        transport + if self.v6 { IPV6_HEADER } else { IPV4_HEADER }
    }

    fn next(&mut self, payload: usize, flags: u8) -> Vec<u8> {
        let mut packet = vec![0; self.header() + payload];
        let len = packet.len();
        let transport = if self.v6 { IPV6_HEADER } else { IPV4_HEADER };
        let protocol = if self.tcp { PROTO_TCP } else { PROTO_UDP };
        if self.v6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&((len - transport) as u16).to_be_bytes());
            packet[6..8].copy_from_slice(&[protocol, 64]);
            packet[23] = 1;
            packet[39] = 2;
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[4..6].copy_from_slice(&self.id.to_be_bytes());
            packet[6] = 0x40;
            packet[8..10].copy_from_slice(&[64, protocol]);
            packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = !checksum(&packet[..20], 0);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        self.id = self.id.wrapping_add(1);
        let rest = &mut packet[transport..];
        rest[..2].copy_from_slice(&self.port.to_be_bytes());
        rest[2..4].copy_from_slice(&80_u16.to_be_bytes());
        if self.tcp {
            rest[4..8].copy_from_slice(&self.seq.to_be_bytes());
            rest[11] = 9;
            rest[12] = ((TCP_HEADER_MIN + self.options) / 4 * 16) as u8;
            rest[13] = flags;
            rest[14] = 1;
            rest[20..20 + self.options].fill(1);
            self.seq = self.seq.wrapping_add(payload as u32);
        } else {
            rest[4..6].copy_from_slice(&((UDP_HEADER + payload) as u16).to_be_bytes());
        }
        let header = self.header();
        for (i, byte) in packet[header..].iter_mut().enumerate() {
            *byte = (i as u8).wrapping_mul(self.port as u8).wrapping_add(self.id as u8);
        }
        seal(&mut packet);
        packet
    }
}

/// Puts the right transport checksum into a packet.
fn seal(packet: &mut [u8]) {
    let mut facts = read(packet).expect("a packet that is understood");
    facts.payload = 0;
    let at = facts.transport + if facts.tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
    packet[at..at + 2].fill(0);
    let transport = &packet[facts.transport..];
    let sum = match !checksum(transport, pseudo(&facts, packet, transport.len() as u16)) {
        0 => u16::MAX,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn buffers(packets: &[Vec<u8>]) -> Vec<PacketBuf> {
    let pool = BufPool::new(2048, PACKETS_MAX);
    packets.iter().map(|packet| pool.copy_from(packet).expect("fits")).collect()
}

/// How the packets are grouped, by index.
fn grouped(packets: &[Vec<u8>]) -> Vec<Vec<usize>> {
    let packets = buffers(packets);
    let mut plan = Plan::default();
    plan.make(&packets, true);
    let group = |group: &Group| std::iter::once(group.head()).chain(plan.rest(group)).collect();
    plan.groups().iter().map(group).collect()
}

/// What the kernel makes of the plan again.
fn through_kernel(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut packets = buffers(packets);
    let mut plan = Plan::default();
    plan.make(&packets, true);
    let mut out = Vec::new();
    for group in plan.groups() {
        let header = group.finish(&mut packets[group.head()]);
        let mut whole = packets[group.head()].to_vec();
        let rest: Vec<usize> = plan.rest(group).collect();
        assert_eq!(rest.len() + 1, group.count());
        rest.iter().for_each(|&i| whole.extend_from_slice(&packets[i][group.header_len()..]));
        if group.count() == 1 {
            assert_eq!((header.flags, header.gso_type), (0, 0));
            out.push(whole);
            continue;
        }
        let mut encoded = [0; VIRTIO_NET_HDR_LEN];
        header.encode(&mut encoded).expect("room");
        let v6 = whole[0] >> 4 == 6;
        assert!(v6 || checksum(&whole[..IPV4_HEADER], 0) == u16::MAX, "IPv4 checksum");
        let mut parts = vec![vec![0; 2048]; group.count()];
        let mut sizes = vec![0; group.count()];
        let made = gso_split(&mut whole, header, &mut parts, &mut sizes, 0, v6).expect("splits");
        assert_eq!(made, group.count());
        out.extend(parts.into_iter().zip(sizes).map(|(part, size)| part[..size].to_vec()));
    }
    out
}

const ACK: u8 = tcp_flags::ACK;
const PUSH: u8 = tcp_flags::ACK | tcp_flags::PSH;

#[test]
fn a_run_becomes_one_and_comes_apart_again() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            let mut flow = Flow::new(v6, tcp, 5_000);
            let mut packets: Vec<_> = (0..5).map(|_| flow.next(1_000, ACK)).collect();
            packets.push(flow.next(400, PUSH));
            assert_eq!(grouped(&packets), [[0, 1, 2, 3, 4, 5]], "v6 {v6} tcp {tcp}");
            assert_eq!(through_kernel(&packets), packets, "v6 {v6} tcp {tcp}");
        }
    }
}

#[test]
fn whatever_is_mixed_each_flow_comes_out_as_it_went_in() {
    let mut rng = StdRng::seed_from_u64(1);
    for round in 0..300 {
        let mut flows: Vec<Flow> = (0..rng.random_range(1..24))
            .map(|i| Flow::new(rng.random_bool(0.5), rng.random_bool(0.7), 5_000 + i))
            .collect();
        let packets: Vec<Vec<u8>> = (0..PACKETS_MAX)
            .map(|_| {
                let i = rng.random_range(0..flows.len());
                let flow = &mut flows[i];
                let mut packet = flow.next(
                    [0, 1, 700, 1_300][rng.random_range(0..4)],
                    [ACK, ACK, ACK, PUSH][rng.random_range(0..4)],
                );
                match rng.random_range(0..40) {
                    0 => packet[flow.header() - 1] ^= 1,
                    1 => flow.seq = flow.seq.wrapping_add(3),
                    2 => flow.options = 4 * rng.random_range(0..4),
                    3 => packet.truncate(rng.random_range(1..packet.len())),
                    _ => {}
                }
                packet
            })
            .collect();
        let ports =
            |packet: &[u8]| packet.get(if packet[0] >> 4 == 6 { 40..42 } else { 20..22 }).map(<[u8]>::to_vec);
        let of = |all: &[Vec<u8>], port: u16| -> Vec<Vec<u8>> {
            let wanted = Some(port.to_be_bytes().to_vec());
            all.iter().filter(|packet| ports(packet) == wanted).cloned().collect()
        };
        let out = through_kernel(&packets);
        assert_eq!(out.len(), packets.len());
        for flow in &flows {
            assert_eq!(of(&out, flow.port), of(&packets, flow.port), "round {round}, port {}", flow.port);
        }
    }
}

#[test]
fn what_differs_is_not_merged() {
    type Change = (&'static str, fn(&mut Vec<u8>));
    let changes: [Change; 9] = [
        ("type of service", |p| p[1] = 3),
        ("time to live", |p| p[8] = 63),
        ("may be fragmented", |p| p[6] = 0),
        ("acknowledgement", |p| p[31] = 8),
        ("window", |p| p[34] = 2),
        ("FIN", |p| p[33] = ACK | tcp_flags::FIN),
        ("ECE", |p| p[33] = ACK | tcp_flags::ECE),
        ("options", |p| p[41] = 0),
        ("another port", |p| p[21] ^= 1),
    ];
    for (what, change) in changes {
        let mut flow = Flow::new(false, true, 5_000);
        let mut packets: Vec<_> = (0..3).map(|_| flow.next(1_000, ACK)).collect();
        change(&mut packets[1]);
        packets[1][10..12].fill(0);
        let sum = !checksum(&packets[1][..20], 0);
        packets[1][10..12].copy_from_slice(&sum.to_be_bytes());
        seal(&mut packets[1]);
        assert_eq!(grouped(&packets), [[0], [1], [2]], "{what}");
    }
}

#[test]
fn a_corrupted_packet_stays_one() {
    let mut flow = Flow::new(false, true, 5_000);
    let mut packets: Vec<_> = (0..4).map(|_| flow.next(1_000, ACK)).collect();
    packets[2][500] ^= 1;
    assert_eq!(grouped(&packets), [vec![0, 1], vec![2], vec![3]]);
    packets[2][500] ^= 1;
    packets[0][500] ^= 1;
    assert_eq!(grouped(&packets), [vec![0], vec![1, 2, 3]]);
}

#[test]
fn bounds_hold() {
    let mut flow = Flow::new(false, true, 5_000);
    let packets: Vec<_> = (0..PACKETS_MAX).map(|_| flow.next(1_300, ACK)).collect();
    let groups = grouped(&packets);
    assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 28], "65,535 bytes each");
    let mut flow = Flow::new(false, false, 5_000);
    let packets: Vec<_> = (0..PACKETS_MAX).map(|_| flow.next(100, 0)).collect();
    assert_eq!(grouped(&packets).iter().map(Vec::len).collect::<Vec<_>>(), [64, 64]);
    let mut plan = Plan::default();
    plan.make(&buffers(&packets), false);
    assert_eq!(plan.groups().len(), PACKETS_MAX, "a device without UDP segmentation");
}

#[test]
fn a_flow_is_not_overtaken_by_its_own() {
    let mut flow = Flow::new(false, true, 5_000);
    let mut packets = vec![flow.next(1_000, ACK), flow.next(0, ACK), flow.next(1_000, ACK)];
    assert_eq!(grouped(&packets), [[0], [1], [2]], "an ACK without payload in between");
    packets[1] = vec![0x46; 30];
    assert_eq!(grouped(&packets), [[0], [1], [2]], "something unknown in between");
}
