//! What was measured: one JSON object for programs, one table for people.

use std::fmt::{Display, Write};

use mwb_proto::bond::RoutingMode;
use mwb_sim::traffic::EchoResult;
use serde::Serialize;

use super::control_bytes::{self, ControlBytes};
use super::mptcp::{Mptcp, MptcpFlows};
use super::profile::Profile;
use super::timeline::Timeline;
use super::ways::{Way, Ways};

/// Above this lateness (99th percentile, microseconds) the emulated links are not what they are said to be.
const LATENESS_MAX_US: f64 = 1000.0;

/// All runs of one profile.
#[derive(Debug, Serialize)]
pub(super) struct Report<R> {
    /// The links that were emulated.
    pub(super) profile: Profile,
    /// How all nodes spread packets.
    pub(super) mode: RoutingMode,
    /// Asked of flows, unless a raw link needs another.
    pub(super) congestion_control: String,
    /// Length of each transfer.
    pub(super) seconds: u64,
    /// Cut from the start of each transfer.
    pub(super) cut_seconds: u64,
    /// Version of the program.
    pub(super) version: &'static str,
    /// One entry per run, in order.
    pub(super) runs: Vec<R>,
    /// What the runs are judged by.
    pub(super) medians: Vec<Median>,
}

/// What one run found.
pub(super) trait Measured: Serialize {
    /// For people.
    fn write(&self, out: &mut String) -> std::fmt::Result;
    /// What is worth plotting.
    fn timelines(&self) -> Vec<&Timeline>;
    /// What the run is judged by: the same names in the same order in every run of a profile, as far as there are any.
    fn figures(&self) -> Vec<Figure>;
}

/// A name and a value.
pub(super) type Figure = (String, f64);

/// A figure for each way.
pub(super) fn both(name: &str, values: Ways<f64>) -> Vec<Figure> {
    vec![(format!("{name}, download"), values.download), (format!("{name}, upload"), values.upload)]
}

