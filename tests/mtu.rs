//! Goal: a path that silently eats long datagrams is used with what it passes; nothing is lost that the bond
//! could carry. Method: real nodes over two links; a firewall rule at the far end of one drops what is longer
//! than a tunnelled mobile link would pass, from the start or in the middle of a transfer.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::process::Command;
use std::time::Duration;

use mwb_sim::lab::Host;
use mwb_sim::traffic::{EchoSpec, FlowSpec, download, udp_echo, upload};
use serde_json::Value;

use support::lab::Bond;
use support::node::{PATIENCE, wait_until};
use support::skip::in_lab;

const MEGABYTE: u64 = 1_000_000;
/// Longest IPv4 packet that passes.
const LINK_MTU: u64 = 1420;

fn nft(host: &Host, rule: &str) {
    let mut command = Command::new("nft");
    command.arg(rule);
    let output = host.output(command).unwrap();
    assert!(output.status.success(), "{rule}: {output:?}");
}

/// From now on the first link eats long packets, both ways.
fn narrow(bond: &Bond) {
    let address = bond.edge.ip("-4 -o address show dev up0");
    let address = address.split_whitespace().nth(3).and_then(|net| net.split('/').next()).unwrap();
    let ends =
        [(bond.edge.host(), "iifname up0".to_owned()), (bond.exit.host(), format!("ip saddr {address}"))];
    for (host, from) in ends {
        nft(
            host,
            "add table inet narrow; add chain inet narrow eat { type filter hook prerouting priority -300; }",
        );
        nft(
            host,
            &format!(
                "add rule inet narrow eat {from} meta l4proto udp meta length > {LINK_MTU} counter drop"
            ),
        );
    }
}

/// Datagram size that the edge found on its first path, and how often the path had shrunk.
fn found(bond: &Bond) -> (u64, u64) {
    let status = bond.edge.status().unwrap_or_default();
    let paths = status["sessions"][0]["sender"]["paths"].as_array().cloned().unwrap_or_default();
    let number = |path: &Value, key: &str| path[key].as_u64().unwrap_or(0);
    let first = paths.iter().find(|path| number(path, "path") & 63 == 1);
    first.map(|path| (number(path, "datagram_max"), number(path, "black_holes"))).unwrap_or_default()
}

fn assert_transfers(bond: &Bond, bytes: u64) {
    for flow in [download as fn(&FlowSpec) -> _, upload] {
        let spec = FlowSpec::bytes(bond.server(), bytes).patience(Duration::from_secs(60));
        let before = bond.carried()[0];
        let result = bond.edge.host().run(move || flow(&spec)).unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        let after = bond.carried()[0];
        let carried = (after.0 - before.0).max(after.1 - before.1);
        assert!(carried > bytes / 4, "the narrow link carried {carried} of {bytes} bytes");
    }
}

#[test]
fn a_narrow_path_is_used_with_what_it_passes() {
    in_lab("a_narrow_path_is_used_with_what_it_passes", || {
        let mut bond = Bond::prepare();
        narrow(&bond);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        let fits = |size: u64| size <= LINK_MTU - 28 && size > LINK_MTU - 28 - 8;
        wait_until("its size is found", PATIENCE, || fits(found(&bond).0));
        // New connections fit; UDP of any size crosses in fragments.
        assert_transfers(&bond, 10 * MEGABYTE);
        let echo =
            EchoSpec { size: 1400, ..EchoSpec::new(bond.server(), 50.0, 1400, Duration::from_secs(2)) };
        let result = bond.edge.host().run(move || udp_echo(&echo)).unwrap();
        assert!(result.received >= 99, "{result:?}");
        assert_eq!(found(&bond).1, 0, "it never shrank");
    });
}

#[test]
fn a_path_that_shrinks_under_a_transfer_goes_on() {
    in_lab("a_path_that_shrinks_under_a_transfer_goes_on", || {
        let bond = Bond::start();
        wait_until("the full size is found", PATIENCE, || found(&bond).0 > LINK_MTU - 28);
        let spec = FlowSpec::bytes(bond.server(), 30 * MEGABYTE).patience(Duration::from_secs(60));
        let before = bond.carried()[0].1;
        let running = bond.edge.host().start(move || upload(&spec));
        wait_until("the transfer runs", PATIENCE, || bond.carried()[0].1 - before > 2 * MEGABYTE);
        narrow(&bond);
        assert!(!running.is_finished(), "the transfer was over before");
        let result = running.join().unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        let (size, shrunk) = found(&bond);
        assert!(size <= LINK_MTU - 28 && shrunk >= 1, "{size} bytes, shrunk {shrunk} times");
        assert_transfers(&bond, 10 * MEGABYTE);
    });
}
