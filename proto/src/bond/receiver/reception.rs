//! What arrived on one path: the receiver's half of its model, from which reports are made.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bond::receiver::REPEAT;
use crate::path::delay::{STAMP_UNIT_SECS, Unwrap};
use crate::time::{STAMP_UNIT_NANOS, Stamp, Time};
use crate::wire::{MissingRange, PathId, PathReport};

/// Ranges of missing sequences in one report, the newest (the wire's limit); the floor of the report lies above the others.
const RANGES_MAX: usize = 24;
/// Ranges kept, so that older ones come back into the reports when newer ones are filled, as on a path that reorders;
/// the oldest beyond are given up.
const RANGES_KEPT: usize = 256;
/// A missing range is reported this long.
const RANGE_AGE_MAX: Duration = Duration::from_millis(1500);
/// So long after a gap was filled the path counts as one that reorders: a report for each gap would be one per packet.
const REORDERS_FOR: Duration = Duration::from_secs(1);
/// The floor is never further below the highest than this (16 bits on the wire).
const FLOOR_MAX: u64 = 60_000;

#[derive(Debug, Clone, Copy)]
struct Gap {
    start: u64,
    end: u64,
    since: Time,
}

#[derive(Debug)]
pub(super) struct PathReception {
    pub(super) id: PathId,
    highest: u64,
    highest_arrival: Time,
    highest_owd: i64,
    floor: u64,
    gaps: VecDeque<Gap>,
    received_bytes: u32,
    ce: u16,
    owd: Unwrap,
    owd_min: i64,
    owd_sum: i64,
    owd_count: i64,
    last_owd: i64,
    repeat: u8,
    /// When a packet last filled a gap: a path sequence is sent once, so it had been overtaken.
    reordered_at: Option<Time>,
}

impl PathReception {
    /// A path whose first packet has sequence `first`; `scale` unwraps delays on the session's
    /// common scale.
    pub(super) fn new(id: PathId, first: u64, scale: &Unwrap) -> Self {
        Self {
            id,
            highest: first.saturating_sub(1),
            highest_arrival: Time::ZERO,
            highest_owd: 0,
            floor: first,
            gaps: VecDeque::new(),
            received_bytes: 0,
            ce: 0,
            owd: scale.clone(),
            owd_min: i64::MAX,
            owd_sum: 0,
            owd_count: 0,
            last_owd: 0,
            repeat: 0,
            reordered_at: None,
        }
    }

    /// Takes a packet; true when it opened a gap that is worth a report of its own: on a path that reorders most are not.
    pub(super) fn on_packet(&mut self, seq: u64, sent: u32, arrival: Time, wire_len: u16, ce: bool) -> bool {
        let raw = arrival.stamp().wrapping_sub(Stamp::new(sent));
        let owd = self.owd.units(raw);
        self.last_owd = owd;
        self.owd_min = self.owd_min.min(owd);
        self.owd_sum += owd;
        self.owd_count += 1;
        self.received_bytes = self.received_bytes.wrapping_add(u32::from(wire_len));
        self.ce = self.ce.wrapping_add(u16::from(ce));
        self.repeat = REPEAT;
        if seq > self.highest {
            let gap = seq > self.highest + 1;
            if gap {
                self.gaps.push_back(Gap { start: self.highest + 1, end: seq, since: arrival });
            }
            self.highest = seq;
            self.highest_arrival = arrival;
            self.highest_owd = owd;
            self.bound();
            return gap && self.reordered_at.is_none_or(|at| arrival - at > REORDERS_FOR);
        }
        if seq >= self.floor && self.fill(seq) {
            self.reordered_at = Some(arrival);
        }
        false
    }

    /// Whether the sequence was missing.
    fn fill(&mut self, seq: u64) -> bool {
        let Some(i) = self.gaps.iter().position(|g| (g.start..g.end).contains(&seq)) else { return false };
        let gap = self.gaps[i];
        let left = Gap { end: seq, ..gap };
        let right = Gap { start: seq + 1, ..gap };
        self.gaps.remove(i);
        if right.start < right.end {
            self.gaps.insert(i, right);
        }
        if left.start < left.end {
            self.gaps.insert(i, left);
        }
        self.bound();
        true
    }

    /// Keeps the ranges few and near, by raising the floor above the oldest.
    fn bound(&mut self) {
        while let Some(oldest) = self.gaps.front() {
            let far = self.highest - oldest.start > FLOOR_MAX || oldest.end - oldest.start > FLOOR_MAX;
            if self.gaps.len() <= RANGES_KEPT && !far {
                break;
            }
            self.floor = oldest.end;
            self.gaps.pop_front();
        }
        self.floor = self.floor.max(self.highest.saturating_sub(FLOOR_MAX));
    }

    pub(super) fn expire(&mut self, now: Time) {
        while let Some(oldest) = self.gaps.front() {
            if now - oldest.since < RANGE_AGE_MAX {
                break;
            }
            self.floor = oldest.end;
            self.gaps.pop_front();
        }
    }

