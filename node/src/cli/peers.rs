//! `mwb-node peers`: who is on the LAN, what uplinks they have, and who is at the other end of the sessions.

use clap::Args;

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

/// Prints the members on the LAN as the running node sees them, and those that it has sessions with: the exit, or its edges.
///
/// # Errors
/// No node runs here, or it does not answer.
pub(super) fn peers(args: &PeersArgs) -> Result<(), Failure> {
    let state = status::ask(&args.runtime, &args.socket)?;
    let lan = &state["lan"];
    if args.json {
        // Without a LAN: nobody there.
        let none = serde_json::json!({"ports": [], "uplinks": [], "peers": [], "problems": {}});
        let mut shown = if lan.is_null() { none } else { lan.clone() };
        shown["sessions"] = peers_text::sessions(&state).collect();
        let text = serde_json::to_string_pretty(&shown).expect("a JSON value is JSON");
        return Ok(output::line(&text)?);
    }
    Ok(output::text(&peers_text::text(&state))?)
}
