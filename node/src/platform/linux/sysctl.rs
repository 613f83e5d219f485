//! Kernel settings under `/proc/sys/net`, noted in the journal before they are changed.

use std::fs;
use std::path::Path;

use super::{Journal, PlatformError};

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const IPV6_CONF: &str = "/proc/sys/net/ipv6/conf";

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

/// Lets this host forward between its interfaces.
///
/// # Errors
/// When the setting cannot be read, noted or written.
pub(super) fn forward_ipv4(journal: &mut Journal) -> Result<(), PlatformError> {
    let before = read(IP_FORWARD)?;
    if before == "0" { change(IP_FORWARD, &before, "1", journal) } else { Ok(()) }
}

/// The same for IPv6. A host that forwards throws away what routers have advertised, its own default route among
/// it, unless the interface heeds them always: that comes first.
///
/// # Errors
/// When a setting cannot be read, noted or written.
pub(super) fn forward_ipv6(journal: &mut Journal) -> Result<(), PlatformError> {
    let forwarding = format!("{IPV6_CONF}/all/forwarding");
    if read(&forwarding)? != "0" {
        return Ok(());
    }
    let interfaces = fs::read_dir(IPV6_CONF).map_err(PlatformError::file(format!("reading {IPV6_CONF}")))?;
    for interface in interfaces.flatten() {
        let file = interface.path().join("accept_ra").to_string_lossy().into_owned();
        // An interface may go at any time.
        if read(&file).is_ok_and(|before| before == UNLESS_FORWARDING) {
            change(&file, UNLESS_FORWARDING, ALWAYS, journal)?;
        }
    }
    change(&forwarding, "0", "1", journal)
}

/// Leaves IPv6 packets to `tun` without a source address but those that it is given: no link-local address is made,
/// and no other interface's may be taken. The settings go with the device.
///
/// # Errors
/// When a setting cannot be written.
pub(super) fn only_assigned_ipv6(tun: &str) -> Result<(), PlatformError> {
    let file = |name: &str| format!("{IPV6_CONF}/{tun}/{name}");
    write(&file("addr_gen_mode"), "1")?;
    write(&file("use_oif_addrs_only"), "1")
}

/// Puts back what the journal knows; what no longer exists is skipped. Returns what was done, in words.
///
/// # Errors
/// The first setting that could not be put back; the others were tried.
pub(super) fn restore(journal: &Journal) -> Result<Vec<String>, PlatformError> {
    let mut done = Vec::new();
    let mut failed = None;
    for (file, before) in journal.sysctls() {
        if !Path::new(file).exists() {
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
