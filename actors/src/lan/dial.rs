//! `LanDiallerActor`: dials the addresses at which members on the LAN may be, until they are connected.
//!
//! Addresses come from the configuration and from hints. Neither is believed: only networks of our LAN
//! interfaces are dialled, at a bounded rate, and what answers must prove to be the node that is
//! expected there, or any that may be let in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::Message;
use mwb_proto::discovery::{Tag, node_tag};
use mwb_proto::time::Time;
use rand::Rng;
use tokio::task::JoinSet;

use super::plane::{Arrival, DialledBy, LanPlane};
use super::port::{LanPort, Networks};
use crate::clock;
use crate::control::door::admit;
use crate::control::{CloseCode, ControlStream, JoinError, hello};
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::identity::NodeId;
use crate::supervisor::{Backoff, Policy, Verdict};
use crate::tls::{SERVER_NAME, peer_of};
use crate::wan_link::canonical;

/// Most dials in a second, all addresses together, and at once.
const DIALS_PER_SECOND: u32 = 8;
/// How long a handshake may take: a neighbour that lives answers within milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the node of the greater id waits for the other one to dial.
const HEAD_START: Duration = Duration::from_millis(500);
/// How often addresses and interfaces are looked at when nothing has told of a change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Redialling: 0.1 s, doubling to 1.6 s, jittered, so that at most 3 s pass until a node that has come
/// back is found, and never given up.
const REDIAL: Policy = Policy {
    delay_min: Duration::from_millis(100),
    delay_max: Duration::from_millis(1600),
    jitter: 0.25,
    healthy_after: Duration::from_secs(10),
    park_after: u32::MAX,
    park_retry: Duration::from_secs(2),
    ping_every: Duration::from_millis(200),
};

/// Marker of [`LanDiallerActor`].
#[derive(Debug)]
pub struct LanDialler;

/// The actor that dials members on the LAN.
pub type LanDiallerActor = DrivenActor<LanDialler>;

impl Drive for LanDialler {
    type Lent = Arc<LanPlane>;

    fn launch(plane: &Arc<LanPlane>, crew: &mut Crew) -> Result<(), DriverError> {
        let plane = Arc::clone(plane);
        crew.launch("dial", |pulse| run(plane, pulse));
        Ok(())
    }
}

/// An address that is to be dialled.
#[derive(Clone)]
struct Wanted {
    /// Stands for the node that is said to be there: it is dialled at one address at a time.
    tag: Tag,
    /// Who must be there; anybody who is admitted when unset.
    expected: Option<NodeId>,
    /// The only interface to dial by; any when unset.
    interface: Option<Arc<str>>,
}

/// An address with what is known of it.
struct Candidate {
    wanted: Wanted,
    /// Who was there last.
    found: Option<NodeId>,
    connected: bool,
    dialling: bool,
    /// Not before.
    due: Time,
    backoff: Backoff,
    problem: Option<String>,
}

impl Candidate {
    fn new(wanted: Wanted, me: NodeId, now: Time) -> Self {
        let due = now + head_start(wanted.expected, me);
        let backoff = Backoff::new(REDIAL);
        Self { wanted, found: None, connected: false, dialling: false, due, backoff, problem: None }
    }
}

/// One of the two ends waits, so that they do not dial each other at once.
fn head_start(node: Option<NodeId>, me: NodeId) -> Duration {
    match node {
        Some(node) if me < node => Duration::ZERO,
        Some(_) => HEAD_START,
        None => Duration::from_millis(rand::rng().random_range(0..200)),
    }
}

/// A bucket of dials.
struct Allowance {
    tokens: f64,
    at: Time,
}

impl Allowance {
    fn full(at: Time) -> Self {
        Self { tokens: f64::from(DIALS_PER_SECOND), at }
    }

    fn take(&mut self, now: Time) -> bool {
        let gained = (now - self.at).as_secs_f64() * f64::from(DIALS_PER_SECOND);
        self.tokens = (self.tokens + gained).min(f64::from(DIALS_PER_SECOND));
        self.at = now;
        let free = self.tokens >= 1.0;
        if free {
            self.tokens -= 1.0;
        }
        free
    }
}

type Dialled = (SocketAddr, Option<NodeId>, Result<(), JoinError>);

