//! Goal: a control stream is read right however it is cut, is bounded in memory whatever it says, and
//! nothing on it panics. Method: random messages in random pieces; the hostile lengths that make
//! bincode allocate without a limit; every truncation and bit flip.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::mesh::{RECORD_LEN_MAX, REVOCATION_LEN};

fn text(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>().prop_filter("printable", |c| !c.is_control()), 0..=max / 4)
        .prop_map(|chars| chars.into_iter().collect())
}

fn hello() -> impl Strategy<Value = Hello> {
    (
        prop::collection::vec(any::<u16>(), 0..=16),
        any::<u64>(),
        text(NAME_MAX),
        any::<u64>(),
        bytes(RECORD_LEN_MAX),
    )
        .prop_map(|(versions, capabilities, name, node_instance, record)| Hello {
            versions,
            capabilities,
            name,
            node_instance,
            record,
        })
}

/// Mostly short, so that the tests of every bit stay quick.
fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        9 => prop::collection::vec(any::<u8>(), 0..=20),
        1 => Just(vec![0xab; max]),
    ]
}

fn join_request() -> impl Strategy<Value = JoinRequest> {
    let address = (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
    (any::<([u8; 16], [u8; 8], [u8; 32])>(), text(NAME_MAX), prop::collection::vec(address, 0..=4)).prop_map(
        |((mesh, invite, proof), name, addresses)| JoinRequest { mesh, invite, proof, name, addresses },
    )
}

fn member_list() -> impl Strategy<Value = MemberList> {
    let (records, revocations) = (bytes(RECORD_LEN_MAX), bytes(REVOCATION_LEN));
    (prop::collection::vec(records, 0..3), prop::collection::vec(revocations, 0..3))
        .prop_map(|(records, revocations)| MemberList { records, revocations })
}

fn path_join() -> impl Strategy<Value = PathJoin> {
    (
        (any::<u64>(), any::<u8>(), any::<[u8; 16]>(), any::<u32>()),
        (prop::collection::vec(any::<u8>(), 0..=8), any::<u8>(), text(NAME_MAX)),
    )
        .prop_map(|((session, path, nonce, receiver), (suites, incarnation, link_name))| PathJoin {
            session,
            path,
            nonce,
            receiver,
            suites,
            incarnation,
            link_name,
        })
}

fn path_accept() -> impl Strategy<Value = PathAccept> {
    (
        (any::<[u8; 16]>(), any::<u32>(), any::<u8>()),
        prop::option::of((any::<[u8; 4]>(), 0_u8..=32)),
        prop::option::of((any::<[u8; 16]>(), 0_u8..=128)),
        prop::option::of(any::<[u8; 4]>()),
        any::<u16>(),
        prop::collection::vec(any::<IpAddr>(), 0..=8),
    )
        .prop_map(|((nonce, receiver, suite), inner_v4, inner_v6, gateway_v4, inner_mtu, dns)| {
            PathAccept { nonce, receiver, suite, inner_v4, inner_v6, gateway_v4, inner_mtu, dns }
        })
}

fn lease_message() -> impl Strategy<Value = Message> {
    let address = (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port));
    let request = (any::<(u64, u8, [u8; 32])>(), address).prop_map(|((lease, uplink, exit), address)| {
        Message::LeaseRequest(LeaseRequest { lease, uplink, exit, address })
    });
    let accept = any::<(u64, u16, u32, u64)>().prop_map(|(lease, port, ttl_ms, bytes_left)| {
        Message::LeaseAccept(LeaseAccept { lease, port, ttl_ms, bytes_left })
    });
    let refuse = (any::<u64>(), any::<u8>(), text(TEXT_MAX)).prop_map(|(lease, reason, text)| {
        Message::LeaseRefuse(LeaseRefuse { lease, reason: reason.into(), text })
    });
    let end =
        (any::<u64>(), text(TEXT_MAX)).prop_map(|(lease, text)| Message::LeaseEnd(LeaseEnd { lease, text }));
    let grant = any::<(u64, u64, u64, u64)>().prop_map(|(lease, up, down, bytes)| RateGrant {
        lease,
        up,
        down,
        bytes,
    });
    let grants =
        prop::collection::vec(grant, 0..=8).prop_map(|grants| Message::RateGrants(RateGrants { grants }));
    let limit = any::<u64>().prop_map(|rate_max| Message::PathLimit(PathLimit { rate_max }));
    prop_oneof![request, accept, refuse, end, grants, limit]
}

