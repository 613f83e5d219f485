//! Holds acknowledgements back that would come sooner than the flow's usually do.
//!
//! BBR allows itself twice what is delivered in the *least* round trip of ten seconds. A flow that is spread sees the
//! round trip of the nearest path whenever it pauses, as BBR does on purpose to measure it, and of the farthest path
//! in use otherwise: beside an 18 ms path, one of 220 ms is filled to a sixth, for as long as the flow lasts. So for
//! flows that leave paths unfilled the sender tells when it sent what ([`SentMark`]), and from the first such pause of
//! one on its acknowledgements wait here until [`FLOOR`] of the usual round trip has passed. So the pause measures what
//! has to be filled. What takes as long anyhow is as fast as before; no payload waits, and no acknowledgement longer than
//! it usually takes. Before the first pause it would be wrong: a window made for less would be spread over more time.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::buf::PacketBuf;
use crate::packet::{self, Inner, tcp_flags};
use crate::time::Time;

/// No acknowledgement is delivered before this share of the usual round trip.
const FLOOR: f64 = 0.9;
/// The usual round trip is the mean of so many marks, a second of a fast flow. In a pause there are few, and it hardly changes.
/// Before there were as many nothing is usual.
const SMOOTHING_MARKS: u32 = 512;
/// Fewer marks make a smaller one usual in about so long, seconds.
const FORGET_SECS: f64 = 5.0;
/// No round trip counts for more, seconds: what took longer was an outage.
const USUAL_MAX: f64 = 1.0;
/// A flow that sends nothing for so long, seconds, half a usual round trip and half as long again as of late, perhaps pauses until what was in flight is
/// acknowledged. If it takes two round trips, it had nothing to send, or no path.
const PAUSE_MIN: f64 = 0.010;
/// It does if it sends less than this share of what it usually sends for so long afterwards: BBR sends four packets each round
/// trip for 200 ms. A window that has become smaller is silent once and goes on.
const TRICKLE: f64 = 0.25;
/// See [`TRICKLE`].
const TRICKLE_FOR: Duration = Duration::from_millis(150);
/// Between two marks there are never more bytes; numbers of another connection are.
const BYTES_MAX: f64 = 1e8;
/// A pause counts when nothing was missing, and nothing marked (ECN), for so long before: whoever answers to loss has had some, for
/// the bond's own queue makes it. BBR fills no queue while its window is too small.
const WHOLE_FOR: Duration = Duration::from_secs(6);
/// Numbers that were sent before are not those of a retransmission when nothing new was sent for so long, seconds.
const ANEW: f64 = 1.0;
/// Flows that are remembered; the one that was silent for the longest goes first.
const FLOWS_MAX: usize = 16;
/// Marks that are remembered per flow: a second of them.
const MARKS_MAX: usize = 512;
/// Acknowledgements that wait at the most; what comes more is delivered at once.
const HELD_MAX: usize = 1024;
/// A flow of which nothing was heard for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// TCP header without options, bytes.
const TCP_HEADER: usize = 20;
/// Kind of the SACK option (RFC 2018).
const SACK: u8 = 5;

/// Addresses and ports of a TCP connection in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpTuple {
    /// Where it comes from.
    pub source: (IpAddr, u16),
    /// Where it goes.
    pub destination: (IpAddr, u16),
}

impl TcpTuple {
    /// The tuple of a packet; `None` without ports.
    pub(crate) fn of(inner: &Inner) -> Option<Self> {
        let (source, destination) = inner.ports?;
        Some(Self { source: (inner.source, source), destination: (inner.destination, destination) })
    }

    fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// How far a TCP flow had been sent by this side, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentMark {
    /// The flow, in the direction of the data.
    pub flow: TcpTuple,
    /// Sequence number behind the payload.
    pub end: u32,
    /// When it was sent.
    pub at: Time,
}

/// What a flow has done in full flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    None,
    /// It was silent until this number was sent then.
    Perhaps {
        since: Time,
        end: u32,
    },
    /// It measures its least round trip by pauses.
    Seen,
}

