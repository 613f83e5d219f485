//! BBR, version 1 (draft-cardwell-iccrg-bbr-congestion-control-00 and Linux's `tcp_bbr.c`), in segments.
//!
//! A model of the path instead of an answer to loss: the most that was delivered in ten rounds, the least round trip in
//! ten seconds, and a window of twice their product. What Linux has besides is left out: the long-term estimate for
//! policers and packet conservation in the first round of a recovery. The allowance for aggregated acknowledgements is
//! there, because a bond hands on in batches.

use std::time::Duration;

use mwb_proto::time::Time;

/// Startup's gain, 2 / ln 2.
const HIGH_GAIN: f64 = 2.885;
/// Gain of the window while probing for bandwidth.
const WINDOW_GAIN: f64 = 2.0;
/// The pacing gains of one cycle, a round trip each.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// Rounds that the bandwidth filter remembers.
const BANDWIDTH_ROUNDS: usize = 10;
/// How long a least round trip holds before it is measured anew.
const MIN_RTT_HOLDS: Duration = Duration::from_secs(10);
/// How long that measurement lasts at the least.
const PROBE_RTT_FOR: Duration = Duration::from_millis(200);
/// The window meanwhile, and the least of all.
const WINDOW_MIN: f64 = 4.0;
/// Initial window (RFC 6928).
const INITIAL: f64 = 10.0;
/// Paced below the estimate by this much (Linux: `bbr_pacing_margin_percent`).
const MARGIN: f64 = 0.99;
/// Rounds over which the largest surplus of acknowledgements is remembered, twice.
const EXTRA_ROUNDS: u64 = 5;
/// The surplus counts up to this long at the estimated bandwidth (Linux: `bbr_extra_acked_max_us`).
const EXTRA_MAX: f64 = 0.100;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Startup,
    Drain,
    ProbeBandwidth,
    ProbeRtt,
}

/// What one acknowledgement brought, after draft-cheng-iccrg-delivery-rate-estimation.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateSample {
    /// Segments delivered when the newest of those acknowledged was sent.
    pub(super) prior: u64,
    /// Segments delivered by now.
    pub(super) delivered: u64,
    /// The longer of the spans in which they were sent and acknowledged.
    pub(super) span: Duration,
    /// Segments that this acknowledgement brought.
    pub(super) count: usize,
    /// Its round-trip time, unless ambiguous.
    pub(super) rtt: Option<Duration>,
    /// Segments in flight after it.
    pub(super) in_flight: usize,
}

/// The congestion window and the pacing rate.
#[derive(Clone, Copy, Debug)]
pub struct Bbr {
    phase: Phase,
    cwnd: f64,
    prior_cwnd: f64,
    bandwidth: [f64; BANDWIDTH_ROUNDS],
    round: u64,
    round_ends: u64,
    min_rtt: Duration,
    min_rtt_at: Time,
    full: f64,
    full_rounds: u32,
    cycle: usize,
    cycle_at: Time,
    probe_until: Option<Time>,
    extra: [f64; 2],
    extra_since: u64,
    epoch_at: Time,
    epoch_count: f64,
}

impl Default for Bbr {
    fn default() -> Self {
        Self {
            phase: Phase::Startup,
            cwnd: INITIAL,
            prior_cwnd: INITIAL,
            bandwidth: [0.0; BANDWIDTH_ROUNDS],
            round: 0,
            round_ends: 0,
            min_rtt: Duration::MAX,
            min_rtt_at: Time::ZERO,
            full: 0.0,
            full_rounds: 0,
            cycle: 2,
            cycle_at: Time::ZERO,
            probe_until: None,
            extra: [0.0; 2],
            extra_since: 0,
            epoch_at: Time::ZERO,
            epoch_count: 0.0,
        }
    }
}

impl Bbr {
    /// The window in segments.
    pub fn cwnd(&self) -> f64 {
        self.cwnd
    }

    /// The round trip of the handshake is believed as any other.
    pub(super) fn on_handshake(&mut self, rtt: Duration, now: Time) {
        (self.min_rtt, self.min_rtt_at) = (rtt, now);
    }

    /// Time between two segments; `None` before anything is known.
    pub(super) fn interval(&self, srtt: Option<Duration>) -> Option<Duration> {
        let estimate = self.estimate();
        let rate = if estimate > 0.0 { estimate } else { INITIAL / srtt?.as_secs_f64().max(1e-3) };
        Some(Duration::from_secs_f64(1.0 / (rate * self.pacing_gain() * MARGIN).max(1.0)))
    }

    /// Segments per second.
    fn estimate(&self) -> f64 {
        self.bandwidth.iter().copied().fold(0.0, f64::max)
    }

    fn pacing_gain(&self) -> f64 {
        match self.phase {
            Phase::Startup => HIGH_GAIN,
            Phase::Drain => 1.0 / HIGH_GAIN,
            Phase::ProbeBandwidth => CYCLE[self.cycle],
            Phase::ProbeRtt => 1.0,
        }
    }

    fn product(&self) -> f64 {
        if self.min_rtt == Duration::MAX { INITIAL } else { self.estimate() * self.min_rtt.as_secs_f64() }
    }

