//! The membership on disk: the folder `membership` in a node's state folder.
//!
//! | file | holds |
//! |---|---|
//! | `members.json` | the root's public key, signed records and revocations |
//! | `root.key` | the root key (PKCS#8), only on the node that made the mesh |
//! | `invites.json` | invites with their secrets, there too |
//! | `lock` | locked while one of the others changes |
//!
//! A running node and the command line share them: every change happens under the lock, begins with
//! what is stored, and replaces a file as a whole (written aside, synced, renamed). All are readable by
//! their owner only.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mwb_proto::mesh::{
    EnrolError, FieldError, Invites, IssueError, Members, MeshId, NodeId, RecordRefused, Roles, RootKey,
    RootPublicKey, SignedRecord, SignedRevocation, Token,
};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::identity::Identity;

const MEMBERS: &str = "members.json";
const ROOT: &str = "root.key";
const INVITES: &str = "invites.json";
const LOCK: &str = "lock";
/// Largest file that is read: some hundred records and invites are far smaller.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// Why the stored membership cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// What could not be used.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} is damaged: {problem}; restore it, or remove the folder to leave the mesh", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The node has a mesh already.
    #[error("this node already belongs to the mesh {mesh}; to leave it, stop the node and remove {}", dir.display())]
    Member {
        /// The mesh.
        mesh: MeshId,
        /// The folder.
        dir: PathBuf,
    },
    /// The node has no mesh.
    #[error(
        "this node belongs to no mesh; make one with mwb-node init, or join one with mwb-node join TOKEN"
    )]
    NoMember,
    /// The node is a member without the root key.
    #[error("this node does not have the mesh's root key; run this on the node where mwb-node init was run")]
    NoRoot,
    /// No member is called so.
    #[error("no member has the name or node id {0:?}; mwb-node members lists them")]
    Unknown(String),
    /// The node would send itself away.
    #[error("the node with the root key cannot be removed from its own mesh")]
    Self_,
    /// An invite's settings are out of bounds.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// A member's description is out of bounds, or the mesh is full.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The mesh does not take a revocation.
    #[error(transparent)]
    Refused(#[from] RecordRefused),
    /// A token without a usable address.
    #[error("nobody would find this node: {0}; name its address with --address ADDRESS:PORT")]
    Address(FieldError),
    /// The system gave no randomness.
    #[error("the system gave no randomness for a key")]
    Randomness,
}

/// What an invite is to be.
#[derive(Clone, Debug)]
pub struct InviteSpec {
    /// What the new members may do.
    pub roles: Roles,
    /// How many there may be.
    pub uses: u32,
    /// For how long.
    pub ttl: Duration,
    /// Where this node is reached; its record's addresses when empty.
    pub addresses: Vec<SocketAddr>,
}

/// Names the stored state, to see whether another program has changed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Stamp(u64, i64, i64);

/// The folder.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MembersFile {
    root: String,
    records: Vec<String>,
    revocations: Vec<String>,
}

impl Store {
    /// The membership in this state folder; nothing is read or made yet.
    pub fn new(state_dir: &Path) -> Self {
        Self { dir: state_dir.join("membership") }
    }

