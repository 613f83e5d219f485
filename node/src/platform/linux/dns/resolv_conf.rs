//! `/etc/resolv.conf` (resolv.conf(5)) for as long as a session is up, and what was there before it.
//!
//! ```text
//! # mwb-node 5f1d… /run/mwb-node: the resolvers of the bond. What was here follows as comments, and comes back when the node stops,
//! # at its next start, or by: mwb-node down
//! search lan
//! nameserver 198.51.100.53
//! # before: file
//! #|nameserver 192.168.1.1
//! ```
//!
//! The file holds its predecessor itself, byte for byte: there is no second file to lose, to go stale or to outlive it, and no
//! note that a reboot drops while the file stays. One rename makes it, one rename takes it back. The first line
//! names the runtime folder of the node that wrote it and the beginning of the SHA-256 of all that follows, so that
//! what anybody else has written or edited since is told from ours: that is never touched.
//!
//! Where the file cannot be replaced, because it is a mount of its own (a container's) or its folder is read-only, it is
//! written in place. Ours is always longer than its predecessor: no moment leaves less than a whole file.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

/// Begins the first line of ours.
const MARK: &str = "# mwb-node ";
/// Digits of the digest there.
const DIGITS: usize = 16;
/// Ends the comments' head and says what the predecessor was.
const BEFORE: &str = "# before: ";
const WAS_FILE: &str = "file";
const WAS_OPEN_FILE: &str = "file without a newline at its end";
const WAS_NOTHING: &str = "nothing";
const WAS_LINK: &str = "link to ";
/// Before each line of the predecessor.
const QUOTE: &[u8] = b"#|";
/// A larger file is none of resolv.conf(5), and is not touched.
const BYTES_MAX: u64 = 64 * 1024;
/// The C library asks no more (MAXNS).
const SERVERS_MAX: usize = 3;

/// What was there before us.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Link(PathBuf),
    File(Vec<u8>),
}

/// What is there.
#[derive(Debug, PartialEq, Eq)]
enum Present {
    /// This node's, with its predecessor.
    Ours(Before),
    /// Anybody else's.
    Theirs(Before),
}

/// The file of one node.
#[derive(Debug)]
pub(super) struct ResolvConf {
    path: PathBuf,
    /// The node's runtime folder, by which it knows its own file again.
    owner: String,
}

impl ResolvConf {
    /// The file at `path`, for the node with `runtime_dir`.
    pub(super) fn new(path: &Path, runtime_dir: &Path) -> Self {
        // One line, and no colon, which ends it.
        let owner = runtime_dir.display().to_string().replace([':', '\n'], "_");
        Self { path: path.to_owned(), owner }
    }

    /// Makes it name `servers`, of which the first three count. What is there, if it is not ours already, is kept inside.
    ///
    /// # Errors
    /// When it cannot be read or written; it is as it was then.
    pub(super) fn write(&self, servers: &[IpAddr]) -> io::Result<()> {
        let (Present::Ours(before) | Present::Theirs(before)) = self.present()?;
        self.put(&self.text(&before, servers)?)
    }

    /// Puts back what was there before; `false` when the file is not ours, and is left alone.
    ///
    /// # Errors
    /// When it cannot be read or written; it is as it was then.
    pub(super) fn restore(&self) -> io::Result<bool> {
        let Present::Ours(before) = self.present()? else { return Ok(false) };
        match before {
            Before::Nothing => fs::remove_file(&self.path)?,
            Before::File(bytes) => self.put(&bytes)?,
            Before::Link(target) => {
                let new = self.new_path();
                remove(&new)?;
                symlink(target, &new)?;
                fs::rename(&new, &self.path)?;
            }
        }
        Ok(true)
    }

