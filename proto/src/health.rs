//! Health of a path, as people and policies see it: the state chart of the project's specification.
//!
//! ```text
//!            heard              recovery_rounds good
//!   Down ───────────► Starting ─────────────────────► Up
//!    ▲                   │                           │ ▲
//!    │ failure_threshold │                       bad │ │ recovery_rounds good
//!    │ silent rounds     ▼                           ▼ │
//!    ├───────────────── (any) ◄────────────── Degraded │
//!    │                                      bad ▲ │ good
//!    │                                          │ ▼    │
//!    └───────────────────────────────────── Recovering ┘
//! ```
//! A path that the sender has given up is down at once, from anywhere, until something that it sends there arrives.
//! A path that is heard from the start, yet beyond a limit for `failure_threshold` rounds, goes from Starting to
//! Degraded: it works, and it is as it is.
//!
//! This chart runs at the pace of its rounds, a second or so. It decides nothing about single
//! packets: the bond's sender finds a dead path within tens of milliseconds by itself.
//!
//! Input: one [`Observation`] per round, from the probe actor. Output: [`Health::state`], and
//! [`Health::next_round`], which slows down with the traffic.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// State of a path's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Nothing is heard of it.
    Down,
    /// Heard, not yet trusted.
    Starting,
    /// Within all limits.
    Up,
    /// Silent for a round, or beyond a limit of latency, jitter or loss.
    Degraded,
    /// Within the limits again, on trial.
    Recovering,
}

/// Limits and thresholds. The defaults are the specification's.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthConfig {
    /// Silent rounds in a row after which the path is down. Default 3.
    pub failure_threshold: u32,
    /// Good rounds in a row that end Starting and Recovering. Default 2.
    pub recovery_rounds: u32,
    /// Most acceptable round-trip time. Default 100 ms.
    pub latency_max: Duration,
    /// Most acceptable deviation of the delay. Default 20 ms.
    pub jitter_max: Duration,
    /// Most acceptable share of lost packets, 0 to 1. Default 0.02.
    pub loss_max: f64,
    /// Fewer packets than this in a round say nothing about loss. Default 50.
    pub loss_packets_min: u64,
    /// Interval of the rounds while traffic flows, or while the state is not settled. Default 1 s.
    pub interval_active: Duration,
    /// Interval of the rounds of an idle, settled path. Default 5 s.
    pub interval_idle: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            failure_threshold: 3,
            recovery_rounds: 2,
            latency_max: Duration::from_millis(100),
            jitter_max: Duration::from_millis(20),
            loss_max: 0.02,
            loss_packets_min: 50,
            interval_active: Duration::from_secs(1),
            interval_idle: Duration::from_secs(5),
        }
    }
}

/// What a round has seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Observation {
    /// Whether anything authentic came over the path during the round.
    pub heard: bool,
    /// Newest round-trip time.
    pub rtt: Option<Duration>,
    /// Deviation of the delay.
    pub jitter: Duration,
    /// Packets known to have arrived during the round.
    pub arrived: u64,
    /// Packets known to be lost during the round.
    pub lost: u64,
    /// Whether the session carried traffic during the round.
    pub active: bool,
    /// Whether the bond's sender has given the path up: nothing that it sends there arrives, whatever is heard.
    pub given_up: bool,
}

/// The machine of one path.
#[derive(Debug, Clone)]
pub struct Health {
    config: HealthConfig,
    state: HealthState,
    silent: u32,
    good: u32,
    /// Rounds in a row in which it was heard and beyond a limit.
    bad: u32,
    active: bool,
}

impl Health {
    /// A path of which nothing is known.
    pub fn new(config: HealthConfig) -> Self {
        Self { config, state: HealthState::Down, silent: 0, good: 0, bad: 0, active: true }
    }

    /// The present state.
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// How long the next round should last.
    pub fn next_round(&self) -> Duration {
        let settled = matches!(self.state, HealthState::Up | HealthState::Down);
        if settled && !self.active { self.config.interval_idle } else { self.config.interval_active }
    }

    /// Ends a round. True when the state has changed.
    pub fn handle_round(&mut self, seen: &Observation) -> bool {
        self.active = seen.active;
        let heard = seen.heard && !seen.given_up;
        self.silent = match seen {
            _ if heard => 0,
            // It knows better than to need three rounds.
            Observation { given_up: true, .. } => self.config.failure_threshold,
            _ => self.silent.saturating_add(1),
        };
        let good = heard && self.within_limits(seen);
        self.good = if good { self.good + 1 } else { 0 };
        self.bad = if heard && !good { self.bad + 1 } else { 0 };
        let before = self.state;
        self.state = self.next(heard, good);
        if self.state != before {
            self.good = u32::from(good);
        }
        self.state != before
    }

