//! A node: builds what its specification asks for, starts the supervision tree over it, and lends
//! everything that must survive an actor.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mwb_proto::buf::BufPool;
use mwb_proto::health::HealthConfig;
use ractor::ActorRef;
use tokio::sync::watch;

use crate::address_pool::book::{AddressBook, Pools};
use crate::address_pool::{AddressPool, AddressPoolV6};
use crate::control::dial::ExitPeer;
use crate::control::exit::{Exit, SessionParts};
use crate::control::exits::{Exits, ExitsParts};
use crate::control::listen::{Listener, ListenerLent};
use crate::control::{CloseCode, transport};
use crate::discovery::{Discovery, DiscoveryLent, Slot};
use crate::host::{Host, HostExit, HostLent};
use crate::lan::LanPeers;
use crate::lan::announce::{Announce, AnnounceLent};
use crate::lan::dial::LanDialler;
use crate::lan::follow::{LanFollow, LanFollowLent};
use crate::lan::listen::LanListener;
use crate::lan::plane::{LanParts, LanPlane};
use crate::lan::port::{LanPort, PortParts};
use crate::lend::borrow::Borrow;
use crate::lend::lender::Lend;
use crate::lend::{Lending, LendingParts};
use crate::membership::Access;
use crate::membership::keeper::{Keeper, KeeperLent};
use crate::registry::{Fault, Registry};
use crate::session::path::SessionTable;
use crate::spec::{ExitSpec, Gateways, LanSpec, NodeSpec, Platform, StartError, lan_link_name};
use crate::status::{ExitStatus, LanStatus, MembershipStatus, NodeStatus, PeerStatus, SessionStatus};
use crate::supervisor::{ChildSpec, Plan, Policy, Supervisor, SupervisorMsg, Tree};
use crate::tls::{self, Allowed};
use crate::trace::{Trace, TraceWriter};
use crate::tun::{Tun, TunPort};
use crate::uplinks::{Follow, FollowLent, Uplinks, UplinksParts};
use crate::wan_link::{Link, LinkSpec, SocketSpec, WanLink};

/// Packet buffers kept when unused: 16 MiB.
const POOL_IDLE_MAX: usize = 8192;
/// Least capacity of a packet buffer: QUIC's datagrams fit as well.
const BUFFER_MIN: usize = 2048;
/// Room beside the inner packet in a buffer.
const BUFFER_ROOM: usize = 128;
/// How long a node may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the peers to be told.
const FAREWELL: Duration = Duration::from_millis(50);

static NODES: AtomicU64 = AtomicU64::new(0);

/// Starts a node.
///
/// # Errors
/// When the specification contradicts itself or the host refuses the TUN device or a listen
/// address. Uplinks whose device is missing are no error: they are waited for.
pub async fn start(spec: NodeSpec, platform: Arc<dyn Platform>) -> Result<RunningNode, StartError> {
    spec.validate()?;
    let resources = Resources::make(&spec)?;
    let built = Built::make(&spec, &resources, Arc::clone(&platform))?;
    let registry = Registry::new();
    let prefix = format!("mwb-{}-{}", spec.identity.node_id().short(), NODES.fetch_add(1, Ordering::Relaxed));
    let tree = Arc::new(Tree { prefix, registry: Arc::clone(&registry) });
    let (root, ended) = Supervisor::spawn_root(Arc::clone(&built.root), tree, Policy::default()).await?;
    let (failed, _) = watch::channel(false);
    tokio::spawn({
        let failed = failed.clone();
        async move {
            let _ = ended.await;
            failed.send_replace(true);
        }
    });
    Ok(RunningNode { spec, platform, registry, root, failed, resources, built })
}

/// What exists once per node and belongs to its root.
struct Resources {
    pool: BufPool,
    table: Arc<SessionTable>,
    tun: Arc<Tun>,
    trace: Trace,
    instance: u64,
}

impl Resources {
    fn make(spec: &NodeSpec) -> Result<Self, StartError> {
        let capacity = BUFFER_MIN.max(usize::from(spec.tun.mtu) + BUFFER_ROOM);
        let pool = BufPool::new(capacity, POOL_IDLE_MAX);
        let tun = Tun::create(&spec.tun, pool.clone())
            .map_err(|source| StartError::Tun { name: spec.tun.name.clone(), source })?;
        Ok(Self {
            pool,
            table: Arc::default(),
            tun,
            trace: Trace::new(spec.trace.as_deref(), &spec.name),
            instance: rand::random(),
        })
    }
}

