//! One run: raw links, then the bond over them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use mwb_proto::bond::RoutingMode;
use mwb_sim::lab::{Host, Lab};
use mwb_sim::traffic::{
    EchoResult, EchoSpec, FlowResult, FlowSpec, Server, TrafficError, download, server, udp_echo, upload,
};
use mwb_sim::wan::{LinkCounters, LinkSpec};

use super::profile::{Link, Profile};
use super::report::{Echo, Lateness, LinkBytes, RawLink, Run, Transfer, Ways};
use super::{CUT, overhead};
use crate::lab_mesh::{Mesh, MeshOptions};

/// Where the test server listens.
pub(super) const PORT: u16 = 7000;
/// Echoes per second and their UDP payload: a game's or a call's.
const ECHO_RATE: f64 = 20.0;
const ECHO_BYTES: usize = 100;
/// Length of the echo without other traffic.
const ECHO_IDLE: Duration = Duration::from_secs(5);

/// The load whose spread is measured: more than any link of `uneven` carries, less than all do.
const LOAD: f64 = 0.7;
const LOAD_FLOWS: usize = 4;
const LOAD_BYTES: usize = 1200;
/// Until the shares have settled, and for how long they are counted.
const LOAD_SETTLE: Duration = Duration::from_secs(3);
const LOAD_COUNTED: Duration = Duration::from_secs(5);

pub(super) type Flow = fn(&FlowSpec) -> Result<FlowResult, TrafficError>;

/// A lab that is ready to measure.
pub(super) struct Bench<'a> {
    profile: &'a Profile,
    mode: Option<RoutingMode>,
    length: Duration,
    say: &'a dyn Fn(&str),
    lab: Lab,
    edge: Host,
    server: Server,
}

impl<'a> Bench<'a> {
    /// Builds the lab of `profile`.
    ///
    /// # Errors
    /// When the system refuses something.
    pub(super) fn new(
        profile: &'a Profile,
        mode: Option<RoutingMode>,
        length: Duration,
        say: &'a dyn Fn(&str),
    ) -> anyhow::Result<Self> {
        say("building the lab");
        let links: Vec<LinkSpec> = profile.links.iter().map(Link::spec).collect();
        let lab = Lab::edge_exit(&links).context("building the lab")?;
        let host = lab.host("server");
        let address = SocketAddr::new(host.address(), PORT);
        let server = host.run(move || server(address)).context("starting the test server")?;
        let edge = lab.host("edge");
        Ok(Self { profile, mode, length, say, lab, edge, server })
    }

    /// Measures everything once.
    ///
    /// # Errors
    /// When a flow or a node fails.
    pub(super) fn run(self, trace: Option<(&Path, String)>) -> anyhow::Result<Run> {
        let mut raw = Vec::new();
        for link in &self.profile.links {
            raw.push(self.raw(link)?);
        }
        let raw_sum = Ways {
            download: raw.iter().map(|raw| raw.mbit.download).sum(),
            upload: raw.iter().map(|raw| raw.mbit.upload).sum(),
        };
        (self.say)("starting the nodes");
        let options = MeshOptions {
            mode: self.mode.unwrap_or_default(),
            weights: self.profile.links.iter().map(|link| (link.name.clone(), link.weight)).collect(),
            trace: trace.map(|(dir, prefix)| (dir.to_owned(), prefix)),
        };
        let mesh = Mesh::start(&self.lab, &options, &|| Ok(()))?;
        let emulator = self.lab.emulator();
        emulator.reset_lateness()?;

        (self.say)("a lone packet's overhead, and the echo without traffic");
        let wire_overhead = overhead::measure(&self.edge, &emulator, self.server.address())?;
        let echo = EchoSpec::new(self.server.address(), ECHO_RATE, ECHO_BYTES, ECHO_IDLE);
        let echo_idle = self.edge.run(move || udp_echo(&echo)).map(|result| summary(&result))?;

        let before = emulator.all_counters()?;
        let (down, echo_down) = self.bonded("download", download)?;
        let between = emulator.all_counters()?;
        let (up, echo_up) = self.bonded("upload", upload)?;
        let after = emulator.all_counters()?;
        let spread = self.mode.map(|_| self.spread()).transpose()?;
        let lateness = emulator.lateness()?;
        let overrun: u64 = emulator.all_counters()?.iter().map(|(_, link)| lost_by_emulator(link)).sum();
        if overrun > 0 {
            (self.say)(&format!(
                "the emulator was overrun and lost {overrun} packets: these figures do not count"
            ));
        }
        mesh.stop()?;

        let link_bytes =
            before.iter().zip(&between).zip(&after).map(|(((link, before), (_, between)), (_, after))| {
                let bytes = Ways {
                    download: between.down.bytes - before.down.bytes,
                    upload: after.up.bytes - between.up.bytes,
                };
                LinkBytes { link: link.clone(), bytes }
            });
        let ratio = Ways { download: down.mbit / raw_sum.download, upload: up.mbit / raw_sum.upload };
        Ok(Run {
            raw,
            raw_sum,
            bond: Ways { download: down, upload: up },
            ratio,
            echo_idle,
            echo_loaded: Ways { download: echo_down, upload: echo_up },
            link_bytes: link_bytes.collect(),
            spread,
            wire_overhead,
            emulator_lateness_us: Lateness {
                p50: lateness.p50_us,
                p99: lateness.p99_us,
                max: lateness.max_us,
            },
            emulator_overrun_packets: overrun,
        })
    }

