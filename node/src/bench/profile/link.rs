//! One emulated link of a profile, and what it means to the emulator.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use mwb_sim::wan::{BurstLoss, DirectionSpec, LinkSpec, Policer, QueueLimit, Trace};
use serde::{Deserialize, Serialize};

/// Queue of a link, in milliseconds of its rate, unless the table says another.
const QUEUE_MS: u64 = 100;
/// After this a generated trace begins again: four of the satellite's changes.
const TRACE: Duration = Duration::from_secs(60);
/// Mean length of a burst of loss, in packets.
const BURST_PACKETS: f64 = 10.0;
/// No faster than the emulator is.
const MBIT_MAX: f64 = 1000.0;

/// One link. What is not said of a direction is the same both ways.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(in crate::bench) struct Link {
    /// Unique in its profile.
    pub(in crate::bench) name: String,
    /// Rate in Mbit/s of IP packets, of a trace its mean; needed unless `trace_down` names a file.
    #[serde(default)]
    pub(in crate::bench) mbit: f64,
    /// The same towards the internet, when it differs.
    #[serde(default)]
    pub(in crate::bench) mbit_up: Option<f64>,
    /// Round trip time without any queue.
    #[serde(default)]
    pub(in crate::bench) rtt_ms: u64,
    /// Most that is added at random each way; the order is kept.
    #[serde(default)]
    jitter_ms: u64,
    /// Random loss each way.
    #[serde(default)]
    loss_percent: f64,
    /// Loss in bursts of ten packets on average, each way.
    #[serde(default)]
    burst_loss_percent: f64,
    /// Queue each way, in milliseconds of the rate.
    #[serde(default = "queue_ms")]
    queue_ms: u64,
    /// Depth of a token bucket that drops what comes faster than the rate, instead of a queue, in bytes.
    #[serde(default)]
    policer_bytes: Option<usize>,
    /// A rate that changes as on such a link, generated.
    #[serde(default)]
    trace: Option<TraceKind>,
    /// Decides a generated trace; by default the link's place in the profile.
    #[serde(default)]
    trace_seed: Option<u64>,
    /// File with a recorded trace in Mahimahi's format, relative to the file of the profile.
    #[serde(default)]
    trace_down: Option<PathBuf>,
    /// The same towards the internet.
    #[serde(default)]
    trace_up: Option<PathBuf>,
    /// What the edge's configuration says of it.
    #[serde(default = "weight")]
    pub(in crate::bench) weight: u32,
    /// Whether it is so bad that a run does not wait until it carries packets.
    #[serde(default)]
    pub(in crate::bench) optional: bool,
    /// What became of the traces, once read or generated: download, upload.
    #[serde(skip)]
    traces: [Option<Trace>; 2],
}

/// What a generated trace is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum TraceKind {
    /// [`Trace::starlink`].
    Starlink,
    /// [`Trace::lte`].
    Lte,
}

fn weight() -> u32 {
    10
}

fn queue_ms() -> u64 {
    QUEUE_MS
}

impl Link {
    /// Reads or makes its traces and refuses what cannot be emulated. `index` is its place in the profile.
    pub(super) fn prepare(&mut self, folder: &Path, index: u64) -> anyhow::Result<()> {
        let load = |file: &Option<PathBuf>| -> anyhow::Result<Option<Trace>> {
            let Some(file) = file else { return Ok(None) };
            let path = folder.join(file);
            Ok(Some(Trace::load(&path).with_context(|| format!("the trace {}", path.display()))?))
        };
        self.traces = [load(&self.trace_down)?, load(&self.trace_up)?];
        let mean = |trace: &Option<Trace>| trace.as_ref().map(|trace| trace.mean_rate() as f64 / 1e6);
        if let Some(mbit) = mean(&self.traces[0]) {
            self.mbit = mbit;
        }
        self.mbit_up = mean(&self.traces[1]).or(self.mbit_up);
        for mbit in [self.mbit, self.mbit_up()] {
            ensure!(mbit > 0.0 && mbit <= MBIT_MAX, "mbit is above 0 and at most {MBIT_MAX}, not {mbit}");
        }
        for percent in [self.loss_percent, self.burst_loss_percent] {
            ensure!((0.0..100.0).contains(&percent), "loss is 0 to below 100 per cent, not {percent}");
        }
        if let Some(kind) = self.trace {
            let make = match kind {
                TraceKind::Starlink => Trace::starlink,
                TraceKind::Lte => Trace::lte,
            };
            let rates = [self.mbit, self.mbit_up()];
            let seed = self.trace_seed.unwrap_or(index);
            for ((trace, mbit), way) in self.traces.iter_mut().zip(rates).zip(0u64..) {
                // A seed of its own for each: links are not in step.
                trace.get_or_insert_with(|| make(mbit, TRACE, 2 * seed + way));
            }
        }
        Ok(())
    }

    fn mbit_up(&self) -> f64 {
        self.mbit_up.unwrap_or(self.mbit)
    }

    /// What the emulator is told.
    pub(in crate::bench) fn spec(&self) -> LinkSpec {
        let way = |mbit: f64, trace: &Option<Trace>| {
            let mut way = DirectionSpec::mbit(mbit).loss(self.loss_percent / 100.0).jitter_ms(self.jitter_ms);
            way.delay = Duration::from_micros(self.rtt_ms * 500);
            way.queue = QueueLimit::Time(Duration::from_millis(self.queue_ms));
            if self.burst_loss_percent > 0.0 {
                way.burst = Some(BurstLoss::of(self.burst_loss_percent / 100.0, BURST_PACKETS));
            }
            if let Some(burst_bytes) = self.policer_bytes {
                way.policer = Some(Policer { rate: (mbit * 1e6) as u64, burst_bytes });
                way.rate = None;
            }
            way.trace = trace.clone();
            way
        };
        let [down, up] = &self.traces;
        LinkSpec::new(self.name.clone(), way(self.mbit_up(), up), way(self.mbit, down))
    }

    /// Whether it drops packets for other reasons than a full queue. CUBIC cannot fill it then, BBR is the reference.
    pub(in crate::bench) fn is_lossy(&self) -> bool {
        self.loss_percent > 0.0 || self.burst_loss_percent > 0.0 || self.policer_bytes.is_some()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mbit == 0.0 {
            return write!(f, "a plain pair of interfaces, not emulated");
        }
        // A trace's mean has many digits.
        let short = |mbit: f64| (mbit * 100.0).round() / 100.0;
        write!(f, "{:>5} Mbit/s", short(self.mbit))?;
        if let Some(up) = self.mbit_up {
            write!(f, " down, {} up", short(up))?;
        }
        write!(f, ", {:>3} ms round trip", self.rtt_ms)?;
        match self.policer_bytes {
            Some(bytes) => write!(f, ", policer of {bytes} bytes, no queue")?,
            None => write!(f, ", {} ms queue", self.queue_ms)?,
        }
        if self.jitter_ms > 0 {
            write!(f, ", {} ms jitter", self.jitter_ms)?;
        }
        for (percent, kind) in [(self.loss_percent, ""), (self.burst_loss_percent, " in bursts")] {
            if percent > 0.0 {
                write!(f, ", {percent} % loss{kind} each way")?;
            }
        }
        if let Some(kind) = self.trace {
            write!(f, ", {kind:?}-like trace")?;
        }
        for (file, way) in [(&self.trace_down, "down"), (&self.trace_up, "up")] {
            if let Some(file) = file {
                write!(f, ", trace {way} {}", file.display())?;
            }
        }
        Ok(())
    }
}
