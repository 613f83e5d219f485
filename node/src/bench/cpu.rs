//! What the nodes cost when no link is the bottleneck: one encrypted TCP flow over plain pairs of interfaces, beside
//! the same flow without a tunnel and through OpenVPN, and what the tunnel adds to an idle round trip.

use std::fmt::Write;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mwb_sim::lab::Host;
use serde::Serialize;

use super::CUT;
use super::idle::{Cost, Reading};
use super::openvpn::OpenVpn;
use super::report::{Figure, Measured, both, mbit_row, median, row};
use super::stage::Stage;
use super::timeline::Timeline;
use super::ways::{Way, Ways};

/// What the kernel calls the feature by which one buffer leaves as many datagrams.
const SEGMENTATION: &str = "tx-udp-segmentation";
/// Round trips of each kind, of which the median counts.
const PINGS: usize = 1000;
const PING_BYTES: usize = 100;
/// Between two of them.
const PING_REST: Duration = Duration::from_millis(3);
/// A lost one is no figure.
const PING_PATIENCE: Duration = Duration::from_secs(1);

/// One run.
#[derive(Debug, Serialize)]
pub(super) struct CpuRun {
    /// TCP over one pair of interfaces.
    raw_mbit: Ways<f64>,
    /// Through edge and exit.
    tunnel: Load,
    /// The same with datagrams segmented by the kernel before they reach the interfaces.
    tunnel_without_segmentation: Load,
    /// Through OpenVPN between the same hosts.
    openvpn: Option<Load>,
    /// Why not, if so.
    openvpn_skipped: Option<String>,
    ping: Ping,
}

/// A flow each way, and what the two programs took meanwhile.
#[derive(Debug, Serialize)]
struct Load {
    mbit: Ways<f64>,
    /// User and system time in per cent of one core.
    edge_cpu_percent: Ways<f64>,
    exit_cpu_percent: Ways<f64>,
}

/// Median round trips of lone UDP packets without other traffic, taken by turns.
#[derive(Debug, Serialize)]
struct Ping {
    count: usize,
    raw_us: f64,
    tunnel_us: f64,
    added_us: f64,
}

/// Measures everything once.
///
/// # Errors
/// When a flow or a node fails.
pub(super) fn run(stage: &Stage<'_>) -> anyhow::Result<CpuRun> {
    let link = stage.profile().links.first().context("no link")?;
    let (edge, device) = stage.device(&link.name)?;
    let spec = stage.flow(stage.settings().length).device(&device);
    let raw = Ways::try_of(|way| {
        stage.measured(&format!("one pair of interfaces, {}", way.name()), &edge, &spec, way, None)
    })?;
    let (openvpn, openvpn_skipped) = match openvpn(stage) {
        Ok(load) => (Some(load), None),
        Err(error) => {
            let why = format!("{error:#}");
            stage.say(&format!("SKIPPED: OpenVPN: {why}"));
            (None, Some(why))
        }
    };
    let mesh = stage.mesh(None)?;
    let pids = (mesh.pid("edge")?, mesh.pid("exit")?);
    let ping = ping(stage, &edge, &device)?;
    segmentation(stage, true)?;
    let tunnel = load(stage, "tunnel", pids)?;
    segmentation(stage, false)?;
    let tunnel_without_segmentation = load(stage, "tunnel without segmentation offload", pids)?;
    mesh.stop()?;
    let raw_mbit = raw.map(|run| run.result.goodput_mbit(CUT));
    Ok(CpuRun { raw_mbit, tunnel, tunnel_without_segmentation, openvpn, openvpn_skipped, ping })
}

fn openvpn(stage: &Stage<'_>) -> anyhow::Result<Load> {
    let vpn = OpenVpn::start(stage.lab(), stage.server().ip())?;
    load(stage, "OpenVPN", vpn.pids())
}

/// A flow each way, while the processes with these ids do the work.
fn load(stage: &Stage<'_>, name: &str, (edge_pid, exit_pid): (u32, u32)) -> anyhow::Result<Load> {
    let edge = stage.lab().host("edge");
    let spec = stage.flow(stage.settings().length);
    let read = || -> anyhow::Result<_> { Ok([Reading::of(edge_pid)?, Reading::of(exit_pid)?]) };
    let runs = Ways::try_of(|way: Way| {
        let before = read()?;
        let run = stage.measured(&format!("{name}, {}", way.name()), &edge, &spec, way, None)?;
        let after = read()?;
        let cost = |at: usize| Cost::between(&before[at], &after[at]).cpu_percent;
        Ok((run.result.goodput_mbit(CUT), cost(0), cost(1)))
    })?;
    Ok(Load {
        mbit: runs.map(|run| run.0),
        edge_cpu_percent: runs.map(|run| run.1),
        exit_cpu_percent: runs.map(|run| run.2),
    })
}