/// One figure of several runs.
#[derive(Debug, Serialize)]
pub(super) struct Median {
    pub(super) name: String,
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// The figures of several runs, in the order of the first; those that a run lacks are taken from the others.
pub(super) fn medians(runs: &[impl Measured]) -> Vec<Median> {
    let all: Vec<Figure> = runs.iter().flat_map(Measured::figures).collect();
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in &all {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |name: &String| {
        let mut values: Vec<f64> =
            all.iter().filter(|figure| figure.0 == *name).map(|figure| figure.1).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (values.first().copied(), values.last().copied());
        Median {
            name: name.clone(),
            least: least.unwrap_or(f64::NAN),
            most: most.unwrap_or(f64::NAN),
            median: median(values),
        }
    };
    names.into_iter().map(of).collect()
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
        writeln!(out, "routing mode {}, TCP flows with {}", self.mode, self.congestion_control)?;
        writeln!(out, "{} s a transfer, the first {} s cut", self.seconds, self.cut_seconds)?;
        for (number, run) in self.runs.iter().enumerate() {
            writeln!(out)?;
            if self.runs.len() > 1 {
                writeln!(out, "run {} of {}", number + 1, self.runs.len())?;
            }
            run.write(out)?;
        }
        if self.runs.len() > 1 {
            let title = format!("of {} runs", self.runs.len());
            writeln!(out, "\n  {title:<46}{:>10}{:>10}{:>10}", "median", "least", "most")?;
            for Median { name, median, least, most } in &self.medians {
                writeln!(out, "  {name:<46}{median:>10.3}{least:>10.3}{most:>10.3}")?;
            }
        }
        Ok(())
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
    row(out, "one TCP flow, Mbit/s", Ways { download: "download", upload: "upload" })?;
    for raw in raw {
        let label = format!("{} alone ({})", raw.link, raw.congestion_control);
        mbit_row(out, &label, raw.mbit)?;
    }
    mbit_row(out, "sum", sum(raw))
}

/// A label and a value each way.
pub(super) fn row(out: &mut String, label: &str, values: Ways<impl Display>) -> std::fmt::Result {
    let Ways { download, upload } = values;
    writeln!(out, "  {label:<30}{download:>10}{upload:>10}")
}

/// The same with rates.
pub(super) fn mbit_row(out: &mut String, label: &str, mbit: Ways<f64>) -> std::fmt::Result {
    row(out, label, mbit.map(|mbit| format!("{mbit:.2}")))
}

/// The same with ratios.
pub(super) fn ratio_row(out: &mut String, label: &str, ratio: Ways<f64>) -> std::fmt::Result {
    row(out, label, ratio.map(|ratio| format!("{ratio:.3}")))
}

/// The same with the longest pauses, of which those below 50 ms are not listed.
pub(super) fn pause_row(out: &mut String, ms: Ways<f64>) -> std::fmt::Result {
    row(out, "longest pause, ms", ms.map(|ms| pause(*ms)))
}

/// A pause for people.
pub(super) fn pause(ms: f64) -> String {
    if ms == 0.0 { "< 50".to_owned() } else { format!("{ms:.0}") }
}

/// What the links carried besides the payload.
pub(super) fn wire_rows(out: &mut String, wire: Ways<Wire>) -> std::fmt::Result {
    let percent = |value: fn(&Wire) -> f64| wire.map(|wire| format!("{:.1}", value(wire)));
    row(out, "headers and repeats, % of it", percent(|wire| wire.along_percent))?;
    row(out, "the other way, % of it", percent(|wire| wire.against_percent))
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
    /// The kernel's Multipath TCP over the raw links.
    pub(super) mptcp: Mptcp,
    /// One TCP flow through the bond.
    pub(super) bond: Ways<Transfer>,
    /// Bond over sum, in-order goodput over in-order goodput.
    pub(super) ratio: Ways<f64>,
    /// The tunnel over one link alone, where the profile asks for it.
    pub(super) reference: Option<Reference>,
    /// Round trips of small UDP packets through the bond without other traffic.
    pub(super) echo_idle: Echo,
    /// The same while the flow runs.
    pub(super) echo_loaded: Ways<Echo>,
    /// Bytes that each link delivered while the bond's flow ran, by the emulator's counters.
    pub(super) link_bytes: Vec<LinkBytes>,
    /// The same while an echo of 70 % of the links' sum runs in four flows; measured when a mode was asked for.
    pub(super) spread: Option<Vec<LinkBytes>>,
    /// What reports and heartbeats took meanwhile.
    pub(super) control: Ways<ControlBytes>,
    /// IP payload of the outer packet less the UDP header less the inner packet, for a lone inner packet.
    pub(super) wire_overhead: Overhead,
    /// How well the emulator kept time.
    pub(super) emulator: Health,
    /// What the links delivered over time while the bond's flows ran: download, upload.
    pub(super) timelines: Vec<Timeline>,
}

/// One link alone.
#[derive(Debug, Serialize)]
pub(super) struct RawLink {
    pub(super) link: String,
    /// Read back from the sending sockets.
    pub(super) congestion_control: String,
    pub(super) mbit: Ways<f64>,
    pub(super) wire: Ways<Wire>,
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
    pub(super) wire: Wire,
}

/// IP bytes that the links delivered for a flow besides its payload, in per cent of that: headers, acknowledgements,
/// reports, heartbeats and what was sent again. By the emulator's counters, without the echo beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Wire {
    /// In the flow's direction.
    pub(super) along_percent: f64,
    /// In the other one.
    pub(super) against_percent: f64,
}

impl Wire {
    /// For a flow of `payload` bytes that all went `way`, while an echo took `echo` bytes each way.
    pub(super) fn new(payload: u64, echo: u64, links: &[LinkBytes], way: Way) -> Self {
        let total = links.iter().fold(Ways::default(), |sum: Ways<u64>, link| Ways {
            download: sum.download + link.bytes.download,
            upload: sum.upload + link.bytes.upload,
        });
        let (along, against) = match way {
            Way::Download => (total.download, total.upload),
            Way::Upload => (total.upload, total.download),
        };
        let percent = |bytes: u64| 100.0 * bytes.saturating_sub(echo) as f64 / payload.max(1) as f64;
        Self { along_percent: percent(along) - 100.0, against_percent: percent(against) }
    }
}

/// The same tunnel over one link alone.
#[derive(Debug, Serialize)]
pub(super) struct Reference {
    pub(super) link: String,
    pub(super) mbit: Ways<f64>,
    /// The bond over all links, over that.
    pub(super) ratio: Ways<f64>,
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
        self.mptcp.write(out)?;
        let bond = &self.bond;
        let label = format!("bond ({})", bond.download.congestion_control);
        mbit_row(out, &label, bond.map(|transfer| transfer.mbit))?;
        ratio_row(out, "bond / sum", self.ratio)?;
        if let Some(Reference { link, mbit, ratio }) = &self.reference {
            mbit_row(out, &format!("tunnel over {link} alone"), *mbit)?;
            ratio_row(out, "bond / that", *ratio)?;
        }
        pause_row(out, bond.map(|transfer| transfer.longest_pause_ms))?;
        row(out, "TCP retransmits", bond.map(|transfer| transfer.retransmits))?;
        wire_rows(out, bond.map(|transfer| transfer.wire))?;
        control_bytes::write(out, self.control)?;
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
        self.mptcp.write_echo(out)?;
        let Overhead { inner_bytes, outer_bytes, overhead_bytes } = self.wire_overhead;
        writeln!(
            out,
            "  wire overhead {overhead_bytes} bytes: {inner_bytes} inner became {outer_bytes} outer (28 of IP and UDP)"
        )?;
        self.emulator.write(out)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        self.timelines.iter().collect()
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures = both("bond, Mbit/s", self.bond.clone().map(|transfer| transfer.mbit));
        figures.extend(both("bond / sum", self.ratio));
        if let Some(Reference { link, ratio, .. }) = &self.reference {
            figures.extend(both(&format!("bond / tunnel over {link} alone"), *ratio));
        }
        figures.extend(both("UDP echo p95, ms", self.echo_loaded.map(|echo| echo.p95_ms)));
        figures.extend(both("headers and repeats, %", self.bond.clone().map(|t| t.wire.along_percent)));
        figures.extend(both("the other way, %", self.bond.clone().map(|t| t.wire.against_percent)));
        figures.extend(both("reports and heartbeats, %", self.control.map(|control| control.percent)));
        figures
            .extend(both("reports and heartbeats up, kbit/s", self.control.map(|control| control.up_kbit)));
        for MptcpFlows { congestion_control, ratio, .. } in &self.mptcp.flows {
            figures.extend(both(&format!("kernel MPTCP ({congestion_control}) / sum"), *ratio));
        }
        figures
    }
}

