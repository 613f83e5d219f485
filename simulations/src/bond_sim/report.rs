//! What a simulation found.

use std::fmt;
use std::time::Duration;

use mwb_proto::bond::{ReceiverSnapshot, SenderSnapshot};
use serde::Serialize;

use super::Side;
use crate::tcp_model::{ReceiverStats, SenderStats};
use crate::wan::{LinkCounters, Way};

/// One TCP connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FlowReport {
    /// Direction and number.
    pub name: String,
    /// Bytes the application got in all.
    pub bytes: u64,
    /// Mbit/s after the warm-up, until the end of the run or of the transfer.
    pub goodput_mbit: f64,
    /// Bytes per 100 ms from the start of the run.
    pub series: Vec<u64>,
    /// Longest time without anything for the application after the warm-up, until the transfer was done.
    pub longest_gap: Duration,
    /// Whether a finite transfer ended.
    pub done: bool,
    /// The sending side.
    #[serde(skip)]
    pub sender: SenderStats,
    /// The receiving side.
    #[serde(skip)]
    pub receiver: ReceiverStats,
}

/// The echo, without the warm-up.
#[derive(Clone, Debug, PartialEq, Default, Serialize)]
pub struct EchoReport {
    /// Packets sent early enough to come back.
    pub sent: u64,
    /// Of these, echoed.
    pub received: u64,
    /// Median of the round-trip time.
    pub p50: Duration,
    /// 95 %.
    pub p95: Duration,
    /// 99 %.
    pub p99: Duration,
    /// Longest.
    pub max: Duration,
    /// Longest time between two arrivals, minus the interval of sending.
    pub longest_pause: Duration,
}

/// A neighbour's TCP connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RivalReport {
    /// Index of the link that it shared.
    pub link: usize,
    /// Which way.
    pub way: Way,
    /// Mbit/s from the warm-up or its start until its end or that of the run.
    pub goodput_mbit: f64,
    /// Bytes per 100 ms from the start of the run.
    pub series: Vec<u64>,
    /// Its sending side.
    #[serde(skip)]
    pub sender: SenderStats,
}

/// One node at the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointReport {
    /// Its sender.
    pub sender: SenderSnapshot,
    /// Its receiver.
    pub receiver: ReceiverSnapshot,
    /// How often its timer fired.
    pub wakes: u64,
}

/// A sender at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceLine {
    /// Seconds of virtual time.
    pub at: f64,
    /// Whose.
    pub side: Side,
    /// Congestion windows of the TCP connections that send here, segments.
    pub cwnd: Vec<f64>,
    /// The same of the neighbours whose data goes this way.
    pub rivals: Vec<f64>,
    /// Its state.
    pub sender: SenderSnapshot,
}

/// Everything a simulation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SimReport {
    /// The seed.
    pub seed: u64,
    /// Virtual time simulated.
    pub duration: Duration,
    /// The TCP connections.
    pub flows: Vec<FlowReport>,
    /// The echo.
    pub echo: Option<EchoReport>,
    /// The neighbours.
    pub rivals: Vec<RivalReport>,
    /// Per link, by index.
    pub links: Vec<LinkCounters>,
    /// The edge.
    pub edge: EndpointReport,
    /// The exit.
    pub exit: EndpointReport,
    /// Broken invariants, the first few in words. Empty is what it must be.
    pub violations: Vec<String>,
    /// Snapshots, if the scenario asked for them.
    pub trace: Vec<TraceLine>,
}

impl SimReport {
    /// Goodput of all flows together, Mbit/s.
    pub fn goodput_mbit(&self) -> f64 {
        self.flows.iter().map(|flow| flow.goodput_mbit).sum()
    }

    /// What the applications of one way got from `from` to the end of the run, Mbit/s, transfers that end among them.
    pub fn way_mbit(&self, way: Way, from: Duration) -> f64 {
        let name = if way == Way::Up { "up" } else { "down" };
        let skipped = (from.as_millis() / 100) as usize;
        let flows = self.flows.iter().filter(|flow| flow.name.starts_with(name));
        let bytes: u64 = flows.flat_map(|flow| flow.series.iter().skip(skipped)).sum();
        bytes as f64 * 8e-6 / self.duration.saturating_sub(from).as_secs_f64().max(0.1)
    }
}

impl fmt::Display for SimReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {:?}", self.seed, self.duration)?;
        for flow in &self.flows {
            writeln!(
                f,
                "  {}: {:.2} Mbit/s, gap {:.1?}, done {}, {:?}, {:?}",
                flow.name, flow.goodput_mbit, flow.longest_gap, flow.done, flow.sender, flow.receiver
            )?;
        }
        if let Some(echo) = &self.echo {
            writeln!(f, "  echo: {echo:.1?}")?;
        }
        for rival in &self.rivals {
            writeln!(
                f,
                "  rival on link {} {:?}: {:.2} Mbit/s, {:?}",
                rival.link, rival.way, rival.goodput_mbit, rival.sender
            )?;
        }
        for (i, link) in self.links.iter().enumerate() {
            for (way, c) in [("up", &link.up), ("down", &link.down)] {
                writeln!(
                    f,
                    "  link {i} {way}: {} B in {} packets, dropped {} by queue, {} by loss, {} by cuts",
                    c.bytes, c.packets, c.dropped_queue, c.dropped_loss, c.dropped_cut
                )?;
            }
        }
        for (name, end) in [("edge", &self.edge), ("exit", &self.exit)] {
            let s = &end.sender;
            writeln!(
                f,
                "  {name}: in {} sent {} resent {} copied {} given up {} codel {} marked {} overflow {} invalid {} wakes {}",
                s.packets_in,
                s.packets_sent,
                s.resent,
                s.copied,
                s.given_up,
                s.dropped_codel,
                s.marked,
                s.dropped_overflow,
                s.dropped_invalid,
                end.wakes
            )?;
            writeln!(f, "  {name}: {:?}", end.receiver)?;
            for p in &s.paths {
                writeln!(f, "  {name}: {p:?}")?;
            }
        }
        for violation in &self.violations {
            writeln!(f, "  VIOLATED {violation}")?;
        }
        Ok(())
    }
}

impl fmt::Display for TraceLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:7.3} {:?} queue {:4}", self.at, self.side, self.sender.queue_packets)?;
        for cwnd in &self.cwnd {
            write!(f, " cwnd {cwnd:.0}")?;
        }
        for cwnd in &self.rivals {
            write!(f, " rival {cwnd:.0}")?;
        }
        for p in &self.sender.paths {
            write!(
                f,
                " | {}{:?}{} r {:.2} c {:.2} q {:.1}/{:.1} d {:.1}±{:.1} fb {:.0} fl {}/{}{}{}{} lost {}",
                p.path,
                p.state,
                if p.parked { " parked" } else { "" },
                p.rate_mbit,
                p.delivery_mbit,
                p.queue_ms,
                p.target_ms,
                p.delay_ms,
                p.deviation_ms,
                p.feedback_ms,
                p.in_flight / 1000,
                p.in_flight_max / 1000,
                if p.app_limited { " app" } else { "" },
                if p.startup { " start" } else { "" },
                if p.contest { " contest" } else { "" },
                p.lost
            )?;
        }
        Ok(())
    }
}
