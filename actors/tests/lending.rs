//! Goal: what goes over a borrowed uplink survives the death of every part that lending is made of.
//! Method: a borrower that has no uplink of its own, a lender and an exit as real nodes in three network
//! namespaces; an echo and a TCP transfer while faults are injected by name. Needs root; without it the test is
//! skipped, or fails when `MWB_REQUIRE=all` says that nothing may be skipped.

mod support;

use std::time::Duration;

use mwb_actors::Fault;
use support::lending::LendingBed;
use support::skip_without_root;

#[test]
fn every_death_among_lender_and_borrower_is_short() {
    let Some(bed) = skip_without_root(LendingBed::new) else { return };
    bed.wait(Duration::from_secs(10));
    let idle = bed.start_echo(100, Duration::from_millis(10)).join().expect("echo");
    eprintln!("idle: {idle:?}");
    assert_eq!(idle.lost, 0, "{:#?}", bed.lender.status().leases);
    let lent = bed.lender.status().leases.expect("it is on a LAN").lent;
    assert!(lent.len() == 1 && lent[0].relay == "relay-1" && lent[0].up.bytes > 0, "{lent:?}");

    let (lender, borrower) = (&bed.lender, &bed.borrower);
    let parts = [
        (lender, "lender", "relays/relay-1", Fault::Panic),
        (lender, "lender", "relays/relay-1/up", Fault::Panic),
        (lender, "lender", "relays/relay-1/down", Fault::Error),
        (lender, "lender", "relays", Fault::Panic),
        (lender, "lender", "control/lend", Fault::Panic),
        (lender, "lender", "control/peer-lan-borrower", Fault::Panic),
        (lender, "lender", "control", Fault::Panic),
        (borrower, "borrower", "control/borrow", Fault::Panic),
        (borrower, "borrower", "control/peer-lan-lender", Fault::Panic),
        (borrower, "borrower", "links/lan-lan0", Fault::Panic),
        (borrower, "borrower", "control/peer-exit", Fault::Panic),
    ];
    for (node, name, part, fault) in parts {
        let run = bed.start_echo(150, Duration::from_millis(10));
        std::thread::sleep(Duration::from_millis(200));
        assert!(node.inject(part, fault), "{name} has no {part}: {:#?}", node.status().actors);
        let run = run.join().expect("echo");
        eprintln!("{name} {part}: {run:?}");
        assert!(run.pause < Duration::from_secs(1), "{name} {part}: {run:?}");
    }
    let lent = bed.lender.status().leases.expect("it is on a LAN").lent;
    assert!(lent.len() == 1 && lent[0].relay == "relay-1", "the lease outlived them all: {lent:?}");
    // Its uplink counts what it carried for the borrower, as of the last window.
    let links = bed.lender.status().links;
    let counted: u64 = links.iter().map(|link| link.lent_up_bytes.min(link.lent_down_bytes)).sum();
    assert!(counted > 0, "{links:?}");
    bed.stop();
}

#[test]
fn a_relay_that_dies_under_load_costs_a_moment() {
    let Some(bed) = skip_without_root(LendingBed::new) else { return };
    bed.wait(Duration::from_secs(10));
    let transfer = bed.start_transfer(400_000_000);
    let mut deaths = 0;
    for part in ["", "/up", "/down"] {
        std::thread::sleep(Duration::from_millis(800));
        if transfer.is_finished() {
            break;
        }
        // A lease may have been made anew meanwhile; it is the relay in use that dies.
        let leases = bed.lender.status().leases.expect("it is on a LAN");
        let relay = leases.lent.last().map(|lent| format!("relays/{}{part}", lent.relay));
        let relay = relay.unwrap_or_else(|| panic!("nothing is lent: {leases:?}"));
        assert!(bed.lender.inject(&relay, Fault::Panic), "{relay}");
        deaths += 1;
    }
    let transfer = transfer.join().expect("the flow lives and is intact");
    eprintln!("with {deaths} deaths of the relay: {transfer:?}");
    assert!(deaths > 0, "the transfer was too short to be disturbed");
    // Idle machines measure a third of a second; TCP waits longer when its timers fire late as well.
    assert!(transfer.pause < Duration::from_secs(2), "{transfer:?}");
    bed.stop();
}