    /// What is stored; `None` when the node belongs to no mesh.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(&self) -> Result<Option<Members>, StoreError> {
        let path = self.dir.join(MEMBERS);
        let Some(bytes) = self.read(MEMBERS)? else { return Ok(None) };
        let damaged = |problem: String| StoreError::Damaged { path: path.clone(), problem };
        let file: MembersFile = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let hex = |text: &str| from_hex(text).ok_or_else(|| damaged("not hexadecimal".to_owned()));
        let root = hex(&file.root)?.try_into().map_err(|_| damaged("the root key's length".to_owned()))?;
        let mut members = Members::new(RootPublicKey::from_bytes(root));
        for text in &file.revocations {
            let signed = SignedRevocation::decode(&hex(text)?).map_err(|error| damaged(error.to_string()))?;
            members.handle_revocation(&signed).map_err(|error| damaged(error.to_string()))?;
        }
        for text in &file.records {
            let signed = SignedRecord::decode(&hex(text)?).map_err(|error| damaged(error.to_string()))?;
            members.handle_record(&signed).map_err(|error| damaged(error.to_string()))?;
        }
        Ok(Some(members))
    }

    /// Makes a mesh: its root key, and the record of this node.
    ///
    /// # Errors
    /// When the node has a mesh already or a root key is left of one, or the record would be out of
    /// bounds.
    pub fn found(
        &self,
        node: &Identity,
        (name, roles, addresses): (&str, Roles, &[SocketAddr]),
    ) -> Result<MeshId, StoreError> {
        self.make_dir()?;
        let _lock = self.lock()?;
        self.must_be_free(node.node_id())?;
        // A root key without members is all that is left of a mesh: it is never overwritten.
        if self.dir.join(ROOT).exists() {
            let problem = "it is missing, but a mesh's root key lies beside it".to_owned();
            return Err(StoreError::Damaged { path: self.dir.join(MEMBERS), problem });
        }
        let pkcs8 = Identity::generate().map_err(|_| StoreError::Randomness)?;
        let root = RootKey::from_pkcs8(&pkcs8).expect("a key that was just made");
        let mut members = Members::new(root.public_key());
        members.enrol(&root, node.public_key(), (name, roles, addresses))?;
        self.write(ROOT, &pkcs8)?;
        self.write_members(&members)?;
        Ok(members.mesh())
    }

    /// Stores the mesh that this node has just joined. A node that runs with a membership which was revoked sees it, and is
    /// a member again.
    ///
    /// # Errors
    /// When it has one already, or the system refuses.
    pub fn joined(&self, me: NodeId, members: &Members) -> Result<(), StoreError> {
        self.make_dir()?;
        let _lock = self.lock()?;
        self.must_be_free(me)?;
        self.write_members(members)
    }

    /// Checks that a join could be stored, so that no invite is used up in vain.
    ///
    /// # Errors
    /// As [`joined`](Self::joined).
    pub fn prepare(&self, me: NodeId) -> Result<(), StoreError> {
        self.make_dir()?;
        let _lock = self.lock()?;
        self.must_be_free(me)
    }

    /// Makes an invite, and its token.
    ///
    /// # Errors
    /// When this node cannot invite, or a setting is out of bounds.
    pub fn invite(&self, me: NodeId, spec: &InviteSpec) -> Result<Token, StoreError> {
        let (lock, members, root) = self.open_root()?;
        let mut invites = self.invites()?;
        let addresses = match members.record(me) {
            Some(record) if spec.addresses.is_empty() => record.addresses.clone(),
            _ => spec.addresses.clone(),
        };
        let token = Token {
            root: root.public_key(),
            invite: rand::random(),
            secret: rand::random(),
            inviter: me,
            addresses,
        };
        token.encode().map_err(StoreError::Address)?;
        invites.issue(token.invite, token.secret, (spec.roles, spec.uses, spec.ttl), wall_clock())?;
        self.write_invites(&invites)?;
        drop(lock);
        Ok(token)
    }

    /// Revokes the membership of the node with this name or id.
    ///
    /// # Errors
    /// When this node cannot, or nobody is called so.
    pub fn revoke(&self, me: NodeId, who: &str) -> Result<NodeId, StoreError> {
        let (lock, mut members, root) = self.open_root()?;
        let is = |signed: &&SignedRecord| {
            let record = signed.record();
            record.name == who || who.parse() == Ok(record.node())
        };
        let node = members.records().find(is).map(|signed| signed.record().node());
        let node = node.ok_or_else(|| StoreError::Unknown(who.to_owned()))?;
        if node == me {
            return Err(StoreError::Self_);
        }
        members.revoke(&root, node)?;
        self.write_members(&members)?;
        drop(lock);
        Ok(node)
    }

    /// Changes members and invites with the root key at hand, and stores both when `change` succeeds.
    pub(super) fn change<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&mut Members, &mut Invites, &RootKey) -> Result<T, E>,
    ) -> Result<(T, Members), E> {
        let (lock, mut members, root) = self.open_root()?;
        let mut invites = self.invites()?;
        let result = change(&mut members, &mut invites, &root)?;
        // An invite that is noted as used lets the same node try again; the other way round it would
        // let in one node more.
        self.write_invites(&invites)?;
        self.write_members(&members)?;
        drop(lock);
        Ok((result, members))
    }

    /// Stores what `members` has and the file lacks; gives all that is stored then.
    pub(super) fn merge(&self, members: &Members) -> Result<(Members, Stamp), StoreError> {
        let lock = self.lock()?;
        let mut stored = self.load()?.ok_or(StoreError::NoMember)?;
        if merge(&mut stored, members) {
            self.write_members(&stored)?;
        }
        let stamp = self.stamp();
        drop(lock);
        Ok((stored, stamp))
    }

    /// Changes whenever `members.json` is replaced.
    pub(super) fn stamp(&self) -> Stamp {
        fs::metadata(self.dir.join(MEMBERS))
            .map(|meta| Stamp(meta.ino(), meta.mtime(), meta.mtime_nsec()))
            .unwrap_or_default()
    }

    fn open_root(&self) -> Result<(File, Members, RootKey), StoreError> {
        if !self.dir.join(MEMBERS).exists() {
            return Err(StoreError::NoMember);
        }
        let lock = self.lock()?;
        let members = self.load()?.ok_or(StoreError::NoMember)?;
        let pkcs8 = self.read(ROOT)?.ok_or(StoreError::NoRoot)?;
        let path = self.dir.join(ROOT);
        let damaged = |problem: String| StoreError::Damaged { path, problem };
        let root = RootKey::from_pkcs8(&pkcs8).map_err(|error| damaged(error.to_string()))?;
        if root.public_key() != *members.root() {
            return Err(StoreError::Damaged {
                path: self.dir.join(ROOT),
                problem: "it is another mesh's".to_owned(),
            });
        }
        Ok((lock, members, root))
    }

    /// A membership that was revoked is none.
    fn must_be_free(&self, me: NodeId) -> Result<(), StoreError> {
        match self.load()?.filter(|members| members.record(me).is_some()) {
            Some(members) => Err(StoreError::Member { mesh: members.mesh(), dir: self.dir.clone() }),
            None => Ok(()),
        }
    }

    fn invites(&self) -> Result<Invites, StoreError> {
        let Some(bytes) = self.read(INVITES)? else { return Ok(Invites::default()) };
        let path = self.dir.join(INVITES);
        serde_json::from_slice(&bytes)
            .map_err(|error| StoreError::Damaged { path, problem: error.to_string() })
    }

    fn write_invites(&self, invites: &Invites) -> Result<(), StoreError> {
        self.write(INVITES, &serde_json::to_vec(invites).expect("invites are JSON"))
    }

    fn write_members(&self, members: &Members) -> Result<(), StoreError> {
        let file = MembersFile {
            root: to_hex(members.root().as_bytes()),
            records: members.records().map(|signed| to_hex(&signed.encode())).collect(),
            revocations: members.revocations().map(|signed| to_hex(&signed.encode())).collect(),
        };
        self.write(MEMBERS, &serde_json::to_vec_pretty(&file).expect("texts are JSON"))
    }

    fn make_dir(&self) -> Result<(), StoreError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|source| StoreError::Io { path: self.dir.clone(), source })
    }

    /// Held until the file is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let path = self.dir.join(LOCK);
        let io = |source| StoreError::Io { path: path.clone(), source };
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(io)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| io(error.into()))?;
        Ok(file)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.dir.join(name);
        let read = || {
            let size = fs::metadata(&path)?.len();
            if size > FILE_MAX { Err(ErrorKind::FileTooLarge.into()) } else { fs::read(&path) }
        };
        match read() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// Never half written, never readable by others. The caller holds the lock.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let (path, aside) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|source| StoreError::Io { path: path.clone(), source })
    }
}

