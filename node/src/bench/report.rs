//! What was measured: one JSON object for programs, one table for people.

use std::fmt::Write;

use mwb_proto::bond::RoutingMode;
use serde::Serialize;

use super::profile::Profile;

/// Above this lateness (99th percentile, microseconds) the emulated links are not what they are said to be.
const LATENESS_MAX_US: f64 = 1000.0;

/// All runs of one profile.
#[derive(Debug, Serialize)]
pub(super) struct Report<R> {
    /// The links that were emulated.
    pub(super) profile: Profile,
    /// How all nodes spread packets.
    pub(super) mode: RoutingMode,
    /// Length of each transfer.
    pub(super) seconds: u64,
    /// Cut from the start of each transfer.
    pub(super) cut_seconds: u64,
    /// Version of the program.
    pub(super) version: &'static str,
    /// One entry per run, in order.
    pub(super) runs: Vec<R>,
}

/// What one run found.
pub(super) trait Measured: Serialize {
    /// For people.
    fn write(&self, out: &mut String) -> std::fmt::Result;
    /// The medians of several runs, for people, where there are some.
    fn write_medians(runs: &[Self], out: &mut String) -> std::fmt::Result
    where
        Self: Sized;
}

impl<R: Measured> Report<R> {
    /// For people: every run, and the medians when there are several.
    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{}: {}", self.profile.name, self.profile.about)?;
        for link in &self.profile.links {
            writeln!(out, "  {:<8} {link}", link.name)?;
        }
        writeln!(out, "routing mode {}", self.mode)?;
        writeln!(out, "{} s a transfer, the first {} s cut", self.seconds, self.cut_seconds)?;
        for (number, run) in self.runs.iter().enumerate() {
            writeln!(out)?;
            if self.runs.len() > 1 {
                writeln!(out, "run {} of {}", number + 1, self.runs.len())?;
            }
            run.write(out)?;
        }
        if self.runs.len() > 1 { R::write_medians(&self.runs, out) } else { Ok(()) }
    }
}

/// How well the emulator kept time; a late emulator makes every number doubtful.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Health {
    /// How late it released packets, in microseconds.
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) max_us: f64,
    /// Packets that it lost because it was too slow; not zero: the figures do not count.
    pub(super) overrun_packets: u64,
}

impl Health {
    /// For people.
    pub(super) fn write(&self, out: &mut String) -> std::fmt::Result {
        let Self { p50_us, p99_us, max_us, overrun_packets } = self;
        writeln!(out, "  emulator lateness p50 {p50_us:.0} us, p99 {p99_us:.0} us, max {max_us:.0} us")?;
        if *p99_us > LATENESS_MAX_US || *overrun_packets > 0 {
            writeln!(
                out,
                "  the emulator was too late or lost {overrun_packets} packets itself: these figures do not count"
            )?;
        }
        Ok(())
    }
}

/// The raw links and their sum, for people.
pub(super) fn write_raw(out: &mut String, raw: &[RawLink]) -> std::fmt::Result {
    row(out, "one TCP flow, Mbit/s", [&"download", &"upload"])?;
    for raw in raw {
        let label = format!("{} alone ({})", raw.link, raw.congestion_control);
        mbit_row(out, &label, raw.mbit)?;
    }
    mbit_row(out, "sum", sum(raw))
}

/// A label and a value each way.
pub(super) fn row(out: &mut String, label: &str, values: [&dyn std::fmt::Display; 2]) -> std::fmt::Result {
    let [down, up] = values.map(ToString::to_string);
    writeln!(out, "  {label:<30}{down:>10}{up:>10}")
}

/// The same with rates.
pub(super) fn mbit_row(out: &mut String, label: &str, mbit: Ways<f64>) -> std::fmt::Result {
    row(out, label, [&format_args!("{:.2}", mbit.download), &format_args!("{:.2}", mbit.upload)])
}

/// The same with ratios.
pub(super) fn ratio_row(out: &mut String, label: &str, ratio: Ways<f64>) -> std::fmt::Result {
    row(out, label, [&format_args!("{:.3}", ratio.download), &format_args!("{:.3}", ratio.upload)])
}

/// What all links carry, each alone.
pub(super) fn sum(raw: &[RawLink]) -> Ways<f64> {
    Ways {
        download: raw.iter().map(|raw| raw.mbit.download).sum(),
        upload: raw.iter().map(|raw| raw.mbit.upload).sum(),
    }
}

/// One run: everything once, in the same lab.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    /// Each link alone, without any tunnel.
    pub(super) raw: Vec<RawLink>,
    /// Sum of the raw links.
    pub(super) raw_sum: Ways<f64>,
    /// One TCP flow through the bond.
    pub(super) bond: Ways<Transfer>,
    /// Bond over sum, in-order goodput over in-order goodput.
    pub(super) ratio: Ways<f64>,
    /// Round trips of small UDP packets through the bond without other traffic.
    pub(super) echo_idle: Echo,
    /// The same while the flow runs.
    pub(super) echo_loaded: Ways<Echo>,
    /// Bytes that each link delivered while the bond's flow ran, by the emulator's counters.
    pub(super) link_bytes: Vec<LinkBytes>,
    /// The same while an echo of 70 % of the links' sum runs in four flows; measured when a mode was asked for.
    pub(super) spread: Option<Vec<LinkBytes>>,
    /// IP payload of the outer packet less the UDP header less the inner packet, for a lone inner packet.
    pub(super) wire_overhead: Overhead,
    /// How well the emulator kept time.
    pub(super) emulator: Health,
}

