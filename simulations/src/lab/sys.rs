//! The system calls of the lab that no safe crate offers.
#![allow(unsafe_code, reason = "namespaces, ethtool and code between fork and exec need raw system calls")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use libc::{c_int, c_ulong};

/// Moves this thread into new network and mount namespaces. It keeps all other threads where they are.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: no pointers; only the namespaces, and with them the working directory, of this thread
    // change.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) }).map(drop)
}

/// Moves this process, which must have one thread, into new user, network and mount namespaces where
/// it is root. `maps` says who it was.
pub(super) fn enter_user_namespace(maps: &IdMaps) -> io::Result<()> {
    // SAFETY: no pointers; the kernel refuses it in a process with several threads.
    check(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWNS) })?;
    // The group map may only be written once setgroups is denied.
    write_file(c"/proc/self/setgroups", b"deny")?;
    write_file(c"/proc/self/uid_map", maps.uid.as_bytes())?;
    write_file(c"/proc/self/gid_map", maps.gid.as_bytes())
}

/// The lines that map root in a user namespace to the user outside.
#[derive(Clone, Debug)]
pub(super) struct IdMaps {
    uid: CString,
    gid: CString,
}

impl IdMaps {
    /// For the user this process is.
    pub(super) fn current() -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let line = |id: u32| CString::new(format!("0 {id} 1\n")).expect("no zero byte in a number");
        Self { uid: line(uid), gid: line(gid) }
    }
}

/// Writes without allocating, since it also runs between fork and exec.
fn write_file(path: &CStr, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: `path` ends with a zero byte.
    let fd = check(unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: `bytes` is readable for its length.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    let error = io::Error::last_os_error();
    // SAFETY: `fd` was opened above and is used no more.
    unsafe { libc::close(fd) };
    if usize::try_from(written) == Ok(bytes.len()) { Ok(()) } else { Err(error) }
}

/// Makes the program end, by SIGKILL, when the thread that starts it ends.
pub(super) fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: the closure runs between fork and exec; it makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong))?;
            // The parent may have died before the call above.
            if libc::getppid() == parent { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
        });
    }
}

/// Makes the program start as root of new user, network and mount namespaces.
pub(super) fn start_in_user_namespace(command: &mut Command) {
    let maps = IdMaps::current();
    // SAFETY: the closure runs between fork and exec, where the process has one thread; it makes
    // system calls with memory allocated before.
    unsafe {
        command.pre_exec(move || enter_user_namespace(&maps));
    }
}

/// The index of an interface in the namespace of this thread.
pub(super) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: `name` ends with a zero byte.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 { Err(io::Error::last_os_error()) } else { Ok(index) }
}

/// Opens a TUN device of this name in the namespace of this thread, and closes it again.
pub(super) fn try_tun(name: &str) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    ioctl(&file, libc::TUNSETIFF as c_ulong, &mut request)
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero is a valid ifreq, a plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ioctl(fd: &impl std::os::fd::AsRawFd, number: c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: both requests used here take an ifreq, which lives through the call; callers keep alive
    // what a pointer in it points to.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), number as _, ptr::from_mut(request)) }).map(drop)
}

const SIOCETHTOOL: c_ulong = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const STRING_BYTES: usize = 32;

/// Runs one ethtool command whose argument is this block of words.
fn ethtool(interface: &str, block: &mut [u32]) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_data = block.as_mut_ptr().cast();
    ioctl(&socket, SIOCETHTOOL, &mut request)
}

/// Switches off what lets frames larger than the MTU or without a checksum leave an interface:
/// segmentation, checksums and scatter-gather of the sending side.
pub(super) fn switch_off_offloads(interface: &str) -> io::Result<()> {
    let unwanted = ["segmentation", "checksum", "scatter-gather", "gso"];
    let meant = |name: &str| name.starts_with("tx-") && unwanted.iter().any(|word| name.contains(word));
    set_features(interface, meant, false).map(drop)
}

/// Switches the features of an interface that are `meant`, by their names, on or off. Says how many there are.
pub(super) fn set_features(interface: &str, meant: impl Fn(&str) -> bool, on: bool) -> io::Result<usize> {
    // struct ethtool_sset_info: cmd, reserved, mask (64 bits), then one count per bit of the mask.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ethtool(interface, &mut info)?;
    let count = info[4] as usize;
    // struct ethtool_gstrings: cmd, string_set, len, then the names, 32 bytes each.
    let mut strings = vec![0u32; 3 + count * STRING_BYTES / 4];
    strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    ethtool(interface, &mut strings)?;
    // struct ethtool_sfeatures: cmd, size, then per 32 features which are meant and what they become.
    let blocks = count.div_ceil(32);
    let mut features = vec![0u32; 2 + blocks * 2];
    features[..2].copy_from_slice(&[ETHTOOL_SFEATURES, blocks as u32]);
    let mut found = 0;
    for (index, words) in strings[3..].chunks_exact(STRING_BYTES / 4).enumerate() {
        let name: Vec<u8> =
            words.iter().flat_map(|word| word.to_ne_bytes()).take_while(|b| *b != 0).collect();
        if meant(&String::from_utf8_lossy(&name)) {
            let (block, bit) = (2 + index / 32 * 2, 1 << (index % 32));
            features[block] |= bit;
            features[block + 1] |= if on { bit } else { 0 };
            found += 1;
        }
    }
    // Features a driver cannot change are left out by the kernel, which says so in a positive result.
    ethtool(interface, &mut features)?;
    Ok(found)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
