//! The TCP client and server.
//!
//! ```text
//! client -> server  u32 length | request (JSON)
//! server -> client  u32 length | "ok" (JSON)         both sockets are set up now
//! sender -> receiver  { u32 length > 0 | payload }*  u32 0 | u32 length | SenderReport (JSON)
//! server -> client  u32 length | FlowResult (JSON)   uploads only
//! ```

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::SockRef;

use super::payload::Payload;
use super::stats::{Deliveries, FlowResult, SenderReport};
use super::transport::Transport;
use super::{CONNECT_MAX, TrafficError, sys, udp};

/// Payload bytes per chunk.
const CHUNK: usize = 64 * 1024;
/// Longest message around the payload: a result with an hour of bins.
const MESSAGE_MAX: usize = 4 << 20;
/// How often waiting threads look whether they are to end.
const LOOK: Duration = Duration::from_millis(50);
/// The longest any flow may ask for.
const FLOW_MAX: Duration = Duration::from_secs(3600);

/// How much to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Amount {
    /// This many payload bytes.
    Bytes(u64),
    /// As much as goes in this time; what is under way then still arrives.
    Duration(Duration),
}

/// A TCP flow to be measured.
#[derive(Clone, Debug)]
pub struct FlowSpec {
    /// The [`Server`].
    pub server: SocketAddr,
    /// How much.
    pub amount: Amount,
    /// What the client's socket is; the server's must be the same.
    pub transport: Transport,
    /// Congestion control of both ends; `None` leaves the kernel's default.
    pub congestion_control: Option<String>,
    /// Interface the client's socket is bound to.
    pub device: Option<String>,
    /// Source address of the client's socket.
    pub source: Option<IpAddr>,
    /// Decides the payload.
    pub seed: u64,
    /// The whole flow fails after this: for [`Amount::Bytes`] from the start, for
    /// [`Amount::Duration`] after its time is over.
    pub patience: Duration,
    /// Counts the payload bytes delivered so far, for who watches the flow while it runs. Downloads only:
    /// an upload is delivered elsewhere.
    pub progress: Option<Arc<AtomicU64>>,
}

impl FlowSpec {
    /// A flow for `seconds`, with cubic: what most hosts on the internet use.
    pub fn seconds(server: SocketAddr, seconds: u64) -> Self {
        Self {
            server,
            amount: Amount::Duration(Duration::from_secs(seconds)),
            transport: Transport::Tcp,
            congestion_control: Some("cubic".into()),
            device: None,
            source: None,
            seed: 1,
            patience: Duration::from_secs(10),
            progress: None,
        }
    }

    /// A flow of `bytes`, with cubic, that fails after a minute.
    pub fn bytes(server: SocketAddr, bytes: u64) -> Self {
        Self { amount: Amount::Bytes(bytes), patience: Duration::from_secs(60), ..Self::seconds(server, 0) }
    }

    /// The same with another congestion control.
    pub fn congestion_control(mut self, name: &str) -> Self {
        self.congestion_control = Some(name.to_owned());
        self
    }

    /// The same with another transport.
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
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

    /// The same with another payload.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with another bound of time.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same with a counter of what was delivered.
    pub fn progress(mut self, delivered: Arc<AtomicU64>) -> Self {
        self.progress = Some(delivered);
        self
    }

    fn limit(&self) -> Duration {
        limit(self.amount, self.patience)
    }
}

