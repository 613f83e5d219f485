//! The socket options that no safe crate reads.
#![allow(unsafe_code, reason = "TCP_INFO and MPTCP_INFO have no safe wrapper in the crates used here")]

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::ptr;

/// What the kernel knows about a connection.
pub(super) fn tcp_info(stream: &TcpStream) -> io::Result<libc::tcp_info> {
    // SAFETY: all-zero is a valid tcp_info, a plain C struct.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is writable for `length` bytes; a kernel that knows more fields writes no more.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

/// Level and option of MPTCP's socket information, and its first fields and flag (linux/mptcp.h).
const SOL_MPTCP: libc::c_int = 284;
const MPTCP_INFO: libc::c_int = 1;
const MPTCP_FALLBACK: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MptcpInfo {
    /// Subflows besides the first.
    subflows: u8,
    /// Limits and announced addresses.
    _others: [u8; 7],
    flags: u32,
}

/// How many subflows a connection has: one or more of a Multipath TCP connection, `None` of a plain one, also when
/// the other end only spoke plain TCP.
pub(super) fn subflows(stream: &TcpStream) -> Option<u32> {
    let mut info = MptcpInfo::default();
    let mut length = size_of::<MptcpInfo>() as libc::socklen_t;
    // SAFETY: `info` is writable for `length` bytes; a kernel that knows more fields writes no more.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            SOL_MPTCP,
            MPTCP_INFO,
            ptr::from_mut(&mut info).cast(),
            &raw mut length,
        )
    };
    (done == 0 && info.flags & MPTCP_FALLBACK == 0).then(|| u32::from(info.subflows) + 1)
}
