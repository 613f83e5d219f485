//! `mwb-node status`: ask the running node.

use clap::Args;
use serde_json::Value;

use super::{Failure, NOT_RUNNING, RuntimeDir};
use crate::status::{self, AskError, Request};
use crate::{output, status_text};

#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    runtime: RuntimeDir,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the state of the running node.
///
/// # Errors
/// [`NOT_RUNNING`], or what went wrong.
pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let answer = ask(&args.runtime)?;
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
pub(super) fn ask(runtime: &RuntimeDir) -> Result<Value, Failure> {
    let dir = &runtime.runtime_dir;
    status::ask(dir, &Request::Status).map_err(|error| match error {
        AskError::NotRunning => Failure {
            code: NOT_RUNNING,
            message: format!(
                "no node runs with the runtime folder {}; start one with mwb-node run --config FILE, or name its \
                 folder with --runtime-dir",
                dir.display()
            ),
        },
        other => Failure::new(format!("asking the node: {other}")),
    })
}
