//! Rare pauses: a lane of bulk is held back for some 40 ms a few times a second, where that makes its connection faster.
//!
//! A connection whose window follows the least round trip that it has seen (BBR) has that of the nearest path, and too
//! small a window to fill the far ones as well. But what is acknowledged at once beyond its rate it adds to its window,
//! as the largest of the last five to ten round trips (Linux: `bbr_extra_acked`,
//! draft-ietf-ccwg-bbr, section 5.5.9). So a burst now and then is worth as much as one after the other, and the packets
//! in between are not late at all.
//!
//! Nobody tells us how a connection reckons, so it is tried where a path within reach is idle although nothing has waited at
//! the sender for a second (which its data headers say). If that does not make it clearly faster, two seconds without
//! pauses tell what they are worth, and a lane that does as well without them is left alone for a minute. A connection
//! that fills its queue, as CUBIC does, would pay for a burst with a packet dropped by CoDel; something of it waits.

use std::time::Duration;

use crate::time::Time;

/// How long a lane is held back at a time: what the connection gains is its rate times this, and a far path that is no
/// more than this much farther than the nearest one can be filled. An inner retransmission timer has 200 ms.
const PAUSE: Duration = Duration::from_millis(40);
/// From the end of one pause to the beginning of the next: both are within five round trips of a path of 25 ms.
const BETWEEN: Duration = Duration::from_millis(85);
/// Seconds that a path's delay is above the least of all, for pauses to fill it: for less no connection is short of window,
/// for more the pauses are too short.
const REACH: std::ops::Range<f64> = 0.004..0.060;
/// Bytes a second from which a lane carries bulk.
const BULK_MIN: f64 = 250e3;
/// Most bytes that a pause may hold back.
const HELD_MAX: f64 = 4e6;
/// Rates are those of windows of this length.
const WINDOW: Duration = Duration::from_millis(250);
/// Windows of a mean.
const WINDOWS: usize = 4;
/// Bulk for this long before the first pause.
const BULK_FOR: Duration = Duration::from_secs(1);
/// The first trial with pauses. What they are worth shows within a second.
const TRIAL: Duration = Duration::from_secs(3);
/// The trial without: the window of a connection forgets within ten round trips, the queues later.
const CHECK: Duration = Duration::from_secs(2);
/// The rate without pauses, of that with them, from which on they are not worth it.
const WORTH: f64 = 0.97;
/// What pauses bring shows after this long.
const SETTLED: Duration = Duration::from_secs(2);
/// The rate with pauses, of that before them, from which on nobody asks what they are worth.
const CLEAR: f64 = 1.1;
/// The rate with pauses, of that before them, below which they end at once during a trial. Later a rate may fall for reasons
/// of its own: BBR empties its window every ten seconds.
const HARM: f64 = 0.9;
/// A lane that gains nothing is asked again after this long.
const REST: Duration = Duration::from_secs(60);
/// And one that gains is, at the longest.
const KEPT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum Stage {
    /// Not bulk, or still starting.
    #[default]
    Idle,
    /// Pauses, for that long, begun at that rate.
    On { until: Time, before: f64 },
    /// None, to be compared with the rate of the pauses, which were held for so long.
    Check { until: Time, with: f64, held: Duration },
    /// They are of no use.
    Rest { until: Time },
}

/// Whether a path whose delay is `more` seconds above the least of all could be filled by what pauses bring.
pub(super) fn reach(more: f64) -> bool {
    REACH.contains(&more)
}

/// Whether and when a lane pauses.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    stage: Stage,
    stage_since: Time,
    bulk_since: Option<Time>,
    window_since: Time,
    bytes: u64,
    rates: [f64; WINDOWS],
    open_at: Time,
}

impl Pauses {
    /// A packet of `len` bytes came for the lane, while a path within reach is idle and nothing waits at the sender, or not.
    /// Says whether a pause begins.
    pub(super) fn on_packet(&mut self, len: usize, short: bool, now: Time) -> bool {
        self.bytes += len as u64;
        let elapsed = now - self.window_since;
        if elapsed >= WINDOW {
            let rate = self.bytes as f64 / elapsed.as_secs_f64();
            self.rates.rotate_right(1);
            self.rates[0] = rate;
            self.bytes = 0;
            self.window_since = now;
            self.judge(short, now);
        }
        if matches!(self.stage, Stage::On { .. }) && now >= self.open_at + BETWEEN {
            self.open_at = now + PAUSE;
            return true;
        }
        false
    }

