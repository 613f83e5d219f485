//! The folder of a running node: one node at a time may have it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, test_kill_process};

const FILE: &str = "lock";
/// How long the helpers of a killed node may take to end.
const PARTING: Duration = Duration::from_secs(5);
const TRY_EVERY: Duration = Duration::from_millis(10);

/// Holds the folder until dropped; a killed process lets go of it too, together with its helpers: what they
/// still change on the host is done before the next node begins.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: File,
}

impl Claim {
    /// Makes `dir` if needed and claims it.
    ///
    /// # Errors
    /// When another node has it, or it cannot be made.
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("making the runtime folder {} (are you root?)", dir.display()))?;
        let path = dir.join(FILE);
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("opening {} (are you root?)", path.display()))?;
        // Helpers inherit it, and with it the claim.
        fcntl_setfd(&file, FdFlags::empty())?;
        let begin = Instant::now();
        while rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let owner = fs::read_to_string(&path).unwrap_or_default();
            let pid = owner.trim().parse().ok().and_then(Pid::from_raw);
            let lives = pid.is_some_and(|pid| test_kill_process(pid).is_ok());
            if lives || begin.elapsed() > PARTING {
                bail!(
                    "a node runs already with the runtime folder {} (process {}); stop that one first (Ctrl-C, \
                     or systemctl stop mwb-node)",
                    dir.display(),
                    owner.trim()
                );
            }
            std::thread::sleep(TRY_EVERY);
        }
        file.set_len(0)
            .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_at_a_time_and_not_before_the_helpers_of_a_dead_one_end() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        let claim = Claim::new(&dir).unwrap();
        let error = Claim::new(&dir).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(claim);
        Claim::new(&dir).unwrap();

        // Killed while a helper runs; not a test of its own, for another's helper would inherit its claim.
        let claim = Claim::new(&dir).unwrap();
        let mut helper = std::process::Command::new("sleep").arg("0.3").spawn().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        fs::write(dir.join(FILE), dead.id().to_string()).unwrap();
        drop(claim);
        Claim::new(&dir).unwrap();
        assert!(helper.try_wait().unwrap().is_some(), "the helper still runs");
    }
}
