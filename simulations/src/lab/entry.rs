//! The way in: how a process gets the right to make namespaces, and one lab at a time on a machine.

use std::fs::File;
use std::io;
use std::process::Command;
use std::time::Duration;

use super::{LabError, Operation, sys};

/// Set in the environment of a process that was started inside a user namespace.
const MARKER: &str = "MWB_LAB_PROCESS";
const LOCK_FILE: &str = "mwb-lab.lock";

/// Whether a thread of this process may make network namespaces.
pub(super) fn may_unshare_network() -> io::Result<()> {
    std::thread::spawn(sys::unshare_network).join().expect("a system call does not panic")
}

/// Gives this process the right to build labs: nothing to do as root, else it moves into a user
/// namespace of its own. To be called first in `main`, before there are other threads.
pub fn enter() -> Result<(), LabError> {
    if may_unshare_network().is_ok() {
        return Ok(());
    }
    let maps = sys::IdMaps::current();
    let mut result = sys::enter_user_namespace(&maps);
    // The thread just joined may still be on its way out, and a process with two threads is refused.
    for _ in 0..100 {
        if !result.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::InvalidInput) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        result = sys::enter_user_namespace(&maps);
    }
    result.map_err(|source| refused(Operation::UserNamespace, source))?;
    may_unshare_network().map_err(|source| refused(Operation::NetworkNamespace, source))
}

fn refused(operation: Operation, source: io::Error) -> LabError {
    LabError::Refused { operation, source, cure: operation.cure() }
}

/// Runs the body of a test where labs can be built: right here as root, else in a process of its own
/// inside a user namespace, which runs this test again. `test` is the full name of the test in its
/// binary. Where neither is allowed the test is skipped.
///
/// # Panics
/// When the test fails in the other process, or is skipped although `MWB_REQUIRE=all`.
pub fn in_lab_process(test: &str, body: impl FnOnce()) {
    if std::env::var_os(MARKER).is_some() || may_unshare_network().is_ok() {
        return body();
    }
    let exe = std::env::current_exe().expect("a test knows its binary");
    let mut command = Command::new(exe);
    command.args([test, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"]);
    command.env(MARKER, "1");
    sys::start_in_user_namespace(&mut command);
    sys::die_with_parent(&mut command);
    match command.status() {
        Ok(status) => assert!(status.success(), "{test} failed inside its user namespace: {status}"),
        Err(error) => crate::skip::record(test, &refused(Operation::UserNamespace, error).to_string()),
    }
}

/// Held while a lab measures: two at once on a machine would measure each other.
#[derive(Debug)]
pub struct MachineLock {
    _file: File,
}

/// Waits until no other process of this machine holds the lock. Released when dropped.
pub fn machine_lock() -> io::Result<MachineLock> {
    let path = std::env::temp_dir().join(LOCK_FILE);
    // Another user may have made the file, and then it must not be opened for creation or writing.
    let file = File::open(&path).or_else(|_| {
        File::options().create(true).truncate(false).write(true).open(&path).or_else(|_| File::open(&path))
    })?;
    file.lock()?;
    Ok(MachineLock { _file: file })
}