fn limit(amount: Amount, patience: Duration) -> Duration {
    let window = match amount {
        Amount::Bytes(_) => Duration::ZERO,
        Amount::Duration(window) => window,
    };
    window.saturating_add(patience).min(FLOW_MAX)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Direction {
    Download,
    Upload,
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    direction: Direction,
    amount: Amount,
    congestion_control: Option<String>,
    seed: u64,
    patience: Duration,
}

/// Receives a flow from the server.
pub fn download(spec: &FlowSpec) -> Result<FlowResult, TrafficError> {
    let (link, mut payload) = open(spec, Direction::Download)?;
    Ok(link.receive(&mut payload, spec.amount, spec.progress.as_deref()))
}

/// Sends a flow to the server. The result is the server's.
pub fn upload(spec: &FlowSpec) -> Result<FlowResult, TrafficError> {
    let (mut link, mut payload) = open(spec, Direction::Upload)?;
    let sent = link.send(&mut payload, spec.amount);
    let answer = sent.and_then(|report| Ok((report, link.read_message::<FlowResult>()?)));
    match answer {
        Ok((_, result)) => Ok(result),
        // The receiver's view is lost with the connection; what is left is why.
        Err(error) => {
            let mut result = Deliveries::new(Instant::now()).finish(false);
            result.failure = Some(format!("sending: {error}"));
            result.sender = link.report(0);
            Ok(result)
        }
    }
}

fn open(spec: &FlowSpec, direction: Direction) -> Result<(Link, Payload), TrafficError> {
    let payload = Payload::new(spec.seed);
    let stream = connect(spec)?;
    let refused = set_congestion_control(&stream, spec.congestion_control.as_deref());
    let mut link = Link { stream, deadline: Instant::now() + CONNECT_MAX, refused };
    let request = Request {
        direction,
        amount: spec.amount,
        congestion_control: spec.congestion_control.clone(),
        seed: spec.seed,
        patience: spec.patience,
    };
    let answered = link.write_message(&request).and_then(|()| link.read_message::<String>());
    match answered {
        Ok(answer) if answer == "ok" => {
            link.deadline = Instant::now() + spec.limit();
            Ok((link, payload))
        }
        Ok(answer) => Err(TrafficError::Protocol { address: spec.server, source: io::Error::other(answer) }),
        Err(source) => Err(TrafficError::Protocol { address: spec.server, source }),
    }
}

fn connect(spec: &FlowSpec) -> Result<TcpStream, TrafficError> {
    let failed = |source| TrafficError::Connect { address: spec.server, source };
    let socket = spec.transport.socket(spec.server).map_err(failed)?;
    if let Some(device) = &spec.device {
        let option = || format!("SO_BINDTODEVICE {device}");
        let bound = socket.bind_device(Some(device.as_bytes()));
        bound.map_err(|source| TrafficError::Option { option: option(), source })?;
    }
    if let Some(source) = spec.source {
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(failed)?;
    }
    socket.connect_timeout(&spec.server.into(), CONNECT_MAX).map_err(failed)?;
    Ok(socket.into())
}

/// Sets the congestion control, or says why not.
fn set_congestion_control(stream: &TcpStream, name: Option<&str>) -> Option<String> {
    let name = name?;
    let refused = SockRef::from(stream).set_tcp_congestion(name.as_bytes()).err()?;
    Some(format!("{name}: {refused}"))
}

fn congestion_control(stream: &TcpStream) -> String {
    let name = SockRef::from(stream).tcp_congestion().unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
}

/// A connection that ends in time.
struct Link {
    stream: TcpStream,
    deadline: Instant,
    refused: Option<String>,
}

impl Link {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_millis(1) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                done => return done,
            }
        }
    }

    fn read_all(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let count = self.read_some(buffer)?;
            buffer = &mut buffer[count..];
        }
        Ok(())
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.stream.set_write_timeout(Some(self.left()?))?;
            match self.stream.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                done => bytes = &bytes[done?..],
            }
        }
        Ok(())
    }

    fn read_length(&mut self) -> io::Result<usize> {
        let mut length = [0; 4];
        self.read_all(&mut length)?;
        Ok(u32::from_be_bytes(length) as usize)
    }

    fn read_message<M: DeserializeOwned>(&mut self) -> io::Result<M> {
        let length = self.read_length()?;
        if length > MESSAGE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut message = vec![0; length];
        self.read_all(&mut message)?;
        Ok(serde_json::from_slice(&message)?)
    }

    fn write_message<M: Serialize>(&mut self, message: &M) -> io::Result<()> {
        let message = serde_json::to_vec(message)?;
        let mut bytes = (message.len() as u32).to_be_bytes().to_vec();
        bytes.extend(message);
        self.write_all(&bytes)
    }

    fn report(&self, bytes: u64) -> SenderReport {
        let info = sys::tcp_info(&self.stream).ok();
        SenderReport {
            congestion_control: congestion_control(&self.stream),
            congestion_control_refused: self.refused.clone(),
            bytes,
            retransmits: info.map_or(0, |info| info.tcpi_total_retrans),
            subflows: sys::subflows(&self.stream),
            rtt_ms: info.map_or(0.0, |info| f64::from(info.tcpi_rtt) / 1e3),
        }
    }

    /// Sends chunks until the amount is reached, then the report.
    fn send(&mut self, payload: &mut Payload, amount: Amount) -> io::Result<SenderReport> {
        let start = Instant::now();
        let mut bytes = 0;
        let mut chunk = Vec::with_capacity(CHUNK + 4);
        loop {
            let room = match amount {
                Amount::Bytes(total) => usize::try_from(total - bytes).unwrap_or(CHUNK).min(CHUNK),
                Amount::Duration(window) if start.elapsed() >= window => 0,
                Amount::Duration(_) => CHUNK,
            };
            if room == 0 {
                break;
            }
            let part = payload.next(room);
            let length = part.len();
            chunk.clear();
            chunk.extend((length as u32).to_be_bytes());
            chunk.extend(part);
            self.write_all(&chunk)?;
            payload.advance(length);
            bytes += length as u64;
        }
        // Read before the report goes out: retransmissions of the very tail are missed, none else.
        let report = self.report(bytes);
        self.write_all(&[0; 4])?;
        self.write_message(&report)?;
        Ok(report)
    }

    /// Receives chunks and the report. The clock starts now.
    fn receive(mut self, payload: &mut Payload, amount: Amount, progress: Option<&AtomicU64>) -> FlowResult {
        let mut deliveries = Deliveries::new(Instant::now());
        let mut checksum_ok = true;
        let done = self.receive_chunks(payload, &mut deliveries, &mut checksum_ok, progress);
        if done.is_err() {
            deliveries.gap_until(Instant::now());
        }
        let received = deliveries.bytes();
        let mut result = deliveries.finish(checksum_ok);
        result.receiver_congestion_control = congestion_control(&self.stream);
        if let Amount::Duration(window) = amount {
            result.window_s = Some(window.as_secs_f64());
        }
        match done {
            Ok(report) => result.sender = report,
            Err(error) => result.failure = Some(format!("receiving after {received} bytes: {error}")),
        }
        result
    }

    fn receive_chunks(
        &mut self,
        payload: &mut Payload,
        deliveries: &mut Deliveries,
        checksum_ok: &mut bool,
        progress: Option<&AtomicU64>,
    ) -> io::Result<SenderReport> {
        // Whole reads are delivered, not whole chunks: a chunk boundary is no pause.
        let mut buffer = vec![0; 4 * CHUNK];
        loop {
            let mut left = self.read_length()?;
            if left == 0 {
                return self.read_message();
            }
            while left > 0 {
                let want = left.min(buffer.len());
                let count = self.read_some(&mut buffer[..want])?;
                deliveries.record(count, Instant::now());
                if let Some(progress) = progress {
                    progress.fetch_add(count as u64, Ordering::Relaxed);
                }
                *checksum_ok &= payload.check(&buffer[..count]);
                left -= count;
            }
        }
    }
}

