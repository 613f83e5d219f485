//! The folder of a running node: one node at a time may have it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

const FILE: &str = "lock";

/// Holds the folder until dropped; a killed process lets go of it too.
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
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("opening {} (are you root?)", path.display()))?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            file.read_to_string(&mut pid).ok();
            bail!(
                "a node runs already with the runtime folder {} (process {}); stop that one, or choose another folder \
                 with --runtime-dir",
                dir.display(),
                pid.trim()
            );
        }
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("run");
        let claim = Claim::new(&dir).unwrap();
        let error = Claim::new(&dir).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(claim);
        Claim::new(&dir).unwrap();
    }
}
