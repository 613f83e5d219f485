//! `mwb-node links` and `mwb-node sessions`: what the uplinks and the sessions do at this moment. Rates are the difference of
//! two answers of the node.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::{Failure, RuntimeDir, Socket, block_on, status};
use crate::output;
use crate::platform::survey;
use crate::rates_text::{Sample, links_json, links_text, sessions_json, sessions_text};

/// Between two answers for one table.
const SPAN: Duration = Duration::from_millis(500);
/// Between two tables with `--watch`.
const WATCH_SPAN: Duration = Duration::from_secs(1);
/// Cursor to the first place, and everything after it erased (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

#[derive(Args)]
pub(super) struct RatesArgs {
    #[command(flatten)]
    runtime: RuntimeDir,
    #[command(flatten)]
    socket: Socket,
    /// Print one JSON list
    #[arg(long)]
    json: bool,
    /// Show it anew every second, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
}

/// Prints each link: what it is, how it is, what it carries.
///
/// # Errors
/// No node runs here, or it does not answer.
pub(super) fn links(args: &RatesArgs) -> Result<(), Failure> {
    repeat(args, |sample| links_json(sample, &gateways()), links_text)
}

/// Prints each session: with whom, over how many paths, what it carries and repairs.
///
/// # Errors
/// No node runs here, or it does not answer.
pub(super) fn sessions(args: &RatesArgs) -> Result<(), Failure> {
    repeat(args, sessions_json, sessions_text)
}

fn repeat(
    args: &RatesArgs,
    make: impl Fn(&Sample<'_>) -> Vec<Value>,
    text: impl Fn(&[Value]) -> String,
) -> Result<(), Failure> {
    let ask = || status::ask(&args.runtime, &args.socket).map(|state| (state, Instant::now()));
    let mut before = ask()?;
    let mut span = SPAN;
    loop {
        std::thread::sleep(span);
        let now = ask()?;
        let seconds = (now.1 - before.1).as_secs_f64();
        let rows = make(&Sample { before: &before.0, now: &now.0, seconds });
        if args.json {
            let text = serde_json::to_string_pretty(&rows).expect("a JSON value is JSON");
            return Ok(output::line(&text)?);
        }
        if !args.watch {
            return Ok(output::text(&text(&rows))?);
        }
        output::text(&format!("{CLEAR}{}", text(&rows)))?;
        (before, span) = (now, WATCH_SPAN);
    }
}

/// The routers behind this host's uplinks, by interface. The node does not tell them; where it runs on another host's
/// socket, or they cannot be read, there are none.
fn gateways() -> BTreeMap<String, String> {
    let Ok(Ok(survey)) = block_on(survey(&[])) else { return BTreeMap::new() };
    let known = survey.interfaces.into_iter().filter_map(|interface| {
        let gateway = interface.verdict.ok()?.gateway?;
        Some((interface.name, gateway.to_string()))
    });
    known.collect()
}
