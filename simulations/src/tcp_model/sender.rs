//! The sending side of a connection.

use std::collections::VecDeque;
use std::time::Duration;

use mwb_proto::packet::{Ecn, tcp_flags};
use mwb_proto::time::Time;

mod loss;
mod options;
mod timing;

use loss::Prr;
pub use options::{SenderOptions, SenderStats};

use super::control::Control;
use super::segment::{SACK_BLOCKS_MAX, Segment};
use super::{PAYLOAD, unwrap_seq};

/// Retransmission timer before the first sample (RFC 6298).
const RTO_INITIAL: Duration = Duration::from_secs(1);
/// A super-packet of a paced connection lasts about so long (Linux: `sk_pacing_shift` 10).
const PACED_BURST: Duration = Duration::from_millis(1);
/// Its fewest and most segments (`bbr_min_tso_segs`, and 64 kB).
const BURST_MIN: u32 = 2;
const BURST_MAX: u32 = 44;
/// Late wake-ups of the pacing are forgiven up to this much.
const PACING_CREDIT: Duration = Duration::from_millis(1);

#[derive(Clone, Copy, Debug)]
struct Sent {
    start: u64,
    end: u64,
    at: Time,
    /// Time stamp of the first retransmission.
    first_retransmit: Option<u32>,
    sacked: bool,
    lost: bool,
    /// Time stamp of the last transmission: which of two was sent later.
    order: u32,
    /// Segments delivered, and when the last of them was, at that transmission.
    delivered: (u64, Time),
    /// When the segment was sent whose delivery began the span.
    span_from: Time,
}

impl Sent {
    fn is_in_flight(&self) -> bool {
        !self.sacked && !self.lost
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Closed,
    SynSent,
    Established,
}

/// Opens a connection and sends data.
#[derive(Debug)]
pub struct TcpSender {
    options: SenderOptions,
    state: State,
    syn_at: Option<Time>,
    una: u64,
    next: u64,
    end: Option<u64>,
    tsval: u32,
    peer_tsval: u32,
    control: Control,
    /// Window before the last cut, while that may turn out to be a mistake.
    saved: Option<Control>,
    sent: VecDeque<Sent>,
    in_flight: usize,
    sacked: usize,
    lost: usize,
    /// End of the highest segment known to have arrived.
    fack: u64,
    recovery_point: Option<u64>,
    loss_state: bool,
    /// Send the first retransmission whatever the window says.
    force: bool,
    prr: Prr,
    ecn_point: u64,
    cwr: bool,
    ack_pending: bool,
    srtt: Option<Duration>,
    rttvar: Duration,
    min_rtt: Duration,
    rack: Option<(Time, u64)>,
    rack_rtt: Duration,
    /// Greatest [`Sent::order`] that arrived.
    newest_order: u32,
    reordering_seen: bool,
    reo_mult: u32,
    reo_persist: u32,
    dsack_round: u64,
    backoff: u32,
    rto_at: Option<Time>,
    reo_at: Option<Time>,
    probe_at: Option<Time>,
    probe_due: bool,
    probed: bool,
    /// Segments delivered in all, and when the last of them was.
    delivered: (u64, Time),
    span_from: Time,
    /// Pacing: nothing new before.
    pace_at: Time,
    /// Segments of the super-packet that is being sent.
    burst: u32,
    stats: SenderStats,
}

impl TcpSender {
    /// A side that opens its connection at the first [`poll`](Self::poll).
    pub fn new(options: SenderOptions) -> Self {
        // Above 2^32, so that positions never go below zero.
        let first = (1 << 32) + u64::from(options.isn) + 1;
        Self {
            state: State::Closed,
            syn_at: None,
            una: first,
            next: first,
            end: options.bytes.map(|bytes| first + bytes),
            tsval: 0,
            peer_tsval: 0,
            control: Control::new(options.transport),
            saved: None,
            sent: VecDeque::new(),
            in_flight: 0,
            sacked: 0,
            lost: 0,
            fack: first,
            recovery_point: None,
            loss_state: false,
            force: false,
            prr: Prr::default(),
            ecn_point: first,
            cwr: false,
            ack_pending: false,
            srtt: None,
            rttvar: Duration::ZERO,
            min_rtt: Duration::MAX,
            rack: None,
            rack_rtt: Duration::ZERO,
            newest_order: 0,
            reordering_seen: false,
            reo_mult: 1,
            reo_persist: 0,
            dsack_round: first,
            backoff: 0,
            rto_at: None,
            reo_at: None,
            probe_at: None,
            probe_due: false,
            probed: false,
            delivered: (0, Time::ZERO),
            span_from: Time::ZERO,
            pace_at: Time::ZERO,
            burst: 0,
            stats: SenderStats::default(),
            options,
        }
    }