#[test]
fn grants_and_texts_beyond_their_bounds_are_cut() {
    let grant = RateGrant { lease: 1, up: 2, down: 3, bytes: 4 };
    let long = Message::RateGrants(RateGrants { grants: vec![grant; GRANTS_MAX + 1] });
    let cut = Message::RateGrants(RateGrants { grants: vec![grant; GRANTS_MAX] });
    assert_eq!(decode_all(&encoded(&long)), Ok(vec![Decoded::Message(cut)]));
    let end = |len: usize| Message::LeaseEnd(LeaseEnd { lease: 1, text: "x".repeat(len) });
    assert_eq!(decode_all(&encoded(&end(TEXT_MAX + 9))), Ok(vec![Decoded::Message(end(TEXT_MAX))]));
}

fn uplink_info() -> impl Strategy<Value = UplinkInfo> {
    let gateway = (any::<IpAddr>(), any::<[u8; 6]>()).prop_map(|(address, mac)| Gateway { address, mac });
    (
        (any::<u8>(), text(NAME_MAX), any::<u8>(), any::<[bool; 3]>()),
        (any::<[u64; 2]>(), any::<[u32; 2]>(), prop::option::of(gateway)),
    )
        .prop_map(
            |((id, name, kind, [up, lend, metered]), ([rate_up, rate_down], [rtt_us, loss_ppm], gateway))| {
                let kind = kind.into();
                UplinkInfo {
                    id,
                    name,
                    kind,
                    up,
                    lend,
                    metered,
                    rate_up,
                    rate_down,
                    rtt_us,
                    loss_ppm,
                    gateway,
                }
            },
        )
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        lease_message(),
        hello().prop_map(Message::Hello),
        hello().prop_map(Message::HelloAck),
        path_join().prop_map(Message::PathJoin),
        path_accept().prop_map(Message::PathAccept),
        (any::<u8>(), text(TEXT_MAX))
            .prop_map(|(reason, text)| Message::PathRefuse(PathRefuse { reason: reason.into(), text })),
        text(TEXT_MAX).prop_map(|reason| Message::Bye(Bye { reason })),
        any::<u64>().prop_map(|sequence| Message::PeerBeat(PeerBeat { sequence })),
        prop::collection::vec(uplink_info(), 0..3)
            .prop_map(|uplinks| Message::UplinkAnnounce(UplinkAnnounce { uplinks })),
        join_request().prop_map(Message::JoinRequest),
        (any::<[u8; 32]>(), bytes(RECORD_LEN_MAX))
            .prop_map(|(proof, record)| Message::JoinAccept(JoinAccept { proof, record })),
        (any::<u8>(), text(TEXT_MAX))
            .prop_map(|(reason, text)| Message::JoinRefuse(JoinRefuse { reason: reason.into(), text })),
        member_list().prop_map(Message::MemberList),
    ]
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    encode(message, &mut out);
    out
}

fn bye(reason: &str) -> Message {
    Message::Bye(Bye { reason: reason.into() })
}

fn decode_all(bytes: &[u8]) -> Result<Vec<Decoded>, ControlError> {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes);
    let mut all = Vec::new();
    while let Some(decoded) = decoder.next()? {
        all.push(decoded);
    }
    Ok(all)
}

