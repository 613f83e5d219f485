//! Goal: while the bond is up, names are asked through it, whichever uplink dies; afterwards the host's own configuration
//! is there byte for byte, whatever ended the node and whoever else wrote it meanwhile. Method: real nodes, the C library's own
//! look-up, a resolver behind the exit. Every host of the lab has an `/etc` of its own: that of the machine is compared.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use mwb_sim::lab::Host;
use support::dns::{ANSWER, Resolver, resolve};
use support::lab::Bond;
use support::node::{PATIENCE, wait_until};
use support::skip::in_lab;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const OWN: &str = "# by hand\nsearch lan.test\nnameserver 10.1.0.1\noptions timeout:1 attempts:1";

/// A bond whose exit asks a resolver at the server, and which checks that the machine is left alone.
struct Names {
    bond: Bond,
    resolver: Resolver,
    machine: Option<Vec<u8>>,
}

impl Names {
    /// Starts the exit only.
    fn prepare() -> Self {
        let machine = std::fs::read(RESOLV_CONF).ok();
        let mut bond = Bond::prepare();
        let resolver = Resolver::start(&bond.server_host(), bond.server().ip());
        // The first is the exit's own; the second, behind the exit, is the router of an uplink at the edge.
        let text = format!("nameserver 127.0.0.53\nnameserver 10.1.0.1\nnameserver {}\n", bond.server().ip());
        bond.exit.host().run(move || std::fs::write(RESOLV_CONF, text)).unwrap();
        write(bond.edge.host(), OWN);
        bond.exit.start();
        Self { bond, resolver, machine }
    }

    fn edge(&self) -> &Host {
        self.bond.edge.host()
    }

    fn start_edge(&mut self) {
        self.bond.edge.start();
        self.bond.wait_until_through();
    }

    /// Waits until the file names the exit's resolver and only that.
    #[track_caller]
    fn wait_until_set(&self) {
        let wanted = format!("nameserver {}", self.bond.server().ip());
        wait_until("the file names the exit's resolver", PATIENCE, || {
            let text = String::from_utf8(read(self.edge())).unwrap();
            text.lines().filter(|line| line.starts_with("nameserver")).eq([wanted.as_str()])
        });
    }

    /// A name is found, and the exit was who asked.
    #[track_caller]
    fn check_asked_through_the_exit(&self, name: &str) {
        self.resolver.asked();
        wait_until("a name is found", PATIENCE, || resolve(self.edge(), name) == Some(ANSWER));
        let asked = self.resolver.asked();
        let exit: IpAddr = self.bond.exit.host().address();
        assert!(!asked.is_empty() && asked.iter().all(|from| *from == exit), "{asked:?}");
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        let now = std::fs::read(RESOLV_CONF).ok();
        assert!(std::thread::panicking() || now == self.machine, "the machine's file is another one");
    }
}

fn read(host: &Host) -> Vec<u8> {
    host.run(|| std::fs::read(RESOLV_CONF)).unwrap_or_default()
}

fn write(host: &Host, text: &str) {
    let text = text.to_owned();
    host.run(move || std::fs::write(RESOLV_CONF, text)).unwrap();
}

fn remove(host: &Host) {
    host.run(|| std::fs::remove_file(RESOLV_CONF)).unwrap();
}

