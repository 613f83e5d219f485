//! One path inside the sender: its model, its pacing clock, what is in flight and its state.

use std::collections::VecDeque;
use std::time::Duration;

use crate::bond::arq::Key;
use crate::bond::batch::{BATCH_BYTES_MAX, BATCH_PACKETS_MAX, TxBatch, TxSegment};
use crate::bond::sender::bundle::OpenDatagram;
use crate::bond::sender::guard::Conduct;
use crate::bond::sender::mode::Load;
use crate::bond::sender::random_loss::RandomLoss;
use crate::bond::sender::train::Train;
use crate::bond::snapshot::PathState;
use crate::path::delay::{DelayModel, DelaySample, STAMP_UNIT_SECS, Unwrap};
use crate::path::flight::{Flight, Milestone, Resolution};
use crate::path::mtu::PathMtu;
use crate::path::rate::{Phase, RateControl, RateSample};
use crate::time::{Stamp, Time};
use crate::wire::v2::{CLEAR_LEN, Class, Clear, Flags, FrameType, TAG_LEN};
use crate::wire::{Fragment, Heartbeat, PathId, PathReport, SkipRun};

/// IPv4 and UDP headers, what the link carries beyond the datagram.
pub(crate) const OUTER_HEADERS: usize = 28;
/// Late wake-ups are forgiven up to this much: the pacing clock never lags further behind.
const CREDIT: Duration = Duration::from_millis(2);
/// Control runs at most this often, seconds.
const CONTROL_EVERY: f64 = 0.004;
/// A batch holds at most this much of its path's time, seconds.
const BATCH_SECS: f64 = 0.004;
/// A path that is less behind those in use, seconds, joins them without a trial.
const BEHIND: f64 = 0.010;
/// Copies that a path gets to show its rate while it is parked or waits for its admission: 3 MB of full packets.
const TRIAL_COPIES: u32 = 2000;
/// Bytes that have passed the bottleneck per byte that arrived, at the most: of chance loss beyond 15 % nobody could
/// make use.
const CHANCE_LOSS_MAX: f64 = 1.0 / 0.85;
/// So many packets more may have been lost by chance in any span.
const CHANCE_PACKETS: f64 = 1.0;
/// A path that was away longer than this comes back through admission.
const AWAY_LONG: Duration = Duration::from_millis(700);

/// What the shell knows of a path when it adds it.
#[derive(Debug, Clone, PartialEq)]
pub struct PathSetup {
    /// The peer's receiver index, written into every clear header.
    pub receiver: u32,
    /// First path sequence; none below it may have been used under the path's key.
    pub first_path_seq: u64,
    /// Largest datagram (UDP payload) of interest, bytes; whether the path carries it is found out.
    pub datagram_max: usize,
    /// Configured ceiling of the rate, bit/s.
    pub rate_max: Option<u64>,
    /// Configured weight, for the weighted modes.
    pub weight: u32,
    /// Whether the peer opens bundles.
    pub bundles: bool,
}

/// What a datagram carried.
#[derive(Debug, Default)]
pub(crate) enum Content {
    Data(Key),
    /// Several packets.
    Bundle(Vec<Key>),
    /// One of a packet's fragments, and in which of its sendings.
    Part(Key, Fragment, u8),
    /// A trial of this many bytes of datagram.
    Probe(u16),
    /// A copy whose loss alone is no reason to send the packet again.
    Copy(Key),
    Skip(Box<[SkipRun]>, u8),
    /// Parity of the block of this number.
    Parity(u64),
    /// Reports and heartbeats: the next one replaces a lost one.
    #[default]
    Other,
}

/// A rate measuring point: arrival of a milestone in the receiver's clock.
#[derive(Debug, Clone, Copy)]
struct Point {
    arrival: f64,
    milestone: Milestone,
    /// The receiver's count of UDP payload bytes, modulo 2^32.
    received: u32,
}

/// What the model allows until the next report.
#[derive(Debug, Default)]
struct Limits {
    /// Bytes in flight.
    in_flight_max: f64,
    /// Seconds above the delay base from which the path counts as stuck.
    stuck_above: f64,
}

