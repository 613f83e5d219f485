//! A lab of network namespaces on one machine: hosts, emulated uplinks, an internet router, an exit
//! and a server.
//!
//! [`Lab::edge_exit`]: one edge with N uplinks. [`Lab::lan`]: K hosts on a bridge, each with uplinks.
//!
//! ```text
//!            up0 10.1.0.2   +----------+  10.1.0.1 wan0
//!  [ edge ]==============---| emulator |---============[ internet ]--- 198.51.100.2 [ exit ]
//!            up1 10.1.1.2   +----------+  10.1.1.1 wan1            \-- 203.0.113.10 [ server ]
//! ```
//!
//! Each host is a namespace without a name, held by one long-lived thread. The host's own namespace
//! never sees a link. Hosts see the machine's file system, but have `/run` and `/etc` to themselves:
//! what they write there stays there, and nobody outside sees it. When the lab is dropped, or its process is killed in whatever way, the threads,
//! the programs they started and with them the namespaces are gone.
//!
//! It works as root, and as an ordinary user inside a user namespace: call [`enter`] first in `main`,
//! or wrap a test into [`in_lab_process`].

mod entry;
mod host;
mod mounts;
mod namespace;
mod preflight;
mod process;
mod runtime_dir;
mod sys;
mod topology;

use std::io;

use thiserror::Error;

use crate::wan::EmulatorError;

pub use entry::{MachineLock, enter, in_lab_process, machine_lock};
pub use host::{Host, Running, Uplink};
pub use preflight::{Check, Operation, preflight};
pub use process::LabChild;
pub use topology::{Lab, LabOptions};

/// Why a lab could not be built or used.
#[derive(Debug, Error)]
pub enum LabError {
    /// An operation that a lab needs is refused here.
    #[error("{operation} failed: {source}; {cure}")]
    Refused {
        /// What was tried.
        operation: Operation,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        cure: &'static str,
    },
    /// A link, address or route could not be set up.
    #[error("{what} in {namespace}: {source}")]
    Netlink {
        /// What was to be done.
        what: String,
        /// The namespace it was to be done in.
        namespace: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// A system call failed.
    #[error("{what} in {namespace}: {source}")]
    System {
        /// What was to be done.
        what: String,
        /// The namespace it was to be done in.
        namespace: String,
        /// What the system said.
        source: io::Error,
    },
    /// The thread of a namespace has ended.
    #[error("the namespace {0} has ended")]
    Ended(String),
    /// More links or hosts than the address plan holds, or none.
    #[error("a lab has 1 to 200 links, and a LAN 1 to 60 hosts, not {0}")]
    Size(usize),
    /// The emulator did not start or did not obey.
    #[error(transparent)]
    Emulator(#[from] EmulatorError),
}
