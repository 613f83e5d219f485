//! One direction of a link as a pure machine: packets and time in, packets and times out.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

use mwb_proto::time::Time;

use super::delay::DelayLine;
use super::loss::LossModel;
use super::policer::TokenBucket;
use super::queue::{DropTail, Waiting};
use super::rate::Pace;
use super::{DirectionCounters, DirectionSpec};

/// Bound on what may be in flight, in bytes: 600 Mbit/s for 0.8 s. More is counted as dropped by
/// the emulator, so that a link without a rate cannot eat the memory.
const FLIGHT_MAX: usize = 64 << 20;

/// Queue, rate, loss and delay of one direction, over packets of any kind.
///
/// The caller gives each packet with the time it arrived, in order, and asks for what is due.
/// Departure times follow from arrival times alone: being called late moves none of them.
#[derive(Debug)]
pub struct Direction<P> {
    spec: DirectionSpec,
    policer: TokenBucket,
    queue: DropTail<P>,
    pace: Pace,
    /// When the transmission of the packet at the head began and ends; `None` without one, an end of
    /// `None` is never.
    sending: Option<(Time, Option<Time>)>,
    /// When the transmitter was or will be free.
    free_at: Time,
    loss: LossModel,
    delay: DelayLine,
    flight: BinaryHeap<Flying<P>>,
    flight_bytes: usize,
    sequence: u64,
    cut: bool,
    counters: DirectionCounters,
}

#[derive(Debug)]
struct Flying<P> {
    due: Time,
    sequence: u64,
    bytes: usize,
    packet: P,
}

impl<P> Ord for Flying<P> {
    /// Reversed: the heap gives the greatest first, and that is to be the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl<P> PartialOrd for Flying<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for Flying<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<P> Eq for Flying<P> {}

impl<P> Direction<P> {
    /// An idle direction. `seed` decides its loss and jitter; a trace begins at `now`.
    pub fn new(spec: DirectionSpec, seed: u64, now: Time) -> Self {
        Self {
            policer: TokenBucket::new(),
            queue: DropTail::new(spec.queue.bytes(spec.mean_rate())),
            pace: Pace::new(spec.rate, spec.trace.as_ref(), now),
            sending: None,
            free_at: now,
            loss: LossModel::new(seed),
            delay: DelayLine::new(seed ^ 0x9e37_79b9_7f4a_7c15),
            flight: BinaryHeap::new(),
            flight_bytes: 0,
            sequence: 0,
            cut: false,
            counters: DirectionCounters::default(),
            spec,
        }
    }

    /// A packet of `bytes` IP bytes came in at `at`.
    pub fn arrive(&mut self, packet: P, bytes: usize, at: Time) {
        self.counters.arrived_packets += 1;
        self.counters.arrived_bytes += bytes as u64;
        if self.cut {
            self.counters.dropped_cut += 1;
            return;
        }
        if self.spec.policer.is_some_and(|policer| !self.policer.passes(policer, bytes, at)) {
            self.counters.dropped_policer += 1;
            return;
        }
        self.advance(at);
        match self.queue.push(Waiting { packet, bytes, arrived: at }) {
            Ok(()) => self.advance(at),
            Err(_) => self.counters.dropped_queue += 1,
        }
    }

    /// Ends every transmission that is over by `now`.
    fn advance(&mut self, now: Time) {
        while let Some(head) = self.queue.head() {
            let (_, end) = *self.sending.get_or_insert_with(|| {
                let start = head.arrived.max(self.free_at);
                (start, self.pace.finish(start, head.bytes))
            });
            let Some(end) = end.filter(|end| *end <= now) else { return };
            let sent = self.queue.pop().expect("the head was there");
            self.sending = None;
            self.free_at = end;
            self.launch(sent, end);
        }
    }

    fn launch(&mut self, sent: Waiting<P>, departure: Time) {
        if self.loss.loses(self.spec.loss, self.spec.burst) {
            self.counters.dropped_loss += 1;
            return;
        }
        if self.flight_bytes + sent.bytes > FLIGHT_MAX {
            self.counters.dropped_emulator += 1;
            return;
        }
        let (delay, jitter) = (self.spec.delay, self.spec.jitter);
        let due = self.delay.arrival(departure, delay, jitter, self.spec.jitter_reorders);
        self.sequence += 1;
        self.flight_bytes += sent.bytes;
        self.flight.push(Flying { due, sequence: self.sequence, bytes: sent.bytes, packet: sent.packet });
    }