/// Takes into `members` what `other` has; true when that changes anything.
pub(super) fn merge(members: &mut Members, other: &Members) -> bool {
    let mut news = false;
    for signed in other.revocations() {
        news |= members.handle_revocation(signed).unwrap_or(false);
    }
    for signed in other.records() {
        // What a revocation has ended here is not news.
        news |= members.handle_record(signed).unwrap_or(false);
    }
    news
}

/// Seconds of this node's clock: only what it has issued itself is measured by it.
pub(super) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or(0)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_key_is_never_overwritten() {
        let state = std::env::temp_dir().join(format!("mwb-store-{}", std::process::id()));
        let node = Identity::from_pkcs8(&Identity::generate().unwrap()).unwrap();
        let store = Store::new(&state);
        let about = ("exit", Roles::EXIT, &["198.51.100.2:9000".parse().unwrap()][..]);
        store.found(&node, about).unwrap();
        let root = fs::read(store.dir.join(ROOT)).unwrap();
        assert!(matches!(store.found(&node, about), Err(StoreError::Member { .. })));
        fs::remove_file(store.dir.join(MEMBERS)).unwrap();
        assert!(matches!(store.found(&node, about), Err(StoreError::Damaged { .. })));
        assert_eq!(fs::read(store.dir.join(ROOT)).unwrap(), root);
        fs::remove_dir_all(&state).unwrap();
    }
}
