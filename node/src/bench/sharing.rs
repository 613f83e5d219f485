//! One run of a LAN whose hosts lend each other their uplinks: each uplink alone, then what one host, all hosts at
//! once, and a lender beside a borrower get.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use mwb_proto::bond::RoutingMode;
use mwb_sim::lab::{Host, Lab, Running};
use mwb_sim::traffic::{FlowResult, FlowSpec, Server, TrafficError, download, server, upload};
use mwb_sim::wan::LinkSpec;

use super::CUT;
use super::measure::{Flow, PORT, check, lost_by_emulator};
use super::profile::{Link, Profile};
use super::report::{LinkBytes, RawLink, Ways};
use super::sharing_report::{Lender, SharingRun, Single, Together};
use crate::lab_mesh::{Mesh, MeshOptions};

/// How long the borrower has all uplinks before the lender starts.
const BORROWER_FIRST: Duration = Duration::from_secs(5);
/// After this a lender has its own uplink back.
const LENDER_WAITS: Duration = Duration::from_secs(2);
/// Which host borrows and which of its lenders starts a download.
const BORROWER: usize = 0;
const LENDER: usize = 1;

/// A lab that is ready to measure.
pub(super) struct Sharing<'a> {
    profile: &'a Profile,
    mode: Option<RoutingMode>,
    length: Duration,
    say: &'a dyn Fn(&str),
    // In this order they end.
    server: Server,
    hosts: Vec<Host>,
    lab: Lab,
}