    /// The next packet whose time has come by `now`, its size and when it was due.
    pub fn pop_due(&mut self, now: Time) -> Option<(P, usize, Time)> {
        self.advance(now);
        if self.flight.peek()?.due > now {
            return None;
        }
        let flying = self.flight.pop()?;
        self.flight_bytes -= flying.bytes;
        self.counters.packets += 1;
        self.counters.bytes += flying.bytes as u64;
        Some((flying.packet, flying.bytes, flying.due))
    }

    /// When to call [`Self::pop_due`] next, if nothing arrives before. It may find nothing then.
    pub fn next_due(&self) -> Option<Time> {
        let flying = self.flight.peek().map(|f| f.due);
        let sending = self.sending.and_then(|(_, end)| end).map(|end| end + self.spec.delay);
        match (flying, sending) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Changes what the direction does from `now` on. What waits stays in the queue, the packet being
    /// sent goes on with its rest at the new rate, what is in flight arrives as before. A trace begins
    /// again.
    pub fn set(&mut self, spec: DirectionSpec, now: Time) {
        self.advance(now);
        self.queue.set_limit(spec.queue.bytes(spec.mean_rate()));
        let same_pace = spec.trace.is_none() && self.spec.trace.is_none() && spec.rate == self.spec.rate;
        self.spec = spec;
        if !same_pace {
            self.restart_pace(now);
        }
    }

    /// Begins the trace again at `now`; without a trace nothing happens.
    pub fn restart_trace(&mut self, now: Time) {
        if self.spec.trace.is_some() {
            self.advance(now);
            self.restart_pace(now);
        }
    }

    fn restart_pace(&mut self, now: Time) {
        self.pace = Pace::new(self.spec.rate, self.spec.trace.as_ref(), now);
        if let (Some((start, end)), Some(head)) = (self.sending.take(), self.queue.head()) {
            let share = match end {
                Some(end) if end > start => end.since(now).as_secs_f64() / end.since(start).as_secs_f64(),
                Some(_) | None => 1.0,
            };
            let rest = (head.bytes as f64 * share.min(1.0)).ceil() as usize;
            self.sending = Some((now, self.pace.finish(now, rest)));
        }
        // `free_at` may lie ahead of `now` by a packet already launched; never behind it.
        self.free_at = self.free_at.max(now);
    }

    /// Makes the direction a black hole: what waits and flies is lost, and so is all that comes.
    pub fn cut(&mut self) {
        let lost = self.queue.clear() + self.flight.len();
        self.flight.clear();
        self.flight_bytes = 0;
        self.sending = None;
        self.counters.dropped_cut += lost as u64;
        self.cut = true;
    }

    /// Ends a cut.
    pub fn restore(&mut self) {
        self.cut = false;
    }

    /// Whether it is cut.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The counters so far. Nothing gets lost unseen: arrived = sent + dropped + waiting + in flight.
    pub fn counters(&self) -> DirectionCounters {
        DirectionCounters {
            queue_bytes: self.queue.bytes() as u64,
            queue_bytes_max: self.queue.bytes_max() as u64,
            ..self.counters
        }
    }

    /// Packets waiting, being sent and in flight.
    pub fn held(&self) -> usize {
        self.queue.len() + self.flight.len()
    }

    /// A packet given out by [`Self::pop_due`] could not be sent after all.
    pub(super) fn unsent(&mut self, bytes: usize) {
        self.counters.packets -= 1;
        self.counters.bytes -= bytes as u64;
        self.counters.dropped_emulator += 1;
    }

    /// A frame arrived that no buffer holds.
    pub(super) fn oversized(&mut self) {
        self.counters.dropped_emulator += 1;
    }

    /// What the spec says the propagation takes at most.
    pub fn delay_max(&self) -> Duration {
        self.spec.delay + self.spec.jitter
    }
}

#[cfg(test)]
#[path = "direction/tests.rs"]
mod tests;
