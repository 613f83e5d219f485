//! `mwb-node`: bonds the uplinks of a host through an exit.
//!
//! Wiring only: the command line is in [`cli`], what a node does is in the crates `mwb-actors` and `mwb-proto`.

mod bench;
mod cli;
mod config;
mod demo;
mod doctor;
mod identity;
mod lab_mesh;
mod lab_refused;
mod logging;
mod output;
mod peers_text;
mod platform;
mod rates_text;
mod rights;
mod runtime_dir;
mod service;
mod status;
mod status_text;

#[cfg(not(target_os = "linux"))]
compile_error!(
    "mwb-node needs a Linux kernel: build and run it on Linux, in a virtual machine or in a container"
);

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
