//! The clock of the shells: `CLOCK_MONOTONIC` as [`Time`], read once per batch, and a timer on the
//! same clock that is not rounded to milliseconds as tokio's is.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use mwb_proto::time::Time;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::readiness::register;

/// The time now. Only the shells call this; the machines are handed the result.
pub fn now() -> Time {
    Time::from_nanos(nanos(clock_gettime(ClockId::Monotonic)))
}

fn nanos(at: Timespec) -> u64 {
    at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64
}

/// Translates the kernel's receive stamps (`CLOCK_REALTIME`) into [`Time`].
///
/// One per receive call: the distance between the clocks is measured anew each time, so a stepped
/// wall clock falsifies at most one batch.
#[derive(Clone, Copy, Debug)]
pub struct ArrivalClock {
    now: Time,
    realtime: u64,
}

/// A stamp older than this is not believed: the wall clock was stepped between stamp and reading.
const STAMP_AGE_MAX: Duration = Duration::from_millis(500);

impl ArrivalClock {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { now: now(), realtime: nanos(clock_gettime(ClockId::Realtime)) }
    }

    /// The monotonic reading.
    pub fn now(&self) -> Time {
        self.now
    }

    /// When a datagram with kernel stamp `stamp` (since the Unix epoch) arrived; the time of reading
    /// when there is no stamp or it cannot be true.
    pub fn arrival(&self, stamp: Option<Duration>) -> Time {
        let Some(stamp) = stamp else { return self.now };
        let age = Duration::from_nanos(self.realtime.saturating_sub(stamp.as_nanos() as u64));
        if age > STAMP_AGE_MAX { self.now } else { self.now.saturating_sub(age) }
    }
}

/// A one-shot timer on `CLOCK_MONOTONIC` with absolute expiry and nanosecond grain.
#[derive(Debug)]
pub struct Timer {
    fd: AsyncFd<OwnedFd>,
    armed: Option<Time>,
}

impl Timer {
    /// Creates a timer, registered with the current tokio runtime.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        Ok(Self { fd: register(fd, tokio::io::Interest::READABLE)?, armed: None })
    }

    /// Waits until `at`; for ever when there is no deadline. Safe to cancel; a later call with
    /// another deadline re-arms.
    ///
    /// # Errors
    /// When the kernel refuses the timer, which it does not for a live descriptor.
    pub async fn wait_until(&mut self, at: Option<Time>) -> io::Result<()> {
        let Some(at) = at else { return std::future::pending().await };
        if self.armed != Some(at) {
            self.arm(at)?;
        }
        loop {
            let mut guard = self.fd.readable().await?;
            let mut count = [0_u8; 8];
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                Ok(result) => {
                    result?;
                    // It is one-shot: nothing to read until it is armed again.
                    guard.clear_ready();
                    self.armed = None;
                    return Ok(());
                }
                Err(_would_block) => {}
            }
        }
    }

    fn arm(&mut self, at: Time) -> io::Result<()> {
        // Zero would disarm the timer; one nanosecond after boot is as much in the past.
        let nanos = at.as_nanos().max(1);
        let value =
            Timespec { tv_sec: (nanos / 1_000_000_000) as i64, tv_nsec: (nanos % 1_000_000_000) as i64 };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::ABSTIME, &spec)?;
        self.armed = Some(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_timer_is_precise_and_can_be_rearmed() {
        let mut timer = Timer::new().expect("timer");
        let begin = now();
        timer.wait_until(Some(begin + Duration::from_micros(300))).await.expect("wait");
        assert!(now() - begin >= Duration::from_micros(300));

        // A cancelled long wait does not disturb the next short one.
        let long = timer.wait_until(Some(now() + Duration::from_secs(60)));
        assert!(tokio::time::timeout(Duration::from_millis(5), long).await.is_err());
        timer.wait_until(Some(Time::ZERO)).await.expect("a deadline in the past");
    }

    #[test]
    fn arrival_stamps_are_mapped_or_disbelieved() {
        let clock = ArrivalClock { now: Time::from_millis(10_000), realtime: 5_000_000_000_000 };
        assert_eq!(clock.arrival(None), Time::from_millis(10_000));
        assert_eq!(clock.arrival(Some(Duration::from_millis(4_999_998))), Time::from_millis(9_998));
        assert_eq!(clock.arrival(Some(Duration::from_secs(4_000))), Time::from_millis(10_000));
        assert_eq!(clock.arrival(Some(Duration::from_secs(5_001))), Time::from_millis(10_000));
    }
}
