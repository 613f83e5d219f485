//! `mwb-node key`: who this node is.

use std::path::Path;

use super::Failure;
use crate::{identity, output};

/// Prints the node id, making the key if there is none.
///
/// # Errors
/// When the key can neither be read nor made.
pub(super) fn key(state_dir: &Path) -> Result<(), Failure> {
    let identity = identity::load_or_make(state_dir)?;
    Ok(output::line(&identity.node_id().to_string())?)
}