proptest! {
    #[test]
    fn messages_pass_however_the_stream_is_cut(
        messages in prop::collection::vec(message(), 1..6),
        cuts in prop::collection::vec(1_usize..90, 1..20),
    ) {
        let stream: Vec<u8> = messages.iter().flat_map(encoded).collect();
        let mut decoder = FrameDecoder::new();
        let mut got = Vec::new();
        let (mut at, mut cuts) = (0, cuts.iter().cycle());
        while at < stream.len() {
            let end = (at + cuts.next().expect("endless")).min(stream.len());
            decoder.push(&stream[at..end]);
            at = end;
            while let Some(decoded) = decoder.next().expect("valid") {
                got.push(decoded);
            }
        }
        prop_assert_eq!(got, messages.into_iter().map(Decoded::Message).collect::<Vec<_>>());
    }

    #[test]
    fn altered_frames_are_never_taken_for_the_original(message in message()) {
        let original = Decoded::Message(message.clone());
        let bytes = encoded(&message);
        for len in 0..bytes.len() {
            prop_assert_eq!(decode_all(&bytes[..len]), Ok(Vec::new()), "cut to {}", len);
        }
        let mut flipped = bytes.clone();
        for bit in 0..bytes.len() * 8 {
            flipped[bit / 8] ^= 1 << (bit % 8);
            let first = decode_all(&flipped).map(|all| all.into_iter().next());
            prop_assert_ne!(first, Ok(Some(original.clone())), "bit {} flipped", bit);
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn bodies_have_neither_less_nor_more(message in message(), more in 1_usize..5) {
        let mut bytes = encoded(&message);
        let kind = message.kind();
        bytes.resize(bytes.len() + more, 0);
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        prop_assert_eq!(decode_all(&bytes), Err(ControlError::Malformed(kind)));
        // One byte less than the body needs, with a length that says so.
        bytes.truncate(bytes.len() - more - 1);
        let length = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        prop_assert_eq!(decode_all(&bytes), Err(ControlError::Malformed(kind)));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        kind in 0_u16..60,
        body in prop::collection::vec(any::<u8>(), 0..200),
        raw in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut frame = (body.len() as u32 + 2).to_be_bytes().to_vec();
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&body);
        let _ = decode_all(&frame);
        let _ = decode_all(&raw);
    }

    #[test]
    fn what_is_encoded_is_always_within_bounds(
        versions in prop::collection::vec(any::<u16>(), 0..40),
        name in ".*",
        reason in "\\PC{0,400}",
    ) {
        let hello = Hello { versions, capabilities: 0, name, node_instance: 0, record: vec![0; 999] };
        let all = decode_all(&[encoded(&Message::Hello(hello)), encoded(&bye(&reason))].concat());
        prop_assert!(all.is_ok_and(|all| all.len() == 2));
    }
}

#[test]
fn fields_out_of_bounds_are_cut_on_the_way_out() {
    let join = |suites: usize, name: &str| {
        Message::PathJoin(PathJoin {
            session: 1,
            path: 2,
            nonce: [3; 16],
            receiver: 4,
            suites: vec![1; suites],
            incarnation: 5,
            link_name: name.into(),
        })
    };
    let long = "ü".repeat(40);
    let sent = decode_all(&encoded(&join(9, &format!("x{long}\n")))).expect("cut");
    // 64 bytes would end inside of a character.
    assert_eq!(sent, [Decoded::Message(join(8, &format!("x{}", "ü".repeat(31))))]);
    assert_eq!(
        decode_all(&encoded(&bye("line\nfeed\u{1b}[2J"))).expect("cut"),
        [Decoded::Message(bye("line feed [2J"))],
    );
    let accept = |v4, v6, dns| {
        Message::PathAccept(PathAccept {
            nonce: [0; 16],
            receiver: 0,
            suite: 1,
            inner_v4: Some(([10, 0, 0, 1], v4)),
            inner_v6: Some(([0; 16], v6)),
            gateway_v4: None,
            inner_mtu: 1280,
            dns: vec![IpAddr::V4(Ipv4Addr::LOCALHOST); dns],
        })
    };
    assert_eq!(
        decode_all(&encoded(&accept(33, 129, 9))).expect("cut"),
        [Decoded::Message(accept(32, 128, 8))],
    );
}

/// A frame of `kind` whose body is what bincode makes of `value`, bounds or not.
fn unbounded(kind: u16, value: impl serde::Serialize) -> Vec<u8> {
    let body = bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("encodes");
    let mut frame = (body.len() as u32 + 2).to_be_bytes().to_vec();
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&body);
    frame
}

