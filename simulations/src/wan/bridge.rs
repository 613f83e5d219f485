//! The thread that plays all links: frames from one veth end into the model, and out at the other.
//!
//! One thread sleeps until a frame comes or one is due. While there is traffic it works in ticks (100
//! us): in each it reads all sockets, sends what is due, and sleeps. Frames carry the kernel's time
//! of arrival and departures are computed from it, so a tick adds lateness but no error that sums up.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use mwb_proto::time::Time;
use thiserror::Error;

pub use super::packet_socket::PacketSocket;
use super::packet_socket::{self as sys, BATCH, Frame};
use super::{Direction, DirectionCounters, DirectionSpec, ETHERNET_HEADER, Lateness, LatenessHistogram};
use super::{LinkCounters, LinkSpec, Way};

/// Frames read from one socket before the others get their turn.
const READ_MAX: usize = 8 * BATCH;
/// How long a control call waits for the thread, which answers within a tick.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Time stamps further back are wrong: the wall clock was set.
const AGE_MAX: Duration = Duration::from_secs(1);

/// Settings of the emulator.
#[derive(Clone, Debug)]
pub struct EmulatorConfig {
    /// Decides loss and jitter.
    pub seed: u64,
    /// Longest frame accepted, Ethernet header included.
    pub frame_max: usize,
    /// Least time between two rounds while there is traffic. Shorter is more exact and costs more: at 600
    /// Mbit/s the thread, with the receiving half of the kernel that runs on it, took 0.5 of a core with
    /// 100 us and 0.35 with 250 us.
    pub tick: Duration,
    /// Whether to ask for the real-time scheduler; without the right to it nothing happens.
    pub real_time: bool,
}

impl Default for EmulatorConfig {
    /// Seed 1, MTU 1500, ticks of 100 us, real-time scheduler if allowed.
    fn default() -> Self {
        Self { seed: 1, frame_max: 1500 + ETHERNET_HEADER, tick: Duration::from_micros(100), real_time: true }
    }
}

/// A link and the sockets at its two ends.
#[derive(Debug)]
pub struct LinkPorts {
    /// What the link does.
    pub spec: LinkSpec,
    /// At the peer of the host's interface.
    pub host: PacketSocket,
    /// At the peer of the internet router's interface.
    pub internet: PacketSocket,
}

/// Why the emulator did not start or did not obey.
#[derive(Debug, Error)]
pub enum EmulatorError {
    /// No link has this name.
    #[error("the emulator has no link {0:?}")]
    NoSuchLink(String),
    /// Two links have the same name.
    #[error("two links are named {0:?}")]
    DoubleName(String),
    /// The thread has ended.
    #[error("the emulator has ended")]
    Ended,
    /// The thread could not be started.
    #[error("cannot start the emulator")]
    Start(#[source] io::Error),
}

/// What a control call does on the thread of the emulator.
type Command = Box<dyn FnOnce(&mut Wires, Time) + Send>;

/// The running emulator; ends when dropped.
#[derive(Debug)]
pub struct Emulator {
    control: EmulatorControl,
    thread: Option<JoinHandle<()>>,
}

impl Emulator {
    /// Starts the thread over these links.
    pub fn start(links: Vec<LinkPorts>, config: EmulatorConfig) -> Result<Self, EmulatorError> {
        let names: Arc<[String]> = links.iter().map(|link| link.spec.name.clone()).collect();
        if let Some(double) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(EmulatorError::DoubleName(double.1.clone()));
        }
        let event = Arc::new(sys::event().map_err(EmulatorError::Start)?);
        let (commands, orders) = mpsc::channel();
        let control = EmulatorControl { commands, event: Arc::clone(&event), names };
        let thread = std::thread::Builder::new()
            .name("wan-emulator".into())
            .spawn(move || Wires::new(links, config).run(&orders, &event))
            .map_err(EmulatorError::Start)?;
        Ok(Self { control, thread: Some(thread) })
    }

