//! Losses of the sending side: how they are found (RACK, RFC 8985; the retransmission timer), how the
//! window answers, and how a mistake is taken back.

use std::time::Duration;

use mwb_proto::time::Time;

use super::TcpSender;
use crate::tcp_model::control::Transport;

/// Reordering tolerated in packets before any was seen (RFC 8985: `DupThresh`).
const DUP_THRESH: usize = 3;
/// Recoveries after which a widened reordering window is forgotten (RFC 8985).
const REO_PERSIST: u32 = 16;
/// Least time to a tail loss probe.
const PROBE_MIN: Duration = Duration::from_millis(10);
/// What a lone segment's probe waits for the peer's delayed acknowledgement.
const PROBE_ALONE: Duration = Duration::from_millis(200);

impl TcpSender {
    /// A D-SACK: something was retransmitted needlessly, so widen the reordering window, once a round.
    pub(super) fn on_duplicate(&mut self) {
        self.reordering_seen = true;
        if self.una >= self.dsack_round {
            self.dsack_round = self.next;
            self.reo_mult += 1;
        }
        self.reo_persist = REO_PERSIST;
    }

    /// RACK: what was sent before something that arrived, and long enough before, is lost. Returns
    /// whether anything was found.
    pub(super) fn detect_losses(&mut self, now: Time) -> bool {
        self.reo_at = None;
        if self.options.transport == Transport::Quic {
            let found = self.detect_by_packets(now);
            return self.answer_losses(found);
        }
        let Some(newest) = self.rack else { return false };
        let patient = self.reordering_seen || (self.recovery_point.is_none() && self.sacked < DUP_THRESH);
        let window = if patient {
            (self.min_rtt / 4 * self.reo_mult).min(self.srtt.unwrap_or(Duration::ZERO))
        } else {
            Duration::ZERO
        };
        let mut found = false;
        for sent in &mut self.sent {
            if (sent.at, sent.end) >= newest {
                if sent.first_retransmit.is_none() {
                    break; // First sendings are in order of time.
                }
                continue;
            }
            if !sent.is_in_flight() {
                continue;
            }
            let due = sent.at + self.rack_rtt + window;
            if due <= now {
                sent.lost = true;
                self.in_flight -= 1;
                self.lost += 1;
                found = true;
            } else {
                self.reo_at = Some(self.reo_at.map_or(due, |at| at.min(due)));
            }
        }
        self.answer_losses(found)
    }

    /// RFC 9002, section 6.1: three later packets have arrived, or one and 9/8 of a round trip is over.
    fn detect_by_packets(&mut self, now: Time) -> bool {
        let wait = self.srtt.unwrap_or(Duration::ZERO).max(self.rack_rtt) * 9 / 8;
        let mut found = false;
        for sent in &mut self.sent {
            if sent.order >= self.newest_order {
                if sent.first_retransmit.is_none() {
                    break; // First sendings are in order of time.
                }
                continue;
            }
            if !sent.is_in_flight() {
                continue;
            }
            let due = sent.at + wait;
            if self.newest_order - sent.order >= DUP_THRESH as u32 || due <= now {
                sent.lost = true;
                self.in_flight -= 1;
                self.lost += 1;
                found = true;
            } else {
                self.reo_at = Some(self.reo_at.map_or(due, |at| at.min(due)));
            }
        }
        found
    }

    fn answer_losses(&mut self, found: bool) -> bool {
        if found && self.recovery_point.is_none() {
            self.prr = Prr { flight: self.sent.len() - self.sacked, ..Prr::default() };
            self.enter_recovery();
            self.control.on_congestion();
            self.force = true;
            self.stats.recoveries += 1;
        }
        found
    }

    fn enter_recovery(&mut self) {
        self.saved = Some(self.control);
        self.recovery_point = Some(self.next);
        self.probe_at = None;
    }

    pub(super) fn leave_recovery(&mut self) {
        self.recovery_point = None;
        self.loss_state = false;
        self.saved = None;
        self.reo_persist = self.reo_persist.saturating_sub(1);
        if self.reo_persist == 0 {
            self.reo_mult = 1;
        }
    }

    /// The last cut was a mistake: nothing had been lost.
    pub(super) fn undo(&mut self) {
        if self.options.transport == Transport::Quic {
            return;
        }
        let Some(saved) = self.saved.take() else { return };
        if self.control.heeds_loss() {
            self.control = saved;
        }
        self.stats.undone += 1;
        self.reordering_seen = true;
        for sent in &mut self.sent {
            if sent.lost {
                sent.lost = false;
                self.lost -= 1;
                self.in_flight += 1;
            }
        }
        self.recovery_point = None;
        self.loss_state = false;
    }

    pub(super) fn arm_probe(&mut self, now: Time) {
        let idle = self.sent.is_empty() || self.probed || self.sacked > 0 || self.recovery_point.is_some();
        self.probe_at = match self.srtt {
            Some(srtt) if !idle => {
                let alone = if self.in_flight == 1 { PROBE_ALONE } else { Duration::ZERO };
                Some(now + (srtt * 2).max(PROBE_MIN) + alone)
            }
            _ => None,
        };
    }

    pub(super) fn on_retransmission_timeout(&mut self, now: Time) {
        self.stats.timeouts += 1;
        if self.recovery_point.is_none() {
            self.enter_recovery();
        }
        self.recovery_point = Some(self.next);
        self.loss_state = true;
        for sent in &mut self.sent {
            if sent.is_in_flight() {
                sent.lost = true;
                self.in_flight -= 1;
                self.lost += 1;
            }
        }
        if self.backoff == 0 {
            self.control.on_timeout();
        }
        self.force = true;
        self.backoff += 1;
        self.rto_at = Some(now + self.rto());
        self.reo_at = None;
        self.probe_at = None;
    }
}

/// Proportional rate reduction (RFC 6937): how much may be sent while recovering.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prr {
    /// Segments in flight when the recovery began.
    flight: usize,
    delivered: usize,
    pub(super) sent: usize,
    /// Segments that may be sent before the next acknowledgement.
    pub(super) room: usize,
}

impl Prr {
    /// `delivered` segments arrived, `pipe` are in flight, `ssthresh` is the goal; `healthy` if the
    /// hole moved on and no new loss showed.
    pub(super) fn on_ack(&mut self, delivered: usize, pipe: usize, ssthresh: f64, healthy: bool) {
        self.delivered += delivered;
        let goal = ssthresh as usize;
        self.room = if pipe > goal {
            (self.delivered * goal).div_ceil(self.flight.max(1)).saturating_sub(self.sent)
        } else {
            let held_back = self.delivered.saturating_sub(self.sent);
            let allowed = if healthy { held_back.max(delivered) + 1 } else { held_back };
            allowed.min(goal - pipe)
        };
    }
}
