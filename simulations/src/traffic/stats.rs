//! What a receiver writes down about deliveries, and what comes of it.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Width of a bin of goodput.
pub(super) const BIN: Duration = Duration::from_millis(100);
/// More bins than this are not kept: a flow of an hour.
const BINS_MAX: usize = 36_000;

/// A silence between two deliveries to the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// When it began, in milliseconds from the start of the flow.
    pub at_ms: f64,
    /// How long it was, in milliseconds.
    pub ms: f64,
}

/// Gaps shorter than this are not listed.
const LISTED_GAP: Duration = Duration::from_millis(50);
const LISTED_MAX: usize = 1000;

/// Deliveries as they happen.
#[derive(Debug)]
pub(super) struct Deliveries {
    start: Instant,
    last: Option<Instant>,
    bins: Vec<u64>,
    bytes: u64,
    longest: Gap,
    gaps: Vec<Gap>,
}

impl Deliveries {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, last: None, bins: Vec::new(), bytes: 0, longest: Gap::default(), gaps: Vec::new() }
    }

    /// `bytes` reached the application at `now`.
    pub(super) fn record(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes as u64;
        let bin = (now.duration_since(self.start).as_millis() / BIN.as_millis()) as usize;
        let bin = bin.min(BINS_MAX - 1);
        if bin >= self.bins.len() {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += bytes as u64;
        self.gap_until(now);
        self.last = Some(now);
    }

    /// Nothing came until `now`: at the end of a flow that stalled, so that the stall is seen.
    pub(super) fn gap_until(&mut self, now: Instant) {
        let Some(last) = self.last else { return };
        let length = now.duration_since(last);
        let gap = Gap {
            at_ms: last.duration_since(self.start).as_secs_f64() * 1e3,
            ms: length.as_secs_f64() * 1e3,
        };
        if gap.ms > self.longest.ms {
            self.longest = gap;
        }
        if length >= LISTED_GAP && self.gaps.len() < LISTED_MAX {
            self.gaps.push(gap);
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Seconds from the start to the last delivery.
    fn seconds(&self) -> f64 {
        self.last.map_or(0.0, |last| last.duration_since(self.start).as_secs_f64())
    }

    /// The receiver's part of a result.
    pub(super) fn finish(self, checksum_ok: bool) -> FlowResult {
        FlowResult {
            total_bytes: self.bytes,
            seconds: self.seconds(),
            window_s: None,
            bytes_per_100ms: self.bins,
            longest_gap: self.longest,
            gaps: self.gaps,
            checksum_ok,
            receiver_congestion_control: String::new(),
            sender: SenderReport::default(),
            failure: None,
        }
    }
}

/// What the sender knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SenderReport {
    /// The congestion control of its socket, read back.
    pub congestion_control: String,
    /// Why it is not the one asked for, if so.
    pub congestion_control_refused: Option<String>,
    /// Payload bytes given to the socket.
    pub bytes: u64,
    /// Segments sent again, from TCP_INFO; of a Multipath TCP connection those of the first subflow.
    pub retransmits: u32,
    /// Subflows at the end; `None` of a plain TCP connection, also when Multipath TCP was asked for in vain.
    pub subflows: Option<u32>,
    /// Smoothed round-trip time at the end in milliseconds, from TCP_INFO.
    pub rtt_ms: f64,
}

/// A TCP flow as its receiver saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowResult {
    /// Payload bytes delivered to the application.
    pub total_bytes: u64,
    /// From the request to the last delivery.
    pub seconds: f64,
    /// The time the flow was meant to last, if it was bounded by time.
    pub window_s: Option<f64>,
    /// Payload bytes per 100 ms since the request.
    pub bytes_per_100ms: Vec<u64>,
    /// The longest silence between two deliveries, a stall at the end included.
    pub longest_gap: Gap,
    /// All silences of 50 ms or more.
    pub gaps: Vec<Gap>,
    /// Whether every byte was the right one.
    pub checksum_ok: bool,
    /// The congestion control of the receiving socket, read back.
    pub receiver_congestion_control: String,
    /// What the sender reports; default when the flow failed.
    pub sender: SenderReport,
    /// Why the flow did not come to its end, if so. What was measured until then stands.
    pub failure: Option<String>,
}

impl FlowResult {
    /// Whether all came, as it was sent.
    pub fn complete(&self) -> bool {
        self.failure.is_none() && self.checksum_ok && self.total_bytes == self.sender.bytes
    }

    /// The congestion control of the sender, read back: the one that decides.
    pub fn congestion_control(&self) -> &str {
        &self.sender.congestion_control
    }