async fn run(plane: Arc<LanPlane>, pulse: Pulse) -> Result<(), DriverError> {
    let mut book: BTreeMap<SocketAddr, Candidate> = BTreeMap::new();
    // Dropped, and so aborted, with this driver.
    let mut dials: JoinSet<Dialled> = JoinSet::new();
    let mut allowance = Allowance::full(clock::now());
    let mut networks = Networks::default();
    let mut looked: Option<Time> = None;
    let (mut peers, mut hints) = (plane.peers().changes(), plane.hints().changes());
    let mut addresses = BTreeMap::new();
    loop {
        pulse.beat().await?;
        peers.mark_unchanged();
        let now = clock::now();
        // A closed channel never tells of a change; the plane holds its sender.
        if hints.has_changed().unwrap_or(false) || looked.is_none_or(|looked| now - looked >= LOOK_EVERY) {
            looked = Some(now);
            hints.mark_unchanged();
            addresses = wanted(&plane);
            tell_problems(&plane, &book);
            match Networks::read() {
                Ok(read) => networks = read,
                Err(error) => tracing::debug!(%error, "the addresses of this host cannot be read"),
            }
        }
        refresh(&plane, &addresses, &mut book, now);
        let next = begin(&plane, &networks, &mut book, &mut dials, &mut allowance, now);
        let wait = next.map_or(LOOK_EVERY, |next| (next - now).min(LOOK_EVERY));
        tokio::select! {
            _ = peers.changed() => {}
            _ = hints.changed() => hints.mark_changed(),
            Some(dialled) = dials.join_next() => {
                pulse.count_handled(1);
                if let Ok(dialled) = dialled {
                    end(&plane, &mut book, dialled);
                }
            }
            () = tokio::time::sleep(wait) => {}
            () = pulse.asked() => {}
        }
    }
}

/// All addresses to dial: those of the configuration, and hints.
fn wanted(plane: &LanPlane) -> BTreeMap<SocketAddr, Wanted> {
    let me = plane.me();
    let hints = plane.hints().all();
    let mut known: BTreeMap<Tag, NodeId> = BTreeMap::new();
    if !hints.is_empty() {
        let members = plane.parts.access.membership().map(|membership| membership.records());
        let members = members.iter().flatten().map(|record| record.node());
        let nodes = members.chain(plane.parts.known.iter().map(|(node, _)| *node));
        known.extend(nodes.map(|node| (node_tag(node), node)));
    }
    let hinted = hints.into_iter().map(|hint| {
        let expected = known.get(&hint.tag).copied();
        (canonical(hint.address), Wanted { tag: hint.tag, expected, interface: Some(hint.port) })
    });
    let configured = plane.parts.known.iter().map(|(node, address)| {
        (canonical(*address), Wanted { tag: node_tag(*node), expected: Some(*node), interface: None })
    });
    // What the configuration says of an address counts.
    hinted.chain(configured).filter(|(_, wanted)| wanted.tag != node_tag(me)).collect()
}

/// Brings the addresses in the book up to date, and whether they are connected.
fn refresh(
    plane: &LanPlane,
    addresses: &BTreeMap<SocketAddr, Wanted>,
    book: &mut BTreeMap<SocketAddr, Candidate>,
    now: Time,
) {
    let me = plane.me();
    book.retain(|address, candidate| addresses.contains_key(address) || candidate.dialling);
    for (address, wanted) in addresses {
        let candidate = book.entry(*address).or_insert_with(|| Candidate::new(wanted.clone(), me, now));
        candidate.wanted = wanted.clone();
    }
    let connected = plane.peers().all().into_iter().filter_map(|peer| {
        let connection = peer.connection()?;
        connection.connection.close_reason().is_none().then(|| (peer.node(), connection.remote()))
    });
    let connected: Vec<_> = connected.collect();
    for (address, candidate) in book {
        let node = candidate.wanted.expected.or(candidate.found);
        let is_connected = connected.iter().any(|(other, remote)| Some(*other) == node || remote == address);
        if candidate.connected && !is_connected {
            candidate.due = now + head_start(node, me);
            candidate.backoff.reset();
        }
        if is_connected {
            candidate.problem = None;
        }
        candidate.connected = is_connected;
    }
}

