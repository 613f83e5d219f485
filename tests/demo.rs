//! Goal: the first command of the README works, says what it promises to say, and leaves nothing, however it ends.
//! Method: the real program with a folder for temporary files of its own, by which the processes it starts are known:
//! their configurations are in it. Namespaces are known by what those processes live in.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use support::node::{PATIENCE, command, wait_until};
use support::skip::in_lab;

/// The shortest demo there is.
const SECONDS: &str = "12";
/// Edge and exit at least.
const NODES_MIN: usize = 2;
/// Until a demo has measured the uplinks alone and runs its nodes.
const NODES_RUN: Duration = Duration::from_secs(60);

fn demo(folder: &Path) -> Command {
    let mut command = command(&["demo", "--json", "--seconds", SECONDS]);
    command.env("TMPDIR", folder);
    command
}

/// Processes with `folder` in their command line.
fn processes(folder: &Path) -> Vec<u32> {
    let folder = folder.to_str().unwrap();
    let ids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(folder)
    })
    .collect()
}

fn namespace(of: &Path) -> Option<String> {
    Some(std::fs::read_link(of.join("ns/net")).ok()?.to_str()?.to_owned())
}

/// Network namespaces of all threads of a process.
fn namespaces(process: u32) -> BTreeSet<String> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| namespace(&thread.path())).collect()
}

/// Those in which some thread of the machine lives.
fn inhabited(namespaces_of_demo: &BTreeSet<String>) -> bool {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.into_iter().any(|id| !namespaces(id).is_disjoint(namespaces_of_demo))
}

fn start(folder: &Path) -> Child {
    demo(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until the nodes of a demo run; all namespaces of its lab.
fn namespaces_of_lab(demo: &Child, folder: &Path) -> BTreeSet<String> {
    wait_until("the demo runs its nodes", NODES_RUN, || processes(folder).len() >= NODES_MIN);
    let mut lab = namespaces(demo.id());
    lab.extend(processes(folder).into_iter().flat_map(namespaces));
    lab.remove(&namespace(Path::new("/proc/self")).unwrap());
    assert!(lab.len() > NODES_MIN, "{lab:?}");
    assert!(inhabited(&lab));
    lab
}

#[test]
fn the_demo_measures_and_leaves_nothing() {
    in_lab("the_demo_measures_and_leaves_nothing", || {
        let folder = tempfile::tempdir().unwrap();
        let output = demo(folder.path()).output().unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let number =
            |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key} is missing: {report:#}"));
        let (best, sum, bond) = (number("best_link_mbit"), number("sum_mbit"), number("bond_mbit"));
        // The promise that no busy machine breaks; the exact ratio is what a person runs it for.
        assert!(best > 5.0 && bond > best && sum > best, "{report:#}");
        assert!((number("bond_over_sum") - bond / sum).abs() < 1e-9, "{report:#}");
        assert!(number("cut_mbit") > 0.0 && report["cut_link"].is_string(), "{report:#}");
        let pause = number("longest_pause_ms");
        assert!(pause > 0.0 && pause < 5000.0, "{report:#}");
        assert_eq!(report["complete"], true, "{report:#}");
        let links = report["links"].as_array().unwrap();
        assert_eq!(links.len(), 3);
        for link in links {
            assert!(link["name"].is_string() && link["host"].is_string(), "{link}");
            assert!(
                link["rtt_ms"].as_u64().unwrap() > 0 && link["alone_mbit"].as_f64().unwrap() > 1.0,
                "{link}"
            );
            assert!(
                link["bond_bytes"].as_u64().unwrap() > 500_000,
                "every uplink carries its part: {report:#}"
            );
        }
        let alone: f64 = links.iter().map(|link| link["alone_mbit"].as_f64().unwrap()).sum();
        assert!((alone - sum).abs() < 1e-6);
        assert!(log.contains("is cut") && log.contains("is back"), "{log}");
        assert_eq!(processes(folder.path()), [0u32; 0]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files are left");
    });
}

#[test]
fn a_killed_demo_leaves_no_process_and_an_interrupted_one_nothing_at_all() {
    in_lab("a_killed_demo_leaves_no_process_and_an_interrupted_one_nothing_at_all", || {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Two at once do not wait for each other, nor does the end of one hurt the other.
        let (mut killed, mut interrupted) = (start(first.path()), start(second.path()));
        let lab = namespaces_of_lab(&killed, first.path());
        let other_lab = namespaces_of_lab(&interrupted, second.path());
        assert!(lab.is_disjoint(&other_lab));
        assert!(!processes(first.path()).is_empty());
        killed.kill().unwrap();
        killed.wait().unwrap();
        wait_until("the processes and namespaces of the killed demo are gone", PATIENCE, || {
            processes(first.path()).is_empty() && !inhabited(&lab)
        });
        assert!(processes(second.path()).len() >= NODES_MIN);
        assert!(interrupted.try_wait().unwrap().is_none());
        kill_process(Pid::from_child(&interrupted), Signal::INT).unwrap();
        let status = interrupted.wait().unwrap();
        assert_eq!(status.code(), Some(130));
        assert_eq!(processes(second.path()), [0u32; 0]);
        assert!(!inhabited(&other_lab));
        assert_eq!(std::fs::read_dir(second.path()).unwrap().count(), 0, "files are left");
    });
}
