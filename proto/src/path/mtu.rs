//! Path MTU discovery by probes (DPLPMTUD, RFC 8899): nothing is believed of a path but what came through.
//!
//! A path starts at the base size, which every path carries. The largest size of interest is tried at once: on
//! most links that is the end of it, one round trip after the path joined. Otherwise the space between is halved
//! until the rest is not worth a probe. A path that has lost several full datagrams in a row while small ones
//! pass has shrunk, silently: it starts again at the base.

use std::time::Duration;

use crate::time::Time;

/// UDP payload that every path must carry: 1,280 bytes of IPv6 packet less its headers (RFC 8899, BASE_PLPMTU).
pub const DATAGRAM_BASE: usize = 1232;
/// A size is given up after this many lost probes (RFC 8899, MAX_PROBES, which is 3: a full queue must not be
/// taken for a narrow link).
const PROBES_MAX: u8 = 4;
/// The next probe is sent after this time, after a loss twice as late each time: losses come in bursts, and a
/// search must not look like traffic that somebody wants.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// The search ends when no more than this is to be gained, bytes.
const GRAIN: usize = 8;
/// A finished search begins again after this time, the next after twice as long, and so on up to the other: the
/// losses may have been chance, and routes change (RFC 8899, PMTU_RAISE_TIMER).
const RAISE_AFTER_MIN: Duration = Duration::from_secs(5);
const RAISE_AFTER_MAX: Duration = Duration::from_secs(600);
/// A probe not heard of for this long is taken for lost.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// Full datagrams lost in a row, while small ones arrive, for so long: that proves a black hole.
const BLACK_HOLE_LOSSES: u64 = 10;
const BLACK_HOLE_AFTER: Duration = Duration::from_millis(150);

/// The size of one path's datagrams, in bytes of UDP payload.
#[derive(Debug, Clone)]
pub struct PathMtu {
    base: usize,
    ceiling: usize,
    /// Largest size known to pass.
    current: usize,
    /// Smallest size that is believed not to pass, one above the ceiling at first.
    blocked: usize,
    /// Size that is tried, and how often it was lost.
    size: usize,
    losses: u8,
    /// Since when a probe is on its way.
    pending: Option<Time>,
    /// Not before this time.
    retry_at: Time,
    /// When the search may begin again; `None` while it goes on.
    again_at: Option<Time>,
    raise_after: Duration,
    /// The present row of losses.
    lost_since: Time,
    large_lost: u64,
    small_acked: u64,
}

impl PathMtu {
    /// A path of which nothing is known. `ceiling`: the largest datagram of interest, bytes.
    pub fn new(ceiling: usize) -> Self {
        let base = DATAGRAM_BASE.min(ceiling);
        let mut mtu = Self {
            base,
            ceiling,
            current: base,
            blocked: ceiling + 1,
            size: ceiling,
            losses: 0,
            pending: None,
            retry_at: Time::ZERO,
            again_at: None,
            raise_after: RAISE_AFTER_MIN,
            lost_since: Time::ZERO,
            large_lost: 0,
            small_acked: 0,
        };
        mtu.advance(Time::ZERO);
        mtu
    }

    /// Largest datagram that may be sent, bytes.
    pub fn current(&self) -> usize {
        self.current
    }

    /// Largest datagram that is wanted, bytes.
    pub fn ceiling(&self) -> usize {
        self.ceiling
    }

    /// Datagrams longer than this count as large in [`on_fate`](Self::on_fate), bytes.
    pub fn large(&self) -> usize {
        self.base
    }

    /// Whether the search has ended for now.
    pub fn is_settled(&self) -> bool {
        self.again_at.is_some()
    }

    /// The size to probe now, if any; it counts as sent.
    pub fn poll_probe(&mut self, now: Time) -> Option<usize> {
        if self.pending.is_some_and(|since| now - since >= PROBE_TIMEOUT) {
            self.on_probe(self.size, false, now);
        }
        if self.pending.is_some() || now < self.retry_at || self.again_at.is_some_and(|at| now < at) {
            return None;
        }
        if self.again_at.take().is_some() {
            self.blocked = self.ceiling + 1;
            self.advance(now);
            if self.again_at.is_some() {
                return None;
            }
        }
        self.pending = Some(now);
        Some(self.size)
    }

    /// Takes the fate of a probe of `size` bytes.
    pub fn on_probe(&mut self, size: usize, arrived: bool, now: Time) {
        if arrived && size <= self.ceiling {
            // Even one that was given up proves what it proves.
            self.current = self.current.max(size);
            self.blocked = self.blocked.max(size + 1);
        }
        if size != self.size || self.pending.take().is_none() {
            return;
        }
        if !arrived {
            self.losses += 1;
            if self.losses < PROBES_MAX {
                self.retry_at = now + PROBE_EVERY * (1 << (self.losses - 1));
                return;
            }
            self.blocked = size;
        }
        self.retry_at = now + PROBE_EVERY;
        self.advance(now);
    }

    /// Chooses the next size, or ends the search.
    fn advance(&mut self, now: Time) {
        self.losses = 0;
        self.pending = None;
        if self.current >= self.ceiling || self.blocked - self.current <= GRAIN {
            self.again_at = Some(now + self.raise_after);
            self.raise_after = (2 * self.raise_after).min(RAISE_AFTER_MAX);
            return;
        }
        self.again_at = None;
        let is_untried = self.blocked > self.ceiling;
        self.size = if is_untried { self.ceiling } else { self.current + (self.blocked - self.current) / 2 };
    }

