//! Neighbours: TCP connections past the tunnel that share one way of a link with the bond.
//!
//! Their data waits in the same queue in front of the same rate, meets the same loss and takes the same delay. Their
//! acknowledgements come back after what is left of their own round-trip time, without a queue.

use std::collections::VecDeque;
use std::time::Duration;

use mwb_proto::time::Time;

use super::Scenario;
use super::report::RivalReport;
use crate::tcp_model::{Segment, SenderOptions, TcpReceiver, TcpSender, Transport};
use crate::wan::Way;

/// Bytes of the IPv4 and TCP headers, time stamps included.
const HEADERS: usize = 52;
/// One step of the goodput series.
const SERIES_STEP: Duration = Duration::from_millis(100);

/// A neighbour's TCP connection.
#[derive(Clone, Copy, Debug)]
pub struct RivalSpec {
    /// Index of the link that it shares.
    pub link: usize,
    /// Which way its data goes.
    pub way: Way,
    /// Its round-trip time without a queue; the link's delay at the least.
    pub rtt: Duration,
    /// When it opens.
    pub start: Duration,
    /// When its application vanishes; `None` never.
    pub stop: Option<Duration>,
    /// How it answers loss and congestion.
    pub transport: Transport,
}

impl RivalSpec {
    /// A download with CUBIC over `link` from `start` to `stop`, with a round trip of `rtt`.
    pub fn cubic(link: usize, rtt: Duration, start: Duration, stop: Option<Duration>) -> Self {
        Self { link, way: Way::Down, rtt, start, stop, transport: Transport::Cubic }
    }
}

/// A segment for a link.
#[derive(Debug)]
pub(super) struct FromRival {
    pub(super) rival: usize,
    pub(super) segment: Segment,
}

impl FromRival {
    /// Bytes of its IP packet.
    pub(super) fn bytes(&self) -> usize {
        HEADERS + self.segment.payload_len
    }
}

#[derive(Debug)]
struct Rival {
    spec: RivalSpec,
    /// What the way back takes.
    back: Duration,
    sender: TcpSender,
    receiver: TcpReceiver,
    returning: VecDeque<(Time, Segment)>,
    series: Vec<u64>,
    open: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Rivals {
    rivals: Vec<Rival>,
}

impl Rivals {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let rivals = scenario.rivals.iter().map(|&spec| {
            let link = &scenario.links[spec.link];
            let delay = if spec.way == Way::Up { link.up.delay } else { link.down.delay };
            let options = SenderOptions { transport: spec.transport, ..SenderOptions::default() };
            Rival {
                back: spec.rtt.saturating_sub(delay),
                sender: TcpSender::new(options),
                receiver: TcpReceiver::new(),
                returning: VecDeque::new(),
                series: Vec::new(),
                open: false,
                spec,
            }
        });
        Self { rivals: rivals.collect() }
    }

    /// Opens, closes and takes acknowledgements that are due.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        for rival in &mut self.rivals {
            rival.open = now >= rival.start() && rival.stop().is_none_or(|stop| now < stop);
            if !rival.open {
                rival.returning.clear();
                continue;
            }
            while rival.returning.front().is_some_and(|(due, _)| *due <= now) {
                if let Some((_, segment)) = rival.returning.pop_front() {
                    rival.sender.handle(&segment, now);
                }
            }
            rival.sender.handle_timeout(now);
            rival.receiver.handle_timeout(now);
            rival.answer(now);
        }
    }

    /// The next segment, the link and the way that it takes.
    pub(super) fn poll(&mut self, now: Time) -> Option<(usize, Way, FromRival)> {
        self.rivals.iter_mut().enumerate().filter(|(_, rival)| rival.open).find_map(|(index, rival)| {
            let segment = rival.sender.poll(now)?;
            Some((rival.spec.link, rival.spec.way, FromRival { rival: index, segment }))
        })
    }

    /// Takes a segment that came through its link.
    pub(super) fn deliver(&mut self, from: &FromRival, now: Time) {
        let rival = &mut self.rivals[from.rival];
        if !rival.open {
            return;
        }
        let before = rival.receiver.stats().delivered;
        rival.receiver.handle(&from.segment, now);
        let step = (now.as_nanos() / SERIES_STEP.as_nanos() as u64) as usize;
        if rival.series.len() <= step {
            rival.series.resize(step + 1, 0);
        }
        rival.series[step] += rival.receiver.stats().delivered - before;
        rival.answer(now);
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        self.rivals.iter().filter_map(Rival::poll_timeout).min()
    }

    /// Congestion windows of those that are open on a way, segments.
    pub(super) fn windows(&self, way: Way) -> Vec<f64> {
        let open = self.rivals.iter().filter(|rival| rival.open && rival.spec.way == way);
        open.map(|rival| rival.sender.cwnd()).collect()
    }

    pub(super) fn reports(&self, warmup: Duration, end: Time) -> Vec<RivalReport> {
        self.rivals.iter().map(|rival| rival.report(warmup, end)).collect()
    }
}

