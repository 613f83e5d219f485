//! What is in flight on one path: a ring indexed by path sequence, resolved by reports.
//!
//! Every datagram takes one path sequence, so the ring has no holes. A report says of every
//! sequence between its floor and its highest whether it arrived; what is below the floor and
//! unresolved is lost.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Time;
use crate::wire::PathReport;

/// Sequences kept under watch after they were declared lost, to notice that they came late.
const WATCH_MAX: usize = 256;
/// How long they are: what comes later says nothing about reordering.
const WATCH_FOR: Duration = Duration::from_millis(500);
/// The reordering window begins with this share of the least feedback time (RFC 8985, section 6.2: min_RTT / 4).
const REORDER_SHARE: u32 = 4;
/// It never begins with less: reports come every 5 ms, so lateness is not known better.
const REORDER_MIN: Duration = Duration::from_millis(2);
/// It never grows beyond the least feedback time, nor beyond this: a resend that waits longer is too late for inner TCP.
const REORDER_MAX: Duration = Duration::from_millis(60);
/// Without a new mistake for so long the window is halved (RFC 8985 forgets after 16 recoveries).
const REORDER_PERSISTS: Duration = Duration::from_secs(10);
/// More datagrams than this are never in flight on one path (bounds the ring: 64 Ki x 48 B).
pub const FLIGHT_MAX: usize = 1 << 16;

/// Where a sent datagram stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    InFlight,
    Acked,
    Lost,
}

/// One datagram on its way. `T` says what it carried.
#[derive(Debug, Clone)]
pub struct Sent<T> {
    /// When it was handed to the link.
    pub at: Time,
    /// Bytes on the wire, IP and UDP headers included.
    pub bytes: u32,
    /// Sum of `bytes` of all datagrams of the path up to and with this one.
    pub cumulative: u64,
    /// How often the path had run dry, with nothing to send, before this datagram or an earlier one.
    pub gaps: u32,
    /// What it carried; the default once that has been told.
    pub content: T,
    fate: Fate,
}

/// What one report resolved.
#[derive(Debug)]
pub struct Resolution<T> {
    /// Contents that arrived.
    pub acked: Vec<T>,
    /// Contents that were lost, oldest first.
    pub lost: Vec<T>,
    /// Wire bytes newly known to be lost.
    pub lost_bytes: u64,
    /// Datagrams newly known to be lost.
    pub lost_packets: u64,
    /// Runs of datagrams sent one after the other, of which these consist.
    pub lost_runs: u64,
    /// Datagrams newly known to have arrived.
    pub acked_packets: u64,
    /// Their wire bytes.
    pub acked_bytes: u64,
    /// Datagrams that arrived after they had been declared lost.
    pub spurious: u64,
    /// Of the arrived and of the lost, those that count as large: see [`Flight::set_large`].
    pub large_acked: u64,
    /// See `large_acked`.
    pub large_lost: u64,
    /// The highest datagram that arrived, when it is a new one.
    pub highest: Option<Milestone>,
}

/// A point in the series of datagrams sent on a path.
#[derive(Debug, Clone, Copy)]
pub struct Milestone {
    /// Path sequence.
    pub seq: u64,
    /// When it was sent.
    pub at: Time,
    /// Wire bytes sent up to and with it.
    pub cumulative: u64,
    /// Idle gaps of the sender up to it.
    pub gaps: u32,
}

impl<T> Default for Resolution<T> {
    fn default() -> Self {
        Self {
            acked: Vec::new(),
            lost: Vec::new(),
            lost_bytes: 0,
            lost_packets: 0,
            lost_runs: 0,
            acked_packets: 0,
            acked_bytes: 0,
            spurious: 0,
            large_acked: 0,
            large_lost: 0,
            highest: None,
        }
    }
}

impl<T> Resolution<T> {
    /// Empties it for the next report.
    pub fn clear(&mut self) {
        self.acked.clear();
        self.lost.clear();
        self.lost_bytes = 0;
        self.lost_packets = 0;
        self.lost_runs = 0;
        self.acked_packets = 0;
        self.acked_bytes = 0;
        self.spurious = 0;
        self.large_acked = 0;
        self.large_lost = 0;
        self.highest = None;
    }
}

/// The ring of one path.
#[derive(Debug)]
pub struct Flight<T> {
    ring: VecDeque<Sent<T>>,
    base: u64,
    next: u64,
    /// All below it is resolved.
    unresolved_from: u64,
    highest_acked: Option<u64>,
    bytes: u64,
    cumulative: u64,
    gaps: u32,
    /// How much later a packet may come than one that was sent after it.
    window: Duration,
    /// When the window last grew or shrank.
    window_at: Time,
    /// When the highest was first heard of.
    highest_at: Time,
    feedback_min: Duration,
    /// What was declared lost, and when.
    watch: VecDeque<(u64, Time)>,
    large: u32,
}

