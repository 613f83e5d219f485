//! What has to be put back, on disk before it is changed, so that a killed node can be undone.
//!
//! The notes hold for one boot and one network namespace: anywhere else they are about settings that
//! no longer exist, and are dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::PlatformError;

const FILE: &str = "undo.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Notes {
    /// Boot id and namespace that the rest is about.
    world: String,
    /// File under `/proc/sys` and what it held before us.
    sysctls: BTreeMap<String, String>,
    /// Whether we may have made our nftables table.
    nftables: bool,
}

/// The notes of one runtime directory.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    notes: Notes,
}

impl Journal {
    /// Reads what an earlier node noted in `dir`, if that holds here.
    ///
    /// # Errors
    /// When the file exists and cannot be read. An unreadable content counts as none.
    pub(crate) fn open(dir: &Path) -> Result<Self, PlatformError> {
        Self::open_in(dir, world())
    }

    fn open_in(dir: &Path, world: String) -> Result<Self, PlatformError> {
        let path = dir.join(FILE);
        let fresh = Notes { world: world.clone(), ..Notes::default() };
        let notes = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(
                    |error| tracing::warn!(path = %path.display(), %error, "unreadable notes are dropped"),
                )
                .ok()
                .filter(|notes: &Notes| notes.world == world)
                .unwrap_or(fresh),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh,
            Err(source) => return Err(PlatformError::file(format!("reading {}", path.display()))(source)),
        };
        Ok(Self { path, notes })
    }

    /// Notes that `file` held `before`. The first note of a file stays: later ones are our own values.
    ///
    /// # Errors
    /// When the note cannot be written: then do not change the setting.
    pub(super) fn note_sysctl(&mut self, file: &str, before: &str) -> Result<(), PlatformError> {
        if self.notes.sysctls.contains_key(file) {
            return Ok(());
        }
        self.notes.sysctls.insert(file.to_owned(), before.to_owned());
        self.save()
    }

    /// Notes that our nftables table may exist from now on.
    ///
    /// # Errors
    /// When the note cannot be written.
    pub(super) fn note_nftables(&mut self) -> Result<(), PlatformError> {
        self.notes.nftables = true;
        self.save()
    }

    /// Settings to put back.
    pub(super) fn sysctls(&self) -> impl Iterator<Item = (&str, &str)> {
        self.notes.sysctls.iter().map(|(file, before)| (file.as_str(), before.as_str()))
    }

    /// Whether our nftables table may exist.
    pub(super) fn nftables(&self) -> bool {
        self.notes.nftables
    }

    /// Everything has been put back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub(super) fn clear(self) -> Result<(), PlatformError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(PlatformError::file(format!("removing {}", self.path.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes a new file and renames it over the old one, so that a kill leaves one or the other.
    fn save(&self) -> Result<(), PlatformError> {
        let doing = format!("writing {}", self.path.display());
        let new = self.path.with_extension("new");
        let bytes = serde_json::to_vec_pretty(&self.notes).expect("strings and booleans are always JSON");
        let write = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(PlatformError::file(doing))
    }
}

/// Names this boot and this network namespace.
fn world() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_of_a_setting_is_kept_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.note_sysctl("/a", "1").unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.note_sysctl("/a", "2").unwrap();
        journal.note_nftables().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.sysctls().collect::<Vec<_>>(), [("/a", "1")]);
        assert!(journal.nftables());
        journal.clear().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.sysctls().count(), 0);
        journal.clear().unwrap();
    }

    #[test]
    fn notes_of_another_boot_or_broken_ones_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open_in(dir.path(), "then".to_owned()).unwrap();
        journal.note_sysctl("/a", "1").unwrap();
        assert_eq!(Journal::open_in(dir.path(), "now".to_owned()).unwrap().sysctls().count(), 0);
        assert_eq!(Journal::open_in(dir.path(), "then".to_owned()).unwrap().sysctls().count(), 1);
        fs::write(dir.path().join(FILE), b"{").unwrap();
        assert_eq!(Journal::open_in(dir.path(), "then".to_owned()).unwrap().sysctls().count(), 0);
    }
}
