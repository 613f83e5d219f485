//! The receiving half of a session: opened datagrams in, ordered inner packets and reports out.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bond::batch::RxItem;
use crate::bond::config::ReceiverConfig;
use crate::bond::reorder::Reorder;
use crate::bond::snapshot::ReceiverSnapshot;
use crate::buf::PacketBuf;
use crate::fec::{Decoded, Decoder, FecJob};
use crate::path::delay::Unwrap;
use crate::time::{Stamp, Time};
use crate::wire::v2::{DATA_LEN, DataHeader, Flags, FrameType};
use crate::wire::{
    Bundle, Bundled, Fragment, Heartbeat, HeartbeatKind, PathId, Refusal, Report, Skip, protected_index,
};

mod ack_clock;
mod reassembly;
mod reception;

use ack_clock::AckClock;
pub use ack_clock::{SentMark, TcpTuple};
use reassembly::Reassembly;
use reception::PathReception;

/// Most paths of a session: what one report can speak of.
pub const PATHS_MAX: usize = 32;
/// A report names a path again this often after its last news, because reports may be lost.
const REPEAT: u8 = 3;
/// After a new gap a report goes out at once, but no sooner than this after the last one.
const GAP_REPORT_EVERY: Duration = Duration::from_millis(1);
/// So many packets are worth a report before its time, after [`GAP_REPORT_EVERY`]: from about 600 Mbit/s on the sender would
/// otherwise hold so much for a resend that each packet finds its buffers outside the processor's cache.
const REPORT_PACKETS: u32 = 256;
/// Reports stay under this share of what is received, by stretching their interval.
const REPORT_SHARE: f64 = 0.012;
/// They are never stretched beyond this.
const REPORT_INTERVAL_MAX: Duration = Duration::from_millis(25);
/// Reports are answered by reports: they are news too, but alone worth a report of ours only when there are this many,
/// as a busy peer sends them, or when [`HEARD_AFTER`] has passed. Two idle ends would keep each other awake.
const REPORTS_HEARD: u32 = 8;
/// See [`REPORTS_HEARD`].
const HEARD_AFTER: Duration = Duration::from_millis(200);
/// The session counts as active this long after a packet.
const ACTIVE_FOR: Duration = Duration::from_secs(1);

/// The receiving machine. See the module's documentation.
pub struct Receiver {
    config: ReceiverConfig,
    paths: Vec<PathReception>,
    reassembly: Reassembly,
    reorder: Reorder,
    ack_clock: AckClock,
    decoder: Decoder,
    fec_recovered: u64,
    heartbeats: VecDeque<(PathId, Heartbeat)>,
    report_number: u32,
    last_report: Time,
    last_arrival: Option<Time>,
    news: bool,
    /// Data packets since our last report.
    packets_heard: u32,
    /// Datagrams with reports since our last one.
    reports_heard: u32,
    at_once: bool,
    rate: RateMeter,
    /// One-way delays of all paths on one scale.
    scale: Unwrap,
    reports: u64,
}

/// Bytes received, smoothed, for the share of reports.
#[derive(Debug, Default)]
struct RateMeter {
    since: Time,
    bytes: u64,
    bits_per_sec: f64,
}

impl RateMeter {
    fn add(&mut self, bytes: u64, now: Time) {
        self.bytes += bytes;
        let secs = (now - self.since).as_secs_f64();
        if secs > 0.1 {
            let sample = self.bytes as f64 * 8.0 / secs;
            self.bits_per_sec += (sample - self.bits_per_sec) / 2.0;
            self.since = now;
            self.bytes = 0;
        }
    }
}

impl Receiver {
    /// A receiver that has heard nothing. Report numbers start at a point derived from `now`, so
    /// that a receiver that replaces another is not taken for an echo of it.
    pub fn new(config: ReceiverConfig, now: Time) -> Self {
        Self {
            reassembly: Reassembly::default(),
            reorder: Reorder::new(config.clone()),
            ack_clock: AckClock::default(),
            decoder: Decoder::new(config.fec_bytes_max),
            fec_recovered: 0,
            config,
            paths: Vec::new(),
            heartbeats: VecDeque::new(),
            report_number: (now.as_nanos() / 1_000_000) as u32,
            last_report: now,
            last_arrival: None,
            news: false,
            packets_heard: 0,
            reports_heard: 0,
            at_once: false,
            rate: RateMeter { since: now, ..RateMeter::default() },
            scale: Unwrap::default(),
            reports: 0,
        }
    }

    /// The path was made anew under new keys: its sequence starts again.
    pub fn reset_path(&mut self, path: PathId, _now: Time) {
        self.paths.retain(|p| p.id != path);
        self.reorder.remove_path(path);
    }

