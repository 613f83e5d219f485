//! What was measured: one JSON object for programs, one table for people.

use std::fmt::Write;

use mwb_proto::bond::RoutingMode;
use serde::Serialize;

use super::profile::Profile;

/// Above this lateness (99th percentile, microseconds) the emulated links are not what they are said to be.
const LATENESS_MAX_US: f64 = 1000.0;

/// All runs of one profile.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The links that were emulated.
    pub(super) profile: Profile,
    /// How both nodes spread packets.
    pub(super) mode: RoutingMode,
    /// Length of each transfer.
    pub(super) seconds: u64,
    /// Cut from the start of each transfer.
    pub(super) cut_seconds: u64,
    /// Version of the program.
    pub(super) version: &'static str,
    /// One entry per run, in order.
    pub(super) runs: Vec<Run>,
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
    /// How late the emulator released packets; a late emulator makes every number doubtful.
    pub(super) emulator_lateness_us: Lateness,
    /// Packets that the emulator lost because it was too slow; not zero: the figures do not count.
    pub(super) emulator_overrun_packets: u64,
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

/// In microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Lateness {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Report {
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
            write!(out, "  {:<8} {:>5} Mbit/s, {:>3} ms round trip", link.name, link.mbit, link.rtt_ms)?;
            let loss = if link.is_lossy() {
                format!(", {} % loss each way", link.loss_percent)
            } else {
                String::new()
            };
            writeln!(out, ", {} ms queue{loss}", link.queue_ms)?;
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
        if self.runs.len() > 1 {
            let median = |value: fn(&Run) -> f64| median(self.runs.iter().map(value).collect());
            writeln!(out, "\nmedian of {} runs", self.runs.len())?;
            let (down, up) = (median(|run| run.bond.download.mbit), median(|run| run.bond.upload.mbit));
            writeln!(out, "  {:<26}{down:>10.2}{up:>10.2}", "bond, Mbit/s")?;
            let (down, up) = (median(|run| run.ratio.download), median(|run| run.ratio.upload));
            writeln!(out, "  {:<26}{down:>10.3}{up:>10.3}", "bond / sum of raw links")?;
        }
        Ok(())
    }
}

impl Run {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "  {:<26}{:>10}{:>10}", "one TCP flow, Mbit/s", "download", "upload")?;
        for raw in &self.raw {
            let label = format!("{} alone ({})", raw.link, raw.congestion_control);
            writeln!(out, "  {label:<26}{:>10.2}{:>10.2}", raw.mbit.download, raw.mbit.upload)?;
        }
        writeln!(out, "  {:<26}{:>10.2}{:>10.2}", "sum", self.raw_sum.download, self.raw_sum.upload)?;
        let label = format!("bond ({})", self.bond.download.congestion_control);
        writeln!(out, "  {label:<26}{:>10.2}{:>10.2}", self.bond.download.mbit, self.bond.upload.mbit)?;
        writeln!(out, "  {:<26}{:>10.3}{:>10.3}", "bond / sum", self.ratio.download, self.ratio.upload)?;
        let (down, up) = (self.bond.download.longest_pause_ms, self.bond.upload.longest_pause_ms);
        let pause = |ms: f64| if ms == 0.0 { "< 50".to_owned() } else { format!("{ms:.0}") };
        writeln!(out, "  {:<26}{:>10}{:>10}", "longest pause, ms", pause(down), pause(up))?;
        let (down, up) = (self.bond.download.retransmits, self.bond.upload.retransmits);
        writeln!(out, "  {:<26}{down:>10}{up:>10}", "TCP retransmits")?;
        write_shares(out, "carried by", &self.link_bytes)?;
        if let Some(spread) = &self.spread {
            write_shares(out, "of UDP at 70 %, by", spread)?;
        }
        writeln!(
            out,
            "  {:<26}{:>8}{:>8}{:>8}{:>8}{:>7}",
            "UDP echo, ms", "p50", "p95", "p99", "max", "lost"
        )?;
        for (label, echo) in [
            ("idle", &self.echo_idle),
            ("during the download", &self.echo_loaded.download),
            ("during the upload", &self.echo_loaded.upload),
        ] {
            let Echo { sent, received, p50_ms, p95_ms, p99_ms, max_ms } = echo;
            let lost = sent.saturating_sub(*received);
            writeln!(out, "  {label:<26}{p50_ms:>8.1}{p95_ms:>8.1}{p99_ms:>8.1}{max_ms:>8.1}{lost:>7}")?;
        }
        let Overhead { inner_bytes, outer_bytes, overhead_bytes } = self.wire_overhead;
        writeln!(
            out,
            "  wire overhead {overhead_bytes} bytes: {inner_bytes} inner became {outer_bytes} outer (28 of IP and UDP)"
        )?;
        let Lateness { p50, p99, max } = self.emulator_lateness_us;
        writeln!(out, "  emulator lateness p50 {p50:.0} us, p99 {p99:.0} us, max {max:.0} us")?;
        if p99 > LATENESS_MAX_US || self.emulator_overrun_packets > 0 {
            let lost = self.emulator_overrun_packets;
            writeln!(
                out,
                "  the emulator was too late or lost {lost} packets itself: these figures do not count"
            )?;
        }
        Ok(())
    }
}

fn write_shares(out: &mut String, label: &str, links: &[LinkBytes]) -> std::fmt::Result {
    let total = |bytes: fn(&LinkBytes) -> u64| links.iter().map(bytes).sum::<u64>().max(1) as f64;
    let (all_down, all_up) = (total(|link| link.bytes.download), total(|link| link.bytes.upload));
    for link in links {
        let down = 100.0 * link.bytes.download as f64 / all_down;
        let up = 100.0 * link.bytes.upload as f64 / all_up;
        writeln!(out, "  {:<26}{down:>10.1}{up:>10.1}", format!("{label} {}, %", link.link))?;
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
