//! What the kernel lets this user do, and how it is set.

use std::fs::File;
use std::io::ErrorKind;
use std::process::Stdio;

use mwb_actors::wan_link::{BUFFER_BYTES, offer};

use super::{Patient, Report};
use crate::platform::linux::sysctl;

/// What an exit's table needs of nftables: chains with hooks, masquerade, connection tracking.
const TRIAL: &str = "add table inet mwb_doctor; \
    add chain inet mwb_doctor nat { type nat hook postrouting priority 100; }; \
    add rule inet mwb_doctor nat masquerade; \
    add chain inet mwb_doctor forward { type filter hook forward priority 0; }; \
    add rule inet mwb_doctor forward ct state established accept";

/// In a user's own words: where to look again with more rights.
pub(super) const AS_ROOT: &str = "sudo mwb-node doctor";

pub(super) fn rights(patient: &Patient<'_>, report: &mut Report) {
    let rights = patient.rights;
    if rights.net_admin && rights.net_raw {
        return report.ok("rights", "CAP_NET_ADMIN and CAP_NET_RAW: all that a node needs");
    }
    let names = [(rights.net_admin, "CAP_NET_ADMIN"), (rights.net_raw, "CAP_NET_RAW")];
    let missing: Vec<_> = names.iter().filter(|(has, _)| !has).map(|(_, name)| *name).collect();
    let missing = missing.join(" and ");
    if rights.root {
        report.fault(
            "rights",
            format!("root without {missing}, as in a container"),
            "docker run --cap-add NET_ADMIN --cap-add NET_RAW --device /dev/net/tun",
        );
    } else {
        report.note("rights", format!("this user lacks {missing}: not everything can be looked at"), AS_ROOT);
    }
}

pub(super) fn tun(patient: &Patient<'_>, report: &mut Report) {
    // Opening it makes no device yet.
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => report.ok("TUN", "/dev/net/tun can be opened"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied && !patient.rights.root => {
            report.note("TUN", format!("/dev/net/tun: {error}, as this user"), AS_ROOT);
        }
        Err(error) if matches!(error.raw_os_error(), Some(NO_ENTRY | NO_DEVICE | NO_SUCH_DEVICE)) => report
            .fault(
                "TUN",
                format!("/dev/net/tun: {error}"),
                "sudo modprobe tun; in a container: docker run --device /dev/net/tun",
            ),
        Err(error) => report.fault(
            "TUN",
            format!("/dev/net/tun cannot be opened: {error}"),
            "in a container: docker run --device /dev/net/tun",
        ),
    }
}

/// An exit puts its table in with `nft`: tried as a whole, by a check that the kernel does and takes back (`nft -c`).
pub(super) async fn nft(patient: &Patient<'_>, report: &mut Report) {
    if !patient.is_exit() {
        return;
    }
    match run_nft(&["-c", TRIAL]).await {
        Ok(_) => report.ok("nftables", "masquerade and connection tracking can be set up"),
        Err(Refused::Missing) => {
            report.fault("nftables", "the program nft is missing", "sudo apt-get install nftables");
        }
        Err(Refused::Failed(_)) if !patient.rights.net_admin => {
            report.note("nftables", "nft cannot be tried as this user", AS_ROOT);
        }
        Err(Refused::Failed(text)) => report.fault(
            "nftables",
            format!("an exit's table is refused: {text}"),
            "sudo modprobe -a nf_tables nft_masq nft_ct; a kernel without them cannot be an exit",
        ),
    }
}

/// Why `nft` did not do it.
pub(super) enum Refused {
    /// There is no such program.
    Missing,
    /// What it said last.
    Failed(String),
}

/// What `nft` prints.
pub(super) async fn run_nft(arguments: &[&str]) -> Result<String, Refused> {
    let mut command = tokio::process::Command::new("nft");
    let output = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Refused::Missing,
        _ => Refused::Failed(error.to_string()),
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Refused::Failed(text.lines().next().unwrap_or_default().to_owned()))
}

pub(super) fn forwarding(patient: &Patient<'_>, report: &mut Report) {
    if !patient.is_exit() {
        return;
    }
    let set =
        "sudo sysctl -w net.ipv4.ip_forward=1; in a container: docker run --sysctl net.ipv4.ip_forward=1";
    if sysctl::forwards_ipv4() {
        report.ok("forwarding", "this host forwards IPv4");
    } else if sysctl::are_open() {
        report.ok("forwarding", "off; the node switches it on while it runs");
    } else if patient.rights.root {
        report.fault("forwarding", "off, and /proc/sys cannot be written", set);
    } else {
        report.note("forwarding", "off, and this user cannot switch it on", AS_ROOT);
    }
}

/// The reverse path filter of an uplink: strict, it drops all that arrives while the default route leads into the bond.
pub(super) fn reverse_path_filter(patient: &Patient<'_>, interface: &str, report: &mut Report) {
    let subject = format!("rp_filter {interface}");
    let loosen = format!("sudo sysctl -w net.ipv4.conf.{interface}.rp_filter=2");
    match sysctl::is_strict(interface) {
        Some(true) if patient.running.is_some() => {
            report.fault(subject, "strict although the node runs: nothing may arrive", loosen);
        }
        Some(true) if patient.rights.root && !sysctl::are_open() => {
            report.fault(subject, "strict, and /proc/sys cannot be written: nothing may arrive", loosen);
        }
        Some(true) => report.ok(subject, "strict; the node makes it loose while it runs"),
        Some(false) => report.ok(subject, "lets through what arrives"),
        None => {}
    }
}

pub(super) fn sockets(patient: &Patient<'_>, report: &mut Report) {
    let offer = match offer() {
        Ok(offer) => offer,
        Err(error) => return report.fault("sockets", format!("no UDP socket: {error}"), "ulimit -n; dmesg"),
    };
    let least = offer.receive_bytes.min(offer.send_bytes);
    let megabytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let says = format!("{:.1} MiB each way, of {:.0} asked for", megabytes(least), megabytes(BUFFER_BYTES));
    if least >= BUFFER_BYTES {
        report.ok("buffers", says);
    } else {
        let todo =
            format!("sudo sysctl -w net.core.rmem_max={BUFFER_BYTES} net.core.wmem_max={BUFFER_BYTES}");
        let why = if patient.rights.net_admin {
            "bursts may be lost"
        } else {
            "a node with CAP_NET_ADMIN gets all"
        };
        report.note("buffers", format!("{says}: {why}"), todo);
    }
    if offer.segments_max > 1 {
        report.ok("segmentation", format!("one send takes up to {} datagrams", offer.segments_max));
    } else {
        report.note(
            "segmentation",
            "the kernel takes datagrams one by one: a fast link costs more processor time",
            "a kernel from 4.18 on has UDP segmentation",
        );
    }
}

// The kernel's error numbers that have a meaning here.
const NO_ENTRY: i32 = 2;
const NO_SUCH_DEVICE: i32 = 6;
const NO_DEVICE: i32 = 19;