    /// One link alone, both ways, without a tunnel.
    fn raw(&self, link: &Link) -> anyhow::Result<RawLink> {
        let uplink = self.edge.uplinks().iter().find(|uplink| uplink.link == link.name);
        let device = uplink.with_context(|| format!("the lab has no link {}", link.name))?.interface.clone();
        let congestion_control = if link.is_lossy() { "bbr" } else { "cubic" };
        let one = |name: &str, flow: Flow| -> anyhow::Result<FlowResult> {
            (self.say)(&format!("{} alone, {name} ({congestion_control})", link.name));
            let spec = self.flow().congestion_control(congestion_control).device(&device);
            check(self.edge.run(move || flow(&spec))?, name)
        };
        let (down, up) = (one("download", download)?, one("upload", upload)?);
        Ok(RawLink {
            link: link.name.clone(),
            congestion_control: down.congestion_control().to_owned(),
            mbit: Ways { download: down.goodput_mbit(CUT), upload: up.goodput_mbit(CUT) },
        })
    }

    /// One flow through the bond, and after the cut the echo beside it.
    fn bonded(&self, name: &str, flow: Flow) -> anyhow::Result<(Transfer, Echo)> {
        (self.say)(&format!("bond, {name} (cubic)"));
        let spec = self.flow();
        let echo = EchoSpec::new(self.server.address(), ECHO_RATE, ECHO_BYTES, self.length - CUT);
        let running = self.edge.start(move || {
            std::thread::sleep(CUT);
            udp_echo(&echo)
        });
        let result = self.edge.run(move || flow(&spec));
        let echo = running.join()?;
        let result = check(result?, name)?;
        let transfer = Transfer {
            mbit: result.goodput_mbit(CUT),
            congestion_control: result.congestion_control().to_owned(),
            longest_pause_ms: result.longest_gap_ms_after(CUT),
            retransmits: u64::from(result.retransmits()),
        };
        Ok((transfer, summary(&echo)))
    }

    /// How the bond spreads an echo that takes a part of what the links can carry both ways, in four flows.
    fn spread(&self) -> anyhow::Result<Vec<LinkBytes>> {
        let mbit = LOAD * self.profile.links.iter().map(|link| link.mbit).sum::<f64>();
        (self.say)(&format!("spread of {mbit:.1} Mbit/s"));
        let rate = mbit * 1e6 / 8.0 / LOAD_BYTES as f64 / LOAD_FLOWS as f64;
        let emulator = self.lab.emulator();
        let spec = EchoSpec::new(self.server.address(), rate, LOAD_BYTES, LOAD_SETTLE + LOAD_COUNTED);
        let running: Vec<_> = (0..LOAD_FLOWS)
            .map(|_| {
                let spec = spec.clone();
                self.edge.start(move || udp_echo(&spec))
            })
            .collect();
        std::thread::sleep(LOAD_SETTLE);
        let before = emulator.all_counters()?;
        std::thread::sleep(LOAD_COUNTED);
        let after = emulator.all_counters()?;
        for flow in running {
            flow.join()?;
        }
        let bytes = before.iter().zip(&after).map(|((link, before), (_, after))| LinkBytes {
            link: link.clone(),
            bytes: Ways {
                download: after.down.bytes - before.down.bytes,
                upload: after.up.bytes - before.up.bytes,
            },
        });
        Ok(bytes.collect())
    }

    fn flow(&self) -> FlowSpec {
        FlowSpec::seconds(self.server.address(), self.length.as_secs())
    }
}

/// A flow that did not end well, or not with the congestion control that was asked for, is no figure.
pub(super) fn check(result: FlowResult, name: &str) -> anyhow::Result<FlowResult> {
    if let Some(failure) = &result.failure {
        bail!("the {name} failed: {failure}");
    }
    if let Some(refused) = &result.sender.congestion_control_refused {
        bail!(
            "the kernel refused a congestion control ({refused}); load its module: modprobe tcp_bbr tcp_cubic"
        );
    }
    if !result.complete() {
        bail!("the {name} delivered {} of {} bytes, or wrong ones", result.total_bytes, result.sender.bytes);
    }
    Ok(result)
}

fn summary(result: &EchoResult) -> Echo {
    Echo {
        sent: result.sent,
        received: result.received,
        p50_ms: result.p50_ms,
        p95_ms: result.p95_ms,
        p99_ms: result.p99_ms,
        max_ms: result.max_ms,
    }
}

pub(super) fn lost_by_emulator(link: &LinkCounters) -> u64 {
    [link.up, link.down].iter().map(|way| way.dropped_emulator + way.dropped_socket).sum()
}
