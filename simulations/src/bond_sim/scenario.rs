//! What a simulated session consists of, and what happens to it.

use std::fmt;
use std::time::Duration;

use mwb_proto::bond::{ReceiverConfig, SenderConfig};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{RivalSpec, Side};
use crate::tcp_model::Transport;
use crate::virtual_time::NodeClock;
use crate::wan::{BurstLoss, DirectionSpec, LinkSpec, QueueLimit, Trace, Way};

/// One TCP connection through the session.
#[derive(Clone, Copy, Debug)]
pub struct FlowSpec {
    /// [`Way::Down`] is a download: data from the exit to the edge.
    pub way: Way,
    /// When it opens.
    pub start: Duration,
    /// Bytes to send; `None` never ends.
    pub bytes: Option<u64>,
    /// Whether it negotiates ECN.
    pub ecn: bool,
    /// How it answers loss and congestion.
    pub transport: Transport,
}

impl FlowSpec {
    /// An endless download that begins after 300 ms, when the paths have been measured.
    pub fn download() -> Self {
        Self {
            way: Way::Down,
            start: Duration::from_millis(300),
            bytes: None,
            ecn: false,
            transport: Transport::Cubic,
        }
    }

    /// The same as an upload.
    pub fn upload() -> Self {
        Self { way: Way::Up, ..Self::download() }
    }
}

/// A UDP flow from the edge that the exit's side echoes.
#[derive(Clone, Copy, Debug)]
pub struct EchoSpec {
    /// Time between packets.
    pub interval: Duration,
    /// Bytes of each inner packet.
    pub size: usize,
    /// When it begins.
    pub start: Duration,
}

impl Default for EchoSpec {
    /// 200 bytes every 10 ms from 300 ms on.
    fn default() -> Self {
        Self { interval: Duration::from_millis(10), size: 200, start: Duration::from_millis(300) }
    }
}

/// Something that happens to a link or a path, by the link's index.
#[derive(Clone, Debug)]
pub enum Action {
    /// Both ways become black holes.
    Cut(usize),
    /// One way becomes a black hole.
    CutWay(usize, Way),
    /// Cuts of this link end.
    Restore(usize),
    /// One way changes.
    Set(usize, Way, Box<DirectionSpec>),
    /// The sender of this way is told to use no more than so many bit/s of the path; `None` lifts that.
    Limit(usize, Way, Option<u64>),
    /// Both ends forget the path, a link's own or a twin.
    RemovePath(usize),
    /// The path comes (back) under new keys.
    AddPath(usize),
    /// The node at this end gets no processor for so long, as on a busy machine.
    Stall(Side, Duration),
}

/// An action and its time.
#[derive(Clone, Debug)]
pub struct ScriptStep {
    /// When, from the start.
    pub at: Duration,
    /// What.
    pub what: Action,
}

/// A session to simulate.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Link `i` is path `i`.
    pub links: Vec<LinkSpec>,
    /// TCP connections.
    pub flows: Vec<FlowSpec>,
    /// The echo.
    pub echo: Option<EchoSpec>,
    /// Neighbours on the links.
    pub rivals: Vec<RivalSpec>,
    /// Links that carry a second path of the session beside their own, as another bond would: path
    /// `links.len() + i` goes over link `twins[i]`.
    pub twins: Vec<usize>,
    /// What happens when; any order.
    pub script: Vec<ScriptStep>,
    /// Settings of both senders; the seed of the classifier is replaced.
    pub sender: SenderConfig,
    /// Settings of both receivers.
    pub receiver: ReceiverConfig,
    /// The edge's clock.
    pub edge_clock: NodeClock,
    /// The exit's clock.
    pub exit_clock: NodeClock,
    /// Timers of the nodes fire up to this much late.
    pub wake_delay: Duration,
    /// Largest datagram (UDP payload) of every path.
    pub datagram_max: usize,
    /// The start that goodput, pauses and echo delays leave out.
    pub warmup: Duration,
    /// Keeps a snapshot of both senders this often.
    pub trace_every: Option<Duration>,
}

impl Scenario {
    /// One download and an echo over these links, clocks an hour apart, timers up to 100 us late, 3 s of warm-up.
    pub fn new(links: Vec<LinkSpec>) -> Self {
        Self {
            links,
            flows: vec![FlowSpec::download()],
            echo: Some(EchoSpec::default()),
            rivals: Vec::new(),
            twins: Vec::new(),
            script: Vec::new(),
            sender: SenderConfig::default(),
            receiver: ReceiverConfig::default(),
            edge_clock: NodeClock { offset: Duration::from_secs(4000), drift_ppm: 0.0 },
            exit_clock: NodeClock { offset: Duration::from_secs(400), drift_ppm: 0.0 },
            wake_delay: Duration::from_micros(100),
            datagram_max: 1500 - super::OUTER_HEADERS,
            warmup: Duration::from_secs(3),
            trace_every: None,
        }
    }

