//! What the demo plays on: the links, the lab with its hosts, and the test server.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use mwb_sim::lab::{Host, Lab};
use mwb_sim::traffic::{Server, server};
use mwb_sim::wan::{DirectionSpec, EmulatorControl, LinkSpec, QueueLimit};

/// Where the test server listens.
const PORT: u16 = 7000;
/// Queue in front of each link, in time at its rate.
const QUEUE: Duration = Duration::from_millis(100);

/// One emulated uplink, the same both ways.
pub(super) struct Line {
    /// Its name.
    pub(super) name: &'static str,
    /// Rate in Mbit/s of IP packets.
    pub(super) mbit: f64,
    /// Round trip time without any queue.
    pub(super) rtt_ms: u64,
}

/// The uplinks: together 100 Mbit/s.
pub(super) const LINES: [Line; 3] = [
    Line { name: "fibre", mbit: 50.0, rtt_ms: 10 },
    Line { name: "starlink", mbit: 30.0, rtt_ms: 40 },
    Line { name: "lte", mbit: 20.0, rtt_ms: 60 },
];
/// The one that is cut: on a LAN not the downloading host's own.
pub(super) const CUT_LINE: usize = 1;

/// The lab with its server.
pub(super) struct Stage {
    // In this order they end.
    server: Server,
    lab: Lab,
}

impl Stage {
    /// Builds it.
    ///
    /// # Errors
    /// When the system refuses something.
    pub(super) fn build() -> anyhow::Result<Self> {
        let links: Vec<Vec<LinkSpec>> = LINES.iter().map(|line| vec![line.spec()]).collect();
        let lab = Lab::lan(&links).context("building the lab")?;
        let host = lab.host("server");
        let address = SocketAddr::new(host.address(), PORT);
        let server = host.run(move || server(address)).context("starting the test server")?;
        Ok(Self { server, lab })
    }

    /// The lab.
    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Control and counters of the links.
    pub(super) fn emulator(&self) -> EmulatorControl {
        self.lab.emulator()
    }

    /// The test server's address.
    pub(super) fn server(&self) -> SocketAddr {
        self.server.address()
    }

    /// The host that downloads over the bond.
    pub(super) fn client(&self) -> Host {
        self.lab.hosts()[0].clone()
    }

    /// The host that has the uplink of this name, and the interface there.
    pub(super) fn owner(&self, line: &str) -> Option<(Host, String)> {
        self.lab.hosts().iter().find_map(|host| {
            let uplink = host.uplinks().iter().find(|uplink| uplink.link == line)?;
            Some((host.clone(), uplink.interface.clone()))
        })
    }
}

impl Line {
    fn spec(&self) -> LinkSpec {
        let mut way = DirectionSpec::mbit(self.mbit).queue(QueueLimit::Time(QUEUE));
        way.delay = Duration::from_micros(self.rtt_ms * 500);
        LinkSpec::symmetric(self.name, way)
    }
}