#[derive(Debug)]
struct Flow {
    tuple: TcpTuple,
    marks: VecDeque<(u32, Time)>,
    /// Time and end of the last one, and how far apart they were lately at the most, seconds.
    marked: Time,
    end: u32,
    widest: f64,
    /// What is usually sent, bytes per second.
    rate: f64,
    pause: Pause,
    /// When something was missing last.
    torn: Time,
    /// The usual round trip, seconds, and how many marks have told that.
    usual: f64,
    acked: u32,
    measured: Time,
    heard: Time,
    /// When its last acknowledgement is delivered: the next ones do not overtake it.
    last: Time,
}

impl Flow {
    fn new(tuple: TcpTuple, now: Time) -> Self {
        Self {
            tuple,
            marks: VecDeque::new(),
            marked: now,
            end: 0,
            widest: 0.0,
            rate: 0.0,
            pause: Pause::None,
            torn: now,
            usual: 0.0,
            acked: 0,
            measured: now,
            heard: now,
            last: now,
        }
    }

    fn note(&mut self, mark: SentMark) {
        self.heard = mark.at;
        let spacing = (mark.at - self.marked).as_secs_f64();
        if self.marks.back().is_some_and(|&(end, _)| !is_after(mark.end, end)) {
            if spacing < ANEW {
                // What is sent again says nothing.
                return;
            }
            // Another connection between the same ports.
            self.marks.clear();
        }
        self.marked = mark.at;
        let bytes = f64::from(mark.end.wrapping_sub(self.end));
        let pause = PAUSE_MIN.max(0.5 * self.usual).max(1.5 * self.widest)..PAUSE_MIN + 2.0 * self.usual;
        match self.pause {
            Pause::Seen => {}
            Pause::Perhaps { since, end } => {
                let trickle = TRICKLE * self.rate * TRICKLE_FOR.as_secs_f64();
                if f64::from(mark.end.wrapping_sub(end)) > trickle {
                    self.pause = Pause::None;
                } else if mark.at - since >= TRICKLE_FOR {
                    self.pause = Pause::Seen;
                }
            }
            Pause::None => {
                let whole = mark.at - self.torn >= WHOLE_FOR;
                if self.acked == SMOOTHING_MARKS && whole && pause.contains(&spacing) {
                    self.pause = Pause::Perhaps { since: mark.at, end: mark.end };
                } else if spacing > 0.0 && bytes < BYTES_MAX {
                    self.rate += (bytes / spacing - self.rate) / f64::from(SMOOTHING_MARKS);
                }
            }
        }
        self.end = mark.end;
        self.widest = spacing.max(self.widest * (1.0 - 1.0 / f64::from(SMOOTHING_MARKS)));
        if self.marks.len() == MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((mark.end, mark.at));
    }

    /// When an acknowledgement that arrived `now` is to be delivered.
    fn due(&mut self, Acknowledgement { ack, edge, echo, .. }: Acknowledgement, now: Time) -> Time {
        let acked = self.marks.iter().take_while(|&&(end, _)| !is_after(end, ack)).count();
        let mut newest = self.marks.drain(..acked).next_back();
        if let Some((_, at)) = newest {
            self.measure((now - at).as_secs_f64().min(USUAL_MAX), acked, now);
        }
        if is_after(edge, ack) || echo {
            self.torn = now;
        }
        // The round trip is measured by the newest segment that arrived, in order or not.
        newest = self.marks.iter().copied().take_while(|&(end, _)| !is_after(end, edge)).last().or(newest);
        if let Some((_, at)) = newest.filter(|_| self.pause != Pause::None) {
            self.last = self.last.max(at + Duration::from_secs_f64(FLOOR * self.usual));
        }
        self.last = self.last.max(now);
        self.last
    }

    /// A round trip, seconds, which so many marks have made.
    fn measure(&mut self, rtt: f64, marks: usize, now: Time) {
        self.acked = (self.acked + marks as u32).min(SMOOTHING_MARKS);
        let mut share = marks as f64 / f64::from(self.acked);
        if rtt < self.usual {
            // Whoever is slow because of us does not wait for many marks.
            share = share.max((now - self.measured).as_secs_f64() / FORGET_SECS);
        }
        self.measured = now;
        self.usual += share.min(1.0) * (rtt - self.usual);
    }
}

