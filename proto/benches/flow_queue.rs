//! Cost of one packet in the flow queue: classify, push, peek and pop, at a standing backlog.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mwb_proto::bond::classify::Classifier;
use mwb_proto::bond::flow_queue::{FlowQueue, FlowQueueConfig, Queued};
use mwb_proto::buf::BufPool;
use mwb_proto::time::Time;

/// A full-sized TCP segment of flow `flow`.
fn segment(flow: u16) -> Vec<u8> {
    let mut p = vec![0x45, 2, 0x05, 0x8c, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    p.extend(flow.to_be_bytes());
    p.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    p.resize(1420, 0x5a);
    p
}

fn classify(c: &mut Criterion) {
    let classifier = Classifier::new([1, 2]);
    let packet = segment(7);
    let mut group = c.benchmark_group("flow_queue");
    group.throughput(Throughput::Elements(1));
    group.bench_function("classify", |b| b.iter(|| classifier.classify(black_box(&packet))));
    group.finish();
}

fn cycle(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow_queue");
    group.throughput(Throughput::Elements(1));
    for flows in [1u16, 16, 256] {
        let pool = BufPool::new(2048, 2048);
        let classifier = Classifier::new([1, 2]);
        let packets: Vec<Vec<u8>> = (0..flows).map(segment).collect();
        let mut queue = FlowQueue::new(FlowQueueConfig::default());
        let mut now = Time::ZERO;
        let mut next = 0;
        let mut push = |queue: &mut FlowQueue, now| {
            let bytes = &packets[next % packets.len()];
            next += 1;
            let packet = pool.copy_from(bytes).expect("fits");
            let verdict = classifier.classify(bytes).expect("valid");
            queue.push(Queued { packet, verdict, enqueued: now });
        };
        for _ in 0..1000 {
            push(&mut queue, now);
        }
        // 10 ns per packet: the sojourn stays below CoDel's target.
        group.bench_function(format!("push_peek_pop/{flows}_flows"), |b| {
            b.iter(|| {
                now += Duration::from_nanos(10);
                push(&mut queue, now);
                black_box(queue.peek(now).map(|head| head.len));
                black_box(queue.pop(now));
            });
        });
    }
    group.finish();
}

fn overflow(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow_queue");
    group.throughput(Throughput::Elements(1));
    let pool = BufPool::new(2048, 4096);
    let classifier = Classifier::new([1, 2]);
    let packets: Vec<Vec<u8>> = (0..64).map(segment).collect();
    let mut queue = FlowQueue::new(FlowQueueConfig { bytes_max: 2 << 20, ..FlowQueueConfig::default() });
    let mut next = 0;
    group.bench_function("push_when_full/64_flows", |b| {
        b.iter(|| {
            let bytes = &packets[next % packets.len()];
            next += 1;
            let packet = pool.copy_from(bytes).expect("fits");
            let verdict = classifier.classify(bytes).expect("valid");
            black_box(queue.push(Queued { packet, verdict, enqueued: Time::ZERO }));
        });
    });
    group.finish();
}

criterion_group!(benches, classify, cycle, overflow);
criterion_main!(benches);