    /// Whether it is this node's now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn is_ours(&self) -> io::Result<bool> {
        Ok(matches!(self.present()?, Present::Ours(_)))
    }

    fn present(&self) -> io::Result<Present> {
        let found = match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Present::Theirs(Before::Nothing));
            }
            other => other?,
        };
        if found.is_symlink() {
            // Ours is never a link, and what is behind one is another's.
            return Ok(Present::Theirs(Before::Link(fs::read_link(&self.path)?)));
        }
        let bytes = read(&self.path)?;
        Ok(match self.parse(&bytes) {
            Some(before) => Present::Ours(before),
            None => Present::Theirs(Before::File(bytes)),
        })
    }

    /// The predecessor in `bytes`, if they are ours and whole.
    fn parse(&self, bytes: &[u8]) -> Option<Before> {
        let rest = bytes.strip_prefix(MARK.as_bytes())?;
        let (line, rest) = split_line(rest)?;
        let (digest, owner) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        let (owner, _) = owner.split_once(": ")?;
        let whole = trim(rest);
        if digest != digest_of(whole) || owner != self.owner {
            return None;
        }
        let mut lines = whole.split_inclusive(|byte| *byte == b'\n');
        let was = lines.by_ref().find_map(|line| line.strip_prefix(BEFORE.as_bytes()))?;
        let was = was.strip_suffix(b"\n").unwrap_or(was);
        if let Some(target) = was.strip_prefix(WAS_LINK.as_bytes()) {
            return Some(Before::Link(std::ffi::OsString::from_vec(target.to_vec()).into()));
        }
        let (mut before, mut has_lines) = (Vec::new(), false);
        for line in lines {
            has_lines = true;
            before.extend_from_slice(line.strip_prefix(QUOTE)?);
        }
        match std::str::from_utf8(was).ok()? {
            WAS_NOTHING => Some(Before::Nothing),
            WAS_OPEN_FILE => Some(Before::File(before)),
            WAS_FILE => {
                // It went with the padding.
                before.extend(has_lines.then_some(b'\n'));
                Some(Before::File(before))
            }
            _ => None,
        }
    }

    /// Ours over `before`.
    fn text(&self, before: &Before, servers: &[IpAddr]) -> io::Result<Vec<u8>> {
        let mut rest = b"# at its next start, or by: mwb-node down\n".to_vec();
        let linked;
        let kept: &[u8] = match before {
            Before::File(bytes) => bytes,
            // What is behind a link says which names are short for what, too; a link that leads nowhere says nothing.
            Before::Link(target) => {
                linked = read(&self.path.with_file_name(target)).unwrap_or_default();
                &linked
            }
            Before::Nothing => &[],
        };
        for line in kept.split(|byte| *byte == b'\n') {
            if line.starts_with(b"search ") || line.starts_with(b"domain ") {
                rest.extend_from_slice(line);
                rest.push(b'\n');
            }
        }
        for server in servers.iter().take(SERVERS_MAX) {
            rest.extend_from_slice(format!("nameserver {server}\n").as_bytes());
        }
        rest.extend_from_slice(BEFORE.as_bytes());
        match before {
            Before::Nothing => rest.extend_from_slice(WAS_NOTHING.as_bytes()),
            Before::Link(target) if target.as_os_str().as_bytes().contains(&b'\n') => {
                return Err(io::Error::other("the link's target has more than one line"));
            }
            Before::Link(target) => {
                rest.extend_from_slice(WAS_LINK.as_bytes());
                rest.extend_from_slice(target.as_os_str().as_bytes());
            }
            Before::File(bytes) => {
                let whole = bytes.is_empty() || bytes.ends_with(b"\n");
                rest.extend_from_slice(if whole { WAS_FILE } else { WAS_OPEN_FILE }.as_bytes());
                for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                    if !rest.ends_with(b"\n") {
                        rest.push(b'\n');
                    }
                    rest.extend_from_slice(QUOTE);
                    rest.extend_from_slice(line);
                }
            }
        }
        let whole = trim(&rest);
        let head = format!(
            "{MARK}{} {}: the resolvers of the bond. What was here follows as comments, and comes back when the node stops,\n",
            digest_of(whole),
            self.owner
        );
        let mut text = head.into_bytes();
        text.extend_from_slice(whole);
        text.push(b'\n');
        Ok(text)
    }

    /// Makes the file hold `bytes`: by a new file in its place, else inside the old one.
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        match self.replace(bytes) {
            // What is behind a link is another program's.
            Err(error) if may_write_inside(&error) && !self.path.is_symlink() => {
                self.write_inside(bytes).map_err(|_inside| error)
            }
            other => other,
        }
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let new = self.new_path();
        remove(&new)?;
        let old = fs::symlink_metadata(&self.path).ok().filter(|old| old.is_file());
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
            if let Some(old) = &old {
                // Without the capability for it the file is ours, which is as good.
                let _ = chown(&new, Some(old.uid()), Some(old.gid()));
            }
            file.set_permissions(Permissions::from_mode(
                old.as_ref().map_or(0o644, |old| old.mode() & 0o777),
            ))?;
            file.write_all(bytes)?;
            // A power cut leaves one or the other.
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().inspect_err(|_| drop(remove(&new)))
    }

    /// Newlines fill what the old content was longer, before it is cut: whoever reads meanwhile, or finds what a kill has
    /// left, sees all of `bytes`.
    fn write_inside(&self, bytes: &[u8]) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        let len = file.metadata()?.len();
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().max(usize::try_from(len.min(2 * BYTES_MAX)).unwrap_or(0)), b'\n');
        file.write_all_at(&padded, 0)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()
    }

    fn new_path(&self) -> PathBuf {
        self.path.with_file_name(".resolv.conf.mwb-new")
    }
}

