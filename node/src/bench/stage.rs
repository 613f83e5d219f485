//! The lab of one run, and what every kind of run measures in it in the same way.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use mwb_proto::bond::RoutingMode;
use mwb_sim::lab::{Host, Lab};
use mwb_sim::traffic::{EchoSpec, FlowResult, FlowSpec, Server, server, udp_echo};
use mwb_sim::wan::{EmulatorControl, LinkCounters};

use super::CUT;
use super::profile::{Kind, Link, Profile};
use super::report::{Echo, Health, LinkBytes, RawLink, Transfer, Wire};
use super::timeline::{Sampler, Timeline};
use super::ways::{Way, Ways};
use crate::lab_mesh::{Mesh, MeshOptions};

/// Where the test server listens.
pub(super) const PORT: u16 = 7000;
/// How long what is under way at the end of a flow may take to arrive: a full send buffer over 1 Mbit/s.
const PATIENCE: Duration = Duration::from_secs(60);
/// Echoes per second and their UDP payload: a game's or a call's.
const ECHO_RATE: f64 = 20.0;
const ECHO_BYTES: usize = 100;
/// What IPv4 and UDP add to it.
const ECHO_HEADERS: u64 = 28;

/// How to measure.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// Routing mode of all nodes, if one was asked for.
    pub(super) mode: Option<RoutingMode>,
    /// Length of each transfer.
    pub(super) length: Duration,
    /// Congestion control of flows, unless a raw link needs another.
    pub(super) congestion_control: String,
    /// A folder for the nodes' traces and the start of their file names.
    pub(super) trace: Option<(PathBuf, String)>,
}

/// A lab that is ready to measure.
pub(super) struct Stage<'a> {
    profile: &'a Profile,
    settings: Settings,
    say: &'a dyn Fn(&str),
    // In this order they end.
    server: Server,
    lab: Lab,
}

impl<'a> Stage<'a> {
    /// The lab of `profile`, with a test server.
    ///
    /// # Errors
    /// When the system refuses something.
    pub(super) fn new(
        profile: &'a Profile,
        settings: Settings,
        say: &'a dyn Fn(&str),
    ) -> anyhow::Result<Self> {
        say("building the lab");
        let lab = profile.lab().context("building the lab")?;
        let host = lab.host("server");
        let address = SocketAddr::new(host.address(), PORT);
        let server = host.run(move || server(address)).context("starting the test server")?;
        Ok(Self { profile, settings, say, server, lab })
    }

