//! UDP echo: datagrams at a steady rate, each sent back by the server at once.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::TrafficError;
use super::stats::quantile;

/// Sequence number and the time of sending in nanoseconds, both big-endian.
const HEADER: usize = 16;
const DATAGRAM_MAX: usize = 65_507;
/// Most datagrams of one run, so that its memory is bounded.
const COUNT_MAX: u64 = 10_000_000;

/// An echo to be measured.
#[derive(Clone, Debug)]
pub struct EchoSpec {
    /// The server.
    pub server: SocketAddr,
    /// Datagrams per second.
    pub rate: f64,
    /// UDP payload bytes of each, 16 at least.
    pub size: usize,
    /// For how long to send.
    pub duration: Duration,
    /// How long to wait for the last answers.
    pub linger: Duration,
    /// Interface the socket is bound to.
    pub device: Option<String>,
    /// Source address of the socket.
    pub source: Option<IpAddr>,
}

impl EchoSpec {
    /// `rate` datagrams of `size` bytes per second for `duration`, waiting a second for the last.
    pub fn new(server: SocketAddr, rate: f64, size: usize, duration: Duration) -> Self {
        Self { server, rate, size, duration, linger: Duration::from_secs(1), device: None, source: None }
    }

    /// The same from this interface.
    pub fn device(mut self, interface: &str) -> Self {
        self.device = Some(interface.to_owned());
        self
    }

    /// The same from this address.
    pub fn source(mut self, address: IpAddr) -> Self {
        self.source = Some(address);
        self
    }
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EchoResult {
    /// Datagrams sent.
    pub sent: u64,
    /// Different ones that came back.
    pub received: u64,
    /// Ones that came back again.
    pub duplicates: u64,
    /// Ones that came back after a later one.
    pub reordered: u64,
    /// Datagrams that did not come back, 0 to 1.
    pub loss: f64,
    /// Smallest round-trip time in milliseconds.
    pub min_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 95 % were faster.
    pub p95_ms: f64,
    /// 99 % were faster.
    pub p99_ms: f64,
    /// Largest.
    pub max_ms: f64,
    /// Longest time between two answers, less the interval of sending, in milliseconds; a silence at
    /// the end of the sending counts.
    pub longest_pause_ms: f64,
    /// When it began, in milliseconds from the start.
    pub longest_pause_at_ms: f64,
}

/// Sends echoes and waits for the answers.
pub fn udp_echo(spec: &EchoSpec) -> Result<EchoResult, TrafficError> {
    let failed = |source| TrafficError::Connect { address: spec.server, source };
    let socket = open(spec)?;
    let receiver = socket.try_clone().map_err(failed)?;
    let interval = Duration::from_secs_f64(1.0 / spec.rate.max(0.1));
    let count = ((spec.duration.as_secs_f64() / interval.as_secs_f64()).round() as u64).clamp(1, COUNT_MAX);
    let start = Instant::now();
    let end = start + interval.mul_f64(count as f64) + spec.linger;
    std::thread::scope(|scope| {
        let receive = scope.spawn(|| collect(&receiver, start, end, count));
        let sent = send(&socket, spec.size, start, interval, count);
        let answers = receive.join().expect("collecting answers does not panic");
        Ok(answers.result(sent, interval, start + interval.mul_f64(count as f64)))
    })
}

fn open(spec: &EchoSpec) -> Result<UdpSocket, TrafficError> {
    let failed = |source| TrafficError::Connect { address: spec.server, source };
    let socket = Socket::new(Domain::for_address(spec.server), Type::DGRAM, None).map_err(failed)?;
    if let Some(device) = &spec.device {
        socket
            .bind_device(Some(device.as_bytes()))
            .map_err(|source| TrafficError::Option { option: format!("SO_BINDTODEVICE {device}"), source })?;
    }
    let any: IpAddr =
        if spec.server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    socket.bind(&SocketAddr::new(spec.source.unwrap_or(any), 0).into()).map_err(failed)?;
    socket.connect(&spec.server.into()).map_err(failed)?;
    Ok(socket.into())
}

/// Sends at fixed times; one that was late does not move the next.
fn send(socket: &UdpSocket, size: usize, start: Instant, interval: Duration, count: u64) -> u64 {
    let mut datagram = vec![0x55; size.clamp(HEADER, DATAGRAM_MAX)];
    let mut sent = 0;
    for sequence in 0..count {
        let at = start + interval.mul_f64(sequence as f64);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        datagram[..8].copy_from_slice(&sequence.to_be_bytes());
        datagram[8..HEADER].copy_from_slice(&(start.elapsed().as_nanos() as u64).to_be_bytes());
        // A refusal, such as an ICMP error of an earlier one, is a datagram lost.
        let _ = socket.send(&datagram);
        sent += 1;
    }
    sent
}

/// The answers of one run.
struct Answers {
    start: Instant,
    seen: Vec<bool>,
    times: Vec<f64>,
    duplicates: u64,
    reordered: u64,
    highest: Option<u64>,
    last: Option<Instant>,
    pause: Duration,
    pause_at: Duration,
}

impl Answers {
    fn pause_until(&mut self, now: Instant) {
        let since = self.last.unwrap_or(self.start);
        if now.saturating_duration_since(since) > self.pause {
            self.pause = now - since;
            self.pause_at = since - self.start;
        }
    }

