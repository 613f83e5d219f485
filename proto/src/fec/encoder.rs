//! Blocks at the sender: gathered, then watched until it is known whether the receiver has them.

use crate::fec::Packed;
use crate::time::Time;

/// What a watched block has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Not known yet.
    Open,
    /// As many shards have arrived as it has packets: the receiver has all of them.
    Whole,
    /// Too many shards are lost: what is lost must be sent again.
    Broken,
}

/// One block of one lane. `K` is how the sender calls a held packet.
#[derive(Debug)]
pub(crate) struct Block<K> {
    pub(crate) lane: u16,
    pub(crate) lane_seq: u32,
    /// When its first packet was sent.
    pub(crate) since: Time,
    /// Copies of its packets until the codec gets them.
    pub(crate) packets: Packed,
    /// Packets that it protects.
    pub(crate) data: u8,
    /// Parity shards that can still arrive or have arrived; what is planned while it is being filled.
    pub(crate) parity: u8,
    /// Parity shards that the codec has been asked for and has not delivered.
    pub(crate) awaited: bool,
    /// Full, or late: nothing is added any more.
    pub(crate) closed: bool,
    /// Shards sent per path, by index of the path's id.
    pub(crate) per_path: Vec<(u8, u8)>,
    /// Shards that arrived.
    arrived: u8,
    /// Shards that were lost.
    lost: u8,
    /// Lost packets that the receiver may rebuild.
    pub(crate) waiting: Vec<K>,
    /// The receiver had enough of it at some time.
    whole: bool,
}

impl<K> Block<K> {
    pub(crate) fn new(lane: u16, lane_seq: u32, parity: u8, now: Time) -> Self {
        Self {
            lane,
            lane_seq,
            since: now,
            packets: Packed::default(),
            data: 0,
            parity,
            awaited: false,
            closed: false,
            per_path: Vec::new(),
            arrived: 0,
            lost: 0,
            waiting: Vec::new(),
            whole: false,
        }
    }

    /// Notes that a shard goes by a path.
    pub(crate) fn note_path(&mut self, path: u8) {
        match self.per_path.iter_mut().find(|(id, _)| *id == path) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => self.per_path.push((path, 1)),
        }
    }

    /// Shards that went by a path.
    pub(crate) fn on_path(&self, path: u8) -> u8 {
        self.per_path.iter().find(|(id, _)| *id == path).map_or(0, |(_, count)| *count)
    }

    pub(crate) fn shard_arrived(&mut self) {
        self.arrived = self.arrived.saturating_add(1);
        // While it is being filled, nobody can rebuild anything: its parity does not exist.
        self.whole |= self.closed && self.arrived >= self.data;
    }

    pub(crate) fn shard_lost(&mut self) {
        self.lost = self.lost.saturating_add(1);
    }

    /// What it has come to.
    pub(crate) fn standing(&self) -> Standing {
        if self.whole || (self.closed && self.arrived >= self.data) {
            Standing::Whole
        } else if self.lost > self.parity {
            Standing::Broken
        } else {
            Standing::Open
        }
    }

    /// Whether the fate of every shard is known, so that nothing will be asked about it any more.
    pub(crate) fn is_settled(&self) -> bool {
        let shards = u16::from(self.data) + u16::from(self.parity);
        self.closed && !self.awaited && u16::from(self.arrived) + u16::from(self.lost) >= shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(data: u8, parity: u8) -> Block<u32> {
        let mut block = Block::new(0xfffb, 0, parity, Time::ZERO);
        block.data = data;
        block.closed = true;
        block
    }

    #[test]
    fn enough_is_whole_and_too_few_is_broken() {
        let mut whole = block(3, 2);
        whole.shard_lost();
        (0..3).for_each(|_| whole.shard_arrived());
        assert_eq!(whole.standing(), Standing::Whole);
        assert!(!whole.is_settled());
        whole.shard_lost();
        assert!(whole.is_settled());

        let mut broken = block(3, 2);
        (0..2).for_each(|_| broken.shard_lost());
        assert_eq!(broken.standing(), Standing::Open);
        broken.shard_lost();
        assert_eq!(broken.standing(), Standing::Broken);
    }

    #[test]
    fn a_block_that_is_being_filled_is_not_whole() {
        let mut open = block(1, 1);
        open.closed = false;
        open.shard_arrived();
        assert_eq!(open.standing(), Standing::Open);
    }
}
