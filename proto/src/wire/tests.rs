//! Goal: every encoder and decoder are inverse, and no bytes make a decoder panic or accept an
//! altered frame as the same one. Method: random frames, all their truncations, all single bit
//! flips; a table that raises every refusal; a synthetic GRO batch of both planes.

use proptest::prelude::*;

use super::v2::{CLEAR_LEN, Class, Clear, DATA_LEN, DATA_OVERHEAD, DataHeader, Flags, FrameType, TAG_LEN};
use super::*;
use crate::seal::{self, Opener, Role, Sealer, Suite};

fn stamp() -> impl Strategy<Value = Stamp> {
    any::<u32>().prop_map(Stamp::new)
}

fn frame_type() -> impl Strategy<Value = FrameType> {
    (0_u8..=7).prop_map(|code| FrameType::from_code(code).expect("known"))
}

fn clear() -> impl Strategy<Value = Clear> {
    (any::<bool>(), frame_type(), 0_u8..64, 0_u8..4, any::<u32>(), any::<u32>()).prop_map(
        |(key_phase, frame, flags, class, receiver, path_seq_low)| Clear {
            key_phase,
            frame,
            flags: Flags(flags),
            class: Class::from_code(class),
            receiver,
            path_seq_low,
        },
    )
}

fn data_header() -> impl Strategy<Value = DataHeader> {
    (stamp(), any::<u16>(), 0..=LANE_SEQ_MASK, any::<u8>(), any::<u8>()).prop_map(
        |(sent, lane, lane_seq, incarnation, unqueued)| DataHeader {
            sent,
            lane,
            lane_seq,
            incarnation,
            unqueued,
        },
    )
}

fn heartbeat() -> impl Strategy<Value = Heartbeat> {
    (stamp(), 0_usize..4, any::<u16>(), stamp()).prop_map(|(sent, kind, id, echo)| Heartbeat {
        sent,
        kind: [HeartbeatKind::Ping, HeartbeatKind::Pong, HeartbeatKind::Tail, HeartbeatKind::Probe][kind],
        id,
        echo,
    })
}

fn skip() -> impl Strategy<Value = Skip> {
    let run = (any::<u16>(), 0..=LANE_SEQ_MASK, 1_u8..).prop_map(|(lane, lane_seq, len)| SkipRun {
        lane,
        lane_seq,
        len,
    });
    (stamp(), any::<u8>(), prop::collection::vec(run, 0..=Skip::RUNS_MAX))
        .prop_map(|(sent, incarnation, runs)| Skip { sent, incarnation, runs })
}

/// Gaps and lengths that add up to valid ranges, newest first, and a floor below them all.
fn missing(ranges_max: usize) -> impl Strategy<Value = (Vec<MissingRange>, u16)> {
    (prop::collection::vec((0_u16..900, 1_u16..900), 0..=ranges_max), 0_u16..900).prop_map(
        |(parts, below)| {
            let mut at = 0;
            let missing: Vec<_> = parts
                .into_iter()
                .map(|(gap, len)| {
                    at += gap + len;
                    MissingRange { below_highest: at, len }
                })
                .collect();
            (missing, at + below)
        },
    )
}

fn path_report(ranges_max: usize) -> impl Strategy<Value = PathReport> {
    (
        (any::<u8>(), any::<u32>(), any::<u16>(), any::<u32>(), any::<u16>()),
        (stamp(), any::<u16>(), any::<u16>()),
        missing(ranges_max),
    )
        .prop_map(
            |(
                (path, highest, highest_age, received_bytes, ce),
                (owd_min, owd_mean_excess, owd_highest_excess),
                (missing, floor),
            )| PathReport {
                path: PathId(path),
                highest,
                highest_age,
                received_bytes,
                ce,
                owd_min,
                owd_mean_excess,
                owd_highest_excess,
                floor,
                missing,
            },
        )
}

fn report(paths_max: usize) -> impl Strategy<Value = Report> {
    let paths = prop::collection::vec(path_report(PathReport::MISSING_MAX), 0..=paths_max);
    (stamp(), any::<u32>(), stamp(), paths).prop_map(|(sent, number, time, paths)| Report {
        sent,
        number,
        time,
        paths,
    })
}

