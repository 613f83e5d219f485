//! Probes of one path.

use super::{Reader, Refusal, be24};
use crate::time::Stamp;

/// What a heartbeat asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum HeartbeatKind {
    /// Answer with a pong on the same path.
    Ping = 0,
    /// The answer to a ping.
    Pong = 1,
    /// Only shows that the path passes packets; no answer wanted.
    Tail = 2,
    /// As a tail, and padded to a size that is tried: shows that datagrams of this size pass.
    Probe = 3,
}

/// The body of a heartbeat frame, [`LEN`](Self::LEN) bytes:
/// send stamp 3, kind 1, id 2, echo 3; in a probe followed by padding of any length and content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Heartbeat {
    /// The sender's clock when it left.
    pub sent: Stamp,
    /// What it asks for.
    pub kind: HeartbeatKind,
    /// Number of the ping; a pong repeats it.
    pub id: u16,
    /// In a pong, the `sent` of the ping; otherwise of no meaning.
    pub echo: Stamp,
}

impl Heartbeat {
    /// Length of the body.
    pub const LEN: usize = 9;

    /// The answer to this ping, leaving at `sent`.
    #[must_use]
    pub const fn pong(&self, sent: Stamp) -> Self {
        Self { sent, kind: HeartbeatKind::Pong, id: self.id, echo: self.sent }
    }

    /// Appends the body to `out`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&be24(self.sent.raw()));
        out.push(self.kind as u8);
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(&be24(self.echo.raw()));
    }

    /// Reads an opened body.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], [`Refusal::UnknownType`] for the kind, [`Refusal::BadLength`].
    pub fn decode(plain: &[u8]) -> Result<Self, Refusal> {
        let mut r = Reader(plain);
        let sent = r.stamp()?;
        let kind = match r.u8()? {
            0 => HeartbeatKind::Ping,
            1 => HeartbeatKind::Pong,
            2 => HeartbeatKind::Tail,
            3 => HeartbeatKind::Probe,
            _ => return Err(Refusal::UnknownType),
        };
        let heartbeat = Self { sent, kind, id: r.u16()?, echo: r.stamp()? };
        if kind != HeartbeatKind::Probe {
            r.end()?;
        }
        Ok(heartbeat)
    }
}