/// The plans of the supervisors and what `status` wants to see of their resources.
struct Built {
    root: Arc<Plan>,
    /// The plans below: they refer to what refers to them, and are cleared when the node stops.
    plans: [Arc<Plan>; 4],
    uplinks: Arc<Uplinks>,
    /// Those of listen addresses.
    links: Vec<Arc<Link>>,
    exits: Option<Arc<Exits>>,
    exit: Option<Arc<Exit>>,
    lan: Option<Arc<LanPlane>>,
    lending: Option<Arc<Lending>>,
}

impl Built {
    /// The links of uplinks, listen addresses and LAN ports.
    fn all_links(&self) -> impl Iterator<Item = Arc<Link>> {
        let uplinks = self.uplinks.all().into_iter().map(|uplink| uplink.link);
        let ports = self.lan.iter().flat_map(|lan| lan.ports()).map(|port| port.link);
        uplinks.chain(self.links.iter().map(Arc::clone)).chain(ports)
    }

    fn exit_peers(&self) -> Vec<Arc<ExitPeer>> {
        self.exits.as_ref().map(|exits| exits.all()).unwrap_or_default()
    }
}

/// Who may talk to this node.
fn access(spec: &NodeSpec) -> Access {
    let named = spec.peers.iter().map(|peer| (peer.node_id, peer.name.clone()));
    let mut known: BTreeMap<_, _> = named.collect();
    for node in spec.exit.iter().flat_map(|exit| &exit.allowed) {
        known.entry(*node).or_insert_with(|| format!("node-{}", node.short()));
    }
    Access::new(known, spec.membership.clone())
}

