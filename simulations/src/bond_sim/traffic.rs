//! The hosts behind both ends: TCP connections and the echo, as inner packets.

use std::net::Ipv4Addr;
use std::time::Duration;

use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::packet::{self, PROTO_UDP};
use mwb_proto::time::Time;
use rand::Rng;
use rand::rngs::SmallRng;

use super::invariant::Ledger;
use super::report::{EchoReport, FlowReport};
use super::{EchoSpec, FlowSpec, Scenario, Side};
use crate::tcp_model::{Segment, SenderOptions, TcpReceiver, TcpSender, Transport, Tuple, quic};
use crate::wan::Way;

/// Ports of sending sides: this plus the number of the flow.
const SENDER_PORT: u16 = 5000;
/// Ports of receiving sides.
const RECEIVER_PORT: u16 = 40_000;
/// Port of the echo.
const ECHO_PORT: u16 = 7007;
/// One step of the goodput series.
const SERIES_STEP: Duration = Duration::from_millis(100);
/// Echoes not back after this count as lost, so the last packets of a run do not count.
const ECHO_PATIENCE: Duration = Duration::from_secs(1);
/// Larger packets of QUIC go through a lane, as the classifier says.
const QUIC_BULK_LEN: usize = 600;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// The address of the host behind a side.
fn address(side: Side) -> Ipv4Addr {
    match side {
        Side::Edge => Ipv4Addr::new(10, 77, 0, 2),
        Side::Exit => Ipv4Addr::new(203, 0, 113, 9),
    }
}

#[derive(Debug)]
struct Flow {
    spec: FlowSpec,
    sender: TcpSender,
    receiver: TcpReceiver,
    tuple: Tuple,
    open: bool,
    /// When the application got something, and how much, per step and the last time.
    series: Vec<u64>,
    last_delivery: Option<Time>,
    done_at: Option<Time>,
    gaps: Vec<(Time, Duration)>,
}

impl Flow {
    /// The side that sends data.
    fn from(&self) -> Side {
        match self.spec.way {
            Way::Up => Side::Edge,
            Way::Down => Side::Exit,
        }
    }

    fn start(&self) -> Time {
        Time::ZERO + self.spec.start
    }

    fn record(&mut self, bytes: u64, now: Time) {
        let step = (now.as_nanos() / SERIES_STEP.as_nanos() as u64) as usize;
        if self.series.len() <= step {
            self.series.resize(step + 1, 0);
        }
        self.series[step] += bytes;
        let gap = now - self.last_delivery.unwrap_or_else(|| self.start());
        // Only the long ones can be the longest.
        if gap > Duration::from_millis(10) {
            self.gaps.push((now, gap));
        }
        self.last_delivery = Some(now);
        if Some(self.receiver.stats().delivered) == self.spec.bytes {
            self.done_at = Some(now);
        }
    }
}

#[derive(Debug)]
struct Echo {
    spec: EchoSpec,
    next_at: Time,
    sent: Vec<Time>,
    answered: u32,
    /// Numbers to send back.
    pending: Vec<u32>,
    /// Arrival and round-trip time of answers.
    samples: Vec<(Time, Time, Duration)>,
}

/// All hosts' traffic.
#[derive(Debug)]
pub(super) struct Traffic {
    flows: Vec<Flow>,
    echo: Option<Echo>,
    pool: BufPool,
}

impl Traffic {
    pub(super) fn new(scenario: &Scenario, pool: BufPool, rng: &mut SmallRng) -> Self {
        let flows = scenario.flows.iter().enumerate().map(|(i, &spec)| {
            let options = SenderOptions {
                bytes: spec.bytes,
                ecn: spec.ecn,
                isn: rng.random(),
                transport: spec.transport,
                ..SenderOptions::default()
            };
            let (from, to) = match spec.way {
                Way::Up => (Side::Edge, Side::Exit),
                Way::Down => (Side::Exit, Side::Edge),
            };
            Flow {
                sender: TcpSender::new(options),
                receiver: TcpReceiver::new(),
                tuple: Tuple {
                    source: (address(from), SENDER_PORT + i as u16),
                    destination: (address(to), RECEIVER_PORT + i as u16),
                },
                open: false,
                series: Vec::new(),
                last_delivery: None,
                done_at: None,
                gaps: Vec::new(),
                spec,
            }
        });
        let echo = scenario.echo.map(|spec| Echo {
            next_at: Time::ZERO + spec.start,
            sent: Vec::new(),
            answered: 0,
            pending: Vec::new(),
            samples: Vec::new(),
            spec,
        });
        Self { flows: flows.collect(), echo, pool }
    }

