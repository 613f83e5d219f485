//! The kernel's Multipath TCP over the same raw links, as the rival in the same run.
//!
//! The initial subflow leaves by the edge's first uplink; every other uplink is an endpoint of the path manager,
//! bound to its interface. The server needs no endpoints: its one address is reachable over each uplink.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, bail};
use mwb_sim::lab::Host;
use mwb_sim::traffic::{FlowSpec, Server, Transport, server_of};
use serde::Serialize;

use super::CUT;
use super::report::{Echo, RawLink, Wire, mbit_row, pause_row, ratio_row, row, sum, wire_rows};
use super::stage::Stage;
use super::ways::Ways;

const PORT: u16 = 7001;
/// As many as the kernel's path manager allows.
const SUBFLOWS: &str = "8";
/// What counts as equally fast.
const ABOUT: f64 = 0.9;

/// What Multipath TCP reached.
#[derive(Debug, Serialize)]
pub(super) struct Mptcp {
    /// Why there are no figures, if so.
    pub(super) skipped: Option<String>,
    /// The link that carried the echo: the best alone.
    pub(super) echo_link: String,
    /// One entry for each congestion control.
    pub(super) flows: Vec<MptcpFlows>,
}

/// One connection each way.
#[derive(Debug, Serialize)]
pub(super) struct MptcpFlows {
    /// Read back from the sending socket.
    pub(super) congestion_control: String,
    pub(super) mbit: Ways<f64>,
    /// Over the sum of the raw links.
    pub(super) ratio: Ways<f64>,
    /// Longest time without a delivery to the reader, after the cut; zero when none reached 50 ms.
    pub(super) longest_pause_ms: Ways<f64>,
    /// At the end, read back from the sending socket.
    pub(super) subflows: Ways<u32>,
    pub(super) wire: Ways<Wire>,
    /// Round trips of small UDP packets over the best raw link meanwhile.
    pub(super) echo: Ways<Echo>,
}

/// Measures both ways, with CUBIC, and also with BBR where that is the reference of a link.
pub(super) fn measure(stage: &Stage<'_>, raw: &[RawLink]) -> Mptcp {
    let rates = stage.profile().links.iter().zip(raw).map(|(link, raw)| (link.rtt_ms, raw.mbit.download));
    let best = best(&rates.collect::<Vec<_>>()).and_then(|index| raw.get(index));
    let mut result = Mptcp {
        skipped: None,
        echo_link: best.map(|raw| raw.link.clone()).unwrap_or_default(),
        flows: vec![],
    };
    if let Err(error) = all(stage, raw, &mut result) {
        let why = format!("{error:#}");
        stage.say(&format!("SKIPPED: kernel MPTCP: {why}"));
        result.skipped = Some(why);
    }
    result
}

/// Where a call would go: of the links (round trip, Mbit/s) that carry about as much as the fastest, the nearest.
fn best(links: &[(u64, f64)]) -> Option<usize> {
    let most = links.iter().map(|(_, mbit)| *mbit).fold(0.0, f64::max);
    let fast = links.iter().enumerate().filter(|(_, (_, mbit))| *mbit >= ABOUT * most);
    fast.min_by_key(|(_, (rtt, _))| *rtt).map(|(index, _)| index)
}

fn all(stage: &Stage<'_>, raw: &[RawLink], result: &mut Mptcp) -> anyhow::Result<()> {
    let server = prepare(stage)?;
    let mut controls = vec![stage.settings().congestion_control.as_str()];
    if raw.iter().any(|raw| raw.congestion_control == "bbr") && !controls.contains(&"bbr") {
        controls.push("bbr");
    }
    for control in controls {
        let spec = spec(stage, &server).congestion_control(control);
        result.flows.push(both_ways(stage, raw, &result.echo_link, &spec)?);
    }
    Ok(())
}

