//! What a LAN of lenders got: one JSON object for programs, one table with targets for people.

use std::fmt::Write;

use serde::Serialize;
use serde::ser::SerializeStruct;

use super::report::{
    Figure, Health, LinkBytes, Measured, RawLink, Wire, mbit_row, sum, wire_rows, write_raw,
};
use super::timeline::Timeline;
use super::ways::Ways;

/// Least share of the uplinks' sum that one host, or all together, get.
const SUM_MIN: f64 = 0.85;
/// Least fairness among equal hosts (Jain, Chiu and Hawe 1984).
const JAIN_MIN: f64 = 0.95;
/// Least share of its own uplink that a host gets when all download.
const OWN_MIN: f64 = 0.9;
/// Least share of its own uplink that a lender gets from 2 s on.
const LENDER_MIN: f64 = 0.85;

/// One run; rates are goodput in Mbit/s.
#[derive(Debug)]
pub(super) struct SharingRun {
    /// Each link alone, without any tunnel; one per host.
    pub(super) raw: Vec<RawLink>,
    /// One flow on the first host.
    pub(super) single: Ways<Single>,
    /// Downloads on all hosts.
    pub(super) together: Together,
    /// A lender's download beside its borrower's.
    pub(super) lender: Lender,
    /// How well the emulator kept time.
    pub(super) emulator: Health,
}

/// One flow on one host.
#[derive(Debug, Serialize)]
pub(super) struct Single {
    /// After the cut.
    pub(super) mbit: f64,
    /// Longest time without a delivery to the reader, after the cut; zero when none reached 50 ms.
    pub(super) longest_pause_ms: f64,
    pub(super) wire: Wire,
    /// What each uplink delivered meanwhile.
    pub(super) link_bytes: Vec<LinkBytes>,
    /// The same over time.
    pub(super) timeline: Timeline,
}

/// One download on every host.
#[derive(Debug, Serialize)]
pub(super) struct Together {
    /// Of each host, after the cut.
    pub(super) mbit: Vec<f64>,
    /// What each uplink delivered meanwhile.
    pub(super) link_bytes: Vec<LinkBytes>,
    /// The same over time.
    pub(super) timeline: Timeline,
}

/// A lender that starts a download while a borrower fills its uplink.
#[derive(Debug, Serialize)]
pub(super) struct Lender {
    /// From 2 s after its start on.
    pub(super) mbit: f64,
    /// That over what its uplink carries alone.
    pub(super) share_of_own: f64,
    /// The borrower's download before the lender's began.
    pub(super) borrower_before_mbit: f64,
    /// The same from 2 s after that on.
    pub(super) borrower_after_mbit: f64,
    /// What each uplink delivered, from the start of the borrower on.
    pub(super) link_bytes: Vec<LinkBytes>,
    /// The same over time.
    pub(super) timeline: Timeline,
}

/// A figure and what it is to be.
#[derive(Debug, Serialize)]
struct Target {
    name: &'static str,
    value: f64,
    at_least: f64,
    met: bool,
}

impl SharingRun {
    fn targets(&self) -> Vec<Target> {
        let sum = sum(&self.raw);
        let own = self.together.mbit.iter().zip(&self.raw).map(|(mbit, raw)| mbit / raw.mbit.download);
        [
            ("one download / sum", self.single.download.mbit / sum.download, SUM_MIN),
            ("one upload / sum", self.single.upload.mbit / sum.upload, SUM_MIN),
            ("all downloads / sum", self.together.mbit.iter().sum::<f64>() / sum.download, SUM_MIN),
            ("fairness among them (Jain)", jain(&self.together.mbit), JAIN_MIN),
            ("least of them / own uplink", own.fold(f64::INFINITY, f64::min), OWN_MIN),
            ("lender from 2 s / own uplink", self.lender.share_of_own, LENDER_MIN),
        ]
        .map(|(name, value, at_least)| Target { name, value, at_least, met: value >= at_least })
        .into()
    }
}

