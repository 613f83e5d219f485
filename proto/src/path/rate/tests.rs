//! A fluid bottleneck with a queue drives the controller: what it must hold, and three ways in
//! which such controllers have talked themselves down.

use std::time::Duration;

use super::*;
use crate::path::delay::DelaySample;

/// One bottleneck: capacity in bit/s, base one-way delay and queue in seconds.
struct Link {
    capacity: f64,
    base: f64,
    queue: f64,
    now: Time,
    control: RateControl,
    delay: DelayModel,
    jitter: f64,
    tick: u64,
    /// Share of the rate that the application offers.
    offered: f64,
    recent: VecDeque<f64>,
    reports: VecDeque<(f64, f64)>,
}

const STEP: Duration = Duration::from_millis(5);
const PACKET_BITS: f64 = 12_000.0;

impl Link {
    fn new(capacity: f64, rtt: f64) -> Self {
        let control = RateControl::new(None, Time::ZERO);
        let delay = DelayModel::new();
        Self {
            capacity,
            base: rtt / 2.0,
            queue: 0.0,
            now: Time::ZERO,
            control,
            delay,
            jitter: 0.0,
            tick: 0,
            offered: 1.0,
            recent: VecDeque::new(),
            reports: VecDeque::new(),
        }
    }

    /// 5 ms of traffic and its report. `seen`: factor on the delivery rate that the report shows.
    fn step(&mut self, seen: f64, app_limited: bool) {
        self.now += STEP;
        self.tick += 1;
        let secs = STEP.as_secs_f64();
        let sent = self.control.rate() * self.offered;
        let backlog = self.queue * self.capacity + sent * secs;
        let delivered = backlog.min(self.capacity * secs);
        self.queue = (backlog - delivered) / self.capacity;
        // A cheap deterministic noise in 0..jitter.
        let noise = self.jitter * ((self.tick * 7919) % 101) as f64 / 101.0;
        let owd = self.base + self.queue + noise;
        // What happens now is known a round trip later, the delivery rate as the mean of 25 ms.
        self.recent.push_back(delivered / secs);
        if self.recent.len() > 5 {
            self.recent.pop_front();
        }
        let mean = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
        self.reports.push_back((owd, mean));
        if (self.reports.len() as f64) * secs <= 2.0 * self.base {
            return;
        }
        let Some((owd, rate)) = self.reports.pop_front() else { return };
        let feedback = 2.0 * self.base + self.queue + 0.003;
        self.delay.on_sample(self.now, DelaySample { min: owd, mean: owd + self.jitter / 2.0, feedback });
        let sample = RateSample { rate: rate * seen, app_limited };
        self.control.on_sample(sample, &mut self.delay, PACKET_BITS, self.now);
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.step(1.0, false);
        }
    }
}

#[test]
fn holds_the_capacity_with_a_small_queue() {
    for (capacity, rtt) in [(2e6, 0.1), (20e6, 0.04), (300e6, 0.01), (50e6, 0.3)] {
        let mut link = Link::new(capacity, rtt);
        link.run(1000);
        let (mut sum, mut worst): (f64, f64) = (0.0, 0.0);
        for _ in 0..2000 {
            link.step(1.0, false);
            sum += link.control.rate().min(capacity);
            worst = worst.max(link.queue);
        }
        assert!(sum / 2000.0 > 0.95 * capacity, "{capacity} {rtt}: {}", sum / 2000.0);
        assert!(worst < 0.045 + 0.1 * rtt, "{capacity} {rtt}: queue {worst}");
    }
}

#[test]
fn follows_a_drop_of_the_capacity_within_200_ms() {
    let mut link = Link::new(40e6, 0.04);
    link.run(1000);
    link.capacity = 10e6;
    link.run(40);
    assert!(link.control.rate() < 12e6, "{}", link.control.rate());
}

#[test]
fn finds_a_grown_capacity() {
    let mut link = Link::new(10e6, 0.04);
    link.run(1000);
    link.capacity = 40e6;
    link.run(600);
    assert!(link.control.rate() > 36e6, "{}", link.control.rate());
}

/// A CPU that was starved shows a delivery rate below the sending rate without any queue.
#[test]
fn a_starved_cpu_does_not_lower_the_rate() {
    let mut link = Link::new(300e6, 0.01);
    link.run(1000);
    link.capacity = 900e6;
    link.run(12);
    let before = link.control.rate();
    for _ in 0..400 {
        link.step(0.7, false);
    }
    assert!(link.control.rate() >= 0.9 * before, "{} after {before}", link.control.rate());
}

/// Jitter of 4 ms is not a queue: startup must not end early and the rate must not fall.
#[test]
fn jitter_is_not_taken_for_a_queue() {
    let mut link = Link::new(20e6, 0.06);
    link.jitter = 0.004;
    link.run(1500);
    let mut sum = 0.0;
    for _ in 0..1000 {
        link.step(1.0, false);
        sum += link.control.rate().min(20e6);
    }
    assert!(sum / 1000.0 > 18.5e6, "{}", sum / 1000.0);
}

/// An application that pauses between bursts lowers what is delivered; the rate stays.
#[test]
fn idle_gaps_do_not_lower_the_rate() {
    let mut link = Link::new(50e6, 0.02);
    link.run(1000);
    let before = link.control.rate();
    link.offered = 0.1;
    for _ in 0..1000 {
        link.step(1.0, true);
    }
    assert!(link.control.rate() >= 0.9 * before, "{} after {before}", link.control.rate());
}