impl Rival {
    fn start(&self) -> Time {
        Time::ZERO + self.spec.start
    }

    fn stop(&self) -> Option<Time> {
        self.spec.stop.map(|stop| Time::ZERO + stop)
    }

    fn answer(&mut self, now: Time) {
        while let Some(segment) = self.receiver.poll() {
            self.returning.push_back((now + self.back, segment));
        }
    }

    fn poll_timeout(&self) -> Option<Time> {
        if !self.open {
            return self.series.is_empty().then(|| self.start());
        }
        let returning = self.returning.front().map(|(due, _)| *due);
        let timers = [self.sender.poll_timeout(), self.receiver.poll_timeout(), returning, self.stop()];
        timers.into_iter().flatten().min()
    }

    fn report(&self, warmup: Duration, end: Time) -> RivalReport {
        let from = self.start().max(Time::ZERO + warmup);
        let until = self.stop().map_or(end, |stop| stop.min(end));
        let first = (from.as_nanos() / SERIES_STEP.as_nanos() as u64) as usize;
        let bytes: u64 = self.series.iter().skip(first).sum();
        let seconds = until.since(from).as_secs_f64();
        RivalReport {
            link: self.spec.link,
            way: self.spec.way,
            goodput_mbit: if seconds > 0.0 { bytes as f64 * 8e-6 / seconds } else { 0.0 },
            series: self.series.clone(),
            sender: self.sender.stats(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtual_time::Agenda;
    use crate::wan::{Direction, DirectionSpec, LinkSpec};

    /// Two connections of the same round trip share a link about evenly, and what one leaves the other takes.
    #[test]
    fn two_neighbours_share_a_link_and_one_inherits_it() {
        let spec = DirectionSpec::mbit(20.0).delay_ms(10);
        let mut scenario = Scenario::new(vec![LinkSpec::symmetric("a", spec.clone())]);
        let (rtt, seconds) = (Duration::from_millis(20), Duration::from_secs(1));
        scenario.rivals = vec![
            RivalSpec::cubic(0, rtt, Duration::ZERO, Some(30 * seconds)),
            RivalSpec::cubic(0, rtt, seconds, None),
        ];
        let mut rivals = Rivals::new(&scenario);
        let mut link: Direction<FromRival> = Direction::new(spec, 1, Time::ZERO);
        let mut agenda = Agenda::new(2);
        agenda.arm(0, Some(Time::ZERO));
        let end = Time::ZERO + 40 * seconds;
        while let Some((now, component)) = agenda.pop().filter(|(at, _)| *at < end) {
            if component == 0 {
                rivals.handle_timeout(now);
            }
            while let Some((from, ..)) = link.pop_due(now) {
                rivals.deliver(&from, now);
            }
            while let Some((_, _, from)) = rivals.poll(now) {
                let bytes = from.bytes();
                link.arrive(from, bytes, now);
            }
            agenda.arm(0, rivals.poll_timeout().map(|at| at.max(now)));
            agenda.arm(1, link.next_due().map(|at| at.max(now)));
        }
        let reports = rivals.reports(3 * seconds, end);
        let mbit = |rival: usize, from: usize, to: usize| {
            reports[rival].series[from * 10..to * 10].iter().sum::<u64>() as f64 * 8e-6 / (to - from) as f64
        };
        let (first, second) = (mbit(0, 5, 30), mbit(1, 5, 30));
        assert!(first + second > 18.0, "{first:.1} + {second:.1} of 20 Mbit/s");
        assert!(first < 2.0 * second && second < 2.0 * first, "{first:.1} and {second:.1} Mbit/s");
        assert!(mbit(1, 32, 40) > 17.0, "{:.1} Mbit/s alone", mbit(1, 32, 40));
        assert!(reports[0].series.len() <= 301, "the first one is gone");
    }
}
