//! The receiving driver of a link.
//!
//! The kernel merges datagrams of one sender and size (GRO), whatever they carry: every segment is
//! classified by its own first byte. The 64 KiB receive buffers never leave this driver; bodies are
//! opened into pooled packet buffers, in which they stay.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mwb_proto::bond::RxItem;
use mwb_proto::time::Time;
use mwb_proto::wire::v2::{Clear, FrameType};
use mwb_proto::wire::{self, Heartbeat, HeartbeatKind, Plane, Refusal, Report};
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta};

use super::quic_socket::QuicDatagram;
use super::{Link, LinkSocket};
use crate::clock::ArrivalClock;
use crate::driver::{DriverError, Pulse};
use crate::session::path::PathEndpoint;
use crate::session::{Received, Session};

/// A merged datagram may fill a whole buffer; a smaller one would be cut without notice.
const BUFFER_LEN: usize = 64 * 1024;
/// Receive calls before other tasks get their turn: 4 x 32 buffers.
const CALLS_PER_TURN: usize = 4;
/// Bytes before they do, more or less: what is opened should still be in the processor's cache when it is put in order
/// and written, and a second-level cache holds not much more.
const BYTES_PER_TURN: usize = 256 * 1024;
/// Opened datagrams per batch to a session.
const ITEMS_PER_BATCH: usize = 64;
/// How often a missing device is looked for.
const OPEN_RETRY: Duration = Duration::from_millis(500);

/// Receives for ever.
///
/// # Errors
/// When the reactor fails, or by injection.
pub(super) async fn run(link: Arc<Link>, pulse: Pulse) -> Result<(), DriverError> {
    let mut storage = vec![0_u8; BUFFER_LEN * BATCH_SIZE].into_boxed_slice();
    let mut intake = Intake::new(&link);
    loop {
        pulse.beat().await?;
        let Some(socket) = link.socket() else {
            if link.open().is_err() {
                pulse.alive_during(tokio::time::sleep(OPEN_RETRY)).await?;
            }
            continue;
        };
        tokio::select! {
            guard = socket.readable().readable() => {
                let mut guard = guard.map_err(DriverError::io("watch the socket"))?;
                let (mut drained, mut bytes) = (false, 0);
                for _ in 0..CALLS_PER_TURN {
                    match intake.receive(&socket, &mut storage, &pulse) {
                        Progress::More(received) if bytes + received < BYTES_PER_TURN => bytes += received,
                        Progress::More(_) => break,
                        Progress::Drained => {
                            drained = true;
                            break;
                        }
                        Progress::Failed => {
                            // The device is down or gone; a pause keeps this from spinning.
                            guard.clear_ready();
                            tokio::time::sleep(Duration::from_millis(10)).await;
                            break;
                        }
                    }
                }
                // What came after the last call has set the descriptor ready again.
                if drained {
                    guard.clear_ready();
                } else {
                    tokio::task::yield_now().await;
                }
            }
            () = link.renew.notified() => {
                tracing::info!(link = link.name(), "opening the socket anew");
                drop(socket);
                if link.open().is_err() {
                    // Keeps senders from using a dead socket; the loop looks for the device.
                    link.socket.store(None);
                    pulse.alive_during(tokio::time::sleep(OPEN_RETRY)).await?;
                }
            }
            () = pulse.asked() => {}
        }
    }
}

/// What a receive call has left in the socket.
enum Progress {
    /// More, perhaps. This many bytes came.
    More(usize),
    /// Nothing: it gave less than was asked for.
    Drained,
    /// It cannot be told.
    Failed,
}

struct Intake {
    link: Arc<Link>,
    /// Opened datagrams by session.
    batches: Vec<(Arc<Session>, Vec<RxItem>)>,
    /// The path of the last datagram of this call: the next one is mostly of the same.
    recent: Option<Arc<PathEndpoint>>,
    /// Opened and not yet counted, and their bytes.
    opened: u64,
    opened_bytes: u64,
    /// Buffers of the next call: as many as this turn's bytes may fill, going by the last call.
    buffers: usize,
    refusals_logged: u32,
}