    /// One-way delay of the newest packet on the session's common scale, seconds.
    pub(super) fn delay_secs(&self) -> f64 {
        self.last_owd as f64 * STAMP_UNIT_SECS
    }

    /// This path's part of a report, while there is news or an old one may have been lost.
    pub(super) fn report(&mut self, now: Time) -> Option<PathReport> {
        if self.repeat == 0 {
            return None;
        }
        self.repeat -= 1;
        let (min, mean) = if self.owd_count > 0 {
            (self.owd_min, self.owd_sum / self.owd_count)
        } else {
            (self.highest_owd, self.highest_owd)
        };
        let min = min.min(self.highest_owd);
        self.owd_min = i64::MAX;
        self.owd_sum = 0;
        self.owd_count = 0;
        // Of what lies below the ranges that the report has room for it says nothing.
        let unsaid = self.gaps.len().checked_sub(RANGES_MAX + 1).map_or(0, |i| self.gaps[i].end);
        let floor = self.floor.max(unsaid);
        let missing = self
            .gaps
            .iter()
            .rev()
            .take(RANGES_MAX)
            .map(|g| MissingRange {
                below_highest: (self.highest - g.start) as u16,
                len: (g.end - g.start) as u16,
            })
            .collect();
        let age = (now - self.highest_arrival).as_nanos() as u64 / STAMP_UNIT_NANOS;
        let excess = |owd: i64| u16::try_from(owd - min).unwrap_or(u16::MAX);
        Some(PathReport {
            path: self.id,
            highest: self.highest as u32,
            highest_age: u16::try_from(age).unwrap_or(u16::MAX),
            received_bytes: self.received_bytes,
            ce: self.ce,
            owd_min: self.owd.raw(min),
            owd_mean_excess: excess(mean),
            owd_highest_excess: excess(self.highest_owd),
            floor: (self.highest.saturating_sub(floor)).min(u64::from(u16::MAX)) as u16,
            missing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(r: &mut PathReception, seq: u64, at_ms: u64) -> bool {
        r.on_packet(seq, 0, Time::from_millis(at_ms), 100, false)
    }

    #[test]
    fn gaps_open_split_and_close() {
        let mut r = PathReception::new(PathId(1), 10, &Unwrap::default());
        assert!(!packet(&mut r, 10, 1));
        assert!(packet(&mut r, 15, 2));
        assert!(!packet(&mut r, 12, 3));
        let report = r.report(Time::from_millis(4)).expect("news");
        let ranges: Vec<_> = report.missing.iter().map(|m| (m.below_highest, m.len)).collect();
        assert_eq!(ranges, vec![(2, 2), (4, 1)]);
        packet(&mut r, 11, 5);
        packet(&mut r, 13, 5);
        packet(&mut r, 14, 5);
        assert!(r.report(Time::from_millis(6)).expect("news").missing.is_empty());
    }

    #[test]
    fn gaps_of_a_path_that_reorders_wait_for_the_next_report() {
        let mut r = PathReception::new(PathId(1), 0, &Unwrap::default());
        packet(&mut r, 0, 1);
        assert!(packet(&mut r, 2, 2), "perhaps a loss");
        packet(&mut r, 1, 3);
        assert!(!packet(&mut r, 4, 4), "probably disorder");
        assert!(packet(&mut r, 6, 1500), "long ago");
    }

    #[test]
    fn older_gaps_come_back_into_the_report_when_there_is_room() {
        let mut r = PathReception::new(PathId(1), 0, &Unwrap::default());
        (0..30).for_each(|i| {
            packet(&mut r, i * 2, i);
        });
        let floor = |r: &mut PathReception| r.report(Time::from_millis(31)).expect("news").floor;
        // 29 gaps, of which the newest 24 are told.
        assert_eq!(floor(&mut r), 2 * RANGES_MAX as u16);
        (20..29).for_each(|i| {
            packet(&mut r, i * 2 + 1, 30);
        });
        assert_eq!(floor(&mut r), 58, "the first gap of all again, and what came before it");
    }

    #[test]
    fn a_path_is_repeated_and_then_silent() {
        let mut r = PathReception::new(PathId(1), 0, &Unwrap::default());
        packet(&mut r, 0, 1);
        for _ in 0..REPEAT {
            assert!(r.report(Time::from_millis(2)).is_some());
        }
        assert!(r.report(Time::from_millis(3)).is_none());
    }

    #[test]
    fn ranges_are_bounded_and_the_floor_rises() {
        let mut r = PathReception::new(PathId(1), 0, &Unwrap::default());
        for i in 0..200 {
            packet(&mut r, i * 2, i);
        }
        let report = r.report(Time::from_millis(300)).expect("news");
        assert_eq!(report.missing.len(), RANGES_MAX);
        assert_eq!(u64::from(report.floor), 2 * RANGES_MAX as u64);
        packet(&mut r, 1_000_000, 400);
        let report = r.report(Time::from_millis(401)).expect("news");
        assert!(report.missing.is_empty(), "a jump beyond the range is not reported packet by packet");
        assert_eq!(report.floor, 0);
    }
}
