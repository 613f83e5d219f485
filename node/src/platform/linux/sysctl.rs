//! Kernel settings under `/proc/sys/net`, noted in the journal before they are changed.
//!
//! In a container they are often fixed: `/proc/sys` is mounted read-only. What has the wanted value already is not
//! touched, and a node does without what it can do without.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{Journal, PlatformError};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV4_CONF: &str = "/proc/sys/net/ipv4/conf";
const IPV6_CONF: &str = "/proc/sys/net/ipv6/conf";
const IPV6_FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

/// Router advertisements are heeded while not forwarding, and always (`accept_ra`).
const UNLESS_FORWARDING: &str = "1";
const ALWAYS: &str = "2";

/// Reverse path filtering modes (`rp_filter` in the kernel's ip-sysctl document).
const STRICT: &str = "1";
const LOOSE: &str = "2";

/// Replies on an uplink come from addresses whose route leads into the tunnel: strict filtering (RFC 3704)
/// would drop them all. Loose filtering is set where strict was in force, and nothing elsewhere.
///
/// # Errors
/// When the setting cannot be read, noted or written. A missing interface is none.
pub(super) fn loosen_reverse_path_filter(
    interface: &str,
    journal: &mut Journal,
) -> Result<(), PlatformError> {
    let file = |name: &str| format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
    if !Path::new(&file(interface)).exists() {
        tracing::warn!(interface, "the uplink's interface does not exist (yet)");
        return Ok(());
    }
    let own = read(&file(interface))?;
    // The kernel applies the greater of the two.
    if own.as_str().max(read(&file("all"))?.as_str()) == STRICT {
        change(&file(interface), &own, LOOSE, journal)?;
    }
    Ok(())
}

/// What comes out of `tun` has been let through by the exit and the session's own addresses; the route back to where it comes
/// from may lead elsewhere, into another VPN that the host uses as well. The setting goes with the device.
///
/// # Errors
/// When the setting cannot be read or written.
pub(super) fn accept_from(tun: &str) -> Result<(), PlatformError> {
    if is_strict(tun) == Some(true) { write(&format!("{IPV4_CONF}/{tun}/rp_filter"), LOOSE) } else { Ok(()) }
}

/// Whether strict reverse path filtering is in force on an interface; nothing is known where it does not exist.
pub(crate) fn is_strict(interface: &str) -> Option<bool> {
    let value = |name: &str| read(&format!("{IPV4_CONF}/{name}/rp_filter")).ok();
    Some(value(interface)?.max(value("all")?) == STRICT)
}

/// Whether this host forwards IPv4.
pub(crate) fn forwards_ipv4() -> bool {
    read(IP_FORWARD).is_ok_and(|now| now != "0")
}

/// The setting that keeps an exit's host from forwarding IPv4, or IPv6 if that is asked for; none when it forwards.
pub(super) fn not_forwarding(ipv6: bool) -> Option<&'static str> {
    let is_off = |file| read(file).is_ok_and(|now| now == "0");
    if is_off(IP_FORWARD) {
        return Some("net.ipv4.ip_forward");
    }
    (ipv6 && is_off(IPV6_FORWARDING)).then_some("net.ipv6.conf.all.forwarding")
}

