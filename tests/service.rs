//! Goal: under a service manager a node needs nothing but what `deploy/mwb-node.service` leaves it, and tells the
//! manager what that waits for. Method: real nodes with the unit's capabilities, and a socket in the manager's place.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use mwb_sim::traffic::{FlowSpec, download};

use support::lab::Bond;
use support::node::{PATIENCE, command};
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

/// A node's rights, of all its threads, as numbers of capabilities: effective, and at most for what it starts.
fn rights(pid: u32) -> Vec<(u64, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let bits = |name: &str| {
            let bits = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            u64::from_str_radix(bits.trim(), 16).unwrap()
        };
        Some((bits("CapEff") | bits("CapPrm"), bits("CapBnd")))
    };
    tasks.flatten().filter_map(of).collect()
}

/// CAP_NET_ADMIN and CAP_NET_RAW (capabilities(7)).
const NEEDED: u64 = 1 << 12 | 1 << 13;

#[test]
fn root_keeps_only_the_rights_that_a_node_needs() {
    in_lab("root_keeps_only_the_rights_that_a_node_needs", || {
        let mut bond = Bond::start();
        for node in [&bond.edge, &bond.exit] {
            let rights = rights(node.pid());
            assert!(rights.len() > 1 && rights.iter().all(|one| *one == (NEEDED, NEEDED)), "{rights:x?}");
        }
        let spec = FlowSpec::bytes(bond.server(), 2_000_000);
        let result = bond.edge.host().run(move || download(&spec)).unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        bond.edge.stop();
        bond.exit.stop();
        assert_eq!(bond.exit.nft().trim(), "");
    });
}

#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let file = std::os::unix::fs::MetadataExt::ino(&log.as_file().metadata().unwrap());
    let device = std::os::unix::fs::MetadataExt::dev(&log.as_file().metadata().unwrap());
    for (stream, begins) in [(format!("{device}:{file}"), "<4>"), (format!("{device}:1"), "2")] {
        log.as_file().set_len(0).unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut command = command(&["run", "--set", "discovery.uplinks=off", "--state-dir"]);
        command.arg(state.path()).env("JOURNAL_STREAM", stream).env("MWB__UPLINKS__0__INTERFACE", "nowhere0");
        command.env("MWB_RUNTIME_DIR", state.path()).stderr(log.reopen().unwrap());
        // It has no exit, and ends after its warning.
        assert_eq!(command.status().unwrap().code(), Some(2));
        let text = std::fs::read_to_string(log.path()).unwrap();
        let line = text.lines().find(|line| line.contains("nowhere0")).unwrap_or_default();
        assert!(line.starts_with(begins), "{begins} in {text}");
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
