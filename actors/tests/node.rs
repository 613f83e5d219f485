//! Goal: an edge and an exit carry packets end to end, and the death of any part costs at most its
//! share of traffic for less than a second.
//! Method: two real nodes in this process, in two network namespaces joined by two veth pairs; a
//! UDP echo and faults injected by name. Needs root; without it the test is skipped, or fails when
//! `MWB_REQUIRE=all` says that nothing may be skipped.

mod support;

use std::time::{Duration, Instant};

use mwb_actors::{Fault, FoundUplink};
use support::{Bed, skip_without_root};
use tokio::sync::watch;

#[test]
fn packets_pass_and_every_death_is_short() {
    let Some(bed) = skip_without_root(Bed::new) else { return };
    bed.wait_for_paths(2, Duration::from_secs(10));
    let idle = bed.start_echo(100, Duration::from_millis(10)).join().expect("echo");
    eprintln!("idle: {idle:?}");
    assert_eq!(idle.lost, 0, "an idle bond loses nothing: {:#?}", bed.edge.status());

    let session = "sessions/exit";
    let edge_parts = [
        "tun",
        "tun/read",
        "tun/write",
        "host",
        "links/wan0",
        "links/wan0/receive",
        "links/wan1/transmit",
        "sessions/exit/router",
        "sessions/exit/router/pump",
        "sessions/exit/reorder",
        session,
        "sessions",
        "links",
        "control",
        "control/peer-exit",
        "control/peer-exit/paths",
    ];
    let exit_parts = [
        "tun",
        "tun/read",
        "tun/write",
        "links/listen-0",
        "links/listen-0/receive",
        "links/listen-0/transmit",
        "sessions/edge/router",
        "sessions/edge/reorder",
        "sessions/edge",
        "sessions",
        "control/listen-0",
        "control/peer-edge",
        "control",
        "links",
    ];
    for (node, name, parts) in [(&bed.edge, "edge", &edge_parts[..]), (&bed.exit, "exit", &exit_parts[..])] {
        for part in parts {
            let echo = bed.start_echo(100, Duration::from_millis(10));
            std::thread::sleep(Duration::from_millis(100));
            assert!(node.inject(part, Fault::Panic), "{name} has no {part}: {:#?}", node.status().actors);
            let echo = echo.join().expect("echo");
            eprintln!("{name} {part}: {echo:?}");
            assert!(echo.pause < Duration::from_secs(1), "{name} {part}: {echo:?}");
        }
    }
    let begin = Instant::now();
    bed.stop();
    assert!(begin.elapsed() < Duration::from_secs(4), "stopping took {:?}", begin.elapsed());
}

#[test]
fn new_keys_and_cut_links_go_unnoticed_and_a_restarted_exit_is_found_again() {
    let Some(bed) = skip_without_root(Bed::new) else { return };
    bed.wait_for_paths(2, Duration::from_secs(10));
    let echo = |count| bed.start_echo(count, Duration::from_millis(10));

    let run = echo(400);
    std::thread::sleep(Duration::from_millis(500));
    bed.edge.renew_paths();
    let run = run.join().expect("echo");
    eprintln!("new keys: {run:?}");
    assert_eq!(run.lost, 0, "make before break");
    assert!(run.pause < Duration::from_millis(300), "{run:?}");

    // A cut without any sign: packets vanish.
    let run = echo(600);
    std::thread::sleep(Duration::from_millis(500));
    bed.blackhole(0, true);
    std::thread::sleep(Duration::from_millis(4_500));
    bed.blackhole(0, false);
    let run = run.join().expect("echo");
    eprintln!("blackhole: {run:?}");
    assert!(run.pause < Duration::from_millis(500) && run.lost < 30, "{run:?}");
    bed.wait_for_paths(2, Duration::from_secs(10));

    // The interface goes and another one of its name comes.
    let run = echo(800);
    std::thread::sleep(Duration::from_millis(500));
    bed.replace_link(1);
    let run = run.join().expect("echo");
    eprintln!("replaced interface: {run:?}");
    assert!(run.pause < Duration::from_millis(500) && run.lost < 30, "{run:?}");
    bed.wait_until_heard(Duration::from_secs(15));

    // Somebody deletes the TUN device: it comes back with its addresses.
    bed.delete_tun();
    let begin = Instant::now();
    loop {
        let run = bed.start_echo(20, Duration::from_millis(10)).join().expect("echo");
        if run.lost == 0 {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(8), "{run:?}: {:#?}", bed.edge.status().actors);
    }
    eprintln!("deleted device: back after {:?}", begin.elapsed());

    let bed = bed.restart_exit();
    let run = bed.start_echo(800, Duration::from_millis(10)).join().expect("echo");
    eprintln!("restarted exit: {run:?}");
    assert!(run.pause < Duration::from_secs(6), "{run:?}");
    bed.wait_until_heard(Duration::from_secs(10));
    let run = bed.start_echo(100, Duration::from_millis(10)).join().expect("echo");
    assert_eq!(run.lost, 0, "{run:?}");
    bed.stop();
}