    /// The links and what is asked of them.
    pub(super) fn profile(&self) -> &'a Profile {
        self.profile
    }

    /// How to measure.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Tells people what is going on.
    pub(super) fn say(&self, what: &str) {
        (self.say)(what);
    }

    /// The namespaces and the emulator.
    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Control of the emulated links.
    pub(super) fn emulator(&self) -> EmulatorControl {
        self.lab.emulator()
    }

    /// The test server.
    pub(super) fn server(&self) -> SocketAddr {
        self.server.address()
    }

    /// Starts the nodes, and counts the emulator's lateness from then on. With `only` the edges have no other uplinks
    /// than that of this link.
    ///
    /// # Errors
    /// When a node does not start or its paths do not come up.
    pub(super) fn mesh(&self, only: Option<&str>) -> anyhow::Result<Mesh> {
        self.say(&only.map_or("starting the nodes".to_owned(), |link| {
            format!("starting the nodes, over {link} alone")
        }));
        let options = MeshOptions { only: only.map(str::to_owned), ..self.options() };
        let mesh = Mesh::start(&self.lab, &options, &|| Ok(()))?;
        self.emulator().reset_lateness()?;
        Ok(mesh)
    }

    /// Starts the exit without any edge.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn exit_alone(&self) -> anyhow::Result<Mesh> {
        self.say("the exit without edges");
        Mesh::start(&self.lab, &MeshOptions { exit_alone: true, ..self.options() }, &|| Ok(()))
    }

    fn options(&self) -> MeshOptions {
        let links = &self.profile.links;
        MeshOptions {
            mode: self.settings.mode.unwrap_or_default(),
            weights: links.iter().map(|link| (link.name.clone(), link.weight)).collect(),
            trace: self.settings.trace.clone(),
            apart: matches!(self.profile.kind, Kind::Flood | Kind::Edges),
            optional: links.iter().filter(|link| link.optional).map(|link| link.name.clone()).collect(),
            ..MeshOptions::default()
        }
    }

    /// How well the emulator kept time since the nodes started.
    ///
    /// # Errors
    /// When the emulator has ended.
    pub(super) fn health(&self) -> anyhow::Result<Health> {
        let emulator = self.emulator();
        let lost = |link: &LinkCounters| -> u64 {
            [link.up, link.down].iter().map(|way| way.dropped_emulator + way.dropped_socket).sum()
        };
        let overrun_packets = emulator.all_counters()?.iter().map(|(_, link)| lost(link)).sum();
        if overrun_packets > 0 {
            self.say(&format!(
                "the emulator was overrun and lost {overrun_packets} packets: these figures do not count"
            ));
        }
        let lateness = emulator.lateness()?;
        let (p50_us, p99_us, max_us) = (lateness.p50_us, lateness.p99_us, lateness.max_us);
        Ok(Health { p50_us, p99_us, max_us, overrun_packets })
    }

    /// Each link alone, both ways, without a tunnel, from the host that has it.
    ///
    /// # Errors
    /// When a flow fails.
    pub(super) fn raw_links(&self) -> anyhow::Result<Vec<RawLink>> {
        self.profile.links.iter().map(|link| self.raw(link)).collect()
    }

    fn raw(&self, link: &Link) -> anyhow::Result<RawLink> {
        let (host, device) = self.device(&link.name)?;
        let control = if link.is_lossy() { "bbr" } else { &self.settings.congestion_control };
        let spec = self.flow(self.settings.length).congestion_control(control).device(&device);
        let runs = Ways::try_of(|way| {
            let title = format!("{} alone, {} ({control})", link.name, way.name());
            // Bursts of loss end after packets, not after a time: a TCP whose repeats are minutes apart by then may never get
            // out of one. That is the kernel's flow over the bare link, and no reason to measure everything anew.
            self.measured(&title, &host, &spec, way, None).or_else(|error| {
                self.say(&format!("{title} failed: {error:#}; once more"));
                self.measured(&title, &host, &spec, way, None)
            })
        })?;
        Ok(RawLink {
            link: link.name.clone(),
            congestion_control: runs.download.result.congestion_control().to_owned(),
            mbit: runs.map(|run| run.result.goodput_mbit(CUT)),
            wire: runs.map(|run| run.wire),
        })
    }

    /// One flow, and what the links carried for it; with `echo` also that, after the cut.
    ///
    /// # Errors
    /// When the flow fails.
    pub(super) fn measured(
        &self,
        title: &str,
        host: &Host,
        spec: &FlowSpec,
        way: Way,
        echo: Option<&EchoSpec>,
    ) -> anyhow::Result<FlowRun> {
        let spec = spec.clone();
        let ((result, echo), carried) = self.counted(title, || {
            let running = echo.cloned().map(|echo| {
                host.start(move || {
                    std::thread::sleep(CUT);
                    udp_echo(&echo)
                })
            });
            let result = host.run(move || way.flow(&spec));
            let echo = running.map(|running| running.join()).transpose()?;
            Ok((check(result?, way.name())?, echo))
        })?;
        let echo = echo.map(|echo| Echo::from(&echo));
        let echo_bytes = echo.map_or(0, |echo| echo.received * (ECHO_BYTES as u64 + ECHO_HEADERS));
        let wire = Wire::new(result.total_bytes, echo_bytes, &carried.links, way);
        Ok(FlowRun { result, echo, wire, carried })
    }

    /// The echo that runs beside a flow: as long as that, less the cut.
    pub(super) fn echo(&self) -> EchoSpec {
        self.echo_for(self.settings.length - CUT)
    }

    /// The same for another time.
    pub(super) fn echo_for(&self, length: Duration) -> EchoSpec {
        EchoSpec::new(self.server(), ECHO_RATE, ECHO_BYTES, length)
    }

    /// The host that has a link, and the interface it is behind.
    ///
    /// # Errors
    /// When the lab has no such link.
    pub(super) fn device(&self, link: &str) -> anyhow::Result<(Host, String)> {
        let found = self.lab.hosts().iter().find_map(|host| {
            let uplink = host.uplinks().iter().find(|uplink| uplink.link == link)?;
            Some((host.clone(), uplink.interface.clone()))
        });
        found.with_context(|| format!("the lab has no link {link}"))
    }

    /// Hosts with uplinks, in order.
    pub(super) fn edges(&self) -> Vec<Host> {
        self.lab.hosts().iter().filter(|host| !host.uplinks().is_empty()).cloned().collect()
    }

    /// Does something, tells people its title, and says what the links carried meanwhile. Traces begin with it.
    ///
    /// # Errors
    /// Those of `work`, or the emulator has ended.
    pub(super) fn counted<R>(
        &self,
        title: &str,
        work: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<(R, Carried)> {
        self.say(title);
        let emulator = self.emulator();
        emulator.restart_traces()?;
        let sampler = Sampler::start(title, self.emulator())?;
        let before = emulator.all_counters()?;
        let result = work()?;
        let after = emulator.all_counters()?;
        let links = before.iter().zip(&after).map(|((link, before), (_, after))| LinkBytes {
            link: link.clone(),
            bytes: Ways {
                download: after.down.bytes - before.down.bytes,
                upload: after.up.bytes - before.up.bytes,
            },
        });
        Ok((result, Carried { links: links.collect(), timeline: sampler.finish()? }))
    }

    /// A flow of this length to the test server.
    pub(super) fn flow(&self, length: Duration) -> FlowSpec {
        FlowSpec::seconds(self.server(), length.as_secs())
            .patience(PATIENCE)
            .congestion_control(&self.settings.congestion_control)
    }
}

/// What the links delivered while something ran.
pub(super) struct Carried {
    /// In all.
    pub(super) links: Vec<LinkBytes>,
    /// Over time.
    pub(super) timeline: Timeline,
}

/// A flow that ended well.
pub(super) struct FlowRun {
    pub(super) result: FlowResult,
    /// Of the echo beside it, if there was one.
    pub(super) echo: Option<Echo>,
    pub(super) wire: Wire,
    pub(super) carried: Carried,
}

/// A flow that did not end well, or not with the congestion control that was asked for, is no figure.
///
/// # Errors
/// Those.
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

impl FlowRun {
    /// What is reported of it.
    pub(super) fn transfer(&self) -> Transfer {
        Transfer {
            mbit: self.result.goodput_mbit(CUT),
            congestion_control: self.result.congestion_control().to_owned(),
            longest_pause_ms: self.result.longest_gap_ms_after(CUT),
            retransmits: u64::from(self.result.retransmits()),
            wire: self.wire,
        }
    }

    /// The echo beside it.
    ///
    /// # Errors
    /// When there was none.
    pub(super) fn echo(&self) -> anyhow::Result<Echo> {
        self.echo.context("no echo ran beside the flow")
    }
}
