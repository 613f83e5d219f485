//! Messages over the control stream of a path's QUIC connection.
//!
//! A frame on the stream is
//!
//! ```text
//! u32 length of what follows | u16 kind | body
//! ```
//!
//! big-endian, the body in bincode 2 (standard configuration, at most [`FRAME_MAX`] bytes). The
//! shells [`encode`] messages into a stream and [`push`](FrameDecoder::push) what they read into a
//! [`FrameDecoder`]. Kinds that are not known are reported and skipped, so that a newer peer can say
//! more than an older one understands.

mod codec;
mod frame;
mod lan;
mod lease;
mod message;

#[cfg(test)]
mod tests;

pub use frame::{Decoded, FrameDecoder, encode};
pub use lan::{ANNOUNCED_MAX, Gateway, PeerBeat, UplinkAnnounce, UplinkInfo, UplinkKind};
pub use lease::{
    GRANTS_MAX, LeaseAccept, LeaseEnd, LeaseRefuse, LeaseRefuseReason, LeaseRequest, PathLimit, RateGrant,
    RateGrants,
};
pub use message::{
    Bye, Hello, JoinAccept, JoinRefuse, JoinRefuseReason, JoinRequest, LIST_MAX, MemberList, Message,
    NAME_MAX, PathAccept, PathJoin, PathRefuse, RefuseReason, TEXT_MAX,
};

/// The most bytes of one frame behind its length field.
pub const FRAME_MAX: usize = 64 * 1024;

/// Why a control stream can not be read on. After any of these the stream is to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum ControlError {
    /// The length field exceeds the limit; nothing of the frame was buffered.
    #[error("a control frame claims {0} bytes")]
    TooLong(u32),
    /// The length field leaves no room for a kind.
    #[error("a control frame of {0} bytes has no kind")]
    TooShort(u32),
    /// More was pushed than a frame may hold without `next` being called.
    #[error("control frames arrive faster than they are taken")]
    Overrun,
    /// The body of a known kind can not be decoded, or bytes follow it.
    #[error("the body of a control message of kind {0} is malformed")]
    Malformed(u16),
    /// A list, a text or a number exceeds its bound.
    #[error("a field of a control message of kind {0} is out of bounds")]
    OutOfBounds(u16),
}
