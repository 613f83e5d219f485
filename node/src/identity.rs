//! The node's key on disk.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use mwb_actors::identity::Identity;

/// Name of the key in the state folder.
pub(crate) const FILE: &str = "identity.key";

/// Reads the key in `state_dir`, or makes one (PKCS#8, mode 0600, never half written).
///
/// # Errors
/// When the folder or the file cannot be used, or others may read the key.
pub(crate) fn load_or_make(state_dir: &Path) -> anyhow::Result<Identity> {
    let path = state_dir.join(FILE);
    match fs::read(&path) {
        Ok(pkcs8) => {
            let mode = fs::metadata(&path)?.permissions().mode();
            if mode & 0o077 != 0 {
                bail!("others may read the key {0}; close it: chmod 600 {0}", path.display());
            }
            Identity::from_pkcs8(&pkcs8).with_context(|| {
                format!(
                    "{} is damaged; move it away to get a new identity (peers need the new id)",
                    path.display()
                )
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => make(state_dir, &path).with_context(|| {
            format!("making the key {} (run as root, or choose a folder with --state-dir)", path.display())
        }),
        Err(error) => Err(error).with_context(|| {
            format!("reading the key {} (run as root, or choose a folder with --state-dir)", path.display())
        }),
    }
}

fn make(state_dir: &Path, path: &Path) -> anyhow::Result<Identity> {
    let pkcs8 = Identity::generate()?;
    let identity = Identity::from_pkcs8(&pkcs8)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    let mut file = tempfile::Builder::new().prefix(".identity").tempfile_in(state_dir)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(&pkcs8)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Ok(_) => {
            File::open(state_dir)?.sync_all()?;
            Ok(identity)
        }
        // Another process made one at the same time: that one counts.
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
            Ok(Identity::from_pkcs8(&fs::read(path)?)?)
        }
        Err(error) => Err(error.error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("deep/state");
        let first = load_or_make(&state).unwrap().node_id();
        assert_eq!(load_or_make(&state).unwrap().node_id(), first);
        let path = state.join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(load_or_make(&state).err().unwrap().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, b"junk").unwrap();
        assert!(load_or_make(&state).err().unwrap().to_string().contains("damaged"));
    }
}
