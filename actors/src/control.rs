//! The control plane: one QUIC connection per path, its first stream, and what keeps paths alive.
//!
//! `ControlSupervisor` keeps a `PeerActor` per peer: on an edge it [`dial`]s every address of an
//! exit over every uplink, on an exit it [`serve`]s the connections that have passed the [`door`]
//! behind a [`listen`]er. [`exits`] follows which exit an edge is to use, [`slots`] the ways to it. The
//! connections themselves are held beside the actors, so that paths do not notice when one of those dies.

pub mod dial;
pub(crate) mod door;
pub mod exit;
pub mod exits;
pub mod held;
pub mod listen;
pub mod rivals;
pub mod serve;
pub mod slots;

use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::{
    self, ControlError, Decoded, FRAME_MAX, FrameDecoder, Hello, Message, RefuseReason,
};
use mwb_proto::mesh::{AdmitError, Roles};
use mwb_proto::seal::EXPORTER_LABEL;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};

use crate::membership::Access;

/// Data-plane versions that this node speaks, best first.
pub const VERSIONS: [u16; 1] = [2];
/// What a peer may send before its first valid message.
pub const STRANGER_BYTES_MAX: usize = 4 * 1024;
/// How long a peer may take for each step of a join.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes read from a stream at once.
const READ_MAX: usize = 4 * 1024;
/// Round-trip time assumed on a LAN before the first one is measured: a first packet that a busy host
/// or an address not yet resolved has cost is sent again after 60 ms.
const LAN_INITIAL_RTT: Duration = Duration::from_millis(20);

/// Why a connection is closed, as the peer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CloseCode {
    /// The node stops, or the path is not wanted any more.
    Done = 0,
    /// The exit does not know this node.
    Stranger = 1,
    /// A message was malformed or out of turn.
    Protocol = 2,
    /// The peer was silent for too long.
    Timeout = 3,
    /// A newer connection carries this path.
    Replaced = 4,
    /// The path was refused; the refusal said why.
    Refused = 5,
}

impl CloseCode {
    /// Whether the peer has ended the connection, for this reason.
    pub(crate) fn is_reason(self, reason: &ConnectionError) -> bool {
        match reason {
            ConnectionError::ApplicationClosed(close) => {
                close.error_code == VarInt::from_u32(u32::from(self as u8))
            }
            _ => false,
        }
    }

    /// Closes `connection` for this reason.
    pub fn close(self, connection: &Connection) {
        let text: &[u8] = match self {
            Self::Done => b"done",
            Self::Stranger => b"this node is not known here",
            Self::Protocol => b"unexpected message",
            Self::Timeout => b"no message in time",
            Self::Replaced => b"replaced",
            Self::Refused => b"refused",
        };
        connection.close(VarInt::from_u32(u32::from(self as u8)), text);
    }

    /// The same with words of its own.
    pub fn close_saying(self, connection: &Connection, text: &str) {
        connection.close(VarInt::from_u32(u32::from(self as u8)), text.as_bytes());
    }
}