/// A test server for TCP flows and UDP echo on one port; stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Starts a server in the namespace of this thread. Port 0 takes a free one.
pub fn server(address: SocketAddr) -> Result<Server, TrafficError> {
    server_of(Transport::Tcp, address)
}

/// The same whose TCP flows have this transport.
pub fn server_of(transport: Transport, address: SocketAddr) -> Result<Server, TrafficError> {
    let failed = |source| TrafficError::Listen { address, source };
    let listener = transport.listen(address).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let socket = UdpSocket::bind(address).map_err(failed)?;
    socket.set_read_timeout(Some(LOOK)).map_err(failed)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (accept, echo) = (Arc::clone(&stop), Arc::clone(&stop));
    let start = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(work).map_err(failed)
    };
    let threads = vec![
        start("test-tcp", Box::new(move || accept_flows(&listener, &accept)))?,
        start("test-udp", Box::new(move || udp::serve(&socket, &echo)))?,
    ];
    Ok(Server { address, stop, threads })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Flows that still run when the server stops go on to their own end, which is bounded.
fn accept_flows(listener: &TcpListener, stop: &AtomicBool) {
    let mut fds = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
    let look = rustix::event::Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
    while !stop.load(Ordering::Relaxed) {
        // Whatever it says: accept finds out.
        let _ = rustix::event::poll(&mut fds, Some(&look));
        if let Ok((stream, _)) = listener.accept() {
            let serve = move || {
                if let Err(error) = serve_flow(stream) {
                    tracing::debug!(%error, "a test flow failed");
                }
            };
            // Without a thread the connection is dropped, which its client sees.
            let _ = std::thread::Builder::new().name("test-flow".into()).spawn(serve);
        }
    }
}

fn serve_flow(stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut link = Link { stream, deadline: Instant::now() + CONNECT_MAX, refused: None };
    let request: Request = link.read_message()?;
    link.refused = set_congestion_control(&link.stream, request.congestion_control.as_deref());
    let mut payload = Payload::new(request.seed);
    link.write_message(&"ok")?;
    link.deadline = Instant::now() + limit(request.amount, request.patience);
    match request.direction {
        Direction::Download => link.send(&mut payload, request.amount).map(drop),
        Direction::Upload => {
            let answer = link.stream.try_clone()?;
            let result = link.receive(&mut payload, request.amount, None);
            let mut answer = Link { stream: answer, deadline: Instant::now() + CONNECT_MAX, refused: None };
            answer.write_message(&result)
        }
    }
}
