//! Why a datagram or a frame was not accepted.

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why bytes from the network were refused. One counter each: a shell keeps
        /// `[u64; Refusal::COUNT]`, counts by [`index`](Self::index) and goes on with the next datagram.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Refusal {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Refusal {
            /// Every reason, in the order of [`index`](Self::index).
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant,)+];

            /// How many reasons there are.
            pub const COUNT: usize = [$($name,)+].len();

            /// The reason's place in an array of counters, below [`COUNT`](Self::COUNT).
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The reason as the label of a metric: lower case, underscores.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

refusals! {
    /// The bytes end before the frame does.
    Truncated = "truncated",
    /// The frame type, heartbeat kind or v1 packet type has no meaning.
    UnknownType = "unknown_type",
    /// The first byte names no version that this decoder reads.
    BadVersion = "bad_version",
    /// A length field contradicts the datagram, or bytes follow the last field.
    BadLength = "bad_length",
    /// A count exceeds the frame's bound.
    TooMany = "too_many",
    /// A range is empty, out of its frame's bounds, or not in order.
    BadRange = "bad_range",
    /// The CRC-32 of a v1 packet does not match.
    BadChecksum = "bad_checksum",
    /// This path sequence was accepted before.
    Replayed = "replayed",
    /// The path sequence lies below the replay window.
    TooOld = "too_old",
    /// No key that may be in use opens the datagram.
    NotAuthentic = "not_authentic",
    /// The receiver index is not one that we gave out.
    UnknownReceiver = "unknown_receiver",
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::error::Error for Refusal {}
