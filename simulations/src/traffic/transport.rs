//! Plain TCP or Multipath TCP: what the sockets of a flow are opened as.

use std::io;
use std::net::{SocketAddr, TcpListener};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};

/// Waiting connections of a listener.
const BACKLOG: i32 = 128;

/// The transport of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Plain TCP.
    #[default]
    Tcp,
    /// The kernel's Multipath TCP (RFC 8684). Which addresses it uses is a matter of its path manager.
    Mptcp,
}

impl Transport {
    /// An unbound socket for that address.
    ///
    /// # Errors
    /// What the system says; a kernel without Multipath TCP refuses its protocol.
    pub(super) fn socket(self, address: SocketAddr) -> io::Result<Socket> {
        let protocol = match self {
            Self::Tcp => Protocol::TCP,
            Self::Mptcp => Protocol::MPTCP,
        };
        Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))
    }

    /// A listening socket that does not block.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn listen(self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.socket(address)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}