    fn take(&mut self, datagram: &[u8], now: Instant) {
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        let (sequence, sent) = (number(&datagram[..8]), number(&datagram[8..HEADER]));
        let Some(seen) = usize::try_from(sequence).ok().and_then(|i| self.seen.get_mut(i)) else { return };
        if std::mem::replace(seen, true) {
            self.duplicates += 1;
            return;
        }
        self.pause_until(now);
        self.last = Some(now);
        if self.highest.is_some_and(|highest| sequence < highest) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(sequence));
        self.times.push((now.duration_since(self.start).as_nanos() as f64 - sent as f64) / 1e6);
    }

    fn result(mut self, sent: u64, interval: Duration, sending_end: Instant) -> EchoResult {
        self.pause_until(sending_end);
        self.times.sort_by(f64::total_cmp);
        let received = self.times.len() as u64;
        let at = |share| quantile(&self.times, share);
        EchoResult {
            sent,
            received,
            duplicates: self.duplicates,
            reordered: self.reordered,
            loss: 1.0 - received as f64 / sent.max(1) as f64,
            min_ms: at(0.0),
            p50_ms: at(0.50),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            max_ms: at(1.0),
            longest_pause_ms: self.pause.saturating_sub(interval).as_secs_f64() * 1e3,
            longest_pause_at_ms: self.pause_at.as_secs_f64() * 1e3,
        }
    }
}

/// Takes answers until all are here or the time is over.
fn collect(socket: &UdpSocket, start: Instant, end: Instant, count: u64) -> Answers {
    let mut answers = Answers {
        start,
        seen: vec![false; count as usize],
        times: Vec::new(),
        duplicates: 0,
        reordered: 0,
        highest: None,
        last: None,
        pause: Duration::ZERO,
        pause_at: Duration::ZERO,
    };
    let mut buffer = vec![0; DATAGRAM_MAX];
    while answers.times.len() < count as usize {
        let left = end.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) || socket.set_read_timeout(Some(left)).is_err() {
            break;
        }
        match socket.recv(&mut buffer) {
            Ok(length) if length >= HEADER => answers.take(&buffer[..length], Instant::now()),
            // Timeouts end the loop above, other errors are those of single datagrams.
            Ok(_) | Err(_) => {}
        }
    }
    answers
}

/// Sends every datagram back until told to stop.
pub(super) fn serve(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; DATAGRAM_MAX];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                // The client sees a datagram that could not be sent as lost.
                let _ = socket.send_to(&buffer[..length], from);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // An ICMP error of a datagram sent before.
            Err(_) => {}
        }
    }
}
