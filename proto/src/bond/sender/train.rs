//! A packet train: what a path can carry, told by a few datagrams before anybody depends on it.
//!
//! A path that has just come up is sent a train of full datagrams back to back, as many as an initial window has
//! (RFC 6928). At the bottleneck the last waits for all before it, so by how much it is later than a lone packet
//! says how fast they passed (packet dispersion; Dovrolis, Ramanathan and Moore, 2004):
//!
//! ```text
//!  rate = bits of the train up to a packet / (its one-way delay - the path's base)
//! ```
//! A buffer that empties in bursts makes that too high, jitter too low, so it is a hint: where a path begins, instead of
//! the same guess for all. A flow finds all paths at once then, instead of filling the nearest first.

use std::time::Duration;

use crate::bond::sender::Sender;
use crate::bond::sender::path::{Content, PathSender};
use crate::bond::snapshot::PathState;
use crate::path::flight::Milestone;
use crate::time::{Stamp, Time};
use crate::wire::v2::{CLEAR_LEN, Class, Flags, FrameType, TAG_LEN};
use crate::wire::{Heartbeat, HeartbeatKind};

/// Datagrams of a train.
const LENGTH: usize = 12;
/// Fewer say nothing.
const LENGTH_MIN: u64 = 3;
/// Added to the delay for what the clocks' grain and the sending itself take, seconds: nothing is taken for faster than
/// about 1 Gbit/s.
const GRAIN: f64 = 0.0001;
/// The delay model remembers a queue for so long, seconds, beyond the time that it takes to hear of it.
const QUEUE_SECS: f64 = 0.080;
/// A train that is not longer by this than the path's delay varies anyway was torn by that: it could have been shorter.
const SCATTER: f64 = 12.0;
/// The wire is kept free for the train for so long: what comes next is not to wait longer for a guess.
const BOOKED: Duration = Duration::from_millis(12);

/// Where a path's train is.
#[derive(Debug, Default)]
pub(super) enum Train {
    /// Not sent yet.
    #[default]
    Waiting,
    /// These path sequences, and the wire bytes that were sent before them.
    Sent { first: u64, last: u64, before: u64 },
    /// All that it says is known.
    Over,
}

impl PathSender {
    /// Takes the highest arrival of a report, and its one-way delay on the session's scale, seconds.
    pub(super) fn on_train(&mut self, highest: Milestone, delay: f64, now: Time) {
        let Train::Sent { first, last, before } = self.train else { return };
        if highest.seq >= last {
            self.train = Train::Over;
        }
        if !(first + LENGTH_MIN - 1..=last).contains(&highest.seq) {
            return;
        }
        let bits = (highest.cumulative - before) as f64 * 8.0;
        let waited = (delay - self.delay.base()).max(0.0) + GRAIN;
        let exact = waited > SCATTER * self.delay.deviation();
        self.rate.hint(bits / waited, exact, self.delay.feedback() + QUEUE_SECS, now);
    }
}

impl Sender {
    /// Sends the train of path `i` when it is time to.
    pub(super) fn pump_train(&mut self, i: usize, now: Time) {
        let p = &mut self.paths[i];
        if p.state != PathState::Up || !matches!(p.train, Train::Waiting) {
            return;
        }
        if !p.is_startup() {
            p.train = Train::Over;
        }
        if matches!(p.train, Train::Over) || !p.batch.is_empty() {
            return;
        }
        let (first, before) = (p.flight.next_seq(), p.flight.cumulative());
        let beat =
            Heartbeat { sent: now.stamp(), kind: HeartbeatKind::Probe, id: p.ping_id, echo: Stamp::new(0) };
        let len = p.mtu.current().saturating_sub(CLEAR_LEN + TAG_LEN).max(Heartbeat::LEN);
        for _ in 0..LENGTH {
            p.emit(FrameType::Heartbeat, Flags(0), Class::BestEffort, Content::Other, now, |slab| {
                let start = slab.len();
                beat.encode_into(slab);
                slab.resize(start + len, 0);
            });
        }
        p.free_at = p.free_at.min(now + BOOKED);
        p.train = Train::Sent { first, last: first + LENGTH as u64 - 1, before };
    }
}
