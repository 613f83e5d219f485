//! Cost of one packet through each half of a session, without sealing.

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mwb_proto::bond::{PathSetup, Receiver, ReceiverConfig, RxItem, Sender, SenderConfig, TxBatch};
use mwb_proto::buf::BufPool;
use mwb_proto::time::{Stamp, Time};
use mwb_proto::wire::v2::{Class, DATA_LEN, DataHeader, Flags, FrameType};
use mwb_proto::wire::{PathId, PathReport, Report};

const PACKETS: u64 = 64;

fn tcp_packet() -> Vec<u8> {
    let mut p = vec![0u8; 1436];
    p[0] = 0x45;
    p[2..4].copy_from_slice(&1436u16.to_be_bytes());
    p[9] = 6;
    p[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    p[32] = 0x50;
    p[33] = 0x10;
    p
}

/// A report that acknowledges everything sent so far on `path`.
fn report(number: u32, now: Time, highest: &[u64]) -> Report {
    let paths = highest
        .iter()
        .enumerate()
        .map(|(i, &h)| PathReport {
            path: PathId(i as u8),
            highest: h as u32,
            highest_age: 0,
            received_bytes: 0,
            ce: 0,
            owd_min: Stamp::new(300),
            owd_mean_excess: 10,
            owd_highest_excess: 10,
            floor: 2000,
            missing: Vec::new(),
        })
        .collect();
    Report { sent: now.stamp(), number, time: now.stamp(), paths }
}

fn sender(c: &mut Criterion) {
    let mut group = c.benchmark_group("sender");
    group.throughput(Throughput::Elements(PACKETS));
    for paths in [2u8, 8] {
        let pool = BufPool::new(2048, 4096);
        let packet = tcp_packet();
        let mut now = Time::from_millis(1);
        let mut sender = Sender::new(SenderConfig::default(), 0, pool.clone(), now);
        for i in 0..paths {
            let setup = PathSetup {
                receiver: 1,
                first_path_seq: 0,
                datagram_max: 1472,
                rate_max: None,
                weight: 1,
                bundles: true,
            };
            sender.add_path(PathId(i), setup, now);
        }
        let mut highest = vec![0u64; usize::from(paths)];
        let mut number = 0;
        let mut batch = TxBatch::new();
        group.bench_function(format!("enqueue, schedule, report: 64 packets, {paths} paths"), |b| {
            b.iter(|| {
                now += Duration::from_millis(5);
                for _ in 0..PACKETS {
                    sender.enqueue(pool.copy_from(&packet).expect("fits"), now);
                }
                sender.handle_timeout(now);
                while sender.poll_transmit(&mut batch, now) {
                    if let Some(last) = batch.segments.last() {
                        highest[usize::from(batch.path.0)] = last.path_seq;
                    }
                    batch.clear();
                }
                number += 1;
                sender.handle_report(&report(number, now, &highest), now);
            });
        });
    }
    group.finish();
}

fn receiver(c: &mut Criterion) {
    let mut group = c.benchmark_group("receiver");
    group.throughput(Throughput::Elements(PACKETS));
    let pool = BufPool::new(2048, 4096);
    let now = std::cell::Cell::new(Time::from_millis(1));
    for (name, swap) in [("in order", 0), ("two paths 32 packets apart", 32)] {
        let mut receiver = Receiver::new(ReceiverConfig::default(), now.get());
        let mut seq = 0u64;
        let packet = tcp_packet();
        group.bench_function(format!("64 packets, {name}"), |b| {
            b.iter_batched(
                || {
                    let items: Vec<RxItem> = (0..PACKETS)
                        .map(|i| {
                            let lane_seq = (seq + (i ^ swap)) as u32 & 0xff_ffff;
                            let header = DataHeader {
                                sent: Stamp::new(1),
                                lane: 3,
                                lane_seq,
                                incarnation: 1,
                                unqueued: 0,
                            };
                            let mut head = [0; DATA_LEN];
                            header.encode(&mut head);
                            let mut plain = pool.copy_from(&head).expect("fits");
                            assert!(plain.extend_from_slice(&packet));
                            RxItem {
                                path: PathId(u8::from(i & swap != 0)),
                                path_seq: seq + i,
                                arrival: now.get(),
                                wire_len: 1472,
                                ce: false,
                                frame: FrameType::Data,
                                flags: Flags(0),
                                class: Class::BestEffort,
                                plain,
                            }
                        })
                        .collect();
                    seq += PACKETS;
                    items
                },
                |items| {
                    now.set(now.get() + Duration::from_millis(1));
                    for item in items {
                        receiver.handle(item, now.get()).expect("valid");
                    }
                    while receiver.poll_packet(now.get()).is_some() {}
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, sender, receiver);
criterion_main!(benches);