/// Where reports are further apart than the path is long, more than what is delivered must fit between them.
#[test]
fn a_startup_is_not_held_up_by_rare_reports() {
    for apart in [0.005, 0.025] {
        let mut control = RateControl::new(None, Time::ZERO);
        let mut delay = DelayModel::new();
        let mut now = Time::ZERO;
        let mut c = 4e6;
        for _ in 0..40 {
            now += Duration::from_secs_f64(apart);
            delay.on_sample(now, DelaySample { min: 1e-4, mean: 1e-4, feedback: 2e-4 });
            control.on_sample(RateSample { rate: c, app_limited: false }, &mut delay, PACKET_BITS, now);
            c = control.rate().min(8.0 * control.in_flight_max(&delay, PACKET_BITS, now) / apart);
        }
        assert!(c > 1e9, "{c} with a report every {apart} s");
    }
}

/// A longer path is distance, not a queue: the rate recovers without waiting for the base to age.
#[test]
fn a_handover_to_a_longer_path_is_recognised() {
    let mut link = Link::new(20e6, 0.04);
    link.run(1000);
    link.base += 0.030;
    link.run(600);
    assert!(link.control.rate() > 15e6, "{}", link.control.rate());
}

#[test]
fn a_configured_ceiling_is_kept() {
    let mut control = RateControl::new(Some(1e6), Time::ZERO);
    let mut delay = DelayModel::new();
    for i in 1..100 {
        let now = Time::from_millis(i * 5);
        delay.on_sample(now, DelaySample { min: 0.01, mean: 0.01, feedback: 0.02 });
        control.on_sample(RateSample { rate: 5e6, app_limited: false }, &mut delay, PACKET_BITS, now);
        assert!(control.rate() <= 1e6);
    }
}

#[test]
fn a_changed_ceiling_holds_at_once_and_its_end_is_felt_soon() {
    let mut link = Link::new(40e6, 0.04);
    link.run(1000);
    link.control.set_cap(Some(5e6));
    assert!(link.control.rate() <= 5e6);
    link.run(600);
    assert!(link.control.rate() <= 5e6 && link.control.rate() > 4.9e6, "{}", link.control.rate());
    assert!(!link.control.is_growing(), "nothing to be lenient for");
    link.control.set_cap(None);
    link.run(120);
    assert!(link.control.rate() > 36e6, "{} after 0.6 s", link.control.rate());
}

/// A ceiling comes from the network: none may stop the heartbeats or break the controller.
#[test]
fn a_ceiling_of_nothing_still_lets_heartbeats_pass() {
    let mut control = RateControl::new(Some(0.0), Time::ZERO);
    assert!(control.rate() >= 64e3);
    control.set_cap(None);
    control.set_cap(Some(0.0));
    control.resume();
    control.restart(Time::from_millis(5));
    assert!((control.rate() - 64e3).abs() < 1.0, "{}", control.rate());
}

/// After an outage a path that was never filled begins as a cold one, not at half of what its heartbeats delivered.
#[test]
fn a_path_that_was_hardly_used_comes_back_cold() {
    let mut rate = RateControl::new(None, Time::ZERO);
    let mut delay = DelayModel::new();
    for i in 1..100 {
        let now = Time::from_millis(20 * i);
        delay.on_sample(now, DelaySample { min: 0.1, mean: 0.1, feedback: 0.2 });
        rate.on_sample(RateSample { rate: 70e3, app_limited: true }, &mut delay, 12_000.0, now);
    }
    rate.restart(Time::from_millis(3000));
    assert!((rate.rate() - COLD_RATE).abs() < 1.0, "{}", rate.rate());
    let mut capped = RateControl::new(Some(1e6), Time::ZERO);
    capped.restart(Time::from_millis(3000));
    assert!(capped.rate() <= 1e6);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, cases: 128, ..Default::default() })]

    /// Whatever others did to the queue and to the packets: on a path that is ours alone again, it is ours again.
    #[test]
    fn after_any_trouble_a_clean_path_is_used(
        capacity in 5e6..200e6_f64,
        rtt in 0.005..0.1_f64,
        trouble in proptest::collection::vec((0.0..0.15_f64, 0.0..0.5_f64, 20..300_usize), 1..12),
    ) {
        let mut link = Link::new(capacity, rtt);
        let packets = |link: &Link| (link.control.rate() * STEP.as_secs_f64() / PACKET_BITS).ceil();
        for (queue, loss, steps) in trouble {
            for _ in 0..steps {
                link.queue = link.queue.max(queue);
                let sent = packets(&link);
                let lost = (sent * loss).round();
                link.control.on_fate((sent - lost) as u64, ((sent - lost) * PACKET_BITS / 8.0) as u64, lost as u64, lost as u64);
                link.step(1.0, false);
            }
        }
        for _ in 0..18_000 {
            let sent = packets(&link);
            link.control.on_fate(sent as u64, (sent * PACKET_BITS / 8.0) as u64, 0, 0);
            link.step(1.0, false);
        }
        let phase = link.control.phase();
        proptest::prop_assert!(phase == Phase::Steady && link.control.rate() > 0.8 * capacity,
            "{phase:?} {} of {capacity}", link.control.rate());
    }
}