    pub(super) fn on_ack(&mut self, s: RateSample, now: Time) {
        let new_round = s.prior >= self.round_ends;
        if new_round {
            self.round_ends = s.delivered;
            self.round += 1;
            self.bandwidth[self.round as usize % BANDWIDTH_ROUNDS] = 0.0;
        }
        if !s.span.is_zero() && s.span >= self.min_rtt.min(s.rtt.unwrap_or(Duration::MAX)) {
            let slot = &mut self.bandwidth[self.round as usize % BANDWIDTH_ROUNDS];
            *slot = slot.max((s.delivered - s.prior) as f64 / s.span.as_secs_f64());
        }
        self.note_extra(s.count as f64, now);
        if self.phase == Phase::Startup && new_round {
            self.check_full();
        }
        let product = self.product();
        if self.phase == Phase::Startup && self.full_rounds >= 3 {
            self.phase = Phase::Drain;
        }
        if self.phase == Phase::Drain && (s.in_flight as f64) <= product {
            self.probe_bandwidth(now);
        }
        if self.phase == Phase::ProbeBandwidth {
            let over = now - self.cycle_at > self.min_rtt;
            let next = match self.pacing_gain() {
                gain if gain > 1.0 => over && s.in_flight as f64 >= gain * product,
                gain if gain < 1.0 => over || (s.in_flight as f64) <= product,
                _ => over,
            };
            if next {
                self.cycle = (self.cycle + 1) % CYCLE.len();
                self.cycle_at = now;
            }
        }
        self.note_rtt(s, now);
        self.set_window(s.count as f64, product);
    }

    fn check_full(&mut self) {
        let estimate = self.estimate();
        if estimate >= 1.25 * self.full {
            self.full = estimate;
            self.full_rounds = 0;
        } else {
            self.full_rounds += 1;
        }
    }

    /// Any phase of the cycle but the one that drains, as a number that depends on the time only.
    fn probe_bandwidth(&mut self, now: Time) {
        self.phase = Phase::ProbeBandwidth;
        self.cycle = [0, 2, 3, 4, 5, 6, 7][(now.as_nanos() / 1000 % 7) as usize];
        self.cycle_at = now;
    }

    fn note_rtt(&mut self, s: RateSample, now: Time) {
        let expired = now - self.min_rtt_at > MIN_RTT_HOLDS && self.min_rtt != Duration::MAX;
        if let Some(rtt) = s.rtt
            && (rtt <= self.min_rtt || expired)
        {
            self.min_rtt = rtt;
            self.min_rtt_at = now;
        }
        if expired && self.phase != Phase::ProbeRtt {
            self.prior_cwnd = self.prior_cwnd.max(self.cwnd);
            self.phase = Phase::ProbeRtt;
            self.probe_until = None;
        }
        if self.phase != Phase::ProbeRtt {
            return;
        }
        match self.probe_until {
            None if s.in_flight as f64 <= WINDOW_MIN => {
                self.probe_until = Some(now + PROBE_RTT_FOR.max(self.min_rtt));
            }
            Some(until) if now >= until => {
                self.min_rtt_at = now;
                self.cwnd = self.cwnd.max(self.prior_cwnd);
                self.prior_cwnd = 0.0;
                if self.full_rounds >= 3 {
                    self.probe_bandwidth(now);
                } else {
                    self.phase = Phase::Startup;
                }
            }
            None | Some(_) => {}
        }
    }

    /// How much more was acknowledged than the estimate explains.
    fn note_extra(&mut self, count: f64, now: Time) {
        let estimate = self.estimate();
        let expected = estimate * (now - self.epoch_at).as_secs_f64();
        if self.round - self.extra_since >= EXTRA_ROUNDS {
            self.extra_since = self.round;
            self.extra = [0.0, self.extra[0]];
        }
        if self.epoch_count <= expected {
            self.epoch_at = now;
            self.epoch_count = count;
        } else {
            self.epoch_count += count;
        }
        let expected = estimate * (now - self.epoch_at).as_secs_f64();
        let extra = (self.epoch_count - expected).clamp(0.0, self.cwnd);
        self.extra[0] = self.extra[0].max(extra);
    }

    fn set_window(&mut self, count: f64, product: f64) {
        let gain = match self.phase {
            Phase::Startup | Phase::Drain => HIGH_GAIN,
            Phase::ProbeBandwidth => WINDOW_GAIN,
            Phase::ProbeRtt => 1.0,
        };
        let mut target = gain * product + 3.0;
        if self.full_rounds >= 3 {
            target += self.extra[0].max(self.extra[1]).min(EXTRA_MAX * self.estimate());
            self.cwnd = (self.cwnd + count).min(target);
        } else if self.cwnd < target || self.round_ends < INITIAL as u64 {
            self.cwnd += count;
        }
        self.cwnd = self.cwnd.max(WINDOW_MIN);
        if self.phase == Phase::ProbeRtt {
            self.cwnd = self.cwnd.min(WINDOW_MIN);
        }
    }

    /// The retransmission timer expired: begin with one segment; acknowledgements bring the window back.
    pub(super) fn on_timeout(&mut self) {
        self.cwnd = 1.0;
    }

    pub(super) fn limit(&mut self, segments: f64) {
        self.cwnd = self.cwnd.min(segments);
    }
}