/// Why a path could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The QUIC endpoint of the link cannot be used.
    #[error("endpoint: {0}")]
    Endpoint(#[source] std::io::Error),
    /// The dial cannot even begin.
    #[error("dial: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// The connection failed or was closed.
    #[error("connection: {0}")]
    Connection(#[from] ConnectionError),
    /// The control stream broke.
    #[error("control stream: {0}")]
    Stream(String),
    /// The peer's bytes are no control messages.
    #[error("control stream: {0}")]
    Control(#[from] ControlError),
    /// A message that does not belong here.
    #[error("unexpected control message of kind {0}")]
    Unexpected(u16),
    /// The peer speaks no version that we speak.
    #[error("no common version")]
    Version,
    /// The peer chose what was not offered, or the TLS exporter failed.
    #[error("key agreement failed")]
    Keys,
    /// The exit said no.
    #[error("refused ({reason:?}): {text}")]
    Refused {
        /// For programs.
        reason: RefuseReason,
        /// For people.
        text: String,
    },
    /// The peer took too long.
    #[error("no answer in time")]
    Timeout,
    /// The peer is neither known from the configuration nor a member.
    #[error("{0}")]
    NotAdmitted(#[from] AdmitError),
    /// The peer is a member without the role that this needs.
    #[error("the peer does not have the role {0}")]
    Role(Roles),
    /// The path came back to life before it was replaced.
    #[error("not needed any more")]
    NotNeeded,
}

impl From<quinn::WriteError> for JoinError {
    fn from(error: quinn::WriteError) -> Self {
        Self::Stream(error.to_string())
    }
}

/// The first stream of a connection.
pub(crate) struct ControlStream {
    send: SendStream,
    receive: RecvStream,
    decoder: FrameDecoder,
    budget: usize,
}

impl ControlStream {
    pub(crate) fn new((send, receive): (SendStream, RecvStream)) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_frame_max(STRANGER_BYTES_MAX);
        Self { send, receive, decoder, budget: STRANGER_BYTES_MAX }
    }

    /// The peer has shown who it is: it may use the full size of messages.
    pub(crate) fn trust(&mut self) {
        self.decoder.set_frame_max(FRAME_MAX);
        self.budget = usize::MAX;
    }

    pub(crate) async fn send(&mut self, message: &Message) -> Result<(), JoinError> {
        let mut bytes = Vec::new();
        control::encode(message, &mut bytes);
        Ok(self.send.write_all(&bytes).await?)
    }

    /// Sends bytes that need not be a message.
    #[cfg(test)]
    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), JoinError> {
        Ok(self.send.write_all(bytes).await?)
    }

    /// The next message of a known kind, within [`STEP_TIMEOUT`].
    pub(crate) async fn next(&mut self) -> Result<Message, JoinError> {
        tokio::time::timeout(STEP_TIMEOUT, self.read_message())
            .await
            .map_err(|_elapsed| JoinError::Timeout)?
    }

    async fn read_message(&mut self) -> Result<Message, JoinError> {
        loop {
            while let Some(decoded) = self.decoder.next()? {
                match decoded {
                    Decoded::Message(message) => return Ok(message),
                    Decoded::Unknown(kind) => tracing::debug!(kind, "control message of an unknown kind"),
                }
            }
            let chunk = self
                .receive
                .read_chunk(READ_MAX.min(self.budget), true)
                .await
                .map_err(|error| JoinError::Stream(error.to_string()))?
                .ok_or_else(|| JoinError::Stream("ended".to_owned()))?;
            self.budget = self.budget.saturating_sub(chunk.bytes.len());
            self.decoder.push(&chunk.bytes);
            if self.budget == 0 {
                return Err(JoinError::Stream("too many bytes without a valid message".to_owned()));
            }
        }
    }

    /// Both halves and the bytes read so far, for a stream that lives as long as its connection.
    pub(crate) fn into_parts(self) -> (SendStream, RecvStream, FrameDecoder) {
        (self.send, self.receive, self.decoder)
    }

    /// Ends our half; what was sent is still delivered.
    pub(crate) fn finish(mut self) {
        let _ = self.send.finish();
    }
}

/// The greeting of this node, with its membership record if it has one.
pub(crate) fn hello(name: &str, instance: u64, access: &Access) -> Hello {
    Hello {
        versions: VERSIONS.to_vec(),
        capabilities: Hello::BUNDLES,
        name: name.to_owned(),
        node_instance: instance,
        record: access.own_record(),
    }
}

/// Checks the peer's greeting.
pub(crate) fn check_hello(hello: &Hello) -> Result<(), JoinError> {
    let common = hello.versions.iter().any(|version| VERSIONS.contains(version));
    if common { Ok(()) } else { Err(JoinError::Version) }
}

/// The secret that both ends of `connection` share, for the path's keys.
pub(crate) fn exporter(connection: &Connection) -> Result<[u8; 32], JoinError> {
    let mut out = [0; 32];
    connection.export_keying_material(&mut out, EXPORTER_LABEL, &[]).map_err(|_error| JoinError::Keys)?;
    Ok(out)
}

/// QUIC settings of both ends: the control plane is quiet and small. The path's own heartbeats tell
/// whether it lives, so QUIC keeps no time; segmentation and probing for the MTU are the data
/// plane's business.
pub(crate) fn transport() -> Arc<quinn::TransportConfig> {
    Arc::new(transport_config())
}

/// The same for the LAN, where an answer takes less than a millisecond and not a third of a second.
pub(crate) fn lan_transport() -> Arc<quinn::TransportConfig> {
    let mut config = transport_config();
    config.initial_rtt(LAN_INITIAL_RTT);
    Arc::new(config)
}

fn transport_config() -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .max_idle_timeout(None)
        .keep_alive_interval(None)
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false)
        .max_concurrent_bidi_streams(VarInt::from_u32(8))
        // Records of members travel on one.
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(128 * 1024))
        .receive_window(VarInt::from_u32(256 * 1024));
    config
}