/// What all segments of one buffer share.
struct Envelope {
    from: SocketAddr,
    to: Option<IpAddr>,
    ecn: Option<EcnCodepoint>,
    arrival: Time,
    now: Time,
}

impl Intake {
    fn new(link: &Arc<Link>) -> Self {
        Self {
            link: Arc::clone(link),
            batches: Vec::new(),
            recent: None,
            opened: 0,
            opened_bytes: 0,
            buffers: BATCH_SIZE,
            refusals_logged: 0,
        }
    }

    /// One receive call and everything that follows from it.
    fn receive(&mut self, socket: &LinkSocket, storage: &mut [u8], pulse: &Pulse) -> Progress {
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let received = {
            let mut chunks = storage.chunks_exact_mut(BUFFER_LEN);
            let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            socket.receive(&mut slices[..self.buffers], &mut meta[..self.buffers])
        };
        let count = match received {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Progress::Drained,
            Err(error) => {
                tracing::debug!(link = self.link.name(), %error, "receive failed");
                return Progress::Failed;
            }
        };
        let clock = ArrivalClock::read();
        let mut quic = false;
        let mut datagrams = 0;
        for (buffer, meta) in storage.chunks_exact_mut(BUFFER_LEN).zip(&meta[..count]) {
            let envelope = Envelope {
                from: meta.addr,
                to: meta.dst_ip,
                ecn: meta.ecn,
                arrival: clock.arrival(meta.timestamp),
                now: clock.now(),
            };
            for range in wire::segments(meta.len.min(BUFFER_LEN), meta.stride) {
                datagrams += 1;
                quic |= self.datagram(&buffer[range], &envelope);
            }
        }
        if quic {
            self.link.quic_inbox().wake();
        }
        self.flush();
        // A path may be taken out of the table between two calls.
        self.recent = None;
        pulse.count_handled(datagrams);
        let drained = count < self.buffers;
        let bytes: usize = meta[..count].iter().map(|meta| meta.len).sum();
        let each = (bytes / count.max(1)).max(1);
        self.buffers = (BYTES_PER_TURN / each).clamp(1, BATCH_SIZE);
        if drained { Progress::Drained } else { Progress::More(bytes) }
    }

    /// Handles one datagram; true when QUIC has to be woken.
    fn datagram(&mut self, datagram: &[u8], envelope: &Envelope) -> bool {
        let Some(first) = datagram.first() else { return false };
        match wire::plane(*first) {
            Plane::Quic => return self.quic(datagram, envelope),
            Plane::V2 => {
                if let Err(refusal) = self.data(datagram, envelope) {
                    self.refuse(refusal, envelope);
                }
            }
            Plane::V1 | Plane::Unknown => self.refuse(Refusal::BadVersion, envelope),
        }
        false
    }