/// Addresses that a resolv.conf names.
pub(super) fn nameservers(text: &[u8]) -> Vec<IpAddr> {
    let text = String::from_utf8_lossy(text);
    let server = |line: &str| line.strip_prefix("nameserver")?.split_whitespace().next()?.parse().ok();
    text.lines().filter_map(server).collect()
}

/// At most [`BYTES_MAX`] of what is at `path`.
///
/// # Errors
/// The system's, and when it is longer.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A pipe must not hold us up.
    let file =
        File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    // Ours is a little longer than its predecessor.
    file.take(2 * BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let most = if bytes.starts_with(MARK.as_bytes()) { 2 * BYTES_MAX } else { BYTES_MAX };
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("more than {most} bytes are no resolv.conf")));
    }
    Ok(bytes)
}

/// A mount, a read-only folder, or one that is not ours: the file itself may still be writable.
fn may_write_inside(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ResourceBusy | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied
    )
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Without the newlines at the end, which may be padding.
fn trim(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| *byte != b'\n').map_or(0, |last| last + 1);
    &bytes[..end]
}

fn digest_of(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn file(dir: &Path) -> (PathBuf, ResolvConf) {
        let path = dir.join("resolv.conf");
        let ours = ResolvConf::new(&path, Path::new("/run/mwb-node"));
        (path, ours)
    }

    #[test]
    fn what_was_there_comes_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ours) = file(dir.path());
        let contents: [&[u8]; 8] = [
            b"",
            b"\n",
            b"nameserver 192.0.2.1\n",
            b"nameserver 192.0.2.1",
            b"search lan\r\n\n\n# before: link to x\n#|\n\n",
            b"\xff\0\n#| \n",
            b"# mwb-node 0000000000000000 /run/mwb-node: not ours\nnameserver 192.0.2.7\n",
            b"\n\n\n",
        ];
        for bytes in contents {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
            assert!(!ours.is_ours().unwrap());
            for list in [&["198.51.100.53"][..], &["2001:db8::1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]] {
                ours.write(&servers(list)).unwrap();
                assert!(ours.is_ours().unwrap());
                let written = fs::read(&path).unwrap();
                assert_eq!(nameservers(&written), servers(&list[..list.len().min(SERVERS_MAX)]));
            }
            assert!(ours.restore().unwrap());
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
            assert!(!ours.restore().unwrap(), "there is nothing left to do");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn links_and_missing_files_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ours) = file(dir.path());
        ours.write(&servers(&["192.0.2.2"])).unwrap();
        assert!(path.is_file());
        assert!(ours.restore().unwrap() && !path.exists());
        for target in ["nowhere/resolv.conf", "real"] {
            fs::write(dir.path().join("real"), "search lan\nnameserver 192.0.2.1\n").unwrap();
            symlink(target, &path).unwrap();
            ours.write(&servers(&["192.0.2.2"])).unwrap();
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.contains("\nsearch lan\n"), target == "real", "{text}");
            assert!(ours.restore().unwrap());
            assert_eq!(fs::read_link(&path).unwrap(), Path::new(target));
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn what_others_wrote_since_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ours) = file(dir.path());
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        ours.write(&servers(&["192.0.2.2"])).unwrap();
        let other = ResolvConf::new(&path, Path::new("/run/another"));
        assert!(!other.restore().unwrap(), "another node's");
        let mut edited = fs::read(&path).unwrap();
        edited.extend_from_slice(b"nameserver 192.0.2.9\n");
        fs::write(&path, &edited).unwrap();
        assert!(!ours.restore().unwrap());
        assert_eq!(fs::read(&path).unwrap(), edited);
    }

    #[test]
    fn what_cannot_be_replaced_is_written_inside_and_a_torn_write_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ours) = file(dir.path());
        let before = b"nameserver 192.0.2.1\n";
        fs::write(&path, before).unwrap();
        let many = ours.text(&Before::File(before.to_vec()), &servers(&["192.0.2.2", "192.0.2.3"])).unwrap();
        let one = ours.text(&Before::File(before.to_vec()), &servers(&["192.0.2.2"])).unwrap();
        ours.write_inside(&many).unwrap();
        ours.write_inside(&one).unwrap();
        assert_eq!(fs::read(&path).unwrap(), one);
        // Killed before the file was cut.
        let mut torn = one.clone();
        torn.resize(many.len(), b'\n');
        fs::write(&path, &torn).unwrap();
        assert!(ours.restore().unwrap());
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn what_is_too_long_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, ours) = file(dir.path());
        fs::write(&path, vec![b'#'; 70_000]).unwrap();
        assert!(ours.write(&servers(&["192.0.2.2"])).is_err());
        assert_eq!(fs::metadata(&path).unwrap().len(), 70_000);
    }
}
