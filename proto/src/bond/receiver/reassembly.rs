//! Puts the fragments of inner packets together, before anything else looks at them.
//!
//! A packet enters the resequencer when it is whole, so neither lanes nor the filter of copies know of
//! fragments. Each fragment names its place; what would overlap cannot be said. What stays incomplete is
//! forgotten with age or when newer packets need the room: whoever sent it repairs whole packets.

use std::collections::VecDeque;
use std::time::Duration;

use crate::buf::PacketBuf;
use crate::time::Time;
use crate::wire::Fragment;
use crate::wire::v2::{DATA_LEN, DataHeader};

/// Incomplete packets kept at a time.
const PACKETS_MAX: usize = 256;
/// Fragments of all of them.
const FRAGMENTS_MAX: usize = 1024;
/// An incomplete packet older than this is forgotten; a resend needs less.
const AGE_MAX: Duration = Duration::from_secs(1);

/// What tells sendings apart: incarnation, lane, lane sequence, and how many fragments there are.
type Name = (u8, u16, u32, u8);

struct Partial {
    name: Name,
    since: Time,
    missing: usize,
    parts: Vec<Option<PacketBuf>>,
}

/// The incomplete packets of a session, oldest first.
#[derive(Default)]
pub(super) struct Reassembly {
    partial: VecDeque<Partial>,
    fragments: usize,
    /// Packets forgotten incomplete.
    pub(super) failed: u64,
    /// Packets put together.
    pub(super) whole: u64,
}

impl Reassembly {
    /// Takes one fragment, `plain` being the whole opened body; gives the packet when it is complete.
    pub(super) fn handle(
        &mut self,
        header: DataHeader,
        fragment: Fragment,
        plain: PacketBuf,
        now: Time,
    ) -> Option<PacketBuf> {
        self.forget_old(now);
        let name = (header.incarnation, header.lane, header.lane_seq, fragment.count);
        let count = usize::from(fragment.count);
        let at = self.partial.iter().position(|partial| partial.name == name);
        let i = at.unwrap_or_else(|| {
            let parts = (0..count).map(|_| None).collect();
            self.partial.push_back(Partial { name, since: now, missing: count, parts });
            self.partial.len() - 1
        });
        let partial = &mut self.partial[i];
        let place = &mut partial.parts[usize::from(fragment.index)];
        if place.is_none() {
            *place = Some(plain);
            partial.missing -= 1;
            self.fragments += 1;
        }
        if partial.missing > 0 {
            while self.partial.len() > PACKETS_MAX || self.fragments > FRAGMENTS_MAX {
                self.failed += 1;
                self.forget(0);
            }
            return None;
        }
        let packet = join(self.forget(i)?);
        match packet {
            Some(_) => self.whole += 1,
            None => self.failed += 1,
        }
        packet
    }

    fn forget_old(&mut self, now: Time) {
        while self.partial.front().is_some_and(|oldest| now - oldest.since > AGE_MAX) {
            self.failed += 1;
            self.forget(0);
        }
    }

    fn forget(&mut self, i: usize) -> Option<Partial> {
        let partial = self.partial.remove(i)?;
        self.fragments -= partial.parts.len() - partial.missing;
        Some(partial)
    }
}

/// One packet out of all its parts; nothing when it is longer than a buffer.
fn join(partial: Partial) -> Option<PacketBuf> {
    let start = DATA_LEN + Fragment::LEN;
    let mut parts = partial.parts.into_iter().flatten();
    let mut packet = parts.next()?;
    let len = packet.len().checked_sub(start)?;
    // To the front: the room is needed behind.
    packet.copy_within(start.., 0);
    packet.set_len(len);
    parts.all(|part| packet.extend_from_slice(part.get(start..).unwrap_or_default())).then_some(packet)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::buf::BufPool;
    use crate::time::Stamp;

    fn header(lane_seq: u32) -> DataHeader {
        DataHeader { sent: Stamp::new(0), lane: 7, lane_seq, incarnation: 1, unqueued: 0 }
    }

    fn body(pool: &BufPool, bytes: &[u8]) -> PacketBuf {
        pool.copy_from(&[&[0; DATA_LEN + Fragment::LEN], bytes].concat()).unwrap()
    }

    proptest! {
        #[test]
        fn whatever_the_order_a_packet_comes_out_as_it_went_in(
            packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 10..1400), 2u8..10), 1..20),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 400),
        ) {
            let pool = BufPool::new(2048, 64);
            let mut all: Vec<(u32, Fragment, Vec<u8>)> = Vec::new();
            for (seq, (packet, count)) in (0u32..).zip(&packets) {
                let part = packet.len().div_ceil(usize::from(*count));
                let chunks: Vec<&[u8]> = packet.chunks(part).collect();
                let count = chunks.len() as u8;
                for (index, chunk) in (0..).zip(chunks) {
                    all.push((seq, Fragment { index, count }, chunk.to_vec()));
                }
            }
            // Some twice.
            for pick in &picks[..20] {
                all.push(pick.get(&all).clone());
            }
            let mut machine = Reassembly::default();
            let mut out = vec![None; packets.len()];
            for pick in &picks {
                if all.is_empty() {
                    break;
                }
                let (seq, fragment, bytes) = all.swap_remove(pick.index(all.len()));
                let got = machine.handle(header(seq), fragment, body(&pool, &bytes), Time::from_millis(5));
                if let Some(packet) = got {
                    out[seq as usize].get_or_insert(packet.to_vec());
                }
            }
            prop_assert!(all.is_empty());
            for ((packet, _), got) in packets.iter().zip(&out) {
                prop_assert_eq!(Some(packet), got.as_ref());
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_old_parts_are_forgotten() {
        let pool = BufPool::new(2048, 64);
        let mut machine = Reassembly::default();
        for seq in 0..100_000 {
            let part = Fragment { index: (seq % 63) as u8, count: 64 };
            assert!(machine.handle(header(seq), part, body(&pool, b"x"), Time::from_millis(1)).is_none());
            assert!(machine.partial.len() <= PACKETS_MAX && machine.fragments <= FRAGMENTS_MAX);
        }
        let part = Fragment { index: 0, count: 2 };
        assert!(machine.handle(header(1), part, body(&pool, b"x"), Time::from_millis(2_000)).is_none());
        assert_eq!((machine.partial.len(), machine.fragments), (1, 1));
        assert_eq!(machine.failed, 100_000);
    }

    #[test]
    fn more_than_a_buffer_holds_is_no_packet() {
        let pool = BufPool::new(2048, 64);
        let mut machine = Reassembly::default();
        for index in 0..3 {
            let part = Fragment { index, count: 3 };
            assert!(machine.handle(header(1), part, body(&pool, &[7; 1000]), Time::ZERO).is_none());
        }
        assert_eq!((machine.failed, machine.fragments), (1, 0));
    }
}