    /// Facts so far.
    pub fn stats(&self) -> SenderStats {
        self.stats
    }

    /// The congestion window, segments.
    pub fn cwnd(&self) -> f64 {
        self.control.cwnd()
    }

    /// Smoothed round-trip time.
    pub fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// Whether everything was sent and acknowledged.
    pub fn is_done(&self) -> bool {
        self.state == State::Established && self.end == Some(self.una)
    }

    /// Takes a segment of the peer.
    pub fn handle(&mut self, segment: &Segment, now: Time) {
        self.peer_tsval = segment.tsval;
        if segment.flags & tcp_flags::SYN != 0 {
            if self.state == State::SynSent {
                self.state = State::Established;
                if let Some(at) = self.syn_at.take() {
                    // The timer was set an initial timeout ahead.
                    let rtt = now - at.saturating_sub(RTO_INITIAL * (1 << self.backoff));
                    self.sample_rtt(rtt);
                    self.control.on_handshake(rtt, now);
                }
                self.backoff = 0;
                self.ack_pending = true;
            }
            return;
        }
        if self.state != State::Established {
            return;
        }
        let ack = unwrap_seq(self.una, segment.ack);
        if ack > self.next {
            return;
        }
        let limited = self.is_window_limited();
        let advanced = ack > self.una;
        let mut arrivals = Arrivals::default();
        if advanced {
            self.take_acked(ack, segment.tsecr, now, &mut arrivals);
        }
        self.take_sacked(segment, now, &mut arrivals);
        if let Some(rtt) = arrivals.rtt {
            self.sample_rtt(rtt);
        }
        if self.recovery_point.is_some_and(|point| self.una >= point) {
            self.leave_recovery();
        }
        if segment.flags & tcp_flags::ECE != 0 && self.options.ecn {
            self.on_echo();
        }
        let growing = self.recovery_point.is_none() || (self.loss_state && self.control.is_slow_start());
        if arrivals.count > 0 {
            let sample = self.rate_sample(&arrivals, now);
            let srtt = self.srtt.unwrap_or(RTO_INITIAL);
            self.control.on_ack(sample, growing && limited, srtt, now);
            self.control.limit((self.options.window / PAYLOAD as u64) as f64);
        }
        if advanced {
            self.backoff = 0;
        }
        if advanced || arrivals.count > 0 {
            self.probed = false;
            self.rto_at = (!self.sent.is_empty()).then(|| now + self.rto());
        }
        let found = self.detect_losses(now);
        if self.recovery_point.is_some() && !self.loss_state {
            self.prr.on_ack(arrivals.count, self.in_flight, self.control.cwnd(), advanced && !found);
        }
        self.arm_probe(now);
    }

    fn take_acked(&mut self, ack: u64, echo: u32, now: Time, arrivals: &mut Arrivals) {
        let mut first = true;
        while let Some(sent) = self.sent.front().copied().filter(|s| s.end <= ack) {
            self.sent.pop_front();
            if first && self.recovery_point.is_some() {
                // Eifel: the segment that filled the hole is older than its retransmission.
                if sent.first_retransmit.is_some_and(|id| echo < id) {
                    self.undo();
                }
                first = false;
            }
            if sent.sacked {
                self.sacked -= 1;
            } else {
                // An undo may have changed what is lost behind it, not this one.
                self.forget(&sent);
                self.arrived(&sent, now, arrivals);
            }
        }
        self.una = ack;
        self.fack = self.fack.max(ack);
    }