/// Sets the kernel's path managers up, and starts a server for Multipath TCP.
///
/// # Errors
/// When the kernel or the program `ip` lacks it.
pub(super) fn prepare(stage: &Stage<'_>) -> anyhow::Result<Server> {
    let (edge, host) = (stage.lab().host("edge"), stage.lab().host("server"));
    for host in [&edge, &host] {
        // A cut link must not teach the kernel to do without; each namespace has its own settings.
        for (key, value) in [("enabled", "1"), ("blackhole_timeout", "0")] {
            let path = format!("/proc/sys/net/mptcp/{key}");
            let wrote = host.run({
                let path = path.clone();
                move || std::fs::write(path, value)
            });
            match wrote {
                // Kernels before 6.12 have no time-out and never do without.
                Err(_) if key == "blackhole_timeout" => {}
                wrote => wrote.with_context(|| format!("writing {path}: a kernel without Multipath TCP?"))?,
            }
        }
        ip(host, &["limits", "set", "subflow", SUBFLOWS, "add_addr_accepted", SUBFLOWS])?;
    }
    for uplink in edge.uplinks().iter().skip(1) {
        let address = uplink.address.to_string();
        ip(&edge, &["endpoint", "add", &address, "dev", &uplink.interface, "subflow"])?;
    }
    let address = SocketAddr::new(host.address(), PORT);
    host.run(move || server_of(Transport::Mptcp, address)).context("opening a Multipath TCP socket")
}

/// A flow to that server.
pub(super) fn spec(stage: &Stage<'_>, server: &Server) -> FlowSpec {
    let spec = stage.flow(stage.settings().length).transport(Transport::Mptcp);
    FlowSpec { server: server.address(), ..spec }
}

fn ip(host: &Host, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.arg("mptcp").args(args);
    let output = host.output(command).context("running ip, of the package iproute2")?;
    if !output.status.success() {
        bail!("ip mptcp {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn both_ways(
    stage: &Stage<'_>,
    raw: &[RawLink],
    echo_link: &str,
    spec: &FlowSpec,
) -> anyhow::Result<MptcpFlows> {
    let (edge, device) = stage.device(echo_link)?;
    let runs = Ways::try_of(|way| {
        let control = spec.congestion_control.as_deref().unwrap_or("default");
        let title = format!("kernel MPTCP, {} ({control})", way.name());
        let run = stage.measured(&title, &edge, spec, way, Some(&stage.echo().device(&device)))?;
        let subflows = run.result.sender.subflows.context("the connection fell back to plain TCP")?;
        if subflows as usize != raw.len() {
            stage.say(&format!("kernel MPTCP used {subflows} of {} links at the end", raw.len()));
        }
        Ok((run, subflows))
    })?;
    let mbit = runs.map(|(run, _)| run.result.goodput_mbit(CUT));
    Ok(MptcpFlows {
        congestion_control: runs.download.0.result.congestion_control().to_owned(),
        mbit,
        ratio: mbit.over(sum(raw)),
        longest_pause_ms: runs.map(|(run, _)| run.result.longest_gap_ms_after(CUT)),
        subflows: runs.map(|(_, subflows)| *subflows),
        wire: runs.map(|(run, _)| run.wire),
        echo: Ways::try_of(|way| runs.of(way).0.echo())?,
    })
}

impl Mptcp {
    /// For people.
    pub(super) fn write(&self, out: &mut String) -> std::fmt::Result {
        use std::fmt::Write;
        if let Some(why) = &self.skipped {
            writeln!(out, "  kernel MPTCP: SKIPPED, {why}")?;
        }
        for flows in &self.flows {
            let label = format!("kernel MPTCP ({})", flows.congestion_control);
            mbit_row(out, &label, flows.mbit)?;
            ratio_row(out, "MPTCP / sum", flows.ratio)?;
            pause_row(out, flows.longest_pause_ms)?;
            row(out, "subflows", flows.subflows)?;
            wire_rows(out, flows.wire)?;
        }
        Ok(())
    }

    /// The echo beside it, for people.
    pub(super) fn write_echo(&self, out: &mut String) -> std::fmt::Result {
        for flows in &self.flows {
            let label = |way: &str| format!("{}, MPTCP ({}) {way}", self.echo_link, flows.congestion_control);
            flows.echo.download.write(out, &label("down"))?;
            flows.echo.upload.write(out, &label("up"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_equal_links_is_the_nearest() {
        assert_eq!(best(&[(150, 12.3), (10, 11.6), (5, 2.0)]), Some(1));
        assert_eq!(best(&[(10, 20.0), (80, 50.0)]), Some(1));
        assert_eq!(best(&[]), None);
    }
}
