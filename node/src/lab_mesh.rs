//! Real `mwb-node run` processes on the hosts of a lab: an exit, and an edge on every host with uplinks.
//!
//! Each node has its own key, configuration and folders below the lab's folder, so they go with the lab. The hosts
//! of a LAN know each other by their LAN addresses and lend each other their uplinks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mwb_proto::bond::RoutingMode;
use mwb_sim::lab::{Host, Lab, LabChild, Uplink};

use crate::status::{self, Request};
use crate::status_text;

/// The host of the lab that is the exit, and the name of the node there.
const EXIT: &str = "exit";
/// Hosts of the lab that run no node.
const BYSTANDERS: [&str; 2] = ["internet", "server"];
/// Where the exit listens.
const EXIT_PORT: u16 = 9000;
/// Where nodes on a LAN listen for each other.
const LAN_PORT: u16 = 9100;
/// The LAN interface of a host in the lab.
const LAN_INTERFACE: &str = "lan0";
/// How long all paths may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two questions to the nodes meanwhile.
const LOOK: Duration = Duration::from_millis(50);
/// How long a node may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// What the nodes are told besides where they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeshOptions {
    /// How every node spreads packets.
    pub(crate) mode: RoutingMode,
    /// Weights of links by name; the default for those not named.
    pub(crate) weights: BTreeMap<String, u32>,
    /// Links so bad that nobody waits until they carry packets.
    pub(crate) optional: BTreeSet<String>,
    /// The one link that edges use; all when not given.
    pub(crate) only: Option<String>,
    /// The edges know nothing of each other.
    pub(crate) apart: bool,
    /// Only the exit starts; it knows the edges all the same.
    pub(crate) exit_alone: bool,
    /// A folder for the nodes' traces and the start of their file names.
    pub(crate) trace: Option<(PathBuf, String)>,
}

impl MeshOptions {
    /// The uplinks that an edge uses.
    fn uplinks<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = &'a Uplink> {
        let used = |uplink: &&Uplink| self.only.as_ref().is_none_or(|only| *only == uplink.link);
        host.uplinks().iter().filter(used)
    }

    /// How many of them are to carry packets before anything is measured.
    fn awaited(&self, host: &Host) -> usize {
        self.uplinks(host).filter(|uplink| !self.optional.contains(&uplink.link)).count()
    }
}

/// Running nodes; they end with it.
pub(crate) struct Mesh {
    nodes: Vec<Node>,
}

struct Node {
    name: String,
    /// Paths that it has when all are up.
    paths: usize,
    runtime_dir: PathBuf,
    child: LabChild,
}

impl Mesh {
    /// Starts a node on the exit and on every host that has uplinks or a LAN, and waits until all paths carry packets:
    /// every edge has one over each uplink of the lab, optional ones apart. `go_on` is asked all the while, and its error ends the wait.
    ///
    /// # Errors
    /// When a node does not start or its paths do not come up, with the end of the logs.
    pub(crate) fn start(
        lab: &Lab,
        options: &MeshOptions,
        go_on: &dyn Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        Self::start_with(lab, options, "", go_on)
    }

    /// As [`start`](Self::start), with more sections for the configuration of every node.
    ///
    /// # Errors
    /// As `start`.
    pub(crate) fn start_with(
        lab: &Lab,
        options: &MeshOptions,
        sections: &str,
        go_on: &dyn Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let dir = match &options.only {
            Some(link) => lab.dir().join(format!("nodes-{link}")),
            None if options.exit_alone => lab.dir().join("nodes-alone"),
            None => lab.dir().join("nodes"),
        };
        std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
        let program = std::env::current_exe().context("finding this program")?;
        let hosts: Vec<&Host> =
            lab.hosts().iter().filter(|host| !BYSTANDERS.contains(&host.name())).collect();
        let mut ids = BTreeMap::new();
        for host in &hosts {
            ids.insert(host.name(), key(&program, &dir, host.name())?);
        }
        let edges: Vec<&Host> = hosts.iter().copied().filter(|host| host.name() != EXIT).collect();
        let uplinks: usize = edges.iter().map(|host| options.awaited(host)).sum();
        let mut mesh = Self { nodes: Vec::new() };
        for host in &hosts {
            if options.exit_alone && host.name() != EXIT {
                continue;
            }
            let (text, paths) = match (host.name() == EXIT, options.apart) {
                (true, _) if options.exit_alone => (exit_config(&edges, &ids, options), 0),
                (true, false) => (exit_config(&edges, &ids, options), uplinks * edges.len()),
                (true, true) => (exit_config(&edges, &ids, options), uplinks),
                (false, false) => (edge_config(host, &edges, lab, &ids, options), uplinks),
                (false, true) => (edge_config(host, &[host], lab, &ids, options), options.awaited(host)),
            };
            let text = format!("{text}\n{sections}");
            mesh.nodes.push(Node::start(host, &program, &dir, &text, paths, options)?);
        }
        mesh.wait(go_on)?;
        Ok(mesh)
    }