    fn take_sacked(&mut self, segment: &Segment, now: Time, arrivals: &mut Arrivals) {
        for (i, (start, end)) in segment.sack.iter().flatten().enumerate() {
            let (start, end) = (unwrap_seq(self.una, *start), unwrap_seq(self.una, *end));
            if end <= self.una || (i == 0 && self.is_sacked(start, end)) {
                self.on_duplicate();
                continue;
            }
            let from = self.sent.partition_point(|s| s.start < start);
            for at in from..self.sent.len() {
                let sent = self.sent[at];
                if sent.end > end {
                    break;
                }
                if sent.sacked {
                    continue;
                }
                self.forget(&sent);
                self.sent[at].sacked = true;
                self.sent[at].lost = false;
                self.sacked += 1;
                self.arrived(&sent, now, arrivals);
            }
        }
        self.fack = self.fack.max(arrivals.end);
    }

    fn is_sacked(&self, start: u64, end: u64) -> bool {
        let from = self.sent.partition_point(|s| s.start < start);
        let mut range = self.sent.iter().skip(from).take_while(|s| s.end <= end).peekable();
        // A block that just grew holds something new; only one known in full is a repetition. The
        // first block of an ACK is the newest, so a repetition there is a D-SACK.
        range.peek().is_some() && range.all(|s| s.sacked)
    }

    /// Takes a segment out of the counts of what is in flight or lost.
    fn forget(&mut self, sent: &Sent) {
        if sent.lost {
            self.lost -= 1;
        } else {
            self.in_flight -= 1;
        }
    }

    fn arrived(&mut self, sent: &Sent, now: Time, arrivals: &mut Arrivals) {
        arrivals.count += 1;
        arrivals.end = arrivals.end.max(sent.end);
        let rtt = now - sent.at;
        self.delivered = (self.delivered.0 + 1, now);
        if arrivals.newest.is_none_or(|newest| sent.order > newest.order) {
            arrivals.newest = Some(*sent);
        }
        let retransmitted = sent.first_retransmit.is_some();
        if !retransmitted {
            arrivals.rtt.get_or_insert(rtt);
            self.min_rtt = self.min_rtt.min(rtt);
            self.reordering_seen |= sent.end < self.fack;
        } else if rtt < self.min_rtt {
            return; // The original arrived, not the retransmission.
        }
        self.newest_order = self.newest_order.max(sent.order);
        if self.rack.is_none_or(|newest| (sent.at, sent.end) > newest) {
            self.rack = Some((sent.at, sent.end));
            self.rack_rtt = rtt;
        }
    }

    fn on_echo(&mut self) {
        if self.recovery_point.is_none() && self.una >= self.ecn_point {
            self.control.on_congestion();
            self.ecn_point = self.next;
            self.cwr = true;
            self.stats.ecn_cuts += 1;
        }
    }

    fn is_window_limited(&self) -> bool {
        let (used, cwnd) = (self.in_flight as f64, self.control.cwnd());
        used + 1.0 >= cwnd || (self.control.is_slow_start() && cwnd < 2.0 * used)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Time) {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.syn_at) {
            self.backoff += 1;
            self.syn_at = None;
            self.state = State::Closed;
        }
        if due(self.reo_at) {
            self.detect_losses(now);
        }
        if due(self.rto_at) {
            self.on_retransmission_timeout(now);
        } else if due(self.probe_at) {
            self.probe_at = None;
            self.probe_due = true;
            self.probed = true;
            self.rto_at = Some(now + self.rto());
        }
    }

    /// The next segment to send.
    pub fn poll(&mut self, now: Time) -> Option<Segment> {
        match self.state {
            State::Closed => {
                self.state = State::SynSent;
                self.syn_at = Some(now + RTO_INITIAL * (1 << self.backoff.min(6)));
                let mut syn = self.segment(self.una - 1, 0);
                syn.flags = tcp_flags::SYN;
                return Some(syn);
            }
            State::SynSent => return None,
            State::Established => {}
        }
        let room = self.has_room() && self.may_go(now);
        if self.lost > 0 && (room || self.force) {
            let at = self.sent.iter().position(|s| s.lost)?;
            self.lost -= 1;
            self.in_flight += 1;
            self.sent[at].lost = false;
            return Some(self.retransmit(at, now));
        }
        let probe = std::mem::take(&mut self.probe_due);
        if room || probe {
            if let Some(segment) = self.send_new(now) {
                return Some(segment);
            }
            if probe && let Some(at) = self.sent.iter().rposition(Sent::is_in_flight) {
                return Some(self.retransmit(at, now));
            }
        }
        self.ack_pending.then(|| self.segment(self.next, 0))
    }