/// Starts what is due, the longest waiting first; gives the time of the next dial.
fn begin(
    plane: &Arc<LanPlane>,
    networks: &Networks,
    book: &mut BTreeMap<SocketAddr, Candidate>,
    dials: &mut JoinSet<Dialled>,
    allowance: &mut Allowance,
    now: Time,
) -> Option<Time> {
    let mut busy: BTreeSet<Tag> =
        book.values().filter(|candidate| candidate.dialling).map(|candidate| candidate.wanted.tag).collect();
    let mut open: Vec<_> =
        book.iter_mut().filter(|(_, candidate)| !candidate.connected && !candidate.dialling).collect();
    open.sort_by_key(|(_, candidate)| candidate.due);
    let mut next = None;
    for (address, candidate) in open {
        if candidate.due > now {
            return next.or(Some(candidate.due));
        }
        let wanted = &candidate.wanted;
        if busy.contains(&wanted.tag) {
            // The end of that dial wakes us.
            continue;
        }
        let port = plane.ports().into_iter().find(|port| {
            wanted.interface.as_ref().is_none_or(|interface| *interface == port.interface)
                && networks.reaches(&port.interface, address.ip())
                && (address.is_ipv4() || port.link.is_dual())
        });
        let Some(port) = port else {
            candidate.problem = Some("in no network of this host's LAN interfaces".to_owned());
            candidate.due = now + LOOK_EVERY;
            continue;
        };
        if !allowance.take(now) {
            next = Some(now + Duration::from_secs(1) / DIALS_PER_SECOND);
            break;
        }
        candidate.dialling = true;
        let (plane, address) = (Arc::clone(plane), *address);
        busy.insert(wanted.tag);
        let expected = wanted.expected;
        dials.spawn(async move {
            let mut found = None;
            let result = dial(&plane, &port, address, expected, &mut found).await;
            (address, found, result)
        });
    }
    next
}

fn end(plane: &LanPlane, book: &mut BTreeMap<SocketAddr, Candidate>, (address, found, result): Dialled) {
    if let Some(candidate) = book.get_mut(&address) {
        candidate.dialling = false;
        candidate.found = found.or(candidate.found);
        match result {
            Ok(()) | Err(JoinError::NotNeeded) => {
                candidate.problem = None;
                // Should the other connection not last, this address is tried again soon.
                candidate.due = clock::now() + REDIAL.delay_max;
            }
            Err(error) => {
                let delay = match candidate.backoff.died(Duration::ZERO, &mut rand::rng()) {
                    Verdict::Restart(delay) | Verdict::Park(delay) => delay,
                };
                candidate.due = clock::now() + delay;
                let problem = error.to_string();
                if candidate.problem.as_ref() != Some(&problem) {
                    tracing::debug!(%address, problem, "nobody to talk to at this LAN address");
                }
                candidate.problem = Some(problem);
            }
        }
    }
    tell_problems(plane, book);
}

fn tell_problems(plane: &LanPlane, book: &BTreeMap<SocketAddr, Candidate>) {
    let problems =
        book.iter().filter_map(|(address, candidate)| Some((*address, candidate.problem.clone()?)));
    plane.note_problems(problems.collect());
}

/// Dials, greets, and takes the connection into use. `found` gets who is there as soon as it is known.
async fn dial(
    plane: &LanPlane,
    port: &LanPort,
    address: SocketAddr,
    expected: Option<NodeId>,
    found: &mut Option<NodeId>,
) -> Result<(), JoinError> {
    let endpoint = port.link.endpoint().map_err(JoinError::Endpoint)?;
    let config = plane.client(expected).map_err(|_error| JoinError::Keys)?;
    let connecting = endpoint.connect_with(config, address, SERVER_NAME);
    if matches!(connecting, Err(quinn::ConnectError::EndpointStopping)) {
        port.link.renew_endpoint();
    }
    let connection =
        tokio::time::timeout(CONNECT_TIMEOUT, connecting?).await.map_err(|_elapsed| JoinError::Timeout)??;
    let node = peer_of(&connection).ok_or(JoinError::Keys)?;
    *found = Some(node);
    let mut stream = ControlStream::new(connection.open_bi().await?);
    let parts = &plane.parts;
    stream.send(&Message::Hello(hello(&parts.node_name, parts.instance, &parts.access))).await?;
    let answer = stream.next().await;
    match answer {
        Ok(Message::HelloAck(greeting)) => {
            if plane.is_me(node, Some(&greeting), address) {
                CloseCode::Done.close(&connection);
                return Err(JoinError::NotNeeded);
            }
            let admitted = admit(&parts.access, &connection, &greeting)
                .inspect_err(|_error| CloseCode::Stranger.close(&connection))?;
            stream.trust();
            let (by, port) = (DialledBy::Us, Arc::clone(&port.link));
            plane.arrived(Arrival { node, admitted, hello: &greeting, by, connection, port }, stream)
        }
        Ok(other) => {
            CloseCode::Protocol.close(&connection);
            Err(JoinError::Unexpected(other.kind()))
        }
        // The reason for which the other end closed the connection says more than the broken stream.
        Err(error) => Err(connection.close_reason().map_or(error, JoinError::Connection)),
    }
}
