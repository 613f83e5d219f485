//! Goal: traffic of programs on the edge goes through the exit, over both uplinks, whole, also while one of them is
//! cut. Method: two real nodes, a real kernel, two emulated links; bytes per link are the emulator's.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::time::Duration;

use mwb_sim::traffic::{EchoSpec, FlowResult, FlowSpec, download, udp_echo, upload};

use support::icmp::ping;
use support::lab::Bond;
use support::node::wait_until;
use support::skip::in_lab;

const MEGABYTE: u64 = 1_000_000;

fn assert_whole(result: &FlowResult, bytes: u64) {
    assert!(result.complete() && result.total_bytes == bytes, "{:?}", result.failure);
}

#[test]
fn a_download_and_an_upload_use_both_links() {
    in_lab("a_download_and_an_upload_use_both_links", || {
        let mut bond = Bond::start();
        let spec = FlowSpec::bytes(bond.server(), 20 * MEGABYTE);

        let before = bond.carried();
        let down = spec.clone();
        assert_whole(&bond.edge.host().run(move || download(&down)).unwrap(), 20 * MEGABYTE);
        let between = bond.carried();
        let up = spec.seed(2);
        assert_whole(&bond.edge.host().run(move || upload(&up)).unwrap(), 20 * MEGABYTE);
        let after = bond.carried();

        for link in 0..2 {
            let (down, up) = (between[link].0 - before[link].0, after[link].1 - between[link].1);
            assert!(down > MEGABYTE, "link {link} carried {down} bytes of the download");
            assert!(up > MEGABYTE, "link {link} carried {up} bytes of the upload");
        }
        let status = bond.edge.status().expect("it runs");
        assert_eq!(status["node_id"], bond.edge.id.as_str());
        bond.edge.stop();
        bond.exit.stop();
    });
}

#[test]
fn small_packets_come_back() {
    in_lab("small_packets_come_back", || {
        let bond = Bond::start();
        let echo = EchoSpec::new(bond.server(), 50.0, 100, Duration::from_secs(2));
        let result = bond.edge.host().run(move || udp_echo(&echo)).unwrap();
        assert_eq!(result.sent, 100);
        assert!(result.received >= 99, "{result:?}");
        assert_eq!(result.duplicates, 0, "{result:?}");
        // An ICMP echo crosses the masquerade in another way than UDP.
        let server = bond.server().ip();
        let answered = bond.edge.host().run(move || (0..5).filter(|number| ping(server, *number)).count());
        assert!(answered >= 4, "{answered} of 5 ICMP echoes were answered");
    });
}

#[test]
fn a_transfer_survives_a_cut_link() {
    in_lab("a_transfer_survives_a_cut_link", || {
        let bond = Bond::start();
        for (name, flow) in [("download", download as fn(&FlowSpec) -> _), ("upload", upload)] {
            let spec = FlowSpec::bytes(bond.server(), 20 * MEGABYTE).patience(Duration::from_secs(90));
            let before = bond.carried();
            let running = bond.edge.host().start(move || flow(&spec));
            wait_until("the fast link carries the transfer", Duration::from_secs(20), || {
                let (down, up) = bond.carried()[0];
                down - before[0].0 > 2 * MEGABYTE || up - before[0].1 > 2 * MEGABYTE
            });
            bond.emulator().cut("fast").unwrap();
            assert!(!running.is_finished(), "the {name} was over before the cut");
            let result = running.join().unwrap();
            assert_whole(&result, 20 * MEGABYTE);
            bond.emulator().restore("fast").unwrap();
            let before = bond.carried();
            wait_until("the fast link is used again", Duration::from_secs(60), || {
                let spec = FlowSpec::bytes(bond.server(), MEGABYTE);
                assert_whole(&bond.edge.host().run(move || flow(&spec)).unwrap(), MEGABYTE);
                let now = bond.carried()[0];
                now.0 - before[0].0 > MEGABYTE / 4 || now.1 - before[0].1 > MEGABYTE / 4
            });
        }
    });
}