    /// Whether pacing allows a segment now. The kernel hands super-packets of about a millisecond to the device, and paces those.
    fn may_go(&mut self, now: Time) -> bool {
        if self.burst == 0 && self.pace_at <= now {
            let interval = self.control.pacing(self.srtt);
            self.burst =
                interval.map_or(1, |i| (PACED_BURST.div_duration_f64(i) as u32).clamp(BURST_MIN, BURST_MAX));
        }
        self.burst > 0
    }

    fn has_room(&self) -> bool {
        if self.recovery_point.is_some() && !self.loss_state && self.control.heeds_loss() {
            self.prr.room > 0
        } else {
            (self.in_flight as f64) < self.control.cwnd()
        }
    }

    /// Bytes of the next new segment; zero when there is none, or the peer's window is full.
    fn next_len(&self) -> u64 {
        let left = self.end.map_or(u64::MAX, |end| end - self.next);
        let len = (PAYLOAD as u64).min(left);
        if self.next + len - self.una > self.options.window { 0 } else { len }
    }

    fn send_new(&mut self, now: Time) -> Option<Segment> {
        let len = self.next_len();
        if len == 0 {
            return None;
        }
        self.begin_span(now);
        let segment = self.segment(self.next, len as usize);
        self.sent.push_back(Sent {
            start: self.next,
            end: self.next + len,
            at: now,
            first_retransmit: None,
            sacked: false,
            lost: false,
            order: segment.tsval,
            delivered: self.delivered,
            span_from: self.span_from,
        });
        self.in_flight += 1;
        self.next += len;
        self.after_data(now);
        Some(segment)
    }

    fn retransmit(&mut self, at: usize, now: Time) -> Segment {
        self.force = false;
        self.stats.retransmits += 1;
        let sent = self.sent[at];
        let segment = self.segment(sent.start, (sent.end - sent.start) as usize);
        let sent = &mut self.sent[at];
        sent.at = now;
        sent.order = segment.tsval;
        (sent.delivered, sent.span_from) = (self.delivered, self.span_from);
        sent.first_retransmit.get_or_insert(segment.tsval);
        self.after_data(now);
        segment
    }

    fn after_data(&mut self, now: Time) {
        self.stats.segments += 1;
        self.prr.sent += 1;
        self.prr.room = self.prr.room.saturating_sub(1);
        self.burst = self.burst.saturating_sub(1);
        if let Some(interval) = self.control.pacing(self.srtt) {
            self.pace_at = self.pace_at.max(now.saturating_sub(PACING_CREDIT)) + interval;
        }
        if self.rto_at.is_none() {
            self.rto_at = Some(now + self.rto());
        }
        self.arm_probe(now);
    }

    fn segment(&mut self, seq: u64, payload_len: usize) -> Segment {
        self.tsval += 1;
        self.ack_pending = false;
        let mut flags = tcp_flags::ACK;
        if payload_len > 0 && std::mem::take(&mut self.cwr) {
            flags |= tcp_flags::CWR;
        }
        Segment {
            flags,
            seq: seq as u32,
            ack: 1,
            tsval: self.tsval,
            tsecr: self.peer_tsval,
            sack: [None; SACK_BLOCKS_MAX],
            payload_len,
            ecn: if self.options.ecn && payload_len > 0 { Ecn::Ect0 } else { Ecn::NotEct },
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Time> {
        let sends =
            self.state == State::Established && self.has_room() && (self.lost > 0 || self.next_len() > 0);
        let pace_at = sends.then_some(if self.burst > 0 { Time::ZERO } else { self.pace_at });
        [self.syn_at, self.rto_at, self.reo_at, self.probe_at, pace_at].into_iter().flatten().min()
    }
}

/// What one acknowledgement brought.
#[derive(Default)]
pub(super) struct Arrivals {
    count: usize,
    end: u64,
    rtt: Option<Duration>,
    /// The one that was sent last.
    newest: Option<Sent>,
}