    /// The same with an action at `millis` ms.
    pub fn at(mut self, millis: u64, what: Action) -> Self {
        self.script.push(ScriptStep { at: Duration::from_millis(millis), what });
        self
    }

    /// Number of paths.
    pub(super) fn paths(&self) -> usize {
        self.links.len() + self.twins.len()
    }

    /// The link of a path.
    pub(super) fn link_of(&self, path: usize) -> usize {
        path.checked_sub(self.links.len()).map_or(path, |twin| self.twins[twin])
    }

    /// The same with only one of its links: what a bond is measured against.
    pub fn only(&self, link: usize) -> Self {
        let mut alone = self.clone();
        alone.links = vec![self.links[link].clone()];
        alone.twins.clear();
        alone.rivals.retain_mut(|rival| std::mem::replace(&mut rival.link, 0) == link);
        alone.script.retain_mut(|step| match &mut step.what {
            Action::Cut(i)
            | Action::CutWay(i, _)
            | Action::Restore(i)
            | Action::Set(i, ..)
            | Action::Limit(i, ..)
            | Action::RemovePath(i)
            | Action::AddPath(i) => std::mem::replace(i, 0) == link,
            Action::Stall(..) => true,
        });
        alone
    }

    /// The same without parts of the machines, for comparison: `guard`, `resend`, any of them separated by commas.
    pub fn without(mut self, parts: &str) -> Self {
        for part in parts.split(',') {
            match part {
                "guard" => self.sender.guard = false,
                "bundles" => self.sender.bundles = false,
                "resend" => self.sender.resend = false,
                _ => {}
            }
        }
        self
    }

    /// Mbit/s that TCP would reach over the links one by one, without a tunnel: 1448 of 1500 bytes.
    pub fn raw_mbit(&self, way: Way) -> Vec<f64> {
        let rate = |link: &LinkSpec| match way {
            Way::Up => link.up.mean_rate(),
            Way::Down => link.down.mean_rate(),
        };
        self.links.iter().map(|link| rate(link).unwrap_or(0) as f64 * 1e-6 * 1448.0 / 1500.0).collect()
    }

    /// A scenario that `seed` makes up: two to eight links of 0.5 to 1000 Mbit/s (together at most 20 to 1000 each way) with
    /// round trips of 2 to 700 ms, some losing up to 10 %, some jittery, some recorded, one to four flows either way, and
    /// sometimes cuts, changes of rate or a renewed path.
    pub fn random(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5ca1_ab1e);
        let count = rng.random_range(2..=8);
        // Few are fast: they take the longest to simulate and differ the least from each other.
        let sum_max = rng.random_range(20f64.ln()..1000f64.ln()).exp();
        let rates: Vec<[f64; 2]> = (0..count).map(|_| random_rates(sum_max, &mut rng)).collect();
        let share = |way: usize| (sum_max / rates.iter().map(|r| r[way]).sum::<f64>()).min(1.0);
        let (up, down) = (share(0), share(1));
        let links = rates.iter().enumerate();
        let links =
            links.map(|(i, r)| random_link(i, (r[0] * up).max(0.5), (r[1] * down).max(0.5), &mut rng));
        let links = links.collect();
        let mut scenario = Self::new(links);
        let drift = |rng: &mut SmallRng| NodeClock {
            offset: Duration::from_millis(rng.random_range(0..10_000_000)),
            drift_ppm: rng.random_range(-50.0..50.0),
        };
        scenario.edge_clock = drift(&mut rng);
        scenario.exit_clock = drift(&mut rng);
        scenario.wake_delay = Duration::from_micros(rng.random_range(0..1500));
        scenario.flows = (0..rng.random_range(1..=4)).map(|_| random_flow(&mut rng)).collect();
        for _ in 0..rng.random_range(0..3) {
            random_trouble(&mut scenario, &mut rng);
        }
        scenario
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for link in &self.links {
            for (way, d) in [("up", &link.up), ("down", &link.down)] {
                writeln!(
                    f,
                    "{} {way}: {:.2} Mbit/s{}, delay {:.1?} + {:.1?}{}, loss {:.4} {:?}, queue {:?}",
                    link.name,
                    d.mean_rate().unwrap_or(0) as f64 * 1e-6,
                    if d.trace.is_some() { " (trace)" } else { "" },
                    d.delay,
                    d.jitter,
                    if d.jitter_reorders { " reordering" } else { "" },
                    d.loss,
                    d.burst,
                    d.queue
                )?;
            }
        }
        for flow in &self.flows {
            writeln!(f, "{flow:?}")?;
        }
        for step in &self.script {
            match &step.what {
                Action::Set(link, way, spec) => {
                    writeln!(f, "{:?}: link {link} {way:?} at {:?} bit/s", step.at, spec.rate)?;
                }
                what => writeln!(f, "{:?}: {what:?}", step.at)?,
            }
        }
        Ok(())
    }
}

