//! Golden vector of a FEC block.
//!
//! Goal and method as in `golden.rs`: the bytes were computed by another program (Python, its own GF(2^8)).

use mwb_proto::fec::{DecodeJob, EncodeJob, FecCodec, Packed};
use mwb_proto::time::Stamp;
use mwb_proto::wire::v2::Class;
use mwb_proto::wire::{Parity, Refusal, protected_lane};

/// Three data shards of 2 + 12 bytes.
const PACKETS: [&[u8]; 3] = [b"first", b"a longer one", b"3"];

/// The body of the block's second parity datagram (before sealing). Its row of the matrix is 15, 8, 6.
#[rustfmt::skip]
const PARITY_BODY: [u8; 26] = [
    0x0a, 0x0b, 0x0c, // sent
    0xff, 0xfd, // lane: protected, video
    0x56, 0x78, 0x9a, // first lane sequence
    0x07, // incarnation
    0x03, // data shards
    0x02, // parity shards
    0x01, // index
    0x00, 0x55, 0xbd, 0x70, 0xb3, 0xa4, 0x81, 0x1f, 0x0f, 0xb7, 0x1d, 0x5f, 0x57, 0x0f, // shard
];

/// The first parity shard: its row is 1, 1, 1.
const PARITY_0: [u8; 14] =
    [0x00, 0x08, 0x34, 0x49, 0x1e, 0x1c, 0x1a, 0x67, 0x65, 0x72, 0x20, 0x6f, 0x6e, 0x65];

#[test]
fn parity_of_three_packets() {
    let mut packets = Packed::default();
    PACKETS.iter().for_each(|packet| packets.push(packet));
    let encoded = FecCodec::new().encode(&EncodeJob { block: 0, packets, parity: 2 });
    assert_eq!(encoded.shards[0], PARITY_0);
    let header = Parity {
        sent: Stamp::new(0x0a_0b_0c),
        lane: protected_lane(Class::Video),
        lane_seq: 0x56_789a,
        incarnation: 7,
        data: 3,
        parity: 2,
        index: 1,
    };
    assert_eq!([header.encode().as_slice(), &encoded.shards[1]].concat(), PARITY_BODY);
    assert_eq!(Parity::decode(&PARITY_BODY), Ok((header, &PARITY_BODY[Parity::LEN..])));
    for cut in 0..=Parity::LEN + Parity::SHARD_HEADER {
        assert_eq!(Parity::decode(&PARITY_BODY[..cut]), Err(Refusal::Truncated), "{cut} bytes");
    }
}

#[test]
fn two_of_three_packets_are_rebuilt_from_the_parity() {
    let third = [&[0, 1][..], PACKETS[2], &[0; 11]].concat();
    let shards =
        vec![None, None, Some(third), Some(PARITY_0.to_vec()), Some(PARITY_BODY[Parity::LEN..].to_vec())];
    let job = DecodeJob { lane: 0xfffd, lane_seq: 0xff_ffff, incarnation: 7, data: 3, shards };
    let decoded = FecCodec::new().decode(job);
    assert_eq!(decoded.packets, vec![(0xff_ffff, PACKETS[0].to_vec()), (0, PACKETS[1].to_vec())]);
    assert_eq!(decoded.failed, 0);
}

/// Shards that are of no one block: no packet is made up of them.
#[test]
fn noise_is_not_handed_on() {
    let shards = vec![None, Some(vec![0xa5; 14]), Some(vec![0x5a; 14]), Some(vec![0xff; 14])];
    let job = DecodeJob { lane: 0xfffd, lane_seq: 0, incarnation: 7, data: 3, shards };
    let decoded = FecCodec::new().decode(job);
    assert!(decoded.packets.is_empty());
    assert_eq!(decoded.failed, 1);
    for shards in [vec![], vec![None; 3], vec![None; 300], vec![Some(vec![1]), None, Some(vec![1, 2])]] {
        let job = DecodeJob { lane: 0xfffd, lane_seq: 0, incarnation: 7, data: 2, shards };
        assert!(FecCodec::new().decode(job).packets.is_empty());
    }
}