    /// Mean Mbit/s of payload without the first `skip`, up to the end of the flow's time, or to the
    /// last delivery if it was bounded by bytes. Zero if nothing is left.
    pub fn goodput_mbit(&self, skip: Duration) -> f64 {
        let end = self.window_s.unwrap_or(self.seconds);
        let first = (skip.as_secs_f64() / BIN.as_secs_f64()).round() as usize;
        let last = (end / BIN.as_secs_f64()).ceil() as usize;
        self.mbit(first, last, end - first as f64 * BIN.as_secs_f64())
    }

    /// Mean Mbit/s of payload from `from` to `to`, both counted from the request and rounded to 100 ms. Zero
    /// if nothing is in between.
    pub fn goodput_mbit_between(&self, from: Duration, to: Duration) -> f64 {
        let [first, last] = [from, to].map(|at| (at.as_secs_f64() / BIN.as_secs_f64()).round() as usize);
        self.mbit(first, last, last.saturating_sub(first) as f64 * BIN.as_secs_f64())
    }

    /// What came in the bins from `first` to before `last`, over `seconds`.
    fn mbit(&self, first: usize, last: usize, seconds: f64) -> f64 {
        let bytes: u64 = self.bytes_per_100ms.iter().take(last).skip(first).sum();
        if seconds <= 0.0 { 0.0 } else { bytes as f64 * 8.0 / 1e6 / seconds }
    }

    /// The longest silence in milliseconds.
    pub fn longest_gap_ms(&self) -> f64 {
        self.longest_gap.ms
    }

    /// The longest silence in milliseconds that lasted beyond `since`, counted from the request.
    pub fn longest_gap_ms_after(&self, since: Duration) -> f64 {
        let since = since.as_secs_f64() * 1e3;
        let after = self.gaps.iter().filter(|gap| gap.at_ms + gap.ms > since);
        after.map(|gap| gap.ms).fold(0.0, f64::max)
    }

    /// The longest silence in milliseconds that lasted beyond `from` and began before `to`, both counted from the
    /// request; zero if none reached 50 ms.
    pub fn longest_gap_ms_between(&self, from: Duration, to: Duration) -> f64 {
        let [from, to] = [from, to].map(|at| at.as_secs_f64() * 1e3);
        let within = self.gaps.iter().filter(|gap| gap.at_ms + gap.ms > from && gap.at_ms < to);
        within.map(|gap| gap.ms).fold(0.0, f64::max)
    }

    /// Segments sent again.
    pub fn retransmits(&self) -> u32 {
        self.sender.retransmits
    }
}

/// The value below which the share `quantile` of the sorted values lies.
pub(super) fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_gaps_and_goodput() {
        let start = Instant::now();
        let mut deliveries = Deliveries::new(start);
        for i in 0..40u64 {
            // 125,000 bytes each 100 ms are 10 Mbit/s; the second second is silent.
            if !(10..20).contains(&i) {
                deliveries.record(125_000, start + Duration::from_millis(i * 100 + 50));
            }
        }
        deliveries.gap_until(start + Duration::from_millis(4000));
        let mut result = deliveries.finish(true);
        assert_eq!(result.total_bytes, 30 * 125_000);
        assert_eq!(result.longest_gap, Gap { at_ms: 950.0, ms: 1100.0 });
        assert_eq!(result.longest_gap_ms_after(Duration::from_secs(3)), 100.0);
        let between =
            |from, to| result.longest_gap_ms_between(Duration::from_millis(from), Duration::from_millis(to));
        assert_eq!((between(1000, 1500), between(2040, 3000), between(2100, 2120)), (1100.0, 1100.0, 100.0));
        assert_eq!(between(0, 10), 0.0);
        result.window_s = Some(4.0);
        assert!((result.goodput_mbit(Duration::ZERO) - 7.5).abs() < 1e-9);
        assert!((result.goodput_mbit(Duration::from_secs(2)) - 10.0).abs() < 1e-9);
        assert_eq!(result.goodput_mbit(Duration::from_secs(4)), 0.0);
        let between =
            |from, to| result.goodput_mbit_between(Duration::from_secs(from), Duration::from_secs(to));
        assert!((between(0, 1) - 10.0).abs() < 1e-9 && (between(0, 2) - 5.0).abs() < 1e-9);
        assert_eq!((between(1, 2), between(3, 1)), (0.0, 0.0));
        result.sender.bytes = 30 * 125_000;
        assert!(result.complete());
    }

    #[test]
    fn quantiles_of_few_values() {
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.99), 4.0);
    }
}
