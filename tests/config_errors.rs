//! Goal: a person who makes a mistake is told what is wrong and what to do, with an exit code for scripts.
//! Method: the real program with small files.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::path::Path;

use support::node::{command, run};

const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn check(text: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, text).unwrap();
    let output = run(&["config", "check", file.to_str().unwrap()]);
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_sample_that_is_printed_is_accepted() {
    let output = run(&["config", "default"]);
    assert!(output.status.success());
    let (code, text) = check(std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("edge-1 is an edge with 2 uplinks"), "{text}");
}

#[test]
fn refusals_name_key_origin_and_fix() {
    let (code, text) = check(&format!(
        "[exit]\nlisten = [\"9000\"]\n[tun]\nmtu = 100\n[[peers]]\nnode_id = \"{ID}\"\n[[peers]]\nnode_id = \"{ID}\"\n"
    ));
    assert_eq!(code, Some(2), "{text}");
    for part in ["exit.listen[0] (", "node.toml)", "tun.mtu (", "peers[1].node_id (", "fix: "] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let (code, text) = check("[tunnel]\nmtu = 1400\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("unknown field `tunnel`"), "{text}");
    let (code, text) = check("[tun\n");
    assert_eq!(code, Some(2), "{text}");
}

#[test]
fn the_environment_is_named_as_the_origin() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, format!("[exit]\n[[peers]]\nnode_id = \"{ID}\"\n")).unwrap();
    let mut command = command(&["config", "check", file.to_str().unwrap()]);
    let output = command.env("MWB__TUN__MTU", "99").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("tun.mtu (the environment): 99 is out of range"), "{text}");
}

#[test]
fn run_refuses_what_check_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let output =
        run(&["run", "--config", &path("none.toml"), "--state-dir", &path("s"), "--runtime-dir", &path("r")]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("none.toml") && text.contains("mwb-node config default >"), "{text}");
    assert!(!Path::new(&path("s")).exists() && !Path::new(&path("r")).exists(), "nothing was made");
    // No file is needed, but a mesh is.
    let output = run(&["run", "--state-dir", &path("s"), "--runtime-dir", &path("r")]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mwb-node join TOKEN"));
}

#[test]
fn asking_and_cleaning_where_no_node_runs() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("run");
    let output = run(&["status", "--runtime-dir", runtime.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("mwb-node run --config"));
    assert!(output.stdout.is_empty());
}

#[test]
fn keys_are_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let key = || String::from_utf8(run(&["key", "--state-dir", state.to_str().unwrap()]).stdout).unwrap();
    let first = key();
    assert!(first.trim().len() == 64 && first.trim().bytes().all(|byte| byte.is_ascii_hexdigit()), "{first}");
    assert_eq!(key(), first);
}

#[test]
fn unknown_profiles_are_listed() {
    let output = run(&["bench", "--profile", "nothing"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("no lab can be built") || text.contains("three-path"), "{text}");
}
