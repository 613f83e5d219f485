//! Golden vectors: every frame, the key schedule and sealed datagrams, written out.
//!
//! Goal: the wire does not change by accident, and a stranger can test an implementation against it.
//! The bytes were computed by another program (Python, hashlib and OpenSSL), not by this crate. A change that breaks one of these is a new version of the format.

use aws_lc_rs::aead::{AES_128_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use mwb_proto::seal::{Opener, Role, Sealer, Suite, derive};
use mwb_proto::time::Stamp;
use mwb_proto::wire::v1::V1Header;
use mwb_proto::wire::v2::{CLEAR_LEN, Class, Clear, DataHeader, Flags, FrameType, TAG_LEN};
use mwb_proto::wire::{
    Bundle, Bundled, Fragment, Heartbeat, HeartbeatKind, MissingRange, PathId, PathReport, Report, Skip,
    SkipRun,
};

/// A v1 packet with the payload `mwb`.
#[rustfmt::skip]
const V1_PACKET: [u8; 41] = [
    0x01, // version
    0x00, // type: data
    0x00, 0x21, // flags: duplicate, last fragment
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // session
    0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // sequence
    0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, // timestamp
    0x03, // WAN
    0x80, // priority
    0x00, 0x00, 0x00, 0x03, // data length
    0xf1, 0xd6, 0x2e, 0x6b, // CRC-32
    0x6d, 0x77, 0x62, // payload
];

/// A clear header, key phase 1.
#[rustfmt::skip]
const CLEAR: [u8; 10] = [
    0xa6, // phase 1, version 010, type 6
    0x57, // flags 010101, class 11
    0xca, 0xfe, 0xf0, 0x0d, // receiver index
    0x01, 0x02, 0x03, 0x04, // path sequence, low half
];

/// The body of a data frame (before sealing).
#[rustfmt::skip]
const DATA_BODY: [u8; 23] = [
    0x0a, 0x0b, 0x0c, // sent
    0x12, 0x34, // lane
    0x56, 0x78, 0x9a, // lane sequence
    0x07, // incarnation
    0x02, // unqueued
    0x45, 0x69, 0x6e, 0x6e, 0x65, 0x72, 0x20, 0x70, 0x61, 0x63, 0x6b, 0x65, 0x74, // inner packet
];

/// The body of a bundle of two packets; the second's lane is not put in order.
#[rustfmt::skip]
const BUNDLE_BODY: [u8; 34] = [
    0x0a, 0x0b, 0x0c, // sent
    0x07, // incarnation
    0x12, 0x34, // lane
    0x56, 0x78, 0x9a, // lane sequence
    0x00, 0x0d, // length
    0x45, 0x69, 0x6e, 0x6e, 0x65, 0x72, 0x20, 0x70, 0x61, 0x63, 0x6b, 0x65, 0x74, // inner packet
    0xff, 0xff, // lane
    0x00, 0x00, 0x09, // lane sequence
    0x00, 0x03, // length
    0x6d, 0x77, 0x62, // inner packet
];

/// A ping.
#[rustfmt::skip]
const PING: [u8; 9] = [
    0x0a, 0x0b, 0x0c, // sent
    0x00, // kind
    0x01, 0x02, // id
    0x00, 0x00, 0x00, // echo
];

/// The pong that answers it.
#[rustfmt::skip]
const PONG: [u8; 9] = [
    0x0d, 0x0e, 0x0f, // sent
    0x01, // kind
    0x01, 0x02, // id
    0x0a, 0x0b, 0x0c, // echo
];

/// A tail probe.
#[rustfmt::skip]
const TAIL: [u8; 9] = [
    0xff, 0xff, 0xff, // sent
    0x02, // kind
    0xff, 0xff, // id
    0x00, 0x00, 0x00, // echo
];

/// A report of two paths; the second has two holes.
#[rustfmt::skip]
const REPORT: [u8; 65] = [
    0x0a, 0x0b, 0x0c, // sent
    0x01, 0x02, 0x03, 0x04, // number
    0x0a, 0x0b, 0x00, // time
    0x02, // paths
    0x00, // path
    0x00, // missing ranges
    0x00, 0x00, 0x10, 0x00, // highest
    0x00, 0x10, // highest age
    0x00, 0xab, 0xcd, 0xef, // received bytes
    0x00, 0x00, // CE
    0xff, 0xff, 0xf0, // owd min
    0x00, 0x05, // owd mean excess
    0x00, 0x03, // owd highest excess
    0x0f, 0xff, // floor
    0x03, // path
    0x02, // missing ranges
    0x80, 0x00, 0x00, 0x05, // highest
    0x00, 0xff, // highest age
    0xff, 0xff, 0xff, 0xfe, // received bytes
    0x01, 0x02, // CE
    0x00, 0x11, 0x22, // owd min
    0x02, 0x03, // owd mean excess
    0x04, 0x05, // owd highest excess
    0x01, 0x00, // floor
    0x00, 0x02, 0x00, 0x01, // 1 from highest - 2 on
    0x00, 0x20, 0x00, 0x04, // 4 from highest - 32 on
];

/// A skip of two runs; the second goes on behind the wrap of the lane sequence.
#[rustfmt::skip]
const SKIP: [u8; 17] = [
    0x0a, 0x0b, 0x0c, // sent
    0x07, // incarnation
    0x02, // runs
    0x12, 0x34, 0x56, 0x78, 0x9a, 0x01, // one packet
    0x00, 0x09, 0xff, 0xff, 0xff, 0x03, // three packets
];

/// HKDF-Extract of exporter and nonces.
#[rustfmt::skip]
const PRK: [u8; 32] = [
    0x58, 0x8f, 0x7c, 0xe2, 0xb5, 0x18, 0x2f, 0x45, 0x47, 0xf2, 0xf8, 0x0a, 0x86, 0xa3, 0x4a, 0xa5,
    0xf4, 0x2b, 0x9e, 0xfc, 0x06, 0x32, 0x9b, 0x5d, 0xe5, 0x60, 0x5f, 0x61, 0x42, 0x9b, 0x0d, 0xa0,
];

/// Initiator to responder, epoch 0.
#[rustfmt::skip]
const SECRET_I2R_0: [u8; 32] = [
    0x47, 0x33, 0x98, 0xd8, 0x3e, 0xcc, 0xc6, 0xea, 0x2b, 0x27, 0xec, 0x05, 0xa5, 0x85, 0xc8, 0x99,
    0x41, 0x8d, 0x33, 0xd6, 0x63, 0x06, 0xa8, 0xdf, 0x8d, 0x4a, 0x34, 0x09, 0xf1, 0x51, 0x66, 0xa2,
];

/// Responder to initiator, epoch 0.
#[rustfmt::skip]
const SECRET_R2I_0: [u8; 32] = [
    0xd5, 0xc7, 0x95, 0x0d, 0x87, 0x64, 0x08, 0x82, 0xd2, 0x80, 0x91, 0x9f, 0x92, 0xf8, 0xa0, 0xed,
    0xae, 0x12, 0x82, 0x73, 0xa8, 0x09, 0x85, 0xc5, 0xd9, 0x78, 0x09, 0xda, 0xb3, 0x66, 0x3c, 0xe0,
];

/// Initiator to responder, epoch 1.
#[rustfmt::skip]
const SECRET_I2R_1: [u8; 32] = [
    0x03, 0x57, 0x37, 0x8f, 0x8f, 0x20, 0x16, 0xdf, 0x7d, 0xe9, 0x06, 0x22, 0xd3, 0x10, 0xfa, 0xd3,
    0xa2, 0x34, 0xc8, 0xcf, 0x70, 0xf9, 0xcf, 0xe4, 0x30, 0x50, 0x16, 0xa3, 0x96, 0xeb, 0xa2, 0x28,
];

/// Key of AES, initiator to responder, epoch 0.
#[rustfmt::skip]
const KEY_AES_0: [u8; 16] = [
    0x81, 0x83, 0x22, 0x89, 0xf8, 0xe1, 0x0d, 0xd5, 0x4d, 0xe1, 0xc7, 0xe9, 0x6a, 0xa0, 0x94, 0xbb,
];

/// [`DATA_BODY`] sealed with it at path sequence 0xfffffffe.
#[rustfmt::skip]
const SEALED_AES_0: [u8; 49] = [
    0x20, // phase 0, version 010, type 0
    0x06, // flags 000001, class 10
    0xca, 0xfe, 0xf0, 0x0d, // receiver index
    0xff, 0xff, 0xff, 0xfe, // path sequence, low half
    0x9d, 0x2c, 0x6c, 0xf1, 0xde, 0x4d, 0xdb, 0x05, 0xf4, 0x2d, 0x5f, 0x88, 0xbe, 0xc1, 0xbb, 0xa2, // sealed body
    0xbe, 0x78, 0xb9, 0x19, 0xd7, 0x6c, 0x3c,
    0xad, 0x07, 0x01, 0xf6, 0x95, 0xa9, 0x28, 0x20, 0x11, 0x91, 0x25, 0xf3, 0xb2, 0x15, 0x82, 0x2d, // tag
];

/// Key of AES, initiator to responder, epoch 1.
#[rustfmt::skip]
const KEY_AES_1: [u8; 16] = [
    0xf9, 0x0a, 0xe5, 0xe6, 0x1c, 0x43, 0x75, 0xa2, 0x70, 0xf4, 0xf6, 0xb2, 0xbf, 0x3d, 0xc4, 0xb3,
];

/// [`DATA_BODY`] sealed with it at path sequence 0x100000002.
#[rustfmt::skip]
const SEALED_AES_1: [u8; 49] = [
    0xa0, // phase 1, version 010, type 0
    0x06, // flags 000001, class 10
    0xca, 0xfe, 0xf0, 0x0d, // receiver index
    0x00, 0x00, 0x00, 0x02, // path sequence, low half
    0xee, 0x10, 0x4b, 0x04, 0xcb, 0x10, 0x06, 0xbc, 0x56, 0xdc, 0x63, 0xab, 0xc7, 0x85, 0xe9, 0x16, // sealed body
    0x23, 0x49, 0xca, 0x54, 0xdf, 0x15, 0x10,
    0x4a, 0xc7, 0x78, 0xf9, 0x6a, 0x43, 0x5d, 0xb7, 0x6a, 0x89, 0x33, 0x6a, 0x95, 0xca, 0x1b, 0xbd, // tag
];

/// Key of CHACHA, initiator to responder, epoch 0.
#[rustfmt::skip]
const KEY_CHACHA_0: [u8; 32] = [
    0x42, 0xa4, 0x6f, 0x7c, 0x52, 0x0c, 0x30, 0x88, 0xff, 0x52, 0x84, 0x36, 0x9e, 0x2d, 0xa3, 0x3c,
    0x86, 0x44, 0xf2, 0xab, 0x43, 0xe2, 0xb6, 0xbd, 0x96, 0x6d, 0xde, 0x81, 0xfd, 0x97, 0x44, 0x76,
];

/// [`DATA_BODY`] sealed with it at path sequence 0xfffffffe.
#[rustfmt::skip]
const SEALED_CHACHA_0: [u8; 49] = [
    0x20, // phase 0, version 010, type 0
    0x06, // flags 000001, class 10
    0xca, 0xfe, 0xf0, 0x0d, // receiver index
    0xff, 0xff, 0xff, 0xfe, // path sequence, low half
    0xea, 0x3c, 0x42, 0xde, 0x31, 0xd5, 0xde, 0xd0, 0xd8, 0x55, 0x96, 0x20, 0xab, 0xec, 0x14, 0x97, // sealed body
    0x8d, 0xaa, 0x0b, 0x12, 0xe4, 0xeb, 0x70,
    0x2c, 0xdd, 0x16, 0x24, 0x17, 0xd4, 0xef, 0xc6, 0xbb, 0xe5, 0x47, 0xb7, 0x00, 0x0c, 0xe1, 0xa5, // tag
];

/// Key of CHACHA, initiator to responder, epoch 1.
#[rustfmt::skip]
const KEY_CHACHA_1: [u8; 32] = [
    0x9a, 0xfa, 0x62, 0x8b, 0x28, 0xc6, 0x04, 0x4f, 0x33, 0x2c, 0x44, 0x54, 0xf2, 0x26, 0x85, 0x1a,
    0x0c, 0x2a, 0xfb, 0xf5, 0x0a, 0xc3, 0x36, 0xa6, 0x7c, 0x02, 0x40, 0xef, 0x15, 0x1b, 0xa8, 0x3f,
];

/// [`DATA_BODY`] sealed with it at path sequence 0x100000002.
#[rustfmt::skip]
const SEALED_CHACHA_1: [u8; 49] = [
    0xa0, // phase 1, version 010, type 0
    0x06, // flags 000001, class 10
    0xca, 0xfe, 0xf0, 0x0d, // receiver index
    0x00, 0x00, 0x00, 0x02, // path sequence, low half
    0x1f, 0xb7, 0x9f, 0x79, 0xac, 0x87, 0x50, 0xfa, 0x6f, 0x86, 0x49, 0xb1, 0x6f, 0x9d, 0x50, 0x9d, // sealed body
    0xab, 0x33, 0xf2, 0x7b, 0x76, 0x61, 0x63,
    0xc3, 0x64, 0xbe, 0xa4, 0x36, 0xca, 0x17, 0xd9, 0x52, 0x60, 0x35, 0x11, 0x9a, 0xf1, 0xd4, 0x36, // tag
];

/// A hello.
#[rustfmt::skip]
const EXPORTER: [u8; 32] = {
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 32 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};
const INITIATOR_NONCE: [u8; 16] = [0xa0; 16];
const RESPONDER_NONCE: [u8; 16] = [0xb0; 16];
const PATH: PathId = PathId(3);

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

#[test]
fn v1_packet() {
    let header = V1Header {
        frame: FrameType::Data,
        flags: 0x21,
        session: 0x0102_0304_0506_0708,
        sequence: 0x1112_1314_1516_1718,
        timestamp: 0x2122_2324_2526_2728,
        wan: 3,
        priority: 128,
        data_len: 3,
    };
    assert_eq!(encoded(|out| header.encode_into(b"mwb", out)), V1_PACKET);
    assert_eq!(V1Header::decode(&V1_PACKET), Ok((header, &b"mwb"[..])));
}

#[test]
fn clear_header() {
    let clear = Clear {
        key_phase: true,
        frame: FrameType::Skip,
        flags: Flags::DUPLICATE.with(Flags::COMPRESSED).with(Flags::FRAGMENT),
        class: Class::Voice,
        receiver: 0xcafe_f00d,
        path_seq_low: 0x0102_0304,
    };
    let mut out = [0; CLEAR_LEN];
    clear.encode(&mut out);
    assert_eq!(out, CLEAR);
    assert_eq!(Clear::decode(&CLEAR), Ok(clear));
}

#[test]
fn data_body() {
    let header = DataHeader {
        sent: Stamp::new(0x0a_0b0c),
        lane: 0x1234,
        lane_seq: 0x56_789a,
        incarnation: 7,
        unqueued: 2,
    };
    let mut out = [0; 10];
    header.encode(&mut out);
    assert_eq!(out, DATA_BODY[..10]);
    assert_eq!(DataHeader::decode(&DATA_BODY), Ok((header, &b"\x45inner packet"[..])));
}

#[test]
fn fragments() {
    let (first, last) = (Fragment { index: 0, count: 3 }, Fragment { index: 2, count: 3 });
    assert_eq!(encoded(|out| first.encode_into(out)), [0, 3]);
    assert_eq!(Fragment::decode(b"\x02\x03rest"), Ok((last, &b"rest"[..])));
    assert_eq!((first.flags().0, last.flags().0), (0x10, 0x30));
}

#[test]
fn heartbeats() {
    let ping =
        Heartbeat { sent: Stamp::new(0x0a_0b0c), kind: HeartbeatKind::Ping, id: 0x0102, echo: Stamp::new(0) };
    let pong = ping.pong(Stamp::new(0x0d_0e0f));
    let tail =
        Heartbeat { sent: Stamp::new(0xff_ffff), kind: HeartbeatKind::Tail, id: 0xffff, echo: Stamp::new(0) };
    for (heartbeat, bytes) in [(ping, PING), (pong, PONG), (tail, TAIL)] {
        assert_eq!(encoded(|out| heartbeat.encode_into(out)), bytes);
        assert_eq!(Heartbeat::decode(&bytes), Ok(heartbeat));
    }
}

#[test]
fn bundle_body() {
    // It begins as the data frame of its first packet.
    let mut out = DATA_BODY.to_vec();
    Bundle::begin(&mut out, 0);
    Bundle::push(&mut out, 0xffff, 9, b"mwb");
    assert_eq!(out, BUNDLE_BODY);
    let bundle = Bundle::decode(&BUNDLE_BODY).expect("ours");
    assert_eq!((bundle.sent, bundle.incarnation, bundle.packets()), (Stamp::new(0x0a_0b0c), 7, 2));
    let packets: Vec<_> = bundle.iter().collect();
    let first = Bundled { lane: 0x1234, lane_seq: 0x56_789a, len: 13 };
    let second = Bundled { lane: 0xffff, lane_seq: 9, len: 3 };
    assert_eq!(packets, [(first, 11..24), (second, 31..34)]);
}

#[test]
fn report() {
    let report = Report {
        sent: Stamp::new(0x0a_0b0c),
        number: 0x0102_0304,
        time: Stamp::new(0x0a_0b00),
        paths: vec![
            PathReport {
                path: PathId(0),
                highest: 0x1000,
                highest_age: 0x10,
                received_bytes: 0x00ab_cdef,
                ce: 0,
                owd_min: Stamp::new(0xff_fff0),
                owd_mean_excess: 5,
                owd_highest_excess: 3,
                floor: 0x0fff,
                missing: vec![],
            },
            PathReport {
                path: PathId(3),
                highest: 0x8000_0005,
                highest_age: 0xff,
                received_bytes: 0xffff_fffe,
                ce: 0x0102,
                owd_min: Stamp::new(0x00_1122),
                owd_mean_excess: 0x0203,
                owd_highest_excess: 0x0405,
                floor: 0x0100,
                missing: vec![
                    MissingRange { below_highest: 2, len: 1 },
                    MissingRange { below_highest: 0x20, len: 4 },
                ],
            },
        ],
    };
    assert_eq!(encoded(|out| report.encode_into(out)), REPORT);
    assert_eq!(Report::decode(&REPORT), Ok(report));
}

#[test]
fn skip() {
    let skip = Skip {
        sent: Stamp::new(0x0a_0b0c),
        incarnation: 7,
        runs: vec![
            SkipRun { lane: 0x1234, lane_seq: 0x56_789a, len: 1 },
            SkipRun { lane: 9, lane_seq: 0xff_ffff, len: 3 },
        ],
    };
    assert_eq!(encoded(|out| skip.encode_into(out)), SKIP);
    assert_eq!(Skip::decode(&SKIP), Ok(skip));
}

/// One block of HKDF-Expand (RFC 5869 section 2.3), from HMAC.
fn expand(prk: &[u8], label: &[u8], context: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, prk);
    hmac::sign(&key, &[label, context, &[1]].concat()).as_ref().to_vec()
}

