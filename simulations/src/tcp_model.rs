//! A model of TCP that speaks real segments: enough of it for a bond to meet what it meets in life.
//!
//! [`TcpSender`] has CUBIC (RFC 9438) without HyStart, BBR version 1 or the manners of QUIC ([`Transport`]), loss detection by RACK and tail loss probes (RFC 8985),
//! SACK (RFC 2018), D-SACK (RFC 2883), the retransmission timer of Linux (RFC 6298 with a floor of 200 ms), Eifel
//! detection of spurious recoveries by time stamp (RFC 4015), PRR (RFC 6937) and ECN (RFC 3168). [`TcpReceiver`] delays
//! acknowledgements like Linux. What it leaves out: flow control beyond one fixed window, closing, Nagle. Both are pure: `handle`, `poll` until `None`, `poll_timeout`.
//!
//! Time-stamp values are not a clock here: each segment of a side carries the next number, so that a simulation can
//! tell any two packets apart. They grow with time, which is all that RACK and Eifel want of them.

mod bbr;
mod control;
mod cubic;
pub mod quic;
mod receiver;
mod segment;
mod sender;

pub use bbr::Bbr;
pub use control::Transport;
pub use cubic::Cubic;
pub use receiver::{ReceiverStats, TcpReceiver};
pub use segment::{Segment, Tuple};
pub use sender::{SenderOptions, SenderStats, TcpSender};

/// Maximum segment size that the bond's clamping leaves, options included, in bytes.
pub const MSS: usize = 1384;
/// Bytes of the time-stamp option with its padding.
pub const TIMESTAMP_OPTION: usize = 12;
/// Payload of a full segment.
pub const PAYLOAD: usize = MSS - TIMESTAMP_OPTION;

/// The 64-bit stream position nearest to `near` whose low half is `low`.
fn unwrap_seq(near: u64, low: u32) -> u64 {
    near.wrapping_add_signed(i64::from(low.wrapping_sub(near as u32) as i32))
}

#[cfg(test)]
mod tests;
