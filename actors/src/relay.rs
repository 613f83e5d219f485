//! `RelayActor`: one per lease. Carries datagrams between a borrower on the LAN and one address of one exit.
//!
//! Two drivers, one per direction, forward what one receive call gives with as few sends as possible: the
//! kernel merges datagrams (GRO) and cuts them again (GSO), nothing is copied in between. Nothing is added
//! to a datagram and nothing of it is read but its first bytes: the keys are the borrower's and the exit's.
//!
//! A lease is no open UDP proxy: only the borrower's address is heard on the LAN side and only the exit's
//! on the other, and only QUIC and our own data pass, the latter for few receiver indexes at a time.
//! The sockets belong to the plan and survive the actor.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mwb_proto::time::Time;
use mwb_proto::wire::v2::Clear;
use mwb_proto::wire::{self, Plane};
use parking_lot::Mutex;
use quinn_udp::RecvMeta;
use serde::Serialize;

use crate::clock;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::wan_link::{LinkSocket, SendFailure, SocketSpec};

/// A merged datagram may fill a whole buffer.
const BUFFER_LEN: usize = 64 * 1024;
/// Buffers of one receive call: half a megabyte per direction.
const BUFFERS: usize = 8;
/// Receive calls before other tasks get their turn.
const CALLS_PER_TURN: usize = 4;
/// Tries of a send that finds no room; then its datagrams are lost, as on any full queue.
const TRIES_MAX: usize = 4;
/// How long to wait for room in the socket's buffer.
const BLOCKED_WAIT: Duration = Duration::from_millis(20);
/// How long to wait for a full device queue.
const CONGESTED_WAIT: Duration = Duration::from_micros(500);
/// Receiver indexes that pass at the same time: a path uses one, and another while it is renewed.
const INDEXES_MAX: usize = 8;
/// An index not seen for so long makes room for another.
const INDEX_IDLE: Duration = Duration::from_secs(10);
/// IPv4 and UDP headers, what a datagram is on the wire beyond its payload.
pub(crate) const OUTER_HEADERS: u64 = 28;

/// What a relay has done in one direction.
#[derive(Debug, Default)]
pub struct RelayCounters {
    datagrams: AtomicU64,
    /// With the headers.
    bytes: AtomicU64,
    /// From somebody else.
    foreign: AtomicU64,
    /// Neither QUIC nor our data, or for too many receivers.
    refused: AtomicU64,
    /// Not sent.
    lost: AtomicU64,
}

/// A copy of [`RelayCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RelayStats {
    /// Datagrams carried.
    pub datagrams: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// Datagrams dropped because of who sent them.
    pub foreign: u64,
    /// Datagrams dropped because they are not what a lease is for.
    pub refused: u64,
    /// Datagrams that could not be sent.
    pub lost: u64,
}

impl RelayCounters {
    fn stats(&self) -> RelayStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayStats {
            datagrams: get(&self.datagrams),
            bytes: get(&self.bytes),
            foreign: get(&self.foreign),
            refused: get(&self.refused),
            lost: get(&self.lost),
        }
    }
}

/// The part of a relay that survives its actor.
pub struct Relay {
    lan: LinkSocket,
    wan: LinkSocket,
    borrower: IpAddr,
    /// Where the borrower sends from; known from its first datagram on.
    back: Mutex<Option<SocketAddr>>,
    exit: SocketAddr,
    up: RelayCounters,
    down: RelayCounters,
    gates: [Mutex<Gate>; 2],
    broken: AtomicBool,
}

/// The receiver indexes that pass in one direction.
#[derive(Debug, Default)]
struct Gate {
    indexes: Vec<(u32, Time)>,
}

impl Gate {
    fn admits(&mut self, index: u32, now: Time) -> bool {
        if let Some(known) = self.indexes.iter_mut().find(|(other, _)| *other == index) {
            known.1 = now;
            return true;
        }
        if self.indexes.len() >= INDEXES_MAX {
            self.indexes.retain(|(_, seen)| now - *seen < INDEX_IDLE);
        }
        let room = self.indexes.len() < INDEXES_MAX;
        if room {
            self.indexes.push((index, now));
        }
        room
    }
}

