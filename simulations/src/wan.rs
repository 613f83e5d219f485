//! The WAN emulator: what a link is made of, and the thread that plays it.
//!
//! A link has two directions, `up` (host to internet) and `down`. A packet of one direction passes,
//! in this order: the cut, the policer ([`policer`]), the drop-tail queue ([`queue`]), the rate or trace
//! ([`rate`], [`trace`]),
//! the loss on the medium ([`loss`]: a lost packet has used its share of the rate), and the
//! propagation delay with jitter ([`delay`]). [`Direction`] composes them without a clock or a
//! socket; [`Emulator`] (module [`bridge`]) feeds it frames and kernel time stamps.
//!
//! Rates and queue sizes count IP packets, without the 14 bytes of Ethernet header.

pub mod bridge;
pub mod delay;
pub mod direction;
pub mod lateness;
pub mod loss;
mod packet_socket;
pub mod policer;
pub mod queue;
pub mod rate;
pub mod trace;

use std::time::Duration;

use serde::Serialize;

pub use bridge::{Emulator, EmulatorConfig, EmulatorControl, EmulatorError, LinkPorts};
pub use direction::Direction;
pub use lateness::{Lateness, LatenessHistogram};
pub use loss::BurstLoss;
pub use policer::Policer;
pub use queue::QueueLimit;
pub use trace::{Trace, TraceError};

/// Bytes of an Ethernet header, which no rate and no counter includes.
pub const ETHERNET_HEADER: usize = 14;

/// Which way through a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// From the host to the internet.
    Up,
    /// From the internet to the host.
    Down,
}

/// What one direction of a link does to packets.
#[derive(Clone, Debug)]
pub struct DirectionSpec {
    /// Bits of IP packets per second; `None` is as fast as the machine, `Some(0)` holds every packet.
    /// Ignored when `trace` is set.
    pub rate: Option<u64>,
    /// Propagation delay.
    pub delay: Duration,
    /// Extra delay between zero and this, see [`delay::DelayLine`].
    pub jitter: Duration,
    /// Whether jitter is drawn per packet and may change the order. Otherwise order is kept.
    pub jitter_reorders: bool,
    /// Probability that a packet is lost, 0 to 1, independent of the others.
    pub loss: f64,
    /// Bursts of loss on top of `loss`.
    pub burst: Option<BurstLoss>,
    /// Drops what exceeds its rate, in front of the queue.
    pub policer: Option<Policer>,
    /// Limit of the queue in front of the rate or trace.
    pub queue: QueueLimit,
    /// Delivery opportunities that replace `rate`.
    pub trace: Option<Trace>,
}

impl Default for DirectionSpec {
    /// No rate limit, no delay, no loss; a queue of 100 ms should a rate be set.
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            jitter_reorders: false,
            loss: 0.0,
            burst: None,
            policer: None,
            queue: QueueLimit::Time(Duration::from_millis(100)),
            trace: None,
        }
    }
}

impl DirectionSpec {
    /// A direction of `mbit` Mbit/s.
    pub fn mbit(mbit: f64) -> Self {
        Self { rate: Some((mbit * 1e6) as u64), ..Self::default() }
    }

    /// A direction that delivers when `trace` says.
    pub fn traced(trace: Trace) -> Self {
        Self { trace: Some(trace), ..Self::default() }
    }

    /// The same with a propagation delay of `millis` ms.
    pub fn delay_ms(mut self, millis: u64) -> Self {
        self.delay = Duration::from_millis(millis);
        self
    }

    /// The same with up to `millis` ms of jitter, order kept.
    pub fn jitter_ms(mut self, millis: u64) -> Self {
        self.jitter = Duration::from_millis(millis);
        self
    }

    /// The same with independent loss of probability `loss`.
    pub fn loss(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    /// The same with bursts of loss.
    pub fn burst(mut self, burst: BurstLoss) -> Self {
        self.burst = Some(burst);
        self
    }

    /// The same with another queue.
    pub fn queue(mut self, queue: QueueLimit) -> Self {
        self.queue = queue;
        self
    }

    /// Mean bits per second that pass, if there is a limit.
    pub fn mean_rate(&self) -> Option<u64> {
        let sent = self.trace.as_ref().map(Trace::mean_rate).or(self.rate);
        let policed = self.policer.map(|policer| policer.rate);
        sent.into_iter().chain(policed).min()
    }
}

/// One emulated uplink.
#[derive(Clone, Debug)]
pub struct LinkSpec {
    /// Unique name, by which [`EmulatorControl`] knows the link.
    pub name: String,
    /// Host to internet.
    pub up: DirectionSpec,
    /// Internet to host.
    pub down: DirectionSpec,
}

impl LinkSpec {
    /// A link from its two directions.
    pub fn new(name: impl Into<String>, up: DirectionSpec, down: DirectionSpec) -> Self {
        Self { name: name.into(), up, down }
    }

    /// A link that does the same both ways.
    pub fn symmetric(name: impl Into<String>, both: DirectionSpec) -> Self {
        Self { name: name.into(), up: both.clone(), down: both }
    }
}

/// Counters of one direction since the emulator began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DirectionCounters {
    /// Packets that came in.
    pub arrived_packets: u64,
    /// IP bytes that came in.
    pub arrived_bytes: u64,
    /// Packets sent out at the other end.
    pub packets: u64,
    /// IP bytes sent out at the other end.
    pub bytes: u64,
    /// Packets dropped by the full queue.
    pub dropped_queue: u64,
    /// Packets that exceeded the policer's rate.
    pub dropped_policer: u64,
    /// Packets lost by random or burst loss.
    pub dropped_loss: u64,
    /// Packets that met a cut, or were queued or in flight when it came.
    pub dropped_cut: u64,
    /// Packets over the bound on what may be in flight, frames larger than a buffer, and frames the
    /// kernel refused to send. Not zero means the emulation was overrun.
    pub dropped_emulator: u64,
    /// Frames the kernel dropped because the emulator read too late. Not zero means the same.
    pub dropped_socket: u64,
    /// IP bytes waiting in the queue now.
    pub queue_bytes: u64,
    /// The most that ever waited.
    pub queue_bytes_max: u64,
}

/// Counters of both directions of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkCounters {
    /// Host to internet.
    pub up: DirectionCounters,
    /// Internet to host.
    pub down: DirectionCounters,
}