    fn judge(&mut self, short: bool, now: Time) {
        let newest = self.rates[0];
        let least = self.rates.iter().copied().fold(f64::INFINITY, f64::min);
        let mean = self.rates.iter().sum::<f64>() / WINDOWS as f64;
        if newest < BULK_MIN || newest * PAUSE.as_secs_f64() > HELD_MAX {
            self.bulk_since = None;
            if !matches!(self.stage, Stage::Rest { .. }) {
                self.enter(Stage::Idle, now);
            }
            return;
        }
        let bulk_since = *self.bulk_since.get_or_insert(now);
        match self.stage {
            Stage::Idle => {
                if now - bulk_since >= BULK_FOR && short {
                    self.enter(Stage::On { until: now + TRIAL, before: least }, now);
                }
            }
            Stage::On { until, before } => {
                let held = now - self.stage_since;
                if held >= WINDOW * WINDOWS as u32 && held <= TRIAL && mean < HARM * before {
                    self.enter(Stage::Rest { until: now + REST }, now);
                } else if held >= SETTLED && mean > CLEAR * before {
                    self.stage = Stage::On { until: now + KEPT_MAX, before: mean };
                } else if now >= until {
                    self.enter(Stage::Check { until: now + CHECK, with: mean, held }, now);
                }
            }
            Stage::Check { until, with, held } => {
                if now < until {
                    return;
                }
                if mean < WORTH * with {
                    let until = now + (4 * held).min(KEPT_MAX);
                    self.enter(Stage::On { until, before: mean }, now);
                } else {
                    self.enter(Stage::Rest { until: now + REST }, now);
                }
            }
            Stage::Rest { until } => {
                if now >= until {
                    self.enter(Stage::Idle, now);
                }
            }
        }
    }

    fn enter(&mut self, stage: Stage, now: Time) {
        self.stage = stage;
        self.stage_since = now;
    }

    /// When what is in order may leave: now or in the past, unless there is a pause.
    pub(super) fn open_at(&self) -> Time {
        self.open_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1000;

    /// Packets of a lane whose rate (bytes a second) depends on whether it pauses; how many pauses there were in each
    /// second.
    fn pauses(seconds: u64, short: bool, rate: impl Fn(f64, bool) -> f64) -> Vec<u32> {
        let mut lane = Pauses::default();
        let mut counts = vec![0; seconds as usize];
        let mut now = Time::from_millis(10_000);
        let end = now + Duration::from_secs(seconds);
        while now < end {
            let at = now - Time::from_millis(10_000);
            counts[at.as_secs() as usize] += u32::from(lane.on_packet(PACKET, short, now));
            assert!(lane.open_at() <= now + PAUSE);
            let on = matches!(lane.stage, Stage::On { .. });
            now += Duration::from_secs_f64(PACKET as f64 / rate(at.as_secs_f64(), on));
        }
        counts
    }

    #[test]
    fn what_gains_nothing_is_asked_once_a_minute() {
        let counts = pauses(140, true, |_, _| 5e6);
        assert_eq!(counts[0], 0, "no evidence yet: {counts:?}");
        let paused: Vec<usize> = (0..140).filter(|&s| counts[s] > 0).collect();
        assert!(paused.len() <= 12 && paused.iter().any(|&s| s < 5), "{counts:?}");
        assert!(paused.iter().any(|&s| (60..80).contains(&s)), "asked again: {counts:?}");
    }

    #[test]
    fn what_clearly_gains_is_kept_without_a_check() {
        let counts = pauses(50, true, |_, on| if on { 7e6 } else { 5e6 });
        assert!(counts[3..].iter().all(|&n| (7..=8).contains(&n)), "{counts:?}");
    }

    #[test]
    fn a_dip_later_on_does_not_end_what_gains() {
        let dips = |at: f64| (20.0..20.4).contains(&at);
        let counts = pauses(50, true, |at, on| {
            if dips(at) {
                1e6
            } else if on {
                7e6
            } else {
                5e6
            }
        });
        assert!(counts[22..].iter().all(|&n| n >= 7), "{counts:?}");
    }

    #[test]
    fn what_gains_a_little_is_kept_after_a_check() {
        let counts = pauses(12, true, |_, on| if on { 5.3e6 } else { 5e6 });
        assert!(counts[4..7].contains(&0) && counts[8..].iter().all(|&n| n >= 7), "{counts:?}");
    }

    #[test]
    fn what_suffers_is_left_alone_before_the_trial_ends() {
        let counts = pauses(30, true, |_, on| if on { 2e6 } else { 5e6 });
        assert!(counts.iter().sum::<u32>() <= 2 * 8 + 2, "{counts:?}");
    }

    #[test]
    fn no_pause_is_without_cause() {
        assert_eq!(pauses(1, true, |_, _| 5e6), [0], "a start");
        assert_eq!(pauses(20, false, |_, _| 5e6).iter().sum::<u32>(), 0, "no path is idle");
        assert_eq!(pauses(20, true, |_, _| 1e5).iter().sum::<u32>(), 0, "no bulk");
        assert_eq!(pauses(5, true, |_, _| 2e8).iter().sum::<u32>(), 0, "more than may be held");
    }

    #[test]
    fn reach_is_what_a_pause_can_fill() {
        assert!(reach(0.035) && !reach(0.001) && !reach(0.3) && !reach(f64::NAN));
    }
}
