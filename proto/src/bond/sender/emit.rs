//! Emission: what becomes of a packet once its path is chosen.
//!
//! It gets its lane and number, is held for a resend, and leaves in one datagram, in fragments, in several copies, or with
//! others in a bundle (see `bundle`).

use crate::bond::arq::{Key, NewHeld};
use crate::bond::classify::Verdict;
use crate::bond::sender::bundle::Small;
use crate::bond::sender::mode::{RoutingMode, members};
use crate::bond::sender::path::Content;
use crate::bond::sender::repair::Care;
use crate::bond::sender::{LANE_UNORDERED, LANES, Sender};
use crate::buf::PacketBuf;
use crate::path::mtu::PathMtu;
use crate::time::{Stamp, Time};
use crate::wire::v2::{CLEAR_LEN, Class, DATA_LEN, DATA_OVERHEAD, DataHeader, Flags, FrameType, TAG_LEN};
use crate::wire::{Fragment, Heartbeat, HeartbeatKind};

/// Unit of a data header's `unqueued`.
const UNQUEUED_UNIT_MS: u128 = 10;

impl Sender {
    pub(super) fn emit_first(&mut self, i: usize, packet: PacketBuf, verdict: Verdict, now: Time) {
        self.mark_flow(&verdict, &packet, now);
        if parts(packet.len(), &self.paths[i].mtu) > usize::from(Fragment::COUNT_MAX) {
            self.counters.dropped_invalid += 1;
            return;
        }
        let care = self.care(i, &verdict, packet.len());
        let (i, copies) = match care {
            Care::Copies(mode) => self.copies(i, mode, packet.len(), now),
            Care::Resend | Care::Parity => (i, 0),
        };
        if care == Care::Parity {
            let (lane, lane_seq, block) = self.protect(i, verdict.class, &packet, now);
            let path = self.paths[i].id;
            let (class, block) = (verdict.class, Some(block));
            let datagram = verdict.datagram;
            let new = NewHeld { packet, lane, lane_seq, ordered: false, datagram, class, path, block };
            let key = self.store.hold(new, now);
            self.counters.packets_sent += 1;
            self.emit_data(i, key, Flags::FEC, now);
            self.close_full(class, now);
            return;
        }
        let lane = if verdict.ordered { (verdict.flow.0 % u64::from(LANES)) as u16 } else { LANE_UNORDERED };
        let counter = match self.lane_seqs.get_mut(usize::from(lane)) {
            Some(c) => c,
            None => &mut self.unordered_seq,
        };
        let lane_seq = *counter;
        *counter = (lane_seq + 1) & 0xff_ffff;
        let (path, class) = (self.paths[i].id, verdict.class);
        let (ordered, datagram) = (verdict.ordered, verdict.datagram);
        let new = NewHeld { packet, lane, lane_seq, ordered, datagram, class, path, block: None };
        let key = self.store.hold(new, now);
        self.counters.packets_sent += 1;
        self.paths[i].conduct.on_given();
        // Copies are to share no fate.
        if copies == 0 && self.config.mode != RoutingMode::Broadcast {
            self.emit_packed(i, key, Flags(0), now);
        } else {
            self.emit_data(i, key, Flags(0), now);
        }
        self.emit_duplicates(copies, key, now);
        if verdict.ordered && self.config.mode == RoutingMode::Adaptive {
            self.try_out(key, now);
        }
        for j in members(std::mem::take(&mut self.policy.copies)) {
            self.store.retain(key);
            self.counters.broadcast += 1;
            self.emit_data(j, key, Flags::DUPLICATE, now);
        }
    }

    /// Sends a held packet once more; the caller has accounted for its reference.
    pub(super) fn emit_copy(&mut self, i: usize, key: Key, now: Time) {
        let path = self.paths[i].id;
        let held = self.store.held_mut(key);
        held.sends = held.sends.saturating_add(1);
        held.last_path = path;
        self.emit_packed(i, key, Flags::DUPLICATE, now);
    }

    /// Sends a packet in the datagram that was made last, if it may join that, or in one that others may join.
    fn emit_packed(&mut self, i: usize, key: Key, flags: Flags, now: Time) {
        let small = Small::new(self.store.held(key), flags);
        let p = &mut self.paths[i];
        // Where packets are lost at random, one loss is not to cost several.
        let shares = self.config.bundles && p.setup.bundles && !p.random.is_lossy();
        let Some(small) = small.filter(|_| shares) else {
            return self.emit_data(i, key, flags, now);
        };
        if p.join(key, &small, now) {
            self.counters.bundled += 1;
            return;
        }
        let (class, datagram) = (small.class, small.datagram);
        self.emit_data(i, key, flags, now);
        self.paths[i].leave_open(flags, class, datagram, now);
    }

