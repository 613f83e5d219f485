//! The node itself: whether it runs and how it is, what a killed one has left, and the host's clock.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rustix::fs::StatVfsMountFlags;
use serde_json::Value;

use super::kernel::AS_ROOT;
use super::{Patient, Report};
use crate::platform::linux::cleanup;
use crate::status_text::{is_offline, list, number, paths_up, silence, span, text_of};

/// Least room for what a node writes: some hundred records are a tenth of it.
const ROOM_MIN: u64 = 1 << 20;
/// A clock this much behind the program's own file is wrong for sure.
const CLOCK_BEHIND: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn node(patient: &Patient<'_>, report: &mut Report) {
    match patient.running {
        Some(state) => running(state, report),
        None => leftovers(patient, report).await,
    }
}

fn running(state: &Value, report: &mut Report) {
    let (name, uptime) = (text_of(state, "name"), state["uptime_seconds"].as_u64().unwrap_or_default());
    report.ok("node", format!("{name} has been running for {}", span(uptime)));
    let sessions = list(state, "sessions").count();
    let paths: Vec<_> = list(state, "sessions").flat_map(|session| list(session, "paths")).collect();
    let up = paths_up(state);
    let says = format!("sessions: {sessions}; paths that carry packets: {up} of {}", paths.len());
    let is_new = paths.iter().any(|path| matches!(text_of(path, "health"), "starting" | "recovering"));
    let offline: Vec<_> = list(state, "sessions").filter(|session| is_offline(session)).collect();
    if up == 0 && is_new {
        report.note("sessions", says, "wait: the first paths are being tried");
    } else if offline.is_empty() {
        report.ok("sessions", says);
    }
    for session in offline {
        report.fault("offline", offline_says(session), offline_todo(state, session));
    }
    dead_paths(state, report);
    for peer in list(state, "peers") {
        let joined = number(peer, "paths_joined");
        for slot in list(peer, "slots") {
            let problem = text_of(slot, "problem");
            if problem.is_empty() {
                continue;
            }
            let (link, address, peer) =
                (text_of(slot, "link"), text_of(slot, "address"), text_of(peer, "name"));
            let says = format!("{link} does not reach {peer} at {address}: {problem}");
            let todo =
                "check that the exit runs, that its UDP port is open, and that this uplink has internet";
            if joined == 0.0 {
                report.fault("exit", says, todo);
            } else {
                report.note("exit", says, todo);
            }
        }
    }
    for link in list(state, "links").filter(|link| !text_of(link, "problem").is_empty()) {
        let says = format!("{}: {}", text_of(link, "name"), text_of(link, "problem"));
        report.note("link", says, "ip link; ip address; the link is used again once its interface is back");
    }
    let members = list(&state["lan"], "peers").filter(|peer| peer["connected"] == true);
    let members: Vec<_> = members.map(|peer| text_of(peer, "name")).collect();
    if !members.is_empty() {
        report.ok("LAN", format!("connected with {}", members.join(", ")));
    } else if state["lan"].is_object() {
        report.note("LAN", "no other member was met on the LAN", "mwb-node peers says what was seen");
    }
    let failing = list(state, "actors").filter(|actor| text_of(actor, "state") == "parked");
    for actor in failing {
        let says = format!("{} failed: {}", text_of(actor, "name"), text_of(actor, "last_failure"));
        report.fault("actor", says, "journalctl -u mwb-node, or the log of mwb-node run, has the story");
    }
}

/// What a host notices whose bond carries nothing.
fn offline_says(session: &Value) -> String {
    let (exit, paths) = (text_of(session, "name"), list(session, "paths").count());
    match silence(session) {
        Some(seconds) => format!(
            "none of {paths} paths to the exit {exit} carries packets, nothing has come for {}; what is not of this LAN \
             waits",
            span(seconds as u64)
        ),
        None => format!("no path to the exit {exit} has joined: what is not of this LAN goes nowhere"),
    }
}

/// How to find out whose fault it is: the exit's, or that of all uplinks.
fn offline_todo(state: &Value, session: &Value) -> String {
    let tries =
        list(session, "paths").filter_map(|path| try_by_hand(state, path)).collect::<Vec<_>>().join("; ");
    let tries = if tries.is_empty() { String::new() } else { format!("; {tries}: who answers has internet") };
    format!("check that the exit runs and that its UDP port is open (mwb-node doctor there){tries}")
}

