//! A fluid bottleneck with a drop-tail queue, the controller, and a neighbour who stops at nothing but loss.

use std::collections::VecDeque;
use std::time::Duration;

use crate::path::delay::{DelayModel, DelaySample};
use crate::path::rate::{RateControl, RateSample};
use crate::time::Time;

const STEP: Duration = Duration::from_millis(5);
const PACKET_BITS: f64 = 12_000.0;

/// A window that grows by so many packets per round trip and loses three tenths with each overflow.
struct Neighbour {
    window: f64,
    cut_at: f64,
}

/// One bottleneck: capacity in bit/s, base delay one way and longest queue in seconds.
struct Shared {
    capacity: f64,
    base: f64,
    buffer: f64,
    /// Bits in the queue: ours, theirs.
    backlog: [f64; 2],
    neighbour: Option<Neighbour>,
    now: Time,
    control: RateControl,
    delay: DelayModel,
    /// Delivered in the last steps, bit/s.
    recent: VecDeque<f64>,
    reports: VecDeque<(f64, f64, f64, f64)>,
    /// Bits delivered since the last look: ours, theirs.
    delivered: [f64; 2],
    contests: u32,
}

impl Shared {
    fn new(capacity: f64, rtt: f64, buffer: f64) -> Self {
        Self {
            capacity,
            base: rtt / 2.0,
            buffer,
            backlog: [0.0; 2],
            neighbour: None,
            now: Time::ZERO,
            control: RateControl::new(None, Time::ZERO),
            delay: DelayModel::new(),
            recent: VecDeque::new(),
            reports: VecDeque::new(),
            delivered: [0.0; 2],
            contests: 0,
        }
    }

    fn queue(&self) -> f64 {
        (self.backlog[0] + self.backlog[1]) / self.capacity
    }

    fn step(&mut self) {
        self.now += STEP;
        let (secs, t) = (STEP.as_secs_f64(), self.now.as_secs_f64());
        let rtt = 2.0 * self.base + self.queue();
        let theirs = self.neighbour.as_ref().map_or(0.0, |n| n.window * PACKET_BITS / rtt);
        let sent = [self.control.rate() * secs, theirs * secs];
        self.backlog = [self.backlog[0] + sent[0], self.backlog[1] + sent[1]];
        // Served in the order of arrival: about in proportion to what waits.
        let waiting = self.backlog[0] + self.backlog[1];
        let served = (self.capacity * secs / waiting.max(1.0)).min(1.0);
        let out = self.backlog.map(|bits| bits * served);
        self.backlog = [self.backlog[0] - out[0], self.backlog[1] - out[1]];
        let excess = (self.queue() / self.buffer - 1.0).max(0.0) * self.buffer * self.capacity;
        let arriving = sent[0] + sent[1];
        let lost = sent.map(|bits| if arriving > 0.0 { (excess * bits / arriving).min(bits) } else { 0.0 });
        self.backlog = [self.backlog[0] - lost[0], self.backlog[1] - lost[1]];
        if let Some(n) = &mut self.neighbour {
            n.window += 2.0 * secs / rtt;
            if lost[1] > 0.0 && t - n.cut_at > rtt {
                n.window *= 0.7;
                n.cut_at = t;
            }
        }
        self.delivered = [self.delivered[0] + out[0], self.delivered[1] + out[1]];
        self.recent.push_back(out[0] / secs);
        if self.recent.len() > 5 {
            self.recent.pop_front();
        }
        let mean = self.recent.iter().sum::<f64>() / self.recent.len() as f64;
        self.reports.push_back((self.base + self.queue(), mean, out[0], lost[0]));
        // What happens now is known half a round trip later.
        if (self.reports.len() as f64) * secs > self.base + 0.005 {
            self.report();
        }
    }

    fn report(&mut self) {
        let Some((owd, rate, bits, lost)) = self.reports.pop_front() else { return };
        let feedback = owd + self.base + 0.005;
        self.delay.on_sample(self.now, DelaySample { min: owd, mean: owd, feedback });
        let packets = |bits: f64| (bits / PACKET_BITS).ceil() as u64;
        self.control.on_fate(packets(bits), (bits / 8.0) as u64, packets(lost), packets(lost));
        let before = self.control.is_contest();
        let sample = RateSample { rate, app_limited: false };
        self.control.on_sample(sample, &mut self.delay, PACKET_BITS, self.now);
        self.contests += u32::from(!before && self.control.is_contest());
    }

    /// Our share of what was delivered in so many seconds.
    fn run(&mut self, seconds: u64) -> f64 {
        self.delivered = [0.0; 2];
        for _ in 0..200 * seconds {
            self.step();
        }
        self.delivered[0] / (self.delivered[0] + self.delivered[1])
    }

    /// A neighbour whose slow start has just filled the queue.
    fn join(&mut self) {
        let full = self.capacity * (2.0 * self.base + self.buffer) / PACKET_BITS;
        self.neighbour = Some(Neighbour { window: 0.7 * full, cut_at: self.now.as_secs_f64() });
    }
}

#[test]
fn a_neighbour_and_we_get_half_of_a_fair_share_at_the_least() {
    for (capacity, rtt) in [(50e6, 0.010), (20e6, 0.040), (10e6, 0.080), (4e6, 0.030)] {
        let mut link = Shared::new(capacity, rtt, 0.100);
        link.run(10);
        link.join();
        link.run(5);
        let share = link.run(60);
        assert!((0.25..0.75).contains(&share), "{capacity} {rtt}: {share:.2}");
    }
}

#[test]
fn a_neighbour_who_leaves_takes_the_queue_along() {
    for (capacity, rtt) in [(50e6, 0.010), (20e6, 0.040), (10e6, 0.080)] {
        let mut link = Shared::new(capacity, rtt, 0.100);
        link.run(10);
        link.join();
        link.run(20);
        assert!(link.contests > 0, "{capacity} {rtt}");
        link.neighbour = None;
        link.run(6);
        assert!(
            !link.control.is_contest() && link.queue() < 0.015,
            "{capacity} {rtt}: {:.3} s",
            link.queue()
        );
        link.run(5);
        assert!(link.control.rate() > 0.9 * capacity, "{capacity} {rtt}: {:.1e}", link.control.rate());
    }
}

/// A path that gets longer, or slower, or far longer and faster, is nobody's fault.
#[test]
fn changes_of_the_path_are_no_rivals() {
    for (longer, slower) in [(0.030, 1.0), (0.0, 4.0), (0.080, 0.5)] {
        let mut link = Shared::new(20e6, 0.040, 0.200);
        link.run(10);
        link.base += longer;
        link.capacity /= slower;
        link.run(10);
        assert_eq!(link.contests, 0, "{longer} {slower}");
        assert!(link.control.rate() > 0.8 * link.capacity, "{longer} {slower}: {:.1e}", link.control.rate());
    }
}

/// Somebody who sends at a steady rate leaves the queue to us.
#[test]
fn a_window_that_ends_below_the_queue_is_no_rival() {
    let mut link = Shared::new(20e6, 0.040, 0.100);
    link.run(10);
    link.neighbour = Some(Neighbour { window: 20.0, cut_at: f64::INFINITY });
    for _ in 0..2000 {
        link.step();
        link.neighbour.as_mut().expect("was set").window = 20.0;
    }
    assert_eq!(link.contests, 0);
}