fn v1_header() -> impl Strategy<Value = v1::V1Header> {
    ((frame_type(), any::<u16>(), any::<u64>(), any::<u64>()), (any::<u64>(), any::<u8>(), any::<u8>()))
        .prop_map(|((frame, flags, session, sequence), (timestamp, wan, priority))| v1::V1Header {
            frame,
            flags,
            session,
            sequence,
            timestamp,
            wan,
            priority,
            data_len: 0,
        })
}

fn encoded<T>(value: &T, encode: impl Fn(&T, &mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0xee];
    encode(value, &mut out);
    assert_eq!(out.remove(0), 0xee, "encoders append");
    out
}

/// Decodes `bytes` back to `value`, and nothing else back to `value`: no truncation, no bytes more,
/// no flipped bit.
fn one_encoding<T: PartialEq + fmt::Debug>(
    value: &T,
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, Refusal>,
) {
    assert_eq!(decode(bytes).as_ref(), Ok(value));
    for len in 0..bytes.len() {
        assert_ne!(decode(&bytes[..len]).as_ref(), Ok(value), "cut to {len}");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert_ne!(decode(&longer).as_ref(), Ok(value), "one byte more");
    let mut flipped = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(decode(&flipped).as_ref(), Ok(value), "bit {bit} flipped");
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
}

proptest! {
    #[test]
    fn clear_headers_round_trip(value in clear()) {
        let mut bytes = [0; CLEAR_LEN];
        value.encode(&mut bytes);
        prop_assert_eq!(plane(bytes[0]), Plane::V2);
        // What follows the header is not its business.
        prop_assert_eq!(Clear::decode(&[&bytes[..], &[1, 2, 3]].concat()), Ok(value));
        one_encoding(&value, &bytes, |b| if b.len() > CLEAR_LEN { Err(Refusal::BadLength) } else { Clear::decode(b) });
    }

    #[test]
    fn data_frames_round_trip(value in data_header(), inner in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut bytes = [0; DATA_LEN];
        value.encode(&mut bytes);
        let frame = [&bytes[..], &inner].concat();
        one_encoding(&(value, inner), &frame, |b| DataHeader::decode(b).map(|(h, inner)| (h, inner.to_vec())));
    }

    #[test]
    fn heartbeats_round_trip(value in heartbeat()) {
        let bytes = encoded(&value, Heartbeat::encode_into);
        prop_assert_eq!(bytes.len(), Heartbeat::LEN);
        if value.kind == HeartbeatKind::Probe {
            let padded = [bytes.as_slice(), &[7; 1400]].concat();
            prop_assert_eq!(Heartbeat::decode(&padded), Ok(value));
            prop_assert_eq!(Heartbeat::decode(&bytes[..8]), Err(Refusal::Truncated));
        } else {
            one_encoding(&value, &bytes, Heartbeat::decode);
        }
    }

    #[test]
    fn fragments_round_trip(index in 0_u8..64, more in 1_u8..64, content in prop::collection::vec(any::<u8>(), 1..50)) {
        let fragment = Fragment { index, count: index.saturating_add(more).clamp(2, Fragment::COUNT_MAX) };
        let mut bytes = Vec::new();
        fragment.encode_into(&mut bytes);
        prop_assert_eq!(Fragment::decode(&bytes), Err(Refusal::Truncated));
        bytes.extend_from_slice(&content);
        prop_assert_eq!(Fragment::decode(&bytes), Ok((fragment, content.as_slice())));
        for (hostile, why) in [
            ([fragment.count, fragment.count, 1], Refusal::BadRange),
            ([0, 65 + more, 1], Refusal::TooMany),
            ([0, 1, 1], Refusal::TooMany),
        ] {
            prop_assert_eq!(Fragment::decode(&hostile), Err(why));
        }
    }

    #[test]
    fn skips_round_trip(value in skip()) {
        let bytes = encoded(&value, Skip::encode_into);
        prop_assert_eq!(bytes.len(), 5 + 6 * value.runs.len());
        one_encoding(&value, &bytes, Skip::decode);
    }

    #[test]
    fn reports_round_trip(value in report(3)) {
        let bytes = encoded(&value, Report::encode_into);
        let ranges: usize = value.paths.iter().map(|p| p.missing.len()).sum();
        prop_assert_eq!(bytes.len(), 11 + PathReport::LEN_MIN * value.paths.len() + 4 * ranges);
        one_encoding(&value, &bytes, Report::decode);
    }

    #[test]
    fn v1_packets_round_trip(value in v1_header(), payload in prop::collection::vec(any::<u8>(), 0..60)) {
        let bytes = encoded(&value, |v, out| v.encode_into(&payload, out));
        let expected = v1::V1Header { data_len: payload.len() as u32, ..value };
        prop_assert_eq!(v1::V1Header::decode(&bytes), Ok((expected, &payload[..])));
        let mut altered = bytes.clone();
        for bit in 0..bytes.len() * 8 {
            altered[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(v1::V1Header::decode(&altered).is_err(), "bit {} flipped", bit);
            altered[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..bytes.len() {
            prop_assert!(v1::V1Header::decode(&bytes[..len]).is_err(), "cut to {}", len);
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Clear::decode(&bytes);
        let _ = DataHeader::decode(&bytes);
        let _ = Heartbeat::decode(&bytes);
        let _ = Skip::decode(&bytes);
        let _ = Report::decode(&bytes);
        let _ = v1::V1Header::decode(&bytes);
    }

    #[test]
    fn what_a_report_names_lies_between_floor_and_highest(value in path_report(PathReport::MISSING_MAX)) {
        let mut newer = 0;
        for range in &value.missing {
            prop_assert!(range.len <= range.below_highest && range.below_highest <= value.floor);
            prop_assert!(range.below_highest - range.len >= newer);
            newer = range.below_highest;
        }
    }

    #[test]
    fn too_many_missing_ranges_raise_the_floor(value in path_report(60)) {
        let report = Report { sent: Stamp::new(1), number: 1, time: Stamp::new(2), paths: vec![value] };
        let sent = &report.paths[0];
        let got = Report::decode(&encoded(&report, Report::encode_into)).expect("valid").paths.remove(0);
        let kept = sent.missing.len().min(PathReport::MISSING_MAX);
        prop_assert_eq!(&got.missing[..], &sent.missing[..kept]);
        if kept == sent.missing.len() {
            prop_assert_eq!(got.floor, sent.floor);
        } else {
            prop_assert_eq!(got.floor, sent.missing[kept - 1].below_highest);
        }
    }
}

#[test]
fn a_lone_packet_costs_36_bytes() {
    assert_eq!(DATA_OVERHEAD, 36);
    let mut datagram = vec![0; CLEAR_LEN];
    let header = DataHeader { sent: Stamp::new(1), lane: 2, lane_seq: 3, incarnation: 4, unqueued: 5 };
    let mut sealed = [0; DATA_LEN];
    header.encode(&mut sealed);
    datagram.extend_from_slice(&sealed);
    datagram.extend_from_slice(&[0x45; 1000]);
    datagram.extend_from_slice(&[0; TAG_LEN]);
    assert_eq!(datagram.len(), 1000 + 36);
}

#[test]
fn the_largest_frames_fit_their_bounds() {
    let ranges = (1..=PathReport::MISSING_MAX as u16)
        .map(|i| MissingRange { below_highest: 2 * i, len: 1 })
        .collect::<Vec<_>>();
    let path = PathReport {
        path: PathId(9),
        highest: u32::MAX,
        highest_age: u16::MAX,
        received_bytes: u32::MAX,
        ce: u16::MAX,
        owd_min: Stamp::new(u32::MAX),
        owd_mean_excess: u16::MAX,
        owd_highest_excess: u16::MAX,
        floor: u16::MAX,
        missing: ranges,
    };
    let report =
        Report { sent: Stamp::new(0), number: 0, time: Stamp::new(0), paths: vec![path; Report::PATHS_MAX] };
    let bytes = encoded(&report, Report::encode_into);
    assert_eq!(bytes.len(), 11 + Report::PATHS_MAX * PathReport::LEN_MAX);
    assert_eq!(Report::decode(&bytes), Ok(report));

    let run = SkipRun { lane: u16::MAX, lane_seq: LANE_SEQ_MASK, len: u8::MAX };
    let skip = Skip { sent: Stamp::new(0), incarnation: 0, runs: vec![run; Skip::RUNS_MAX] };
    let bytes = encoded(&skip, Skip::encode_into);
    assert_eq!(bytes.len(), Skip::LEN_MAX);
    assert_eq!(Skip::decode(&bytes), Ok(skip));
}

/// A GRO buffer holds whatever one sender sent with equal lengths: QUIC and ours side by side.
#[test]
fn every_segment_of_a_mixed_batch_is_sorted() {
    const STRIDE: usize = 64;
    let mut v1_packet = Vec::new();
    let header = v1::V1Header {
        frame: FrameType::Data,
        flags: 0,
        session: 1,
        sequence: 2,
        timestamp: 3,
        wan: 4,
        priority: 128,
        data_len: 0,
    };
    header.encode_into(&[0x45; STRIDE - v1::HEADER_LEN], &mut v1_packet);
    let v2_packet = |key_phase| {
        let mut packet = vec![0xaa; STRIDE];
        let clear = Clear {
            key_phase,
            frame: FrameType::Skip,
            flags: Flags::NONE,
            class: Class::Voice,
            receiver: 7,
            path_seq_low: 8,
        };
        clear.encode(packet.first_chunk_mut().expect("long enough"));
        packet
    };
    let filled = |first: u8| {
        let mut packet = vec![0x55; STRIDE];
        packet[0] = first;
        packet
    };
    let mut batch = Vec::new();
    let parts = [
        (filled(0xc3), Plane::Quic), // long header
        (v2_packet(false), Plane::V2),
        (filled(0x41), Plane::Quic), // short header
        (v1_packet, Plane::V1),
        (v2_packet(true), Plane::V2),
        (filled(0x00), Plane::Unknown),
        (filled(0x5e), Plane::Quic), // short header, spin and key phase set
        (filled(0x81), Plane::Unknown),
        (filled(0x30), Plane::Unknown),
        (vec![0x26; 11], Plane::V2), // the last one may be short
    ];
    for (packet, _) in &parts {
        batch.extend_from_slice(packet);
    }
    let ranges: Vec<_> = segments(batch.len(), STRIDE).collect();
    assert_eq!(ranges.len(), parts.len());
    for (range, (packet, expected)) in ranges.into_iter().zip(&parts) {
        let segment = &batch[range];
        assert_eq!(segment, packet);
        assert_eq!(plane(segment[0]), *expected, "first byte {:#04x}", segment[0]);
        match expected {
            Plane::V1 => assert_eq!(v1::V1Header::decode(segment).expect("valid").0.session, 1),
            Plane::V2 => assert_eq!(Clear::decode(segment).expect("valid").frame, FrameType::Skip),
            Plane::Quic | Plane::Unknown => {
                assert_eq!(Clear::decode(segment), Err(Refusal::BadVersion));
                assert!(v1::V1Header::decode(segment).is_err());
            }
        }
    }
}

#[test]
fn the_planes_do_not_overlap() {
    for byte in 0..=255_u8 {
        let expected = match byte {
            _ if byte & 0x40 != 0 => Plane::Quic,
            0x20..=0x2f | 0xa0..=0xaf => Plane::V2,
            0x01 => Plane::V1,
            _ => Plane::Unknown,
        };
        assert_eq!(plane(byte), expected, "{byte:#04x}");
    }
}

#[test]
fn every_refusal_is_raised() {
    let sealed = |path_seq: u64, sealer: &mut Sealer| {
        let mut datagram = [0; 40];
        datagram[0] = 0x20;
        sealer.seal(path_seq, &mut datagram);
        datagram
    };
    let secrets = |role| seal::derive(&[1; 32], PathId(0), &[2; 16], &[3; 16], role);
    let mut sealer = Sealer::new(secrets(Role::Initiator).tx, Suite::Aes128Gcm);
    let mut opener = Opener::new(secrets(Role::Responder).rx, Suite::Aes128Gcm);
    let old = sealed(1, &mut sealer);
    let new = sealed(9000, &mut sealer);
    opener.open(&new, &mut [0; 40]).expect("authentic");
    let mut forged = sealed(9001, &mut sealer);
    forged[39] ^= 1;

    let mut v1_packet = Vec::new();
    v1::V1Header {
        frame: FrameType::Data,
        flags: 0,
        session: 0,
        sequence: 0,
        timestamp: 0,
        wan: 0,
        priority: 0,
        data_len: 0,
    }
    .encode_into(b"x", &mut v1_packet);
    v1_packet[38] ^= 1;

    let raised = [
        (Heartbeat::decode(&[0; 8]).err(), Refusal::Truncated),
        (Heartbeat::decode(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).err(), Refusal::UnknownType),
        (Clear::decode(&[0x10; 40]).err(), Refusal::BadVersion),
        (Heartbeat::decode(&[0; 10]).err(), Refusal::BadLength),
        (Skip::decode(&[0, 0, 0, 0, 65]).err(), Refusal::TooMany),
        (Skip::decode(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).err(), Refusal::BadRange),
        (v1::V1Header::decode(&v1_packet).err(), Refusal::BadChecksum),
        (opener.open(&new, &mut [0; 40]).err(), Refusal::Replayed),
        (opener.open(&old, &mut [0; 40]).err(), Refusal::TooOld),
        (opener.open(&forged, &mut [0; 40]).err(), Refusal::NotAuthentic),
        (Clear::route(&new, |_| None::<()>).err(), Refusal::UnknownReceiver),
    ];
    assert_eq!(raised.len(), Refusal::COUNT);
    for (i, (got, expected)) in raised.into_iter().enumerate() {
        assert_eq!(got, Some(expected));
        // In the order of ALL, so none is left out and none stands for another.
        assert_eq!(Refusal::ALL[i], expected);
        assert_eq!(expected.index(), i);
        assert_eq!(expected.to_string(), expected.name());
    }
    let names: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|r| r.name()).collect();
    assert_eq!(names.len(), Refusal::COUNT);
}

/// The other places where a refusal of the table can come from.
#[test]
fn refusals_of_each_decoder() {
    assert_eq!(Clear::decode(&[0x20; 9]), Err(Refusal::Truncated));
    assert_eq!(Clear::decode(&[0x28; 10]), Err(Refusal::UnknownType));
    assert_eq!(DataHeader::decode(&[0; 9]), Err(Refusal::Truncated));
    assert_eq!(Clear::route(&[0x20; 10], Some).map(|(_, receiver)| receiver), Ok(0x2020_2020));

    let mut packet = Vec::new();
    let header = v1::V1Header {
        frame: FrameType::Data,
        flags: 0,
        session: 0,
        sequence: 0,
        timestamp: 0,
        wan: 0,
        priority: 0,
        data_len: 77,
    };
    header.encode_into(b"abc", &mut packet);
    let decode = |bytes: &[u8]| v1::V1Header::decode(bytes).map(|(h, _)| h.data_len);
    assert_eq!(decode(&packet), Ok(3), "the payload's own length, not the field's");
    assert_eq!(decode(&packet[..37]), Err(Refusal::Truncated));
    assert_eq!(decode(&packet[..40]), Err(Refusal::BadLength));
    packet[0] = 2;
    assert_eq!(decode(&packet), Err(Refusal::BadVersion));
    packet[0] = 1;
    packet[1] = 8;
    let crc = {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&packet[..34]);
        hasher.update(&[0; 4]);
        hasher.update(&packet[38..]);
        hasher.finalize()
    };
    packet[34..38].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(decode(&packet), Err(Refusal::UnknownType));

    let report = |count: u8, body: &[u8]| {
        let mut bytes = vec![0; 10];
        bytes.push(count);
        bytes.extend_from_slice(body);
        Report::decode(&bytes)
    };
    assert_eq!(report(33, &[]), Err(Refusal::TooMany));
    assert_eq!(report(1, &[0; 22]), Err(Refusal::Truncated));
    assert_eq!(report(1, &[0; 24]), Err(Refusal::BadLength));
    let path = |missing: &[(u16, u16)], floor: u16| {
        let mut bytes = vec![0; 23];
        bytes[1] = missing.len() as u8;
        bytes[21..].copy_from_slice(&floor.to_be_bytes());
        for (below, len) in missing {
            bytes.extend_from_slice(&below.to_be_bytes());
            bytes.extend_from_slice(&len.to_be_bytes());
        }
        report(1, &bytes).map(|report| report.paths[0].missing.len())
    };
    assert_eq!(path(&[(1, 1); 25], 9), Err(Refusal::TooMany));
    assert_eq!(path(&[(1, 1), (3, 2), (9, 3)], 9), Ok(3));
    assert_eq!(path(&[(1, 0)], 9), Err(Refusal::BadRange), "empty");
    assert_eq!(path(&[(1, 2)], 9), Err(Refusal::BadRange), "covers the highest, which arrived");
    assert_eq!(path(&[(10, 1)], 9), Err(Refusal::BadRange), "below the floor");
    assert_eq!(path(&[(3, 2), (4, 2)], 9), Err(Refusal::BadRange), "overlap");
    assert_eq!(path(&[(9, 1), (4, 1)], 9), Err(Refusal::BadRange), "oldest first");
}