#[test]
fn fields_out_of_bounds_are_refused_on_the_way_in() {
    let hello = |versions: usize, name: &str| {
        decode_all(&unbounded(1, (vec![1_u16; versions], 0_u64, name, 0_u64, Vec::<u8>::new())))
            .map(|all| all.len())
    };
    assert_eq!(hello(16, &"x".repeat(64)), Ok(1));
    assert_eq!(hello(17, ""), Err(ControlError::OutOfBounds(1)));
    assert_eq!(hello(1, &"x".repeat(65)), Err(ControlError::OutOfBounds(1)));
    assert_eq!(hello(1, "a\tb"), Err(ControlError::OutOfBounds(1)));
    let join = |suites: usize, name: &str| {
        decode_all(&unbounded(3, (0_u64, 0_u8, [0_u8; 16], 0_u32, vec![1_u8; suites], 0_u8, name)))
            .map(|all| all.len())
    };
    assert_eq!(join(8, "lte"), Ok(1));
    assert_eq!(join(9, "lte"), Err(ControlError::OutOfBounds(3)));
    assert_eq!(join(8, &"x".repeat(65)), Err(ControlError::OutOfBounds(3)));
    let accept = |v4: u8, v6: u8, dns: usize| {
        let dns = vec![IpAddr::V6(Ipv6Addr::LOCALHOST); dns];
        let (v4, v6, gateway) = (Some(([0_u8; 4], v4)), Some(([0_u8; 16], v6)), None::<[u8; 4]>);
        decode_all(&unbounded(4, ([0_u8; 16], 0_u32, 1_u8, v4, v6, gateway, 1400_u16, dns)))
            .map(|all| all.len())
    };
    assert_eq!(accept(32, 128, 8), Ok(1));
    for out in [accept(33, 128, 8), accept(32, 129, 8), accept(32, 128, 9)] {
        assert_eq!(out, Err(ControlError::OutOfBounds(4)));
    }
    let refuse = |text: String| decode_all(&unbounded(5, (9_u8, text))).map(|all| all.len());
    assert_eq!(refuse("x".repeat(256)), Ok(1));
    assert_eq!(refuse("x".repeat(257)), Err(ControlError::OutOfBounds(5)));
    let bye = |text: String| decode_all(&unbounded(6, (text,))).map(|all| all.len());
    assert_eq!(bye("x".repeat(256)), Ok(1));
    assert_eq!(bye("x".repeat(257)), Err(ControlError::OutOfBounds(6)));
    let request = |name: &str, addresses: usize| {
        let addresses = vec![SocketAddr::from(([1, 2, 3, 4], 5)); addresses];
        decode_all(&unbounded(48, ([0_u8; 16], [0_u8; 8], [0_u8; 32], name, addresses))).map(|all| all.len())
    };
    assert_eq!(request(&"x".repeat(64), 4), Ok(1));
    assert_eq!(request(&"x".repeat(65), 4), Err(ControlError::OutOfBounds(48)));
    assert_eq!(request("x", 5), Err(ControlError::OutOfBounds(48)));
    let accept = |len: usize| decode_all(&unbounded(49, ([0_u8; 32], vec![0_u8; len]))).map(|all| all.len());
    assert_eq!(accept(RECORD_LEN_MAX), Ok(1));
    assert_eq!(accept(RECORD_LEN_MAX + 1), Err(ControlError::OutOfBounds(49)));
    let list = |records: usize, len: usize, revocations: usize, revocation: usize| {
        let lists = (vec![vec![0_u8; len]; records], vec![vec![0_u8; revocation]; revocations]);
        decode_all(&unbounded(51, lists)).map(|all| all.len())
    };
    assert_eq!(list(LIST_MAX, RECORD_LEN_MAX, LIST_MAX, REVOCATION_LEN), Ok(1));
    for out in [
        list(LIST_MAX + 1, 1, 0, 0),
        list(1, RECORD_LEN_MAX + 1, 0, 0),
        list(0, 0, LIST_MAX + 1, 1),
        list(0, 0, 1, REVOCATION_LEN + 1),
    ] {
        assert_eq!(out, Err(ControlError::OutOfBounds(51)));
    }
}

/// One uplink as bincode sees it, with this name.
fn announced(name: &str) -> impl serde::Serialize {
    let gateway = None::<(IpAddr, [u8; 6])>;
    ((0_u8, name.to_owned(), 200_u8, true, false, true), (0_u64, 1_u64, 2_u32, 3_u32, gateway))
}

#[test]
fn announcements_are_bounded_both_ways() {
    let announce = |uplinks: usize, name: &str| {
        let uplinks: Vec<_> = (0..uplinks).map(|_| announced(name)).collect();
        decode_all(&unbounded(17, (uplinks,))).map(|all| all.len())
    };
    assert_eq!(announce(ANNOUNCED_MAX, &"x".repeat(NAME_MAX)), Ok(1));
    assert_eq!(announce(ANNOUNCED_MAX + 1, "x"), Err(ControlError::OutOfBounds(17)));
    assert_eq!(announce(1, &"x".repeat(NAME_MAX + 1)), Err(ControlError::OutOfBounds(17)));
    assert_eq!(announce(1, "a\nb"), Err(ControlError::OutOfBounds(17)));

    let info = |name: &str| UplinkInfo {
        id: 1,
        name: name.to_owned(),
        kind: UplinkKind::Lte,
        up: true,
        lend: true,
        metered: false,
        rate_up: u64::MAX,
        rate_down: 0,
        rtt_us: u32::MAX,
        loss_ppm: 0,
        gateway: None,
    };
    let all = |count: usize, name: &str| {
        Message::UplinkAnnounce(UplinkAnnounce { uplinks: vec![info(name); count] })
    };
    let (sent, cut) = (all(ANNOUNCED_MAX + 1, &"x".repeat(99)), all(ANNOUNCED_MAX, &"x".repeat(NAME_MAX)));
    assert_eq!(decode_all(&encoded(&sent)), Ok(vec![Decoded::Message(cut)]));
}

