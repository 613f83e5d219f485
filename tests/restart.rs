//! Goal: whatever happens to a node, its host gets its network back, and the bond works again when the node
//! does. Method: SIGKILL and SIGTERM to real nodes in a lab; the kernel's state is read with `ip` and `nft`.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::time::Duration;

use mwb_sim::traffic::{FlowSpec, download};

use support::lab::Bond;
use support::node::{PATIENCE, command, wait_until};
use support::skip::in_lab;

/// Rules, routes and settings of the edge that a node may change.
fn edge_state(bond: &Bond) -> String {
    let mut state = String::new();
    for what in ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"] {
        state.push_str(&bond.edge.ip(what));
    }
    for interface in ["up0", "up1", "all"] {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        state.push_str(&bond.edge.host().run(move || std::fs::read_to_string(file)).unwrap());
    }
    state
}

/// Settings of the exit that a node may change.
fn exit_settings(bond: &Bond) -> [String; 3] {
    ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/eth0/accept_ra"].map(|file| {
        let file = format!("/proc/sys/net/{file}");
        bond.exit.host().run(move || std::fs::read_to_string(file)).unwrap().trim().to_owned()
    })
}

fn transfer(bond: &Bond) {
    let spec = FlowSpec::bytes(bond.server(), 2_000_000);
    let result = bond.edge.host().run(move || download(&spec)).unwrap();
    assert!(result.complete(), "{:?}", result.failure);
}

#[test]
fn a_stopped_edge_leaves_the_host_as_it_was() {
    in_lab("a_stopped_edge_leaves_the_host_as_it_was", || {
        let mut bond = Bond::prepare();
        let before = edge_state(&bond);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_until("IPv6 goes through", PATIENCE, || bond.is_through_v6());
        assert_ne!(edge_state(&bond), before);
        bond.edge.stop();
        assert_eq!(edge_state(&bond), before);
        assert_eq!(bond.seen_as().as_deref(), Some("10.1.0.2"), "the host's own route is used again");
        let own = bond.edge.host().uplinks()[0].address_v6.to_string();
        assert_eq!(bond.seen_as_v6(), Some(own), "the host's own IPv6 route is used again");
        bond.exit.stop();
        assert_eq!(bond.exit.nft().trim(), "");
    });
}

#[test]
fn a_killed_edge_is_cleaned_and_starts_again() {
    in_lab("a_killed_edge_is_cleaned_and_starts_again", || {
        let mut bond = Bond::prepare();
        let before = edge_state(&bond);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        bond.edge.kill();
        // What is left leads nowhere: the host uses its own uplinks.
        let own = Some(bond.edge.host().uplinks()[0].address_v6.to_string());
        wait_until("the host reaches the internet", PATIENCE, || {
            bond.seen_as().as_deref() == Some("10.1.0.2") && bond.seen_as_v6() == own
        });
        assert_ne!(edge_state(&bond), before);

        let rules = |bond: &Bond| bond.edge.ip("-4 rule").lines().count();
        bond.edge.start();
        bond.wait_until_through();
        transfer(&bond);
        let once = rules(&bond);
        bond.edge.kill();
        bond.edge.start();
        bond.wait_until_through();
        assert_eq!(rules(&bond), once, "nothing piles up");
        let refused = bond.edge.down();
        assert!(!refused.status.success(), "down must not touch a running node");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("a node runs already"), "{refused:?}");
        // Nor must one that looks elsewhere for it.
        let (shown, dir) = (edge_state(&bond), bond.edge.state_dir().with_extension("elsewhere"));
        std::fs::create_dir_all(&dir).unwrap();
        let elsewhere = ["--runtime-dir", dir.to_str().unwrap()];
        let down = bond.edge.host().output(command(&[&["down"], &elsewhere[..]].concat())).unwrap();
        let config = bond.edge.config_file().to_str().unwrap().to_owned();
        let run = bond.edge.mwb(&[&["run", "--config", &config], &elsewhere[..]].concat());
        for refused in [down, run] {
            assert!(!refused.status.success(), "{refused:?}");
            let told = String::from_utf8_lossy(&refused.stderr);
            assert!(
                told.contains("a node that runs with another --runtime-dir has the interface mwb0"),
                "{told}"
            );
        }
        assert_eq!(edge_state(&bond), shown);
        assert!(bond.is_through());

        bond.edge.kill();
        let down = bond.edge.down();
        assert!(down.status.success(), "{down:?}");
        assert!(!down.stdout.is_empty());
        assert_eq!(edge_state(&bond), before);
        let again = bond.edge.down();
        assert_eq!(String::from_utf8_lossy(&again.stdout).trim(), "nothing was left");
    });
}

#[test]
fn a_killed_exit_is_cleaned() {
    in_lab("a_killed_exit_is_cleaned", || {
        let mut bond = Bond::prepare();
        // As on a server that learns its IPv6 route from its router.
        let heed = || std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "1");
        bond.exit.host().run(heed).unwrap();
        assert_eq!(exit_settings(&bond), ["0", "0", "1"]);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_until("IPv6 goes through", PATIENCE, || bond.is_through_v6());
        assert_eq!(exit_settings(&bond), ["1", "1", "2"]);
        assert_eq!(bond.exit.nft().matches("masquerade").count(), 2);
        bond.exit.kill();
        let down = bond.exit.down();
        assert!(down.status.success(), "{down:?}");
        assert_eq!(exit_settings(&bond), ["0", "0", "1"]);
        assert_eq!(bond.exit.nft().trim(), "");
    });
}

#[test]
fn the_session_returns_after_the_exit() {
    in_lab("the_session_returns_after_the_exit", || {
        let mut bond = Bond::start();
        transfer(&bond);
        bond.exit.kill();
        wait_until("nothing goes through without an exit", PATIENCE, || !bond.is_through());
        bond.exit.start();
        wait_until("the session returns", Duration::from_secs(60), || bond.is_through());
        transfer(&bond);
        let rules = bond.exit.nft();
        assert_eq!(rules.matches("masquerade").count(), 2, "one of IPv4, one of IPv6: {rules}");
        // An orderly stop and start is no different.
        bond.exit.stop();
        assert_eq!(bond.exit.nft().trim(), "");
        bond.exit.start();
        wait_until("the session returns", Duration::from_secs(60), || bond.is_through());
        transfer(&bond);
    });
}