impl Relay {
    /// Opens the sockets of a relay: `lan` towards the host at `borrower`, `wan` towards `exit`.
    ///
    /// # Errors
    /// The system's.
    pub fn open(
        lan: &SocketSpec,
        borrower: IpAddr,
        wan: &SocketSpec,
        exit: SocketAddr,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            lan: LinkSocket::open(lan)?,
            wan: LinkSocket::open(wan)?,
            borrower,
            back: Mutex::new(None),
            exit,
            up: RelayCounters::default(),
            down: RelayCounters::default(),
            gates: Default::default(),
            broken: AtomicBool::new(false),
        }))
    }

    /// UDP port on the LAN side.
    pub fn port(&self) -> u16 {
        self.lan.local_addr().port()
    }

    /// What went towards the internet, and what came from it.
    pub fn stats(&self) -> (RelayStats, RelayStats) {
        (self.up.stats(), self.down.stats())
    }

    /// Whether a device has gone: the sockets are of no more use.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Relay({} <-> {})", self.borrower, self.exit)
    }
}

/// Which way a driver forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up = 0,
    Down = 1,
}

/// Marker of [`RelayActor`].
#[derive(Debug)]
pub struct Relaying;

/// The actor that forwards one lease's datagrams.
pub type RelayActor = DrivenActor<Relaying>;

impl Drive for Relaying {
    type Lent = Arc<Relay>;

    fn launch(relay: &Arc<Relay>, crew: &mut Crew) -> Result<(), DriverError> {
        crew.launch("up", |pulse| run(Arc::clone(relay), Direction::Up, pulse));
        crew.launch("down", |pulse| run(Arc::clone(relay), Direction::Down, pulse));
        Ok(())
    }
}

async fn run(relay: Arc<Relay>, direction: Direction, pulse: Pulse) -> Result<(), DriverError> {
    let mut storage = vec![0_u8; BUFFER_LEN * BUFFERS].into_boxed_slice();
    let from = match direction {
        Direction::Up => &relay.lan,
        Direction::Down => &relay.wan,
    };
    loop {
        pulse.beat().await?;
        tokio::select! {
            guard = from.readable().readable() => {
                let mut guard = guard.map_err(DriverError::io("watch the socket"))?;
                for _ in 0..CALLS_PER_TURN {
                    let mut meta = [RecvMeta::default(); BUFFERS];
                    match receive(from, &mut storage, &mut meta) {
                        Ok(count) => {
                            let handled = relay.forward(direction, &storage, &meta[..count]).await;
                            pulse.count_handled(handled);
                        }
                        Err(error) => {
                            guard.clear_ready();
                            if error.kind() != io::ErrorKind::WouldBlock {
                                // Unreachable, or the device is down or gone; a pause keeps this from
                                // spinning.
                                tracing::debug!(?relay, ?direction, %error, "receive failed");
                                tokio::time::sleep(Duration::from_millis(10)).await;
                            }
                            break;
                        }
                    }
                }
                drop(guard);
                tokio::task::yield_now().await;
            }
            () = pulse.asked() => {}
        }
    }
}

