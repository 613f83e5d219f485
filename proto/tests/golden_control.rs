//! Golden vectors of control messages: framed, as they travel over QUIC.
//!
//! Goal and origin of the bytes: as in `golden.rs`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mwb_proto::control::{
    self, Bye, Decoded, FrameDecoder, Gateway, Hello, Message, PathAccept, PathJoin, PathRefuse, PeerBeat,
    RefuseReason, UplinkAnnounce, UplinkInfo, UplinkKind,
};

const HELLO: [u8; 38] = [
    0x00, 0x00, 0x00, 0x22, // length
    0x00, 0x01, // kind
    0x02, 0x02, 0xfb, 0x01, 0x03, // versions 2, 0x301
    0xfd, 0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // capabilities
    0x04, 0x65, 0x64, 0x67, 0x65, // name
    0xfd, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, // node instance
    0x03, 0xaa, 0xbb, 0xcc, // record
];

/// The same as an answer.
#[rustfmt::skip]
const HELLO_ACK: [u8; 38] = [
    0x00, 0x00, 0x00, 0x22, // length
    0x00, 0x02, // kind
    0x02, 0x02, 0xfb, 0x01, 0x03, // versions 2, 0x301
    0xfd, 0x01, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, // capabilities
    0x04, 0x65, 0x64, 0x67, 0x65, // name
    0xfd, 0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe, // node instance
    0x03, 0xaa, 0xbb, 0xcc, // record
];

/// A path join.
#[rustfmt::skip]
const PATH_JOIN: [u8; 46] = [
    0x00, 0x00, 0x00, 0x2a, // length
    0x00, 0x03, // kind
    0xfd, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // session
    0x03, // path
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, // nonce
    0xfc, 0x0d, 0xf0, 0xfe, 0xca, // receiver index
    0x02, 0x01, 0x02, // suites
    0xff, // incarnation: one raw byte
    0x04, 0x6c, 0x74, 0x65, 0x30, // link name
];

/// A path accept.
#[rustfmt::skip]
const PATH_ACCEPT: [u8; 79] = [
    0x00, 0x00, 0x00, 0x4b, // length
    0x00, 0x04, // kind
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, // nonce
    0xfa, // receiver index
    0x01, // suite
    0x01, 0x0a, 0x4d, 0x00, 0x02, 0x18, // inner IPv4
    0x01, 0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // inner IPv6
    0x02, 0x40,
    0x01, 0x0a, 0x4d, 0x00, 0x01, // gateway
    0xfb, 0x8c, 0x05, // inner MTU
    0x02, // resolvers
    0x00, 0x09, 0x09, 0x09, 0x09, // IPv4 9.9.9.9
    0x01, 0x20, 0x01, 0x0d, 0xb8, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // IPv6 2001:db8::1
    0x01,
];

/// A path accept without what is optional.
#[rustfmt::skip]
const PATH_ACCEPT_BARE: [u8; 33] = [
    0x00, 0x00, 0x00, 0x1d, // length
    0x00, 0x04, // kind
    0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, // nonce
    0xfb, 0xfb, 0x00, // receiver index
    0x02, // suite
    0x00, // no inner IPv4
    0x00, // no inner IPv6
    0x00, // no gateway
    0xfb, 0x00, 0x05, // inner MTU
    0x00, // no resolvers
];

/// A path refusal, reason 3 (no common suite).
#[rustfmt::skip]
const PATH_REFUSE: [u8; 16] = [
    0x00, 0x00, 0x00, 0x0c, // length
    0x00, 0x05, // kind
    0x03, // reason
    0x08, 0x6e, 0x6f, 0x20, 0x73, 0x75, 0x69, 0x74, 0x65, // text
];

/// A farewell.
#[rustfmt::skip]
const BYE: [u8; 15] = [
    0x00, 0x00, 0x00, 0x0b, // length
    0x00, 0x06, // kind
    0x08, 0x73, 0x74, 0x6f, 0x70, 0x70, 0x69, 0x6e, 0x67, // reason
];

