//! The receiving side of a connection.

use std::collections::BTreeMap;
use std::time::Duration;

use mwb_proto::packet::{Ecn, tcp_flags};
use mwb_proto::time::Time;

use super::segment::{SACK_BLOCKS_MAX, Segment};
use super::{PAYLOAD, unwrap_seq};

/// Longest an acknowledgement is held back (Linux: `TCP_DELACK_MIN`).
const DELAYED_ACK: Duration = Duration::from_millis(40);
/// Segments acknowledged one by one at the start (Linux: quick ACKs), for the peer's slow start.
const QUICK_ACKS: u32 = 16;

/// Facts about a receiving side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiverStats {
    /// Bytes given to the application, in order.
    pub delivered: u64,
    /// Segments that arrived with nothing new.
    pub duplicates: u64,
    /// Segments that arrived ahead of a missing one.
    pub out_of_order: u64,
    /// Segments marked CE.
    pub marked: u64,
}

/// Takes data in, sends acknowledgements out.
#[derive(Debug)]
pub struct TcpReceiver {
    next: u64,
    /// Data beyond the next byte: start to end.
    ahead: BTreeMap<u64, u64>,
    /// Starts of ranges in `ahead`, the one that grew last first.
    recent: Vec<u64>,
    duplicate: Option<(u64, u64)>,
    /// Time stamp to echo: of the segment that was next in order (RFC 7323).
    echo: u32,
    tsval: u32,
    unacked: u32,
    quick: u32,
    ack_at: Option<Time>,
    ack_now: bool,
    echo_congestion: bool,
    synchronized: bool,
    syn_ack: bool,
    stats: ReceiverStats,
}

impl TcpReceiver {
    /// A listening side.
    pub fn new() -> Self {
        Self {
            next: 0,
            ahead: BTreeMap::new(),
            recent: Vec::new(),
            duplicate: None,
            echo: 0,
            tsval: 0,
            unacked: 0,
            quick: QUICK_ACKS,
            ack_at: None,
            ack_now: false,
            echo_congestion: false,
            synchronized: false,
            syn_ack: false,
            stats: ReceiverStats::default(),
        }
    }

    /// Facts so far.
    pub fn stats(&self) -> ReceiverStats {
        self.stats
    }

    /// Takes a segment of the peer.
    pub fn handle(&mut self, segment: &Segment, now: Time) {
        if segment.flags & tcp_flags::SYN != 0 {
            if !self.synchronized {
                // Above 2^32, so that positions never go below zero.
                self.next = (1 << 32) + u64::from(segment.seq) + 1;
                self.synchronized = true;
            }
            self.echo = segment.tsval;
            self.syn_ack = true;
            return;
        }
        if !self.synchronized || segment.payload_len == 0 {
            return;
        }
        if segment.flags & tcp_flags::CWR != 0 {
            self.echo_congestion = false;
        }
        if segment.ecn == Ecn::Ce {
            self.stats.marked += 1;
            self.echo_congestion = true;
            self.ack_now = true;
        }
        let start = unwrap_seq(self.next, segment.seq);
        let end = start + segment.payload_len as u64;
        if end <= self.next || self.covers(start, end) {
            self.stats.duplicates += 1;
            self.duplicate = Some((start, end));
            self.ack_now = true;
        } else if start > self.next {
            self.stats.out_of_order += 1;
            self.insert(start, end);
            self.ack_now = true;
        } else {
            self.echo = segment.tsval;
            let had_gap = !self.ahead.is_empty();
            self.advance(end);
            self.ack_now |= had_gap;
            self.unacked += segment.payload_len as u32;
            if self.quick > 0 {
                self.quick -= 1;
                self.ack_now = true;
            }
        }
        self.ack_now |= self.unacked >= 2 * PAYLOAD as u32;
        if self.unacked > 0 && self.ack_at.is_none() {
            self.ack_at = Some(now + DELAYED_ACK);
        }
    }

    fn covers(&self, start: u64, end: u64) -> bool {
        self.ahead.range(..=start).next_back().is_some_and(|(_, &e)| e >= end)
    }

    fn insert(&mut self, mut start: u64, mut end: u64) {
        while let Some((&s, &e)) = self.ahead.range(..=end).next_back() {
            if e < start {
                break;
            }
            start = start.min(s);
            end = end.max(e);
            self.ahead.remove(&s);
            self.recent.retain(|&r| r != s);
        }
        self.ahead.insert(start, end);
        self.recent.insert(0, start);
        self.recent.truncate(64);
    }

    fn advance(&mut self, to: u64) {
        let mut to = to;
        while let Some((&s, &e)) = self.ahead.first_key_value() {
            if s > to {
                break;
            }
            to = to.max(e);
            self.ahead.remove(&s);
            self.recent.retain(|&r| r != s);
        }
        self.stats.delivered += to - self.next;
        self.next = to;
    }

    /// Sends a delayed acknowledgement that is due.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_now = true;
        }
    }

    /// The next segment to send.
    pub fn poll(&mut self) -> Option<Segment> {
        let syn = std::mem::take(&mut self.syn_ack);
        if !syn && !self.ack_now {
            return None;
        }
        self.ack_now = false;
        self.ack_at = None;
        self.unacked = 0;
        self.tsval += 1;
        let mut sack = [None; SACK_BLOCKS_MAX];
        let duplicate = self.duplicate.take();
        let blocks = self.recent.iter().filter_map(|s| Some((*s, *self.ahead.get(s)?)));
        for (slot, (start, end)) in sack.iter_mut().zip(duplicate.into_iter().chain(blocks)) {
            *slot = Some((start as u32, end as u32));
        }
        let mut flags = tcp_flags::ACK;
        if syn {
            flags |= tcp_flags::SYN;
        }
        if self.echo_congestion {
            flags |= tcp_flags::ECE;
        }
        Some(Segment {
            flags,
            seq: u32::from(!syn),
            ack: self.next as u32,
            tsval: self.tsval,
            tsecr: self.echo,
            sack,
            payload_len: 0,
            ecn: Ecn::NotEct,
        })
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Time> {
        self.ack_at
    }
}

impl Default for TcpReceiver {
    fn default() -> Self {
        Self::new()
    }
}