/// Twelve bytes that ask bincode for 2^60 bytes of list. Without a limit the process ends.
#[test]
fn a_list_of_hostile_length_is_refused() {
    for kind in (1..=6).chain([17, 51]) {
        let mut body = vec![0xfd];
        body.extend_from_slice(&0x0fff_ffff_ffff_ffff_u64.to_le_bytes());
        body.extend_from_slice(&[0; 3]);
        assert_eq!(body.len(), 12);
        let mut frame = 14_u32.to_be_bytes().to_vec();
        frame.extend_from_slice(&[0, kind]);
        frame.extend_from_slice(&body);
        assert_eq!(decode_all(&frame), Err(ControlError::Malformed(kind.into())), "kind {kind}");
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_its_frame_is_buffered() {
    for length in [FRAME_MAX as u32 + 1, 1 << 24, u32::MAX] {
        let mut decoder = FrameDecoder::new();
        // The length field in two pieces: known only with its last byte.
        decoder.push(&length.to_be_bytes()[..3]);
        assert_eq!(decoder.next(), Ok(None));
        decoder.push(&[&length.to_be_bytes()[3..], &[0xab; 1000]].concat());
        assert_eq!(decoder.buffer.capacity(), 0);
        for _ in 0..2 {
            assert_eq!(decoder.next(), Err(ControlError::TooLong(length)));
            decoder.push(&encoded(&bye("")));
        }
        assert_eq!(decoder.buffer.capacity(), 0, "an error is final and keeps nothing");
    }
    for length in [0_u32, 1] {
        assert_eq!(decode_all(&length.to_be_bytes()), Err(ControlError::TooShort(length)));
    }
    // Behind a good frame the length is seen when that one has been taken.
    let mut stream = encoded(&bye("one"));
    stream.extend_from_slice(&u32::MAX.to_be_bytes());
    let mut decoder = FrameDecoder::new();
    decoder.push(&stream);
    assert_eq!(decoder.next(), Ok(Some(Decoded::Message(bye("one")))));
    assert_eq!(decoder.next(), Err(ControlError::TooLong(u32::MAX)));
}

#[test]
fn the_decoder_holds_two_frames_at_most() {
    let mut frame = (FRAME_MAX as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&[0x7f, 0xff]);
    frame.resize(4 + FRAME_MAX, 0);
    let mut decoder = FrameDecoder::new();
    for _ in 0..5 {
        decoder.push(&frame);
        assert_eq!(decoder.next(), Ok(Some(Decoded::Unknown(0x7fff))));
    }
    decoder.push(&frame);
    decoder.push(&frame);
    decoder.push(&[0]);
    assert_eq!(decoder.next(), Err(ControlError::Overrun));
}

#[test]
fn unknown_kinds_are_skipped() {
    let mut stream = encoded(&bye("one"));
    stream.extend_from_slice(&[0, 0, 0, 5, 0x12, 0x34, 1, 2, 3]);
    stream.extend_from_slice(&[0, 0, 0, 2, 0, 0]);
    stream.extend_from_slice(&encoded(&bye("two")));
    assert_eq!(
        decode_all(&stream),
        Ok(vec![
            Decoded::Message(bye("one")),
            Decoded::Unknown(0x1234),
            Decoded::Unknown(0),
            Decoded::Message(bye("two")),
        ])
    );
}

#[test]
fn a_stranger_gets_a_lower_limit() {
    let mut decoder = FrameDecoder::new();
    decoder.set_frame_max(20);
    decoder.push(&encoded(&bye("short")));
    assert_eq!(decoder.next(), Ok(Some(Decoded::Message(bye("short")))));
    let long = encoded(&bye("longer than twenty bytes"));
    decoder.set_frame_max(usize::MAX);
    decoder.push(&long);
    assert_eq!(decoder.next(), Ok(Some(Decoded::Message(bye("longer than twenty bytes")))));
    decoder.set_frame_max(20);
    decoder.push(&long);
    assert_eq!(decoder.next(), Err(ControlError::TooLong(27)));
}

#[test]
fn reasons_keep_their_numbers() {
    for code in 0..=u8::MAX {
        assert_eq!(u8::from(RefuseReason::from(code)), code);
        assert_eq!(u8::from(JoinRefuseReason::from(code)), code);
        assert_eq!(u8::from(UplinkKind::from(code)), code);
    }
}
