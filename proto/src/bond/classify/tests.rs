use proptest::prelude::*;

use super::*;

const ACK: u8 = tcp_flags::ACK;

fn v4(protocol: u8, tos: u8, fragment: u16, body: &[u8]) -> Vec<u8> {
    let mut p = vec![0x45, tos];
    p.extend((20 + body.len() as u16).to_be_bytes());
    p.extend([0, 0]);
    p.extend(fragment.to_be_bytes());
    p.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    p.extend(body);
    p
}

fn tcp(flags: u8, payload: usize) -> Vec<u8> {
    let mut t = vec![0x13, 0x88, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 0, 0, 0, 0, 0];
    t.resize(20 + payload, 0);
    v4(PROTO_TCP, 0, 0, &t)
}

fn udp(source: u16, destination: u16, payload: usize) -> Vec<u8> {
    let mut u = Vec::new();
    u.extend(source.to_be_bytes());
    u.extend(destination.to_be_bytes());
    u.resize(8 + payload, 0);
    v4(PROTO_UDP, 0, 0, &u)
}

fn verdict(packet: &[u8]) -> Verdict {
    Classifier::new([1, 2]).classify(packet).expect("an IP packet")
}

#[test]
fn dscp_maps_to_class_and_priority() {
    let table = [
        (0, Class::BestEffort, 128),
        (46, Class::Voice, 220),
        (44, Class::Voice, 220),
        (40, Class::Voice, 220),
        (48, Class::Voice, 220),
        (56, Class::Voice, 220),
        (34, Class::Video, 160),
        (38, Class::Video, 160),
        (32, Class::Video, 160),
        (26, Class::Video, 160),
        (30, Class::Video, 160),
        (8, Class::Background, 40),
        (1, Class::Background, 40),
        (10, Class::BestEffort, 128),
        (63, Class::BestEffort, 128),
    ];
    for (dscp, class, priority) in table {
        for ecn in 0..4 {
            let v = verdict(&v4(PROTO_UDP, dscp << 2 | ecn, 0, &[0; 8]));
            assert_eq!((v.class, v.priority), (class, priority), "dscp {dscp}");
        }
    }
}

#[test]
fn ordered_and_express_by_kind() {
    let kind = |packet: &[u8]| {
        let v = verdict(packet);
        (v.ordered, v.express)
    };
    assert_eq!(kind(&tcp(ACK, 0)), (false, true), "pure ACK");
    assert_eq!(kind(&tcp(tcp_flags::SYN, 0)), (false, true), "SYN");
    assert_eq!(kind(&tcp(tcp_flags::SYN | ACK, 0)), (false, true), "SYN and ACK");
    assert_eq!(kind(&tcp(tcp_flags::SYN, 100)), (false, true), "SYN with data (TFO)");
    assert_eq!(kind(&tcp(ACK, 1)), (true, false), "payload");
    assert_eq!(kind(&tcp(ACK | tcp_flags::FIN, 0)), (true, false), "FIN");
    assert_eq!(kind(&tcp(tcp_flags::RST, 0)), (true, false), "RST");
    assert_eq!(kind(&udp(5000, 443, 1200)), (true, false), "QUIC bulk");
    assert_eq!(kind(&udp(443, 5000, 40)), (false, false), "QUIC acknowledgement");
    assert_eq!(kind(&udp(5000, 53, 40)), (false, true), "DNS query");
    assert_eq!(kind(&udp(53, 5000, 1200)), (false, true), "DNS answer");
    assert_eq!(kind(&udp(53, 5000, 1400)), (false, false), "something else on port 53");
    assert_eq!(kind(&udp(5000, 5001, 1200)), (false, false), "UDP");
    assert_eq!(kind(&v4(PROTO_ICMP, 0, 0, &[8; 64])), (false, true), "ping");
    assert_eq!(kind(&v4(PROTO_ICMP, 0, 0, &[8; 640])), (false, false), "large ping");
    assert_eq!(kind(&v4(PROTO_ICMP, 0, 0, &[3; 64])), (false, false), "unreachable");
    assert_eq!(kind(&v4(47, 0, 0, &[0; 64])), (false, false), "GRE");
    assert_eq!(kind(&v4(PROTO_TCP, 0, 0, &[0; 4])), (false, false), "TCP header cut short");
}

#[test]
fn fragments_of_one_packet_are_one_flow() {
    let mut body = vec![0x13, 0x88, 0, 53];
    body.resize(64, 7);
    let first = verdict(&v4(PROTO_UDP, 0, 0x2000, &body));
    let later = verdict(&v4(PROTO_UDP, 0, 0x0008, &[9; 64]));
    assert_eq!(first.flow, later.flow);
    assert!(!first.express && !later.express);
}

#[test]
fn flows_differ_by_every_part_of_the_tuple_and_by_seed() {
    let base = udp(1000, 2000, 10);
    let flow = verdict(&base).flow;
    assert_eq!(verdict(&udp(1000, 2000, 99)).flow, flow);
    for at in [15, 19, 21, 23] {
        let mut other = base.clone();
        other[at] ^= 1;
        assert_ne!(verdict(&other).flow, flow, "byte {at}");
    }
    assert_ne!(Classifier::new([1, 3]).classify(&base).expect("valid").flow, flow);
}

#[test]
fn siphash_agrees_with_the_standard_library() {
    use std::hash::Hasher;
    // `DefaultHasher` is SipHash-1-3 with a key of zeros.
    let mut default = std::collections::hash_map::DefaultHasher::new();
    let words = [1u64, 0x0123_4567_89ab_cdef, 3, u64::MAX, 5];
    for word in words {
        default.write(&word.to_le_bytes());
    }
    assert_eq!(sip_hash_1_3([0, 0], words), default.finish());
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Classifier::new([0, 0]).classify(&bytes);
    }
}
