//! What the machines publish of themselves: for status, traces and metrics.

use serde::{Deserialize, Serialize};

use crate::bond::sender::RoutingMode;

/// State of a path as its sender sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathState {
    /// Added, nothing heard of it yet.
    Starting,
    /// Carries traffic.
    Up,
    /// Silent: what was in flight has been sent again elsewhere; heartbeats only.
    Suspect,
    /// Silent for more than a second.
    Down,
}

/// One path of a session, seen from the sender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathSnapshot {
    /// Path id.
    pub path: u8,
    /// State.
    pub state: PathState,
    /// Whether it is kept out because it is too far behind the others.
    pub parked: bool,
    /// Sending rate, Mbit/s on the wire.
    pub rate_mbit: f64,
    /// Newest delivery-rate sample, Mbit/s.
    pub delivery_mbit: f64,
    /// Most delivered in two seconds, Mbit/s.
    pub capacity_mbit: f64,
    /// Whether the newest sample was app-limited.
    pub app_limited: bool,
    /// Whether the controller is in its startup phase.
    pub startup: bool,
    /// Whether others fill the queue of its bottleneck, so that it competes for a share.
    pub contest: bool,
    /// Standing queue, ms.
    pub queue_ms: f64,
    /// Standing queue wanted, ms.
    pub target_ms: f64,
    /// Smoothed one-way delay relative to the session's least, ms.
    pub delay_ms: f64,
    /// Deviation of the delay, ms.
    pub deviation_ms: f64,
    /// Feedback time, ms.
    pub feedback_ms: f64,
    /// Round-trip time of the newest answered heartbeat, ms; zero before the first.
    pub rtt_ms: f64,
    /// Bytes in flight.
    pub in_flight: u64,
    /// Bytes that may be in flight.
    pub in_flight_max: u64,
    /// Wire bytes sent.
    pub sent_bytes: u64,
    /// Of these, bytes of reports.
    #[serde(default)]
    pub report_bytes: u64,
    /// Of these, bytes of heartbeats and of probes of the path's largest datagram.
    #[serde(default)]
    pub heartbeat_bytes: u64,
    /// Datagrams lost.
    pub lost: u64,
    /// Datagrams known to have arrived.
    pub acked: u64,
    /// Losses that turned out to be late arrivals.
    pub spurious: u64,
    /// Times the path was suspected.
    pub suspicions: u64,
    /// Times the guard parked it because it made the others worse.
    pub guarded: u64,
    /// Configured weight.
    pub weight: u32,
    /// Largest datagram that was seen to pass, bytes of UDP payload.
    pub datagram_max: usize,
    /// Times the path ceased to pass datagrams of a size that it had passed.
    pub black_holes: u64,
    /// Share of its rate in use lately, 0 to 1.
    pub utilisation: f64,
    /// Share of its packets lost lately, 0 to 1.
    pub loss: f64,
    /// Share of its packets lost while it had no queue, 0 to 1: what parity is sized by.
    pub random_loss: f64,
    /// Parity datagrams sent over it.
    pub parity: u64,
    /// Copies sent over it at once with a packet on another path.
    pub duplicates: u64,
    /// weight x (100 / latency in ms) x (1 - loss) x (1 - utilisation): its share in the weighted mode,
    /// relative to the others'.
    pub score: f64,
}

/// The sending half of a session.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct SenderSnapshot {
    /// Seconds of the node's monotonic clock.
    pub at: f64,
    /// How packets are spread.
    pub mode: RoutingMode,
    /// Paths by id.
    pub paths: Vec<PathSnapshot>,
    /// Packets that arrived, as wire bits, over what the best path delivered while it did not run dry, in the last five
    /// seconds: above 1 the bond beats its best path. None while nothing is backlogged. That receivers wait for order
    /// does not show in it.
    pub bond_gain_ratio: Option<f64>,
    /// Bytes waiting at the ingress.
    pub queue_bytes: usize,
    /// Packets waiting at the ingress.
    pub queue_packets: usize,
    /// Packets waiting to be sent again.
    pub resend_queued: usize,
    /// Packets held for a possible resend.
    pub held_packets: usize,
    /// Inner packets taken from the TUN.
    pub packets_in: u64,
    /// Inner packets bound to a path for the first time.
    pub packets_sent: u64,
    /// Packets sent again.
    pub resent: u64,
    /// Copies sent ahead of a suspicion.
    pub copied: u64,
    /// Copies sent because the mode is `broadcast`.
    pub broadcast: u64,
    /// Datagrams that carried a part of a packet too long for their path.
    pub fragments: u64,
    /// Packets that went along in the datagram of another one that left at the same moment.
    #[serde(default)]
    pub bundled: u64,
    /// Largest inner packet that crosses every live path in one datagram, bytes; 0 without a path.
    pub packet_max: usize,
    /// Packets sent in blocks with parity.
    pub protected: u64,
    /// Parity datagrams sent.
    pub parity_sent: u64,
    /// Parity per protected packet now; 0 while nothing is protected.
    pub redundancy: f64,
    /// Lost packets that were not sent again because the receiver had enough of their block to rebuild them.
    pub rebuilt: u64,
    /// Copies sent at once with a packet, by a duplication mode.
    pub duplicated: u64,
    /// Packets that arrived and are held no longer. `packets_sent` is this, `given_up` and
    /// `held_packets` together, at any time.
    pub packets_arrived: u64,
    /// Packets given up: all copies lost, and too old or too often sent for another. One may still
    /// arrive late.
    pub given_up: u64,
    /// Dropped by CoDel.
    pub dropped_codel: u64,
    /// Marked by CoDel.
    pub marked: u64,
    /// Dropped because the ingress was full.
    pub dropped_overflow: u64,
    /// Packets dropped because they had waited while there was no path.
    pub dropped_stale: u64,
    /// Refused: not an IP packet, or larger than any path can carry.
    pub dropped_invalid: u64,
    /// Reports taken.
    pub reports: u64,
}

/// The receiving half of a session.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ReceiverSnapshot {
    /// Inner packets handed on.
    pub delivered: u64,
    /// Inner bytes handed on.
    pub delivered_bytes: u64,
    /// Copies dropped.
    pub duplicates: u64,
    /// Packets that came after their gap had been given up, handed on all the same.
    pub late: u64,
    /// Packets dropped because they came so far behind their lane that they cannot be told from copies.
    pub too_old: u64,
    /// Gaps given up at their deadline.
    pub timed_out: u64,
    /// Sequences the sender said it will not send.
    pub skipped: u64,
    /// Times that a lane was held back to let its connection's window grow.
    pub pauses: u64,
    /// Acknowledgements of unfilled flows that were held for the usual round trip.
    pub acks_held: u64,
    /// Packets put together from fragments.
    pub reassembled: u64,
    /// Packets whose fragments did not all come in time.
    pub reassembly_failed: u64,
    /// Packets held now.
    pub held_packets: usize,
    /// Bytes held now.
    pub held_bytes: usize,
    /// Most bytes ever held.
    pub held_bytes_max: usize,
    /// Gaps released because memory was short.
    pub evicted: u64,
    /// Current allowance of a gap, ms.
    pub hold_ms: f64,
    /// Parity datagrams taken.
    pub parity_received: u64,
    /// Packets rebuilt from parity and handed on.
    pub fec_recovered: u64,
    /// Packets of blocks that ended with too few shards to rebuild them, or in a codec that failed.
    pub fec_failed: u64,
    /// Parity datagrams refused: malformed, or at odds with their block.
    pub fec_refused: u64,
    /// Reports built.
    pub reports: u64,
}