    /// The streams in the order of the ledger: data and acknowledgements of each flow, echo requests and answers.
    pub(super) fn streams(&self) -> Vec<(Side, String)> {
        let flows = self.flows.iter().enumerate().flat_map(|(i, flow)| {
            let from = flow.from();
            [(from, format!("flow {i} data")), (from.peer(), format!("flow {i} ACKs"))]
        });
        let echo = [(Side::Edge, "echo requests".to_owned()), (Side::Exit, "echo answers".to_owned())];
        flows.chain(echo).collect()
    }

    /// Takes an inner packet that came out at `side`.
    pub(super) fn deliver(&mut self, side: Side, bytes: &[u8], now: Time, ledger: &mut Ledger) {
        let unwrapped = quic::unwrap(bytes);
        if unwrapped.is_none() && bytes.get(9) == Some(&PROTO_UDP) {
            return self.deliver_echo(side, bytes, now, ledger);
        }
        // Small packets of QUIC are handed on as they come.
        let ordered = unwrapped.is_none() || bytes.len() > QUIC_BULK_LEN;
        let Some((tuple, segment)) = Segment::decode(unwrapped.as_deref().unwrap_or(bytes)) else {
            return ledger.unknown(side, now);
        };
        let to_receiver = tuple.destination.1 >= RECEIVER_PORT;
        let base = if to_receiver { RECEIVER_PORT } else { SENDER_PORT };
        let index = usize::from(tuple.destination.1.wrapping_sub(base));
        let Some(flow) = self.flows.get_mut(index) else { return ledger.unknown(side, now) };
        let expected = if to_receiver { flow.tuple } else { flow.tuple.reversed() };
        if tuple != expected || tuple.destination.0 != address(side) {
            return ledger.unknown(side, now);
        }
        let stream = 2 * index + usize::from(!to_receiver);
        ledger.deliver(stream, segment.tsval, ordered && segment.payload_len > 0, now);
        if to_receiver {
            let before = flow.receiver.stats().delivered;
            flow.receiver.handle(&segment, now);
            let got = flow.receiver.stats().delivered - before;
            if got > 0 {
                flow.record(got, now);
            }
        } else {
            flow.sender.handle(&segment, now);
        }
    }