#[derive(Debug)]
pub(crate) struct PathSender {
    pub(crate) id: PathId,
    pub(crate) setup: PathSetup,
    pub(crate) delay: DelayModel,
    pub(crate) rate: RateControl,
    pub(crate) mtu: PathMtu,
    pub(crate) flight: Flight<Content>,
    pub(crate) state: PathState,
    pub(crate) since: Time,
    /// Pacing clock: the wire is booked until then.
    pub(crate) free_at: Time,
    /// Filled up to the limit; opens again when half of it has drained.
    closed: bool,
    /// Had nothing to send since its last datagram: the next one follows a gap.
    pub(crate) dry: bool,
    pub(crate) parked: bool,
    /// Copies that may still be sent to learn what the path can do while nothing depends on it.
    pub(crate) trial_left: u32,
    pub(crate) admitted: bool,
    /// While it is not: its delay beyond that of the farthest path in use, seconds.
    pub(crate) behind: f64,
    /// Multiplies the silence margin; learned from stalls that were no deaths.
    pub(crate) patience: f64,
    /// How late the oldest unseen datagram is, seconds.
    pub(crate) lateness: f64,
    pub(crate) batch: TxBatch,
    pub(super) open: Option<OpenDatagram>,
    pub(crate) last_sent: Time,
    pub(crate) tail_probed: bool,
    pub(crate) load: Load,
    /// Round robin: number of the turn in which it is next.
    pub(crate) turn: u64,
    limits: Limits,
    owd: Unwrap,
    last_owd: Option<(Stamp, f64)>,
    points: VecDeque<Point>,
    last_control: f64,
    last_sample: Option<RateSample>,
    trial_acks: u64,
    trial_reports: u32,
    pub(crate) rtt: Option<Duration>,
    pub(crate) ping_at: Time,
    pub(crate) ping_id: u16,
    pub(crate) lost: u64,
    pub(crate) acked: u64,
    pub(crate) spurious: u64,
    pub(crate) suspicions: u64,
    pub(crate) black_holes: u64,
    pub(crate) random: RandomLoss,
    pub(super) conduct: Conduct,
    pub(super) train: Train,
    /// Parity datagrams sent.
    pub(crate) parity: u64,
    /// Copies sent at once with the packet on another path.
    pub(crate) duplicates: u64,
    /// Wire bytes of reports.
    pub(crate) report_bytes: u64,
    /// Wire bytes of heartbeats, probes of sizes among them.
    pub(crate) heartbeat_bytes: u64,
}

impl PathSender {
    pub(crate) fn new(id: PathId, setup: PathSetup, now: Time) -> Self {
        let cap = setup.rate_max.map(|r| r as f64);
        let mut path = Self {
            id,
            delay: DelayModel::new(),
            rate: RateControl::new(cap, now),
            mtu: PathMtu::new(setup.datagram_max),
            flight: Flight::new(setup.first_path_seq),
            state: PathState::Starting,
            since: now,
            free_at: now,
            closed: false,
            dry: true,
            parked: false,
            trial_left: TRIAL_COPIES,
            admitted: true,
            behind: f64::INFINITY,
            patience: 1.0,
            lateness: 0.0,
            batch: TxBatch::new(),
            open: None,
            last_sent: Time::ZERO,
            tail_probed: true,
            load: Load::default(),
            turn: 0,
            limits: Limits::default(),
            owd: Unwrap::default(),
            last_owd: None,
            points: VecDeque::new(),
            last_control: 0.0,
            last_sample: None,
            trial_acks: 0,
            trial_reports: 0,
            rtt: None,
            ping_at: now,
            ping_id: 0,
            lost: 0,
            acked: 0,
            spurious: 0,
            suspicions: 0,
            black_holes: 0,
            random: RandomLoss::default(),
            conduct: Conduct::default(),
            train: Train::default(),
            parity: 0,
            duplicates: 0,
            report_bytes: 0,
            heartbeat_bytes: 0,
            setup,
        };
        path.flight.set_large((path.mtu.large() + OUTER_HEADERS) as u32);
        path.update_limits(now);
        path
    }

