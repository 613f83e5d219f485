//! Goal: a lender is first on its own uplink and its borrowers have the rest; leases are granted by the
//! rules, and both sides agree on them however many messages are lost.
//! Method: a fluid uplink shared by an owner and its borrowers; random traffic; a lender and a borrower
//! joined by a channel that loses messages.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::control::{
    Gateway, LeaseAccept, LeaseEnd, LeaseRefuse, LeaseRefuseReason, LeaseRequest, Message, RateGrant,
    RateGrants,
};
use crate::mesh::NodeId;
use crate::time::Time;

const LENDER: NodeId = NodeId::from_bytes([1; 32]);
const PEER: NodeId = NodeId::from_bytes([2; 32]);
const EXIT: NodeId = NodeId::from_bytes([3; 32]);

/// An uplink of `capacity` bit/s that its owner and its borrowers share in proportion to what they offer.
struct Shared {
    grants: Grants,
    capacity: f64,
    granted: u64,
    leases: usize,
    now: Time,
    own: f64,
    relayed: f64,
    /// Whether the borrowers use all they may, or only what they want, bit/s in all.
    greedy: bool,
    wanted: f64,
}

impl Shared {
    fn new(capacity: f64, leases: usize) -> Self {
        let (grants, now) = (Grants::default(), Time::from_millis(1_000));
        let granted = UNLIMITED;
        Self { grants, capacity, granted, leases, now, own: 0.0, relayed: 0.0, greedy: true, wanted: 0.0 }
    }

    /// One window in which the owner offers `own` bit/s.
    fn window(&mut self, own: f64) {
        let limit = if self.granted == UNLIMITED { self.capacity } else { self.granted as f64 };
        let wanted = if self.greedy { self.capacity } else { self.wanted };
        let borrowed = (limit * self.leases as f64).min(wanted);
        let fit = (self.capacity / (own + borrowed)).min(1.0);
        (self.own, self.relayed) = (own * fit, borrowed * fit);
        self.now += GRANT_EVERY;
        let bytes = |rate: f64| (rate * GRANT_EVERY.as_secs_f64() / 8.0) as u64;
        self.granted = self.grants.handle_window(bytes(self.own), bytes(self.relayed), self.leases, self.now);
    }