#[test]
fn key_schedule() {
    let salt = [INITIATOR_NONCE, RESPONDER_NONCE].concat();
    let extract = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salt), &EXPORTER);
    assert_eq!(extract.as_ref(), PRK);
    assert_eq!(expand(&PRK, b"mwb2 i2r", &[PATH.0]), SECRET_I2R_0);
    assert_eq!(expand(&PRK, b"mwb2 r2i", &[PATH.0]), SECRET_R2I_0);
    assert_eq!(expand(&SECRET_I2R_0, b"mwb2 next", &[]), SECRET_I2R_1);
    for (secret, aes, chacha) in
        [(SECRET_I2R_0, KEY_AES_0, KEY_CHACHA_0), (SECRET_I2R_1, KEY_AES_1, KEY_CHACHA_1)]
    {
        assert_eq!(expand(&secret, b"mwb2 key aes-128-gcm", &[])[..16], aes);
        assert_eq!(expand(&secret, b"mwb2 key chacha20-poly1305", &[]), chacha);
    }
}

/// The written-out keys open the written-out datagrams without any code of this crate.
#[test]
fn sealed_datagrams_open_with_the_written_keys() {
    let vectors: [(&'static Algorithm, &[u8], &[u8], u64); 4] = [
        (&AES_128_GCM, &KEY_AES_0, &SEALED_AES_0, 0xffff_fffe),
        (&AES_128_GCM, &KEY_AES_1, &SEALED_AES_1, 0x1_0000_0002),
        (&CHACHA20_POLY1305, &KEY_CHACHA_0, &SEALED_CHACHA_0, 0xffff_fffe),
        (&CHACHA20_POLY1305, &KEY_CHACHA_1, &SEALED_CHACHA_1, 0x1_0000_0002),
    ];
    for (algorithm, key, sealed, path_seq) in vectors {
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&path_seq.to_be_bytes());
        let mut body = sealed[10..].to_vec();
        let plain = key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(&sealed[..10]), &mut body)
            .unwrap();
        assert_eq!(plain, DATA_BODY);
    }
}