    /// Takes what a report said, for the size of datagrams; probes are no evidence of anything else. Gives how many
    /// were lost for another reason than their size.
    pub(crate) fn on_sizes(&mut self, out: &mut Resolution<Content>, now: Time) -> u64 {
        let Self { mtu, .. } = self;
        let mut take = |contents: &mut Vec<Content>, arrived: bool| {
            let mut probes = 0;
            contents.retain(|content| {
                let Content::Probe(size) = content else { return true };
                mtu.on_probe(usize::from(*size), arrived, now);
                probes += 1;
                false
            });
            probes
        };
        let arrived = take(&mut out.acked, true);
        let lost = take(&mut out.lost, false);
        out.lost_packets -= lost;
        out.large_acked = out.large_acked.saturating_sub(arrived);
        out.large_lost = out.large_lost.saturating_sub(lost);
        let small = out.acked_packets.saturating_sub(out.large_acked);
        if self.mtu.on_fate(out.large_acked, out.large_lost, small, now) {
            self.black_holes += 1;
            self.rate.pardon_losses(now);
        }
        // Of those that had left before that was known.
        let too_long = if self.mtu.current() <= self.mtu.large() { out.large_lost } else { 0 };
        out.lost_packets.saturating_sub(too_long)
    }

    /// Bits of one full packet on the wire.
    pub(crate) fn packet_bits(&self) -> f64 {
        ((self.setup.datagram_max + OUTER_HEADERS) * 8) as f64
    }

    pub(crate) fn is_live(&self) -> bool {
        matches!(self.state, PathState::Up | PathState::Starting)
    }

    /// Predicted arrival of `bytes` more, seconds on the session's relative scale.
    pub(crate) fn arrival(&self, bytes: usize, now: Time) -> f64 {
        self.free_at.max(now).as_secs_f64()
            + (bytes * 8) as f64 / self.rate.rate()
            + self.delay.smoothed()
            + self.delay.deviation()
    }

    /// Delay of the path with its deviation, seconds: half of the feedback's when nothing else is known, because
    /// one-way delays are only known relative to each other.
    pub(crate) fn transit(&self) -> f64 {
        self.delay.feedback() / 2.0 + self.delay.deviation()
    }

    /// Takes the fates of a report into the random loss, unless a queue may be what lost them.
    pub(crate) fn note_random_loss(&mut self, acked: u64, lost: u64, spurious: u64, now: Time) {
        let target = self.rate.target(&self.delay, self.packet_bits(), now);
        // A path that is given little never ends its startup; one that is given much overshoots in it.
        let overshoots = self.is_startup() && !self.last_sample.is_none_or(|s| s.app_limited);
        let calm = !overshoots && !self.is_stuck() && self.delay.queue() < 2.0 * target + 0.005;
        if calm {
            self.random.on_report(acked + spurious, lost.saturating_sub(spurious));
        }
    }

    /// Whether it could take bulk now, without the side effect of [`is_open`](Self::is_open).
    pub(crate) fn is_idle(&self, ahead: Duration, now: Time) -> bool {
        !self.closed && self.is_free(ahead, now) && self.has_room()
    }

    /// Whether the wire is booked no further than `ahead`.
    pub(crate) fn is_free(&self, ahead: Duration, now: Time) -> bool {
        self.free_at <= now + ahead && !self.batch_full()
    }

    /// As [`is_free`](Self::is_free) with a hysteresis of half of `ahead`, so that a path is filled
    /// in batches rather than packet by packet.
    pub(crate) fn is_open(&mut self, ahead: Duration, now: Time) -> bool {
        if self.closed && self.free_at <= now + ahead / 2 {
            self.closed = false;
        } else if !self.closed && self.free_at > now + ahead {
            self.closed = true;
        }
        !self.closed && !self.batch_full()
    }

    /// When a path that was closed by pacing opens again.
    pub(crate) fn opens_at(&self, ahead: Duration) -> Time {
        self.free_at.saturating_sub(if self.closed { ahead / 2 } else { ahead })
    }

    /// Whether one more packet, in as many datagrams as it may take, keeps the batch within its bounds.
    pub(crate) fn fits_batch(&self) -> bool {
        let parts = self.setup.datagram_max.div_ceil(self.mtu.current().max(1));
        self.batch.segments.len() + parts <= BATCH_PACKETS_MAX
            && self.batch.slab.len() + self.setup.datagram_max <= BATCH_BYTES_MAX
    }

    fn batch_full(&self) -> bool {
        let n = self.batch.segments.len();
        !self.fits_batch() || (n > 0 && (self.batch.slab.len() * 8) as f64 > BATCH_SECS * self.rate.rate())
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.flight.is_full() && (self.flight.bytes() as f64) < self.limits.in_flight_max
    }

    /// Seconds by which the resends of this path's losses hold up a lane on average: a feedback time for each, as long as
    /// no two are under way.
    pub(crate) fn holdup(&self) -> f64 {
        let feedback = self.delay.feedback_min();
        let losses = self.load.loss() * self.rate.rate() / self.packet_bits();
        (losses * feedback).min(1.0) * feedback
    }