#[track_caller]
fn mount(host: &Host, arguments: &[&str]) {
    let mut command = Command::new("mount");
    command.args(arguments);
    let output = host.output(command).unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn names_are_asked_through_the_bond_until_it_ends() {
    in_lab("names_are_asked_through_the_bond_until_it_ends", || {
        let mut names = Names::prepare();
        names.start_edge();
        names.wait_until_set();
        assert!(String::from_utf8(read(names.edge())).unwrap().contains("\nsearch lan.test\n"));
        names.check_asked_through_the_exit("one.test");
        wait_until("both uplinks carry", PATIENCE, || {
            let status = names.bond.edge.status().unwrap_or_default();
            let paths = status["sessions"][0]["paths"].as_array().cloned().unwrap_or_default();
            paths.iter().filter(|path| path["health"] == "up").count() == 2
        });
        // The uplink whose router was asked before.
        names.bond.emulator().cut("fast").unwrap();
        names.check_asked_through_the_exit("two.test");
        names.bond.emulator().restore("fast").unwrap();
        names.bond.edge.stop();
        assert_eq!(read(names.edge()), OWN.as_bytes());

        names.start_edge();
        names.wait_until_set();
        names.bond.edge.kill();
        names.wait_until_set();
        let down = names.bond.edge.down();
        assert!(String::from_utf8_lossy(&down.stdout).contains(RESOLV_CONF), "{down:?}");
        assert_eq!(read(names.edge()), OWN.as_bytes());

        names.start_edge();
        names.wait_until_set();
        names.bond.edge.kill();
        names.start_edge();
        names.wait_until_set();
        names.check_asked_through_the_exit("three.test");
        names.bond.edge.stop();
        assert_eq!(read(names.edge()), OWN.as_bytes());
    });
}

#[test]
fn whatever_stands_there_comes_back() {
    in_lab("whatever_stands_there_comes_back", || {
        let mut names = Names::prepare();
        // A link, as NetworkManager and others make it.
        remove(names.edge());
        let link = || {
            std::fs::write("/run/resolv.conf", "nameserver 10.1.0.1\n").unwrap();
            symlink("../run/resolv.conf", RESOLV_CONF).unwrap();
        };
        names.edge().run(link);
        names.start_edge();
        names.wait_until_set();
        names.bond.edge.stop();
        let target = names.edge().run(|| std::fs::read_link(RESOLV_CONF)).unwrap();
        assert_eq!(target, Path::new("../run/resolv.conf"));

        // Nothing.
        remove(names.edge());
        names.start_edge();
        names.wait_until_set();
        names.bond.edge.stop();
        assert!(!names.edge().run(|| Path::new(RESOLV_CONF).exists()));

        // A mount, as in a container: it cannot be replaced.
        write(names.edge(), "");
        let inner = "nameserver 10.1.0.1\n";
        names.edge().run(move || std::fs::write("/run/inner", inner)).unwrap();
        mount(names.edge(), &["--bind", "/run/inner", RESOLV_CONF]);
        names.start_edge();
        names.wait_until_set();
        names.check_asked_through_the_exit("mount.test");
        names.bond.edge.kill();
        assert!(names.bond.edge.down().status.success());
        assert_eq!(read(names.edge()), inner.as_bytes());

        // The same, and nothing beside it can be written either.
        mount(names.edge(), &["-o", "remount,bind,ro", RESOLV_CONF]);
        names.start_edge();
        wait_until("the log says what to do", PATIENCE, || {
            names.bond.edge.log().contains("ReadWritePaths=/etc")
        });
        assert!(names.bond.is_through(), "the bond runs on");
        names.bond.edge.stop();
        assert_eq!(read(names.edge()), inner.as_bytes());
    });
}

#[test]
fn what_another_program_writes_stays() {
    in_lab("what_another_program_writes_stays", || {
        let mut names = Names::prepare();
        let theirs = "# by another program\nnameserver 10.1.1.1\n";
        names.start_edge();
        names.wait_until_set();
        write(names.edge(), theirs);
        wait_until("the log says that", PATIENCE, || {
            names.bond.edge.log().contains("another program has written it")
        });
        names.bond.edge.stop();
        assert_eq!(read(names.edge()), theirs.as_bytes());

        // Off leaves everything alone.
        let text = std::fs::read_to_string(names.bond.edge.config_file()).unwrap();
        names.bond.edge.configure(&format!("[tun]\ndns = \"off\"\n{text}"));
        names.start_edge();
        assert_eq!(read(names.edge()), theirs.as_bytes());
        names.bond.edge.stop();
        assert_eq!(read(names.edge()), theirs.as_bytes());
    });
}

#[test]
fn systemd_resolved_is_told() {
    in_lab("systemd_resolved_is_told", || {
        let mut names = Names::prepare();
        // Its folder, its entry, and a program in the place of `resolvectl` that notes what it is told.
        let dir = tempfile::tempdir().unwrap();
        let (program, told) = (dir.path().join("resolvectl"), dir.path().join("told"));
        std::fs::write(&program, format!("#!/bin/sh\necho \"$*\" >> {}\n", told.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        names.edge().run(|| std::fs::create_dir_all("/run/systemd/resolve")).unwrap();
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";
        write(names.edge(), stub);
        names.bond.edge.start_with_programs(dir.path());
        names.bond.wait_until_through();
        let told = || std::fs::read_to_string(&told).unwrap_or_default();
        let server = names.bond.server().ip();
        let wanted = format!("dns mwb0 {server}\ndomain mwb0 ~.\ndefault-route mwb0 yes\n");
        wait_until("it is told", PATIENCE, || told() == wanted);
        assert_eq!(read(names.edge()), stub.as_bytes());
        names.bond.edge.stop();
        assert!(told().ends_with("revert mwb0\n"), "{}", told());
        assert_eq!(read(names.edge()), stub.as_bytes());
    });
}
