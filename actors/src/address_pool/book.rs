//! The pools of an exit, and the file in which it remembers who has which address.
//!
//! Connections of an edge's programs outlive a restart of the exit only when the edge gets the same address again. The
//! node id alone does not say which: two may fall on one address, and who comes first is chance. So the exit writes
//! down what it has given. A file that cannot be read or written costs no more than that memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{AddressPool, AddressPoolV6, NODES_MAX};
use crate::identity::NodeId;

/// Largest file that is read: both pools full, at 128 bytes an entry.
const FILE_MAX: u64 = 2 * 128 * NODES_MAX as u64;

/// Where edges get their inner addresses from.
#[derive(Debug)]
pub struct Pools {
    /// Of IPv4.
    pub v4: AddressPool,
    /// Of IPv6, if the exit may carry it.
    pub v6: Option<AddressPoolV6>,
}

/// The addresses of one node, with the lengths of their pools' prefixes.
pub(crate) type Given = ((Ipv4Addr, u8), Option<(Ipv6Addr, u8)>);

/// What the file holds: who has been away for longest first.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    v4: Vec<(NodeId, Ipv4Addr)>,
    v6: Vec<(NodeId, Ipv6Addr)>,
}

/// Pools with a memory; survives the actors.
#[derive(Debug)]
pub struct AddressBook {
    pools: Mutex<Pools>,
    file: Option<PathBuf>,
    /// Held while the file is written: what is written last is the newest.
    writing: Mutex<()>,
}

impl AddressBook {
    /// `pools`, with what `file` says of earlier runs; without a file nothing is remembered.
    pub fn open(mut pools: Pools, file: Option<PathBuf>) -> Arc<Self> {
        if let Some(file) = &file {
            match read(file) {
                Ok(written) => pools.recall(&written),
                Err(error) => tracing::warn!(
                    file = %file.display(), %error,
                    "the inner addresses that edges had cannot be read: some may get others"
                ),
            }
        }
        Arc::new(Self { pools: Mutex::new(pools), file, writing: Mutex::new(()) })
    }

    /// The exit's own inner address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.pools.lock().v4.gateway()
    }

    /// How many edges the IPv4 pool has room for.
    pub fn room(&self) -> usize {
        self.pools.lock().v4.room()
    }

    /// The addresses of `node`, of IPv6 only when asked for; `None` when all of IPv4 are used. A newcomer's is
    /// written down in the background.
    pub fn assign(self: &Arc<Self>, node: NodeId, v6: bool) -> Option<Given> {
        let (given, news) = {
            let mut pools = self.pools.lock();
            let Pools { v4, v6: pool } = &mut *pools;
            let v4 = (v4.assign(node)?, v4.prefix());
            let pool = pool.as_mut().filter(|_| v6);
            let v6 = pool.and_then(|pool| Some((pool.assign(node)?, pool.prefix())));
            ((v4, v6), pools.take_news())
        };
        if news && self.file.is_some() {
            let book = Arc::clone(self);
            tokio::task::spawn_blocking(move || book.write());
        }
        Some(given)
    }

    /// `node` is gone; it gets the same addresses again unless all others are used before.
    pub fn release(&self, node: NodeId) {
        let mut pools = self.pools.lock();
        pools.v4.release(node);
        if let Some(v6) = &mut pools.v6 {
            v6.release(node);
        }
    }

    /// Writes the file, whole or not at all.
    fn write(&self) {
        let Some(file) = &self.file else { return };
        let _alone = self.writing.lock();
        let written = self.pools.lock().written();
        let bytes = serde_json::to_vec(&written).expect("ids and addresses are JSON");
        if let Err(error) = replace(file, &bytes) {
            tracing::warn!(
                file = %file.display(), %error,
                "the inner addresses of edges cannot be written down: after a restart some may get others"
            );
        }
    }
}

impl Pools {
    fn recall(&mut self, written: &Written) {
        written.v4.iter().for_each(|(node, address)| self.v4.recall(*node, *address));
        if let Some(v6) = &mut self.v6 {
            written.v6.iter().for_each(|(node, address)| v6.recall(*node, *address));
        }
    }

