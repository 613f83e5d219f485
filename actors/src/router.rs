//! `RouterActor`: the shell of [`Sender`], one per session.
//!
//! Input: packets from the TUN, reports of the peer, report bodies and heartbeats of our own
//! receiver, requests for pings. Output: batches into the queues of the links. Paths are not added
//! by message: the router compares the session's set of paths with its own whenever that has a new
//! version, so a restarted router knows them all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mwb_proto::bond::{PathState, Sender, SenderConfig, SenderEvent, TxBatch};
use mwb_proto::buf::BufPool;
use mwb_proto::fec::{Encoded, FecJob};
use mwb_proto::time::Time;
use mwb_proto::wire::PathId;

use crate::clock::{self, Timer};
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::session::path::PathEndpoint;
use crate::session::{FromReceiver, Received, Role, Session};
use crate::trace::Trace;
use crate::wan_link::TxJob;

/// How often the sender's state is published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Items taken from each queue per turn; the rest waits one turn.
const ITEMS_PER_TURN: usize = 64;
/// A bond without a path for this long is offline: a hand-over of all paths at once is shorter.
const OFFLINE_AFTER: Duration = Duration::from_secs(2);
/// Sending keys change at least this often (by count they change inside the sealer).
const RATCHET_EVERY: Duration = Duration::from_secs(3600);

/// What a router is lent.
#[derive(Clone)]
pub struct RouterLent {
    /// The session.
    pub session: Arc<Session>,
    /// Settings of the machine; the classifier's seed is replaced by a random one per start.
    pub config: SenderConfig,
    /// Packet buffers.
    pub pool: BufPool,
    /// Where trace lines go.
    pub trace: Trace,
}

/// Marker of [`RouterActor`].
#[derive(Debug)]
pub struct Router;

/// The actor around a session's sender.
pub type RouterActor = DrivenActor<Router>;

impl Drive for Router {
    type Lent = RouterLent;

    fn launch(lent: &RouterLent, crew: &mut Crew) -> Result<(), DriverError> {
        let timer = Timer::new().map_err(DriverError::io("make a timer"))?;
        let lent = lent.clone();
        crew.launch("pump", move |pulse| run(lent, timer, pulse));
        Ok(())
    }
}

struct RouterDriver {
    lent: RouterLent,
    sender: Sender,
    paths: BTreeMap<PathId, Arc<PathEndpoint>>,
    /// Ceilings that the machine knows.
    rates_max: BTreeMap<PathId, Option<u64>>,
    version: Option<u64>,
    ratchet_at: Time,
    publish_at: Time,
    reach: Reach,
    spare: TxBatch,
}

async fn run(lent: RouterLent, mut timer: Timer, pulse: Pulse) -> Result<(), DriverError> {
    let session = Arc::clone(&lent.session);
    let now = clock::now();
    let config = SenderConfig { seed: rand::random(), ..lent.config.clone() };
    let mut driver = RouterDriver {
        sender: Sender::new(config, session.next_incarnation(), lent.pool.clone(), now),
        lent,
        paths: BTreeMap::new(),
        rates_max: BTreeMap::new(),
        version: None,
        ratchet_at: now + RATCHET_EVERY,
        publish_at: now,
        reach: Reach::default(),
        spare: TxBatch::new(),
    };
    loop {
        pulse.beat().await?;
        let now = clock::now();
        let more = driver.turn(now, &pulse);
        if more {
            tokio::task::yield_now().await;
            continue;
        }
        let deadline = driver.deadline();
        if deadline <= now {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = session.router_bell().notified() => {}
            result = timer.wait_until(Some(deadline)) => result.map_err(DriverError::io("wait"))?,
            () = pulse.asked() => {}
        }
    }
}

impl RouterDriver {
    /// Takes what waits, sends what may go. True when some queue was not emptied.
    fn turn(&mut self, now: Time, pulse: &Pulse) -> bool {
        self.follow_paths(now);
        self.follow_limits(now);
        let more = self.take(now, pulse);
        if self.sender.poll_timeout().is_some_and(|at| at <= now) {
            self.sender.handle_timeout(now);
        }
        self.transmit(now);
        self.ask_codec(now);
        while let Some(event) = self.sender.poll_event() {
            match event {
                SenderEvent::PathState { path, state } => self.note_state(path, state),
                // A flow without one keeps its pace.
                SenderEvent::Mark(mark) => _ = self.lent.session.received.try_push(Received::Mark(mark)),
            }
        }
        if now >= self.publish_at {
            self.publish(now);
        }
        more
    }

    fn note_state(&self, path: PathId, state: PathState) {
        let Some(endpoint) = self.paths.get(&path) else { return };
        let (session, link) = (self.lent.session.name(), endpoint.link().name());
        tracing::info!(session, %path, link, ?state, "path");
        endpoint.set_given_up(state == PathState::Down);
    }

    fn deadline(&self) -> Time {
        self.sender.poll_timeout().map_or(self.publish_at, |at| at.min(self.publish_at))
    }

