//! Which congestion control a sending side has, behind one face.

use std::time::Duration;

use mwb_proto::time::Time;

use super::bbr::{Bbr, RateSample};
use super::cubic::Cubic;

/// What a connection does about loss and congestion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// Linux TCP with CUBIC.
    #[default]
    Cubic,
    /// Linux TCP with BBR, version 1.
    Bbr,
    /// CUBIC that calls a packet lost once three later ones have arrived, or after 9/8 of a round trip, never learns
    /// from mistakes and takes none back (RFC 9002), in UDP packets of port 443.
    Quic,
}

/// Congestion control of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Control {
    Cubic(Cubic),
    Bbr(Bbr),
}

impl Control {
    pub(super) fn new(transport: Transport) -> Self {
        match transport {
            Transport::Cubic | Transport::Quic => Self::Cubic(Cubic::default()),
            Transport::Bbr => Self::Bbr(Bbr::default()),
        }
    }

    /// The window in segments.
    pub(super) fn cwnd(&self) -> f64 {
        match self {
            Self::Cubic(cubic) => cubic.cwnd(),
            Self::Bbr(bbr) => bbr.cwnd(),
        }
    }

    pub(super) fn is_slow_start(&self) -> bool {
        matches!(self, Self::Cubic(cubic) if cubic.is_slow_start())
    }

    /// Whether loss is an order to send less.
    pub(super) fn heeds_loss(&self) -> bool {
        matches!(self, Self::Cubic(_))
    }

    /// The handshake took `rtt`.
    pub(super) fn on_handshake(&mut self, rtt: Duration, now: Time) {
        if let Self::Bbr(bbr) = self {
            bbr.on_handshake(rtt, now);
        }
    }

    /// An acknowledgement. `growing`: the window was used, and nothing speaks against more.
    pub(super) fn on_ack(&mut self, sample: RateSample, growing: bool, srtt: Duration, now: Time) {
        match self {
            Self::Cubic(cubic) if growing => cubic.on_ack(sample.count as f64, srtt, now),
            Self::Cubic(_) => {}
            Self::Bbr(bbr) => bbr.on_ack(sample, now),
        }
    }

    pub(super) fn on_congestion(&mut self) {
        if let Self::Cubic(cubic) = self {
            cubic.on_congestion();
        }
    }

    pub(super) fn on_timeout(&mut self) {
        match self {
            Self::Cubic(cubic) => cubic.on_timeout(),
            Self::Bbr(bbr) => bbr.on_timeout(),
        }
    }

    pub(super) fn limit(&mut self, segments: f64) {
        match self {
            Self::Cubic(cubic) => cubic.limit(segments),
            Self::Bbr(bbr) => bbr.limit(segments),
        }
    }

    /// Time between two segments; `None` if they leave as the window allows.
    pub(super) fn pacing(&self, srtt: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Cubic(_) => None,
            Self::Bbr(bbr) => bbr.interval(srtt),
        }
    }
}