/// A command that tries the line of a path past the bond.
fn try_by_hand(state: &Value, path: &Value) -> Option<String> {
    // A borrowed one is its lender's to try.
    let uplink = list(state, "uplinks").find(|uplink| uplink["name"] == path["link"])?;
    let interface = uplink["interface"].as_str()?;
    let remote: SocketAddr = text_of(path, "remote").parse().ok()?;
    // Bound to a device it passes by the route into the bond.
    Some(format!("ping -c 3 -I {interface} {}", remote.ip()))
}

/// Paths that carry nothing while others of their session do: a host whose bond works does not notice. That an edge is away
/// altogether is no fault of its exit.
fn dead_paths(state: &Value, report: &mut Report) {
    let is_dead = |path: &&Value| text_of(path, "health") == "down";
    let lives = |session: &&Value| !list(session, "paths").all(|path| is_dead(&path));
    for session in list(state, "sessions").filter(lives) {
        for path in list(session, "paths").filter(is_dead) {
            let (name, remote) = (text_of(path, "name"), text_of(path, "remote"));
            let says = format!(
                "{name} to {} at {remote} carries nothing, nothing has come for {}; the others carry its share",
                text_of(session, "name"),
                span(number(path, "silent_seconds") as u64)
            );
            let todo = try_by_hand(state, path).map_or_else(
                || "mwb-node doctor on the host whose uplink it is".to_owned(),
                |command| format!("{command}; without an answer the line or its provider is to blame"),
            );
            report.note("path", says, todo);
        }
    }
}

/// Nothing runs: nothing of ours should be on the host either.
async fn leftovers(patient: &Patient<'_>, report: &mut Report) {
    match cleanup::present(patient.runtime_dir).await {
        Ok(left) if left.is_empty() => report.ok("node", "does not run, and has left nothing on this host"),
        Ok(left) => report.note(
            "node",
            format!("does not run; a killed one has left {}", left.join(", ")),
            "sudo mwb-node down (the next start does it too)",
        ),
        Err(error) => report.note("node", format!("what one has left cannot be seen: {error}"), AS_ROOT),
    }
}

/// Rules that are asked before those of a node: what they take, another VPN as a rule, does not use the bond.
pub(super) async fn rules(patient: &Patient<'_>, report: &mut Report) {
    if !patient.is_edge() {
        return;
    }
    match cleanup::rules().await {
        Ok(rules) if rules.before.is_empty() => {
            report.ok("rules", "none of others comes before those of the node")
        }
        Ok(rules) => report.note(
            "rules",
            format!(
                "others come before the node's: {}; what they take does not use the bond",
                rules.before.join(", ")
            ),
            "ip rule; leave another VPN as it is, its own packets use the bond, or stop it",
        ),
        Err(error) => report.note("rules", format!("cannot be read: {error}"), AS_ROOT),
    }
}

/// Room for notes and membership.
pub(super) fn folders(patient: &Patient<'_>, report: &mut Report) {
    for dir in [patient.state_dir, patient.runtime_dir] {
        let found = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
        let (Some(found), name) = (found, dir.display()) else { continue };
        let subject = "folder";
        if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
            let says = format!("{name} is read-only: a node forgets what it learns of its mesh");
            report.note(subject, says, format!("sudo mount -o remount,rw the file system of {name}"));
        } else if found.f_bavail.saturating_mul(found.f_frsize) < ROOM_MIN {
            report.fault(subject, format!("{name} is full"), format!("df -h {name}, and make room"));
        } else {
            report.ok(subject, format!("{name} has room"));
        }
    }
}

/// The bond itself needs no wall clock; invites and logs do.
pub(super) fn clock(report: &mut Report) {
    let now = SystemTime::now();
    let built = std::env::current_exe().and_then(std::fs::metadata).and_then(|file| file.modified());
    let behind = built.ok().and_then(|built| built.duration_since(now).ok());
    match behind {
        Some(behind) if behind > CLOCK_BEHIND => report.note(
            "clock",
            format!(
                "it is {} behind this program's own file: invites end at wrong times",
                span(behind.as_secs())
            ),
            "sudo timedatectl set-ntp true",
        ),
        _ => report.ok("clock", "plausible (only invites and logs go by it)"),
    }
}
