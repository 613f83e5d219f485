//! Loss that answers to the rate: policers, and buffers too small to show a queue.
//!
//! The controller feels its way by delay; behind a policer there is none, and since lost packets count
//! as delivered its rate would grow without end. Chance loss is told from loss by rate with an
//! experiment: send below what arrived, and see whether the loss goes away.
//!
//! ```text
//!            excess loss, twice               loss went away             hold is over
//!  Open ─────────────────────────► Testing ───────────────────► Held ──────────────────► Probing
//!   ▲                                 │ it stayed: it is chance  ▲ excess loss: hold longer │
//!   ├─────────────────────────────────┘                          └──────────────────────────┤
//!   └───────────────────────────────────────────────────────────────────── far above ───────┘
//! ```
//!
//! A limit takes a packet here and there, for as long as too many come; a radio loses many at once, and then none. So what is
//! counted is runs of lost packets, not packets.
//!
//! Rates are bit/s, times seconds, losses runs as shares of the packets sent.

/// A window has at least this many packets, and lasts at least one feedback time.
const WINDOW_PACKETS: u64 = 50;
/// Shortest window.
const WINDOW_MIN: f64 = 0.060;
/// Less than this, bit/s, is not enough to tell.
const UNUSED: f64 = 200e3;
/// Loss beyond chance by this much asks for the experiment.
const EXCESS: f64 = 0.03;
/// Fewer runs of lost packets than this in a window prove nothing.
const LOST_MIN: u64 = 6;
/// The experiment sends this share of what arrived.
const TEST_SHARE: f64 = 0.9;
/// The ceiling as a share of what arrived.
const HELD_SHARE: f64 = 0.98;
/// First hold; doubled by each probe that fails.
const HOLD_MIN: f64 = 4.0;
/// Longest hold.
const HOLD_MAX: f64 = 60.0;
/// Growth of the ceiling per window while probing.
const PROBE_STEP: f64 = 1.06;
/// A probe that has come so far above the ceiling is a success: the limit has gone.
const PROBE_FAR: f64 = 1.5;
/// Weight of a window in the memory of chance loss.
const CHANCE_WEIGHT: f64 = 0.1;

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Open,
    Testing { arrived: f64, loss: f64, before: f64, from: f64 },
    Held { until: f64 },
    Probing { held: f64 },
}

#[derive(Debug, Clone, Copy, Default)]
struct Window {
    since: f64,
    acked: u64,
    lost: u64,
    /// Of neighbours.
    runs: u64,
    acked_bits: f64,
    burst: f64,
    app_limited: bool,
    queued: bool,
}

/// What the controller is to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Advice {
    /// Nothing new.
    None,
    /// Leave startup, and go to this rate at once.
    Cut(f64),
    /// The loss was chance: go back to this rate.
    Restore(f64),
}

/// Decides whether loss answers to the rate.
#[derive(Debug, Clone)]
pub(super) struct Policer {
    state: State,
    window: Window,
    /// Loss by chance.
    chance: f64,
    /// Windows with excess loss in a row.
    streak: u32,
    ceiling: Option<f64>,
    hold: f64,
    /// Rate before the present ceiling.
    before: f64,
}

impl Policer {
    pub(super) fn new(t: f64) -> Self {
        let window = Window { since: t, ..Window::default() };
        Self {
            state: State::Open,
            window,
            chance: 0.0,
            streak: 0,
            ceiling: None,
            hold: HOLD_MIN,
            before: 0.0,
        }
    }

    /// The most that may be sent.
    pub(super) fn ceiling(&self) -> Option<f64> {
        self.ceiling
    }

    /// The losses had another cause: forgets them. Gives the rate before they were heeded, if they were.
    pub(super) fn pardon(&mut self, t: f64) -> Option<f64> {
        let before = self.ceiling.map(|_| self.before);
        *self = Self::new(t);
        before
    }

    /// Counts what a report has resolved.
    pub(super) fn on_fate(&mut self, acked: u64, acked_bytes: u64, lost: u64, runs: u64) {
        self.window.acked += acked;
        self.window.acked_bits += acked_bytes as f64 * 8.0;
        self.window.lost += lost;
        self.window.runs += runs;
    }