impl Built {
    fn make(spec: &NodeSpec, resources: &Resources, platform: Arc<dyn Platform>) -> Result<Self, StartError> {
        let policy = Policy::default();
        let (links_plan, control_plan, sessions_plan) = (Plan::new([]), Plan::new([]), Plan::new([]));
        let parts = SessionParts {
            sessions: Arc::clone(&sessions_plan),
            table: Arc::clone(&resources.table),
            tun: Arc::clone(&resources.tun),
            mtu: spec.tun.mtu,
            bond: spec.bond.clone(),
            pool: resources.pool.clone(),
            trace: resources.trace.clone(),
            policy,
        };
        let (inner, _) = watch::channel(None);
        let relays_plan = Plan::new([]);
        let plans = [&links_plan, &control_plan, &sessions_plan, &relays_plan].map(Arc::clone);
        let root = Plan::new([]);
        let uplinks = uplinks(spec, resources, &links_plan);
        let links = Vec::new();
        let mut built =
            Self { root, plans, uplinks, links, exits: None, exit: None, lan: None, lending: None };

        let access = Arc::new(access(spec));
        if spec.is_edge() {
            let parts = ExitsParts {
                node_name: spec.name.clone(),
                instance: resources.instance,
                identity: Arc::clone(&spec.identity),
                access: Arc::clone(&access),
                uplinks: Arc::clone(&built.uplinks),
                session: parts.clone(),
                control: Arc::clone(&control_plan),
                links: Arc::clone(&links_plan),
                inner: inner.clone(),
            };
            let exits = Exits::new(parts, spec.exits())?;
            if let Some(found) = &spec.found {
                let (uplinks, exits) = (Arc::clone(&built.uplinks), Arc::clone(&exits));
                let lent = FollowLent { uplinks, exits, found: found.clone() };
                control_plan.add(ChildSpec::driven::<Follow>("uplinks", lent));
            }
            built.exits = Some(exits);
        }
        let mut host_exit = None;
        if let Some(exit_spec) = &spec.exit {
            let pools = pools(exit_spec)?;
            let host = HostExit { gateways: gateways(&pools), offer: Arc::default() };
            // Before the first edge comes: it gets its addresses with its first path.
            host.look(platform.as_ref());
            let exit = Exit::new(
                spec.name.clone(),
                resources.instance,
                Arc::clone(&access),
                AddressBook::open(pools, exit_spec.addresses_file.clone()),
                Arc::clone(&host.offer),
                parts.clone(),
                Arc::clone(&control_plan),
                Arc::clone(&links_plan),
            );
            host_exit = Some(host);
            for (number, link) in listen_links(spec, exit_spec, resources)?.into_iter().enumerate() {
                let lent = ListenerLent { exit: Arc::clone(&exit), link: Arc::clone(&link) };
                control_plan.add(ChildSpec::driven::<Listener>(format!("listen-{number}"), lent));
                built.links.push(link);
            }
            built.exit = Some(exit);
        }
        if let Some(lan) = &spec.lan {
            let parts = port_parts(spec, lan, resources);
            let ports = LanPort::open_all(&lan.interfaces, &parts)?;
            for port in &ports {
                links_plan.add(ChildSpec::driven::<WanLink>(port.link.name(), Arc::clone(&port.link)));
            }
            let plane = lan_plane(spec, Arc::clone(&access), ports, &control_plan, resources);
            if let Some(found) = &lan.found {
                let (links, found) = (Arc::clone(&links_plan), found.clone());
                let lent = LanFollowLent { plane: Arc::clone(&plane), parts, links, found };
                control_plan.add(ChildSpec::driven::<LanFollow>("lan-ports", lent));
            }
            let lending = built.lending(spec, lan, &plane, &relays_plan);
            control_plan.add(ChildSpec::driven::<Lend>("lend", Arc::clone(&lending)));
            control_plan.add(ChildSpec::driven::<Borrow>("borrow", Arc::clone(&lending)));
            built.root.add(ChildSpec::supervisor("relays", relays_plan, policy));
            let lent = AnnounceLent {
                peers: Arc::clone(plane.peers()),
                uplinks: Arc::clone(&built.uplinks),
                exits: built.exits.clone(),
                platform: Arc::clone(&platform),
            };
            control_plan.add(ChildSpec::driven::<Announce>("announce", lent));
            if lan.mdns && (!lan.interfaces.is_empty() || lan.found.is_some()) {
                let lent = DiscoveryLent {
                    node: spec.identity.node_id(),
                    access: Arc::clone(&access),
                    interfaces: plane.interfaces(),
                    port: lan.port,
                    hints: Arc::clone(plane.hints()),
                    slot: Slot::default(),
                };
                built.root.add(ChildSpec::driven::<Discovery>("discovery", lent));
            }
            (built.lan, built.lending) = (Some(plane), Some(lending));
        }
        if let Some(membership) = &spec.membership {
            if let Some(exits) = &built.exits {
                exits.follow(membership)?;
            }
            let (membership, exits) = (Arc::clone(membership), built.exits.clone());
            let lent = KeeperLent { membership, access: Arc::clone(&access), exits };
            control_plan.add(ChildSpec::driven::<Keeper>("membership", lent));
        }
        for link in &built.links {
            links_plan.add(ChildSpec::driven::<WanLink>(link.name(), Arc::clone(link)));
        }

        let host = HostLent { platform, tun: Arc::clone(&resources.tun), inner, exit: host_exit };
        let supervisor = |name: &str, plan| ChildSpec::supervisor(name, plan, policy);
        built.root.add(supervisor("sessions", sessions_plan));
        built.root.add(supervisor("links", links_plan));
        built.root.add(supervisor("control", control_plan));
        built.root.add(ChildSpec::driven::<TunPort>("tun", Arc::clone(&resources.tun)));
        built.root.add(ChildSpec::driven::<Host>("host", host));
        if resources.trace.is_on() {
            built.root.add(ChildSpec::driven::<TraceWriter>("trace", resources.trace.clone()));
        }
        Ok(built)
    }

    fn lending(
        &self,
        spec: &NodeSpec,
        lan: &LanSpec,
        plane: &Arc<LanPlane>,
        relays: &Arc<Plan>,
    ) -> Arc<Lending> {
        Lending::new(LendingParts {
            peers: Arc::clone(plane.peers()),
            uplinks: Arc::clone(&self.uplinks),
            named_exits: spec.exits().map(|exit| (exit.node_id, exit.addresses.clone())).collect(),
            membership: spec.membership.clone(),
            exits: self.exits.clone(),
            relays: Arc::clone(relays),
            budget: lan.lend_budget,
        })
    }
}

