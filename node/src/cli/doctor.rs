//! `mwb-node doctor`: what on this host a node needs, and what is in its way.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::Args;
use mwb_actors::membership::Membership;
use mwb_actors::membership::store::Store;

use super::{Failure, NOT_RUNNING, RuntimeDir, Socket, StateDir, block_on, config_file, run, status};
use crate::config::NodeConfig;
use crate::doctor::{Patient, Report, Rights, Verdict, examine};
use crate::{identity, output};

#[derive(Args)]
pub(super) struct DoctorArgs {
    /// The configuration [default: /etc/mwb-node.toml, if it is there]
    #[arg(long, env = "MWB_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: config_file::Options,
    #[command(flatten)]
    state: StateDir,
    #[command(flatten)]
    runtime: RuntimeDir,
    #[command(flatten)]
    socket: Socket,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Examines this host and prints what was found.
///
/// # Errors
/// When something was found that keeps the node, or a part of it, from working.
pub(super) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let mut report = Report::default();
    let config = config(args, &mut report);
    let running = match status::ask(&args.runtime, &args.socket) {
        Ok(state) => Some(state),
        Err(failure) if failure.code == NOT_RUNNING => None,
        Err(failure) => {
            report.note("node", failure.message, "sudo mwb-node doctor");
            None
        }
    };
    let patient = Patient {
        config: config.as_ref(),
        running: running.as_ref(),
        runtime_dir: &args.runtime.runtime_dir,
        state_dir: &args.state.state_dir,
        rights: Rights::own(),
    };
    block_on(examine(&patient, &mut report))?;
    if args.json {
        let text = serde_json::to_string_pretty(&report.json()).expect("a JSON value is JSON");
        output::line(&text)?;
    } else {
        output::text(&report.text())?;
    }
    match report.count(Verdict::Fault) {
        0 => Ok(()),
        1 => Err(Failure::new("one fault; the line below it says what to do")),
        faults => Err(Failure::new(format!("{faults} faults; the line below each says what to do"))),
    }
}

/// What the node would be with this configuration and this membership.
fn config(args: &DoctorArgs, report: &mut Report) -> Option<NodeConfig> {
    let config = match config_file::load(args.config.as_deref(), &args.options) {
        Ok(config) => config,
        Err(failure) => {
            let todo = "mwb-node config check FILE; mwb-node config keys explains every key";
            report.fault("configuration", failure.message, todo);
            return None;
        }
    };
    for warning in &config.warnings {
        report.note("configuration", warning.to_string(), "");
    }
    match (&args.config, config_file::is_there()) {
        (None, false) => report.ok("configuration", "no file: what is not set otherwise has its default"),
        _ if config.warnings.is_empty() => report.ok("configuration", "correct"),
        _ => {}
    }
    let membership = match membership(args, report) {
        Ok(membership) => membership,
        // What it would say is not known; the rest of the configuration is.
        Err(Unknown) => return Some(config),
    };
    match run::with_role(config.clone(), membership.as_deref()) {
        Ok(config) => {
            let role = match (&config.exit, config.uplinks.len()) {
                (Some(_), _) => "an exit",
                (None, _) => "an edge",
            };
            report.ok("role", format!("{} is {role}", config.name));
            Some(config)
        }
        Err(failure) => {
            report.fault("role", failure.message, "mwb-node join TOKEN; or mwb-node init --exit on a server");
            Some(config)
        }
    }
}

/// Whether this node belongs to a mesh cannot be found out.
struct Unknown;

/// The membership, if there is one. Nothing is made: a node without a key has none.
fn membership(args: &DoctorArgs, report: &mut Report) -> Result<Option<std::sync::Arc<Membership>>, Unknown> {
    let dir = &args.state.state_dir;
    let hidden = |report: &mut Report, error: &str| {
        report.note("membership", format!("cannot be read: {error}"), "sudo mwb-node doctor");
        Unknown
    };
    match std::fs::metadata(dir.join(identity::FILE)) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let says = format!("no key in {} yet", dir.display());
            report.note("membership", says, "nothing: mwb-node run, init or join makes one");
            return Ok(None);
        }
        Err(error) => return Err(hidden(report, &format!("{}: {error}", dir.display()))),
        Ok(_) => {}
    }
    let identity = match identity::load_or_make(dir) {
        Ok(identity) => identity,
        Err(error) if !Rights::own().root => return Err(hidden(report, &format!("{error:#}"))),
        Err(error) => {
            report.fault("membership", format!("{error:#}"), "");
            return Err(Unknown);
        }
    };
    match Membership::open(Store::new(dir), identity.node_id()) {
        Ok(Some(membership)) => {
            let says = match membership.own() {
                Some(own) => format!("member {} ({}) of the mesh {}", own.name, own.roles, membership.mesh()),
                None => format!("was sent away from the mesh {}", membership.mesh()),
            };
            if membership.own().is_some() {
                report.ok("membership", says);
            } else {
                let todo = "mwb-node join with a new token; or stop it";
                report.fault("membership", says, todo);
            }
            Ok(Some(membership))
        }
        Ok(None) => {
            report.ok("membership", "of no mesh: peers are those of the configuration");
            Ok(None)
        }
        Err(error) => {
            report.fault("membership", error.to_string(), "");
            Err(Unknown)
        }
    }
}