    /// Takes one opened datagram.
    ///
    /// # Errors
    /// The reason why its body was refused; its path sequence counts as received all the same.
    pub fn handle(&mut self, item: RxItem, now: Time) -> Result<(), Refusal> {
        let Some(sent) = item.plain.get(..3).map(|b| u32::from_be_bytes([0, b[0], b[1], b[2]])) else {
            return Err(Refusal::Truncated);
        };
        self.scale.units(item.arrival.stamp().wrapping_sub(Stamp::new(sent)));
        let path = self.path_mut(item.path, item.path_seq)?;
        let gap = path.on_packet(item.path_seq, sent, item.arrival, item.wire_len, item.ce);
        let delay = path.delay_secs();
        if item.frame == FrameType::Ack {
            self.reports_heard += 1;
        } else {
            self.news = true;
        }
        self.at_once |= gap;
        self.rate.add(u64::from(item.wire_len), now);
        match item.frame {
            FrameType::Data => {
                self.last_arrival = Some(now);
                self.packets_heard += 1;
                self.reorder.note_delay(item.path, delay, now);
                self.reorder.note_data(item.path, item.plain.len());
                let (header, rest) = DataHeader::decode(&item.plain)?;
                if item.flags.contains(Flags::FRAGMENT) {
                    let (fragment, _) = Fragment::decode(rest)?;
                    if let Some(packet) = self.reassembly.handle(header, fragment, item.plain, now) {
                        self.handle_packet(header, packet, now);
                    }
                    return Ok(());
                }
                let mut plain = item.plain;
                plain.advance(DATA_LEN);
                self.handle_packet(header, plain, now);
            }
            FrameType::Bundle => {
                self.last_arrival = Some(now);
                self.reorder.note_delay(item.path, delay, now);
                self.reorder.note_data(item.path, item.plain.len());
                self.handle_bundle(item.plain, now)?;
            }
            FrameType::Heartbeat => {
                self.reorder.note_delay(item.path, delay, now);
                let beat = Heartbeat::decode(&item.plain)?;
                match beat.kind {
                    HeartbeatKind::Pong => {
                        let units = now.stamp().signed_since(beat.echo).max(0) as u64;
                        let rtt = Duration::from_nanos(units * crate::time::STAMP_UNIT_NANOS);
                        self.reorder.note_rtt(item.path, rtt);
                        self.push_heartbeat(item.path, beat);
                    }
                    HeartbeatKind::Ping => self.push_heartbeat(item.path, beat),
                    HeartbeatKind::Tail => {}
                    // What it tells is told by its own arrival, before others follow.
                    HeartbeatKind::Probe => self.at_once = true,
                }
            }
            FrameType::Skip => {
                let skip = Skip::decode(&item.plain)?;
                self.reorder.handle_skip(&skip, now);
            }
            FrameType::Fec => {
                self.decoder.prepare(item.plain.capacity());
                self.decoder.handle_parity(&item.plain, now)?;
            }
            FrameType::Ack | FrameType::Control | FrameType::Multicast => {}
        }
        Ok(())
    }

    /// Takes each packet of a bundle as if it had come alone. The last keeps the buffer.
    fn handle_bundle(&mut self, mut plain: PacketBuf, now: Time) -> Result<(), Refusal> {
        let bundle = Bundle::decode(&plain)?;
        let (sent, incarnation, last) = (bundle.sent, bundle.incarnation, bundle.packets() - 1);
        self.packets_heard += bundle.packets() as u32;
        let header = |packet: &Bundled| DataHeader {
            sent,
            lane: packet.lane,
            lane_seq: packet.lane_seq,
            incarnation,
            unqueued: 0,
        };
        for (packet, range) in bundle.iter().take(last) {
            self.handle_packet(header(&packet), plain.copy_of(range), now);
        }
        let newest = bundle.iter().nth(last);
        if let Some((packet, range)) = newest {
            plain.advance(range.start);
            self.handle_packet(header(&packet), plain, now);
        }
        Ok(())
    }

    fn handle_packet(&mut self, header: DataHeader, packet: PacketBuf, now: Time) {
        self.decoder.handle_packet(header.lane, header.lane_seq, header.incarnation, &packet, now);
        self.reorder.handle(header, packet, now);
    }

    fn push_heartbeat(&mut self, path: PathId, beat: Heartbeat) {
        if self.heartbeats.len() < 2 * PATHS_MAX {
            self.heartbeats.push_back((path, beat));
        }
    }

    fn path_mut(&mut self, id: PathId, seq: u64) -> Result<&mut PathReception, Refusal> {
        if let Some(i) = self.paths.iter().position(|p| p.id == id) {
            return Ok(&mut self.paths[i]);
        }
        if self.paths.len() >= PATHS_MAX {
            return Err(Refusal::TooMany);
        }
        self.paths.push(PathReception::new(id, seq, &self.scale));
        Ok(self.paths.last_mut().expect("just pushed"))
    }