impl<'a> Sharing<'a> {
    /// Builds the lab of `profile`: a host per link.
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
        let links: Vec<Vec<LinkSpec>> = profile.links.iter().map(|link| vec![link.spec()]).collect();
        let lab = Lab::lan(&links).context("building the lab")?;
        let host = lab.host("server");
        let address = SocketAddr::new(host.address(), PORT);
        let server = host.run(move || server(address)).context("starting the test server")?;
        let hosts = lab.hosts().iter().filter(|host| !host.uplinks().is_empty()).cloned().collect();
        Ok(Self { profile, mode, length, say, server, hosts, lab })
    }

    /// Measures everything once.
    ///
    /// # Errors
    /// When a flow or a node fails.
    pub(super) fn run(self, trace: Option<(&Path, String)>) -> anyhow::Result<SharingRun> {
        let mut raw = Vec::new();
        for (host, link) in self.hosts.iter().zip(&self.profile.links) {
            raw.push(self.raw(host, link)?);
        }
        (self.say)("starting the nodes");
        let options = MeshOptions {
            mode: self.mode.unwrap_or_default(),
            weights: self.profile.links.iter().map(|link| (link.name.clone(), link.weight)).collect(),
            trace: trace.map(|(dir, prefix)| (dir.to_owned(), prefix)),
        };
        let mesh = Mesh::start(&self.lab, &options, &|| Ok(()))?;
        let emulator = self.lab.emulator();
        emulator.reset_lateness()?;
        let single =
            Ways { download: self.single("download", download)?, upload: self.single("upload", upload)? };
        let together = self.together()?;
        let lender = self.lender(raw[LENDER].mbit.download)?;
        let lateness = emulator.lateness()?;
        let overrun = emulator.all_counters()?.iter().map(|(_, link)| lost_by_emulator(link)).sum();
        mesh.stop()?;
        Ok(SharingRun {
            raw,
            single,
            together,
            lender,
            emulator_lateness_p99_us: lateness.p99_us,
            emulator_overrun_packets: overrun,
        })
    }

    /// One uplink alone, both ways, without a tunnel, from the host that has it.
    fn raw(&self, host: &Host, link: &Link) -> anyhow::Result<RawLink> {
        let uplink = host.uplinks().first().with_context(|| format!("{} has no uplink", host.name()))?;
        let congestion_control = if link.is_lossy() { "bbr" } else { "cubic" };
        let one = |name: &str, flow: Flow| -> anyhow::Result<FlowResult> {
            (self.say)(&format!("{} alone, {name} ({congestion_control})", link.name));
            let spec =
                self.flow(self.length).congestion_control(congestion_control).device(&uplink.interface);
            check(host.run(move || flow(&spec))?, name)
        };
        let (down, up) = (one("download", download)?, one("upload", upload)?);
        Ok(RawLink {
            link: link.name.clone(),
            congestion_control: down.congestion_control().to_owned(),
            mbit: Ways { download: down.goodput_mbit(CUT), upload: up.goodput_mbit(CUT) },
        })
    }

    /// One flow on the first host, while the others have nothing to send.
    fn single(&self, name: &str, flow: Flow) -> anyhow::Result<Single> {
        let host = &self.hosts[BORROWER];
        (self.say)(&format!("one {name}, on {}", host.name()));
        let spec = self.flow(self.length);
        let (result, link_bytes) = self.counted(|| Ok(host.run(move || flow(&spec))?))?;
        let result = check(result, name)?;
        Ok(Single {
            mbit: result.goodput_mbit(CUT),
            longest_pause_ms: result.longest_gap_ms_after(CUT),
            link_bytes,
        })
    }

    /// One download on every host, all at once.
    fn together(&self) -> anyhow::Result<Together> {
        (self.say)("a download on every host at once");
        let (results, link_bytes) = self.counted(|| {
            let running: Vec<_> = self.hosts.iter().map(|host| self.start(host, self.length)).collect();
            running
                .into_iter()
                .map(|flow| check(flow.join()?, "download"))
                .collect::<anyhow::Result<Vec<_>>>()
        })?;
        Ok(Together { mbit: results.iter().map(|result| result.goodput_mbit(CUT)).collect(), link_bytes })
    }

    /// A lender starts a download of its own while a borrower fills all uplinks. `alone` is what the lender's uplink
    /// carries alone, in Mbit/s.
    fn lender(&self, alone: f64) -> anyhow::Result<Lender> {
        let (borrower, lender) = (&self.hosts[BORROWER], &self.hosts[LENDER]);
        (self.say)(&format!("a download on {}, then one on its lender {}", borrower.name(), lender.name()));
        let length = self.length;
        let ((borrowed, lent), link_bytes) = self.counted(|| {
            let borrowed = self.start(borrower, BORROWER_FIRST + length);
            std::thread::sleep(BORROWER_FIRST);
            let lent = self.start(lender, length);
            Ok((check(borrowed.join()?, "download")?, check(lent.join()?, "download")?))
        })?;
        let mbit = lent.goodput_mbit_between(LENDER_WAITS, length);
        Ok(Lender {
            mbit,
            share_of_own: mbit / alone,
            borrower_before_mbit: borrowed.goodput_mbit_between(CUT, BORROWER_FIRST),
            borrower_after_mbit: borrowed
                .goodput_mbit_between(BORROWER_FIRST + LENDER_WAITS, BORROWER_FIRST + length),
            link_bytes,
        })
    }

    /// Does something, and says how many bytes each uplink delivered meanwhile.
    fn counted<R>(&self, work: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<(R, Vec<LinkBytes>)> {
        let emulator = self.lab.emulator();
        let before = emulator.all_counters()?;
        let result = work()?;
        let after = emulator.all_counters()?;
        let bytes = before.iter().zip(&after).map(|((link, before), (_, after))| LinkBytes {
            link: link.clone(),
            bytes: Ways {
                download: after.down.bytes - before.down.bytes,
                upload: after.up.bytes - before.up.bytes,
            },
        });
        Ok((result, bytes.collect()))
    }

    fn start(&self, host: &Host, length: Duration) -> Running<Result<FlowResult, TrafficError>> {
        let spec = self.flow(length);
        host.start(move || download(&spec))
    }

    fn flow(&self, length: Duration) -> FlowSpec {
        FlowSpec::seconds(self.server.address(), length.as_secs())
    }
}
