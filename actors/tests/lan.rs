//! Goal: no death of an actor of the LAN plane costs the connection of two members, or a message on it.
//! Method: two real nodes in two network namespaces, one of their links being the LAN; numbered
//! messages all the time, and faults injected by name at both ends. Needs root; without it the test is
//! skipped, or fails when `MWB_REQUIRE=all` says that nothing may be skipped.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mwb_actors::lan::LanPeer;
use mwb_actors::{Fault, RunningNode};
use mwb_proto::control::{Message, UplinkAnnounce, UplinkInfo, UplinkKind};
use support::{Bed, skip_without_root};

/// Far below the thousand in a second for which a member is sent away.
const MESSAGE_EVERY: Duration = Duration::from_millis(4);
/// Name of the uplink whose rate is the number of the message.
const NUMBERED: &str = "numbered";

/// The one peer of `node`, once it is connected.
fn peer(node: &RunningNode) -> Arc<LanPeer> {
    let begin = Instant::now();
    loop {
        let peers = node.lan_peers().expect("a LAN").all();
        if let Some(peer) = peers.into_iter().find(|peer| peer.connection().is_some()) {
            return peer;
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "not connected: {:#?}", node.status().lan);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An announcement that carries a number, of an uplink that nobody may lease.
fn numbered(number: u64) -> Message {
    Message::UplinkAnnounce(UplinkAnnounce {
        uplinks: vec![UplinkInfo {
            id: 31,
            name: NUMBERED.to_owned(),
            kind: UplinkKind::Unknown,
            up: false,
            lend: false,
            metered: false,
            rate_up: number,
            rate_down: 0,
            rtt_us: 0,
            loss_ppm: 0,
            gateway: None,
        }],
    })
}

/// Sends numbered messages until `end`; gives how many.
fn talk(peer: &LanPeer, end: &AtomicBool) -> u64 {
    let mut number = 0;
    while !end.load(Ordering::Relaxed) {
        // A full outbox says so; nothing that was taken may be lost.
        if peer.send(numbered(number)) {
            number += 1;
        }
        std::thread::sleep(MESSAGE_EVERY);
    }
    number
}

/// Follows the numbers until `end`, and checks their order; gives the count up to the last one seen, and
/// the longest time without a new one.
fn listen(peer: &LanPeer, end: &AtomicBool) -> (u64, Duration) {
    let (mut count, mut pause, mut last) = (0, Duration::ZERO, Instant::now());
    while !end.load(Ordering::Relaxed) {
        let uplinks = peer.uplinks();
        if let Some(uplink) = uplinks.iter().find(|uplink| uplink.name == NUMBERED) {
            assert!(uplink.rate_up + 1 >= count, "{} after {}", uplink.rate_up, count - 1);
            if uplink.rate_up + 1 > count {
                count = uplink.rate_up + 1;
                pause = pause.max(last.elapsed());
                last = Instant::now();
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    (count, pause)
}

/// Messages that the actor of the peer called `name` has handled.
fn handled(node: &RunningNode, name: &str) -> u64 {
    let name = format!("control/peer-lan-{name}");
    let actors = node.status().actors;
    actors.into_iter().find(|actor| actor.name == name).expect("the peer's actor").handled
}

#[test]
fn no_death_costs_the_connection_or_a_message() {
    let Some(bed) = skip_without_root(Bed::on_a_lan) else { return };
    let (at_edge, at_exit) = (peer(&bed.edge), peer(&bed.exit));
    let generations = || [&at_edge, &at_exit].map(|peer| peer.connection().expect("connected").generation);
    // Two dials may have crossed: let that settle.
    std::thread::sleep(Duration::from_secs(1));
    let (before, handled_before) = (generations(), handled(&bed.exit, "edge"));

    let (silence, deafness) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let talker = std::thread::spawn({
        let (peer, silence) = (Arc::clone(&at_edge), Arc::clone(&silence));
        move || talk(&peer, &silence)
    });
    let listener = std::thread::spawn({
        let (peer, deafness) = (Arc::clone(&at_exit), Arc::clone(&deafness));
        move || listen(&peer, &deafness)
    });
    let kill = |node: &RunningNode, part: &str, driver: &str, fault| {
        let restarts = |node: &RunningNode| {
            let actors = node.status().actors;
            let actor = actors.into_iter().find(|actor| actor.name == part);
            actor.unwrap_or_else(|| panic!("no {part}")).restarts
        };
        let before = restarts(node);
        assert!(node.inject(&format!("{part}{driver}"), fault), "no {part}{driver}");
        let begin = Instant::now();
        while restarts(node) == before {
            assert!(begin.elapsed() < Duration::from_secs(10), "{part} is not restarted after {fault:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        eprintln!("{part}{driver}, {fault:?}: restarted after {:.0?}", begin.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    };
    for (node, port, peer) in [(&bed.edge, "lan-wan0", "exit"), (&bed.exit, "lan-net0", "edge")] {
        let (actor, listener) = (format!("control/peer-lan-{peer}"), format!("control/{port}"));
        for part in [&actor, &listener, "control/lan-dial", "control/announce"] {
            kill(node, part, "", Fault::Panic);
        }
        for fault in [Fault::Panic, Fault::Error, Fault::Hang] {
            kill(node, &actor, "/talk", fault);
        }
        kill(node, &listener, "/accept", Fault::Hang);
        kill(node, &format!("links/{port}"), "", Fault::Panic);
        kill(node, "control", "", Fault::Panic);
    }
    silence.store(true, Ordering::Relaxed);
    let sent = talker.join().expect("talks");
    std::thread::sleep(Duration::from_millis(500));
    deafness.store(true, Ordering::Relaxed);
    let (heard, pause) = listener.join().expect("all in order");
    eprintln!("{sent} messages sent, {heard} heard, longest pause {pause:.0?}");
    // The last number may have been hidden by the edge's own announcement.
    assert!(heard + 5 >= sent && heard <= sent);
    let handled = handled(&bed.exit, "edge") - handled_before;
    assert!(handled >= sent, "{handled} of {sent} messages, beats among them, were handled");
    assert!(sent > 500, "{sent}");
    assert_eq!(generations(), before, "the connection is the same");
    bed.stop();
}
