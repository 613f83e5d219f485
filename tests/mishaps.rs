//! Goal: what goes wrong around a node costs what it must and no more, and the log says what it was. Method: real nodes
//! in a lab, and the mishap itself: an interface that vanishes, a key on two hosts, a taken port.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::net::UdpSocket;
use std::time::Duration;

use mwb_sim::traffic::{FlowSpec, upload};
use tempfile::TempDir;

use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

const MEGABYTE: u64 = 1_000_000;

#[test]
fn an_interface_that_vanishes_in_mid_send_costs_its_share() {
    in_lab("an_interface_that_vanishes_in_mid_send_costs_its_share", || {
        let mut bond = Bond::start();
        let spec = FlowSpec::bytes(bond.server(), 20 * MEGABYTE).patience(Duration::from_secs(90));
        let running = bond.edge.host().start(move || upload(&spec));
        wait_until("the slow link carries a part", PATIENCE, || bond.carried()[1].1 > MEGABYTE / 2);
        // Into another namespace: for the edge it is gone, as a stick that was pulled.
        let elsewhere = bond.exit.pid().to_string();
        bond.edge.ip(&format!("link set up1 netns {elsewhere}"));
        assert!(!bond.edge.ip("link").contains("up1"), "it is gone");
        assert!(!running.is_finished(), "the upload was over before the interface vanished");
        let result = running.join().unwrap();
        assert!(result.complete() && result.total_bytes == 20 * MEGABYTE, "{:?}", result.failure);
        bond.edge.check();
        wait_until("the status says what is wrong", PATIENCE, || {
            let status = bond.edge.status().unwrap_or_default();
            status["links"][1]["problem"].as_str().is_some_and(|problem| !problem.is_empty())
        });
        bond.edge.stop();
    });
}

#[test]
fn two_nodes_with_one_key_are_told_and_do_not_storm() {
    in_lab("two_nodes_with_one_key_are_told_and_do_not_storm", || {
        let mut bond = Bond::start();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let mut twin = twin(&bond, &dir);
        twin.start();
        let words = "two nodes use this node's key";
        wait_until("the exit says so", Duration::from_secs(40), || bond.exit.log().contains(words));
        wait_until("an edge says so", PATIENCE, || {
            [bond.edge.log(), twin.log()].iter().any(|log| log.contains("another node uses this node's key"))
        });
        let lines = bond.exit.log().lines().count();
        std::thread::sleep(Duration::from_secs(6));
        let log = bond.exit.log();
        assert!(log.matches(words).count() <= 3, "told now and then:\n{log}");
        let more = log.lines().count() - lines;
        assert!(more < 100, "{more} lines in 6 s:\n{log}");
        // The one that stays gets everything.
        twin.stop();
        wait_until("the edge is alone", PATIENCE, || bond.is_through());
        bond.edge.check();
        bond.exit.check();
    });
}

/// A node with the edge's key on the host of the test's servers, which reaches the exit too.
fn twin(bond: &Bond, dir: &TempDir) -> Node {
    let twin = Node::new(bond.server_host(), dir.path());
    for file in std::fs::read_dir(bond.edge.state_dir()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), twin.state_dir().join(file.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(bond.edge.config_file()).unwrap();
    let (_, peers) = config.split_once("[[peers]]").expect("the exit");
    twin.configure(&format!("[[uplinks]]\ninterface = \"eth0\"\n[[peers]]{peers}"));
    twin
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    in_lab("a_taken_port_is_named_with_what_to_do", || {
        let mut bond = Bond::prepare();
        let taken = bond.exit.host().run(|| UdpSocket::bind("0.0.0.0:9000")).unwrap();
        bond.exit.start();
        let (code, log) = bond.exit.ended(PATIENCE);
        assert_ne!(code, Some(0), "{log}");
        for words in ["cannot listen on 0.0.0.0:9000", "free the address, or change exit.listen"] {
            assert!(log.contains(words), "{words:?} in\n{log}");
        }
        assert_eq!(bond.exit.nft().trim(), "", "nothing is left");
        drop(taken);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
    });
}