/// The uplinks of the configuration; others may come.
fn uplinks(spec: &NodeSpec, resources: &Resources, links: &Arc<Plan>) -> Arc<Uplinks> {
    let lan = spec.lan.iter().flat_map(|lan| &lan.interfaces).map(|interface| lan_link_name(interface));
    let listen = (0..spec.exit.iter().map(|exit| exit.listen.len()).sum()).map(listen_link_name);
    let parts = UplinksParts {
        identity: Arc::clone(&spec.identity),
        table: Arc::clone(&resources.table),
        pool: resources.pool.clone(),
        links: Arc::clone(links),
        exits: spec.exits().flat_map(|exit| exit.addresses.clone()).collect(),
        membership: spec.membership.clone(),
        names: lan.chain(listen).collect(),
        reserved: spec.reserved.clone(),
    };
    Uplinks::new(parts, if spec.is_edge() { &spec.uplinks } else { &[] })
}

/// What LAN ports are made from.
fn port_parts(spec: &NodeSpec, lan: &LanSpec, resources: &Resources) -> PortParts {
    PortParts {
        port: lan.port,
        fwmark: lan.fwmark,
        identity: Arc::clone(&spec.identity),
        table: Arc::clone(&resources.table),
        pool: resources.pool.clone(),
    }
}

fn listen_link_name(number: usize) -> String {
    format!("listen-{number}")
}

/// Links of the listen addresses, already bound: a taken port is a mistake to be told at once.
fn listen_links(
    spec: &NodeSpec,
    exit: &ExitSpec,
    resources: &Resources,
) -> Result<Vec<Arc<Link>>, StartError> {
    let mut links = Vec::new();
    for (number, address) in exit.listen.iter().enumerate() {
        let tls = tls::server_config(&spec.identity, Allowed::AnyNode)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
        server.transport_config(transport());
        let socket = SocketSpec { bind: *address, device: None, mark: None };
        let (name, health) = (listen_link_name(number), HealthConfig::default());
        let link = LinkSpec { name, socket, rate_max: None, weight: 10, health };
        let (table, pool) = (Arc::clone(&resources.table), resources.pool.clone());
        let link = Link::new(link, Arc::clone(&spec.identity), Some(server), table, pool);
        link.open().map_err(|source| StartError::Listen { address: *address, source })?;
        links.push(link);
    }
    Ok(links)
}

fn pools(exit: &ExitSpec) -> Result<Pools, StartError> {
    let (network, prefix) = exit.pool_v4;
    let v4 = AddressPool::new(network, prefix).ok_or(StartError::Pool(network, prefix))?;
    let pool_v6 =
        |(network, prefix)| AddressPoolV6::new(network, prefix).ok_or(StartError::PoolV6(network, prefix));
    Ok(Pools { v4, v6: exit.pool_v6.map(pool_v6).transpose()? })
}

/// The exit's own addresses in its pools.
fn gateways(pools: &Pools) -> Gateways {
    let v6 = pools.v6.as_ref().map(|pool| (pool.gateway(), pool.prefix()));
    Gateways { v4: (pools.v4.gateway(), pools.v4.prefix()), v6 }
}

/// The LAN plane with its actors.
fn lan_plane(
    spec: &NodeSpec,
    access: Arc<Access>,
    ports: Vec<LanPort>,
    control: &Arc<Plan>,
    resources: &Resources,
) -> Arc<LanPlane> {
    let known = spec.peers.iter().flat_map(|peer| peer.lan.iter().map(|address| (peer.node_id, *address)));
    let parts = LanParts {
        node_name: spec.name.clone(),
        instance: resources.instance,
        identity: Arc::clone(&spec.identity),
        access,
        known: known.collect(),
        hints: Arc::default(),
        ports,
        control: Arc::clone(control),
    };
    let plane = LanPlane::new(parts, Arc::default());
    for port in plane.ports() {
        let lent = (Arc::clone(&plane), port.clone());
        control.add(ChildSpec::driven::<LanListener>(port.link.name(), lent));
    }
    control.add(ChildSpec::driven::<LanDialler>("lan-dial", Arc::clone(&plane)));
    plane
}

