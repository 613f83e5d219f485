//! What came of a demo: one JSON object for programs, a few lines for people.

use std::fmt::Write;

use serde::Serialize;

/// Rates are Mbit/s of payload that reached the program in order, unless said otherwise.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Version of the program.
    pub(super) version: &'static str,
    /// Length of the download over the bond.
    pub(super) seconds: u64,
    /// The fastest uplink alone, without a tunnel.
    pub(super) best_link_mbit: f64,
    /// All uplinks, each alone, summed up.
    pub(super) sum_mbit: f64,
    /// One TCP download over the bond while all uplinks were up, the first seconds left out.
    pub(super) bond_mbit: f64,
    /// `bond_mbit` over `sum_mbit`.
    pub(super) bond_over_sum: f64,
    /// The uplink that was cut during the download.
    pub(super) cut_link: &'static str,
    /// The same download while that uplink was cut.
    pub(super) cut_mbit: f64,
    /// The longest time in which the downloading program got nothing, the cut included.
    pub(super) longest_pause_ms: f64,
    /// Whether every byte of the download came, and was the right one.
    pub(super) complete: bool,
    /// In the order of the picture.
    pub(super) links: Vec<LinkReport>,
    /// 99th percentile of how late the emulator released packets.
    pub(super) emulator_lateness_p99_us: f64,
    /// Packets that the emulator lost because this machine was too slow; not zero: the figures do not count.
    pub(super) emulator_overrun_packets: u64,
}

/// One uplink.
#[derive(Debug, Serialize)]
pub(super) struct LinkReport {
    /// Its name.
    pub(super) name: &'static str,
    /// The host that has it.
    pub(super) host: String,
    /// What the emulator lets through, IP packets with their headers.
    pub(super) mbit: f64,
    /// Emulated round trip time without any queue.
    pub(super) rtt_ms: u64,
    /// One TCP download over it alone, without a tunnel.
    pub(super) alone_mbit: f64,
    /// IP bytes that the emulator delivered over it, downwards, during the download over the bond.
    pub(super) bond_bytes: u64,
}

impl Report {
    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let best = self.links.iter().max_by(|a, b| a.alone_mbit.total_cmp(&b.alone_mbit));
        let best = best.map_or("", |link| link.name);
        let times_best = self.bond_mbit / self.best_link_mbit;
        let others: f64 =
            self.links.iter().filter(|link| link.name != self.cut_link).map(|link| link.alone_mbit).sum();
        let cut = format!("while {} was cut", self.cut_link);
        let mut rate = |label: &str, mbit: f64, remark: &str| {
            writeln!(out, "{}", format!("  {label:<27}{mbit:>6.1} Mbit/s  {remark}").trim_end())
        };
        rate("best uplink alone", self.best_link_mbit, best)?;
        rate("all uplinks, each alone", self.sum_mbit, "")?;
        let remark = format!("{:.3} of that sum, {times_best:.1} x the best", self.bond_over_sum);
        rate("one download over the bond", self.bond_mbit, &remark)?;
        rate(&cut, self.cut_mbit, &format!("{:.3} of the others", self.cut_mbit / others))?;
        writeln!(out, "  {:<27}{:>6.0} ms", "longest pause it saw", self.longest_pause_ms)?;
        let all: u64 = self.links.iter().map(|link| link.bond_bytes).sum();
        let shares: Vec<String> = self
            .links
            .iter()
            .map(|link| format!("{} {:.1}", link.name, link.bond_bytes as f64 / 1e6))
            .collect();
        let total = all as f64 / 1e6;
        writeln!(out, "  {:<27}{total:>6.1} MB      {}", "carried by the uplinks", shares.join(", "))?;
        if !self.complete {
            writeln!(out, "  the download was NOT complete, or had wrong bytes")?;
        }
        if self.emulator_overrun_packets > 0 {
            writeln!(
                out,
                "  this machine was too busy: the emulator lost {} packets itself, so these figures do not count",
                self.emulator_overrun_packets
            )?;
        }
        Ok(())
    }
}
