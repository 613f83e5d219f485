//! Times and rates that the sending side measures.

use std::time::Duration;

use mwb_proto::time::Time;

use super::{Arrivals, RTO_INITIAL, TcpSender};
use crate::tcp_model::bbr::RateSample;

/// Least variance term of the retransmission timer (Linux: `TCP_RTO_MIN`).
const RTO_MIN: Duration = Duration::from_millis(200);
/// Longest retransmission timer.
const RTO_MAX: Duration = Duration::from_secs(60);

impl TcpSender {
    pub(super) fn sample_rtt(&mut self, rtt: Duration) {
        match self.srtt {
            None => {
                self.srtt = Some(rtt);
                self.rttvar = rtt / 2;
            }
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(rtt)) / 4;
                self.srtt = Some((srtt * 7 + rtt) / 8);
            }
        }
    }

    pub(super) fn rto(&self) -> Duration {
        let base = self.srtt.map_or(RTO_INITIAL, |srtt| srtt + (self.rttvar * 4).max(RTO_MIN));
        (base * (1 << self.backoff.min(10))).min(RTO_MAX)
    }

    /// Delivery rate (draft-cheng-iccrg-delivery-rate-estimation): how many arrived since the newest of those that
    /// arrived now was sent, over the longer of sending and acknowledging.
    pub(super) fn rate_sample(&mut self, arrivals: &Arrivals, now: Time) -> RateSample {
        let (delivered, _) = self.delivered;
        let mut sample = RateSample {
            prior: delivered,
            delivered,
            span: Duration::ZERO,
            count: arrivals.count,
            rtt: arrivals.rtt,
            in_flight: self.in_flight,
        };
        if let Some(newest) = arrivals.newest {
            sample.prior = newest.delivered.0;
            sample.span = (now - newest.delivered.1).max(newest.at - newest.span_from);
            self.span_from = newest.at;
        }
        sample
    }

    /// Nothing is in flight: what is sent now begins a new span.
    pub(super) fn begin_span(&mut self, now: Time) {
        if self.in_flight == 0 {
            self.span_from = now;
            self.delivered.1 = now;
        }
    }
}