    /// A handle to change links and to read counters, also from other threads.
    pub fn control(&self) -> EmulatorControl {
        self.control.clone()
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // An error means that the thread has ended already.
        let _ = self.control.call(|wires, _| wires.stop = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Changes links while they run and reads their counters. Calls return when the change is in effect.
#[derive(Clone, Debug)]
pub struct EmulatorControl {
    commands: mpsc::Sender<Command>,
    event: Arc<OwnedFd>,
    names: Arc<[String]>,
}

impl EmulatorControl {
    /// The names of the links, in the order they were given.
    pub fn links(&self) -> &[String] {
        &self.names
    }

    /// Changes one direction from now on, see [`Direction::set`].
    pub fn set(&self, link: &str, way: Way, spec: DirectionSpec) -> Result<(), EmulatorError> {
        self.on_link(link, move |wire, now| wire.way(way).direction.set(spec, now))
    }

    /// Makes both directions black holes; what is on the way is lost. The interfaces stay up.
    pub fn cut(&self, link: &str) -> Result<(), EmulatorError> {
        self.on_link(link, |wire, _| wire.both().for_each(|w| w.direction.cut()))
    }

    /// Makes one direction a black hole.
    pub fn cut_way(&self, link: &str, way: Way) -> Result<(), EmulatorError> {
        self.on_link(link, move |wire, _| wire.way(way).direction.cut())
    }

    /// Ends all cuts of a link.
    pub fn restore(&self, link: &str) -> Result<(), EmulatorError> {
        self.on_link(link, |wire, _| wire.both().for_each(|w| w.direction.restore()))
    }

    /// The counters of a link.
    pub fn counters(&self, link: &str) -> Result<LinkCounters, EmulatorError> {
        self.on_link(link, |wire, _| wire.counters())
    }

    /// The counters of all links at one moment, by name.
    pub fn all_counters(&self) -> Result<Vec<(String, LinkCounters)>, EmulatorError> {
        let counters =
            self.call(|wires, _| wires.wires.iter_mut().map(Wire::counters).collect::<Vec<_>>())?;
        Ok(self.names.iter().cloned().zip(counters).collect())
    }

    /// Begins all traces again, at the same moment.
    pub fn restart_traces(&self) -> Result<(), EmulatorError> {
        self.call(|wires, now| {
            let halves = wires.wires.iter_mut().flat_map(Wire::both);
            halves.for_each(|half| half.direction.restart_trace(now));
        })
    }

    /// How late packets left since the start or the last [`Self::reset_lateness`].
    pub fn lateness(&self) -> Result<Lateness, EmulatorError> {
        self.call(|wires, _| wires.lateness.summary())
    }

    /// Begins a new histogram of lateness.
    pub fn reset_lateness(&self) -> Result<(), EmulatorError> {
        self.call(|wires, _| wires.lateness = LatenessHistogram::default())
    }

    /// Whether the thread got the real-time scheduler.
    pub fn real_time(&self) -> Result<bool, EmulatorError> {
        self.call(|wires, _| wires.real_time)
    }

    fn on_link<R: Send + 'static>(
        &self,
        link: &str,
        action: impl FnOnce(&mut Wire, Time) -> R + Send + 'static,
    ) -> Result<R, EmulatorError> {
        let found = self.names.iter().position(|name| name == link);
        let index = found.ok_or_else(|| EmulatorError::NoSuchLink(link.to_owned()))?;
        self.call(move |wires, now| action(&mut wires.wires[index], now))
    }

    fn call<R: Send + 'static>(
        &self,
        action: impl FnOnce(&mut Wires, Time) -> R + Send + 'static,
    ) -> Result<R, EmulatorError> {
        let (answer, wait) = mpsc::sync_channel(1);
        let command: Command = Box::new(move |wires, now| {
            // The caller may have given up.
            let _ = answer.send(action(wires, now));
        });
        self.commands.send(command).map_err(|_| EmulatorError::Ended)?;
        sys::signal(&self.event);
        wait.recv_timeout(ANSWER_MAX).map_err(|_| EmulatorError::Ended)
    }
}

/// One direction with the sockets it reads and writes.
#[derive(Debug)]
struct Half {
    from: Arc<PacketSocket>,
    to: Arc<PacketSocket>,
    direction: Direction<Frame>,
    dropped_socket: u64,
}

impl Half {
    fn counters(&mut self) -> DirectionCounters {
        self.dropped_socket += self.from.take_drops();
        DirectionCounters { dropped_socket: self.dropped_socket, ..self.direction.counters() }
    }
}

#[derive(Debug)]
struct Wire {
    up: Half,
    down: Half,
}

impl Wire {
    fn both(&mut self) -> impl Iterator<Item = &mut Half> {
        [&mut self.up, &mut self.down].into_iter()
    }

    fn way(&mut self, way: Way) -> &mut Half {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    fn counters(&mut self) -> LinkCounters {
        LinkCounters { up: self.up.counters(), down: self.down.counters() }
    }
}

/// The state of the thread.
#[derive(Debug)]
struct Wires {
    wires: Vec<Wire>,
    config: EmulatorConfig,
    /// Unused buffers, all of `frame_max` bytes.
    idle: Vec<Box<[u8]>>,
    lateness: LatenessHistogram,
    real_time: bool,
    stop: bool,
}

impl Wires {
    fn new(links: Vec<LinkPorts>, config: EmulatorConfig) -> Self {
        let now = sys::monotonic();
        let wires = links.into_iter().zip(0u64..).map(|(link, index)| {
            let (host, internet) = (Arc::new(link.host), Arc::new(link.internet));
            let half = |from: &Arc<PacketSocket>, to: &Arc<PacketSocket>, spec, way| Half {
                from: Arc::clone(from),
                to: Arc::clone(to),
                direction: Direction::new(
                    spec,
                    config.seed.wrapping_mul(0x1000).wrapping_add(index * 2 + way),
                    now,
                ),
                dropped_socket: 0,
            };
            let up = half(&host, &internet, link.spec.up, 0);
            Wire { up, down: half(&internet, &host, link.spec.down, 1) }
        });
        Self {
            wires: wires.collect(),
            config,
            idle: Vec::new(),
            lateness: LatenessHistogram::default(),
            real_time: false,
            stop: false,
        }
    }

