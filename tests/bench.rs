//! Goal: a user's own profile is measured, and report and picture hold what they promise.
//! Method: the real program with a file of its own. What it measures is not judged here.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use mwb_sim::{lab, skip};

use support::node::command;

const PROFILE: &str = r#"
[[profile]]
name = "mine"
kind = "return"
links = [
    { name = "first", mbit = 8, rtt_ms = 10 },
    { name = "second", mbit = 4, rtt_ms = 20, policer_bytes = 20000 },
]
"#;

#[test]
fn an_own_profile_gives_a_report_and_a_picture() {
    const NAME: &str = "an_own_profile_gives_a_report_and_a_picture";
    // The program takes the machine's lock itself.
    lab::in_lab_process(NAME, || {
        if let Err(error) = lab::Lab::preflight() {
            skip::record(NAME, &error.to_string());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (file, plot) = (folder.path().join("mine.toml"), folder.path().join("mine.svg"));
        std::fs::write(&file, PROFILE).unwrap();
        let mut command = command(&["bench", "--profile", "mine", "--seconds", "5", "--json"]);
        command.arg("--profiles").arg(&file).arg("--plot").arg(&plot);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["profile"]["links"][1]["policer_bytes"], 20000);
        let run = &report["runs"][0];
        assert!(run["mbit_without"].as_f64().unwrap() > 0.0, "{run}");
        assert!(run["timeline"]["points"].as_array().unwrap().len() > 100, "{run}");
        let picture = std::fs::read_to_string(&plot).unwrap();
        assert_eq!(picture.matches("<polyline").count(), 3, "{picture}");
        assert!(picture.contains("second is back"), "{picture}");
    });
}