    fn wait(&mut self, go_on: &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            go_on()?;
            self.check()?;
            let up: Vec<usize> = self.nodes.iter().map(|node| paths_up(&node.runtime_dir)).collect();
            if self.nodes.iter().zip(&up).all(|(node, up)| *up >= node.paths) {
                return Ok(());
            }
            if Instant::now() >= end {
                let mut text = format!("not all paths came up in {PATIENCE:?}");
                for (node, up) in self.nodes.iter().zip(&up) {
                    write!(text, "\n{}: {up} of {} paths\n{}", node.name, node.paths, node.log())?;
                }
                bail!(text);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether all nodes still run.
    ///
    /// # Errors
    /// When one has ended; with the end of its log.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(status) = node.child.try_wait()? {
                bail!("the node on {} ended ({status}):\n{}", node.name, node.log());
            }
        }
        Ok(())
    }

    /// What the node on a host says of itself.
    ///
    /// # Errors
    /// When no node runs there, or it does not answer.
    pub(crate) fn status(&self, host: &str) -> anyhow::Result<serde_json::Value> {
        let node =
            self.nodes.iter().find(|node| node.name == host).with_context(|| format!("no node on {host}"))?;
        status::ask(&node.runtime_dir.join(status::SOCKET), &Request::Status).context("asking a node")
    }

    /// The process of the node on a host.
    ///
    /// # Errors
    /// When no node runs there.
    pub(crate) fn pid(&self, host: &str) -> anyhow::Result<u32> {
        let node = self.nodes.iter().find(|node| node.name == host);
        node.map(|node| node.child.id()).with_context(|| format!("no node on {host}"))
    }

    /// Stops all nodes.
    ///
    /// # Errors
    /// When one ended with a failure; with the end of its log.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        for node in self.nodes.iter_mut().rev() {
            let status = node.child.stop(GRACE)?;
            if !status.success() {
                bail!("the node on {} ended with {status}:\n{}", node.name, node.log());
            }
        }
        Ok(())
    }
}

impl Node {
    fn start(
        host: &Host,
        program: &Path,
        dir: &Path,
        config: &str,
        paths: usize,
        options: &MeshOptions,
    ) -> anyhow::Result<Self> {
        let name = host.name().to_owned();
        let config_file = dir.join(format!("{name}.toml"));
        std::fs::write(&config_file, config).with_context(|| format!("writing {}", config_file.display()))?;
        let runtime_dir = dir.join(format!("{name}-run"));
        let mut command = mwb_node(program);
        command.arg("run").arg("--config").arg(config_file);
        command.arg("--state-dir").arg(dir.join(&name)).arg("--runtime-dir").arg(&runtime_dir);
        if let Some((folder, prefix)) = &options.trace {
            let over = options.only.as_ref().map(|link| format!("-{link}")).unwrap_or_default();
            command.arg("--trace").arg(folder.join(format!("{prefix}{over}-{name}.jsonl")));
        }
        let child = host.spawn(command).with_context(|| format!("starting the node on {name}"))?;
        Ok(Self { name, paths, runtime_dir, child })
    }

    /// The last lines of its log.
    fn log(&self) -> String {
        let log = self.child.stderr();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// The exit serves exactly these edges.
fn exit_config(edges: &[&Host], ids: &BTreeMap<&str, String>, options: &MeshOptions) -> String {
    let mut text =
        format!("[routing]\nmode = \"{}\"\n\n[exit]\nlisten = [\"0.0.0.0:{EXIT_PORT}\"]\n", options.mode);
    for edge in edges {
        text.push_str(&peer(edge, ids));
    }
    text
}

/// An edge knows its uplinks, the exit, and the other hosts of its LAN.
fn edge_config(
    host: &Host,
    edges: &[&Host],
    lab: &Lab,
    ids: &BTreeMap<&str, String>,
    options: &MeshOptions,
) -> String {
    let exit = lab.host(EXIT);
    let mut text = format!("[routing]\nmode = \"{}\"\n", options.mode);
    // A host of which no link is used must not find them itself.
    text.push_str("[discovery]\nuplinks = \"off\"\nlan = \"off\"\n");
    for uplink in options.uplinks(host) {
        text.push_str(&format!(
            "\n[[uplinks]]\nname = \"{}\"\ninterface = \"{}\"\n",
            uplink.link, uplink.interface
        ));
        if let Some(weight) = options.weights.get(&uplink.link) {
            text.push_str(&format!("weight = {weight}\n"));
        }
    }
    text.push_str(&peer(&exit, ids));
    text.push_str(&format!("addresses = [\"{}:{EXIT_PORT}\"]\nexit = true\n", exit.address()));
    if edges.len() > 1 {
        text.push_str(&format!(
            "\n[lan]\ninterfaces = [\"{LAN_INTERFACE}\"]\nport = {LAN_PORT}\nlend = true\n"
        ));
        for other in edges.iter().filter(|other| other.name() != host.name()) {
            text.push_str(&peer(other, ids));
            text.push_str(&format!("lan = [\"{}:{LAN_PORT}\"]\n", other.address()));
        }
    }
    text
}

fn peer(host: &Host, ids: &BTreeMap<&str, String>) -> String {
    let id = ids.get(host.name()).map_or("", String::as_str);
    format!("\n[[peers]]\nname = \"{}\"\nnode_id = \"{id}\"\n", host.name())
}

/// This program, without our own variables: they would override what is written into its files.
fn mwb_node(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MWB_") {
            command.env_remove(name);
        }
    }
    command
}

/// Makes the key of a node and returns its id.
fn key(program: &Path, dir: &Path, name: &str) -> anyhow::Result<String> {
    let mut command = mwb_node(program);
    command.arg("key").arg("--state-dir").arg(dir.join(name));
    let output = command.output().context("running mwb-node key")?;
    if !output.status.success() {
        bail!("mwb-node key failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// How many paths the node of `runtime_dir` has that carry packets.
fn paths_up(runtime_dir: &Path) -> usize {
    let Ok(state) = status::ask(&runtime_dir.join(status::SOCKET), &Request::Status) else { return 0 };
    status_text::paths_up(&state)
}