/// Whether sequence number `a` is behind `b`.
const fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// The flows of which the sender tells, and their acknowledgements that wait.
#[derive(Debug, Default)]
pub(super) struct AckClock {
    flows: Vec<Flow>,
    held: BTreeMap<(Time, u64), PacketBuf>,
    count: u64,
}

impl AckClock {
    /// Takes what the sender told.
    pub(super) fn note(&mut self, mark: SentMark) {
        if let Some(flow) = self.flows.iter_mut().find(|flow| flow.tuple == mark.flow) {
            return flow.note(mark);
        }
        self.flows.retain(|flow| mark.at - flow.heard < FORGET_AFTER);
        if self.flows.len() >= FLOWS_MAX
            && let Some(oldest) = (0..self.flows.len()).min_by_key(|&i| self.flows[i].heard)
        {
            self.flows.swap_remove(oldest);
        }
        let mut flow = Flow::new(mark.flow, mark.at);
        flow.note(mark);
        self.flows.push(flow);
    }

    /// Hands an inner packet back unless it has to wait.
    pub(super) fn offer(&mut self, packet: PacketBuf, now: Time) -> Option<PacketBuf> {
        if self.flows.is_empty() {
            return Some(packet);
        }
        let Some(heard) = Acknowledgement::of(&packet) else { return Some(packet) };
        let Some(flow) = self.flows.iter_mut().find(|flow| flow.tuple == heard.flow) else {
            return Some(packet);
        };
        let due = flow.due(heard, now);
        if due <= now || self.held.len() >= HELD_MAX {
            return Some(packet);
        }
        self.count += 1;
        self.held.insert((due, self.count), packet);
        None
    }

    /// The next acknowledgement whose time has come.
    pub(super) fn poll(&mut self, now: Time) -> Option<PacketBuf> {
        let first = self.held.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    /// Acknowledgements that had to wait so far.
    pub(super) const fn held(&self) -> u64 {
        self.count
    }

    /// Acknowledgements that wait now.
    pub(super) fn waiting(&self) -> usize {
        self.held.len()
    }

    /// When to [`poll`](Self::poll) again.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.held.first_key_value().map(|(&(due, _), _)| due)
    }
}

/// What a TCP packet without payload acknowledges.
struct Acknowledgement {
    /// In the direction of the data.
    flow: TcpTuple,
    ack: u32,
    /// The highest number that arrived, in order or not.
    edge: u32,
    /// Something was marked on its way (ECE of RFC 3168).
    echo: bool,
}

impl Acknowledgement {
    /// `None` for every other packet.
    fn of(packet: &[u8]) -> Option<Self> {
        let inner = packet::parse(packet).ok()?;
        let tcp = inner.tcp?;
        let kinds = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK;
        if tcp.payload_len > 0 || tcp.flags & kinds != tcp_flags::ACK {
            return None;
        }
        let header = packet.get(inner.transport_offset..inner.transport_offset + tcp.header_len)?;
        let mut edge = tcp.ack;
        for block in header.get(TCP_HEADER..).and_then(sack_blocks).unwrap_or_default().chunks_exact(8) {
            let end = u32::from_be_bytes([block[4], block[5], block[6], block[7]]);
            if is_after(end, edge) {
                edge = end;
            }
        }
        let echo = tcp.flags & tcp_flags::ECE != 0;
        Some(Self { flow: TcpTuple::of(&inner)?.reversed(), ack: tcp.ack, edge, echo })
    }
}

/// The blocks of a SACK option (RFC 2018) among TCP options.
fn sack_blocks(mut options: &[u8]) -> Option<&[u8]> {
    loop {
        match *options.first()? {
            0 => return None,
            1 => options = &options[1..],
            kind => {
                let len = usize::from(*options.get(1)?).max(2);
                let (option, rest) = options.split_at_checked(len)?;
                if kind == SACK {
                    return Some(&option[2..]);
                }
                options = rest;
            }
        }
    }
}

#[cfg(test)]
mod tests;
