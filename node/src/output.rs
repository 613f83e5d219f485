//! The only way to standard output.
//!
//! What a command answers goes through here, what it says meanwhile goes to standard error. A closed
//! pipe (`mwb-node status | head -1`) ends the program quietly, as for every other Unix tool.

use std::io::{self, ErrorKind, Write};

/// Writes `text` and a line end to standard output.
///
/// # Errors
/// What the write failed with, a closed pipe excepted: that counts as written.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    closed_is_fine(
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()),
    )
}

/// Writes `text`, which ends its own lines, to standard output.
///
/// # Errors
/// As [`line()`].
pub(crate) fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    closed_is_fine(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// One line about what is going on, to standard error. Nobody is told when that is closed.
pub(crate) fn progress(text: &str) {
    let mut err = io::stderr().lock();
    err.write_all(text.as_bytes()).and_then(|()| err.write_all(b"\n")).ok();
}

fn closed_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
