//! Undoes everything that a node of ours may have left on this host.
//!
//! Used when a node stops, before one starts, and by `mwb-node down`. It needs no notes for routes, rules,
//! the nftables table and `/etc/resolv.conf`: those carry our signature. Settings are put back from the journal.

use std::path::Path;

use super::netlink::Netlink;
use super::{Journal, PlatformError, dns, nftables, routes, rules, sysctl};

/// Removes and puts back; what was done, in words, and what could not be.
pub(crate) struct Cleaned {
    /// One line per thing removed or put back; empty when there was nothing.
    pub(crate) done: Vec<String>,
    /// One line per thing that is still there.
    pub(crate) failed: Vec<String>,
}

/// Undoes what nodes with this runtime directory left. Everything is tried, whatever fails.
pub(crate) async fn clean(runtime_dir: &Path) -> Cleaned {
    let mut cleaned = Cleaned { done: Vec::new(), failed: Vec::new() };
    match remove_routes().await {
        Ok(removed) => {
            cleaned.done.extend(removed.into_iter().map(|what| format!("removed an {what}")));
            match dns::restore(runtime_dir) {
                Ok(restored) => cleaned.done.extend(restored),
                Err(error) => cleaned.failed.push(error.to_string()),
            }
        }
        // Names are asked through them.
        Err(error) => cleaned.failed.push(error.to_string()),
    }
    match Journal::open(runtime_dir) {
        Ok(journal) => undo(journal, &mut cleaned).await,
        Err(error) => cleaned.failed.push(error.to_string()),
    }
    cleaned
}

/// Removes routes and rules, unless they lead to a node that runs: one with another runtime directory.
async fn remove_routes() -> Result<Vec<String>, PlatformError> {
    let netlink = Netlink::open()?;
    match routes::in_use(&netlink).await? {
        Some(tun) => Err(PlatformError::InUse(tun)),
        None => routes::remove(&netlink).await,
    }
}

/// What nodes with this runtime directory have on the host now, one line per thing; a killed one leaves it.
///
/// # Errors
/// When the host or the notes cannot be read.
pub(crate) async fn present(runtime_dir: &Path) -> Result<Vec<String>, PlatformError> {
    let mut present = rules::rules(&Netlink::open()?).await?.ours;
    let journal = Journal::open(runtime_dir)?;
    present.extend(journal.nftables().then(|| "the nftables table inet mwb".to_owned()));
    present.extend(journal.sysctls().map(|(file, before)| format!("{file}, which was {before}")));
    Ok(present)
}

/// The rules of this host that matter to a person.
///
/// # Errors
/// When the kernel does not list them.
pub(crate) async fn rules() -> Result<rules::Rules, PlatformError> {
    rules::rules(&Netlink::open()?).await
}

async fn undo(journal: Journal, cleaned: &mut Cleaned) {
    let before = cleaned.failed.len();
    if journal.nftables() {
        match nftables::remove().await {
            Ok(true) => cleaned.done.push("removed the nftables table inet mwb".to_owned()),
            Ok(false) => {}
            Err(error) => cleaned.failed.push(error.to_string()),
        }
    }
    match sysctl::restore(&journal) {
        Ok(restored) => cleaned.done.extend(restored),
        Err(error) => cleaned.failed.push(error.to_string()),
    }
    // Notes of what is still to be undone stay for the next attempt.
    if cleaned.failed.len() == before
        && let Err(error) = journal.clear()
    {
        cleaned.failed.push(error.to_string());
    }
}
