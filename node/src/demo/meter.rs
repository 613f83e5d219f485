//! Rates of the last second, from counters that only grow.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mwb_sim::wan::EmulatorControl;

/// Over which rates are taken.
const WINDOW: Duration = Duration::from_secs(1);

/// Watches the links and the downloading program.
pub(super) struct Meter {
    emulator: EmulatorControl,
    delivered: Arc<AtomicU64>,
    samples: VecDeque<Sample>,
}

struct Sample {
    at: Instant,
    /// IP bytes of each link, downwards.
    links: Vec<u64>,
    delivered: u64,
}

/// In Mbit/s.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rates {
    /// IP packets that each link delivered.
    pub(super) links: Vec<f64>,
    /// Payload that the program got.
    pub(super) goodput: f64,
}

impl Meter {
    /// Over all links of the emulator.
    pub(super) fn new(emulator: EmulatorControl) -> Self {
        Self { emulator, delivered: Arc::new(AtomicU64::new(0)), samples: VecDeque::new() }
    }

    /// Forgets what was before: the next rates begin now.
    pub(super) fn restart(&mut self) {
        self.samples.clear();
    }

    /// For [`mwb_sim::traffic::FlowSpec::progress`].
    pub(super) fn delivered(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.delivered)
    }

    /// Reads all counters.
    ///
    /// # Errors
    /// When the emulator has ended.
    pub(super) fn sample(&mut self) -> anyhow::Result<Rates> {
        let counters = self.emulator.all_counters()?;
        self.add(Sample {
            at: Instant::now(),
            links: counters.iter().map(|(_, link)| link.down.bytes).collect(),
            delivered: self.delivered.load(Ordering::Relaxed),
        });
        Ok(self.rates())
    }

    fn add(&mut self, sample: Sample) {
        // One sample at the far end of the window or before it stays.
        while self.samples.get(1).is_some_and(|second| sample.at.duration_since(second.at) >= WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    fn rates(&self) -> Rates {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return Rates::default();
        };
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        let rate = |from: u64, to: u64| {
            if seconds > 0.0 { to.saturating_sub(from) as f64 * 8.0 / 1e6 / seconds } else { 0.0 }
        };
        let links = first.links.iter().zip(&last.links).map(|(from, to)| rate(*from, *to)).collect();
        Rates { links, goodput: rate(first.delivered, last.delivered) }
    }
}
