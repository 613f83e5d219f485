//! `mwb-node run`: from a configuration to a running node, and back to a clean host.

mod found;

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use mwb_actors::RunningNode;
use mwb_actors::identity::Identity;
use mwb_actors::membership::Membership;
use mwb_actors::membership::store::Store;
use mwb_actors::spec::{BondSpec, ExitSpec, LanSpec, NodeSpec, PeerSpec, StartError, UplinkSpec};
use mwb_actors::tun::TunSpec;
use mwb_proto::mesh::Roles;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, REFUSED, RuntimeDir, Socket, StateDir, config_file};
use crate::config::{self, NodeConfig};
use crate::platform::linux::cleanup::{self, Cleaned};
use crate::platform::{HostSettings, LinuxPlatform, MARK};
use crate::runtime_dir::Claim;
use crate::{identity, logging, rights, service, status};

/// In the state folder of an exit: who has which inner address.
const ADDRESSES: &str = "addresses.json";

#[derive(Args)]
pub(super) struct RunArgs {
    /// The configuration (TOML, JSON or YAML) [default: /etc/mwb-node.toml, if it is there]; mwb-node config default
    /// prints a sample
    #[arg(long, env = "MWB_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: config_file::Options,
    /// Leave the host's default route as it is; what asks for the bond uses it: curl --interface mwb0, or ip route add
    /// NETWORK dev mwb0. The same as --set tun.default_route=false
    #[arg(long)]
    no_default_route: bool,
    #[command(flatten)]
    state: StateDir,
    #[command(flatten)]
    runtime: RuntimeDir,
    #[command(flatten)]
    socket: Socket,
    /// Write the bond's state every 100 ms to this file, or into this folder, one JSON object a line
    #[arg(long, env = "MWB_TRACE", value_name = "PATH")]
    trace: Option<PathBuf>,
}

/// Runs the node until it is told to stop.
///
/// # Errors
/// A refused configuration, a host that cannot be used, or a node that could not go on.
pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    let mut options = args.options.clone();
    if args.no_default_route {
        options.set("tun.default_route=false");
    }
    let config = config_file::load(args.config.as_deref(), &options)?;
    logging::start(&config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let identity = Arc::new(identity::load_or_make(&args.state.state_dir)?);
    let store = Store::new(&args.state.state_dir);
    let membership = Membership::open(store, identity.node_id())
        .map_err(|error| Failure::new(format!("the membership cannot be used: {error}")))?;
    let config = with_role(config, membership.as_deref())?;
    let claim = Claim::new(&args.runtime.runtime_dir)?;
    give_up_rights(args, &config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers.unwrap_or_else(workers))
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
    let result = runtime.block_on(node(args, &config, identity, membership));
    // Blocking work that hangs must not keep a stopped node alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    drop(claim);
    result
}

/// Keeps the rights that the node needs from here on; that it has more is no reason not to run.
fn give_up_rights(args: &RunArgs, config: &NodeConfig) {
    let socket = args.socket.path(&args.runtime);
    let mut paths = vec![&*args.state.state_dir, &*args.runtime.runtime_dir, &*socket];
    paths.extend([&args.config, &args.trace].into_iter().flatten().map(PathBuf::as_path));
    let listen = config.exit.iter().flat_map(|exit| exit.listen.iter().map(|listen| listen.port()));
    let ports = listen.chain(config.lan.iter().map(|lan| lan.port));
    if let Err(error) = rights::reduce(&paths, ports) {
        tracing::warn!(%error, "the node keeps all rights that it was started with");
    }
}

/// Threads unless the configuration says how many: one for every two processors. A packet passes three tasks at each
/// end; handing it from thread to thread costs more than it brings, and the kernel has its share of the work to do.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2))
}

