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
    assert!(text.contains("correct") && text.contains("what its membership says"), "{text}");
}

#[test]
fn refusals_name_key_origin_and_fix() {
    let (code, text) = check(&format!(
        "[exit]\nlisten = [\"9000\"]\n[tun]\nmtu = 100\n[[peers]]\nnode_id = \"{ID}\"\n[[peers]]\nnode_id = \"{ID}\"\n"
    ));
    assert_eq!(code, Some(2), "{text}");
    for part in ["exit.listen[0] (", "node.toml:4)", "tun.mtu (", "peers[1].node_id (", "fix: "] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let (code, text) = check("[tunnel]\nmtu = 1400\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("tunnel (") && text.contains("node.toml:1): unknown key"), "{text}");
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
    assert!(text.contains("tun.mtu (environment variable MWB__TUN__MTU): 99 is out of range"), "{text}");
    let output =
        run(&["config", "check", file.to_str().unwrap(), "--set", "tun.mtu=98", "--set", "lan.prot=1"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("tun.mtu (--set tun.mtu): 98 is out of range"), "{text}");
    assert!(text.contains("lan.prot (--set lan.prot): unknown key; did you mean lan.port?"), "{text}");
}

#[test]
fn files_for_other_bonding_programs_load_with_warnings() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/config");
    let mut judged = 0;
    for file in std::fs::read_dir(&fixtures).unwrap() {
        let path = file.unwrap().path();
        let output = run(&["config", "check", path.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{}: {text}", path.display());
        assert!(text.lines().all(|line| line.starts_with("warning: ")), "{text}");
        judged += 1;
    }
    assert_eq!(judged, 8);
    let mesh = fixtures.join("mesh.json");
    let text = String::from_utf8(run(&["config", "check", mesh.to_str().unwrap()]).stderr).unwrap();
    let line = "warning: mesh_network.failover.threshold (";
    assert!(text.contains(line) && text.contains("mesh.json:5): has no effect"), "{text}");
}

#[test]
fn an_interface_that_is_not_there_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.yaml");
    std::fs::write(&file, "uplinks:\n  - interface: lo\n  - interface: none77\n").unwrap();
    let output = run(&["config", "check", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("uplinks[1].interface (") && text.contains("node.yaml:3): there is no interface"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 1, "lo is there: {text}");
}

#[test]
fn what_holds_is_shown_with_its_origin() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, "[tun]\nmtu = 1400\n[[uplinks]]\ninterface = \"lo\"\n").unwrap();
    let show = |arguments: &[&str]| {
        let mut command = command(&["config", "show", file.to_str().unwrap()]);
        let output = command.args(arguments).env("MWB__BOND__ECN", "false").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = show(&["--set", "uplinks[0].weight=30"]);
    for line in [
        "[[uplinks]]",
        "weight = 30",
        "# --set uplinks[0].weight",
        "node.toml:2",
        "# environment variable MWB__BOND__ECN",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let entries: serde_json::Value = serde_json::from_str(&show(&["--json"])).unwrap();
    let origin = |key: &str| {
        let entry = entries.as_array().unwrap().iter().find(|entry| entry["key"] == key).unwrap();
        entry["origin"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        [origin("tun.mtu"), origin("tun.name"), origin("bond.ecn")],
        ["file", "default", "environment"]
    );
    // What is shown is a configuration that means the same.
    let (code, again) = check(&text);
    assert_eq!(code, Some(0), "{again}");
}

#[test]
fn the_schema_is_json_and_the_keys_are_a_page() {
    let schema: serde_json::Value = serde_json::from_slice(&run(&["config", "schema"]).stdout).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert_eq!(schema["properties"]["tun"]["properties"]["mtu"]["maximum"], 9000);
    let page = String::from_utf8(run(&["config", "keys"]).stdout).unwrap();
    assert!(page.starts_with("# Configuration keys\n") && page.contains("| `mtu` | `1408` |"), "{page}");
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
    assert!(String::from_utf8_lossy(&output.stderr).contains("start one with mwb-node run"));
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

#[test]
fn completions_and_manual_pages_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("mwb-node") && script.contains("revoke"), "{shell}: {script}");
    }
    let output = run(&["completions", "cobol"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    let page = String::from_utf8(run(&["man"]).stdout).unwrap();
    assert!(page.starts_with(".ie") && page.contains(".TH"), "{page}");
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let output = run(&["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    for page in ["mwb-node.1", "mwb-node-run.1", "mwb-node-config-check.1"] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    std::fs::write(dir.path().join("file"), "").unwrap();
    let output = run(&["man", dir.path().join("file").to_str().unwrap()]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && text.contains("writing the manual pages to"), "{text}");
}
