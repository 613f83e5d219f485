//! Which reports leave, when, and how often each.
//!
//! The receiver makes one every few milliseconds; what that costs the way back is known here. A report is a statement
//! about a moment, complete in itself, so a newer one replaces one that still waits. Where reports would take more than
//! [`SHARE`] of all paths together they go out more rarely, and most of them on the best path alone: the second copy is
//! there for the moment in which that path is cut, and every [`SECOND_EVERY`] does as well. A new gap is told at once.

use std::time::Duration;

use crate::bond::sender::Sender;
use crate::bond::sender::path::{Content, OUTER_HEADERS, PathSender};
use crate::bond::snapshot::PathState;
use crate::buf::PacketBuf;
use crate::time::Time;
use crate::wire::v2::{CLEAR_LEN, Class, Flags, FrameType, TAG_LEN};
use crate::wire::{PathId, Report};

/// Of the known rates of the paths that carry them, reports take no more than this share.
const SHARE: f64 = 0.03;
/// They are never further apart for that than this.
const SPACING_MAX: f64 = 0.025;
/// The receiver makes them this far apart, seconds, and half of that more is not worth being called thin.
const PACE: f64 = 0.0075;
/// A path is as good for a report as its delay and this many times what sending it takes: many will follow.
const WIRE_COST: f64 = 4.0;
/// Reports that are this near to their time leave at once: the next one would be as much too late.
const EARLY: Duration = Duration::from_micros(2500);
/// A report that waits for its time is replaced by a newer one, or leaves this late.
const LATE: Duration = Duration::from_millis(3);
/// One report in this time goes out on a second path, however thin that is.
const SECOND_EVERY: Duration = Duration::from_millis(60);
/// Above this lateness and twice the deviation, seconds, the best path may be cut: each report goes out on the second too.
const DOUBTFUL: f64 = 0.020;

/// Reports on their way out.
#[derive(Debug, Default)]
pub(super) struct Reports {
    waiting: Option<PacketBuf>,
    /// It came since the last look at it.
    fresh: bool,
    /// It tells of a gap of which none before told.
    urgent: bool,
    last: Time,
    second: Time,
    pub(super) wake_at: Option<Time>,
    /// Newest missing sequence that was told, per path.
    told: Vec<(PathId, u32)>,
}

impl Reports {
    /// Takes a report, in place of the one that waits.
    pub(super) fn push(&mut self, body: PacketBuf) {
        self.urgent |= self.is_news(&body);
        self.fresh = true;
        self.waiting = Some(body);
    }

    fn is_news(&mut self, body: &[u8]) -> bool {
        let Ok(report) = Report::decode(body) else { return false };
        let mut news = false;
        for path in &report.paths {
            let Some(range) = path.missing.first() else { continue };
            let above = range.below_highest.saturating_sub(range.len.saturating_sub(1));
            let newest = path.highest.wrapping_sub(u32::from(above));
            match self.told.iter_mut().find(|told| told.0 == path.path) {
                // A path that begins anew begins anywhere.
                Some(told) if told.1 == newest => {}
                Some(told) => {
                    news |= newest.wrapping_sub(told.1) as i32 > 0;
                    told.1 = newest;
                }
                None => {
                    news = true;
                    if self.told.len() < Report::PATHS_MAX {
                        self.told.push((path.path, newest));
                    }
                }
            }
        }
        news
    }
}

/// Bits of a report's datagram on the wire.
fn report_bits(len: usize) -> f64 {
    ((len + CLEAR_LEN + TAG_LEN + OUTER_HEADERS) * 8) as f64
}

impl Sender {
    /// Sends the waiting report when it is time.
    pub(super) fn pump_reports(&mut self, now: Time) {
        self.reports.wake_at = None;
        let Some(body) = &self.reports.waiting else { return };
        let spacing = self.report_spacing(body.len());
        let thin = spacing.is_some();
        let wire_cost = if thin { WIRE_COST * report_bits(body.len()) } else { 0.0 };
        let [Some(first), second] = self.two_best(wire_cost) else {
            self.reports.waiting = None;
            return;
        };
        let due = self.reports.last + spacing.unwrap_or_default();
        let fresh = std::mem::take(&mut self.reports.fresh);
        let at_once = self.reports.urgent || !thin || (fresh && now + EARLY >= due);
        if !at_once && now < due + LATE {
            self.reports.wake_at = Some(due + LATE);
            return;
        }
        self.reports.urgent = false;
        self.reports.last = now;
        let Some(body) = self.reports.waiting.take() else { return };
        self.emit_report(first, &body, now);
        let best = &self.paths[first];
        let late = best.lateness > DOUBTFUL + 2.0 * best.delay.deviation();
        let doubtful = best.state != PathState::Up || late;
        if let Some(second) = second
            && (!thin || doubtful || now + EARLY >= self.reports.second + SECOND_EVERY)
        {
            self.reports.second = now;
            self.emit_report(second, &body, now);
        }
    }

