//! Several inner packets in one datagram.

use std::ops::Range;

use super::v2::DATA_LEN;
use super::{LANE_SEQ_MASK, Reader, Refusal, be24, protected_index};
use crate::time::Stamp;

/// The body of a bundle: send stamp 3, incarnation 1, then the packets, each behind its [`Bundled`] header.
///
/// The packets have nothing in common but their datagram: lane, order, copies and resends are each one's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bundle<'a> {
    /// The sender's clock when the datagram left.
    pub sent: Stamp,
    /// Which life of the sending router counts the lanes.
    pub incarnation: u8,
    body: &'a [u8],
    packets: usize,
}

impl<'a> Bundle<'a> {
    /// Bytes before the first packet's header.
    pub const LEN: usize = 4;
    /// Fewest packets: one alone travels in a data frame.
    pub const PACKETS_MIN: usize = 2;
    /// Most packets: of the smallest that TCP has, 40 bytes, a datagram of 1,472 bytes holds 30.
    pub const PACKETS_MAX: usize = 32;

    /// Bytes by which a data body grows when it becomes a bundle's beginning.
    pub const GROWTH: usize = Self::LEN + Bundled::LEN - DATA_LEN;

    /// Rewrites a data body, which begins at `body` and ends with `out`, as the beginning of a bundle; more packets are
    /// appended with [`push`](Self::push). The packet must be shorter than 64 KiB.
    ///
    /// # Panics
    /// When there is no data body.
    pub fn begin(out: &mut Vec<u8>, body: usize) {
        let packet = body + DATA_LEN..out.len();
        let len = packet.len() as u16;
        let incarnation = out[body + 8];
        out.resize(out.len() + Self::GROWTH, 0);
        out.copy_within(packet, body + Self::LEN + Bundled::LEN);
        // sent 3 | lane 2 | lane sequence 3 | ... becomes sent 3 | incarnation 1 | lane 2 | lane sequence 3 | length 2
        out.copy_within(body + 3..body + 8, body + Self::LEN);
        out[body + 3] = incarnation;
        out[body + Self::LEN + 5..][..2].copy_from_slice(&len.to_be_bytes());
    }

    /// Appends a packet to a bundle, of the lane sequence the low 24 bits.
    pub fn push(out: &mut Vec<u8>, lane: u16, lane_seq: u32, packet: &[u8]) {
        debug_assert!(!packet.is_empty(), "there are no empty packets");
        debug_assert!(protected_index(lane).is_none(), "parity covers lone packets");
        out.extend_from_slice(&lane.to_be_bytes());
        out.extend_from_slice(&be24(lane_seq & LANE_SEQ_MASK));
        out.extend_from_slice(&(packet.len() as u16).to_be_bytes());
        out.extend_from_slice(packet);
    }

    /// Reads an opened body: all of it, so that a bundle counts as a whole or not at all.
    ///
    /// # Errors
    /// [`Refusal::Truncated`]; [`Refusal::TooMany`] for more packets than 32; [`Refusal::BadRange`] for fewer than two, for
    /// an empty packet, and for a lane that parity protects.
    pub fn decode(body: &'a [u8]) -> Result<Self, Refusal> {
        let mut r = Reader(body);
        let (sent, incarnation) = (r.stamp()?, r.u8()?);
        let mut packets = 0;
        while !r.0.is_empty() {
            if packets == Self::PACKETS_MAX {
                return Err(Refusal::TooMany);
            }
            let header = Bundled::read(&mut r)?;
            r.0 = r.0.get(usize::from(header.len)..).ok_or(Refusal::Truncated)?;
            packets += 1;
        }
        if packets < Self::PACKETS_MIN {
            return Err(Refusal::BadRange);
        }
        Ok(Self { sent, incarnation, body, packets })
    }

    /// How many packets it holds, 2 to 32.
    pub fn packets(&self) -> usize {
        self.packets
    }

    /// The packets in the order of sending, and where in the body each lies.
    pub fn iter(&self) -> impl Iterator<Item = (Bundled, Range<usize>)> + use<'a> {
        let body = self.body;
        let mut at = Self::LEN;
        std::iter::from_fn(move || {
            let header = Bundled::read(&mut Reader(body.get(at..)?)).ok()?;
            let start = at + Bundled::LEN;
            at = start + usize::from(header.len);
            Some((header, start..at))
        })
    }
}

/// What stands before each packet of a bundle: lane 2, lane sequence 3, length 2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Bundled {
    /// Ordering domain of the packet, none that parity protects.
    pub lane: u16,
    /// Number inside the lane, 24 bits.
    pub lane_seq: u32,
    /// Bytes of the packet, at least one.
    pub len: u16,
}

impl Bundled {
    /// Length of the header.
    pub const LEN: usize = 7;