    fn run(&mut self, windows: usize, own: f64) {
        for _ in 0..windows {
            self.window(own);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..Default::default() })]

    #[test]
    fn an_owner_gets_what_it_wants_within_two_seconds_and_keeps_it(
        capacity in 2e6..500e6_f64, share in 0.05..1.5_f64, leases in 1..4_usize,
    ) {
        let mut uplink = Shared::new(capacity, leases);
        uplink.run(25, 0.0);
        prop_assert_eq!(uplink.granted, UNLIMITED);
        let wanted = share * capacity;
        uplink.run(10, wanted);
        // A search for what else there is may squeeze it now and then, for a moment, and never by much.
        let mut squeezed = 0;
        for _ in 0..150 {
            uplink.window(wanted);
            let trickles = (leases as u64 * TRICKLE) as f64;
            let due = wanted.min(capacity - trickles);
            squeezed += u32::from(uplink.own < 0.85 * due);
            prop_assert!(uplink.own >= 0.6 * due, "{} of {due}: granted {}", uplink.own, uplink.granted);
        }
        prop_assert!(squeezed <= 6, "{squeezed} windows of 150");
        // What the owner leaves is not wasted for ever.
        let left = capacity - 2.0 * wanted;
        prop_assert!(uplink.relayed >= 0.5 * left, "{} of {left} left", uplink.relayed);
        uplink.run(15, 0.0);
        prop_assert_eq!(uplink.granted, UNLIMITED, "3 s after the owner's traffic has ended");
    }

    /// Two TCP flows that begin together on an uplink of which nothing is known.
    #[test]
    fn an_owner_who_grows_beside_its_borrowers_is_first_as_well(capacity in 2e6..200e6_f64, leases in 1..4_usize) {
        let mut uplink = Shared::new(capacity, leases);
        uplink.greedy = false;
        let mut own = 0.2e6;
        uplink.wanted = 0.2e6;
        uplink.run(5, 0.0);
        let mut late = Vec::new();
        for i in 0..100 {
            uplink.window(own);
            let grown = |wanted: f64, had: f64| if had > 0.98 * wanted { wanted * 1.3 } else { had * 1.1 };
            own = grown(own, uplink.own).min(capacity);
            uplink.wanted = grown(uplink.wanted.min(uplink.granted as f64 * leases as f64), uplink.relayed);
            if i >= 40 {
                late.push(uplink.own);
            }
        }
        let mean = late.iter().sum::<f64>() / late.len() as f64;
        let trickles = (leases as u64 * TRICKLE) as f64;
        prop_assert!(mean > 0.85 * (capacity - trickles), "{mean} of {capacity}");
    }

    /// The owner's trickle says nothing about what the uplink carries.
    #[test]
    fn a_small_demand_on_an_uplink_that_was_never_full_holds_nobody_back(
        capacity in 2e6..500e6_f64, own in 0.1e6..0.5e6_f64, idle in 0..100_usize, leases in 1..4_usize,
    ) {
        let mut uplink = Shared::new(capacity, leases);
        uplink.greedy = false;
        uplink.run(idle, own);
        uplink.greedy = true;
        uplink.run(10, own);
        for _ in 0..20 {
            uplink.window(own);
            prop_assert!(uplink.relayed >= 0.5 * (capacity - 2.0 * own), "{} of {capacity}", uplink.relayed);
        }
    }

    /// What fits beside the owner's traffic is not cut, however the owner's comes and goes.
    #[test]
    fn borrowers_who_want_little_have_it(
        capacity in 20e6..500e6_f64, own in 0.02..0.4_f64, wanted in 0.02..0.4_f64,
    ) {
        let mut uplink = Shared::new(capacity, 1);
        uplink.greedy = false;
        uplink.wanted = wanted * capacity;
        uplink.run(25, 0.0);
        uplink.run(15, own * capacity);
        let mut short = 0;
        for _ in 0..150 {
            uplink.window(own * capacity);
            short += u32::from(uplink.relayed < 0.95 * uplink.wanted);
            prop_assert!(uplink.relayed >= 0.55 * uplink.wanted, "{} of {}", uplink.relayed, uplink.wanted);
        }
        prop_assert!(short <= 12, "{short} windows of 150");
    }

    #[test]
    fn grants_of_a_held_uplink_never_exceed_the_estimate_nor_any_fall_below_the_trickle(
        windows in prop::collection::vec((0..40_000_000_u64, 0..40_000_000_u64, 0..700_u64), 1..200),
        leases in 0..9_usize,
    ) {
        let (mut grants, mut now) = (Grants::default(), Time::ZERO);
        for (own, relayed, millis) in windows {
            now += Duration::from_millis(millis);
            let granted = grants.handle_window(own, relayed, leases, now);
            prop_assert!(granted >= TRICKLE);
            let least = leases as u64 * TRICKLE;
            if granted != UNLIMITED && grants.is_held(now) {
                prop_assert!(granted * leases as u64 <= grants.estimate().max(least), "{granted}");
            }
        }
    }

    /// Whatever is lost: when the loss ends, both sides soon have the same leases.
    #[test]
    fn both_sides_agree_in_the_end(seed in any::<u64>(), loss in prop::collection::vec(any::<bool>(), 400)) {
        let mut pair = Pair::new(seed);
        let wants: BTreeSet<Want> = (0..3).map(want).collect();
        pair.borrower.set_wants(&wants, pair.now);
        for lost in loss {
            pair.step(lost);
        }
        // The longest wait is 30 s; a lease that only the lender knows ends after 10 s.
        for _ in 0..450 {
            pair.step(false);
        }
        let leased: BTreeSet<Want> = pair.borrower.leased().map(|(want, _)| want).collect();
        prop_assert_eq!(leased, wants);
        prop_assert_eq!(pair.lender.leases().count(), 3, "nothing is left of the attempts");
        pair.borrower.set_wants(&BTreeSet::new(), pair.now);
        pair.step(false);
        prop_assert_eq!(pair.lender.leases().count(), 0, "given back");
    }
}

