//! A whole bonded session under virtual time: edge and exit with their machines, links between them, and TCP
//! connections and an echo through the session.
//!
//! ```text
//!  TCP, echo ─► edge: Sender ══ links up ══► exit: Receiver ─► TCP, echo
//!            ◄─ Receiver     ◄══ links down ══ Sender       ◄─
//! ```
//! The machines are the real ones of `mwb_proto::bond`, the links the model that the emulator plays in real time
//! ([`crate::wan::Direction`]), the inner packets real IPv4. Only sealing is left out: datagrams travel as plain
//! text. A scenario and a seed decide everything, so a failure repeats. While it runs, a ledger follows every
//! inner packet and counts what the machines may never do (`invariant`).

mod bound;
mod endpoint;
mod invariant;
mod report;
mod rival;
mod scenario;
pub mod sweep;
mod traffic;

use std::time::Duration;

use mwb_proto::buf::{BufPool, PacketBuf};
use mwb_proto::time::Time;
use mwb_proto::wire::PathId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

pub use bound::Bound;
use endpoint::{Arrived, Endpoint, Outgoing};
use invariant::Ledger;
pub use report::{EchoReport, EndpointReport, FlowReport, RivalReport, SimReport, TraceLine};
pub use rival::RivalSpec;
use rival::{FromRival, Rivals};
pub use scenario::{Action, EchoSpec, FlowSpec, Scenario, ScriptStep};
use traffic::Traffic;

use crate::virtual_time::Agenda;
use crate::wan::{Direction, Way};

/// Bytes of IPv4 and UDP headers around each datagram.
pub const OUTER_HEADERS: usize = 28;
/// How often the books are balanced.
const AUDIT_EVERY: Duration = Duration::from_millis(1);
/// Wake-ups of one node per second that no traffic here explains.
const WAKES_MAX: u32 = 100_000;

/// The two ends of the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Where the session begins, with the uplinks.
    Edge,
    /// Where it ends.
    Exit,
}

impl Side {
    /// The other end.
    pub fn peer(self) -> Self {
        match self {
            Self::Edge => Self::Exit,
            Self::Exit => Self::Edge,
        }
    }