/// Whether settings can be changed at all: root of a container often cannot.
pub(crate) fn are_open() -> bool {
    rustix::fs::access(IP_FORWARD, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Whether an error says that settings cannot be changed here at all.
pub(super) fn is_fixed(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied)
}

/// Lets this host forward between its interfaces.
///
/// # Errors
/// When the setting cannot be read, noted or written.
pub(super) fn forward_ipv4(journal: &mut Journal) -> Result<(), PlatformError> {
    if read(IP_FORWARD)? != "0" {
        return Ok(());
    }
    // With it the kernel sets this to its opposite, at the end too.
    let redirects = format!("{IPV4_CONF}/all/accept_redirects");
    if read(&redirects)? == "0" {
        journal.note_sysctl(&redirects, "0")?;
    }
    note_forwarding(IPV4_CONF, journal)?;
    change(IP_FORWARD, "0", "1", journal).map_err(|error| match error {
        PlatformError::File { source, .. } if is_fixed(&source) => PlatformError::NoForwarding(source),
        other => other,
    })
}

/// Whether this host forwards IPv6, or can be made to.
pub(super) fn may_forward_ipv6() -> bool {
    let is_open = || rustix::fs::access(IPV6_FORWARDING, rustix::fs::Access::WRITE_OK).is_ok();
    read(IPV6_FORWARDING).is_ok_and(|now| now != "0" || is_open())
}

/// The same for IPv6. A host that forwards throws away what routers have advertised, its own default route among
/// it, unless the interface heeds them always: that comes first.
///
/// # Errors
/// When a setting cannot be read, noted or written.
pub(super) fn forward_ipv6(journal: &mut Journal) -> Result<(), PlatformError> {
    if read(IPV6_FORWARDING)? != "0" {
        return Ok(());
    }
    for interface in interfaces(IPV6_CONF)? {
        let file = format!("{IPV6_CONF}/{interface}/accept_ra");
        // An interface may go at any time.
        if read(&file).is_ok_and(|before| before == UNLESS_FORWARDING) {
            change(&file, UNLESS_FORWARDING, ALWAYS, journal)?;
        }
    }
    note_forwarding(IPV6_CONF, journal)?;
    change(IPV6_FORWARDING, "0", "1", journal)
}

/// Notes where a host forwards although it does not do so everywhere: when forwarding ends everywhere, the kernel ends
/// it there too.
fn note_forwarding(conf: &str, journal: &mut Journal) -> Result<(), PlatformError> {
    for interface in interfaces(conf)?.into_iter().filter(|interface| interface != "all") {
        let file = format!("{conf}/{interface}/forwarding");
        if read(&file).is_ok_and(|before| before == "1") {
            journal.note_sysctl(&file, "1")?;
        }
    }
    Ok(())
}

/// Names of the interfaces with settings, `all` and `default` among them.
fn interfaces(conf: &str) -> Result<Vec<String>, PlatformError> {
    let found = fs::read_dir(conf).map_err(PlatformError::file(format!("reading {conf}")))?;
    Ok(found.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// Leaves IPv6 packets to `tun` without a source address but those that it is given: no link-local address is made,
/// and no other interface's may be taken. The settings go with the device.
///
/// # Errors
/// When a setting cannot be written.
pub(super) fn only_assigned_ipv6(tun: &str) -> Result<(), PlatformError> {
    for name in ["addr_gen_mode", "use_oif_addrs_only"] {
        let file = format!("{IPV6_CONF}/{tun}/{name}");
        if read(&file)? != "1" {
            write(&file, "1")?;
        }
    }
    Ok(())
}

/// Puts back what the journal knows; what no longer exists, or is as before, is skipped. Returns what was done, in
/// words.
///
/// # Errors
/// The first setting that could not be put back; the others were tried.
pub(super) fn restore(journal: &Journal) -> Result<Vec<String>, PlatformError> {
    let mut done = Vec::new();
    let mut failed = None;
    // Forwarding as a whole comes first: with it the kernel changes what is noted of single interfaces.
    let (whole, single): (Vec<_>, Vec<_>) =
        journal.sysctls().partition(|(file, _)| [IP_FORWARD, IPV6_FORWARDING].contains(file));
    for (file, before) in whole.into_iter().chain(single) {
        if !Path::new(file).exists() || read(file).is_ok_and(|now| now == before) {
            continue;
        }
        match write(file, before) {
            Ok(()) => done.push(format!("{file} is {before} again")),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(done), Err)
}

fn change(file: &str, before: &str, after: &str, journal: &mut Journal) -> Result<(), PlatformError> {
    journal.note_sysctl(file, before)?;
    write(file, after)
}

fn read(file: &str) -> Result<String, PlatformError> {
    let text = fs::read_to_string(file).map_err(PlatformError::file(format!("reading {file}")))?;
    Ok(text.trim().to_owned())
}

fn write(file: &str, value: &str) -> Result<(), PlatformError> {
    fs::write(file, value).map_err(PlatformError::file(format!("writing {value} to {file}")))
}
