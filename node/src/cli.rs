//! The command line: what can be asked, and what each answer's exit code means.

mod config_file;
mod doctor;
mod down;
mod key;
mod mesh;
mod paper;
mod peers;
mod rates;
mod run;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{bench, demo};

/// Something failed.
pub(crate) const FAILED: u8 = 1;
/// The command line or the configuration is wrong (clap uses the same code).
pub(crate) const REFUSED: u8 = 2;
/// No node runs here.
pub(crate) const NOT_RUNNING: u8 = 3;

/// Why a command did not do what it was asked, for a person.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit code of the program.
    pub(crate) code: u8,
    /// What happened and what to do next.
    pub(crate) message: String,
}

impl Failure {
    /// A failure with [`FAILED`] as its code.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Bonds all uplinks of a host into one, through an exit.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 refused (command line or configuration), \
                                        3 no node runs here."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// See it work within a minute: emulated uplinks, real nodes, one of them cut; nothing here is changed
    Demo(demo::DemoArgs),
    /// Run the node in the foreground until SIGINT or SIGTERM
    Run(run::RunArgs),
    /// Print this node's id, making its key first if there is none
    Key(StateDir),
    /// Make a mesh: this node becomes its root and lets others in
    Init(mesh::InitArgs),
    /// Print a token with which another node can join the mesh
    Invite(mesh::InviteArgs),
    /// Join a mesh with a token
    Join(mesh::JoinArgs),
    /// List who belongs to the mesh
    Members(mesh::MembersArgs),
    /// Send a node away from the mesh
    Revoke(mesh::RevokeArgs),
    /// Remove what a killed node left on this host: routes, rules, masquerade, settings
    Down(RuntimeDir),
    /// Ask the running node how it is
    Status(status::StatusArgs),
    /// Show the uplinks: state, rates now, delay, loss, what they have carried, to whom they are lent
    Links(rates::RatesArgs),
    /// Show the sessions: paths, rates now, delay, what was held back and repaired
    Sessions(rates::RatesArgs),
    /// Look for what is in the way of a node on this host, and say what to do; changes nothing
    Doctor(doctor::DoctorArgs),
    /// Show who is on the LAN, and which uplinks they have
    Peers(peers::PeersArgs),
    /// Check a configuration, or print a documented sample
    #[command(subcommand)]
    Config(config_file::ConfigCommand),
    /// Measure the bond against its raw links on emulated uplinks, in network namespaces of its own
    Bench(bench::BenchArgs),
    /// Print a completion script for a shell
    Completions(paper::CompletionsArgs),
    /// Print the manual page, or write those of all commands into a folder
    Man(paper::ManArgs),
}

/// Where the key and the membership are kept.
#[derive(Args)]
struct StateDir {
    /// Folder of the node's key and membership
    #[arg(long, env = "MWB_STATE_DIR", value_name = "DIR", default_value = "/var/lib/mwb-node")]
    state_dir: PathBuf,
}

/// Where a running node is found.
#[derive(Args)]
struct RuntimeDir {
    /// Folder of the running node's socket, lock and undo notes
    #[arg(long, env = "MWB_RUNTIME_DIR", value_name = "DIR", default_value = "/run/mwb-node")]
    runtime_dir: PathBuf,
}

/// How a running node is asked.
#[derive(Args)]
struct Socket {
    /// Socket at which the running node is asked [default: control.sock in the runtime folder]
    #[arg(long, env = "MWB_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Socket {
    fn path(&self, runtime: &RuntimeDir) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| runtime.runtime_dir.join(crate::status::SOCKET))
    }
}

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(&args),
        Command::Key(args) => key::key(&args.state_dir),
        Command::Init(args) => mesh::init(&args),
        Command::Invite(args) => mesh::invite(&args),
        Command::Join(args) => mesh::join(&args),
        Command::Members(args) => mesh::members(&args),
        Command::Revoke(args) => mesh::revoke(&args),
        Command::Down(args) => down::down(&args.runtime_dir),
        Command::Status(args) => status::status(&args),
        Command::Links(args) => rates::links(&args),
        Command::Sessions(args) => rates::sessions(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Peers(args) => peers::peers(&args),
        Command::Config(command) => config_file::config(&command),
        Command::Bench(args) => bench::bench(&args),
        Command::Completions(args) => paper::completions(&args, Cli::command()),
        Command::Man(args) => paper::man(&args, Cli::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            crate::output::progress(&format!("mwb-node: {}", failure.message));
            ExitCode::from(failure.code)
        }
    }
}

/// The runtime of short commands.
fn block_on<F: Future>(future: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start: {error}")))?;
    Ok(runtime.block_on(future))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