fn want(uplink: u8) -> Want {
    let address = "198.51.100.2:9000".parse().expect("address");
    Want { lender: LENDER, uplink, exit: EXIT, address }
}

fn facts(gateway: Option<Gateway>) -> Facts<'static> {
    let uplink = Some(UplinkFacts { lend: true, up: true, gateway });
    Facts { uplink, exit_is_known: true, borrowers_gateways: &[] }
}

/// A borrower and a lender, 100 ms per step.
struct Pair {
    borrower: Borrower,
    lender: Lender,
    now: Time,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let now = Time::from_millis(1_000);
        Self { borrower: Borrower::new(seed), lender: Lender::new(LenderConfig::default()), now }
    }

    /// One step in which all messages are lost or none.
    fn step(&mut self, lost: bool) {
        self.now += Duration::from_millis(100);
        self.borrower.handle_timeout(self.now);
        let mut answers = Vec::new();
        while let Some((to, message)) = self.borrower.poll_message() {
            assert_eq!(to, LENDER);
            if lost {
                continue;
            }
            match message {
                Message::LeaseRequest(request) => {
                    let key = (PEER, request.lease);
                    match self.lender.handle_request(PEER, &request, &facts(None), self.now) {
                        Decision::Refuse(refuse) => answers.push(Message::LeaseRefuse(refuse)),
                        Decision::Open | Decision::Renewed => {
                            let port = 40_000 + u16::from(request.uplink);
                            answers.push(Message::LeaseAccept(self.lender.accept(key, port, self.now)));
                        }
                    }
                }
                Message::LeaseEnd(end) => self.lender.end((PEER, end.lease)),
                other => panic!("a borrower does not send {other:?}"),
            }
        }
        for (_, lease) in self.lender.take_expired(self.now) {
            answers.push(Message::LeaseEnd(LeaseEnd { lease, text: String::new() }));
        }
        let grants =
            self.lender.leases().map(|((_, lease), _)| RateGrant { lease, up: 1, down: 2, bytes: 0 });
        answers.push(Message::RateGrants(RateGrants { grants: grants.collect() }));
        for answer in answers.into_iter().filter(|_| !lost) {
            match answer {
                Message::LeaseAccept(accept) => self.borrower.handle_accept(LENDER, &accept, self.now),
                Message::LeaseRefuse(refuse) => self.borrower.handle_refuse(LENDER, &refuse, self.now),
                Message::LeaseEnd(end) => self.borrower.handle_end(LENDER, &end, self.now),
                Message::RateGrants(grants) => self.borrower.handle_grants(LENDER, &grants, self.now),
                other => panic!("a lender does not send {other:?}"),
            }
        }
        while self.borrower.poll_event().is_some() {}
    }
}

fn request(lease: u64) -> LeaseRequest {
    let Want { uplink, exit, address, .. } = want(0);
    LeaseRequest { lease, uplink, exit: *exit.as_bytes(), address }
}