    fn run(mut self, orders: &mpsc::Receiver<Command>, event: &OwnedFd) {
        self.real_time = sys::be_punctual(self.config.real_time);
        let pollfd = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = vec![pollfd(event.as_raw_fd())];
        for wire in &mut self.wires {
            fds.extend(wire.both().map(|half| pollfd(half.from.raw())));
        }
        let mut busy = false;
        while !self.stop {
            let round = sys::monotonic();
            if busy {
                sys::sleep_until(round + self.config.tick);
            }
            let due =
                self.wires.iter_mut().flat_map(Wire::both).filter_map(|half| half.direction.next_due()).min();
            sys::poll(&mut fds, due.map(|due| due.since(sys::monotonic())));
            if fds[0].revents != 0 {
                sys::clear(event);
                while let Ok(command) = orders.try_recv() {
                    command(&mut self, sys::monotonic());
                }
            }
            busy = self.round(&fds[1..]);
        }
    }

    /// Reads what came and sends what is due. Says whether there was anything.
    fn round(&mut self, readable: &[libc::pollfd]) -> bool {
        let Self { wires, idle, lateness, config, .. } = self;
        let mut busy = false;
        for (half, fd) in wires.iter_mut().flat_map(Wire::both).zip(readable) {
            if fd.revents != 0 {
                busy |= read(half, idle, config.frame_max);
            }
        }
        for half in wires.iter_mut().flat_map(Wire::both) {
            busy |= send(half, idle, lateness);
        }
        busy
    }
}

/// Moves the frames of one socket into the model.
fn read(half: &mut Half, idle: &mut Vec<Box<[u8]>>, frame_max: usize) -> bool {
    let mut total = 0;
    while total < READ_MAX {
        while idle.len() < BATCH {
            idle.push(vec![0; frame_max].into_boxed_slice());
        }
        let first = idle.len() - BATCH;
        let mut arrived: [(usize, Option<Duration>); BATCH] = [(0, None); BATCH];
        let received = half.from.receive(&mut idle[first..], |i, len, stamp| arrived[i] = (len, stamp));
        // The only errors are of an interface that goes down, and then there is nothing to read.
        let count = received.unwrap_or(0);
        let (now, wall) = (sys::monotonic(), sys::realtime());
        let mut buffers = idle.drain(first..first + count);
        for (len, stamp) in arrived.into_iter().take(count) {
            let buffer = buffers.next().expect("as many buffers as frames");
            if len > frame_max || len < ETHERNET_HEADER {
                half.direction.oversized();
                continue;
            }
            let age = stamp.map_or(Duration::ZERO, |stamp| wall.saturating_sub(stamp));
            let at = if age < AGE_MAX { now.saturating_sub(age) } else { now };
            half.direction.arrive(Frame { buffer, len }, len - ETHERNET_HEADER, at);
        }
        drop(buffers);
        total += count;
        if count < BATCH {
            break;
        }
    }
    total > 0
}

/// Sends the frames of one direction whose time has come.
fn send(half: &mut Half, idle: &mut Vec<Box<[u8]>>, lateness: &mut LatenessHistogram) -> bool {
    let mut any = false;
    let mut frames = Vec::new();
    let mut dues = [Time::ZERO; BATCH];
    loop {
        let now = sys::monotonic();
        while frames.len() < BATCH {
            let Some((frame, _, due)) = half.direction.pop_due(now) else { break };
            dues[frames.len()] = due;
            frames.push(frame);
        }
        if frames.is_empty() {
            return any;
        }
        any = true;
        let full = frames.len() == BATCH;
        let mut done = 0;
        while done < frames.len() {
            let (sent, error) = half.to.send(&frames[done..]);
            let at = sys::monotonic();
            dues[done..done + sent].iter().for_each(|due| lateness.record(at.since(*due), 1));
            done += sent;
            if error.is_some() {
                // The kernel refuses this frame, for example because the interface is down.
                half.direction.unsent(frames[done].len - ETHERNET_HEADER);
                done += 1;
            }
        }
        idle.extend(frames.drain(..).map(|frame| frame.buffer));
        if !full {
            return any;
        }
    }
}