#[test]
fn sealed_datagrams() {
    let secrets = |role| derive(&EXPORTER, PATH, &INITIATOR_NONCE, &RESPONDER_NONCE, role);
    for (suite, epoch0, epoch1) in [
        (Suite::Aes128Gcm, SEALED_AES_0, SEALED_AES_1),
        (Suite::ChaCha20Poly1305, SEALED_CHACHA_0, SEALED_CHACHA_1),
    ] {
        let mut sealer = Sealer::new(secrets(Role::Initiator).tx, suite);
        let mut opener = Opener::new(secrets(Role::Responder).rx, suite);
        for (path_seq, golden) in [(0xffff_fffe, epoch0), (0x1_0000_0002, epoch1)] {
            let clear = Clear {
                key_phase: false,
                frame: FrameType::Data,
                flags: Flags::DUPLICATE,
                class: Class::Video,
                receiver: 0xcafe_f00d,
                path_seq_low: path_seq as u32,
            };
            let mut header = [0; CLEAR_LEN];
            clear.encode(&mut header);
            let mut datagram = [&header[..], &DATA_BODY, &[0; TAG_LEN]].concat();
            sealer.seal(path_seq, &mut datagram);
            assert_eq!(datagram, golden);
            let mut plain = [0; 100];
            let opened = opener.open(&datagram, &mut plain).unwrap();
            assert_eq!(opened.path_seq, path_seq);
            assert_eq!(plain[..opened.len], DATA_BODY);
            sealer.ratchet();
        }
        assert_eq!(opener.epoch(), 1);
    }
}
