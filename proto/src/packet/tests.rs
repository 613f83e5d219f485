use proptest::prelude::*;

use super::*;

/// The internet checksum over `bytes`, from scratch.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut total = start;
    for pair in bytes.chunks(2) {
        total += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

fn pseudo_v4(packet: &[u8], protocol: u8, len: usize) -> u32 {
    packet[12..20].chunks(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum::<u32>()
        + u32::from(protocol)
        + len as u32
}

fn ipv4(protocol: u8, tos: u8, options: &[u8], fragment: u16, body: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let len = header_len + body.len();
    let mut p = vec![0x40 | (header_len / 4) as u8, tos];
    p.extend((len as u16).to_be_bytes());
    p.extend([0x12, 0x34]);
    p.extend(fragment.to_be_bytes());
    p.extend([64, protocol, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7]);
    p.extend(options);
    let check = !sum(&p, 0);
    p[10..12].copy_from_slice(&check.to_be_bytes());
    p.extend(body);
    p
}

fn ipv6(next: u8, traffic_class: u8, body: &[u8]) -> Vec<u8> {
    let mut p = vec![0x60 | (traffic_class >> 4), traffic_class << 4 | 0x0a, 0xbc, 0xde];
    p.extend((body.len() as u16).to_be_bytes());
    p.extend([next, 64]);
    p.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    p.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    p.extend(body);
    p
}

fn tcp(flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut t = vec![0x30, 0x39, 0x01, 0xbb, 0, 0, 0, 9, 0, 0, 0, 5, ((header_len / 4) << 4) as u8, flags];
    t.extend([0xff, 0xff, 0, 0, 0, 0]);
    t.extend(options);
    t.extend(payload);
    t
}

fn with_tcp_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let start = usize::from(packet[0] & 0xf) * 4;
    let check = !sum(&packet[start..], pseudo_v4(&packet, PROTO_TCP, packet.len() - start));
    packet[start + 16..start + 18].copy_from_slice(&check.to_be_bytes());
    packet
}

#[test]
fn reads_tcp_over_ipv4_with_options() {
    let p = ipv4(PROTO_TCP, 0xb8 | 2, &[1, 1, 1, 0], 0x4000, &tcp(tcp_flags::ACK, &[1; 12], b"hello"));
    let inner = parse(&p).expect("valid");
    assert_eq!((inner.version, inner.protocol, inner.dscp, inner.ecn), (4, PROTO_TCP, 46, Ecn::Ect0));
    assert_eq!(inner.ports, Some((12345, 443)));
    assert_eq!(inner.source, "10.0.0.1".parse::<IpAddr>().expect("address"));
    assert_eq!(inner.destination, "192.0.2.7".parse::<IpAddr>().expect("address"));
    assert!(!inner.fragment);
    assert_eq!(inner.transport_offset, 24);
    let tcp = inner.tcp.expect("whole header");
    assert_eq!((tcp.flags, tcp.seq, tcp.ack, tcp.header_len, tcp.payload_len), (tcp_flags::ACK, 9, 5, 32, 5));
}

#[test]
fn padding_behind_the_packet_is_not_payload() {
    let mut p = ipv4(PROTO_TCP, 0, &[], 0, &tcp(tcp_flags::ACK, &[], b""));
    p.extend([0; 6]);
    let inner = parse(&p).expect("valid");
    assert_eq!((inner.len, inner.tcp.expect("tcp").payload_len), (40, 0));
}

#[test]
fn only_the_first_fragment_has_ports() {
    let udp = [0, 53, 0, 99, 0, 8, 0, 0];
    let first = parse(&ipv4(PROTO_UDP, 0, &[], 0x2000, &udp)).expect("valid");
    assert_eq!((first.fragment, first.ports), (true, Some((53, 99))));
    let later = parse(&ipv4(PROTO_UDP, 0, &[], 0x2001, &udp)).expect("valid");
    assert_eq!((later.fragment, later.ports), (true, None));

    let fragment = |field: u16| {
        let mut body = vec![PROTO_UDP, 0];
        body.extend(field.to_be_bytes());
        body.extend([0, 0, 0, 7]);
        body.extend(udp);
        ipv6(44, 0, &body)
    };
    let atomic = parse(&fragment(0)).expect("valid");
    assert_eq!((atomic.fragment, atomic.ports), (false, Some((53, 99))));
    let first = parse(&fragment(1)).expect("valid");
    assert_eq!((first.fragment, first.ports), (true, Some((53, 99))));
    let later = parse(&fragment(8)).expect("valid");
    assert_eq!((later.fragment, later.ports, later.protocol), (true, None, PROTO_UDP));
}

#[test]
fn walks_ipv6_extension_headers_but_not_for_ever() {
    let udp = [0x13, 0x88, 0, 53, 0, 8, 0, 0];
    let mut body = vec![60, 0, 0, 0, 0, 0, 0, 0]; // hop-by-hop, then destination options of 16 bytes
    body.extend([PROTO_UDP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body.extend(udp);
    let inner = parse(&ipv6(0, 0x28, &body)).expect("valid");
    assert_eq!((inner.protocol, inner.ports, inner.dscp), (PROTO_UDP, Some((5000, 53)), 10));
    assert_eq!(inner.transport_offset, 64);

    let chain: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    assert_eq!(parse(&ipv6(60, 0, &chain)).expect("valid").ports, None);
    assert_eq!(parse(&ipv6(59, 0, b"")).expect("valid").ports, None);
}

#[test]
fn contradictions_are_refused() {
    assert_eq!(parse(&[]), Err(PacketError::Empty));
    assert_eq!(parse(&[0x50; 40]), Err(PacketError::Version));
    let whole = ipv4(PROTO_TCP, 0, &[], 0, &tcp(0, &[], b"x"));
    assert_eq!(parse(&whole[..19]), Err(PacketError::Truncated));
    assert_eq!(parse(&whole[..40]), Err(PacketError::Truncated));
    let mut short_header = whole.clone();
    short_header[0] = 0x44;
    assert_eq!(parse(&short_header), Err(PacketError::BadLength));
    let whole = ipv6(PROTO_UDP, 0, &[0; 8]);
    assert_eq!(parse(&whole[..47]), Err(PacketError::Truncated));
}

#[test]
fn ce_is_set_only_on_ect_and_keeps_the_checksum() {
    for (bits, marked) in [(0u8, false), (1, true), (2, true), (3, true)] {
        let mut p = ipv4(PROTO_UDP, 0xb8 | bits, &[], 0, &[0; 8]);
        assert_eq!(set_ce(&mut p), marked);
        assert_eq!(sum(&p[..20], 0), 0xffff, "header checksum holds");
        assert_eq!(parse(&p).expect("valid").ecn, if marked { Ecn::Ce } else { Ecn::NotEct });
        assert_eq!(parse(&p).expect("valid").dscp, 46);

        let before = ipv6(PROTO_UDP, 0xb8 | bits, &[0; 8]);
        let mut p = before.clone();
        assert_eq!(set_ce(&mut p), marked);
        let inner = parse(&p).expect("valid");
        assert_eq!((inner.ecn, inner.dscp), (if marked { Ecn::Ce } else { Ecn::NotEct }, 46));
        p[1] = before[1];
        assert_eq!(p, before, "nothing but the ECN bits changed");
    }
}

#[test]
fn mss_is_lowered_at_any_offset_and_never_raised() {
    for options in [&[2, 4, 0x05, 0xb4][..], &[1, 2, 4, 0x05, 0xb4, 1, 1, 1], &[8, 3, 0, 2, 4, 0x05, 0xb4, 0]]
    {
        let mut p = with_tcp_checksum(ipv4(PROTO_TCP, 0, &[], 0, &tcp(tcp_flags::SYN, options, b"")));
        assert!(clamp_mss(&mut p, 1344, 1324));
        assert_eq!(sum(&p[20..], pseudo_v4(&p, PROTO_TCP, p.len() - 20)), 0xffff);
        let at = p.windows(4).position(|w| w == [2, 4, 0x05, 0x40]).expect("clamped option");
        assert!(at >= 40);
        let clamped = p.clone();
        assert!(!clamp_mss(&mut p, 1400, 1400), "a smaller MSS stays");
        assert_eq!(p, clamped);
    }
    let mut p = ipv6(PROTO_TCP, 0, &tcp(tcp_flags::SYN | tcp_flags::ACK, &[2, 4, 0x05, 0xa0], b""));
    assert!(clamp_mss(&mut p, 1, 1324));
    assert_eq!(&p[60..64], &[2, 4, 0x05, 0x2c]);
    let mut no_syn = ipv4(PROTO_TCP, 0, &[], 0, &tcp(tcp_flags::ACK, &[2, 4, 0x05, 0xb4], b""));
    assert!(!clamp_mss(&mut no_syn, 1344, 1324));
    let mut no_option = ipv4(PROTO_TCP, 0, &[], 0, &tcp(tcp_flags::SYN, &[2, 0, 0, 0], b""));
    assert!(!clamp_mss(&mut no_option, 1344, 1324), "an option of length 0 ends the search");
}

/// Bytes that look enough like a packet to reach the deeper branches.
fn nearly_a_packet() -> impl Strategy<Value = Vec<u8>> {
    let body = proptest::collection::vec(any::<u8>(), 0..120);
    let next = proptest::sample::select(vec![0u8, 1, 6, 17, 43, 44, 51, 58, 59, 60, 135, 200]);
    (any::<bool>(), next, any::<u8>(), any::<u16>(), body).prop_map(|(v4, next, tos, fragment, body)| {
        if v4 { ipv4(next, tos, &[], fragment, &body) } else { ipv6(next, tos, &body) }
    })
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
        let mut edited = bytes.clone();
        set_ce(&mut edited);
        clamp_mss(&mut edited, 1200, 1200);
        prop_assert_eq!(edited.len(), bytes.len());
    }

    #[test]
    fn never_panics_on_truncated_or_flipped_packets(
        packet in nearly_a_packet(), cut in 0usize..200, flip in 0usize..200, value: u8,
    ) {
        let mut bytes = packet;
        if let Some(byte) = bytes.get_mut(flip) {
            *byte = value;
        }
        bytes.truncate(cut);
        if let Ok(inner) = parse(&bytes) {
            prop_assert!(inner.len <= bytes.len());
            prop_assert!(inner.transport_offset <= inner.len);
            if let Some(tcp) = inner.tcp {
                prop_assert_eq!(inner.transport_offset + tcp.header_len + tcp.payload_len, inner.len);
            }
        }
        clamp_mss(&mut bytes, 1200, 1200);
        set_ce(&mut bytes);
    }

    #[test]
    fn clamping_keeps_the_checksum(mss: u16, limit: u16, pad in 0usize..4, seq: u16) {
        let mut options = vec![1u8; pad];
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
        options.resize(8, 0);
        let mut segment = tcp(tcp_flags::SYN, &options, b"");
        segment[6..8].copy_from_slice(&seq.to_be_bytes());
        let mut p = with_tcp_checksum(ipv4(PROTO_TCP, 0, &[], 0, &segment));
        prop_assert_eq!(clamp_mss(&mut p, limit, limit), mss > limit);
        prop_assert_eq!(sum(&p[20..], pseudo_v4(&p, PROTO_TCP, p.len() - 20)), 0xffff);
    }
}