    fn quic(&mut self, datagram: &[u8], envelope: &Envelope) -> bool {
        let Some(data) = self.link.pool.copy_from(datagram) else {
            self.link.counters.oversized.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        let item = QuicDatagram { from: envelope.from, to: envelope.to, ecn: envelope.ecn, data };
        if !self.link.quic_inbox().push(item) {
            self.link.counters.quic_dropped.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn data(&mut self, datagram: &[u8], envelope: &Envelope) -> Result<(), Refusal> {
        let clear = Clear::decode(datagram)?;
        let path = match self.recent.take() {
            Some(path) if path.local_receiver() == clear.receiver => path,
            _ => Arc::clone(self.link.table.load().get(&clear.receiver).ok_or(Refusal::UnknownReceiver)?),
        };
        let result = self.data_of(&path, datagram, envelope);
        self.recent = Some(path);
        result
    }

    fn data_of(
        &mut self,
        path: &Arc<PathEndpoint>,
        datagram: &[u8],
        envelope: &Envelope,
    ) -> Result<(), Refusal> {
        let mut body = self.link.pool.take();
        let opened = match path.open(datagram, body.spare()) {
            Ok(opened) => opened,
            Err(refusal) => {
                // Only what is longer than a buffer has no room.
                self.link
                    .counters
                    .oversized
                    .fetch_add(u64::from(refusal == Refusal::BadLength), Ordering::Relaxed);
                return Err(refusal);
            }
        };
        body.set_len(opened.len);
        self.opened += 1;
        self.opened_bytes += datagram.len() as u64;
        if path.note_heard(opened.newest, datagram.len(), envelope.from, envelope.to, envelope.now) {
            // The new address must answer before it is trusted with more than a trickle.
            let _ = path.session().pings.try_push(path.id());
        }
        if !path.is_heard() {
            // What came before on this path belongs in front of the change of keys.
            self.flush();
            if !path.session().first_heard(path) {
                self.link.counters.session_full.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        }
        let counters = &self.link.counters;
        match opened.clear.frame {
            FrameType::Ack => {
                let report = Report::decode(&body)?;
                if path.session().feedback.try_push(report).is_err() {
                    counters.feedback_full.fetch_add(1, Ordering::Relaxed);
                }
                // It is decoded here for the router; the resequencer wants only its number and stamp.
                body.set_len(3);
            }
            FrameType::Heartbeat => note_pong(path, &body, envelope),
            FrameType::Data
            | FrameType::Bundle
            | FrameType::Control
            | FrameType::Multicast
            | FrameType::Fec
            | FrameType::Skip => {}
        }
        let item = RxItem {
            path: path.id(),
            path_seq: opened.path_seq,
            arrival: envelope.arrival,
            wire_len: datagram.len() as u16,
            ce: envelope.ecn == Some(EcnCodepoint::Ce),
            frame: opened.clear.frame,
            flags: opened.clear.flags,
            class: opened.clear.class,
            plain: body,
        };
        self.deliver(path.session(), item);
        Ok(())
    }

    fn deliver(&mut self, session: &Arc<Session>, item: RxItem) {
        let known = self.batches.iter_mut().find(|(other, _)| Arc::ptr_eq(other, session));
        let full = match known {
            Some((_, items)) => {
                items.push(item);
                items.len() >= ITEMS_PER_BATCH
            }
            None => {
                let mut items = Vec::with_capacity(ITEMS_PER_BATCH);
                items.push(item);
                self.batches.push((Arc::clone(session), items));
                false
            }
        };
        if full {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let counters = &self.link.counters;
        counters.received.fetch_add(std::mem::take(&mut self.opened), Ordering::Relaxed);
        counters.received_bytes.fetch_add(std::mem::take(&mut self.opened_bytes), Ordering::Relaxed);
        for (session, items) in self.batches.drain(..) {
            let count = items.len() as u64;
            if session.received.try_push(Received::Items(items)).is_err() {
                self.link.counters.session_full.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal, envelope: &Envelope) {
        let before = self.link.counters.refused[refusal.index()].fetch_add(1, Ordering::Relaxed);
        // Anybody can send garbage: the log gets the 1st, 2nd, 4th, 8th ... of each kind.
        if (before + 1).is_power_of_two() {
            self.refusals_logged += 1;
            let (link, from) = (self.link.name(), envelope.from);
            tracing::debug!(link, %refusal, %from, count = before + 1, "datagram refused");
        }
    }
}

fn note_pong(path: &PathEndpoint, plain: &[u8], envelope: &Envelope) {
    if let Ok(heartbeat) = Heartbeat::decode(plain)
        && heartbeat.kind == HeartbeatKind::Pong
    {
        path.note_pong(heartbeat.echo, envelope.from);
    }
}