    fn deliver_echo(&mut self, side: Side, bytes: &[u8], now: Time, ledger: &mut Ledger) {
        let number = bytes.get(IP_HEADER + UDP_HEADER..).and_then(|payload| payload.first_chunk::<4>());
        let (Some(number), Some(echo)) = (number, &mut self.echo) else { return ledger.unknown(side, now) };
        if bytes.len() != echo.spec.size || packet::parse(bytes).is_err() {
            return ledger.unknown(side, now);
        }
        let number = u32::from_be_bytes(*number);
        let streams = 2 * self.flows.len();
        match side {
            Side::Exit => {
                ledger.deliver(streams, number, false, now);
                echo.pending.push(number);
            }
            Side::Edge => {
                // Answers are numbered as they leave; the request's number follows.
                let request =
                    bytes.get(IP_HEADER + UDP_HEADER + 4..).and_then(|rest| rest.first_chunk::<4>());
                let request = request.map_or(0, |r| u32::from_be_bytes(*r));
                ledger.deliver(streams + 1, number, false, now);
                if let Some(&sent) = echo.sent.get((request as usize).wrapping_sub(1)) {
                    echo.samples.push((now, sent, now - sent));
                }
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, side: Side, now: Time) {
        for flow in &mut self.flows {
            if flow.from() == side {
                flow.open |= now >= flow.start();
                flow.sender.handle_timeout(now);
            } else {
                flow.receiver.handle_timeout(now);
            }
        }
    }

    /// The next inner packet that goes in at `side`.
    pub(super) fn poll(&mut self, side: Side, now: Time, ledger: &mut Ledger) -> Option<PacketBuf> {
        for (i, flow) in self.flows.iter_mut().enumerate() {
            if !flow.open {
                continue;
            }
            let sends = flow.from() == side;
            let (segment, tuple) = if sends {
                (flow.sender.poll(now), flow.tuple)
            } else {
                (flow.receiver.poll(), flow.tuple.reversed())
            };
            let Some(segment) = segment else { continue };
            ledger.emit(2 * i + usize::from(!sends), segment.tsval);
            let packet = segment.encode(tuple, &self.pool)?;
            return match flow.spec.transport {
                Transport::Quic => quic::wrap(&packet, sends, &self.pool),
                Transport::Cubic | Transport::Bbr => Some(packet),
            };
        }
        let streams = 2 * self.flows.len();
        let echo = self.echo.as_mut()?;
        match side {
            Side::Edge => {
                if now < echo.next_at {
                    return None;
                }
                echo.next_at = now + echo.spec.interval;
                echo.sent.push(now);
                let number = echo.sent.len() as u32;
                ledger.emit(streams, number);
                udp(side, echo.spec.size, number, number, &self.pool)
            }
            Side::Exit => {
                let request = echo.pending.pop()?;
                echo.answered += 1;
                ledger.emit(streams + 1, echo.answered);
                udp(side, echo.spec.size, echo.answered, request, &self.pool)
            }
        }
    }

    pub(super) fn poll_timeout(&self, side: Side) -> Option<Time> {
        let flows = self.flows.iter().filter_map(|flow| match (flow.from() == side, flow.open) {
            (true, false) => Some(flow.start()),
            (true, true) => flow.sender.poll_timeout(),
            (false, _) => flow.receiver.poll_timeout(),
        });
        let echo = self.echo.as_ref().filter(|_| side == Side::Edge).map(|echo| echo.next_at);
        flows.chain(echo).min()
    }

    /// Congestion windows of the connections that send at `side`, segments.
    pub(super) fn windows(&self, side: Side) -> Vec<f64> {
        self.flows.iter().filter(|flow| flow.from() == side).map(|flow| flow.sender.cwnd()).collect()
    }

    pub(super) fn flow_reports(&self, warmup: Duration, end: Time) -> Vec<FlowReport> {
        self.flows.iter().enumerate().map(|(i, flow)| flow_report(i, flow, warmup, end)).collect()
    }

    pub(super) fn echo_report(&self, warmup: Duration, end: Time) -> Option<EchoReport> {
        let echo = self.echo.as_ref()?;
        let (from, to) = (Time::ZERO + warmup, end.saturating_sub(ECHO_PATIENCE));
        let counts = |sent: Time| sent >= from && sent < to;
        let mut rtts: Vec<Duration> =
            echo.samples.iter().filter(|(_, sent, _)| counts(*sent)).map(|(.., rtt)| *rtt).collect();
        rtts.sort_unstable();
        let quantile = |q: f64| {
            let last = rtts.len().saturating_sub(1);
            rtts.get((last as f64 * q).round() as usize).copied().unwrap_or_default()
        };
        let arrivals: Vec<Time> =
            echo.samples.iter().map(|(at, ..)| *at).filter(|at| *at >= from && *at <= end).collect();
        let pause = arrivals.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default();
        Some(EchoReport {
            sent: echo.sent.iter().filter(|sent| counts(**sent)).count() as u64,
            received: rtts.len() as u64,
            p50: quantile(0.5),
            p95: quantile(0.95),
            p99: quantile(0.99),
            max: quantile(1.0),
            longest_pause: pause.saturating_sub(echo.spec.interval),
        })
    }
}

fn flow_report(index: usize, flow: &Flow, warmup: Duration, end: Time) -> FlowReport {
    let way = match flow.spec.way {
        Way::Up => "up",
        Way::Down => "down",
    };
    let from = (Time::ZERO + warmup).max(flow.start());
    let until = flow.done_at.unwrap_or(end);
    let first = (from.as_nanos() / SERIES_STEP.as_nanos() as u64) as usize;
    let bytes: u64 = flow.series.iter().skip(first).sum();
    let seconds = (until - from).as_secs_f64();
    let tail = until - flow.last_delivery.unwrap_or_else(|| flow.start());
    let gaps = flow.gaps.iter().filter(|(at, _)| *at >= from).map(|(_, gap)| *gap);
    FlowReport {
        name: format!("{way}{index}"),
        bytes: flow.series.iter().sum(),
        goodput_mbit: if seconds > 0.0 { bytes as f64 * 8e-6 / seconds } else { 0.0 },
        series: flow.series.clone(),
        longest_gap: gaps.chain([tail]).max().unwrap_or_default(),
        done: flow.done_at.is_some(),
        sender: flow.sender.stats(),
        receiver: flow.receiver.stats(),
    }
}

/// A UDP packet of the echo: its own number, then the number of the request.
fn udp(side: Side, size: usize, number: u32, request: u32, pool: &BufPool) -> Option<PacketBuf> {
    let size = size.max(IP_HEADER + UDP_HEADER + 8);
    let mut buf = pool.take();
    if size > buf.capacity() {
        return None;
    }
    buf.set_len(size);
    buf.fill(0);
    buf[0] = 0x45;
    buf[2..4].copy_from_slice(&(size as u16).to_be_bytes());
    buf[8] = 64;
    buf[9] = PROTO_UDP;
    buf[12..16].copy_from_slice(&address(side).octets());
    buf[16..20].copy_from_slice(&address(side.peer()).octets());
    buf[20..22].copy_from_slice(&ECHO_PORT.to_be_bytes());
    buf[22..24].copy_from_slice(&ECHO_PORT.to_be_bytes());
    buf[24..26].copy_from_slice(&((size - IP_HEADER) as u16).to_be_bytes());
    buf[28..32].copy_from_slice(&number.to_be_bytes());
    buf[32..36].copy_from_slice(&request.to_be_bytes());
    Some(buf)
}
