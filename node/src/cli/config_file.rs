//! `mwb-node config`: judge a file, show what holds, print the sample, the keys or the schema.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Failure, REFUSED};
use crate::config::{self, Loaded, NodeConfig, Warning};
use crate::output;

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Read FILE, MWB__… variables and --set as `run` would, and tell all that is wrong
    Check {
        /// The configuration [default: /etc/mwb-node.toml, if it is there]
        file: Option<PathBuf>,
        #[command(flatten)]
        options: Options,
    },
    /// Print the configuration that holds, with the origin of each value
    Show {
        /// The configuration [default: /etc/mwb-node.toml, if it is there]
        file: Option<PathBuf>,
        #[command(flatten)]
        options: Options,
        /// As a list of objects with key, value, origin and place
        #[arg(long)]
        json: bool,
    },
    /// Print a documented sample with every key
    Default,
    /// Print a JSON schema of all keys (draft 2020-12), for editors
    Schema,
    /// Print a Markdown page of all keys, with defaults, units and bounds
    Keys,
}

/// Values that override the file and the environment.
#[derive(Args, Clone)]
pub(super) struct Options {
    /// Set a key, over the file and the environment: --set tun.mtu=1400 (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Options {
    /// Adds one, which holds over all before it.
    pub(super) fn set(&mut self, option: &str) {
        self.set.push(option.to_owned());
    }
}

/// Checks or prints.
///
/// # Errors
/// [`REFUSED`] with every fault.
pub(super) fn config(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { file, options } => {
            let config = read(file.as_deref(), options)?.node;
            tell(&config);
            let role = match (&config.exit, config.uplinks.len()) {
                (Some(_), _) if config.peers.is_empty() => "an exit for the members of its mesh".to_owned(),
                (Some(_), _) => format!("an exit for {} peers", config.peers.len()),
                (None, 0) if config.discovery.uplinks && config.peers.iter().any(|peer| peer.exit) => {
                    "an edge with the uplinks that it finds".to_owned()
                }
                (None, 0) => "what its membership says".to_owned(),
                (None, 1) => "an edge with 1 uplink".to_owned(),
                (None, uplinks) => format!("an edge with {uplinks} uplinks"),
            };
            let file = match file {
                Some(file) => file.display().to_string(),
                None if is_there() => DEFAULT_FILE.to_owned(),
                None => "no file".to_owned(),
            };
            output::line(&format!("{file}: correct; {} is {role}", config.name))?;
        }
        ConfigCommand::Show { file, options, json } => {
            let Loaded { node, entries } = read(file.as_deref(), options)?;
            tell(&node);
            if *json {
                let shown = serde_json::to_string_pretty(&config::show_json(&entries))
                    .map_err(anyhow::Error::from)?;
                output::line(&shown)?;
            } else {
                output::text(&config::show(&entries))?;
            }
        }
        ConfigCommand::Default => output::text(config::SAMPLE)?,
        ConfigCommand::Schema => {
            let schema = serde_json::to_string_pretty(&config::schema()).map_err(anyhow::Error::from)?;
            output::line(&schema)?;
        }
        ConfigCommand::Keys => output::text(&config::markdown())?,
    }
    Ok(())
}

/// Where the configuration is unless a command is told.
const DEFAULT_FILE: &str = "/etc/mwb-node.toml";

/// Loads `file`, or the one at the usual place. Where there is no file either, only the environment and `options` say
/// something.
///
/// # Errors
/// [`REFUSED`] with every fault.
pub(super) fn load(file: Option<&Path>, options: &Options) -> Result<NodeConfig, Failure> {
    read(file, options).map(|loaded| loaded.node)
}

/// Whether there is a file at the usual place.
pub(super) fn is_there() -> bool {
    Path::new(DEFAULT_FILE).exists()
}

fn read(file: Option<&Path>, options: &Options) -> Result<Loaded, Failure> {
    let usual = Path::new(DEFAULT_FILE);
    let file = file.or_else(|| usual.exists().then_some(usual));
    let refused = |refused: config::Refused| Failure { code: REFUSED, message: refused.to_string() };
    let mut loaded = config::load(file, &options.set).map_err(refused)?;
    loaded.node.warnings.extend(absent(&loaded));
    Ok(loaded)
}

/// Uplinks whose interface is not there now.
fn absent(loaded: &Loaded) -> Vec<Warning> {
    let key =
        |entry: &&config::Entry| entry.key.starts_with("uplinks[") && entry.key.ends_with("].interface");
    let gone = |entry: &config::Entry| {
        let name = entry.value.as_ref()?.as_str()?;
        let used = loaded.node.uplinks.iter().any(|uplink| uplink.interface.as_deref() == Some(name));
        (used && !crate::platform::has_interface(name)).then(|| Warning {
            key: entry.key.clone(),
            origin: entry.origin.clone(),
            says: format!("there is no interface {name:?} now; the uplink is used once it comes"),
        })
    };
    loaded.entries.iter().filter(key).filter_map(gone).collect()
}

/// Warnings, to standard error.
fn tell(config: &NodeConfig) {
    for warning in &config.warnings {
        output::progress(&format!("warning: {warning}"));
    }
}
