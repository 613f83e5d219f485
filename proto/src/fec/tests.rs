//! Any `data` of a block's shards rebuild the rest; nothing that a peer says makes memory grow.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::buf::{BufPool, PacketBuf};
use crate::time::{Stamp, Time};
use crate::wire::v2::Class;
use crate::wire::{LANE_SEQ_MASK, Parity, Refusal, protected_lane};

fn packet(bytes: &[u8]) -> PacketBuf {
    BufPool::new(2048, 1).copy_from(bytes).expect("fits")
}

/// The parity datagrams of consecutive packets.
fn parity_of(
    codec: &mut FecCodec,
    packets: &[Vec<u8>],
    lane: u16,
    lane_seq: u32,
    parity: u8,
) -> Vec<Vec<u8>> {
    let mut packed = Packed::default();
    packets.iter().for_each(|packet| packed.push(packet));
    let encoded = codec.encode(&EncodeJob { block: 7, packets: packed, parity });
    assert_eq!(encoded.shards.len(), usize::from(parity));
    let body = |(index, shard): (usize, Vec<u8>)| {
        let header = Parity {
            sent: Stamp::new(5),
            lane,
            lane_seq,
            incarnation: 1,
            data: packets.len() as u8,
            parity,
            index: index as u8,
        };
        [header.encode().as_slice(), &shard].concat()
    };
    encoded.shards.into_iter().enumerate().map(body).collect()
}

fn run(decoder: &mut Decoder, codec: &mut FecCodec) -> Vec<(u32, Vec<u8>)> {
    let mut out = Vec::new();
    while let Some(job) = decoder.poll_job() {
        let FecDone::Decoded(done) = codec.run(job) else { panic!("a decoder asks for packets") };
        decoder.note_failed(done.failed);
        out.extend(done.packets);
    }
    out
}

