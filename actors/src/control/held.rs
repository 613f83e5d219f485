//! Paths that have joined, with the connection that each came from.
//!
//! They are kept beside the actors that watch them: an actor that dies finds them when it returns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::health::HealthConfig;
use mwb_proto::time::Time;
use parking_lot::Mutex;
use quinn::Connection;

use super::CloseCode;
use crate::clock;
use crate::health_probe::{HealthProbe, HealthProbeLent};
use crate::session::path::PathEndpoint;
use crate::supervisor::{ChildSpec, Plan};

/// A replaced connection stays open this long, for datagrams under its keys that are under way.
pub(super) const REPLACED_GRACE: Duration = Duration::from_secs(2);

/// A path and its connection.
#[derive(Clone, Debug)]
pub struct HeldPath {
    /// The connection whose exporter gave the path its keys.
    pub connection: Connection,
    /// The path.
    pub endpoint: Arc<PathEndpoint>,
    /// When it joined.
    pub since: Time,
}

impl HeldPath {
    /// How long nothing authentic has come over it.
    pub fn silence(&self) -> Duration {
        clock::now() - self.endpoint.last_heard()
    }
}

/// All held paths of one peer.
#[derive(Debug)]
pub struct HeldPaths {
    paths: Mutex<BTreeMap<u64, HeldPath>>,
    /// Plan of the link supervisor, which runs a probe per path.
    probes: Arc<Plan>,
}

impl HeldPaths {
    /// No paths yet. Probes of coming ones are added to `probes`.
    pub fn new(probes: Arc<Plan>) -> Self {
        Self { paths: Mutex::default(), probes }
    }

    /// Holds a path that has just joined: installs it in its session and starts its probe.
    pub fn add(&self, connection: Connection, endpoint: Arc<PathEndpoint>) -> HeldPath {
        let held = HeldPath { connection, endpoint: Arc::clone(&endpoint), since: clock::now() };
        self.paths.lock().insert(endpoint.generation(), held.clone());
        endpoint.session().install(&endpoint);
        let lent = HealthProbeLent { path: Arc::clone(&endpoint), config: HealthConfig::default() };
        self.probes.add(ChildSpec::driven::<HealthProbe>(probe_name(&endpoint), lent));
        held
    }

    /// Lets go of a path: takes it out of its session, unless a newer one has its place, and closes
    /// its connection.
    pub fn remove(&self, held: &HeldPath, why: CloseCode) {
        let endpoint = &held.endpoint;
        self.paths.lock().remove(&endpoint.generation());
        let session = endpoint.session();
        session.uninstall(endpoint);
        if !session.paths().contains_key(&endpoint.id()) {
            self.probes.remove(&probe_name(endpoint));
        }
        why.close(&held.connection);
    }

    /// Lets go of all paths.
    pub fn remove_all(&self, why: CloseCode) {
        for held in self.all() {
            self.remove(&held, why);
        }
    }

    /// All paths, oldest first.
    pub fn all(&self) -> Vec<HeldPath> {
        self.paths.lock().values().cloned().collect()
    }

    /// The path in use for `id`.
    pub fn newest(&self, id: mwb_proto::wire::PathId) -> Option<HeldPath> {
        self.paths.lock().values().rev().find(|held| held.endpoint.id() == id).cloned()
    }

    /// Whether a newer path has the place of `held` and has been heard.
    pub fn is_superseded(&self, held: &HeldPath) -> bool {
        self.newest(held.endpoint.id()).is_some_and(|newest| {
            newest.endpoint.generation() > held.endpoint.generation() && newest.endpoint.is_heard()
        })
    }
}

/// Name of a path's probe below the link supervisor.
fn probe_name(endpoint: &PathEndpoint) -> String {
    format!("probe-{}-{}", endpoint.session().name(), endpoint.id())
}

/// Largest datagram for inner packets of `mtu` bytes: a full packet and our header and tag, and
/// never less than what IPv6 promises.
pub(super) fn datagram_max(mtu: u16) -> usize {
    (usize::from(mtu) + mwb_proto::wire::v2::DATA_OVERHEAD).max(1232)
}