    /// Copies of bulk on paths of unknown rate that are parked or not admitted yet, as fast as they take them.
    fn try_out(&mut self, key: Key, now: Time) {
        for j in 0..self.paths.len() {
            let p = &mut self.paths[j];
            let fits = p.is_on_trial()
                && parts(self.store.held(key).packet.len(), &p.mtu) == 1
                && p.is_open(self.config.ahead, now)
                && p.has_room();
            if fits {
                p.trial_left -= 1;
                self.store.retain(key);
                self.counters.copied += 1;
                self.emit_content(j, key, Content::Copy(key), Flags::DUPLICATE, now);
            }
        }
    }

    pub(super) fn emit_data(&mut self, i: usize, key: Key, flags: Flags, now: Time) {
        self.emit_content(i, key, Content::Data(key), flags, now);
    }

    fn emit_content(&mut self, i: usize, key: Key, content: Content, flags: Flags, now: Time) {
        let held = self.store.held(key);
        let header = DataHeader {
            sent: now.stamp(),
            lane: held.lane,
            lane_seq: held.lane_seq,
            incarnation: self.incarnation,
            unqueued: self.unqueued(now),
        };
        let mut head = [0; DATA_LEN];
        header.encode(&mut head);
        let count = parts(held.packet.len(), &self.paths[i].mtu);
        if count > 1 {
            self.emit_parts(i, key, flags, &head, count, now);
            return;
        }
        self.paths[i].emit(FrameType::Data, flags, held.class, content, now, |slab| {
            slab.extend_from_slice(&head);
            slab.extend_from_slice(&held.packet);
        });
    }

    /// What a data header says of the time that nothing has waited.
    fn unqueued(&self, now: Time) -> u8 {
        (now.since(self.waited_at).as_millis() / UNQUEUED_UNIT_MS).min(255) as u8
    }

    /// Sends a packet that is too long for the path in `count` datagrams, each with a reference of its own.
    fn emit_parts(&mut self, i: usize, key: Key, flags: Flags, head: &[u8], count: usize, now: Time) {
        let held = self.store.held(key);
        let part_len = held.packet.len().div_ceil(count.min(usize::from(Fragment::COUNT_MAX)));
        let count = held.packet.len().div_ceil(part_len) as u8;
        let cut = self.store.cut(key);
        for _ in 1..count {
            self.store.retain(key);
        }
        self.counters.fragments += u64::from(count);
        let held = self.store.held(key);
        for (index, part) in (0..).zip(held.packet.chunks(part_len)) {
            let fragment = Fragment { index, count };
            let flags = flags.with(fragment.flags());
            let content = Content::Part(key, fragment, cut);
            self.paths[i].emit(FrameType::Data, flags, held.class, content, now, |slab| {
                slab.extend_from_slice(head);
                fragment.encode_into(slab);
                slab.extend_from_slice(part);
            });
        }
    }

    /// Sends a datagram of `size` bytes to see whether it passes. The small one behind it shows soon when it
    /// does not, and keeps its loss from looking like silence.
    pub(super) fn emit_probe(&mut self, i: usize, size: usize, now: Time) {
        let p = &mut self.paths[i];
        let mut beat =
            Heartbeat { sent: now.stamp(), kind: HeartbeatKind::Probe, id: p.ping_id, echo: Stamp::new(0) };
        let content = Content::Probe(u16::try_from(size).unwrap_or(u16::MAX));
        let padded = size.saturating_sub(CLEAR_LEN + TAG_LEN);
        p.emit(FrameType::Heartbeat, Flags(0), Class::BestEffort, content, now, |slab| {
            let start = slab.len();
            beat.encode_into(slab);
            slab.resize(start + padded.max(Heartbeat::LEN), 0);
        });
        beat.kind = HeartbeatKind::Tail;
        self.emit_heartbeat(i, &beat, now);
    }

    pub(super) fn emit_heartbeat(&mut self, i: usize, heartbeat: &Heartbeat, now: Time) {
        let mut body = Vec::with_capacity(16);
        heartbeat.encode_into(&mut body);
        self.paths[i].emit(FrameType::Heartbeat, Flags(0), Class::BestEffort, Content::Other, now, |slab| {
            slab.extend_from_slice(&body);
        });
    }
}

/// How many datagrams a packet of `len` bytes takes on a path.
fn parts(len: usize, mtu: &PathMtu) -> usize {
    let room = mtu.current().saturating_sub(DATA_OVERHEAD);
    if len <= room { 1 } else { len.div_ceil(room.saturating_sub(Fragment::LEN).max(1)) }
}
