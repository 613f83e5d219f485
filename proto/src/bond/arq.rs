//! The packets that may have to be sent again, and in which order.
//!
//! A packet lives here from its first sending until every datagram that carried it is resolved.
//! Datagrams refer to it by key, so that copies on several paths share one buffer.

use std::collections::VecDeque;

use crate::buf::PacketBuf;
use crate::time::Time;
use crate::wire::v2::Class;
use crate::wire::{Fragment, PathId};

/// Most times one packet is sent, the first included.
pub(crate) const SENDS_MAX: u8 = 6;

/// Key of a held packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(u32);

/// A packet that was sent and may be sent again.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) packet: PacketBuf,
    pub(crate) lane: u16,
    pub(crate) lane_seq: u32,
    pub(crate) ordered: bool,
    /// Not TCP.
    pub(crate) datagram: bool,
    pub(crate) class: Class,
    pub(crate) first_sent: Time,
    /// Where it went first.
    pub(crate) first_path: PathId,
    pub(crate) last_path: PathId,
    /// How often it was sent.
    pub(crate) sends: u8,
    /// Of each sending in fragments: which of them arrived, by index.
    cuts: Vec<u64>,
    /// It waits in the queue.
    queued: bool,
    /// Datagrams in flight that carry it, plus one while it is queued for resending.
    refs: u16,
    /// The block that protects it.
    pub(crate) block: Option<u64>,
    /// It went by several paths at once: it is lost when all of them have lost it.
    pub(crate) duplicated: bool,
    /// Some copy arrived.
    pub(crate) delivered: bool,
}

/// Held packets and the queue of those to be sent again.
#[derive(Debug, Default)]
pub(crate) struct ResendStore {
    slots: Vec<Option<Held>>,
    idle: Vec<u32>,
    queue: VecDeque<Key>,
    bytes: usize,
    arrived: u64,
}

/// What a packet is held with, at its first sending.
pub(crate) struct NewHeld {
    pub(crate) packet: PacketBuf,
    pub(crate) lane: u16,
    pub(crate) lane_seq: u32,
    pub(crate) ordered: bool,
    pub(crate) datagram: bool,
    pub(crate) class: Class,
    pub(crate) path: PathId,
    pub(crate) block: Option<u64>,
}

impl ResendStore {
    /// Holds a packet carried by one datagram.
    pub(crate) fn hold(&mut self, new: NewHeld, now: Time) -> Key {
        self.bytes += new.packet.len();
        let held = Held {
            packet: new.packet,
            lane: new.lane,
            lane_seq: new.lane_seq,
            ordered: new.ordered,
            datagram: new.datagram,
            class: new.class,
            first_sent: now,
            first_path: new.path,
            last_path: new.path,
            sends: 1,
            cuts: Vec::new(),
            queued: false,
            refs: 1,
            block: new.block,
            duplicated: false,
            delivered: false,
        };
        match self.idle.pop() {
            Some(i) => {
                self.slots[i as usize] = Some(held);
                Key(i)
            }
            None => {
                self.slots.push(Some(held));
                Key((self.slots.len() - 1) as u32)
            }
        }
    }

    pub(crate) fn held(&self, key: Key) -> &Held {
        self.slots[key.0 as usize].as_ref().expect("a referenced packet is held")
    }

    pub(crate) fn held_mut(&mut self, key: Key) -> &mut Held {
        self.slots[key.0 as usize].as_mut().expect("a referenced packet is held")
    }

    /// One more datagram carries it.
    pub(crate) fn retain(&mut self, key: Key) {
        self.held_mut(key).refs += 1;
    }

    /// Whether another datagram carries it, or it is queued besides.
    pub(crate) fn is_shared(&self, key: Key) -> bool {
        self.held(key).refs > 1
    }

    /// One reference less; the buffer goes back to its pool with the last.
    pub(crate) fn release(&mut self, key: Key) {
        let held = self.held_mut(key);
        held.refs -= 1;
        if held.refs == 0 {
            let (len, delivered) = (held.packet.len(), held.delivered);
            self.bytes -= len;
            self.arrived += u64::from(delivered);
            self.slots[key.0 as usize] = None;
            self.idle.push(key.0);
        }
    }

    /// Queues a packet whose datagram was lost; takes over that datagram's reference. Another lost
    /// fragment of a packet that waits already changes nothing.
    pub(crate) fn queue(&mut self, key: Key) {
        let held = self.held_mut(key);
        if !held.cuts.is_empty() && held.queued {
            self.release(key);
            return;
        }
        held.queued = true;
        self.queue.push_back(key);
    }

    /// The packet is sent in fragments; gives the number of this sending among those.
    pub(crate) fn cut(&mut self, key: Key) -> u8 {
        let cuts = &mut self.held_mut(key).cuts;
        cuts.push(0);
        (cuts.len() - 1) as u8
    }

    /// A fragment arrived: the packet has when all of one sending have. Those of several may not have met at the
    /// receiver, which forgets what stays incomplete.
    pub(crate) fn part_arrived(&mut self, key: Key, part: Fragment, cut: u8) {
        let held = self.held_mut(key);
        if let Some(arrived) = held.cuts.get_mut(usize::from(cut)) {
            *arrived |= 1 << (part.index & 63);
            held.delivered |= arrived.count_ones() == u32::from(part.count);
        }
    }

    /// The next packet to send again that still matters; finished ones are let go on the way.
    pub(crate) fn next(&mut self) -> Option<Key> {
        while let Some(&key) = self.queue.front() {
            if !self.held(key).delivered {
                return Some(key);
            }
            self.pop();
            self.release(key);
        }
        None
    }

    /// Takes the front of the queue off; its reference passes to the caller.
    pub(crate) fn pop(&mut self) -> Option<Key> {
        let key = self.queue.pop_front()?;
        self.held_mut(key).queued = false;
        Some(key)
    }

    /// Packets waiting to be sent again.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Packets let go because they arrived; those let go otherwise have been given up.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Packets held.
    pub(crate) fn packets(&self) -> usize {
        self.slots.len() - self.idle.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::BufPool;

    fn new(pool: &BufPool) -> NewHeld {
        NewHeld {
            packet: pool.copy_from(b"abcd").expect("fits"),
            lane: 1,
            lane_seq: 2,
            ordered: true,
            datagram: false,
            class: Class::BestEffort,
            path: PathId(0),
            block: None,
        }
    }

    #[test]
    fn a_packet_lives_until_its_last_reference_goes() {
        let pool = BufPool::new(16, 4);
        let mut store = ResendStore::default();
        let key = store.hold(new(&pool), Time::ZERO);
        store.retain(key);
        store.release(key);
        assert_eq!((store.packets(), store.bytes()), (1, 4));
        store.queue(key);
        assert_eq!(store.next(), Some(key));
        store.held_mut(key).delivered = true;
        assert_eq!(store.next(), None);
        assert_eq!((store.packets(), store.bytes(), store.arrived()), (0, 0, 1));
    }

    #[test]
    fn slots_are_reused() {
        let pool = BufPool::new(16, 4);
        let mut store = ResendStore::default();
        for _ in 0..100 {
            let key = store.hold(new(&pool), Time::ZERO);
            store.release(key);
        }
        assert_eq!(store.slots.len(), 1);
    }
}