impl From<&EchoResult> for Echo {
    fn from(result: &EchoResult) -> Self {
        let EchoResult { sent, received, p50_ms, p95_ms, p99_ms, max_ms, .. } = *result;
        Self { sent, received, p50_ms, p95_ms, p99_ms, max_ms }
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

fn write_shares(out: &mut String, label: &str, links: &[LinkBytes]) -> std::fmt::Result {
    let total = |way: Way| links.iter().map(|link| *link.bytes.of(way)).sum::<u64>().max(1) as f64;
    for link in links {
        let share = |way: Way| format!("{:.1}", 100.0 * *link.bytes.of(way) as f64 / total(way));
        let shares = Ways { download: share(Way::Download), upload: share(Way::Upload) };
        row(out, &format!("{label} {}, %", link.link), shares)?;
    }
    Ok(())
}

/// The middle value; the mean of the two middle ones of an even number.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
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
    fn what_the_wire_carries_besides_the_payload() {
        let link = |download, upload| LinkBytes { link: String::new(), bytes: Ways { download, upload } };
        let links = [link(600, 10), link(510, 50)];
        let wire = Wire::new(1000, 10, &links, Way::Download);
        assert!((wire.along_percent - 10.0).abs() < 1e-9 && (wire.against_percent - 5.0).abs() < 1e-9);
        let wire = Wire::new(50, 0, &links, Way::Upload);
        assert!((wire.along_percent - 20.0).abs() < 1e-9, "{wire:?}");
    }

    /// A run with one figure, or with two.
    #[derive(Serialize)]
    struct Few(f64, Option<f64>);

    impl Measured for Few {
        fn write(&self, _: &mut String) -> std::fmt::Result {
            Ok(())
        }

        fn timelines(&self) -> Vec<&Timeline> {
            Vec::new()
        }

        fn figures(&self) -> Vec<Figure> {
            let second = self.1.map(|value| ("second".to_owned(), value));
            [Some(("first".to_owned(), self.0)), second].into_iter().flatten().collect()
        }
    }

    #[test]
    fn a_figure_that_some_runs_lack_has_the_median_of_the_others() {
        let medians = medians(&[Few(3.0, None), Few(1.0, Some(9.0)), Few(2.0, Some(7.0))]);
        let all = medians.iter().map(|m| (m.name.as_str(), m.median, m.least, m.most));
        assert_eq!(all.collect::<Vec<_>>(), [("first", 2.0, 1.0, 3.0), ("second", 8.0, 7.0, 9.0)]);
    }

    #[test]
    fn middle_values() {
        assert!(median(Vec::new()).is_nan());
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
