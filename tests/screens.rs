//! Goal: `links` and `sessions` show what the bond does at this moment, on screens of 80 columns. Method: a real bond under
//! a download; rates are held against the emulator's.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]
#![allow(clippy::print_stdout, reason = "the screens, shown with --nocapture")]

mod support;

use std::time::Duration;

use mwb_sim::traffic::{FlowSpec, download};
use serde_json::Value;

use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

fn json(node: &Node, what: &str) -> Vec<Value> {
    let output = node.ask_here(&[what, "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn screen(node: &Node, what: &str) -> String {
    let output = node.ask_here(&[what]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    println!("$ mwb-node {what}\n{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "more than 80 columns:\n{text}");
    text
}

#[test]
fn links_and_sessions_show_a_running_download() {
    in_lab("links_and_sessions_show_a_running_download", || {
        let bond = Bond::start();
        let spec = FlowSpec::seconds(bond.server(), 6);
        let running = bond.edge.host().start(move || download(&spec));
        let sum = |rows: &[Value], key: &str| rows.iter().filter_map(|row| row[key].as_f64()).sum::<f64>();
        // 60 Mbit/s over both; an overloaded machine has less.
        wait_until("both links carry it", PATIENCE, || {
            let links = json(&bond.edge, "links");
            let busy = links.iter().filter(|link| link["mbit_down"].as_f64() > Some(2.0)).count();
            busy == 2 && sum(&links, "mbit_down") < 80.0
        });
        let links = json(&bond.edge, "links");
        let link = &links[1];
        assert_eq!((&link["name"], &link["gateway"]), (&"up1".into(), &"10.1.1.1".into()), "{link:#}");
        assert_eq!((&link["type"], &link["interface"]), (&"lte".into(), &"up1".into()), "{link:#}");
        assert!(link["delay_ms"].as_f64() > Some(10.0), "{link:#}");
        let sessions = json(&bond.edge, "sessions");
        assert_eq!((&sessions[0]["peer"], &sessions[0]["role"]), (&"exit".into(), &"edge".into()));
        assert!(sessions[0]["age_seconds"].as_f64() > Some(0.5), "{sessions:#?}");
        let exits = json(&bond.exit, "sessions");
        assert!(exits[0]["mbit_out"].as_f64() > Some(2.0) || running.is_finished(), "{exits:#?}");
        for node in [&bond.edge, &bond.exit] {
            assert!(screen(node, "links").lines().count() > 2);
            assert!(screen(node, "sessions").contains("gaps wait up to"));
        }
        running.join().unwrap();
        // Ctrl-C ends a screen that is shown again and again.
        let mut watch = bond.edge.start_asking(&["links", "--watch"]);
        assert!(watch.wait_for_output("\x1b[H\x1b[J", PATIENCE).unwrap());
        assert!(watch.wait_for(Duration::from_millis(100)).unwrap().is_none(), "it goes on");
        watch.kill().unwrap();
    });
}
