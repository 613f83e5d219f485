//! Waiting until a descriptor can be read or written, with tokio's reactor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a duplicate of `fd` with the current runtime's reactor. The duplicate shares the open
/// file with `fd`, so its readiness is that of `fd`; I/O itself goes through `fd`.
///
/// Register for one direction only: a socket that is also watched for writing wakes the reactor each
/// time a sent packet leaves.
///
/// # Errors
/// When the process has no descriptor left.
pub(crate) fn watch(fd: impl AsFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    register(fd.as_fd().try_clone_to_owned()?, interest)
}

/// Registers `fd` itself.
///
/// # Errors
/// When the reactor refuses it.
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[allow(unsafe_code, reason = "tokio cannot know that an OwnedFd keeps its descriptor")]
    // SAFETY: an `OwnedFd` is a valid open descriptor, owned by the `AsyncFd` from here on, and
    // returns the same number until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| error.into_parts().1)
}

/// Waits until `fd` can be written, with a registration of its own that ends with the wait.
///
/// # Errors
/// When the reactor refuses it.
pub(crate) async fn writable(fd: impl AsFd) -> io::Result<()> {
    let watched = watch(fd, Interest::WRITABLE)?;
    let _guard = watched.writable().await?;
    Ok(())
}
