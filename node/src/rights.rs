//! The rights that a running node keeps: of root's capabilities those that it needs, for itself and for the programs that
//! it starts (`nft`). Given up before there are threads, which have rights of their own each.
//!
//! Files are then reached as any user reaches them: root's own, and what is open to all. Where a folder of the node belongs
//! to somebody else, as with `sudo mwb-node run --state-dir ~/mwb`, the node keeps the right to use it.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Routes, rules, the TUN device, nftables, marks, buffers; sockets bound to a device.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);
/// Ports below need a right of their own (ip(7)).
const FREE_PORTS_FROM: u16 = 1024;

/// Gives up every capability but those that a node needs that listens on `ports` and uses `paths`, for good: programs that it
/// starts cannot have more either. What the process does not have it does not get.
///
/// # Errors
/// When the kernel refuses: the process has the rights that it had.
pub(crate) fn reduce(paths: &[&Path], ports: impl IntoIterator<Item = u16>) -> io::Result<()> {
    let mut keep = NEEDED;
    if ports.into_iter().any(|port| port < FREE_PORTS_FROM) {
        keep |= CapabilitySet::NET_BIND_SERVICE;
    }
    if !paths.iter().all(|path| is_open(path)) {
        keep |= CapabilitySet::DAC_OVERRIDE;
    }
    let had = capabilities(None)?;
    // Needs CAP_SETPCAP, which a service does not have: its manager has done it then.
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match capability_is_in_bounding_set(one) {
            Ok(true) if !keep.contains(one) => drop(remove_capability_from_bounding_set(one)),
            Ok(_) => {}
            // No kernel knows so many.
            Err(_) => break,
        }
    }
    set_no_new_privs(true)?;
    let sets = CapabilitySets {
        effective: had.permitted & keep,
        permitted: had.permitted & keep,
        inheritable: had.inheritable & keep,
    };
    Ok(set_capabilities(None, sets)?)
}

/// Whether this user can use `path`, or make it, without a right to everybody's files: it, or the first folder above it that
/// exists, is the user's own, and all folders on the way there let the user pass.
fn is_open(path: &Path) -> bool {
    let own = geteuid().as_raw();
    let Ok(path) = std::path::absolute(path) else { return false };
    let mut existing = path.ancestors().filter_map(|path| path.metadata().ok());
    let is_own = existing.next().is_some_and(|found| found.uid() == own && found.mode() & 0o600 == 0o600);
    is_own
        && existing.all(|above| {
            let pass = if above.uid() == own { 0o100 } else { 0o001 };
            above.mode() & pass != 0
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn own_files_need_no_right_to_those_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert!(is_open(&state), "it can be made");
        std::fs::create_dir(&state).unwrap();
        assert!(is_open(&state.join("deep/run")));
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o500)).unwrap();
        assert!(!is_open(&state));
        std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
        // Closed on the way.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let closed = !is_open(&state);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(closed);
        if geteuid().is_root() {
            std::os::unix::fs::chown(&state, Some(65_534), None).unwrap();
            assert!(!is_open(&state));
        }
    }
}