impl<T: Default> Flight<T> {
    /// An empty ring whose first datagram will be `first`.
    pub fn new(first: u64) -> Self {
        Self {
            ring: VecDeque::new(),
            base: first,
            next: first,
            unresolved_from: first,
            highest_acked: None,
            bytes: 0,
            cumulative: 0,
            gaps: 0,
            window: Duration::ZERO,
            window_at: Time::ZERO,
            highest_at: Time::ZERO,
            feedback_min: Duration::MAX,
            watch: VecDeque::new(),
            large: u32::MAX,
        }
    }

    /// Datagrams of more than `bytes` on the wire count as large.
    pub fn set_large(&mut self, bytes: u32) {
        self.large = bytes;
    }

    /// The sequence that the next datagram takes.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Bytes sent and not resolved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the ring can take no more.
    pub fn is_full(&self) -> bool {
        self.ring.len() >= FLIGHT_MAX
    }

    /// Bytes sent in all.
    pub fn cumulative(&self) -> u64 {
        self.cumulative
    }

    /// Reordering tolerance: how much later than one sent after it a packet may arrive before it counts as lost. Zero
    /// until a mistake has shown that the path reorders.
    pub fn reorder_window(&self) -> Duration {
        self.window
    }

    /// Highest sequence known to have arrived.
    pub fn highest_acked(&self) -> Option<u64> {
        self.highest_acked
    }

    /// Records a datagram; returns its path sequence. `after_gap`: the path had run dry before it.
    pub fn push(&mut self, at: Time, bytes: u32, content: T, after_gap: bool) -> u64 {
        let seq = self.next;
        self.gaps = self.gaps.wrapping_add(u32::from(after_gap));
        self.next += 1;
        self.cumulative += u64::from(bytes);
        self.bytes += u64::from(bytes);
        self.ring.push_back(Sent {
            at,
            bytes,
            cumulative: self.cumulative,
            gaps: self.gaps,
            content,
            fate: Fate::InFlight,
        });
        seq
    }

    /// The newest datagram, if it is `seq` and nothing is known of it, becomes longer by `bytes` and carries what `change`
    /// makes of its content. Otherwise gives false and changes nothing.
    pub fn extend_newest(&mut self, seq: u64, bytes: u32, change: impl FnOnce(&mut T)) -> bool {
        let is_newest = self.next.checked_sub(1) == Some(seq);
        let Some(sent) = self.ring.back_mut().filter(|sent| is_newest && sent.fate == Fate::InFlight) else {
            return false;
        };
        self.cumulative += u64::from(bytes);
        self.bytes += u64::from(bytes);
        sent.bytes += bytes;
        sent.cumulative = self.cumulative;
        change(&mut sent.content);
        true
    }

    /// Send time of the oldest datagram above everything that arrived: the one whose silence counts.
    pub fn oldest_unseen(&self) -> Option<Time> {
        self.unseen_sent().next().map(|s| s.at)
    }

    fn unseen_sent(&self) -> impl Iterator<Item = &Sent<T>> {
        let from = self.highest_acked.map_or(self.base, |h| h + 1).max(self.unresolved_from).max(self.base);
        self.ring.iter().skip((from - self.base) as usize).filter(|s| s.fate == Fate::InFlight)
    }

    /// Send time of the newest datagram, if anything is unresolved.
    pub fn newest_unresolved(&self) -> Option<Time> {
        (self.bytes > 0).then(|| self.ring.back().map(|s| s.at)).flatten()
    }

    /// Rebuilds a 64-bit sequence from its low half, nearest to what was sent.
    pub fn rebuild(&self, low: u32) -> Option<u64> {
        let last = self.next.checked_sub(1)?;
        let delta = (last as u32).wrapping_sub(low);
        // Nothing above the newest datagram can have arrived.
        if delta > u32::MAX / 2 {
            return None;
        }
        last.checked_sub(u64::from(delta))
    }

