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
    assert!(f.resolve(&report(first + 6, 6, &[(first + 2, 2)]), &mut out));
    assert_eq!(out.lost, vec![2, 3]);
    assert_eq!(out.acked, vec![0, 1, 4, 5, 6]);
    assert_eq!(out.highest.expect("new").seq, first + 6);
    assert_eq!(f.bytes(), 3000);
}

#[test]
fn what_lies_below_the_floor_is_lost() {
    let mut f = flight(0, 10);
    let mut out = Resolution::default();
    f.resolve(&report(9, 4, &[]), &mut out);
    assert_eq!(out.lost, vec![0, 1, 2, 3, 4]);
    assert_eq!(f.bytes(), 0);
}

#[test]
fn a_late_arrival_raises_the_reordering_threshold() {
    let mut f = flight(0, 10);
    let mut out = Resolution::default();
    f.resolve(&report(4, 4, &[(2, 1)]), &mut out);
    assert_eq!(out.lost, vec![2]);
    out.clear();
    f.resolve(&report(6, 6, &[(5, 1)]), &mut out);
    assert_eq!(out.spurious, 1);
    assert_eq!(f.threshold(), 1);
    assert!(out.lost.is_empty(), "one packet of disorder is tolerated now");
    out.clear();
    f.resolve(&report(7, 7, &[(5, 1)]), &mut out);
    assert_eq!(out.lost, vec![5]);
}

#[test]
fn reports_of_what_was_never_sent_change_nothing() {
    let mut f = flight(100, 5);
    let mut out = Resolution::default();
    assert!(!f.resolve(&report(105, 5, &[]), &mut out));
    assert_eq!(f.bytes(), 5000);
    assert!(f.resolve(&report(50, 5, &[]), &mut out), "an old report is harmless");
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
    f.resolve(&report(10, 0, &[]), &mut out);
    assert_eq!(out.acked, vec![10]);
    assert_eq!(out.highest.expect("new").gaps, 1);
}

#[test]
fn old_reports_and_duplicates_are_idempotent() {
    let mut f = flight(0, 20);
    let mut out = Resolution::default();
    let r = report(9, 9, &[(3, 1)]);
    f.resolve(&r, &mut out);
    let bytes = f.bytes();
    out.clear();
    f.resolve(&r, &mut out);
    assert!(out.acked.is_empty() && out.lost.is_empty());
    assert_eq!(f.bytes(), bytes);
}
