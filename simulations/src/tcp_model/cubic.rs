//! CUBIC (RFC 9438), in segments.

use std::time::Duration;

use mwb_proto::time::Time;

/// Constant of the cubic function, segments per second cubed.
const C: f64 = 0.4;
/// Multiplicative decrease.
const BETA: f64 = 0.7;
/// Initial window (RFC 6928).
const INITIAL: f64 = 10.0;

/// The congestion window.
#[derive(Clone, Copy, Debug)]
pub struct Cubic {
    cwnd: f64,
    ssthresh: f64,
    w_max: f64,
    k: f64,
    w_est: f64,
    epoch_start: Option<Time>,
}

impl Default for Cubic {
    fn default() -> Self {
        Self { cwnd: INITIAL, ssthresh: f64::INFINITY, w_max: 0.0, k: 0.0, w_est: 0.0, epoch_start: None }
    }
}

impl Cubic {
    /// The window in segments.
    pub fn cwnd(&self) -> f64 {
        self.cwnd
    }

    /// Whether it still doubles per round trip.
    pub fn is_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// `acked` segments were delivered while the window was the limit.
    pub fn on_ack(&mut self, mut acked: f64, srtt: Duration, now: Time) {
        if self.is_slow_start() {
            let grown = (self.cwnd + acked).min(self.ssthresh);
            acked -= grown - self.cwnd;
            self.cwnd = grown;
            if acked <= 0.0 {
                return;
            }
        }
        let epoch = match self.epoch_start {
            Some(at) => at,
            None => {
                if self.cwnd < self.w_max {
                    self.k = ((self.w_max - self.cwnd) / C).cbrt();
                } else {
                    self.k = 0.0;
                    self.w_max = self.cwnd;
                }
                self.w_est = self.cwnd;
                self.epoch_start = Some(now);
                now
            }
        };
        let t = (now - epoch).as_secs_f64();
        let w_cubic = |t: f64| C * (t - self.k).powi(3) + self.w_max;
        // Reno-friendly region: until the old window is reached, at the rate that gives Reno's share.
        let alpha = if self.w_est < self.w_max { 3.0 * (1.0 - BETA) / (1.0 + BETA) } else { 1.0 };
        self.w_est += alpha * acked / self.cwnd;
        if w_cubic(t) < self.w_est {
            self.cwnd = self.cwnd.max(self.w_est);
        } else {
            let target = w_cubic(t + srtt.as_secs_f64()).clamp(self.cwnd, 1.5 * self.cwnd);
            self.cwnd += (target - self.cwnd) / self.cwnd * acked;
        }
    }

    /// A loss or a congestion mark: once per round trip.
    pub fn on_congestion(&mut self) {
        self.epoch_start = None;
        // Fast convergence: leave room for whoever took the rest.
        self.w_max = if self.cwnd < self.w_max { self.cwnd * (1.0 + BETA) / 2.0 } else { self.cwnd };
        self.ssthresh = (self.cwnd * BETA).max(2.0);
        self.cwnd = self.ssthresh;
    }

    /// The retransmission timer expired.
    pub fn on_timeout(&mut self) {
        self.on_congestion();
        self.cwnd = 1.0;
    }

    /// Keeps the window at `segments` at most: what the peer's window allows.
    pub fn limit(&mut self, segments: f64) {
        self.cwnd = self.cwnd.min(segments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    #[test]
    fn slow_start_doubles_and_loss_takes_three_tenths() {
        let mut cubic = Cubic::default();
        cubic.on_ack(10.0, RTT, Time::ZERO);
        assert!((cubic.cwnd() - 20.0).abs() < 1e-9);
        cubic.on_congestion();
        assert!((cubic.cwnd() - 14.0).abs() < 1e-9 && !cubic.is_slow_start());
        cubic.on_timeout();
        assert!((cubic.cwnd() - 1.0).abs() < 1e-9 && cubic.is_slow_start());
    }

    #[test]
    fn the_window_comes_back_to_where_it_was_lost_after_k_seconds() {
        let mut cubic = Cubic { cwnd: 1000.0, ssthresh: 1000.0, w_max: 1000.0, ..Cubic::default() };
        cubic.on_congestion();
        let k = (300.0f64 / 0.4).cbrt();
        let mut now = Time::ZERO;
        while now.as_secs_f64() < k {
            now += RTT;
            cubic.on_ack(cubic.cwnd(), RTT, now);
            assert!(cubic.cwnd() < 1001.0);
        }
        assert!(cubic.cwnd() > 990.0, "{}", cubic.cwnd());
    }
}
