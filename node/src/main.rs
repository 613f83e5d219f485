//! `mwb-node`: bonds the uplinks of a host through an exit.
//!
//! Wiring only: the command line is in [`cli`], what a node does is in the crates `mwb-actors` and `mwb-proto`.

mod bench;
mod cli;
mod config;
mod identity;
mod output;
mod peers_text;
mod platform;
mod runtime_dir;
mod status;
mod status_text;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