    fn emit_report(&mut self, i: usize, body: &[u8], now: Time) {
        let stamp = now.stamp().raw().to_be_bytes();
        self.paths[i].emit(FrameType::Ack, Flags(0), Class::BestEffort, Content::Other, now, |slab| {
            slab.extend_from_slice(&stamp[1..]);
            slab.extend_from_slice(&body[3..]);
        });
    }

    /// Time between reports of so many bytes where all paths together are thin for them; `None` where they are not, where one's
    /// rate is no more than a guess, or where reports are lost by chance. Beside one thick path the thin ones hardly matter,
    /// and what is learned late costs the thick one dearly: also one that is far away or parked.
    fn report_spacing(&self, len: usize) -> Option<Duration> {
        let paths = || self.paths.iter().filter(|p| p.is_live());
        if paths().any(|p| (p.is_startup() && !p.rate.is_hinted()) || p.random.is_lossy()) {
            return None;
        }
        let allowed = SHARE * paths().map(PathSender::carries).sum::<f64>();
        let bits = report_bits(len);
        let copies = if self.paths.len() > 1 { 2.0 } else { 1.0 };
        if bits * copies <= allowed * PACE {
            return None;
        }
        let rest = allowed - (copies - 1.0) * bits / SECOND_EVERY.as_secs_f64();
        let spacing = if rest > 0.0 { (bits / rest).min(SPACING_MAX) } else { SPACING_MAX };
        Some(Duration::from_secs_f64(spacing))
    }

    /// The two live paths of least delay, with the time that `wire_cost` bits take; suspected ones when there is no other.
    fn two_best(&self, wire_cost: f64) -> [Option<usize>; 2] {
        let cost = |p: &PathSender| {
            let busy = wire_cost / p.rate.rate();
            let rank = if p.is_live() { 0.0 } else { 1e6 };
            let unmeasured = if p.delay.is_measured() { 0.0 } else { 1e3 };
            rank + unmeasured + busy + p.delay.smoothed() + p.delay.deviation()
        };
        let mut order: Vec<usize> = (0..self.paths.len()).collect();
        order.sort_by(|&a, &b| cost(&self.paths[a]).total_cmp(&cost(&self.paths[b])));
        [order.first().copied(), order.get(1).copied()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::BufPool;
    use crate::time::Stamp;
    use crate::wire::{MissingRange, PathReport};

    fn body(highest: u32, missing: &[(u16, u16)]) -> PacketBuf {
        let range = |&(below_highest, len)| MissingRange { below_highest, len };
        let path = PathReport {
            path: PathId(1),
            highest,
            highest_age: 0,
            received_bytes: 0,
            ce: 0,
            owd_min: Stamp::new(0),
            owd_mean_excess: 0,
            owd_highest_excess: 0,
            floor: 1000,
            missing: missing.iter().map(range).collect(),
        };
        let report = Report { sent: Stamp::new(0), number: 1, time: Stamp::new(0), paths: vec![path] };
        let mut out = Vec::new();
        report.encode_into(&mut out);
        BufPool::new(2048, 1).copy_from(&out).expect("fits")
    }

    #[test]
    fn only_a_gap_that_was_not_told_is_urgent() {
        let mut reports = Reports::default();
        let mut urgent = |highest, missing: &[(u16, u16)]| {
            reports.urgent = false;
            reports.push(body(highest, missing));
            reports.urgent
        };
        assert!(!urgent(100, &[]));
        assert!(urgent(110, &[(5, 2)]), "105 and 106");
        assert!(!urgent(120, &[(15, 2)]), "the same");
        assert!(!urgent(120, &[(15, 1)]), "half of it has come");
        assert!(urgent(130, &[(3, 1), (25, 1)]), "a newer one");
        assert!(!urgent(140, &[(13, 1)]), "what is left is old");
    }
}
