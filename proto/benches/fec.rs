//! What parity costs: blocks of full packets, encoded, and decoded with as many losses as there is parity.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mwb_proto::fec::{DecodeJob, EncodeJob, FecCodec, Packed};
use mwb_proto::wire::LANE_PROTECTED;

const PACKET: usize = 1400;

fn fec(c: &mut Criterion) {
    let mut group = c.benchmark_group("fec");
    for (data, parity) in [(1u8, 1u8), (8, 2), (16, 4), (32, 6)] {
        let mut packets = Packed::default();
        for i in 0..data {
            packets.push(&[i.wrapping_mul(37) ^ 0x5a; PACKET]);
        }
        let shard_len = packets.shard_len();
        let job = EncodeJob { block: 1, packets, parity };
        let mut codec = FecCodec::new();
        let encoded = codec.encode(&job);
        group.throughput(Throughput::Bytes((usize::from(data) * PACKET) as u64));
        let name = format!("{data}+{parity}");
        group.bench_function(BenchmarkId::new("encode", &name), |b| b.iter(|| codec.encode(black_box(&job))));

        // The first packets are lost; which ones are lost changes the matrix, not the work.
        let lost = parity.min(data);
        let data_shard = |i: u8| {
            let mut shard = vec![i.wrapping_mul(37) ^ 0x5a; shard_len];
            shard[..2].copy_from_slice(&(PACKET as u16).to_be_bytes());
            shard
        };
        let shards = (0..data).map(|i| (i >= lost).then(|| data_shard(i)));
        let shards: Vec<_> = shards.chain(encoded.shards.into_iter().map(Some)).collect();
        let job = DecodeJob { lane: LANE_PROTECTED, lane_seq: 0, incarnation: 0, data, shards };
        assert_eq!(codec.decode(job.clone()).packets.len(), usize::from(lost));
        group.bench_function(BenchmarkId::new("decode", &name), |b| {
            b.iter(|| codec.decode(black_box(job.clone())));
        });
    }
    group.finish();
}

criterion_group!(benches, fec);
criterion_main!(benches);