    /// Gives up gaps whose deadline has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.reorder.handle_timeout(now);
        self.decoder.expire(now);
        for path in &mut self.paths {
            path.expire(now);
        }
    }

    /// The next job for a codec.
    pub fn poll_fec_job(&mut self) -> Option<FecJob> {
        self.decoder.poll_job()
    }

    /// Takes what a codec has rebuilt, as if it had been received. What has come meanwhile is a copy; what is of
    /// another sender than the present one is dropped.
    pub fn handle_decoded(&mut self, decoded: Decoded, now: Time) {
        self.decoder.note_failed(decoded.failed);
        if self.decoder.incarnation() != Some(decoded.incarnation) || protected_index(decoded.lane).is_none()
        {
            return;
        }
        for (lane_seq, packet) in decoded.packets {
            let Some(packet) = self.decoder.buffer(&packet) else { continue };
            let (lane, incarnation) = (decoded.lane, decoded.incarnation);
            let header = DataHeader { sent: now.stamp(), lane, lane_seq, incarnation, unqueued: 0 };
            let before = self.reorder.delivered();
            self.reorder.handle(header, packet, now);
            self.fec_recovered += self.reorder.delivered() - before;
        }
    }

    /// Takes what the sender of this side tells of a flow.
    pub fn handle_mark(&mut self, mark: SentMark) {
        self.ack_clock.note(mark);
    }

    /// The next inner packet for the TUN.
    pub fn poll_packet(&mut self, now: Time) -> Option<PacketBuf> {
        if let Some(packet) = self.ack_clock.poll(now) {
            return Some(packet);
        }
        while let Some(packet) = self.reorder.poll() {
            if let Some(packet) = self.ack_clock.offer(packet, now) {
                return Some(packet);
            }
        }
        None
    }

    /// The next heartbeat for the sender of this side.
    pub fn poll_heartbeat(&mut self) -> Option<(PathId, Heartbeat)> {
        self.heartbeats.pop_front()
    }

    /// Writes the body of a report to `out` (cleared first) when one is due.
    pub fn poll_report(&mut self, out: &mut Vec<u8>, now: Time) -> bool {
        out.clear();
        if self.report_due().is_none_or(|at| now < at) {
            return false;
        }
        let time = now.stamp();
        let paths = self.paths.iter_mut().filter_map(|p| p.report(now)).collect();
        let report = Report { sent: time, number: self.report_number, time, paths };
        self.report_number = self.report_number.wrapping_add(1);
        self.last_report = now;
        self.news = false;
        self.packets_heard = 0;
        self.reports_heard = 0;
        self.at_once = false;
        self.reports += 1;
        report.encode_into(out);
        true
    }

    fn report_due(&self) -> Option<Time> {
        if self.at_once || self.packets_heard >= REPORT_PACKETS {
            return Some(self.last_report + GAP_REPORT_EVERY);
        }
        if self.news || self.reports_heard >= REPORTS_HEARD {
            return Some(self.last_report + self.report_interval());
        }
        let active = self.last_arrival.is_some_and(|at| self.last_report < at + ACTIVE_FOR);
        let pace = if active {
            self.config.report_quiet
        } else if self.reports_heard > 0 {
            HEARD_AFTER
        } else {
            return None;
        };
        Some(self.last_report + pace)
    }

    /// Reports go out every 5 ms, more rarely where that would be too much of a thin link.
    fn report_interval(&self) -> Duration {
        let bits = 2.0 * 8.0 * (80.0 + 23.0 * self.paths.len() as f64);
        let secs = bits / (REPORT_SHARE * self.rate.bits_per_sec.max(1.0));
        let longest = REPORT_INTERVAL_MAX.max(self.config.report_interval);
        Duration::from_secs_f64(secs.min(1.0)).clamp(self.config.report_interval, longest)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), [`poll_packet`](Self::poll_packet) and
    /// [`poll_report`](Self::poll_report) again.
    pub fn poll_timeout(&self) -> Option<Time> {
        let machines =
            [self.reorder.poll_timeout(), self.decoder.poll_timeout(), self.ack_clock.poll_timeout()];
        machines.into_iter().chain([self.report_due()]).flatten().min()
    }

    /// A copy of the machine's state for people.
    pub fn snapshot(&self) -> ReceiverSnapshot {
        let mut snapshot = self.reorder.snapshot();
        snapshot.reports = self.reports;
        snapshot.acks_held = self.ack_clock.held();
        snapshot.held_packets += self.ack_clock.waiting();
        snapshot.reassembled = self.reassembly.whole;
        snapshot.reassembly_failed = self.reassembly.failed;
        let fec = self.decoder.stats();
        snapshot.parity_received = fec.parity;
        snapshot.fec_recovered = self.fec_recovered;
        snapshot.fec_failed = fec.failed;
        snapshot.fec_refused = fec.refused;
        snapshot
    }
}