    /// Makes the machine's paths those of the session.
    fn follow_paths(&mut self, now: Time) {
        let version = self.lent.session.paths_version();
        if self.version == Some(version) {
            return;
        }
        self.version = Some(version);
        let wanted = self.lent.session.paths();
        for id in self.paths.keys().filter(|id| !wanted.contains_key(*id)) {
            self.sender.remove_path(*id, now);
        }
        for (id, endpoint) in &wanted {
            if self.paths.get(id).is_none_or(|old| old.generation() != endpoint.generation()) {
                let setup = endpoint.setup();
                self.rates_max.insert(*id, setup.rate_max);
                self.sender.add_path(*id, setup, now);
                endpoint.set_given_up(false);
            }
        }
        self.paths = wanted;
    }

    /// Keeps the machine's ceilings those of the paths.
    fn follow_limits(&mut self, now: Time) {
        for (id, endpoint) in &self.paths {
            let rate_max = endpoint.rate_max();
            if self.rates_max.insert(*id, rate_max) != Some(rate_max) {
                self.sender.set_rate_max(*id, rate_max, now);
            }
        }
    }

    fn take(&mut self, now: Time, pulse: &Pulse) -> bool {
        let session = &self.lent.session;
        let mut handled = 0;
        for _ in 0..ITEMS_PER_TURN {
            let Some(report) = session.feedback.pop() else { break };
            self.sender.handle_report(&report, now);
        }
        for _ in 0..ITEMS_PER_TURN {
            match session.from_receiver.pop() {
                Some(FromReceiver::Report(body)) => self.sender.send_report(&body, now),
                Some(FromReceiver::Heartbeat(path, beat)) => {
                    self.sender.handle_heartbeat(path, &beat, now);
                }
                None => break,
            }
        }
        for _ in 0..ITEMS_PER_TURN {
            let Some(encoded) = session.encoded.pop() else { break };
            self.sender.handle_encoded(encoded, now);
        }
        for _ in 0..ITEMS_PER_TURN {
            let Some(path) = session.pings.pop() else { break };
            self.sender.ping(path, now);
        }
        for _ in 0..ITEMS_PER_TURN {
            let Some(packets) = session.from_tun.pop() else { break };
            handled += packets.len() as u64;
            for packet in packets {
                self.sender.enqueue(packet, now);
            }
        }
        pulse.count_handled(handled);
        !(session.feedback.is_empty() && session.from_receiver.is_empty() && session.from_tun.is_empty())
    }

    fn transmit(&mut self, now: Time) {
        let session = &self.lent.session;
        while self.sender.poll_transmit(&mut self.spare, now) {
            let batch = std::mem::replace(&mut self.spare, session.take_idle());
            let (Some(path), Some(last)) = (self.paths.get(&batch.path), batch.segments.last()) else {
                continue;
            };
            // Before the batch can be sent: a successor of this router must not use these numbers.
            path.note_used(last.path_seq);
            let job = TxJob { path: Arc::clone(path), batch };
            if path.link().tx().try_push(job).is_err() {
                session.link_full.fetch_add(1, Ordering::Relaxed);
            }
        }
        if now >= self.ratchet_at {
            self.ratchet_at = now + RATCHET_EVERY;
            for path in self.paths.values() {
                path.ratchet();
            }
        }
    }

    /// Hands blocks to the codec; what it cannot take goes without parity.
    fn ask_codec(&mut self, now: Time) {
        while let Some(job) = self.sender.poll_fec_job() {
            if let Err(FecJob::Encode(job)) = self.lent.session.fec_jobs.try_push(job) {
                self.sender.handle_encoded(Encoded { block: job.block, shards: Vec::new() }, now);
            }
        }
    }

    /// Whether any path carries packets.
    fn is_up(&self) -> bool {
        self.paths.keys().any(|id| self.sender.path_state(*id) == Some(PathState::Up))
    }

    fn publish(&mut self, now: Time) {
        if self.lent.session.role() == Role::Edge {
            self.reach.look(self.is_up(), self.lent.session.name(), now);
        }
        self.publish_at = now + PUBLISH_EVERY;
        let snapshot = self.sender.snapshot(now);
        self.lent.session.set_packet_max(snapshot.packet_max);
        self.lent.trace.write(self.lent.session.name(), &snapshot);
        self.lent.session.sender.send_replace(snapshot);
    }
}

/// Says, once each time, that an edge reaches its exit no longer, and that it does again: each path alone is told of
/// too, but not that there is no other.
#[derive(Debug, Default)]
struct Reach {
    /// When a path carried packets last; `None` before the first did.
    last: Option<Time>,
    offline: bool,
}

impl Reach {
    fn look(&mut self, up: bool, exit: &str, now: Time) {
        let gone = self.last.map_or(Duration::ZERO, |last| now - last);
        if up && self.offline {
            tracing::info!(exit, seconds = gone.as_secs(), "online again");
        } else if !up && !self.offline && gone > OFFLINE_AFTER {
            tracing::warn!(
                exit,
                "offline: no path to the exit carries packets; what waits goes on when one comes back"
            );
            self.offline = true;
        }
        if up {
            (self.last, self.offline) = (Some(now), false);
        }
    }
}
