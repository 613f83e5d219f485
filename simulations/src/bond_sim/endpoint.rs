//! One node of the simulated session: both machines, its clock, and the plumbing between them.

use std::collections::VecDeque;

use mwb_proto::bond::{
    BATCH_BYTES_MAX, BATCH_PACKETS_MAX, PathSetup, Receiver, ReceiverSnapshot, RxItem, Sender, SenderConfig,
    SenderEvent, SenderSnapshot, TxBatch,
};
use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::fec::{FecCodec, FecDone};
use mwb_proto::time::Time;
use mwb_proto::wire::v2::{CLEAR_LEN, Clear, FrameType, TAG_LEN};
use mwb_proto::wire::{PathId, Report};

use super::invariant::Ledger;
use super::{Scenario, Side};
use crate::virtual_time::NodeClock;

/// Bytes that wait in the socket of a node that does not read, as on stock hosts; what exceeds them is lost.
const SOCKET_BYTES: usize = 208 << 10;
/// Inner packets that wait in its TUN device.
const TUN_PACKETS: usize = 500;

/// What the kernel keeps for a node that gets no processor.
#[derive(Debug, Default)]
struct Asleep {
    datagrams: VecDeque<Arrived>,
    bytes: usize,
    inner: VecDeque<PacketBuf>,
}

/// A datagram that came off a link, and when.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) path: PathId,
    pub(super) path_seq: u64,
    pub(super) bytes: PacketBuf,
    /// UDP payload bytes, tag included.
    pub(super) len: usize,
    pub(super) at: Time,
}

/// A datagram to be put on a link.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) path: PathId,
    pub(super) path_seq: u64,
    /// Clear header and plain body.
    pub(super) bytes: PacketBuf,
    /// UDP payload bytes, tag included.
    pub(super) len: usize,
}

pub(super) struct Endpoint {
    side: Side,
    clock: NodeClock,
    sender: Sender,
    receiver: Receiver,
    codec: FecCodec,
    pool: BufPool,
    batch: TxBatch,
    outgoing: VecDeque<Outgoing>,
    report: Vec<u8>,
    /// Next path sequence that may be used, per path.
    next_seq: Vec<u64>,
    datagram_max: usize,
    /// The timer as the machines asked for it.
    pub(super) armed_for: Option<Time>,
    wakes: u64,
    asleep: Option<Asleep>,
    /// Inner packets that found the TUN device full.
    overrun: u64,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("side", &self.side).finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn new(side: Side, scenario: &Scenario, pool: &BufPool, seed: [u64; 2]) -> Self {
        let clock = match side {
            Side::Edge => scenario.edge_clock,
            Side::Exit => scenario.exit_clock,
        };
        let now = clock.read(Time::ZERO);
        let config = SenderConfig { seed, ..scenario.sender.clone() };
        Self {
            side,
            clock,
            sender: Sender::new(config, 1, pool.clone(), now),
            receiver: Receiver::new(scenario.receiver.clone(), now),
            codec: FecCodec::new(),
            pool: pool.clone(),
            batch: TxBatch::new(),
            outgoing: VecDeque::new(),
            report: Vec::new(),
            next_seq: vec![0; scenario.paths()],
            datagram_max: scenario.datagram_max,
            armed_for: None,
            wakes: 0,
            asleep: None,
            overrun: 0,
        }
    }

    pub(super) fn add_path(&mut self, path: PathId, first: u64, scenario: &Scenario, now: Time) {
        let local = self.clock.read(now);
        let setup = PathSetup {
            receiver: u32::from(path.0),
            first_path_seq: first,
            datagram_max: scenario.datagram_max,
            rate_max: None,
            weight: 1,
            bundles: true,
        };
        self.next_seq[usize::from(path.0)] = first;
        self.sender.add_path(path, setup, local);
        self.receiver.reset_path(path, local);
    }

    pub(super) fn set_rate_max(&mut self, path: PathId, rate_max: Option<u64>, now: Time) {
        self.sender.set_rate_max(path, rate_max, self.clock.read(now));
    }

    pub(super) fn remove_path(&mut self, path: PathId, now: Time) {
        let local = self.clock.read(now);
        self.sender.remove_path(path, local);
        self.receiver.reset_path(path, local);
    }