/// Something measured both ways.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Ways<T> {
    /// Towards the edge.
    pub(super) download: T,
    /// From the edge.
    pub(super) upload: T,
}

/// One link alone.
#[derive(Debug, Serialize)]
pub(super) struct RawLink {
    pub(super) link: String,
    /// Read back from the sending sockets.
    pub(super) congestion_control: String,
    pub(super) mbit: Ways<f64>,
}

/// One TCP flow.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Transfer {
    /// In-order goodput after the cut.
    pub(super) mbit: f64,
    /// Read back from the sending socket.
    pub(super) congestion_control: String,
    /// Longest time without a delivery to the reader, after the cut; zero when none reached 50 ms.
    pub(super) longest_pause_ms: f64,
    /// Segments that the sender's TCP sent again.
    pub(super) retransmits: u64,
}

/// Round trips of small packets.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Echo {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// What one link delivered.
#[derive(Debug, Serialize)]
pub(super) struct LinkBytes {
    pub(super) link: String,
    /// In the flow's direction.
    pub(super) bytes: Ways<u64>,
}

/// Bytes between UDP and the inner packet.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Overhead {
    /// Length of the inner IP packet.
    pub(super) inner_bytes: u64,
    /// Length of the outer IP packet that carried it.
    pub(super) outer_bytes: u64,
    /// What is neither the outer IP and UDP headers nor the inner packet.
    pub(super) overhead_bytes: u64,
}

impl Measured for Run {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        write_raw(out, &self.raw)?;
        let Ways { download: down, upload: up } = &self.bond;
        let label = format!("bond ({})", down.congestion_control);
        mbit_row(out, &label, Ways { download: down.mbit, upload: up.mbit })?;
        ratio_row(out, "bond / sum", self.ratio)?;
        row(out, "longest pause, ms", [&pause(down.longest_pause_ms), &pause(up.longest_pause_ms)])?;
        row(out, "TCP retransmits", [&down.retransmits, &up.retransmits])?;
        write_shares(out, "carried by", &self.link_bytes)?;
        if let Some(spread) = &self.spread {
            write_shares(out, "of UDP at 70 %, by", spread)?;
        }
        writeln!(
            out,
            "  {:<30}{:>8}{:>8}{:>8}{:>8}{:>7}",
            "UDP echo, ms", "p50", "p95", "p99", "max", "lost"
        )?;
        self.echo_idle.write(out, "idle")?;
        self.echo_loaded.download.write(out, "during the download")?;
        self.echo_loaded.upload.write(out, "during the upload")?;
        let Overhead { inner_bytes, outer_bytes, overhead_bytes } = self.wire_overhead;
        writeln!(
            out,
            "  wire overhead {overhead_bytes} bytes: {inner_bytes} inner became {outer_bytes} outer (28 of IP and UDP)"
        )?;
        self.emulator.write(out)
    }

    fn write_medians(runs: &[Self], out: &mut String) -> std::fmt::Result {
        let both = |value: fn(&Self) -> Ways<f64>| Ways {
            download: median(runs.iter().map(|run| value(run).download).collect()),
            upload: median(runs.iter().map(|run| value(run).upload).collect()),
        };
        writeln!(out, "\nmedian of {} runs", runs.len())?;
        let mbit = both(|run| Ways { download: run.bond.download.mbit, upload: run.bond.upload.mbit });
        mbit_row(out, "bond, Mbit/s", mbit)?;
        ratio_row(out, "bond / sum", both(|run| run.ratio))
    }
}

impl Echo {
    /// For people.
    pub(super) fn write(&self, out: &mut String, label: &str) -> std::fmt::Result {
        let Self { sent, received, p50_ms, p95_ms, p99_ms, max_ms } = self;
        let lost = sent.saturating_sub(*received);
        writeln!(out, "  {label:<30}{p50_ms:>8.1}{p95_ms:>8.1}{p99_ms:>8.1}{max_ms:>8.1}{lost:>7}")
    }
}

/// A pause for people: shorter ones than 50 ms are not listed.
pub(super) fn pause(ms: f64) -> String {
    if ms == 0.0 { "< 50".to_owned() } else { format!("{ms:.0}") }
}

fn write_shares(out: &mut String, label: &str, links: &[LinkBytes]) -> std::fmt::Result {
    let total = |bytes: fn(&LinkBytes) -> u64| links.iter().map(bytes).sum::<u64>().max(1) as f64;
    let (all_down, all_up) = (total(|link| link.bytes.download), total(|link| link.bytes.upload));
    for link in links {
        let down = 100.0 * link.bytes.download as f64 / all_down;
        let up = 100.0 * link.bytes.upload as f64 / all_up;
        row(
            out,
            &format!("{label} {}, %", link.link),
            [&format_args!("{down:.1}"), &format_args!("{up:.1}")],
        )?;
    }
    Ok(())
}

/// The middle value; the mean of the two middle ones of an even number.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median(Vec::new()).is_nan());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