/// Completes the configuration by what the membership says, and refuses to run without a role.
pub(super) fn with_role(
    mut config: NodeConfig,
    membership: Option<&Membership>,
) -> Result<NodeConfig, Failure> {
    let refused = |message: &str| Err(Failure { code: REFUSED, message: message.to_owned() });
    let own = membership.and_then(Membership::own);
    if let Some(own) = own.as_ref().filter(|_| !config.is_named) {
        config.name.clone_from(&own.name);
    }
    let exit_record = own.filter(|own| own.roles.contains(Roles::EXIT));
    let has_exit = config.peers.iter().any(|peer| peer.exit);
    // Others are met only where it is known who they are.
    config.discovery.lan &= membership.is_some() && exit_record.is_none();
    let finds_lan = config.discovery.lan;
    config.lan = config.lan.filter(|lan| finds_lan || !lan.interfaces.is_empty());
    match (&config.exit, config.uplinks.is_empty()) {
        (None, true) if exit_record.is_some() => {
            config.exit = exit_record.map(|record| config::Exit::at(&record.addresses));
            config.discovery.uplinks = false;
        }
        (None, true) if config.lan.is_none() && !config.discovery.uplinks => {
            return refused(
                "this node has nothing to do: remove discovery.uplinks or write [[uplinks]] on an edge, write \
                 lan.interfaces on one that uses the uplinks of others; make an exit with mwb-node init --exit, or write [exit]",
            );
        }
        (None, _) if !has_exit && membership.is_none() => {
            return refused(
                "this node knows no exit: join a mesh with mwb-node join TOKEN, or mark a peer with exit = true",
            );
        }
        (Some(_), _) if config.peers.is_empty() && membership.is_none() => {
            return refused(
                "nobody may use this exit: make a mesh with mwb-node init --exit and invite others, or list each edge in \
                 [[peers]]",
            );
        }
        (Some(_), _) if membership.is_some() && exit_record.is_none() => {
            tracing::warn!("the mesh does not know this node as an exit: members will not find it");
        }
        _ => {}
    }
    Ok(config)
}