    fn read(r: &mut Reader<'_>) -> Result<Self, Refusal> {
        let header = Self { lane: r.u16()?, lane_seq: r.u24()?, len: r.u16()? };
        if header.len == 0 || protected_index(header.lane).is_some() {
            return Err(Refusal::BadRange);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::v2::DataHeader;
    use crate::wire::{LANE_PROTECTED, PROTECTED_LANES};

    type Packet = (u16, u32, Vec<u8>);

    fn packet() -> impl Strategy<Value = Packet> {
        (0..LANE_PROTECTED, 0..=LANE_SEQ_MASK, prop::collection::vec(any::<u8>(), 1..80))
    }

    /// As the sender does it: the first packet's data body, then the others.
    fn body(packets: &[Packet], incarnation: u8) -> Vec<u8> {
        let (lane, lane_seq, packet) = &packets[0];
        let header =
            DataHeader { sent: Stamp::new(77), lane: *lane, lane_seq: *lane_seq, incarnation, unqueued: 0 };
        let mut head = [0; DATA_LEN];
        header.encode(&mut head);
        let mut out = [&head, packet.as_slice()].concat();
        Bundle::begin(&mut out, 0);
        for (lane, lane_seq, packet) in &packets[1..] {
            Bundle::push(&mut out, *lane, *lane_seq, packet);
        }
        out
    }

    fn packets_of(body: &[u8]) -> Vec<Packet> {
        let bundle = Bundle::decode(body).expect("ours");
        bundle.iter().map(|(header, range)| (header.lane, header.lane_seq, body[range].to_vec())).collect()
    }

    proptest! {
        #[test]
        fn bundles_round_trip_and_have_one_encoding(
            packets in prop::collection::vec(packet(), 2..=Bundle::PACKETS_MAX),
            incarnation in any::<u8>(),
        ) {
            let bytes = body(&packets, incarnation);
            let lens: usize = packets.iter().map(|(.., packet)| Bundled::LEN + packet.len()).sum();
            prop_assert_eq!(bytes.len(), Bundle::LEN + lens);
            let bundle = Bundle::decode(&bytes).expect("ours");
            prop_assert_eq!((bundle.sent, bundle.incarnation), (Stamp::new(77), incarnation));
            prop_assert_eq!(packets_of(&bytes), packets.clone());
            for len in 0..bytes.len() {
                // What ends between two packets is another bundle.
                if let Ok(shorter) = Bundle::decode(&bytes[..len]) {
                    prop_assert!(shorter.packets() < packets.len());
                }
            }
            let longer = [&bytes[..], &[0]].concat();
            prop_assert!(Bundle::decode(&longer).is_err(), "a byte more");
        }

        #[test]
        fn whatever_is_taken_for_a_bundle_lies_within_the_body(
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
            lens in prop::collection::vec(0_u8..12, 0..40),
        ) {
            // Lengths that often fit, so that more than the first packet is looked at.
            let mut at = Bundle::LEN;
            for len in lens {
                if let Some(field) = bytes.get_mut(at + 5..at + 7) {
                    field.copy_from_slice(&[0, len]);
                }
                at += Bundled::LEN + usize::from(len);
            }
            if let Ok(bundle) = Bundle::decode(&bytes) {
                let mut end = Bundle::LEN;
                for (header, range) in bundle.iter() {
                    prop_assert_eq!(range.start, end + Bundled::LEN);
                    prop_assert_eq!(range.len(), usize::from(header.len));
                    prop_assert!(!range.is_empty() && protected_index(header.lane).is_none());
                    end = range.end;
                }
                prop_assert_eq!(end, bytes.len());
                prop_assert_eq!(bundle.iter().count(), bundle.packets());
                prop_assert!((Bundle::PACKETS_MIN..=Bundle::PACKETS_MAX).contains(&bundle.packets()));
            }
        }
    }

    #[test]
    fn a_bundle_that_breaks_a_rule_is_refused_as_a_whole() {
        let packet = |lane| (lane, 1, vec![7_u8; 3]);
        let two = body(&[packet(1), packet(2)], 0);
        let decode = |bytes: &[u8]| Bundle::decode(bytes).err();
        assert_eq!(decode(&two), None);
        assert_eq!(decode(&[]), Some(Refusal::Truncated));
        assert_eq!(decode(&two[..3]), Some(Refusal::Truncated));
        assert_eq!(decode(&two[..4]), Some(Refusal::BadRange), "no packet");
        assert_eq!(decode(&two[..14]), Some(Refusal::BadRange), "one packet");
        assert_eq!(decode(&two[..two.len() - 1]), Some(Refusal::Truncated));
        let mut empty = two.clone();
        empty[4 + 6] = 0;
        assert_eq!(decode(&empty), Some(Refusal::BadRange));
        let mut long = two.clone();
        long[4 + 5] = 0xff;
        assert_eq!(decode(&long), Some(Refusal::Truncated));
        for lane in LANE_PROTECTED..LANE_PROTECTED + PROTECTED_LANES as u16 {
            let mut protected = two.clone();
            protected[4..6].copy_from_slice(&lane.to_be_bytes());
            assert_eq!(decode(&protected), Some(Refusal::BadRange));
        }
        let full = vec![packet(1); Bundle::PACKETS_MAX];
        assert_eq!(decode(&body(&full, 0)), None);
        let over = vec![packet(1); Bundle::PACKETS_MAX + 1];
        assert_eq!(decode(&body(&over, 0)), Some(Refusal::TooMany));
    }
}
