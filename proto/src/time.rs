//! Time as the machines see it: nanoseconds since an epoch the caller chose.
//!
//! The shells read a monotonic clock once per batch and pass the result in; a simulation passes
//! virtual time. Only differences carry meaning.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// Unit of the 24-bit time stamps on the wire, in nanoseconds (16 µs).
pub const STAMP_UNIT_NANOS: u64 = 16_000;

/// A point in time, in nanoseconds since an arbitrary epoch shared by all machines of one process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(u64);

impl Time {
    /// The epoch itself.
    pub const ZERO: Self = Self(0);

    /// `nanos` nanoseconds after the epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// `millis` milliseconds after the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Seconds since the epoch, for logs and plots.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// How long ago `earlier` was; zero when it lies in the future.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// `self - d`, not before the epoch.
    pub const fn saturating_sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(d.as_nanos() as u64))
    }

    /// The low 24 bits of this time in units of 16 µs: what goes on the wire (wraps after 268 s).
    pub const fn stamp(self) -> Stamp {
        Stamp::new((self.0 / STAMP_UNIT_NANOS) as u32)
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(d.as_nanos() as u64))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, d: Duration) {
        *self = *self + d;
    }
}

impl Sub<Time> for Time {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// A 24-bit wire time stamp in units of 16 µs; also the raw difference of two such stamps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Stamp(u32);

impl Stamp {
    /// Keeps the low 24 bits of `raw`.
    pub const fn new(raw: u32) -> Self {
        Self(raw & 0xff_ffff)
    }

    /// The 24 bits.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// `self - earlier` modulo 2^24: the raw one-way delay when `self` is the receiver's clock and
    /// `earlier` the sender's.
    pub const fn wrapping_sub(self, earlier: Self) -> Self {
        Self::new(self.0.wrapping_sub(earlier.0))
    }

    /// `self - reference` as a signed number of units in -2^23..2^23, to unwrap a series of stamps.
    pub const fn signed_since(self, reference: Self) -> i32 {
        ((self.0.wrapping_sub(reference.0) << 8) as i32) >> 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_wrap_and_unwrap() {
        let before = Time::from_nanos(STAMP_UNIT_NANOS * 0xff_fffe).stamp();
        let after = Time::from_nanos(STAMP_UNIT_NANOS * 0x100_0003).stamp();
        assert_eq!(after.raw(), 3);
        assert_eq!(after.signed_since(before), 5);
        assert_eq!(before.signed_since(after), -5);
        assert_eq!(after.wrapping_sub(before).raw(), 5);
    }

    #[test]
    fn differences_never_underflow() {
        assert_eq!(Time::ZERO - Time::from_millis(5), Duration::ZERO);
        assert_eq!(Time::ZERO.saturating_sub(Duration::from_secs(1)), Time::ZERO);
    }
}
