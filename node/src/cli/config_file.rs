//! `mwb-node config`: judge a file, or print the sample.

use std::path::PathBuf;

use clap::Subcommand;

use super::{Failure, REFUSED};
use crate::{config, output};

#[derive(Subcommand)]
pub(super) enum ConfigCommand {
    /// Read FILE and MWB__… variables as `run` would, and tell all that is wrong
    Check {
        /// The configuration
        file: PathBuf,
    },
    /// Print a documented sample with every key
    Default,
}

/// Checks or prints.
///
/// # Errors
/// [`REFUSED`] with every fault.
pub(super) fn config(command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { file } => {
            let config = load(file)?;
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
            output::line(&format!("{}: correct; {} is {role}", file.display(), config.name))?;
        }
        ConfigCommand::Default => output::text(config::SAMPLE)?,
    }
    Ok(())
}

/// Where the configuration is unless a command is told.
const DEFAULT_FILE: &str = "/etc/mwb-node.toml";

/// Loads `file`, or the one at the usual place; where there is none either, only the environment says something.
///
/// # Errors
/// [`REFUSED`] with every fault.
pub(super) fn load_or_default(file: Option<&std::path::Path>) -> Result<config::NodeConfig, Failure> {
    let usual = std::path::Path::new(DEFAULT_FILE);
    match file {
        Some(file) => load(file),
        None if usual.exists() => load(usual),
        None => config::defaults().map_err(|refused| Failure { code: REFUSED, message: refused.to_string() }),
    }
}

/// Loads `file` for a command.
///
/// # Errors
/// [`REFUSED`] with every fault.
pub(super) fn load(file: &std::path::Path) -> Result<config::NodeConfig, Failure> {
    config::load(file).map_err(|refused| Failure { code: REFUSED, message: refused.to_string() })
}