fn random_flow(rng: &mut SmallRng) -> FlowSpec {
    FlowSpec {
        way: if rng.random_bool(0.7) { Way::Down } else { Way::Up },
        start: Duration::from_millis(rng.random_range(0..1500)),
        bytes: rng.random_bool(0.3).then(|| rng.random_range(1..2_000_000)),
        ecn: rng.random_bool(0.3),
        transport: match rng.random_range(0..10) {
            0..6 => Transport::Cubic,
            6..8 => Transport::Bbr,
            _ => Transport::Quic,
        },
    }
}

/// Rates and delays are spread evenly over their orders of magnitude.
fn between(low: f64, high: f64, rng: &mut SmallRng) -> f64 {
    rng.random_range(low.ln()..high.ln()).exp()
}

/// Up and down in Mbit/s: downloads are as fast as uploads or up to ten times faster.
fn random_rates(most: f64, rng: &mut SmallRng) -> [f64; 2] {
    let down = between(0.5, most, rng);
    [(down / between(1.0, 10.0, rng)).max(0.5), down]
}

fn random_link(index: usize, up: f64, down: f64, rng: &mut SmallRng) -> LinkSpec {
    let mut between = |low: f64, high: f64| between(low, high, rng);
    let delay = Duration::from_secs_f64(between(0.001, 0.350));
    let queue = QueueLimit::Time(Duration::from_secs_f64(between(0.020, 0.400)));
    let jitter = if rng.random_bool(0.3) { rng.random_range(0.0..0.015) } else { 0.0 };
    let loss = if rng.random_bool(0.3) { 0.1 * rng.random::<f64>().powi(2) } else { 0.0 };
    let burst =
        rng.random_bool(0.2).then(|| BurstLoss::of(rng.random_range(0.0..0.02), rng.random_range(2.0..12.0)));
    let trace = rng.random_bool(0.15).then(|| {
        let (length, seed) = (Duration::from_secs(30), rng.random());
        if rng.random() {
            Trace::lte(down.max(3.0), length, seed)
        } else {
            Trace::starlink(down.max(3.0), length, seed)
        }
    });
    let jitter_reorders = rng.random_bool(0.1);
    let direction = |mbit: f64, trace: Option<Trace>| {
        DirectionSpec {
            jitter: Duration::from_secs_f64(jitter),
            jitter_reorders,
            loss,
            burst,
            trace,
            delay,
            ..DirectionSpec::mbit(mbit)
        }
        .queue(queue)
    };
    LinkSpec::new(format!("link{index}"), direction(up, None), direction(down, trace))
}

fn random_trouble(scenario: &mut Scenario, rng: &mut SmallRng) {
    let link = rng.random_range(0..scenario.links.len());
    let at = rng.random_range(500..4000);
    let back = at + rng.random_range(20..2500);
    let mut step = |at, what| scenario.script.push(ScriptStep { at: Duration::from_millis(at), what });
    match rng.random_range(0..5) {
        0 | 1 => {
            step(at, Action::Cut(link));
            step(back, Action::Restore(link));
        }
        2 => {
            step(at, Action::CutWay(link, if rng.random() { Way::Up } else { Way::Down }));
            step(back, Action::Restore(link));
        }
        3 => {
            step(at, Action::RemovePath(link));
            step(back, Action::AddPath(link));
        }
        _ => {
            let before = scenario.links[link].down.clone();
            let mut slow = before.clone();
            slow.rate = slow.rate.map(|rate| rate / 4);
            scenario.script.push(ScriptStep {
                at: Duration::from_millis(at),
                what: Action::Set(link, Way::Down, Box::new(slow)),
            });
            scenario.script.push(ScriptStep {
                at: Duration::from_millis(back),
                what: Action::Set(link, Way::Down, Box::new(before)),
            });
        }
    }
}
