//! One lane: a ring of slots from the next sequence to hand on.

use std::collections::VecDeque;

use super::pauses::Pauses;
use super::seen::{Seen, Sight};
use crate::buf::PacketBuf;
use crate::time::Time;

/// A lane never holds more than this many sequences; when the sender is further ahead, it starts anew there.
const LANE_SLOTS_MAX: i32 = 1 << 14;
/// A lane that starts below this starts at zero: its first packets are only out of order.
const START_NEAR: u32 = 256;

/// `a - b` of 24-bit sequences, as a signed number.
pub(super) fn signed(a: u32, b: u32) -> i32 {
    ((a.wrapping_sub(b) << 8) as i32) >> 8
}

#[derive(Debug)]
enum Slot {
    Missing(Time),
    Skipped,
    Held(PacketBuf),
}

/// What became of a packet.
#[derive(Debug)]
pub(super) enum Placed {
    /// In the ring; perhaps ready.
    Held,
    /// Its gap had been given up: to be handed on out of order.
    Late(PacketBuf),
    /// Known already.
    Duplicate,
    /// So far behind that it cannot be told from a copy.
    TooOld,
    /// Too far ahead of the lane: what was held is returned, and the lane starts with this packet.
    Restarted(Vec<PacketBuf>),
}

#[derive(Debug)]
pub(super) struct Lane {
    next: u32,
    slots: VecDeque<Slot>,
    seen: Seen,
    pub(super) pauses: Pauses,
}

impl Lane {
    /// A lane whose first packet has sequence `first`.
    pub(super) fn new(first: u32) -> Self {
        let next = if first < START_NEAR { 0 } else { first };
        Self { next, slots: VecDeque::new(), seen: Seen::default(), pauses: Pauses::default() }
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn place(&mut self, seq: u32, packet: PacketBuf, deadline: Time) -> Placed {
        let ahead = signed(seq, self.next);
        if ahead < 0 {
            return match self.seen.insert(seq) {
                Sight::New => Placed::Late(packet),
                Sight::Known => Placed::Duplicate,
                Sight::TooOld => Placed::TooOld,
            };
        }
        if ahead >= LANE_SLOTS_MAX {
            let mut held = Vec::new();
            for slot in std::mem::take(&mut self.slots) {
                if let Some(packet) = into_packet(slot) {
                    // The sender is the same one: copies of these may come yet.
                    self.seen.insert(self.next);
                    held.push(packet);
                }
                self.step();
            }
            self.next = seq;
            self.slots.push_back(Slot::Held(packet));
            return Placed::Restarted(held);
        }
        let i = self.reach(ahead, deadline);
        match self.slots[i] {
            Slot::Held(_) => Placed::Duplicate,
            Slot::Missing(_) | Slot::Skipped => {
                self.slots[i] = Slot::Held(packet);
                Placed::Held
            }
        }
    }

    /// Marks `len` sequences from `seq` as not to be waited for; says how many were waited for.
    pub(super) fn skip(&mut self, seq: u32, len: u8, deadline: Time) -> u64 {
        let mut count = 0;
        for k in 0..u32::from(len) {
            let ahead = signed(seq.wrapping_add(k) & 0xff_ffff, self.next);
            if !(0..LANE_SLOTS_MAX).contains(&ahead) {
                continue;
            }
            let i = self.reach(ahead, deadline);
            if matches!(self.slots[i], Slot::Missing(_)) {
                self.slots[i] = Slot::Skipped;
                count += 1;
            }
        }
        count
    }

    /// Extends the ring to `ahead`; what is new is missing until `deadline`.
    fn reach(&mut self, ahead: i32, deadline: Time) -> usize {
        let i = ahead as usize;
        while self.slots.len() <= i {
            self.slots.push_back(Slot::Missing(deadline));
        }
        i
    }

    /// The next packet in order.
    pub(super) fn pop_ready(&mut self) -> Option<PacketBuf> {
        loop {
            match self.slots.front()? {
                Slot::Missing(_) => return None,
                Slot::Skipped => {
                    self.slots.pop_front();
                    self.step();
                }
                Slot::Held(_) => {
                    let slot = self.slots.pop_front()?;
                    self.seen.insert(self.next);
                    self.step();
                    return into_packet(slot);
                }
            }
        }
    }

    fn step(&mut self) {
        self.next = (self.next + 1) & 0xff_ffff;
    }

    /// When the first gap is to be given up.
    pub(super) fn head_deadline(&self) -> Option<Time> {
        match self.slots.front()? {
            Slot::Missing(at) => Some(*at),
            Slot::Skipped | Slot::Held(_) => None,
        }
    }

    /// Gives up the first missing sequence.
    pub(super) fn drop_head_gap(&mut self) {
        if matches!(self.slots.front(), Some(Slot::Missing(_))) {
            self.slots.pop_front();
            self.step();
        }
    }

    pub(super) fn into_held(self) -> impl Iterator<Item = PacketBuf> {
        self.slots.into_iter().filter_map(into_packet)
    }
}

fn into_packet(slot: Slot) -> Option<PacketBuf> {
    match slot {
        Slot::Held(packet) => Some(packet),
        Slot::Missing(_) | Slot::Skipped => None,
    }
}
