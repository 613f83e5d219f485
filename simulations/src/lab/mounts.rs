//! What a host sees of the file system: the machine's, but `/run`, `/etc` and `/sys` of its own.
//!
//! A node changes `/etc/resolv.conf`, asks services over sockets in `/run`, and reads interfaces from
//! `/sys`. In a lab none of that may reach the machine, nor may two hosts meet there.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change, mount_remount,
};

/// Where the machine's `/etc` is seen. Below the new `/run` on purpose: nobody removes directories
/// with all they contain there.
const MACHINE_ETC: &str = "/run/machine-etc";
const NO_OPTIONS: Option<&CStr> = None;

/// Gives this thread, which must be in a mount namespace of its own, its `/run`, `/etc` and `/sys`.
///
/// Fails where the lab's own files or the program itself are below `/run`, which would hide them.
pub(super) fn make_private() -> io::Result<()> {
    for needed in [std::env::temp_dir(), std::env::current_exe().unwrap_or_default()] {
        let real: PathBuf = needed.canonicalize().unwrap_or(needed);
        if real.starts_with("/run") {
            let text = format!("{} is below /run, which hosts do not share; set TMPDIR", real.display());
            return Err(io::Error::other(text));
        }
    }
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))?;
    fs::create_dir(MACHINE_ETC)?;
    mount_bind_recursive("/etc", MACHINE_ETC)?;
    // Through the links below a node must not write to it. Refused where the mount has locked flags.
    let _ = mount_remount(MACHINE_ETC, MountFlags::BIND | MountFlags::RDONLY, NO_OPTIONS.unwrap_or(c""));
    mount("tmpfs", "/etc", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))?;
    for entry in fs::read_dir(MACHINE_ETC)? {
        let entry = entry?;
        let here = Path::new("/etc").join(entry.file_name());
        if entry.file_name() == "resolv.conf" {
            // Its own; what it links to, if it does, is in the machine's /run.
            fs::write(&here, fs::read(entry.path()).unwrap_or_default())?;
        } else if entry.file_type()?.is_symlink() {
            symlink(fs::read_link(entry.path())?, &here)?;
        } else {
            symlink(entry.path(), &here)?;
        }
    }
    // A machine without the file has none here. Where /sys is not all visible, as in a container, the
    // kernel refuses a new one; then it shows the interfaces of the machine, which is only a blemish.
    let _ = mount("sysfs", "/sys", "sysfs", MountFlags::NOSUID | MountFlags::NODEV, NO_OPTIONS);
    Ok(())
}
