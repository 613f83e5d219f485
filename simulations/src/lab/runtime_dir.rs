//! The directory of a lab for the output of its programs, and the reaper of those left behind.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rand::Rng;

const PREFIX: &str = "mwb-lab-";
const LOCK: &str = "lock";

/// A directory that is removed when dropped. A lab that was killed leaves it; the next lab sees that
/// nobody holds its lock and removes it.
#[derive(Debug)]
pub(super) struct RuntimeDir {
    path: PathBuf,
    _lock: File,
}

impl RuntimeDir {
    /// A new directory below the system's directory for temporary files.
    pub(super) fn create() -> io::Result<Self> {
        let base = std::env::temp_dir();
        reap(&base);
        let path = base.join(format!("{PREFIX}{:016x}", rand::rng().random::<u64>()));
        // Made elsewhere and locked first: the reaper of another lab never finds it without a lock.
        let hidden = base.join(format!(".{}", path.file_name().unwrap_or_default().display()));
        fs::create_dir(&hidden)?;
        let lock = File::create(hidden.join(LOCK))?;
        lock.lock()?;
        fs::rename(&hidden, &path)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        // What cannot be removed now is left to the next reaper.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes the directories of labs that are gone. Those of other users stay.
fn reap(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if ours && File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_the_dead_are_removed_and_those_of_the_living_stay() {
        let living = RuntimeDir::create().unwrap();
        let dead = std::env::temp_dir().join(format!("{PREFIX}test-{}", std::process::id()));
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let next = RuntimeDir::create().unwrap();
        assert!(!dead.exists() && living.path().exists() && next.path().exists());
        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
