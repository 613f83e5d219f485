//! Goal: when the exit, or one of the uplinks, is no longer reached, everything that a person may ask says so within
//! seconds, the same thing everywhere, and what to do; and no longer once it is back. Method: real nodes whose emulated
//! links are cut, asked with the words of the manual.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::process::Command;
use std::time::Duration;

use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

/// Idle paths are looked at every five seconds; what the sender has found out must not wait for that.
const SOON: Duration = Duration::from_secs(5);

fn said(node: &Node, arguments: &[&str]) -> String {
    String::from_utf8(node.ask_here(arguments).stdout).unwrap()
}

fn doctor(node: &Node) -> String {
    String::from_utf8(node.doctor(&[]).stdout).unwrap()
}

/// States of the links called `up…`, as `mwb-node links` shows them.
fn states(node: &Node) -> Vec<String> {
    let links: serde_json::Value = serde_json::from_str(&said(node, &["links", "--json"])).unwrap();
    let links = links.as_array().unwrap().iter();
    let ours = links.filter(|link| link["name"].as_str().unwrap().starts_with("up"));
    ours.map(|link| link["state"].as_str().unwrap().to_owned()).collect()
}

fn settle(bond: &Bond) {
    wait_until("both paths are up and settled", PATIENCE, || states(&bond.edge) == ["up", "up"]);
}

#[test]
fn an_exit_that_is_not_reached_is_no_secret() {
    in_lab("an_exit_that_is_not_reached_is_no_secret", || {
        let mut bond = Bond::start();
        settle(&bond);
        // Six seconds of nothing: the probes' rounds are long now.
        std::thread::sleep(Duration::from_secs(6));
        for link in ["fast", "slow"] {
            bond.emulator().cut(link).unwrap();
        }
        wait_until("status, links and log say so", SOON, || {
            said(&bond.edge, &["status"]).contains("OFFLINE: no path to the exit exit carries packets")
                && states(&bond.edge) == ["down", "down"]
                && bond.edge.log().contains("offline: no path to the exit carries packets")
        });
        let mut dns = Command::new("sh");
        dns.args(["-ec", "echo nameserver 10.9.9.9 > /etc/resolv.conf"]);
        assert!(bond.edge.host().output(dns).unwrap().status.success());
        let told = doctor(&bond.edge);
        assert!(told.contains("FAULT  offline"), "{told}");
        let exit = bond.exit.host().address();
        assert!(told.contains(&format!("ping -c 3 -I up0 {exit}; ping -c 3 -I up1 {exit}")), "{told}");
        assert!(told.contains("the bond that leads there is offline"), "{told}");
        assert!(!told.contains("names do not resolve"), "the resolvers are not to blame:\n{told}");
        let told = doctor(&bond.exit);
        assert!(!told.contains("carries nothing"), "an edge that is away is no fault of the exit:\n{told}");
        // Even when the connections have ended meanwhile.
        std::thread::sleep(Duration::from_secs(12));
        assert!(said(&bond.edge, &["status"]).contains("OFFLINE"), "{}", said(&bond.edge, &["status"]));
        assert!(doctor(&bond.edge).contains("FAULT  offline"));
        for link in ["fast", "slow"] {
            bond.emulator().restore(link).unwrap();
        }
        bond.wait_until_through();
        wait_until("it is over", PATIENCE, || {
            !said(&bond.edge, &["status"]).contains("OFFLINE") && bond.edge.log().contains("online again")
        });
        assert_eq!(bond.edge.log().matches("offline: no path").count(), 1, "{}", bond.edge.log());
        bond.edge.stop();
    });
}

#[test]
fn a_black_hole_beside_a_good_uplink_is_named() {
    in_lab("a_black_hole_beside_a_good_uplink_is_named", || {
        let bond = Bond::start();
        settle(&bond);
        bond.emulator().cut("slow").unwrap();
        wait_until("links shows it", SOON, || states(&bond.edge) == ["up", "down"]);
        let told = doctor(&bond.edge);
        let exit = bond.exit.host().address();
        assert!(told.contains("up1 to exit") && told.contains(&format!("ping -c 3 -I up1 {exit}")), "{told}");
        assert!(!told.contains("FAULT  offline"), "{told}");
        assert!(!said(&bond.edge, &["status"]).contains("OFFLINE"));
        // The exit calls the paths as the edge does.
        let status = said(&bond.exit, &["status"]);
        assert!(status.contains("up0 ") && status.contains("up1 "), "{status}");
        let peers = said(&bond.exit, &["peers"]);
        assert!(peers.contains("edge ") && peers.contains(&bond.edge.id[..12]), "{peers}");
    });
}