    /// The way its datagrams take through a link.
    pub fn way_out(self) -> Way {
        match self {
            Self::Edge => Way::Up,
            Self::Exit => Way::Down,
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

const SIDES: [Side; 2] = [Side::Edge, Side::Exit];

/// What a link carries.
#[derive(Debug)]
enum Cargo {
    /// A datagram of the session.
    Datagram { path: PathId, path_seq: u64, bytes: PacketBuf },
    /// A neighbour's.
    Rival(FromRival),
}

/// Who is called by the agenda.
#[derive(Clone, Copy, Debug)]
enum Component {
    Endpoint(Side),
    Link(usize, Way),
    Traffic(Side),
    Rivals,
    Script,
    Audit,
    Trace,
}

/// A simulated session.
#[derive(Debug)]
pub struct SimBond {
    scenario: Scenario,
    seed: u64,
    rng: SmallRng,
    now: Time,
    agenda: Agenda,
    components: Vec<Component>,
    endpoints: [Endpoint; 2],
    /// Per link: up, down.
    links: Vec<[Direction<Cargo>; 2]>,
    traffic: Traffic,
    rivals: Rivals,
    ledger: Ledger,
    script: std::collections::VecDeque<ScriptStep>,
    trace: Vec<TraceLine>,
    wakes: [u32; 2],
    wakes_second: u64,
}

impl SimBond {
    /// A session at rest at time zero; `seed` decides loss, jitter, lateness of timers and initial numbers.
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let pool = BufPool::new(2048, 4096);
        let mut components = vec![Component::Script, Component::Audit, Component::Trace, Component::Rivals];
        for side in SIDES {
            components.extend([Component::Endpoint(side), Component::Traffic(side)]);
        }
        let mut links = Vec::new();
        for (i, link) in scenario.links.iter().enumerate() {
            components.extend([Component::Link(i, Way::Up), Component::Link(i, Way::Down)]);
            links.push([
                Direction::new(link.up.clone(), rng.random(), Time::ZERO),
                Direction::new(link.down.clone(), rng.random(), Time::ZERO),
            ]);
        }
        let traffic = Traffic::new(&scenario, pool.clone(), &mut rng);
        let ledger = Ledger::new(traffic.streams());
        let endpoints = SIDES.map(|side| Endpoint::new(side, &scenario, &pool, rng.random()));
        let mut script: Vec<ScriptStep> = scenario.script.clone();
        script.sort_by_key(|step| step.at);
        let mut sim = Self {
            agenda: Agenda::new(components.len()),
            components,
            endpoints,
            links,
            traffic,
            rivals: Rivals::new(&scenario),
            ledger,
            script: script.into(),
            trace: Vec::new(),
            now: Time::ZERO,
            rng,
            seed,
            scenario,
            wakes: [0; 2],
            wakes_second: 0,
        };
        for path in 0..sim.scenario.paths() {
            sim.add_path(path);
        }
        for side in SIDES {
            sim.pump(side);
        }
        let (first_step, trace) = (sim.next_step(), sim.scenario.trace_every.is_some());
        sim.arm(Component::Script, first_step);
        sim.arm(Component::Audit, Some(Time::ZERO + AUDIT_EVERY));
        sim.arm(Component::Trace, trace.then_some(Time::ZERO));
        let rivals = sim.rivals.poll_timeout();
        sim.arm(Component::Rivals, rivals);
        sim
    }

    /// Runs for `duration` of virtual time and sums up.
    pub fn run(mut self, duration: Duration) -> SimReport {
        let end = Time::ZERO + duration;
        while let Some((at, component)) = self.agenda.pop() {
            if at > end {
                break;
            }
            self.now = at;
            self.step(self.components[component]);
        }
        self.now = end;
        self.audit();
        self.report(duration)
    }

    fn step(&mut self, component: Component) {
        match component {
            Component::Endpoint(side) => {
                self.count_wake(side);
                self.endpoints[side.index()].wake(self.now, &mut self.ledger);
                self.endpoints[side.index()].handle_timeout(self.now);
                self.pump(side);
            }
            Component::Traffic(side) => {
                self.traffic.handle_timeout(side, self.now);
                self.pump(side);
            }
            Component::Link(link, way) => self.deliver(link, way),
            Component::Rivals => {
                self.rivals.handle_timeout(self.now);
                self.pump_rivals();
            }
            Component::Script => {
                if let Some(step) = self.script.pop_front() {
                    self.act(step.what);
                }
                let next = self.next_step();
                self.arm(Component::Script, next);
            }
            Component::Audit => {
                self.audit();
                let next = self.now + AUDIT_EVERY;
                self.arm(Component::Audit, Some(next));
            }
            Component::Trace => {
                for side in SIDES {
                    let snapshot = self.endpoints[side.index()].sender_snapshot(self.now);
                    let cwnd = self.traffic.windows(side);
                    let rivals = self.rivals.windows(side.way_out());
                    let at = self.now.as_secs_f64();
                    self.trace.push(TraceLine { at, side, cwnd, rivals, sender: snapshot });
                }
                let next = self.scenario.trace_every.map(|every| self.now + every);
                self.arm(Component::Trace, next);
            }
        }
    }

    fn deliver(&mut self, link: usize, way: Way) {
        let side = match way {
            Way::Up => Side::Exit,
            Way::Down => Side::Edge,
        };
        let mut rivals = false;
        while let Some((cargo, len, _)) = self.links[link][way as usize].pop_due(self.now) {
            match cargo {
                Cargo::Datagram { path, path_seq, bytes } => {
                    let len = len - OUTER_HEADERS;
                    let endpoint = &mut self.endpoints[side.index()];
                    let arrived = Arrived { path, path_seq, bytes, len, at: self.now };
                    endpoint.receive(arrived, self.now, &mut self.ledger);
                }
                Cargo::Rival(segment) => {
                    self.rivals.deliver(&segment, self.now);
                    rivals = true;
                }
            }
        }
        if rivals {
            self.pump_rivals();
        }
        self.arm_link(link, way);
        self.pump(side);
    }

    /// Lets the neighbours send what they may.
    fn pump_rivals(&mut self) {
        while let Some((link, way, segment)) = self.rivals.poll(self.now) {
            let bytes = segment.bytes();
            self.links[link][way as usize].arrive(Cargo::Rival(segment), bytes, self.now);
            self.arm_link(link, way);
        }
        let next = self.rivals.poll_timeout().map(|at| at.max(self.now));
        self.arm(Component::Rivals, next);
    }

    /// Lets a side act until it has nothing more to do now.
    fn pump(&mut self, side: Side) {
        let endpoint = &mut self.endpoints[side.index()];
        loop {
            if endpoint.is_asleep() {
                while let Some(packet) = self.traffic.poll(side, self.now, &mut self.ledger) {
                    endpoint.enqueue(packet, self.now);
                }
                break;
            }
            let mut idle = true;
            while let Some(packet) = endpoint.poll_packet(self.now) {
                idle = false;
                self.traffic.deliver(side, &packet, self.now, &mut self.ledger);
            }
            while let Some(packet) = self.traffic.poll(side, self.now, &mut self.ledger) {
                endpoint.enqueue(packet, self.now);
            }
            endpoint.exchange(self.now);
            while let Some(Outgoing { path, path_seq, bytes, len }) =
                endpoint.poll_datagram(self.now, &mut self.ledger)
            {
                let link = self.scenario.link_of(usize::from(path.0));
                let way = side.way_out();
                self.links[link][way as usize].arrive(
                    Cargo::Datagram { path, path_seq, bytes },
                    len + OUTER_HEADERS,
                    self.now,
                );
            }
            if idle {
                break;
            }
        }
        for link in 0..self.links.len() {
            self.arm_link(link, side.way_out());
        }
        self.arm_endpoint(side);
        let next = self.traffic.poll_timeout(side).map(|at| at.max(self.now));
        self.arm(Component::Traffic(side), next);
    }

    fn arm(&mut self, component: Component, at: Option<Time>) {
        let index = match component {
            Component::Script => 0,
            Component::Audit => 1,
            Component::Trace => 2,
            Component::Rivals => 3,
            Component::Endpoint(side) => 4 + 2 * side.index(),
            Component::Traffic(side) => 5 + 2 * side.index(),
            Component::Link(link, way) => 8 + 2 * link + way as usize,
        };
        self.agenda.arm(index, at);
    }

    fn arm_link(&mut self, link: usize, way: Way) {
        let next = self.links[link][way as usize].next_due().map(|at| at.max(self.now));
        self.arm(Component::Link(link, way), next);
    }

    /// Timers fire late, as they do on a real machine.
    fn arm_endpoint(&mut self, side: Side) {
        let endpoint = &mut self.endpoints[side.index()];
        let wanted = endpoint.poll_timeout();
        if wanted == endpoint.armed_for || endpoint.is_asleep() {
            return; // Armed already; another draw would move it.
        }
        endpoint.armed_for = wanted;
        let late = self.scenario.wake_delay.mul_f64(self.rng.random());
        let floor = self.now + Duration::from_nanos(100);
        self.arm(Component::Endpoint(side), wanted.map(|at| at.max(floor) + late));
    }

    fn count_wake(&mut self, side: Side) {
        let second = self.now.as_nanos() / 1_000_000_000;
        if second != self.wakes_second {
            self.wakes_second = second;
            self.wakes = [0; 2];
        }
        self.endpoints[side.index()].armed_for = None;
        let wakes = &mut self.wakes[side.index()];
        *wakes += 1;
        if *wakes == WAKES_MAX {
            self.ledger.violation(self.now, format!("{side:?} woke {WAKES_MAX} times within a second"));
        }
    }

    fn next_step(&self) -> Option<Time> {
        self.script.front().map(|step| Time::ZERO + step.at)
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Cut(link) => self.links[link].iter_mut().for_each(Direction::cut),
            Action::CutWay(link, way) => self.links[link][way as usize].cut(),
            Action::Restore(link) => self.links[link].iter_mut().for_each(Direction::restore),
            Action::Set(link, way, spec) => self.links[link][way as usize].set(*spec, self.now),
            Action::Limit(link, way, rate_max) => {
                for side in SIDES.into_iter().filter(|side| side.way_out() == way) {
                    self.endpoints[side.index()].set_rate_max(PathId(link as u8), rate_max, self.now);
                }
            }
            Action::RemovePath(link) => {
                for endpoint in &mut self.endpoints {
                    endpoint.remove_path(PathId(link as u8), self.now);
                }
            }
            Action::AddPath(link) => self.add_path(link),
            Action::Stall(side, length) => {
                self.endpoints[side.index()].sleep();
                self.arm(Component::Endpoint(side), Some(self.now + length));
            }
        }
        for link in 0..self.links.len() {
            self.arm_link(link, Way::Up);
            self.arm_link(link, Way::Down);
        }
        for side in SIDES {
            self.pump(side);
        }
    }

    /// The path comes up with new keys on both sides; what is on its way under the old ones is refused.
    fn add_path(&mut self, path: usize) {
        let first: u32 = self.rng.random_range(0..1 << 20);
        let link = self.scenario.link_of(path);
        for side in SIDES {
            let endpoint = &mut self.endpoints[side.index()];
            endpoint.add_path(PathId(path as u8), u64::from(first), &self.scenario, self.now);
            if path >= self.links.len() {
                continue; // Another path's datagrams are there as well.
            }
            // The queue and the air are emptied: these datagrams would not open.
            let way = &mut self.links[link][side.way_out() as usize];
            if way.held() > 0 && !way.is_cut() {
                way.cut();
                way.restore();
            }
        }
    }

    fn audit(&mut self) {
        let snapshots = SIDES.map(|side| {
            let endpoint = &self.endpoints[side.index()];
            (endpoint.sender_snapshot(self.now), endpoint.receiver_snapshot())
        });
        for side in SIDES {
            let endpoint = &self.endpoints[side.index()];
            self.ledger.set_unread(side, endpoint.unread());
            self.ledger.balance(
                side,
                &snapshots[side.index()].0,
                &snapshots[side.peer().index()].1,
                endpoint.held_bytes(),
                &self.scenario,
                self.now,
            );
        }
    }

    fn report(self, duration: Duration) -> SimReport {
        let end = Time::ZERO + duration;
        let links = self
            .links
            .iter()
            .map(|[up, down]| crate::wan::LinkCounters { up: up.counters(), down: down.counters() });
        let endpoint = |side: Side| EndpointReport {
            sender: self.endpoints[side.index()].sender_snapshot(end),
            receiver: self.endpoints[side.index()].receiver_snapshot(),
            wakes: self.endpoints[side.index()].wakes(),
        };
        SimReport {
            seed: self.seed,
            duration,
            flows: self.traffic.flow_reports(self.scenario.warmup, end),
            echo: self.traffic.echo_report(self.scenario.warmup, end),
            rivals: self.rivals.reports(self.scenario.warmup, end),
            links: links.collect(),
            edge: endpoint(Side::Edge),
            exit: endpoint(Side::Exit),
            violations: self.ledger.into_violations(),
            trace: self.trace,
        }
    }
}