    /// Begins a new window: what was counted since the last judgement says nothing.
    pub(super) fn skip(&mut self, t: f64) {
        self.window = Window { since: t, ..Window::default() };
        self.streak = 0;
    }

    /// Judges the window when it is full. `delivery` counts lost packets as delivered; `queued`: a
    /// queue stands that explains losses.
    pub(super) fn on_sample(
        &mut self,
        (delivery, app_limited, queued): (f64, bool, bool),
        rate: f64,
        feedback: f64,
        t: f64,
    ) -> Advice {
        let w = &mut self.window;
        w.burst = w.burst.max(delivery);
        w.app_limited |= app_limited;
        w.queued |= queued;
        let packets = w.acked + w.lost;
        let span = t - w.since;
        if packets < WINDOW_PACKETS || span < feedback.max(WINDOW_MIN) {
            return Advice::None;
        }
        let window = std::mem::replace(w, Window { since: t, ..Window::default() });
        if window.app_limited && window.burst < UNUSED {
            // Heartbeats: who sends next to nothing meets no limit.
            return Advice::None;
        }
        let loss = window.lost as f64 / packets as f64;
        // Behind the limit an idle application sends in bursts: what arrived of the best one counts.
        let arrived = if window.app_limited {
            window.burst * (1.0 - loss)
        } else {
            (window.acked_bits / span).min(window.burst)
        };
        let loss = window.runs as f64 / packets as f64;
        self.judge(&window, loss, packets, arrived, rate, feedback, t)
    }

    #[allow(clippy::too_many_arguments, reason = "one window's figures, used once")]
    fn judge(
        &mut self,
        window: &Window,
        loss: f64,
        packets: u64,
        arrived: f64,
        rate: f64,
        feedback: f64,
        t: f64,
    ) -> Advice {
        let spread = (self.chance * (1.0 - self.chance) / packets as f64).sqrt();
        let excess = window.runs >= LOST_MIN && loss > self.chance + EXCESS + 3.0 * spread && !window.queued;
        self.streak = if excess { self.streak + 1 } else { 0 };
        match self.state {
            State::Testing { arrived, loss: before_loss, before, from } => {
                // The first windows still speak of what was sent before.
                if t - from < 1.5 * feedback + window_span(feedback) {
                    return Advice::None;
                }
                self.streak = 0;
                if loss <= self.chance + (before_loss - self.chance) / 2.0 {
                    self.ceiling = Some(HELD_SHARE * arrived / (1.0 - self.chance));
                    self.state = State::Held { until: t + self.hold };
                    self.hold = (2.0 * self.hold).min(HOLD_MAX);
                    return Advice::None;
                }
                self.chance = self.chance.max(loss.min(before_loss));
                self.open();
                return Advice::Restore(before);
            }
            _ if self.streak >= 2 => {
                self.streak = 0;
                self.ceiling = Some(TEST_SHARE * arrived);
                self.before = rate;
                self.state = State::Testing { arrived, loss, before: rate, from: t };
                return Advice::Cut(TEST_SHARE * arrived);
            }
            State::Probing { held } if excess => {
                self.ceiling = Some(held);
                self.state = State::Held { until: t + self.hold };
                self.hold = (2.0 * self.hold).min(HOLD_MAX);
                return Advice::Cut(held);
            }
            _ if excess => return Advice::None,
            State::Held { until } if t >= until => {
                let held = self.ceiling.unwrap_or(rate);
                self.state = State::Probing { held };
            }
            State::Probing { held } => {
                let ceiling = self.ceiling.unwrap_or(rate);
                if ceiling > PROBE_FAR * held {
                    self.hold = HOLD_MIN;
                    self.open();
                } else if rate > 0.95 * ceiling && !window.app_limited {
                    self.ceiling = Some(ceiling * PROBE_STEP);
                }
            }
            State::Held { .. } | State::Open => {}
        }
        self.chance += CHANCE_WEIGHT * (loss - self.chance);
        Advice::None
    }

    fn open(&mut self) {
        self.state = State::Open;
        self.ceiling = None;
    }
}

fn window_span(feedback: f64) -> f64 {
    feedback.max(WINDOW_MIN)
}

#[cfg(test)]
mod tests;
