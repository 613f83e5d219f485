//! Settings and counters of the sending side.

use crate::tcp_model::control::Transport;

/// Settings of a [`TcpSender`](super::TcpSender).
#[derive(Clone, Copy, Debug)]
pub struct SenderOptions {
    /// Bytes to send; `None` never ends.
    pub bytes: Option<u64>,
    /// Negotiate ECN: data goes out as ECT(0), and a congestion echo counts as a loss.
    pub ecn: bool,
    /// The peer's window in bytes. Linux ends at 6 MB by default.
    pub window: u64,
    /// Initial sequence number.
    pub isn: u32,
    /// What it does about loss and congestion.
    pub transport: Transport,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self { bytes: None, ecn: false, window: 6 << 20, isn: 0, transport: Transport::Cubic }
    }
}

/// Facts about a sending side.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SenderStats {
    /// Segments with data sent, retransmissions among them.
    pub segments: u64,
    /// Retransmissions.
    pub retransmits: u64,
    /// Times the window was cut for losses found by RACK.
    pub recoveries: u64,
    /// Times the window was cut for a congestion echo.
    pub ecn_cuts: u64,
    /// Expiries of the retransmission timer.
    pub timeouts: u64,
    /// Window cuts taken back because the original had arrived.
    pub undone: u64,
}
