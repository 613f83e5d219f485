//! Cost of sealing and opening one datagram of 1,400 bytes of inner packet, and of refusing what is
//! not authentic. `cargo bench -p mwb-proto --bench seal`.

#![allow(missing_docs, reason = "the macros of criterion make public items")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mwb_proto::seal::{Opener, PathSecrets, Role, Sealer, Suite, derive};
use mwb_proto::wire::PathId;
use mwb_proto::wire::v2::DATA_OVERHEAD;

const INNER: usize = 1400;
/// Datagrams per timed batch, so that the copies that opening in place needs are not timed.
const BATCH: usize = 44;

fn secrets(role: Role) -> PathSecrets {
    derive(&[1; 32], PathId(0), &[2; 16], &[3; 16], role)
}

fn datagram() -> Vec<u8> {
    let mut datagram = vec![0x45; INNER + DATA_OVERHEAD];
    datagram[0] = 0x20;
    datagram
}

fn seal_and_open(c: &mut Criterion) {
    for suite in Suite::ALL {
        let mut group = c.benchmark_group(format!("{suite:?}, {BATCH} x {INNER} B"));
        group.throughput(Throughput::Bytes((BATCH * INNER) as u64));
        let mut sealer = Sealer::new(secrets(Role::Initiator).tx, suite);
        let mut batch = vec![datagram(); BATCH];
        let mut path_seq = 0;
        group.bench_function("seal", |b| {
            b.iter(|| {
                for datagram in &mut batch {
                    path_seq += 1;
                    sealer.seal(path_seq, datagram);
                }
            });
        });
        let mut sealer = Sealer::new(secrets(Role::Initiator).tx, suite);
        let mut opener = Opener::new(secrets(Role::Responder).rx, suite);
        let mut path_seq = 0;
        let mut plain = datagram();
        group.bench_function("open", |b| {
            b.iter_batched(
                || {
                    let mut batch = vec![datagram(); BATCH];
                    for datagram in &mut batch {
                        path_seq += 1;
                        sealer.seal(path_seq, datagram);
                    }
                    batch
                },
                |batch| {
                    for datagram in &batch {
                        opener.open(datagram, &mut plain).expect("authentic");
                    }
                    batch
                },
                BatchSize::SmallInput,
            );
        });
        let junk = vec![datagram(); BATCH];
        group.bench_function("refuse forgeries", |b| {
            b.iter_batched(
                || junk.clone(),
                |batch| {
                    for datagram in &batch {
                        opener.open(datagram, &mut plain).expect_err("forged");
                    }
                    batch
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, seal_and_open);
criterion_main!(benches);