    /// Applies one report of this path that came at `now`. `out` is filled, not cleared. Returns false, changing
    /// nothing, when the report speaks of what was never sent.
    ///
    /// A packet is lost when the report does not say that it arrived, and one that was sent later by more than the
    /// reordering window did, or has for that long (RFC 8985, section 6.2).
    pub fn resolve(&mut self, report: &PathReport, now: Time, out: &mut Resolution<T>) -> bool {
        let Some(highest) = self.rebuild(report.highest) else { return false };
        let floor = highest.saturating_sub(u64::from(report.floor));
        let missing = |seq: u64| {
            report.missing.iter().any(|m| {
                let start = highest.saturating_sub(u64::from(m.below_highest));
                (start..start + u64::from(m.len)).contains(&seq)
            })
        };
        let mut latest = None;
        self.watch.retain(|&(seq, lost_at)| {
            if seq >= floor && seq <= highest && !missing(seq) {
                out.spurious += 1;
                latest = latest.max(Some(now - lost_at));
                return false;
            }
            now - lost_at < WATCH_FOR
        });
        if highest >= self.base
            && self.highest_acked.is_none_or(|h| highest > h)
            && let Some(sent) = self.ring.get((highest - self.base) as usize)
        {
            self.highest_acked = Some(highest);
            self.highest_at = now;
            self.feedback_min = self.feedback_min.min(now - sent.at);
            let (at, cumulative, gaps) = (sent.at, sent.cumulative, sent.gaps);
            out.highest = Some(Milestone { seq: highest, at, cumulative, gaps });
        }
        self.adapt_window(latest, now);
        let newest = self.highest_acked.and_then(|h| self.ring.get(h.checked_sub(self.base)? as usize));
        // A window earlier than this, a packet that is still missing is lost.
        let overtaken = newest.map_or(now, |sent| sent.at + (now - self.highest_at));
        let window = self.window;

        let mut first_open = None;
        let mut in_run = false;
        for seq in self.unresolved_from.max(self.base)..=highest {
            let Some(sent) = self.ring.get_mut((seq - self.base) as usize) else { break };
            if sent.fate != Fate::InFlight {
                continue;
            }
            let arrived = seq >= floor && !missing(seq);
            let goes_on = std::mem::take(&mut in_run);
            if arrived {
                sent.fate = Fate::Acked;
                out.acked_packets += 1;
                out.acked_bytes += u64::from(sent.bytes);
                out.large_acked += u64::from(sent.bytes > self.large);
                out.acked.push(std::mem::take(&mut sent.content));
            } else if sent.at + window <= overtaken {
                sent.fate = Fate::Lost;
                in_run = true;
                out.lost_runs += u64::from(!goes_on);
                out.lost_packets += 1;
                out.lost_bytes += u64::from(sent.bytes);
                out.large_lost += u64::from(sent.bytes > self.large);
                out.lost.push(std::mem::take(&mut sent.content));
                if self.watch.len() == WATCH_MAX {
                    self.watch.pop_front();
                }
                self.watch.push_back((seq, now));
            } else {
                first_open.get_or_insert(seq);
                continue;
            }
            self.bytes -= u64::from(sent.bytes);
        }
        self.unresolved_from = first_open.unwrap_or_else(|| self.unresolved_from.max(highest + 1));
        self.trim();
        true
    }

    /// Widens the window by what a mistake has shown to be missing of it, narrows it when there was none for long.
    fn adapt_window(&mut self, mistaken: Option<Duration>, now: Time) {
        if let Some(latest) = mistaken {
            let least = (self.feedback_min / REORDER_SHARE).max(REORDER_MIN);
            let most = self.feedback_min.clamp(REORDER_MIN, REORDER_MAX);
            self.window = (self.window + latest).max(least).min(most);
            self.window_at = now;
        } else if !self.window.is_zero() && now - self.window_at > REORDER_PERSISTS {
            self.window = if self.window > REORDER_MIN { self.window / 2 } else { Duration::ZERO };
            self.window_at = now;
        }
    }

    /// Takes everything unresolved out of flight: the path is silent. The sequences stay under the
    /// next report's eye, so that what did arrive is noticed as such.
    pub fn abandon(&mut self, out: &mut Resolution<T>) {
        for seq in self.unresolved_from.max(self.base)..self.next {
            let sent = &mut self.ring[(seq - self.base) as usize];
            if sent.fate == Fate::InFlight {
                sent.fate = Fate::Lost;
                out.lost.push(std::mem::take(&mut sent.content));
                out.lost_packets += 1;
                out.lost_bytes += u64::from(sent.bytes);
            }
        }
        self.bytes = 0;
        self.unresolved_from = self.next;
        // The ring keeps the newest entries so that a later report still finds send times.
        self.trim_to(64);
    }

    /// Contents of what was sent above the highest arrival, oldest first, at most `max`.
    pub fn unseen(&self, max: usize) -> impl Iterator<Item = &T> {
        self.unseen_sent().take(max).map(|s| &s.content)
    }

    fn trim(&mut self) {
        while self.base < self.unresolved_from && !self.ring.is_empty() {
            self.ring.pop_front();
            self.base += 1;
        }
    }

    fn trim_to(&mut self, keep: usize) {
        while self.ring.len() > keep {
            self.ring.pop_front();
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests;