/// Old messages stay readable: each is the only encoding of its value.
#[test]
fn control_messages() {
    let hello = Hello {
        versions: vec![2, 0x301],
        capabilities: 0x1_0000_0001,
        name: "edge".into(),
        node_instance: 0xfedc_ba98_7654_3210,
        record: vec![0xaa, 0xbb, 0xcc],
    };
    let nonce: [u8; 16] = std::array::from_fn(|i| i as u8);
    let join = PathJoin {
        session: 0x1122_3344_5566_7788,
        path: 3,
        nonce,
        receiver: 0xcafe_f00d,
        suites: vec![1, 2],
        incarnation: 255,
        link_name: "lte0".into(),
    };
    let accept = PathAccept {
        nonce,
        receiver: 250,
        suite: 1,
        inner_v4: Some(([10, 77, 0, 2], 24)),
        inner_v6: Some(([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2], 64)),
        gateway_v4: Some([10, 77, 0, 1]),
        inner_mtu: 1420,
        dns: vec![
            IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9)),
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        ],
    };
    let bare = PathAccept {
        nonce,
        receiver: 251,
        suite: 2,
        inner_v4: None,
        inner_v6: None,
        gateway_v4: None,
        inner_mtu: 1280,
        dns: vec![],
    };
    let refuse = PathRefuse { reason: RefuseReason::NoSuite, text: "no suite".into() };
    let golden: [(Message, &[u8]); 7] = [
        (Message::Hello(hello.clone()), &HELLO),
        (Message::HelloAck(hello), &HELLO_ACK),
        (Message::PathJoin(join), &PATH_JOIN),
        (Message::PathAccept(accept), &PATH_ACCEPT),
        (Message::PathAccept(bare), &PATH_ACCEPT_BARE),
        (Message::PathRefuse(refuse), &PATH_REFUSE),
        (Message::Bye(Bye { reason: "stopping".into() }), &BYE),
    ];
    for (message, bytes) in golden {
        assert_eq!(encoded(|out| control::encode(&message, out)), bytes, "{message:?}");
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes);
        assert_eq!(decoder.next(), Ok(Some(Decoded::Message(message))));
        assert_eq!(decoder.next(), Ok(None));
    }
}

/// Two messages between members of a LAN.
#[rustfmt::skip]
const PEER_BEAT: [u8; 9] = [
    0x00, 0x00, 0x00, 0x05, 0x00, 0x10, // length, kind
    0xfb, 0x2c, 0x01, // sequence
];
#[rustfmt::skip]
const UPLINK_ANNOUNCE: [u8; 48] = [
    0x00, 0x00, 0x00, 0x2c, 0x00, 0x11, // length, kind
    0x01, // one uplink
    0x07, // id
    0x05, 0x66, 0x69, 0x62, 0x72, 0x65, // name
    0x02, // kind: fibre
    0x01, 0x00, 0x01, // up, not lent, metered
    0xfc, 0x00, 0x5a, 0x62, 0x02, // rate up
    0xfd, 0x00, 0xf2, 0x05, 0x2a, 0x01, 0x00, 0x00, 0x00, // rate down
    0xfb, 0x20, 0x4e, // round trip
    0xfa, // loss
    0x01, 0x00, 0xc0, 0xa8, 0x08, 0x01, 0x02, 0x00, 0x00, 0x00, 0x00, 0x01, // router
];

#[test]
fn lan_messages() {
    let announce = UplinkAnnounce {
        uplinks: vec![UplinkInfo {
            id: 7,
            name: "fibre".into(),
            kind: UplinkKind::Fiber,
            up: true,
            lend: false,
            metered: true,
            rate_up: 40_000_000,
            rate_down: 5_000_000_000,
            rtt_us: 20_000,
            loss_ppm: 250,
            gateway: Some(Gateway { address: [192, 168, 8, 1].into(), mac: [2, 0, 0, 0, 0, 1] }),
        }],
    };
    let cases: [(Message, &[u8]); 2] = [
        (Message::PeerBeat(PeerBeat { sequence: 300 }), &PEER_BEAT),
        (Message::UplinkAnnounce(announce), &UPLINK_ANNOUNCE),
    ];
    for (message, bytes) in cases {
        assert_eq!(encoded(|out| control::encode(&message, out)), bytes, "{message:?}");
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes);
        assert_eq!(decoder.next(), Ok(Some(Decoded::Message(message))));
    }
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}
