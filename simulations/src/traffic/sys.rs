//! The one socket option that no safe crate reads.
#![allow(unsafe_code, reason = "TCP_INFO has no safe wrapper in the crates used here")]

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
