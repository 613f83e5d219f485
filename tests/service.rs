//! Goal: under a service manager a node needs nothing but what `deploy/mwb-node.service` leaves it, and tells the
//! manager what that waits for. Method: real nodes with the unit's capabilities, and a socket in the manager's place.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use mwb_sim::traffic::{FlowSpec, download};

use support::lab::Bond;
use support::node::PATIENCE;
use support::skip::in_lab;

const UNIT: &str = include_str!("../deploy/mwb-node.service");

/// The value of a setting of the unit.
fn setting(name: &str) -> &'static str {
    let line = UNIT.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("the unit sets {name}"))
}

/// The manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self(socket)
    }

    /// Waits for a message that has this line.
    #[track_caller]
    fn wait_for(&self, wanted: &str) {
        let end = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while Instant::now() < end {
            let mut buf = [0; 4096];
            let Ok(len) = self.0.recv(&mut buf) else { continue };
            let text = String::from_utf8(buf[..len].to_vec()).unwrap();
            if text.lines().any(|line| line == wanted) {
                return;
            }
            heard.push(text);
        }
        panic!("no {wanted} within {PATIENCE:?}, only {heard:?}");
    }
}

#[test]
fn a_service_needs_only_what_its_unit_leaves_it_and_reports() {
    in_lab("a_service_needs_only_what_its_unit_leaves_it_and_reports", || {
        assert_eq!(setting("Type"), "notify");
        let capabilities: Vec<&str> = setting("CapabilityBoundingSet").split(' ').collect();
        assert!(setting("ExecStart").ends_with("mwb-node run"));
        let mut bond = Bond::prepare();
        let before = (bond.edge.ip("-4 rule"), bond.edge.ip("-4 route show table all"));
        let dir = tempfile::tempdir().unwrap();
        let sockets = ["exit", "edge"].map(|name| dir.path().join(name));
        let [exit, edge] = [0, 1].map(|i| Manager::at(&sockets[i]));
        let watchdog = Duration::from_secs(1);
        bond.exit.start_as_service(&capabilities, &sockets[0], watchdog);
        exit.wait_for("READY=1");
        bond.edge.start_as_service(&capabilities, &sockets[1], watchdog);
        edge.wait_for("READY=1");
        for node in [&bond.exit, &bond.edge] {
            let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
            let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim();
            assert_eq!(u64::from_str_radix(bits, 16).unwrap().count_ones() as usize, capabilities.len());
        }
        bond.wait_until_through();
        let spec = FlowSpec::bytes(bond.server(), 2_000_000);
        let result = bond.edge.host().run(move || download(&spec)).unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        // Told again and again, not once.
        (0..3).for_each(|_| edge.wait_for("WATCHDOG=1"));

        bond.edge.stop();
        edge.wait_for("STOPPING=1");
        assert_eq!((bond.edge.ip("-4 rule"), bond.edge.ip("-4 route show table all")), before);
        bond.exit.stop();
        exit.wait_for("STOPPING=1");
        assert_eq!(bond.exit.nft().trim(), "");
    });
}
