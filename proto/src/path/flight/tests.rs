use std::time::Duration;

use super::*;
use crate::wire::{MissingRange, PathId};

fn flight(first: u64, n: u64) -> Flight<u64> {
    let mut f = Flight::new(first);
    for i in 0..n {
        f.push(Time::from_millis(i), 1000, i, false);
    }
    f
}

fn report(highest: u64, floor: u16, missing: &[(u64, u16)]) -> PathReport {
    PathReport {
        path: PathId(1),
        highest: highest as u32,
        highest_age: 0,
        received_bytes: 0,
        ce: 0,
        owd_min: crate::time::Stamp::new(0),
        owd_mean_excess: 0,
        owd_highest_excess: 0,
        floor,
        missing: missing
            .iter()
            .map(|&(start, len)| MissingRange { below_highest: (highest - start) as u16, len })
            .collect(),
    }
}

#[test]
fn resolves_arrivals_and_losses_across_the_32_bit_boundary() {
    let first = u64::from(u32::MAX) - 2;
    let mut f = flight(first, 10);
    let mut out = Resolution::default();
    assert!(f.resolve(&report(first + 6, 6, &[(first + 2, 2)]), Time::from_millis(100), &mut out));
    assert_eq!(out.lost, vec![2, 3]);
    assert_eq!(out.acked, vec![0, 1, 4, 5, 6]);
    assert_eq!(out.highest.expect("new").seq, first + 6);
    assert_eq!(f.bytes(), 3000);
}

#[test]
fn what_lies_below_the_floor_is_lost() {
    let mut f = flight(0, 10);
    let mut out = Resolution::default();
    f.resolve(&report(9, 4, &[]), Time::from_millis(100), &mut out);
    assert_eq!(out.lost, vec![0, 1, 2, 3, 4]);
    assert_eq!(f.bytes(), 0);
}

/// Without evidence of reordering a gap is a loss at once. A packet that came late after all widens the window by its
/// lateness; then a gap is a loss when what overtook it was sent later by more than that, or has been here for so long.
#[test]
fn a_late_arrival_widens_the_reordering_window() {
    let mut f = flight(0, 60);
    let mut out = Resolution::default();
    f.resolve(&report(4, 4, &[(2, 1)]), Time::from_millis(24), &mut out);
    assert_eq!(out.lost, vec![2]);
    assert_eq!(f.reorder_window(), Duration::ZERO);
    out.clear();
    f.resolve(&report(6, 6, &[(5, 1)]), Time::from_millis(32), &mut out);
    assert_eq!(out.spurious, 1);
    assert_eq!(f.reorder_window(), Duration::from_millis(8));
    assert!(out.lost.is_empty(), "a millisecond of disorder is tolerated now");
    out.clear();
    f.resolve(&report(12, 12, &[(11, 1), (5, 1)]), Time::from_millis(33), &mut out);
    assert!(out.lost.is_empty(), "7 of 8 ms");
    f.resolve(&report(13, 13, &[(11, 1), (5, 1)]), Time::from_millis(34), &mut out);
    assert_eq!(out.lost, vec![5]);
    out.clear();
    // Nothing newer arrives, but time passes.
    f.resolve(&report(13, 13, &[(11, 1), (5, 1)]), Time::from_millis(39), &mut out);
    assert!(out.lost.is_empty());
    f.resolve(&report(13, 13, &[(11, 1), (5, 1)]), Time::from_millis(40), &mut out);
    assert_eq!(out.lost, vec![11]);
}

#[test]
fn the_reordering_window_is_bounded_and_forgotten() {
    let mut f = flight(0, 60);
    let mut out = Resolution::default();
    f.resolve(&report(4, 4, &[(2, 1)]), Time::from_millis(24), &mut out);
    f.resolve(&report(6, 6, &[]), Time::from_millis(424), &mut out);
    assert_eq!(f.reorder_window(), Duration::from_millis(20), "the least feedback time");
    for second in 0..60 {
        f.resolve(&report(6, 6, &[]), Time::from_millis(1000 * second + 500), &mut out);
    }
    assert_eq!(f.reorder_window(), Duration::ZERO);
}

#[test]
fn reports_of_what_was_never_sent_change_nothing() {
    let mut f = flight(100, 5);
    let mut out = Resolution::default();
    assert!(!f.resolve(&report(105, 5, &[]), Time::from_millis(100), &mut out));
    assert_eq!(f.bytes(), 5000);
    assert!(f.resolve(&report(50, 5, &[]), Time::from_millis(100), &mut out), "an old report is harmless");
    assert_eq!(f.bytes(), 5000);
}

#[test]
fn an_abandoned_flight_is_empty_and_still_notices_progress() {
    let mut f = flight(0, 10);
    let mut out = Resolution::default();
    f.abandon(&mut out);
    assert_eq!(out.lost.len(), 10);
    assert_eq!(f.bytes(), 0);
    assert_eq!(f.oldest_unseen(), None);
    f.push(Time::from_millis(50), 60, 10, true);
    out.clear();
    f.resolve(&report(10, 0, &[]), Time::from_millis(100), &mut out);
    assert_eq!(out.acked, vec![10]);
    assert_eq!(out.highest.expect("new").gaps, 1);
}

#[test]
fn old_reports_and_duplicates_are_idempotent() {
    let mut f = flight(0, 20);
    let mut out = Resolution::default();
    let r = report(9, 9, &[(3, 1)]);
    f.resolve(&r, Time::from_millis(100), &mut out);
    let bytes = f.bytes();
    out.clear();
    f.resolve(&r, Time::from_millis(100), &mut out);
    assert!(out.acked.is_empty() && out.lost.is_empty());
    assert_eq!(f.bytes(), bytes);
}

#[test]
fn only_the_newest_datagram_grows_and_only_while_it_is_in_flight() {
    let mut f = flight(0, 3);
    assert!(!f.extend_newest(1, 100, |content| *content = 9));
    assert!(f.extend_newest(2, 100, |content| *content += 10));
    assert_eq!((f.bytes(), f.cumulative()), (3100, 3100));
    let mut out = Resolution::default();
    assert!(f.resolve(&report(2, 2, &[]), Time::from_millis(50), &mut out));
    assert_eq!((out.acked, out.acked_bytes), (vec![0, 1, 12], 3100));
    assert_eq!(out.highest.expect("new").cumulative, 3100);
    assert_eq!(f.bytes(), 0);
    assert!(!f.extend_newest(2, 100, |content| *content = 9), "it has arrived");
    let seq = f.push(Time::from_millis(60), 500, 7, false);
    f.abandon(&mut Resolution::default());
    assert!(!f.extend_newest(seq, 100, |content| *content = 9), "it was given up");
    assert_eq!((f.bytes(), f.cumulative()), (0, 3600));
}
