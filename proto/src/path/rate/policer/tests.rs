//! A limit without a queue drives the judge: it must be found, told from chance, and probed.

use super::*;

const STEP: f64 = 0.005;
const FEEDBACK: f64 = 0.040;
const PACKET: f64 = 12_000.0;

/// A sender that would grow by 40 % per feedback time for ever, behind a policer and chance loss.
struct Path {
    limit: f64,
    chance: f64,
    queued: bool,
    rate: f64,
    t: f64,
    sent: f64,
    lost: f64,
    judge: Policer,
}

impl Path {
    fn new(limit: f64, chance: f64) -> Self {
        Self {
            limit,
            chance,
            queued: false,
            rate: 4e6,
            t: 0.0,
            sent: 0.0,
            lost: 0.0,
            judge: Policer::new(0.0),
        }
    }

    /// Runs for a while; gives the mean of what arrived and the share that was lost.
    fn run(&mut self, seconds: f64) -> (f64, f64) {
        let (mut sum, mut arrived) = (0.0, 0.0);
        for _ in 0..(seconds / STEP) as usize {
            self.t += STEP;
            let passes = self.rate.min(self.limit) * (1.0 - self.chance);
            sum += self.rate * STEP;
            arrived += passes * STEP;
            // Whole packets of what has been sent and lost by now.
            self.sent += passes * STEP / PACKET;
            self.lost += (self.rate - passes) * STEP / PACKET;
            let (acked, lost) = (self.sent.floor(), self.lost.floor());
            self.sent -= acked;
            self.lost -= lost;
            self.judge.on_fate(acked as u64, (acked * PACKET / 8.0) as u64, lost as u64, lost as u64);
            let sample = (self.rate, false, self.queued);
            match self.judge.on_sample(sample, self.rate, FEEDBACK, self.t) {
                Advice::None => self.rate *= 1.0 + 0.4 * STEP / FEEDBACK,
                Advice::Cut(rate) => self.rate = rate,
                Advice::Restore(rate) => self.rate = self.rate.max(rate),
            }
            // As the controller: no link is faster.
            self.rate = self.rate.min(self.judge.ceiling().unwrap_or(f64::INFINITY)).min(100e6);
        }
        (arrived / seconds, 1.0 - arrived / sum)
    }
}

#[test]
fn a_policer_is_found_and_kept_under() {
    for chance in [0.0, 0.01] {
        let mut path = Path::new(10e6, chance);
        path.run(3.0);
        let (arrived, lost) = path.run(30.0);
        assert!(arrived > 0.93 * 10e6 * (1.0 - chance), "{chance}: {arrived}");
        assert!(lost < chance + 0.02, "{chance}: {lost}");
    }
}

#[test]
fn chance_loss_is_no_limit() {
    for chance in [0.005, 0.02, 0.05, 0.10] {
        let mut path = Path::new(f64::INFINITY, chance);
        path.run(3.0);
        let (arrived, _) = path.run(10.0);
        assert!(arrived > 0.97 * 100e6 * (1.0 - chance), "{chance}: {arrived}");
        assert_eq!(path.judge.ceiling(), None);
    }
}

#[test]
fn a_limit_that_goes_away_is_noticed() {
    let mut path = Path::new(10e6, 0.0);
    path.run(5.0);
    path.limit = f64::INFINITY;
    path.run(20.0);
    assert!(path.rate > 90e6, "{}", path.rate);
}

#[test]
fn probes_become_rarer() {
    let mut path = Path::new(10e6, 0.0);
    let (_, early) = path.run(20.0);
    path.run(100.0);
    let (_, late) = path.run(60.0);
    assert!(late < early / 2.0, "{late} after {early}");
}

#[test]
fn loss_on_a_full_queue_is_left_to_the_queue() {
    let mut path = Path::new(10e6, 0.0);
    path.queued = true;
    path.run(3.0);
    assert_eq!(path.judge.ceiling(), None);
}

#[test]
fn losses_with_another_cause_are_forgotten_with_what_they_cost() {
    let mut path = Path::new(20e6, 0.0);
    path.run(3.0);
    assert!(path.judge.ceiling().is_some_and(|ceiling| ceiling < 25e6));
    let before = path.judge.pardon(path.t);
    assert!(before.is_some_and(|rate| rate > 20e6), "{before:?}");
    assert_eq!((path.judge.ceiling(), path.judge.pardon(path.t)), (None, None));
}

/// A radio loses eight packets at once, one burst in 160: that is no limit, though it is much in a window.
#[test]
fn bursts_are_no_limit() {
    let mut judge = Policer::new(0.0);
    let mut t = 0.0;
    for report in 0..20_000_u64 {
        t += STEP;
        let (lost, runs) = if report % 16 == 0 { (8, 1) } else { (0, 0) };
        judge.on_fate(10 - lost, (10 - lost) * 1500, lost, runs);
        assert_eq!(judge.on_sample((24e6, false, false), 24e6, FEEDBACK, t), Advice::None, "after {t} s");
    }
    assert_eq!(judge.ceiling(), None);
}
