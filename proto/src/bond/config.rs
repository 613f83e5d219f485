//! Settings of the bond's two machines. Every field has a default that suits most links.

use std::time::Duration;

use crate::bond::sender::RoutingMode;

/// Settings of the sending half of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct SenderConfig {
    /// How packets are spread over the paths. Default adaptive.
    pub mode: RoutingMode,
    /// Most bytes of inner packets waiting at the ingress, all flows together. Default 8 MiB.
    pub queue_bytes_max: usize,
    /// Flow queues of FQ-CoDel. Default 1024, as RFC 8290.
    pub flow_queues: usize,
    /// CoDel's target while all paths are near; it follows the longest round trip in use. Default 20 ms.
    pub codel_target: Duration,
    /// CoDel's interval, following likewise. Default 150 ms.
    pub codel_interval: Duration,
    /// Mark ECN-capable packets instead of dropping them. Default true.
    pub ecn: bool,
    /// How far ahead of the wire a path is filled. Default 2 ms.
    pub ahead: Duration,
    /// How far ahead a sparse flow, an ACK or a resend may book. Default 5 ms.
    pub ahead_sparse: Duration,
    /// A path whose delay exceeds the least by more than this carries data only when no other can.
    /// Default 150 ms.
    pub spread_max: Duration,
    /// Resend lost packets. Default true.
    pub resend: bool,
    /// Age after which a lost packet is given up. Default 600 ms.
    pub resend_age_max: Duration,
    /// Silence after which a path is suspected, beyond the expected arrival and four times its
    /// deviation. Default 50 ms.
    pub silence: Duration,
    /// Heartbeat interval while traffic flows. Default 20 ms.
    pub heartbeat_active: Duration,
    /// Heartbeat interval while idle. Default 200 ms.
    pub heartbeat_idle: Duration,
    /// Keyed-hash seed of the flow classifier: fresh random bits per session.
    pub seed: [u64; 2],
}

impl Default for SenderConfig {
    fn default() -> Self {
        Self {
            mode: RoutingMode::default(),
            queue_bytes_max: 8 << 20,
            flow_queues: 1024,
            codel_target: Duration::from_millis(20),
            codel_interval: Duration::from_millis(150),
            ecn: true,
            ahead: Duration::from_millis(2),
            ahead_sparse: Duration::from_millis(5),
            spread_max: Duration::from_millis(150),
            resend: true,
            resend_age_max: Duration::from_millis(600),
            silence: Duration::from_millis(50),
            heartbeat_active: Duration::from_millis(20),
            heartbeat_idle: Duration::from_millis(200),
            seed: [0, 0],
        }
    }
}

/// Settings of the receiving half of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceiverConfig {
    /// Hard cap of how long a packet may wait for an earlier one of its lane. Default 800 ms; the adaptive time is
    /// mostly far below, but paths that differ by 300 ms need more than that.
    pub reorder_timeout: Duration,
    /// What a gap is given beyond the path spread and one fast round trip. Default 80 ms.
    pub reorder_slack: Duration,
    /// Most bytes held by all resequencers together. Default 32 MiB.
    pub reorder_bytes_max: usize,
    /// Least interval of reports while packets arrive. Default 5 ms.
    pub report_interval: Duration,
    /// Interval of reports without news while the session is active. Default 15 ms.
    pub report_quiet: Duration,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            reorder_timeout: Duration::from_millis(800),
            reorder_slack: Duration::from_millis(80),
            reorder_bytes_max: 32 << 20,
            report_interval: Duration::from_millis(5),
            report_quiet: Duration::from_millis(15),
        }
    }
}
