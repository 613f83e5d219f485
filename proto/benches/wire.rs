//! Cost of the headers and of the largest usual bodies. `cargo bench -p mwb-proto --bench wire`.

#![allow(missing_docs, reason = "the macros of criterion make public items")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use mwb_proto::time::Stamp;
use mwb_proto::wire::v1::V1Header;
use mwb_proto::wire::v2::{CLEAR_LEN, Class, Clear, DATA_LEN, DataHeader, Flags, FrameType};
use mwb_proto::wire::{MissingRange, PathId, PathReport, Report, plane, segments};

fn headers(c: &mut Criterion) {
    let clear = Clear {
        key_phase: false,
        frame: FrameType::Data,
        flags: Flags::NONE,
        class: Class::BestEffort,
        receiver: 0xcafe_f00d,
        path_seq_low: 0x0102_0304,
    };
    let data =
        DataHeader { sent: Stamp::new(0x0a_0b0c), lane: 7, lane_seq: 0x12_3456, incarnation: 1, unqueued: 2 };
    let mut datagram = [0; CLEAR_LEN + DATA_LEN + 1400];
    c.bench_function("data headers, encode", |b| {
        b.iter(|| {
            let (head, rest) = datagram.split_first_chunk_mut().expect("room");
            black_box(&clear).encode(head);
            black_box(&data).encode(rest.first_chunk_mut().expect("room"));
        });
    });
    c.bench_function("data headers, decode", |b| {
        b.iter(|| {
            let datagram = black_box(&datagram[..]);
            (Clear::decode(datagram), DataHeader::decode(&datagram[CLEAR_LEN..]).map(|(header, _)| header))
        });
    });
    c.bench_function("sort the 45 segments of a GRO buffer", |b| {
        let buffer = vec![0x20; 45 * 1400];
        b.iter(|| {
            let buffer = black_box(&buffer[..]);
            segments(buffer.len(), 1400).filter(|range| plane(buffer[range.start]) != plane(0x40)).count()
        });
    });
}

fn reports(c: &mut Criterion) {
    let missing = (1..=8).map(|i| MissingRange { below_highest: 10 * i, len: 2 }).collect::<Vec<_>>();
    let paths = (0..8)
        .map(|path| PathReport {
            path: PathId(path),
            highest: 123_456,
            highest_age: 10,
            received_bytes: 1 << 30,
            ce: 0,
            owd_min: Stamp::new(5000),
            owd_mean_excess: 20,
            owd_highest_excess: 30,
            floor: 1000,
            missing: missing.clone(),
        })
        .collect();
    let report = Report { sent: Stamp::new(1), number: 2, time: Stamp::new(3), paths };
    let mut out = Vec::new();
    c.bench_function("report of 8 paths with 8 holes, encode", |b| {
        b.iter(|| {
            out.clear();
            black_box(&report).encode_into(&mut out);
        });
    });
    report.encode_into(&mut out);
    c.bench_function("report of 8 paths with 8 holes, decode", |b| {
        b.iter(|| Report::decode(black_box(&out)));
    });
}

fn v1(c: &mut Criterion) {
    let header = V1Header {
        frame: FrameType::Data,
        flags: 0,
        session: 1,
        sequence: 2,
        timestamp: 3,
        wan: 4,
        priority: 128,
        data_len: 0,
    };
    let mut packet = vec![0x45; 1438];
    c.bench_function("v1 packet of 1400 B, encode", |b| {
        b.iter(|| header.encode(black_box(&mut packet)));
    });
    c.bench_function("v1 packet of 1400 B, decode", |b| {
        b.iter(|| V1Header::decode(black_box(&packet)).map(|(header, _)| header));
    });
}

criterion_group!(benches, headers, reports, v1);
criterion_main!(benches);