#[test]
fn requests_are_judged_by_the_rules() {
    use LeaseRefuseReason::{Full, NoConsent, NoUplink, SameUplink, UnknownExit, UsedUp};
    let now = Time::from_millis(5_000);
    let config = LenderConfig { leases_max: 3, leases_per_peer_max: 2, budget: Some(1_000) };
    let mut lender = Lender::new(config);
    let gateway = Gateway { address: [192, 168, 1, 1].into(), mac: [2, 0, 0, 0, 0, 1] };
    let ask = |lender: &mut Lender, peer, lease, facts: &Facts<'_>| match lender.handle_request(
        peer,
        &request(lease),
        facts,
        now,
    ) {
        Decision::Refuse(refuse) => Err(refuse.reason),
        granted => Ok(granted),
    };
    let good = facts(Some(gateway));
    let with = |change: fn(&mut UplinkFacts)| {
        let mut facts = facts(Some(gateway));
        facts.uplink.as_mut().map(change);
        facts
    };
    assert_eq!(ask(&mut lender, PEER, 1, &Facts { uplink: None, ..good.clone() }), Err(NoUplink));
    assert_eq!(ask(&mut lender, PEER, 1, &with(|uplink| uplink.lend = false)), Err(NoConsent));
    assert_eq!(ask(&mut lender, PEER, 1, &with(|uplink| uplink.up = false)), Err(NoUplink));
    assert_eq!(ask(&mut lender, PEER, 1, &Facts { exit_is_known: false, ..good.clone() }), Err(UnknownExit));
    let same = Facts { borrowers_gateways: &[gateway], ..good.clone() };
    assert_eq!(ask(&mut lender, PEER, 1, &same), Err(SameUplink));

    assert_eq!(ask(&mut lender, PEER, 1, &good), Ok(Decision::Open));
    assert_eq!(ask(&mut lender, PEER, 1, &good), Ok(Decision::Renewed), "the same again");
    assert_eq!(ask(&mut lender, PEER, 2, &good), Ok(Decision::Open));
    assert_eq!(ask(&mut lender, PEER, 3, &good), Err(Full), "two per peer");
    assert_eq!(ask(&mut lender, EXIT, 1, &good), Ok(Decision::Open), "numbers are each peer's own");
    assert_eq!(ask(&mut lender, LENDER, 1, &good), Err(Full), "three in all");

    assert!(!lender.note_carried(PEER, 999, now));
    assert_eq!(lender.accept((PEER, 1), 7, now).bytes_left, 1);
    assert!(lender.note_carried(PEER, 1, now));
    assert_eq!(ask(&mut lender, PEER, 1, &good), Err(UsedUp), "a renewal as well");
    assert_eq!(lender.bytes_left(EXIT, now), 1_000, "a budget per peer");
    assert_eq!(lender.bytes_left(PEER, now + Duration::from_secs(24 * 3600)), 1_000, "a day later");
}

#[test]
fn a_lease_under_another_name_is_not_renewed() {
    let now = Time::from_millis(5_000);
    let mut lender = Lender::new(LenderConfig::default());
    assert_eq!(lender.handle_request(PEER, &request(1), &facts(None), now), Decision::Open);
    let other = LeaseRequest { uplink: 9, ..request(1) };
    assert!(matches!(lender.handle_request(PEER, &other, &facts(None), now), Decision::Refuse(_)));
}

#[test]
fn a_lender_that_falls_silent_loses_its_borrower_after_three_seconds() {
    let mut pair = Pair::new(7);
    pair.borrower.set_wants(&BTreeSet::from([want(0)]), pair.now);
    pair.step(false);
    assert_eq!(pair.borrower.leased().count(), 1);
    for _ in 0..28 {
        pair.step(true);
    }
    assert_eq!(pair.borrower.leased().count(), 1, "2.8 s of silence");
    for _ in 0..3 {
        pair.step(true);
    }
    assert_eq!(pair.borrower.leased().count(), 0);
    pair.step(false);
    for _ in 0..100 {
        pair.step(false);
    }
    assert_eq!(pair.borrower.leased().count(), 1, "asked for again");
    assert_eq!(pair.lender.leases().count(), 1);
}

#[test]
fn what_was_asked_for_is_pending_until_it_is_refused() {
    let mut borrower = Borrower::new(7);
    let now = Time::from_millis(1_000);
    borrower.set_wants(&BTreeSet::from([want(0), want(1)]), now);
    assert_eq!(borrower.pending().count(), 2);
    let asked: Vec<_> = std::iter::from_fn(|| borrower.poll_message()).collect();
    let [(_, Message::LeaseRequest(first)), (_, Message::LeaseRequest(second))] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    let text = String::new();
    let refuse = LeaseRefuse { lease: first.lease, reason: LeaseRefuseReason::NoUplink, text };
    borrower.handle_refuse(LENDER, &refuse, now);
    let accept = LeaseAccept { lease: second.lease, port: 9, ttl_ms: 10_000, bytes_left: 0 };
    borrower.handle_accept(LENDER, &accept, now);
    assert_eq!(borrower.pending().collect::<Vec<_>>(), [want(1)]);
    assert_eq!(borrower.leased().count(), 1);
}