    /// The node gets no processor until [`wake`](Self::wake).
    pub(super) fn sleep(&mut self) {
        self.asleep.get_or_insert_default();
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    /// Takes what the kernel has kept meanwhile.
    pub(super) fn wake(&mut self, now: Time, ledger: &mut Ledger) {
        let Some(kept) = self.asleep.take() else { return };
        for arrived in kept.datagrams {
            self.receive(arrived, now, ledger);
        }
        for packet in kept.inner {
            self.enqueue(packet, now);
        }
    }

    /// Inner packets that were never read: waiting in the TUN device, or lost there.
    pub(super) fn unread(&self) -> u64 {
        self.overrun + self.asleep.as_ref().map_or(0, |kept| kept.inner.len() as u64)
    }

    /// Takes a datagram off a link.
    pub(super) fn receive(&mut self, arrived: Arrived, now: Time, ledger: &mut Ledger) {
        if let Some(kept) = &mut self.asleep {
            if kept.bytes + arrived.len <= SOCKET_BYTES {
                kept.bytes += arrived.len;
                kept.datagrams.push_back(arrived);
            }
            return;
        }
        let Arrived { path, path_seq, mut bytes, len, at } = arrived;
        let local = self.clock.read(now);
        let clear = match Clear::decode(&bytes) {
            Ok(clear) => clear,
            Err(refusal) => {
                return ledger.violation(now, format!("{:?}: clear header: {refusal:?}", self.side));
            }
        };
        bytes.copy_within(CLEAR_LEN.., 0);
        let body = bytes.len() - CLEAR_LEN;
        bytes.set_len(body);
        if clear.receiver != u32::from(path.0) || clear.path_seq_low != path_seq as u32 {
            ledger.violation(now, format!("{:?}: {clear:?} on path {} seq {path_seq}", self.side, path.0));
        }
        if clear.frame == FrameType::Ack {
            match Report::decode(&bytes) {
                Ok(report) => self.sender.handle_report(&report, local),
                Err(refusal) => ledger.violation(now, format!("{:?}: report: {refusal:?}", self.side)),
            }
        }
        let item = RxItem {
            path,
            path_seq,
            arrival: self.clock.read(at),
            wire_len: len as u16,
            ce: false,
            frame: clear.frame,
            flags: clear.flags,
            class: clear.class,
            plain: bytes,
        };
        if let Err(refusal) = self.receiver.handle(item, local) {
            ledger.violation(now, format!("{:?}: {:?} refused: {refusal:?}", self.side, clear.frame));
        }
        self.run_codec(local);
    }

    pub(super) fn handle_timeout(&mut self, now: Time) {
        self.wakes += 1;
        let local = self.clock.read(now);
        self.sender.handle_timeout(local);
        self.receiver.handle_timeout(local);
    }

    pub(super) fn enqueue(&mut self, packet: PacketBuf, now: Time) {
        if let Some(kept) = &mut self.asleep {
            if kept.inner.len() < TUN_PACKETS {
                kept.inner.push_back(packet);
            } else {
                self.overrun += 1;
            }
            return;
        }
        self.sender.enqueue(packet, self.clock.read(now));
    }

    pub(super) fn poll_packet(&mut self, now: Time) -> Option<PacketBuf> {
        self.receiver.poll_packet(self.clock.read(now))
    }

    /// Hands what the receiver has for the peer to the sender.
    pub(super) fn exchange(&mut self, now: Time) {
        let local = self.clock.read(now);
        while let Some((path, heartbeat)) = self.receiver.poll_heartbeat() {
            self.sender.handle_heartbeat(path, &heartbeat, local);
        }
        while self.receiver.poll_report(&mut self.report, local) {
            self.sender.send_report(&self.report, local);
        }
        while let Some(event) = self.sender.poll_event() {
            if let SenderEvent::Mark(mark) = event {
                self.receiver.handle_mark(mark);
            }
        }
        self.run_codec(local);
    }

    /// Does the codec's work at once; true when the sender got parity.
    fn run_codec(&mut self, local: Time) -> bool {
        let mut parity = false;
        while let Some(job) = self.sender.poll_fec_job().or_else(|| self.receiver.poll_fec_job()) {
            match self.codec.run(job) {
                FecDone::Encoded(done) => {
                    parity = true;
                    self.sender.handle_encoded(done, local);
                }
                FecDone::Decoded(done) => self.receiver.handle_decoded(done, local),
            }
        }
        parity
    }

    pub(super) fn poll_datagram(&mut self, now: Time, ledger: &mut Ledger) -> Option<Outgoing> {
        if self.outgoing.is_empty() {
            self.batch.clear();
            let local = self.clock.read(now);
            while !self.sender.poll_transmit(&mut self.batch, local) {
                if !self.run_codec(local) {
                    return None;
                }
            }
            self.unpack(now, ledger);
        }
        self.outgoing.pop_front()
    }

    /// Splits a batch into datagrams, checking what the link driver relies on.
    fn unpack(&mut self, now: Time, ledger: &mut Ledger) {
        let batch = &self.batch;
        let path = batch.path;
        let mut offset = 0;
        for segment in &batch.segments {
            let len = usize::from(segment.len);
            let Some(bytes) =
                batch.slab.get(offset..offset + len).filter(|_| segment.offset as usize == offset)
            else {
                return ledger.violation(now, format!("{:?}: segments are not back to back", self.side));
            };
            let next = &mut self.next_seq[usize::from(path.0)];
            if segment.path_seq < *next {
                ledger.violation(now, format!("path {} sequence {} used again", path.0, segment.path_seq));
            }
            *next = segment.path_seq + 1;
            if len > self.datagram_max {
                ledger.violation(now, format!("datagram of {len} B on path {}", path.0));
            }
            if let Some(bytes) = self.pool.copy_from(&bytes[..len - TAG_LEN]) {
                self.outgoing.push_back(Outgoing { path, path_seq: segment.path_seq, bytes, len });
            }
            offset += len;
        }
        if offset != batch.slab.len() || offset > BATCH_BYTES_MAX || batch.segments.len() > BATCH_PACKETS_MAX
        {
            ledger.violation(now, format!("batch of {} segments, {offset} B", batch.segments.len()));
        }
    }

    /// The machines' timer, in virtual time.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let next = [self.sender.poll_timeout(), self.receiver.poll_timeout()].into_iter().flatten().min();
        next.map(|reading| self.clock.when(reading))
    }

    pub(super) fn sender_snapshot(&self, now: Time) -> SenderSnapshot {
        self.sender.snapshot(self.clock.read(now))
    }

    pub(super) fn receiver_snapshot(&self) -> ReceiverSnapshot {
        self.receiver.snapshot()
    }

    /// Bytes the sender holds for resends.
    pub(super) fn held_bytes(&self) -> usize {
        self.sender.held_bytes()
    }

    pub(super) fn wakes(&self) -> u64 {
        self.wakes
    }
}