fn receive(socket: &LinkSocket, storage: &mut [u8], meta: &mut [RecvMeta]) -> io::Result<usize> {
    let mut chunks = storage.chunks_exact_mut(BUFFER_LEN);
    let mut slices: [IoSliceMut<'_>; BUFFERS] =
        std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
    socket.receive(&mut slices, meta)
}

impl Relay {
    /// Forwards what one receive call gave; gives the number of datagrams.
    async fn forward(&self, direction: Direction, storage: &[u8], meta: &[RecvMeta]) -> u64 {
        let counters = match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        };
        let now = clock::now();
        let mut handled = 0;
        for (buffer, meta) in storage.chunks_exact(BUFFER_LEN).zip(meta) {
            let segments = wire::segments(meta.len.min(BUFFER_LEN), meta.stride);
            let size = meta.stride.min(meta.len).max(1);
            let Some(to) = self.destination(direction, meta.addr) else {
                counters.foreign.fetch_add(segments.count() as u64, Ordering::Relaxed);
                continue;
            };
            // Runs of datagrams that may pass lie back to back and have one size but for the last.
            let mut run: Option<Range<usize>> = None;
            for segment in segments {
                handled += 1;
                if self.passes(direction, &buffer[segment.clone()], now) {
                    run = Some(run.map_or(segment.clone(), |run| run.start..segment.end));
                } else {
                    counters.refused.fetch_add(1, Ordering::Relaxed);
                    if let Some(run) = run.take() {
                        self.send(direction, &buffer[run], size, to, counters).await;
                    }
                }
            }
            if let Some(run) = run {
                self.send(direction, &buffer[run], size, to, counters).await;
            }
        }
        handled
    }

    /// Where to forward what came from `from`; nowhere when that is somebody else.
    fn destination(&self, direction: Direction, from: SocketAddr) -> Option<SocketAddr> {
        match direction {
            Direction::Up if from.ip() == self.borrower => {
                // The first port stays: another program on the borrower's host does not divert the answers.
                (*self.back.lock().get_or_insert(from) == from).then_some(self.exit)
            }
            Direction::Down if from == self.exit => *self.back.lock(),
            Direction::Up | Direction::Down => None,
        }
    }

    fn passes(&self, direction: Direction, datagram: &[u8], now: Time) -> bool {
        let Some(first) = datagram.first() else { return false };
        match wire::plane(*first) {
            Plane::Quic => true,
            Plane::V2 => {
                let Ok(clear) = Clear::decode(datagram) else { return false };
                self.gates[direction as usize].lock().admits(clear.receiver, now)
            }
            Plane::V1 | Plane::Unknown => false,
        }
    }

    async fn send(
        &self,
        direction: Direction,
        contents: &[u8],
        size: usize,
        to: SocketAddr,
        counters: &RelayCounters,
    ) {
        let socket = match direction {
            Direction::Up => &self.wan,
            Direction::Down => &self.lan,
        };
        let mut rest = contents;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(size * socket.segments_max(size)));
            rest = after;
            match send_part(socket, part, size, to).await {
                Ok(()) => counters.carried(part.len(), size),
                Err(SendFailure::Segmentation | SendFailure::TooLong) if part.len() > size => {
                    for datagram in part.chunks(size) {
                        match send_part(socket, datagram, size, to).await {
                            Ok(()) => counters.carried(datagram.len(), size),
                            Err(failure) => self.lost(failure, 1, counters),
                        }
                    }
                }
                Err(failure) => self.lost(failure, part.len().div_ceil(size) as u64, counters),
            }
        }
    }

    fn lost(&self, failure: SendFailure, count: u64, counters: &RelayCounters) {
        counters.lost.fetch_add(count, Ordering::Relaxed);
        if failure == SendFailure::DeviceGone {
            self.broken.store(true, Ordering::Relaxed);
        }
    }
}

impl RelayCounters {
    fn carried(&self, len: usize, size: usize) {
        let count = len.div_ceil(size) as u64;
        self.datagrams.fetch_add(count, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64 + count * OUTER_HEADERS, Ordering::Relaxed);
    }
}

async fn send_part(socket: &LinkSocket, part: &[u8], size: usize, to: SocketAddr) -> Result<(), SendFailure> {
    let mut failure = SendFailure::Blocked;
    for _ in 0..TRIES_MAX {
        failure = match socket.send(part, size, to, None) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        match failure {
            SendFailure::Blocked => {
                let _ = tokio::time::timeout(BLOCKED_WAIT, socket.writable()).await;
            }
            SendFailure::Congested => tokio::time::sleep(CONGESTED_WAIT).await,
            _ => break,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests;
