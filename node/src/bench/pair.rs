//! An edge and an exit: real `mwb-node run` processes in the lab, with keys and configurations of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use mwb_proto::bond::RoutingMode;
use mwb_sim::lab::{Lab, LabChild};
use tempfile::TempDir;

use super::profile::Profile;
use crate::status::{self, Request};

/// Where the exit of the lab listens.
const PORT: u16 = 9000;
/// How long a session may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a node may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Two running nodes; they end with it.
pub(super) struct Pair {
    edge: Node,
    exit: Node,
    _dir: TempDir,
}

struct Node {
    name: &'static str,
    runtime_dir: PathBuf,
    child: LabChild,
}

impl Pair {
    /// Starts both, with the profile's weights and the given mode, and waits until every uplink of the edge carries
    /// packets. `trace` is a folder and the start of the names of the nodes' traces in it.
    ///
    /// # Errors
    /// When a node does not start or the session does not come up; with the end of its log.
    pub(super) fn start(
        lab: &Lab,
        profile: &Profile,
        mode: Option<RoutingMode>,
        trace: Option<(&Path, String)>,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("mwb-bench-").tempdir()?;
        let program = std::env::current_exe().context("finding this program")?;
        let (edge_id, exit_id) = (key(&program, dir.path(), "edge")?, key(&program, dir.path(), "exit")?);
        let routing = format!("[routing]\nmode = \"{}\"\n\n", mode.unwrap_or_default());
        let exit_config = format!("{routing}[exit]\n\n[[peers]]\nname = \"edge\"\nnode_id = \"{edge_id}\"\n");
        let exit_address = lab.host("exit").address();
        let mut edge_config = format!(
            "{routing}[[peers]]\nname = \"exit\"\nnode_id = \"{exit_id}\"\naddresses = [\"{exit_address}:{PORT}\"]\nexit = true\n"
        );
        let uplinks = lab.host("edge").uplinks().to_vec();
        for (uplink, link) in uplinks.iter().zip(&profile.links) {
            edge_config.push_str(&format!(
                "\n[[uplinks]]\nname = \"{}\"\ninterface = \"{}\"\nweight = {}\n",
                uplink.link, uplink.interface, link.weight
            ));
        }
        let start = |name, config: &str| {
            let trace = trace.as_ref().map(|(dir, prefix)| dir.join(format!("{prefix}-{name}.jsonl")));
            Node::start(lab, name, &program, dir.path(), config, trace.as_deref())
        };
        let exit = start("exit", &exit_config)?;
        let edge = start("edge", &edge_config)?;
        let mut pair = Self { edge, exit, _dir: dir };
        pair.wait(uplinks.len())?;
        Ok(pair)
    }

    fn wait(&mut self, paths: usize) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            for node in [&mut self.edge, &mut self.exit] {
                if let Some(status) = node.child.try_wait()? {
                    bail!("the {} ended ({status}):\n{}", node.name, node.log());
                }
            }
            if paths_up(&self.edge.runtime_dir) >= paths && paths_up(&self.exit.runtime_dir) >= paths {
                return Ok(());
            }
            if Instant::now() >= end {
                bail!(
                    "the session did not come up in {PATIENCE:?}\nedge:\n{}\nexit:\n{}",
                    self.edge.log(),
                    self.exit.log()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The processes of edge and exit.
    pub(super) fn pids(&self) -> [u32; 2] {
        [self.edge.child.id(), self.exit.child.id()]
    }

    /// Stops both nodes.
    ///
    /// # Errors
    /// When one ended with a failure; with the end of its log.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        for node in [&mut self.edge, &mut self.exit] {
            let status = node.child.stop(GRACE)?;
            if !status.success() {
                bail!("the {} ended with {status}:\n{}", node.name, node.log());
            }
        }
        Ok(())
    }
}

impl Node {
    fn start(
        lab: &Lab,
        name: &'static str,
        program: &Path,
        dir: &Path,
        config: &str,
        trace: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let config_file = dir.join(format!("{name}.toml"));
        std::fs::write(&config_file, config)?;
        let runtime_dir = dir.join(format!("{name}-run"));
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(config_file);
        command.arg("--state-dir").arg(dir.join(name)).arg("--runtime-dir").arg(&runtime_dir);
        if let Some(trace) = trace {
            command.arg("--trace").arg(trace);
        }
        let child = lab.host(name).spawn(command).with_context(|| format!("starting the {name}"))?;
        Ok(Self { name, runtime_dir, child })
    }

    /// The last lines of its log.
    fn log(&self) -> String {
        let log = self.child.stderr();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Makes the key of a node and returns its id.
fn key(program: &Path, dir: &Path, name: &str) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.arg("key").arg("--state-dir").arg(dir.join(name)).stdin(Stdio::null());
    let output = command.output().context("running mwb-node key")?;
    if !output.status.success() {
        bail!("mwb-node key failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// How many paths the node of `runtime_dir` has that carry packets.
fn paths_up(runtime_dir: &Path) -> usize {
    let Ok(state) = status::ask(runtime_dir, &Request::Status) else { return 0 };
    crate::status_text::paths_up(&state)
}