    /// Whether it is parked, or waits for its admission, without anybody knowing its rate. What a train told is not enough where
    /// flows would have to bear a queue on a path that is behind theirs.
    pub(crate) fn is_on_trial(&self) -> bool {
        let known = self.rate.is_hint_exact();
        ((self.parked && !known) || (!self.admitted && (!known || self.behind >= BEHIND)))
            && self.trial_left > 0
            && self.is_startup()
            && self.state == PathState::Up
    }

    /// Whether what was sent seems to hang: feeding more would only add to it.
    pub(crate) fn is_stuck(&self) -> bool {
        self.delay.instant().max(self.lateness) > self.limits.stuck_above
    }

    /// Brings the limits up to date; they are asked for once per packet, and change with reports.
    pub(crate) fn update_limits(&mut self, now: Time) {
        let bits = self.packet_bits();
        let target = self.rate.target(&self.delay, bits, now);
        self.limits = Limits {
            in_flight_max: self.rate.in_flight_max(&self.delay, bits, now),
            stuck_above: (5.0 * target).max(0.025)
                + 1.5 * self.rate.borne_queue()
                + 2.0 * self.delay.deviation(),
        };
    }

    /// Appends one datagram to the path's batch: clear header, body, room for the tag.
    pub(crate) fn emit(
        &mut self,
        frame: FrameType,
        flags: Flags,
        class: Class,
        content: Content,
        now: Time,
        body: impl FnOnce(&mut Vec<u8>),
    ) {
        let slab = &mut self.batch.slab;
        let offset = slab.len();
        slab.resize(offset + CLEAR_LEN, 0);
        body(slab);
        slab.resize(slab.len() + TAG_LEN, 0);
        let len = slab.len() - offset;
        let wire = len + OUTER_HEADERS;
        match frame {
            FrameType::Ack => self.report_bytes += wire as u64,
            FrameType::Heartbeat => self.heartbeat_bytes += wire as u64,
            FrameType::Data
            | FrameType::Control
            | FrameType::Multicast
            | FrameType::Fec
            | FrameType::Skip
            | FrameType::Bundle => {}
        }
        let after_gap = self.dry && self.free_at < now;
        if after_gap {
            self.dry = false;
        }
        let path_seq = self.flight.push(now, wire as u32, content, after_gap);
        let receiver = self.setup.receiver;
        let clear = Clear { key_phase: false, frame, flags, class, receiver, path_seq_low: path_seq as u32 };
        let mut head = [0; CLEAR_LEN];
        clear.encode(&mut head);
        self.batch.slab[offset..offset + CLEAR_LEN].copy_from_slice(&head);
        self.batch.segments.push(TxSegment { offset: offset as u32, len: len as u16, path_seq });
        self.book(wire, now);
    }

    /// Books the wire for a datagram of `wire` bytes.
    pub(crate) fn book(&mut self, wire: usize, now: Time) {
        let start = self.free_at.max(now.saturating_sub(CREDIT));
        self.free_at = start + Duration::from_secs_f64((wire * 8) as f64 / self.rate.rate());
        self.last_sent = now;
        self.tail_probed = false;
        self.load.add(wire, now);
    }

    /// Takes a milestone and the delays of a report. `arrival` is when the highest datagram
    /// arrived, in the receiver's clock (seconds).
    /// `scale` unwraps delays on the session's common scale. Returns a new sample of the delivery rate, if there is one.
    pub(crate) fn on_progress(
        &mut self,
        report: &PathReport,
        milestone: Milestone,
        arrival: f64,
        scale: &Unwrap,
        now: Time,
    ) -> Option<RateSample> {
        if self.last_owd.is_none() {
            self.owd = scale.clone();
        }
        let unit = |v: u16| f64::from(v) * STAMP_UNIT_SECS;
        let min = self.owd.secs(report.owd_min);
        let highest = min + unit(report.owd_highest_excess);
        let raw = Stamp::new(report.owd_min.raw().wrapping_add(u32::from(report.owd_highest_excess)));
        self.last_owd = Some((raw, highest));
        self.delay.on_sample(
            now,
            DelaySample {
                min,
                mean: min + unit(report.owd_mean_excess),
                feedback: (now - milestone.at).as_secs_f64(),
            },
        );
        self.on_train(milestone, highest, now);
        self.points.push_back(Point { arrival, milestone, received: report.received_bytes });
        while self.points.len() > 2 && arrival - self.points[1].arrival > 0.25 {
            self.points.pop_front();
        }
        let t = now.as_secs_f64();
        if t - self.last_control < CONTROL_EVERY {
            return None;
        }
        let sample = self.rate_sample()?;
        self.last_control = t;
        self.last_sample = Some(sample);
        let packet_bits = self.packet_bits();
        self.rate.on_sample(sample, &mut self.delay, packet_bits, now);
        Some(sample)
    }