/// A node that runs. Dropping it does not stop it cleanly: use [`stop`](Self::stop).
pub struct RunningNode {
    spec: NodeSpec,
    platform: Arc<dyn Platform>,
    registry: Arc<Registry>,
    root: ActorRef<SupervisorMsg>,
    failed: watch::Sender<bool>,
    resources: Resources,
    built: Built,
}

impl RunningNode {
    /// Stops everything: tells the peers, ends all actors, gives the host back.
    pub async fn stop(self) {
        // First the host: as long as its routes point into the TUN, its traffic would vanish there.
        if self.spec.is_edge() {
            let down = self.platform.session_down(self.resources.tun.name());
            if tokio::time::timeout(STOP_TIMEOUT, down).await.is_err() {
                tracing::error!("the platform took too long to give the host back");
            }
        }
        let _ = self.root.stop_and_wait(None, Some(STOP_TIMEOUT)).await;
        for exit in self.built.exit_peers() {
            exit.held.remove_all(CloseCode::Done);
        }
        for peer in self.built.exit.iter().flat_map(|exit| exit.peers()) {
            peer.held.remove_all(CloseCode::Done);
        }
        if let Some(lan) = &self.built.lan {
            lan.close();
        }
        for link in self.built.all_links() {
            link.close();
        }
        for plan in self.built.plans.iter().chain([&self.built.root]) {
            plan.clear();
        }
        self.resources.tun.set_default_session(None);
        // QUIC says goodbye from its own tasks.
        tokio::time::sleep(FAREWELL).await;
        for link in self.built.all_links() {
            link.shut();
        }
    }

    /// The node's state.
    pub fn status(&self) -> NodeStatus {
        let exits = self.built.exit_peers();
        let mut sessions: Vec<SessionStatus> =
            exits.iter().map(|exit| SessionStatus::of(&exit.session)).collect();
        let mut peers: Vec<PeerStatus> = exits.iter().map(|exit| PeerStatus::of(exit)).collect();
        for peer in self.built.exit.iter().flat_map(|exit| exit.peers()) {
            sessions.extend(peer.session().map(|session| SessionStatus::of(&session)));
            let paths_joined = peer.held.all().len();
            let (name, node_id) = (peer.name.clone(), peer.node);
            peers.push(PeerStatus { name, node_id, paths_joined, slots: Vec::new() });
        }
        NodeStatus {
            name: self.spec.name.clone(),
            node_id: self.spec.identity.node_id(),
            actors: self.registry.snapshot(),
            uplinks: self.built.uplinks.status(),
            links: self.built.all_links().map(|link| link.status()).collect(),
            peers,
            sessions,
            membership: self.spec.membership.as_deref().map(MembershipStatus::of),
            lan: self.built.lan.as_deref().map(LanStatus::of),
            leases: self.built.lending.as_ref().map(|lending| lending.status()),
            exit: self.built.exit.as_deref().map(|exit| ExitStatus::of(exit.offer())),
            tun: self.resources.tun.status(),
        }
    }

    /// The members on the LAN; `None` when this node takes no part in one.
    pub fn lan_peers(&self) -> Option<&Arc<LanPeers>> {
        self.built.lan.as_ref().map(|lan| lan.peers())
    }

    /// Resolves when the node cannot go on: its root has ended without being asked to.
    pub async fn failed(&self) {
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
    }

    /// Injects a fault into the actor or driver called `name`, as `status` names it; false when there
    /// is none. A hook for tests and diagnosis: it shows what the death of a part costs.
    pub fn inject(&self, name: &str, fault: Fault) -> bool {
        self.registry.inject(name, fault)
    }

    /// Gives all paths of an edge new keys now instead of once a day; nothing is interrupted.
    pub fn renew_paths(&self) {
        for exit in self.built.exit_peers() {
            exit.renew();
        }
    }

    /// The exit's inner address, when this node is one.
    pub fn gateway(&self) -> Option<(Ipv4Addr, u8)> {
        let exit = self.spec.exit.as_ref()?;
        let pool = AddressPool::new(exit.pool_v4.0, exit.pool_v4.1)?;
        Some((pool.gateway(), pool.prefix()))
    }
}

impl std::fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RunningNode({})", self.spec.name)
    }
}
