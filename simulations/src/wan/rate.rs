//! When the transmission of a packet ends: at a constant rate, by a trace, or at once.

use std::time::Duration;

use mwb_proto::time::Time;

use super::trace::{Trace, TraceCursor};

/// The transmitter of one direction.
#[derive(Debug)]
pub(super) enum Pace {
    /// No limit.
    Unlimited,
    /// Bits per second; zero never ends a transmission.
    Rate(u64),
    /// Delivery opportunities.
    Trace(TraceCursor),
}

impl Pace {
    pub(super) fn new(rate: Option<u64>, trace: Option<&Trace>, epoch: Time) -> Self {
        match (trace, rate) {
            (Some(trace), _) => Self::Trace(TraceCursor::new(trace.clone(), epoch)),
            (None, Some(rate)) => Self::Rate(rate),
            (None, None) => Self::Unlimited,
        }
    }

    /// When a packet of `bytes` is sent whose transmission can begin at `start`; `None` is never.
    /// Starts do not decrease.
    pub(super) fn finish(&mut self, start: Time, bytes: usize) -> Option<Time> {
        match self {
            Self::Unlimited => Some(start),
            Self::Rate(0) => None,
            Self::Rate(rate) => {
                let nanos = (bytes as u128 * 8 * 1_000_000_000).div_ceil(u128::from(*rate));
                Some(start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
            }
            Self::Trace(cursor) => Some(cursor.finish(start, bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_takes_its_time() {
        let mut pace = Pace::new(Some(12_000_000), None, Time::ZERO);
        assert_eq!(pace.finish(Time::from_millis(5), 1500), Some(Time::from_millis(6)));
        assert_eq!(Pace::Rate(0).finish(Time::ZERO, 1), None);
        assert_eq!(Pace::Unlimited.finish(Time::from_millis(5), 1500), Some(Time::from_millis(5)));
    }
}