impl Measured for SharingRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        write_raw(out, &self.raw)?;
        let (down, up) = (&self.single.download, &self.single.upload);
        mbit_row(out, "on the first host", Ways { download: down.mbit, upload: up.mbit })?;
        wire_rows(out, self.single.map(|single| single.wire))?;
        let all: Vec<String> = self.together.mbit.iter().map(|mbit| format!("{mbit:.2}")).collect();
        writeln!(out, "  {:<30}{:>10}", "on all hosts at once", all.join(" "))?;
        let Lender { mbit, borrower_before_mbit, borrower_after_mbit, .. } = self.lender;
        writeln!(out, "  {:<30}{mbit:>10.2}", "on a lender, from 2 s on")?;
        writeln!(
            out,
            "  {:<30}{borrower_before_mbit:>10.2} before, {borrower_after_mbit:.2} after",
            "its borrower's"
        )?;
        writeln!(out, "  {:<30}{:>10}", "carried, MB", "by the uplinks")?;
        let bytes = |links: &[LinkBytes], way: fn(&Ways<u64>) -> u64| {
            let parts =
                links.iter().map(|link| format!("{} {:.1}", link.link, way(&link.bytes) as f64 / 1e6));
            parts.collect::<Vec<_>>().join(", ")
        };
        writeln!(out, "    {:<28}  {}", "one download", bytes(&down.link_bytes, |ways| ways.download))?;
        writeln!(out, "    {:<28}  {}", "one upload", bytes(&up.link_bytes, |ways| ways.upload))?;
        writeln!(
            out,
            "    {:<28}  {}",
            "all downloads",
            bytes(&self.together.link_bytes, |ways| ways.download)
        )?;
        writeln!(
            out,
            "    {:<28}  {}",
            "lender and borrower",
            bytes(&self.lender.link_bytes, |ways| ways.download)
        )?;
        writeln!(out, "  {:<30}{:>10}{:>10}", "targets", "", "at least")?;
        for Target { name, value, at_least, met } in self.targets() {
            let verdict = if met { "met" } else { "MISSED" };
            writeln!(out, "    {name:<28}{value:>10.3}{at_least:>10.2}  {verdict}")?;
        }
        self.emulator.write(out)
    }

    fn timelines(&self) -> Vec<&Timeline> {
        let Ways { download, upload } = &self.single;
        vec![&download.timeline, &upload.timeline, &self.together.timeline, &self.lender.timeline]
    }

    fn figures(&self) -> Vec<Figure> {
        self.targets().into_iter().map(|target| (target.name.to_owned(), target.value)).collect()
    }
}

impl Serialize for SharingRun {
    /// The fields, and the targets that follow from them.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut run = serializer.serialize_struct("SharingRun", 7)?;
        run.serialize_field("raw", &self.raw)?;
        run.serialize_field("raw_sum", &sum(&self.raw))?;
        run.serialize_field("single", &self.single)?;
        run.serialize_field("together", &self.together)?;
        run.serialize_field("lender", &self.lender)?;
        run.serialize_field("targets", &self.targets())?;
        run.serialize_field("emulator", &self.emulator)?;
        run.end()
    }
}

/// Jain's index: `(Σ x)² / (n Σ x²)`, 1 when all are equal, 1/n when one has everything.
pub(super) fn jain(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    let squares: f64 = values.iter().map(|value| value * value).sum();
    sum * sum / (values.len() as f64 * squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness() {
        assert!((jain(&[5.0, 5.0, 5.0]) - 1.0).abs() < 1e-12);
        assert!((jain(&[9.0, 0.0, 0.0]) - 1.0 / 3.0).abs() < 1e-12);
        assert!((jain(&[3.0, 1.0]) - 0.8).abs() < 1e-12);
    }

    #[test]
    fn a_missed_target_is_said() {
        let raw = |mbit| RawLink {
            link: "one".to_owned(),
            congestion_control: "cubic".to_owned(),
            mbit: Ways { download: mbit, upload: mbit },
            wire: Ways::default(),
        };
        let single = |mbit| Single {
            mbit,
            longest_pause_ms: 0.0,
            wire: Wire::default(),
            link_bytes: Vec::new(),
            timeline: Timeline::default(),
        };
        let run = SharingRun {
            raw: vec![raw(20.0), raw(20.0)],
            single: Ways { download: single(38.0), upload: single(20.0) },
            together: Together {
                mbit: vec![19.0, 19.0],
                link_bytes: Vec::new(),
                timeline: Timeline::default(),
            },
            lender: Lender {
                mbit: 18.0,
                share_of_own: 0.9,
                borrower_before_mbit: 38.0,
                borrower_after_mbit: 20.0,
                link_bytes: Vec::new(),
                timeline: Timeline::default(),
            },
            emulator: Health { p50_us: 10.0, p99_us: 100.0, max_us: 200.0, overrun_packets: 0 },
        };
        let missed: Vec<_> = run.targets().into_iter().filter(|target| !target.met).map(|t| t.name).collect();
        assert_eq!(missed, ["one upload / sum"]);
        let json = serde_json::to_value(&run).unwrap();
        assert_eq!(json["targets"].as_array().unwrap().len(), 6);
        let mut text = String::new();
        run.write(&mut text).unwrap();
        assert_eq!(text.matches("MISSED").count(), 1, "{text}");
    }
}