#[test]
fn no_tcp_flow_dies_with_a_part() {
    let Some(bed) = skip_without_root(Bed::new) else { return };
    bed.wait_for_paths(2, Duration::from_secs(10));
    let calm = bed.start_transfer(300_000_000).join().expect("transfer");
    eprintln!("undisturbed: {calm:?}");

    let transfer = bed.start_transfer(1_000_000_000);
    let parts = [
        (&bed.edge, "sessions/exit/router"),
        (&bed.exit, "sessions/edge/reorder"),
        (&bed.edge, "tun"),
        (&bed.exit, "tun"),
        (&bed.edge, "links/wan0"),
        (&bed.exit, "links/listen-0"),
        (&bed.edge, "sessions/exit"),
        (&bed.exit, "sessions/edge/router"),
        (&bed.edge, "sessions/exit/reorder"),
    ];
    for (node, part) in parts {
        std::thread::sleep(Duration::from_millis(400));
        if transfer.is_finished() {
            break;
        }
        assert!(node.inject(part, Fault::Panic), "{part}");
    }
    let shaken = transfer.join().expect("the flow lives and is intact");
    eprintln!("with nine deaths: {shaken:?}");
    assert!(shaken.pause < Duration::from_secs(2), "{shaken:?}");
    bed.stop();
}

#[test]
fn hung_parts_are_found_and_replaced() {
    let Some(bed) = skip_without_root(Bed::new) else { return };
    bed.wait_for_paths(2, Duration::from_secs(10));
    for part in ["sessions/exit/router", "sessions/exit/router/pump", "tun/read", "control/peer-exit/paths"] {
        let restarts = |name: &str| {
            let actors = bed.edge.status().actors;
            actors.iter().find(|row| row.name == name).map_or(0, |row| row.restarts)
        };
        let actor = part.trim_end_matches("/pump").trim_end_matches("/read").trim_end_matches("/paths");
        let before = restarts(actor);
        let echo = bed.start_echo(300, Duration::from_millis(10));
        std::thread::sleep(Duration::from_millis(200));
        assert!(bed.edge.inject(part, Fault::Hang));
        let echo = echo.join().expect("echo");
        eprintln!("{part} hangs: {echo:?}");
        assert_eq!(restarts(actor), before + 1, "{part}");
        assert!(echo.pause < Duration::from_millis(1_500), "{part}: {echo:?}");
    }
    bed.stop();
}