async fn node(
    args: &RunArgs,
    config: &NodeConfig,
    identity: Arc<Identity>,
    membership: Option<Arc<Membership>>,
) -> Result<(), Failure> {
    let runtime_dir = &args.runtime.runtime_dir;
    // Registered before anything is changed: a signal from here on finds a clean way out.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    report(&cleanup::clean(runtime_dir).await, "an earlier node left this");
    let exit = config.exit.as_ref();
    let settings = HostSettings {
        default_route: config.tun.default_route,
        edge_dns: config.tun.dns.clone(),
        exit_dns: exit.map(|exit| exit.dns.clone()).unwrap_or_default(),
        egress: exit.map(|exit| exit.egress.clone()).unwrap_or_default(),
    };
    let platform = Arc::new(LinuxPlatform::new(runtime_dir, settings));
    let result = async {
        let named = config.uplinks.iter().filter(|uplink| !uplink.is_typed());
        let interfaces: Vec<_> = named.map(|up| (up.interface.clone(), up.address)).collect();
        platform.prepare_uplinks(&interfaces).await.map_err(|error| Failure::new(error.to_string()))?;
        let watching = Arc::clone(&platform);
        let watch = AbortOnDrop(tokio::spawn(async move {
            tokio::join!(watching.watch_uplinks(&interfaces), watching.watch_names());
        }));
        let node_id = identity.node_id();
        let mut spec = spec(args, config, identity, membership);
        let found = found::begin(config, &platform).await?;
        let _follow = found.map(|found| {
            (spec.found, spec.reserved) = (found.uplinks, found.reserved);
            if let Some(lan) = &mut spec.lan {
                lan.found = found.lans;
            }
            AbortOnDrop(found.follow)
        });
        let running = mwb_actors::start(spec, Arc::clone(&platform) as _).await.map_err(|error| {
            let hint = match &error {
                StartError::Tun { .. } => {
                    "; run as root, load the module (modprobe tun), or stop the node or program that has an interface of that name"
                }
                StartError::Listen { .. } => "; free the address, or change exit.listen",
                StartError::LanPort { .. } => "; free the port, or change lan.port",
                _ => "",
            };
            Failure::new(format!("the node did not start: {error}{hint}"))
        })?;
        let running = Arc::new(running);
        let asked = Arc::clone(&running);
        let started = std::time::Instant::now();
        let server = status::serve(&args.socket.path(&args.runtime), move || {
            let mut state = serde_json::to_value(asked.status()).unwrap_or_default();
            if let Some(object) = state.as_object_mut() {
                object.insert("uptime_seconds".to_owned(), started.elapsed().as_secs().into());
                object.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
            }
            state
        })
        .map_err(|error| Failure::new(format!("making the control socket: {error}")))?;
        tracing::info!(name = config.name, %node_id, "running");
        service::ready(&format!("{} is running", config.name));
        let result = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            never = service::keep_alive() => match never {},
            () = running.failed() => Err(Failure::new("the node could not go on; the log above says why")),
        };
        tracing::info!("stopping");
        service::stopping();
        drop(server);
        drop(watch);
        stop(running).await;
        result
    }
    .await;
    report(&cleanup::clean(runtime_dir).await, "undone");
    result
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Stops the node once its last user has let go of it.
async fn stop(running: Arc<RunningNode>) {
    let mut running = running;
    loop {
        match Arc::try_unwrap(running) {
            Ok(node) => return node.stop().await,
            Err(shared) => running = shared,
        }
        // An answer about the state is being written.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn report(cleaned: &Cleaned, what: &str) {
    for done in &cleaned.done {
        tracing::info!("{what}: {done}");
    }
    for failed in &cleaned.failed {
        tracing::warn!("not undone: {failed}");
    }
}

fn spec(
    args: &RunArgs,
    config: &NodeConfig,
    identity: Arc<Identity>,
    membership: Option<Arc<Membership>>,
) -> NodeSpec {
    let mut sender = config.bond.sender.clone();
    sender.seed = [rand::random(), rand::random()];
    let named = config.uplinks.iter().filter(|uplink| !uplink.is_typed());
    let uplinks = named.map(|uplink| UplinkSpec {
        id: uplink.id,
        name: uplink.name.clone(),
        interface: uplink.interface.clone(),
        address: uplink.address,
        rate_max: uplink.rate_max(),
        weight: uplink.weight,
        fwmark: Some(MARK),
        kind: uplink.kind.announced(),
        line: uplink.kind.name(),
        metered: uplink.metered,
        health: uplink.health.clone(),
        lend: uplink.lend && config.lan.as_ref().is_some_and(|lan| lan.lends(uplink.metered)),
    });
    let peers = config.peers.iter().map(|peer| PeerSpec {
        name: peer.name.clone(),
        node_id: peer.node_id,
        addresses: peer.addresses.clone(),
        lan: peer.lan.clone(),
        is_exit: peer.exit,
    });
    let exit = config.exit.as_ref().map(|exit| ExitSpec {
        listen: exit.listen.clone(),
        pool_v4: exit.pool,
        pool_v6: exit.pool_v6,
        addresses_file: Some(args.state.state_dir.join(ADDRESSES)),
        allowed: config.peers.iter().map(|peer| peer.node_id).collect(),
    });
    let lan = config.lan.as_ref().map(|lan| LanSpec {
        interfaces: lan.interfaces.clone(),
        found: None,
        port: lan.port,
        fwmark: Some(MARK),
        lend: lan.lend,
        lend_budget: lan.lend_budget.map(NonZeroU64::get),
        mdns: lan.mdns,
    });
    NodeSpec {
        name: config.name.clone(),
        identity,
        uplinks: uplinks.collect(),
        found: None,
        reserved: Vec::new(),
        peers: peers.collect(),
        exit,
        membership,
        lan,
        tun: TunSpec { name: config.tun.name.clone(), mtu: config.tun.mtu },
        bond: BondSpec { sender, receiver: config.bond.receiver.clone() },
        runtime_dir: args.runtime.runtime_dir.clone(),
        trace: args.trace.clone(),
    }
}