/// Switches the segmentation of all interfaces between edge and exit.
fn segmentation(stage: &Stage<'_>, on: bool) -> anyhow::Result<()> {
    let (edge, exit, internet) =
        (stage.lab().host("edge"), stage.lab().host("exit"), stage.lab().host("internet"));
    exit.set_feature("eth0", SEGMENTATION, on)?;
    internet.set_feature("exit", SEGMENTATION, on)?;
    for (uplink, number) in edge.uplinks().iter().zip(0..) {
        edge.set_feature(&uplink.interface, SEGMENTATION, on)?;
        internet.set_feature(&format!("wan{number}"), SEGMENTATION, on)?;
    }
    Ok(())
}

/// Round trips by turns past the tunnel, over `device`, and through it.
fn ping(stage: &Stage<'_>, edge: &Host, device: &str) -> anyhow::Result<Ping> {
    stage.say("idle round trips");
    let (server, device) = (stage.server(), device.to_owned());
    let times = edge.run(move || -> anyhow::Result<[Vec<f64>; 2]> {
        let sockets = [UdpSocket::bind("0.0.0.0:0")?, UdpSocket::bind("0.0.0.0:0")?];
        socket2::SockRef::from(&sockets[0]).bind_device(Some(device.as_bytes()))?;
        for socket in &sockets {
            socket.connect(server)?;
            socket.set_read_timeout(Some(PING_PATIENCE))?;
        }
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..PINGS {
            for (socket, times) in sockets.iter().zip(&mut times) {
                let (mut buffer, start) = ([0; 2 * PING_BYTES], Instant::now());
                socket.send(&[0; PING_BYTES])?;
                // A lost one is left out; its answer would spoil the next.
                if socket.recv(&mut buffer).is_ok() {
                    times.push(start.elapsed().as_secs_f64() * 1e6);
                }
                std::thread::sleep(PING_REST);
            }
        }
        Ok(times)
    })?;
    let count = times.iter().map(Vec::len).min().unwrap_or(0);
    ensure!(count * 10 >= PINGS * 9, "only {count} of {PINGS} idle round trips came to an end");
    let [raw_us, tunnel_us] = times.map(median);
    Ok(Ping { count, raw_us, tunnel_us, added_us: tunnel_us - raw_us })
}

impl Load {
    fn write(&self, out: &mut String, label: &str) -> std::fmt::Result {
        mbit_row(out, label, self.mbit)?;
        row(out, "  % of a core, edge", self.edge_cpu_percent.map(|cpu| format!("{cpu:.0}")))?;
        row(out, "  % of a core, exit", self.exit_cpu_percent.map(|cpu| format!("{cpu:.0}")))
    }
}

impl Measured for CpuRun {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        row(out, "one TCP flow, Mbit/s", Ways { download: "download", upload: "upload" })?;
        mbit_row(out, "one pair of interfaces", self.raw_mbit)?;
        self.tunnel.write(out, "tunnel")?;
        self.tunnel_without_segmentation.write(out, "without UDP segmentation")?;
        match (&self.openvpn, &self.openvpn_skipped) {
            (Some(openvpn), _) => openvpn.write(out, "OpenVPN")?,
            (None, why) => writeln!(out, "  OpenVPN: SKIPPED, {}", why.as_deref().unwrap_or_default())?,
        }
        let Ping { count, raw_us, tunnel_us, added_us } = self.ping;
        writeln!(
            out,
            "  idle round trip, median of {count}: {raw_us:.0} us past the tunnel, {tunnel_us:.0} us through it: \
             {added_us:.0} us more"
        )
    }

    fn timelines(&self) -> Vec<&Timeline> {
        Vec::new()
    }

    fn figures(&self) -> Vec<Figure> {
        let mut figures = both("tunnel / raw", self.tunnel.mbit.over(self.raw_mbit));
        if let Some(openvpn) = &self.openvpn {
            figures.extend(both("tunnel / OpenVPN", self.tunnel.mbit.over(openvpn.mbit)));
            let without = self.tunnel_without_segmentation.mbit;
            figures.extend(both("tunnel without segmentation / OpenVPN", without.over(openvpn.mbit)));
        }
        figures.push(("idle round trip, us more".to_owned(), self.ping.added_us));
        figures
    }
}
