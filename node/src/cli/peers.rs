//! `mwb-node peers`: who is on the LAN, and what uplinks they have.

use clap::Args;
use serde_json::Value;

use super::{Failure, RuntimeDir, Socket, status};
use crate::{output, peers_text};

#[derive(Args)]
pub(super) struct PeersArgs {
    #[command(flatten)]
    runtime: RuntimeDir,
    #[command(flatten)]
    socket: Socket,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the members on the LAN as the running node sees them.
///
/// # Errors
/// No node runs here, it takes no part in a LAN, or it does not answer.
pub(super) fn peers(args: &PeersArgs) -> Result<(), Failure> {
    let state = status::ask(&args.runtime, &args.socket)?;
    let lan = &state["lan"];
    if *lan == Value::Null {
        return Err(Failure::new(
            "this node meets nobody on a LAN; write [lan] interfaces = [\"eth0\"] with the interface of the LAN into its \
             configuration and start it again",
        ));
    }
    if args.json {
        let text = serde_json::to_string_pretty(lan).expect("a JSON value is JSON");
        return Ok(output::line(&text)?);
    }
    Ok(output::text(&peers_text::text(lan))?)
}