    fn next(&self, heard: bool, good: bool) -> HealthState {
        use HealthState::{Degraded, Down, Recovering, Starting, Up};
        if self.silent >= self.config.failure_threshold {
            return Down;
        }
        let trusted = self.good >= self.config.recovery_rounds;
        match self.state {
            Down if heard => Starting,
            Down => Down,
            Starting if trusted => Up,
            Starting if self.bad >= self.config.failure_threshold => Degraded,
            Starting => Starting,
            Up if good => Up,
            Up => Degraded,
            Degraded if good => Recovering,
            Degraded => Degraded,
            Recovering if trusted => Up,
            Recovering if good => Recovering,
            Recovering => Degraded,
        }
    }

    fn within_limits(&self, seen: &Observation) -> bool {
        let total = seen.arrived + seen.lost;
        let lossy =
            total >= self.config.loss_packets_min && seen.lost as f64 > self.config.loss_max * total as f64;
        seen.rtt.is_none_or(|rtt| rtt <= self.config.latency_max)
            && seen.jitter <= self.config.jitter_max
            && !lossy
    }
}

#[cfg(test)]
mod tests {
    use super::HealthState::{Degraded, Down, Recovering, Starting, Up};
    use super::*;

    const GOOD: Observation = Observation {
        heard: true,
        rtt: Some(Duration::from_millis(20)),
        jitter: Duration::from_millis(2),
        arrived: 1_000,
        lost: 3,
        active: true,
        given_up: false,
    };
    const SILENT: Observation = Observation {
        heard: false,
        rtt: None,
        jitter: Duration::ZERO,
        arrived: 0,
        lost: 0,
        active: true,
        given_up: false,
    };

    fn run(rounds: &[Observation]) -> Vec<HealthState> {
        let mut health = Health::new(HealthConfig::default());
        rounds
            .iter()
            .map(|round| {
                health.handle_round(round);
                health.state()
            })
            .collect()
    }

    #[test]
    fn a_path_starts_is_trusted_degrades_and_recovers() {
        let slow = Observation { rtt: Some(Duration::from_millis(150)), ..GOOD };
        assert_eq!(
            run(&[SILENT, GOOD, GOOD, GOOD, slow, slow, GOOD, GOOD, GOOD]),
            [Down, Starting, Up, Up, Degraded, Degraded, Recovering, Up, Up]
        );
    }

    #[test]
    fn a_path_beyond_the_limits_from_the_start_is_degraded_not_starting_for_ever() {
        let far = Observation { rtt: Some(Duration::from_millis(150)), ..GOOD };
        assert_eq!(run(&[far, far, far, far]), [Starting, Starting, Degraded, Degraded]);
        assert_eq!(
            run(&[far, far, SILENT, far, far, far]),
            [Starting, Starting, Starting, Starting, Starting, Degraded]
        );
        assert_eq!(run(&[far, far, GOOD, GOOD]), [Starting, Starting, Starting, Up]);
    }

    #[test]
    fn silence_degrades_at_once_and_ends_in_down_from_anywhere() {
        assert_eq!(run(&[GOOD, GOOD, SILENT, SILENT, SILENT]), [Starting, Up, Degraded, Degraded, Down]);
        assert_eq!(
            run(&[GOOD, SILENT, SILENT, SILENT, GOOD]),
            [Starting, Starting, Starting, Down, Starting]
        );
        assert_eq!(
            run(&[GOOD, GOOD, SILENT, GOOD, SILENT, SILENT, SILENT]),
            [Starting, Up, Degraded, Recovering, Degraded, Degraded, Down]
        );
    }

    #[test]
    fn what_the_sender_has_given_up_is_down_at_once_even_while_it_is_heard() {
        let deaf = Observation { given_up: true, ..GOOD };
        let mute = Observation { given_up: true, ..SILENT };
        assert_eq!(run(&[GOOD, GOOD, mute, mute, GOOD, GOOD]), [Starting, Up, Down, Down, Starting, Up]);
        assert_eq!(run(&[GOOD, GOOD, deaf, deaf, GOOD]), [Starting, Up, Down, Down, Starting]);
    }

    #[test]
    fn every_limit_counts_but_a_few_packets_say_nothing_about_loss() {
        let jittery = Observation { jitter: Duration::from_millis(21), ..GOOD };
        let lossy = Observation { lost: 30, ..GOOD };
        let few = Observation { arrived: 40, lost: 5, ..GOOD };
        for (round, state) in [(jittery, Degraded), (lossy, Degraded), (few, Up)] {
            assert_eq!(run(&[GOOD, GOOD, round]).last(), Some(&state), "{round:?}");
        }
    }

    #[test]
    fn rounds_slow_down_when_settled_and_idle() {
        let idle = Observation { active: false, ..GOOD };
        let mut health = Health::new(HealthConfig::default());
        health.handle_round(&idle);
        assert_eq!(health.next_round(), Duration::from_secs(1), "starting is not settled");
        health.handle_round(&idle);
        assert_eq!(health.next_round(), Duration::from_secs(5));
        health.handle_round(&GOOD);
        assert_eq!(health.next_round(), Duration::from_secs(1));
    }
}