#[test]
fn a_codec_dies_under_load_and_data_goes_on() {
    let Some(bed) = skip_without_root(Bed::with_parity) else { return };
    bed.wait_for_paths(2, Duration::from_secs(10));
    let parity = || bed.edge.status().sessions[0].sender.parity_sent;
    let actor = |name: &str| bed.edge.status().actors.into_iter().find(|row| row.name == name).expect(name);
    for (part, deaths) in [("sessions/exit/fec", 1), ("sessions/exit/fec/code", 2)] {
        // 1,000 packets a second in blocks of at most 8 ms.
        let echo = bed.start_echo(1500, Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(400));
        assert!(bed.edge.inject(part, Fault::Panic), "{part}");
        let echo = echo.join().expect("echo");
        eprintln!("{part}: {echo:?}");
        // None is lost by the death; a busy machine may drop some at a socket.
        assert!(echo.lost < 15, "{part}: {echo:?}");
        assert_eq!(actor("sessions/exit/fec").restarts, deaths);
    }
    let before = parity();
    assert!(before > 0);
    let echo = bed.start_echo(200, Duration::from_millis(2)).join().expect("echo");
    assert_eq!(echo.lost, 0, "{echo:?}");
    // The state is published ten times a second.
    let begin = Instant::now();
    while parity() <= before {
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "no parity after the restart: {:?}",
            actor("sessions/exit/fec")
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(actor("sessions/exit/fec").handled > 0);
    assert!(bed.exit.status().sessions[0].receiver.parity_received > 0);
    bed.stop();
}

#[test]
fn strangers_are_sent_away_and_told_why() {
    let Some(bed) = skip_without_root(Bed::new) else { return };
    bed.wait_for_paths(2, Duration::from_secs(10));
    let stranger = bed.start_stranger();
    let begin = Instant::now();
    loop {
        let problem = stranger.status().peers[0].slots[0].problem.clone().unwrap_or_default();
        if problem.contains("shown no membership record") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{problem}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(bed.exit.status().sessions.len(), 1);
    let echo = bed.start_echo(50, Duration::from_millis(10)).join().expect("echo");
    assert_eq!(echo.lost, 0, "{echo:?}");
    bed.stop_node(stranger);
    bed.stop();
}

/// An uplink that the host is found to have.
fn found(interface: &str) -> FoundUplink {
    FoundUplink {
        interface: interface.to_owned(),
        attached: "somewhere".to_owned(),
        own: None,
        rate_max: None,
        weight: 10,
        fwmark: None,
        kind: Default::default(),
        line: "ethernet",
        metered: false,
        lend: false,
        health: Default::default(),
    }
}

/// Goal: uplinks that are found come and go with what they have in the node, also when their actor dies meanwhile.
/// Method: the list of what is found is the test's own.
#[test]
fn found_uplinks_come_and_go_also_when_their_actor_dies() {
    let list = watch::Sender::new(vec![found("wan0")]);
    let begin = |edge: &mut mwb_actors::NodeSpec| {
        edge.uplinks.clear();
        edge.found = Some(list.subscribe());
    };
    let Some(bed) = skip_without_root(|| Bed::with(|edge, _exit| begin(edge))) else { return };
    bed.wait_for_paths(1, Duration::from_secs(10));
    let echo = bed.start_echo(400, Duration::from_millis(10));
    for interfaces in [&["wan0", "wan1"][..], &["wan1"], &["wan0", "wan1"], &["wan0"]] {
        assert!(bed.edge.inject("control/uplinks/follow", Fault::Panic), "{:#?}", bed.edge.status().actors);
        list.send_replace(interfaces.iter().map(|interface| found(interface)).collect());
        bed.wait_for_paths(interfaces.len(), Duration::from_secs(10));
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let status = bed.edge.status();
            let names = |name: &str| ["wan0", "wan1"].into_iter().find(|interface| name.contains(interface));
            let actors: std::collections::BTreeSet<_> =
                status.actors.iter().filter_map(|actor| names(&actor.name)).collect();
            let links: Vec<_> = status.links.iter().map(|link| link.name.as_str()).collect();
            if links == interfaces && actors.iter().eq(interfaces) {
                break;
            }
            assert!(Instant::now() < end, "{interfaces:?}: links {links:?}, actors of {actors:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let echo = echo.join().expect("echo");
    eprintln!("while uplinks came and went: {echo:?}");
    assert!(echo.pause < Duration::from_secs(1), "{echo:?}");
    bed.stop();
}
