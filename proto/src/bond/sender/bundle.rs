//! Small packets that leave by the same path at the same moment share a datagram: one path sequence, one seal, one header.
//!
//! Nothing waits for company. The scheduler places packets one by one as ever; one that was placed on the path of the one
//! before it joins that one's datagram while it has not been handed out. So what goes first (acknowledgements, DNS) leaves no
//! later than it would in datagrams of its own, and in the same order; beside queued bulk a wire that is free sooner may take a
//! long packet sooner, too, and what comes next then waits for that one. What goes first and waits because no wire is free
//! (acknowledgements on a thin uplink) goes along with the one that may leave.
//!
//! On a path that loses packets at random they travel alone: one loss would cost several.
//!
//! A datagram arrives as a whole, though: its first packet comes when its last does. Hence it takes no more of its path's
//! time than [`SHARED_SECS`], and [`HASTY_SECS`] more once it has a packet that is not TCP: a train of acknowledgements
//! does not hold up an echo on a thin link.

use crate::bond::arq::{Held, Key};
use crate::bond::batch::BATCH_BYTES_MAX;
use crate::bond::classify::Verdict;
use crate::bond::sender::path::{Content, PathSender};
use crate::time::Time;
use crate::wire::v2::{CLEAR_LEN, Class, Clear, Flags, FrameType, TAG_LEN};
use crate::wire::{Bundle, Bundled, protected_index};

/// Longest packet that shares, bytes: of a longer one the headers are less than an eighth.
const SHARED_LEN_MAX: usize = 512;
/// A shared datagram takes no more of its path's time, seconds: as much as a batch.
const SHARED_SECS: f64 = 0.004;
/// Packets that join one that is not TCP take no more, seconds.
const HASTY_SECS: f64 = 0.0005;

/// The newest datagram of a path's batch, which small packets may join.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenDatagram {
    path_seq: u64,
    at: Time,
    flags: Flags,
    class: Class,
    packets: usize,
    /// Longest that it may become.
    len_max: usize,
}

impl OpenDatagram {
    fn is_for(&self, flags: Flags, class: Class, now: Time) -> bool {
        self.at == now && self.flags == flags && self.class == class
    }
}

/// A packet that may share a datagram with others.
pub(super) struct Small<'a> {
    lane: u16,
    lane_seq: u32,
    flags: Flags,
    pub(super) class: Class,
    /// Not TCP.
    pub(super) datagram: bool,
    packet: &'a [u8],
}

impl<'a> Small<'a> {
    /// A held packet, if it is short and no parity counts on its loss being its own.
    pub(super) fn new(held: &'a Held, flags: Flags) -> Option<Self> {
        let small = held.packet.len() <= SHARED_LEN_MAX && protected_index(held.lane).is_none();
        small.then(|| Self {
            lane: held.lane,
            lane_seq: held.lane_seq,
            flags,
            class: held.class,
            datagram: held.datagram,
            packet: &held.packet,
        })
    }
}

impl Content {
    fn add(&mut self, key: Key) {
        match self {
            Self::Bundle(keys) => keys.push(key),
            Self::Data(first) => {
                let mut keys = Vec::with_capacity(8);
                keys.extend([*first, key]);
                *self = Self::Bundle(keys);
            }
            Self::Part(..)
            | Self::Probe(_)
            | Self::Copy(_)
            | Self::Skip(..)
            | Self::Parity(_)
            | Self::Other => debug_assert!(false, "only lone packets and bundles are left open"),
        }
    }
}

impl PathSender {
    /// Lets others join the data datagram that was just made.
    pub(super) fn leave_open(&mut self, flags: Flags, class: Class, datagram: bool, now: Time) {
        let Some(last) = self.batch.segments.last() else { return };
        let len_max = self.mtu.current().min(self.bytes_in(SHARED_SECS));
        let mut open = OpenDatagram { path_seq: last.path_seq, at: now, flags, class, packets: 1, len_max };
        if datagram {
            open.len_max = len_max.min(usize::from(last.len) + self.bytes_in(HASTY_SECS));
        }
        self.open = Some(open);
    }

    /// Whether a packet that is sent for the first time would join the newest datagram.
    pub(super) fn takes_along(&self, packet: &[u8], verdict: &Verdict, now: Time) -> bool {
        let Some(open) = self.open.filter(|open| open.is_for(Flags::NONE, verdict.class, now)) else {
            return false;
        };
        let last = self.batch.segments.last().filter(|last| last.path_seq == open.path_seq);
        let added = Bundle::GROWTH + Bundled::LEN + packet.len();
        packet.len() <= SHARED_LEN_MAX
            && open.packets < Bundle::PACKETS_MAX
            && last.is_some_and(|last| usize::from(last.len) + added <= open.len_max)
    }

    /// Puts a packet into the newest datagram; false when it cannot join that one, and nothing has changed.
    pub(super) fn join(&mut self, key: Key, small: &Small<'_>, now: Time) -> bool {
        let hasty = self.bytes_in(HASTY_SECS);
        let receiver = self.setup.receiver;
        let Some(open) = self.open.as_mut().filter(|open| open.is_for(small.flags, small.class, now)) else {
            return false;
        };
        let (path_seq, lone) = (open.path_seq, open.packets == 1);
        // A batch that was handed out took the datagram along; another frame may have followed it.
        let Some(last) = self.batch.segments.last_mut().filter(|last| last.path_seq == path_seq) else {
            return false;
        };
        let added = if lone { Bundle::GROWTH } else { 0 } + Bundled::LEN + small.packet.len();
        let len = usize::from(last.len) + added;
        let full = open.packets == Bundle::PACKETS_MAX || len > open.len_max;
        if full || self.batch.slab.len() + added > BATCH_BYTES_MAX {
            return false;
        }
        if !self.flight.extend_newest(path_seq, added as u32, |content| content.add(key)) {
            return false;
        }
        open.packets += 1;
        if small.datagram {
            open.len_max = open.len_max.min(len + hasty);
        }
        last.len = len as u16;
        let offset = last.offset as usize;
        let slab = &mut self.batch.slab;
        slab.truncate(slab.len() - TAG_LEN);
        if lone {
            let clear = Clear {
                key_phase: false,
                frame: FrameType::Bundle,
                flags: small.flags,
                class: small.class,
                receiver,
                path_seq_low: path_seq as u32,
            };
            let mut head = [0; CLEAR_LEN];
            clear.encode(&mut head);
            slab[offset..offset + CLEAR_LEN].copy_from_slice(&head);
            Bundle::begin(slab, offset + CLEAR_LEN);
        }
        Bundle::push(slab, small.lane, small.lane_seq, small.packet);
        slab.resize(slab.len() + TAG_LEN, 0);
        self.book(added, now);
        true
    }

    /// UDP payload bytes that take so much of the path's time.
    fn bytes_in(&self, secs: f64) -> usize {
        (self.rate.rate() * secs / 8.0) as usize
    }
}