    /// Takes what a report said of datagrams that were no probes: how many longer than
    /// [`large`](Self::large) arrived and were lost, and how many others arrived. True when the path has shrunk.
    pub fn on_fate(&mut self, large_acked: u64, large_lost: u64, small_acked: u64, now: Time) -> bool {
        if large_acked > 0 || self.current == self.base {
            (self.large_lost, self.small_acked) = (0, 0);
            return false;
        }
        if self.large_lost == 0 {
            self.lost_since = now;
        }
        self.large_lost += large_lost;
        if self.large_lost > 0 {
            self.small_acked += small_acked;
        }
        let is_long = now - self.lost_since >= BLACK_HOLE_AFTER;
        if self.large_lost < BLACK_HOLE_LOSSES || self.small_acked < 3 || !is_long {
            return false;
        }
        let ceiling = self.ceiling;
        *self = Self::new(ceiling);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RTT: Duration = Duration::from_millis(40);

    /// Probes until the search ends; gives the probes that it took.
    fn search(mtu: &mut PathMtu, now: &mut Time, passes: impl Fn(usize, u32) -> bool) -> u32 {
        let mut probes = 0;
        // Once more where it had ended before.
        let first = mtu.poll_probe(*now);
        let mut next = first;
        while first.is_some() && !mtu.is_settled() {
            *now += RTT;
            if let Some(size) = next {
                mtu.on_probe(size, passes(size, probes), *now);
                probes += 1;
            }
            assert!(probes < 100 && *now < Time::from_millis(10_000_000), "it never ends");
            next = if mtu.is_settled() { None } else { mtu.poll_probe(*now) };
        }
        probes
    }

    #[test]
    fn a_full_path_costs_one_probe() {
        let (mut mtu, mut now) = (PathMtu::new(1472), Time::ZERO);
        assert_eq!(mtu.current(), DATAGRAM_BASE);
        assert_eq!(search(&mut mtu, &mut now, |_, _| true), 1);
        assert_eq!(mtu.current(), 1472);
    }

    #[test]
    fn common_links_are_found_to_the_grain() {
        for link in [1492, 1480, 1472, 1454, 1440, 1420, 1400, 1358, 1300, 1280] {
            let (mut mtu, mut now) = (PathMtu::new(1472), Time::ZERO);
            let payload = link - 28;
            let probes = search(&mut mtu, &mut now, |size, _| size <= payload);
            assert!(mtu.current() <= payload && payload - mtu.current() < GRAIN, "{link}: {mtu:?}");
            assert!(probes <= 28, "{link}: {probes}");
        }
    }

    #[test]
    fn nothing_is_probed_where_nothing_is_to_be_gained() {
        for ceiling in [600, DATAGRAM_BASE, DATAGRAM_BASE + GRAIN - 1] {
            let mut mtu = PathMtu::new(ceiling);
            assert_eq!(mtu.poll_probe(Time::ZERO), None);
            assert_eq!(mtu.current(), ceiling.min(DATAGRAM_BASE));
        }
    }

    #[test]
    fn it_is_searched_again_soon_and_then_ever_later() {
        let (mut mtu, mut now) = (PathMtu::new(1472), Time::ZERO);
        search(&mut mtu, &mut now, |size, _| size <= 1392);
        let before = mtu.current();
        for wait in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            assert_eq!(mtu.poll_probe(now + Duration::from_millis(1000 * wait - 1)), None, "{wait} s");
            now += Duration::from_secs(wait);
            search(&mut mtu, &mut now, |size, _| size <= 1392);
            assert_eq!(mtu.current(), before);
        }
        now += Duration::from_secs(601);
        assert_eq!(search(&mut mtu, &mut now, |_, _| true), 1);
        assert!(before < 1400 && mtu.current() == 1472);
    }

    #[test]
    fn a_lost_report_of_a_probe_does_not_end_the_search() {
        let mut mtu = PathMtu::new(1472);
        assert_eq!(mtu.poll_probe(Time::from_millis(1)), Some(1472));
        assert_eq!(mtu.poll_probe(Time::from_millis(2_000)), None);
        assert_eq!(mtu.poll_probe(Time::from_millis(4_000)), None, "not at once");
        assert_eq!(mtu.poll_probe(Time::from_millis(4_300)), Some(1472));
    }

    #[test]
    fn a_black_hole_is_noticed_and_chance_loss_is_none() {
        let (mut mtu, mut now) = (PathMtu::new(1472), Time::ZERO);
        search(&mut mtu, &mut now, |_, _| true);
        for _ in 0..1000 {
            assert!(!mtu.on_fate(1, 9, 5, now), "some large ones arrive");
        }
        for _ in 0..1000 {
            assert!(!mtu.on_fate(0, 1, 0, now), "nothing arrives: that is silence");
        }
        assert!(!mtu.on_fate(0, 1, 3, now), "a burst");
        assert!(mtu.on_fate(0, 1, 0, now + BLACK_HOLE_AFTER));
        assert_eq!(mtu.current(), DATAGRAM_BASE);
        assert!(search(&mut mtu, &mut now, |size, _| size <= 1372) > 1);
        assert!(mtu.current() > 1364);
    }

    proptest! {
        #[test]
        fn it_ends_below_what_passes_whatever_gets_lost(
            ceiling in 500usize..9000, payload in 500usize..9000, loss in prop::collection::vec(prop::bool::weighted(0.2), 100),
        ) {
            let (mut mtu, mut now) = (PathMtu::new(ceiling), Time::ZERO);
            search(&mut mtu, &mut now, |size, n| size <= payload && !loss[n as usize]);
            prop_assert!(mtu.current() <= payload.max(DATAGRAM_BASE).min(ceiling));
        }
    }
}