    fn rate_sample(&self) -> Option<RateSample> {
        let end = self.points.back()?;
        let span = self.delay.feedback_min().clamp(0.025, 0.100);
        let start = self
            .points
            .iter()
            .rev()
            .skip(1)
            .find(|p| end.arrival - p.arrival >= span)
            .or_else(|| self.points.front())?;
        let secs = end.arrival - start.arrival;
        if secs < 0.008 {
            return None;
        }
        let wire = (end.milestone.cumulative - start.milestone.cumulative) as f64;
        let headers = (end.milestone.seq - start.milestone.seq) as f64 * OUTER_HEADERS as f64;
        // Lost packets have passed a bottleneck that loses by chance, but no more of them than chance explains: the
        // rest was dropped before it, by a queue too short to show as delay.
        let sent = (wire - headers).max(1.0);
        let passed = f64::from(end.received.wrapping_sub(start.received)) * CHANCE_LOSS_MAX
            + CHANCE_PACKETS * self.setup.datagram_max as f64;
        let bits = wire * (passed / sent).min(1.0) * 8.0;
        Some(RateSample { rate: bits / secs, app_limited: end.milestone.gaps != start.milestone.gaps })
    }

    /// How late the oldest unseen datagram is at the report's time, seconds; negative while it may
    /// still be on its way.
    pub(crate) fn update_lateness(&mut self, report_time: Stamp) {
        self.lateness = match (self.flight.oldest_unseen(), self.last_owd) {
            (Some(sent), Some((raw, secs))) => {
                let waited = report_time.wrapping_sub(sent.stamp());
                let beyond_last = f64::from(waited.signed_since(raw)) * STAMP_UNIT_SECS;
                beyond_last + secs - self.delay.smoothed().max(secs)
            }
            _ => 0.0,
        };
    }

    /// What it can carry as far as is known, bit/s: a rate that dips for a moment does not count.
    pub(super) fn carries(&self) -> f64 {
        self.rate.rate().max(self.rate.capacity())
    }

    /// Least time between heartbeats: they do not take more than a hundredth of a thin path.
    pub(super) fn least_beat(&self) -> Duration {
        let bits = ((CLEAR_LEN + TAG_LEN + Heartbeat::LEN + OUTER_HEADERS) * 8) as f64;
        Duration::from_secs_f64(bits / (0.01 * self.rate.rate())).min(Duration::from_millis(50))
    }

    /// Leaves the live states: nothing but heartbeats until it proves itself.
    pub(crate) fn suspect(&mut self, now: Time) {
        self.state = PathState::Suspect;
        self.since = now;
        self.trial_acks = 0;
        self.trial_reports = 0;
        self.lateness = 0.0;
        self.suspicions += 1;
        self.dry = true;
    }

    /// Counts proof of life; true when the path is up again.
    pub(crate) fn on_proof(&mut self, acked: u64, now: Time) -> bool {
        self.trial_acks += acked;
        self.trial_reports += 1;
        if self.trial_acks < 2 && self.trial_reports < 3 {
            return false;
        }
        let away = now - self.since;
        if self.state == PathState::Starting {
            self.state = PathState::Up;
            self.since = now;
            return true;
        }
        if away < AWAY_LONG {
            self.patience = (self.patience * 1.5).min(5.0);
            self.rate.resume();
        } else {
            if self.is_startup() {
                // Nobody has found out before what it can do.
                self.train = Train::Waiting;
            }
            self.rate.restart(now);
            self.admitted = false;
            self.trial_left = self.trial_left.max(TRIAL_COPIES / 4);
        }
        self.points.clear();
        self.state = PathState::Up;
        self.since = now;
        self.free_at = self.free_at.max(now);
        true
    }

    pub(crate) fn last_sample(&self) -> Option<RateSample> {
        self.last_sample
    }

    pub(crate) fn is_startup(&self) -> bool {
        self.rate.phase() == Phase::Startup
    }
}
