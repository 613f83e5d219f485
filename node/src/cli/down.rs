//! `mwb-node down`: clean up after a killed node.

use std::path::Path;

use super::{Failure, block_on};
use crate::output;
use crate::platform::linux::cleanup;
use crate::runtime_dir::Claim;

/// Removes what a node left on this host.
///
/// # Errors
/// When a node still runs, or something could not be removed.
pub(super) fn down(runtime_dir: &Path) -> Result<(), Failure> {
    let _claim = if runtime_dir.exists() { Some(Claim::new(runtime_dir)?) } else { None };
    let cleaned = block_on(cleanup::clean(runtime_dir))?;
    for done in &cleaned.done {
        output::line(done)?;
    }
    if cleaned.done.is_empty() && cleaned.failed.is_empty() {
        output::line("nothing was left")?;
    }
    if cleaned.failed.is_empty() {
        return Ok(());
    }
    let who = if rustix::process::geteuid().is_root() { "" } else { " (run as root: sudo mwb-node down)" };
    let message = format!("not everything could be undone{who}:\n  {}", cleaned.failed.join("\n  "));
    Err(Failure::new(message))
}
