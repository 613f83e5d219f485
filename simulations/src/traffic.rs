//! Test traffic over real sockets: TCP flows and UDP echo, against a [`Server`] in the lab.
//!
//! The congestion control is set on the socket of both ends before the first byte, and reported as
//! read back, since a kernel may refuse it (a namespace cannot change its default). The payload is
//! verified byte by byte. Everything ends by itself within a stated time.
//!
//! The calls block; run them inside a namespace with [`crate::lab::Host::run`].

mod flood;
mod payload;
mod stats;
mod sys;
mod tcp;
mod transport;
mod udp;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

pub use flood::{Flood, flood};
pub use stats::{FlowResult, Gap, SenderReport};
pub use tcp::{Amount, FlowSpec, Server, download, server, server_of, upload};
pub use transport::Transport;
pub use udp::{EchoResult, EchoSpec, udp_echo};

/// How long to wait for a connection and for an answer to the request.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Why there was no flow at all. One that began and then failed is a [`FlowResult`] that says so.
#[derive(Debug, Error)]
pub enum TrafficError {
    /// The server could not listen.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A socket option was refused.
    #[error("cannot set {option}")]
    Option {
        /// The option and its value.
        option: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The other end did not answer, or not in the expected way.
    #[error("the test server at {address} does not answer as it should")]
    Protocol {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
