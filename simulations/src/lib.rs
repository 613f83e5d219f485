//! What mwb-node is measured with: a WAN emulator in user space, a lab of network namespaces, and
//! test traffic over real sockets.
//!
//! - [`wan`]: links with rate or recorded trace, delay, jitter, loss, a bounded queue and cuts. The
//!   model of one direction is pure ([`wan::Direction`]); [`wan::Emulator`] drives it with
//!   `AF_PACKET` sockets between pairs of veth ends.
//! - [`lab`]: the topologies, each in namespaces of its own that vanish with the process.
//! - [`traffic`]: TCP flows with a chosen congestion control and verified payload, and UDP echo.
//! - [`bond_sim`]: whole bonded sessions under [`virtual_time`], with the same links and a
//!   [`tcp_model`] inside: seconds of traffic in milliseconds, repeated by their seed.
//!
//! The crate serves `mwb-node demo`, `mwb-node bench` and the end-to-end tests.

pub mod bond_sim;
pub mod lab;
pub mod skip;
pub mod tcp_model;
pub mod traffic;
pub mod virtual_time;
pub mod wan;