    fn written(&self) -> Written {
        Written { v4: self.v4.all(), v6: self.v6.as_ref().map(AddressPoolV6::all).unwrap_or_default() }
    }

    /// Whether a node has come or gone since the last call.
    fn take_news(&mut self) -> bool {
        let v6 = self.v6.as_mut().is_some_and(|v6| std::mem::take(&mut v6.numbers.news));
        std::mem::take(&mut self.v4.numbers.news) || v6
    }
}

/// What the file holds; nothing when there is none.
fn read(file: &Path) -> io::Result<Written> {
    match fs::metadata(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Written::default()),
        Err(error) => Err(error),
        Ok(about) if about.len() > FILE_MAX => Err(ErrorKind::FileTooLarge.into()),
        Ok(_) => Ok(serde_json::from_slice(&fs::read(file)?)?),
    }
}

/// Puts `bytes` in the place of the file, never half.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = file.with_extension("new");
    let mut options = OpenOptions::new();
    let mut new = options.create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
    new.write_all(bytes)?;
    new.sync_all()?;
    fs::rename(&aside, file)?;
    file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pools(prefix: u8) -> Pools {
        let v4 = AddressPool::new(Ipv4Addr::new(10, 77, 1, 0), prefix).expect("a pool");
        Pools { v4, v6: AddressPoolV6::new("fd77::".parse().expect("ip"), 120) }
    }

    /// All fall on one address.
    fn node(n: u8) -> NodeId {
        let mut bytes = [0; 32];
        bytes[31] = n;
        NodeId::from_bytes(bytes)
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mwb-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Assigns, and writes it down at once.
    fn assign(book: &Arc<AddressBook>, nodes: impl IntoIterator<Item = u8>) -> Vec<Option<Given>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let given =
            runtime.block_on(async { nodes.into_iter().map(|n| book.assign(node(n), true)).collect() });
        book.write();
        given
    }

    #[test]
    fn who_comes_first_after_a_restart_does_not_matter() {
        let folder = Folder::new("book");
        let file = folder.0.join("addresses.json");
        let book = || AddressBook::open(pools(28), Some(file.clone()));
        let before = assign(&book(), 0..8);
        let mut again = assign(&book(), (0..8).rev());
        again.reverse();
        assert_eq!(again, before);
        assert!(before.iter().all(|given| given.is_some_and(|(_, v6)| v6.is_some())));
        assert!(!file.with_extension("new").exists());

        // Another pool: what lies outside is forgotten, and no more are refused than it has no room for.
        let small = AddressBook::open(pools(29), Some(file.clone()));
        assert_eq!((small.room(), small.gateway()), (5, Ipv4Addr::new(10, 77, 1, 1)));
        let given = assign(&small, (0..8).rev());
        assert_eq!(given.iter().flatten().count(), 5);
        small.release(node(7));
        assert_eq!(assign(&small, [0])[0].map(|(v4, _)| v4), given[0].map(|(v4, _)| v4));
    }

    #[test]
    fn a_damaged_file_is_no_reason_not_to_serve() {
        let folder = Folder::new("book-damaged");
        let file = folder.0.join("addresses.json");
        for damage in [
            &b"{"[..],
            b"[]",
            br#"{"v4":[["00","10.77.1.2"]],"v6":[]}"#,
            vec![b' '; FILE_MAX as usize + 1].as_slice(),
        ] {
            fs::write(&file, damage).expect("a file");
            let book = AddressBook::open(pools(28), Some(file.clone()));
            let given = assign(&book, [1])[0];
            assert_eq!(assign(&AddressBook::open(pools(28), Some(file.clone())), [0, 1])[1], given);
        }
        let nowhere = AddressBook::open(pools(28), Some(folder.0.join("none/addresses.json")));
        assert!(assign(&nowhere, [1])[0].is_some());
        assert!(assign(&AddressBook::open(pools(28), None), [1])[0].is_some());
    }
}
