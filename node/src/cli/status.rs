//! `mwb-node status`: ask the running node.

use std::io::ErrorKind;

use clap::Args;
use serde_json::Value;

use super::{Failure, NOT_RUNNING, RuntimeDir, Socket};
use crate::status::{self, AskError, Request};
use crate::{output, status_text};

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    runtime: RuntimeDir,
    #[command(flatten)]
    socket: Socket,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the state of the running node.
///
/// # Errors
/// [`NOT_RUNNING`], or what went wrong.
pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let answer = ask(&args.runtime, &args.socket)?;
    if args.json {
        let text = serde_json::to_string_pretty(&answer).expect("a JSON value is JSON");
        return Ok(output::line(&text)?);
    }
    Ok(output::text(&status_text::text(&answer))?)
}

/// The state of the node that runs with this folder.
///
/// # Errors
/// [`NOT_RUNNING`], or what went wrong.
pub(super) fn ask(runtime: &RuntimeDir, socket: &Socket) -> Result<Value, Failure> {
    let path = socket.path(runtime);
    status::ask(&path, &Request::Status).map_err(|error| match error {
        AskError::NotRunning => Failure {
            code: NOT_RUNNING,
            message: format!(
                "no node answers at {}; start one with mwb-node run, or name its folder with --runtime-dir \
                 or its socket with --socket",
                path.display()
            ),
        },
        AskError::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
            Failure::new(format!("the node at {} answers root alone: sudo mwb-node …", path.display()))
        }
        other => Failure::new(format!("asking the node: {other}")),
    })
}