fn block() -> impl Strategy<Value = (Vec<Vec<u8>>, u8, u32, Vec<usize>)> {
    (prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 1..=32), 1u8..=16).prop_flat_map(
        |(packets, parity)| {
            let order: Vec<usize> = (0..packets.len() + usize::from(parity)).collect();
            (Just(packets), Just(parity), any::<u32>(), Just(order).prop_shuffle())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Shards come in any order; with the last of as many as there are packets, the rest is there, and not before.
    #[test]
    fn any_shards_rebuild_the_rest((packets, parity, start, order) in block()) {
        let (lane, start) = (protected_lane(Class::Video), start & LANE_SEQ_MASK);
        let mut codec = FecCodec::new();
        let bodies = parity_of(&mut codec, &packets, lane, start, parity);
        let mut decoder = Decoder::new(1 << 20);
        let mut rebuilt = Vec::new();
        let mut missing: Vec<usize> = (0..packets.len()).collect();
        for (count, &shard) in order.iter().take(packets.len()).enumerate() {
            prop_assert!(rebuilt.is_empty(), "rebuilt from {} of {}", count, packets.len());
            if let Some(bytes) = packets.get(shard) {
                let seq = start.wrapping_add(shard as u32) & LANE_SEQ_MASK;
                missing.retain(|&i| i != shard);
                decoder.handle_packet(lane, seq, 1, &packet(bytes), Time::ZERO);
            } else {
                decoder.handle_parity(&bodies[shard - packets.len()], Time::ZERO).expect("well formed");
            }
            rebuilt.extend(run(&mut decoder, &mut codec));
        }
        let expected: Vec<(u32, Vec<u8>)> = missing
            .iter()
            .map(|&i| (start.wrapping_add(i as u32) & LANE_SEQ_MASK, packets[i].clone()))
            .collect();
        prop_assert_eq!(rebuilt, expected);
        prop_assert_eq!(decoder.stats().failed, 0);
    }

    /// Made-up bodies, well formed or not: no panic, and memory stays within its bounds.
    #[test]
    fn hostile_parity_is_bounded(
        bodies in prop::collection::vec(
            (0xfff9u16..=0xffff, any::<u16>(), 0u8..40, 0u8..20, 0u8..20, 0usize..300, any::<u8>()), 1..400),
        cut in 0usize..12,
    ) {
        let mut decoder = Decoder::new(16 * 2048);
        let mut codec = FecCodec::new();
        for (i, (lane, seq, data, parity, index, len, fill)) in bodies.into_iter().enumerate() {
            let header = Parity {
                sent: Stamp::new(0), lane, lane_seq: u32::from(seq) << 8, incarnation: fill & 3, data, parity, index,
            };
            let body = [header.encode().as_slice(), &vec![fill; len]].concat();
            let _ = decoder.handle_parity(&body, Time::from_millis(i as u64));
            let _ = decoder.handle_parity(&body[..cut], Time::from_millis(i as u64));
            decoder.handle_packet(lane, u32::from(seq) << 8, fill & 3, &packet(&vec![fill; len + 1]), Time::ZERO);
            if fill & 16 != 0 {
                run(&mut decoder, &mut codec);
            }
            prop_assert!(decoder.bytes() <= 16 * 2048 + (2 << 20));
        }
        decoder.expire(Time::from_millis(10_000));
        prop_assert_eq!(decoder.bytes(), 0);
    }
}

#[test]
fn parity_that_contradicts_its_block_is_refused() {
    let lane = protected_lane(Class::Voice);
    let mut codec = FecCodec::new();
    let bodies = parity_of(&mut codec, &[vec![1; 20], vec![2; 30]], lane, 10, 2);
    let mut decoder = Decoder::new(1 << 20);
    decoder.handle_parity(&bodies[0], Time::ZERO).expect("taken");
    let mut longer = bodies[1].clone();
    longer.push(0);
    assert_eq!(decoder.handle_parity(&longer, Time::ZERO), Err(Refusal::BadLength));
    let mut other_count = bodies[1].clone();
    other_count[9] = 3;
    assert_eq!(decoder.handle_parity(&other_count, Time::ZERO), Err(Refusal::BadLength));
    let mut foreign = bodies[1].clone();
    foreign[3..5].copy_from_slice(&7u16.to_be_bytes());
    assert_eq!(decoder.handle_parity(&foreign, Time::ZERO), Err(Refusal::BadRange));
    let mut many = bodies[1].clone();
    many[9] = 33;
    assert_eq!(decoder.handle_parity(&many, Time::ZERO), Err(Refusal::TooMany));
    decoder.handle_packet(lane, 1 << 20, 1, &packet(&[1]), Time::ZERO);
    assert_eq!(decoder.handle_parity(&bodies[1], Time::ZERO), Err(Refusal::BadRange), "long gone");
    assert_eq!(decoder.stats().refused, 5);
}

#[test]
fn an_incomplete_block_counts_as_failed_when_it_is_forgotten() {
    let lane = protected_lane(Class::BestEffort);
    let packets: Vec<Vec<u8>> = (0..4).map(|i| vec![i; 50]).collect();
    let bodies = parity_of(&mut FecCodec::new(), &packets, lane, 0, 1);
    let mut decoder = Decoder::new(1 << 20);
    decoder.handle_packet(lane, 0, 1, &packet(&packets[0]), Time::ZERO);
    decoder.handle_packet(lane, 1, 1, &packet(&packets[1]), Time::ZERO);
    decoder.handle_parity(&bodies[0], Time::ZERO).expect("taken");
    assert!(decoder.poll_job().is_none());
    decoder.expire(Time::ZERO + Duration::from_secs(1));
    assert_eq!(decoder.stats().failed, 2);
}

#[test]
fn a_new_sender_begins_new_blocks() {
    let lane = protected_lane(Class::BestEffort);
    let packets = [vec![1; 50], vec![2; 50]];
    let mut codec = FecCodec::new();
    let bodies = parity_of(&mut codec, &packets, lane, 0, 1);
    let mut decoder = Decoder::new(1 << 20);
    decoder.handle_packet(lane, 0, 2, &packet(&packets[0]), Time::ZERO);
    // Parity of the sender before: nothing to be mixed up.
    decoder.handle_parity(&bodies[0], Time::ZERO).expect("ignored");
    assert!(decoder.poll_job().is_none());
    assert_eq!(decoder.incarnation(), Some(2));
}

/// Packets longer than the shard that protects them: the block is given up, the packet is not its concern.
#[test]
fn a_packet_that_does_not_fit_its_block_ends_it() {
    let lane = protected_lane(Class::BestEffort);
    let mut codec = FecCodec::new();
    let bodies = parity_of(&mut codec, &[vec![1; 10], vec![2; 10]], lane, 0, 1);
    let mut decoder = Decoder::new(1 << 20);
    decoder.handle_parity(&bodies[0], Time::ZERO).expect("taken");
    decoder.handle_packet(lane, 0, 1, &packet(&[1; 11]), Time::ZERO);
    assert!(decoder.poll_job().is_none());
    assert_eq!(decoder.stats().refused, 1);
}
