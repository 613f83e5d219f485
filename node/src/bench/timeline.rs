//! What the links delivered over time while something ran, from the emulator's counters.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use mwb_sim::wan::{EmulatorControl, LinkCounters};
use serde::Serialize;

use super::ways::Ways;

/// Between two readings.
const STEP: Duration = Duration::from_millis(100);

/// Rates of all links over time.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Timeline {
    /// What ran.
    pub(super) title: String,
    /// Names, in the order of the rates.
    pub(super) links: Vec<String>,
    /// One entry about every 100 ms.
    pub(super) points: Vec<Point>,
    /// What happened meanwhile.
    pub(super) marks: Vec<Mark>,
}

/// Mean rates since the entry before.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Point {
    /// Seconds from the start.
    pub(super) at_s: f64,
    /// Mbit/s of IP packets that each link delivered.
    pub(super) mbit: Vec<Ways<f64>>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Mark {
    /// Seconds from the start.
    pub(super) at_s: f64,
    pub(super) text: String,
}

impl Timeline {
    /// From readings of the counters, in order.
    fn new(title: String, readings: &[Reading]) -> Self {
        let links = readings.first().map(|first| first.links.iter().map(|(name, _)| name.clone()).collect());
        let start = readings.first().map(|first| first.at);
        let points = readings.windows(2).map(|pair| {
            let seconds = (pair[1].at - pair[0].at).as_secs_f64().max(1e-9);
            let mbit = |before: u64, after: u64| after.saturating_sub(before) as f64 * 8.0 / 1e6 / seconds;
            let links = pair[0].links.iter().zip(&pair[1].links).map(|((_, before), (_, after))| Ways {
                download: mbit(before.down.bytes, after.down.bytes),
                upload: mbit(before.up.bytes, after.up.bytes),
            });
            Point {
                at_s: start.map_or(0.0, |start| (pair[1].at - start).as_secs_f64()),
                mbit: links.collect(),
            }
        });
        Self { title, links: links.unwrap_or_default(), points: points.collect(), marks: Vec::new() }
    }

    /// The same with something that happened.
    pub(super) fn mark(mut self, at: Duration, text: impl Into<String>) -> Self {
        self.marks.push(Mark { at_s: at.as_secs_f64(), text: text.into() });
        self
    }

    /// When, from `since` on, the `link`-th first delivered at least `mbit` downwards over half a second: seconds after
    /// `since`.
    pub(super) fn reaches(&self, link: usize, since: Duration, mbit: f64) -> Option<f64> {
        const POINTS: usize = 5;
        let since = since.as_secs_f64();
        let later: Vec<&Point> = self.points.iter().filter(|point| point.at_s > since).collect();
        let mean = |points: &[&Point]| {
            points.iter().map(|point| point.mbit[link].download).sum::<f64>() / POINTS as f64
        };
        later.windows(POINTS).find(|points| mean(points) >= mbit).map(|points| points[0].at_s - since)
    }
}

/// All counters at one moment.
struct Reading {
    at: Instant,
    links: Vec<(String, LinkCounters)>,
}

impl Reading {
    fn take(emulator: &EmulatorControl) -> anyhow::Result<Self> {
        let links = emulator.all_counters()?;
        Ok(Self { at: Instant::now(), links })
    }
}

/// Reads the counters on a thread of its own until stopped.
pub(super) struct Sampler {
    title: String,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<anyhow::Result<Vec<Reading>>>,
}

impl Sampler {
    /// Begins.
    ///
    /// # Errors
    /// When the machine has no more threads.
    pub(super) fn start(title: &str, emulator: EmulatorControl) -> anyhow::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let sample = move || {
            let mut readings = vec![Reading::take(&emulator)?];
            while stopped.recv_timeout(STEP) == Err(RecvTimeoutError::Timeout) {
                readings.push(Reading::take(&emulator)?);
            }
            Ok(readings)
        };
        let thread = std::thread::Builder::new().name("timeline".into()).spawn(sample);
        Ok(Self { title: title.to_owned(), stop, thread: thread.context("starting a thread")? })
    }

    /// Ends, with what was read.
    ///
    /// # Errors
    /// When the emulator has ended.
    pub(super) fn finish(self) -> anyhow::Result<Timeline> {
        drop(self.stop);
        let readings = self.thread.join().map_err(|_| anyhow::anyhow!("reading the counters panicked"))??;
        Ok(Timeline::new(self.title, &readings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_the_counters_and_the_share_is_found() {
        let start = Instant::now();
        let readings: Vec<Reading> = (0..40u64)
            .map(|step| {
                let mut link = LinkCounters::default();
                // 10 Mbit/s down from 2 s on.
                link.down.bytes = step.saturating_sub(20) * 125_000;
                link.up.bytes = step * 12_500;
                Reading { at: start + STEP * step as u32, links: vec![("one".to_owned(), link)] }
            })
            .collect();
        let timeline = Timeline::new("test".to_owned(), &readings).mark(Duration::from_secs(1), "begins");
        assert_eq!((timeline.points.len(), timeline.links.len(), timeline.marks.len()), (39, 1, 1));
        assert!((timeline.points[30].mbit[0].download - 10.0).abs() < 1e-6);
        assert!((timeline.points[30].mbit[0].upload - 1.0).abs() < 1e-6);
        let reached = timeline.reaches(0, Duration::from_secs(1), 9.9).unwrap();
        assert!((1.0..1.2).contains(&reached), "{reached}");
        assert_eq!(timeline.reaches(0, Duration::from_secs(1), 11.0), None);
        assert!(Timeline::new(String::new(), &[]).points.is_empty());
    }
}
