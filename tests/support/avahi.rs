//! Another implementation of mDNS and DNS-SD, to look at a LAN with: `avahi-daemon` with a D-Bus of its own on a
//! host of a lab, whose `/run` and `/etc` are nobody else's.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mwb_sim::lab::{Host, LabChild};

use super::node::PATIENCE;

const BUS_CONFIG: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"#;
const CONFIG: &str = "[server]\nuse-ipv4=yes\nuse-ipv6=yes\n[publish]\ndisable-publishing=yes\n";

/// A host on which Avahi runs.
pub(crate) struct Avahi {
    host: Host,
    _daemon: LabChild,
    _bus: LabChild,
}

impl Avahi {
    /// The program that is missing, if one is.
    pub(crate) fn missing() -> Option<&'static str> {
        let folders: Vec<_> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
        let is_there = |program: &&str| folders.iter().any(|folder| folder.join(program).exists());
        ["avahi-daemon", "avahi-browse", "dbus-daemon"].into_iter().find(|program| !is_there(program))
    }

    /// Starts it on `host`.
    pub(crate) fn start(host: Host) -> Self {
        host.run(|| {
            std::fs::create_dir_all("/run/dbus").unwrap();
            std::fs::write("/run/bus.conf", BUS_CONFIG).unwrap();
            std::fs::write("/run/avahi.conf", CONFIG).unwrap();
            // It gives its folder to this user, and in a user namespace only user 0 exists.
            for (file, text) in
                [("/etc/passwd", "avahi:x:0:0::/:/bin/false\n"), ("/etc/group", "avahi:x:0:\n")]
            {
                std::fs::remove_file(file).unwrap();
                std::fs::write(file, text).unwrap();
            }
        });
        let mut command = Command::new("dbus-daemon");
        command.args(["--config-file=/run/bus.conf", "--nofork", "--nopidfile", "--nosyslog"]);
        let bus = host.spawn(command).unwrap();
        let end = Instant::now() + PATIENCE;
        while !host.run(|| Path::new("/run/dbus/system_bus_socket").exists()) {
            assert!(Instant::now() < end, "no D-Bus: {}", bus.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut command = Command::new("avahi-daemon");
        command.args([
            "-f",
            "/run/avahi.conf",
            "--no-drop-root",
            "--no-chroot",
            "--no-rlimits",
            "--no-proc-title",
        ]);
        let mut daemon = host.spawn(command).unwrap();
        let started = daemon.wait_for_output("Server startup complete", PATIENCE).unwrap();
        assert!(started, "{}{}", daemon.stderr(), bus.stderr());
        Self { host, _daemon: daemon, _bus: bus }
    }

    /// What `avahi-browse -rpt SERVICE` prints: a line with `+` for each instance found on an interface, and one
    /// with `=` that has its address, port and TXT record.
    pub(crate) fn browse(&self, service: &str) -> String {
        let mut command = Command::new("avahi-browse");
        command.args(["-rpt", service]);
        let output = self.host.output(command).unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}
