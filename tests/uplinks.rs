//! Goal: a node that is told of no uplinks finds those of its host, follows them while a download runs, and leaves the
//! host as it was. Method: real nodes in a lab whose third uplink is plugged in and pulled out again (link, address,
//! default route, as a DHCP client would do it), beside a bridge as Docker makes it; bytes per link are the emulator's.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]
#![allow(clippy::print_stdout, reason = "figures, shown with --nocapture")]

mod support;

use std::time::{Duration, Instant};

use mwb_sim::lab::Lab;
use mwb_sim::traffic::{FlowSpec, download};
use mwb_sim::wan::{DirectionSpec, LinkSpec};
use serde_json::Value;

use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

/// The third uplink's rate, as much as the other two together.
const NEW_MBIT: f64 = 40.0;
/// A new uplink has its share when it delivers this part of its rate.
const SHARE: f64 = 0.5;
/// It takes about a second; a machine that is busy with other things may need longer.
const SHARE_WITHIN: Duration = Duration::from_secs(8);
/// How long nothing may arrive when an uplink is pulled out, on a busy machine.
const PAUSE_MAX_MS: f64 = 3000.0;

/// Three uplinks of which the last one is not plugged in, and a bridge as Docker makes it, which has a default route
/// even.
fn host() -> Bond {
    let bond = Bond::over(&[("one", 20.0, 5, 10), ("two", 20.0, 10, 10), ("three", NEW_MBIT, 5, 10)]);
    pull_out(&bond);
    bond.edge.ip("link add docker0 type bridge");
    // Its link-local address would come at some moment and change what is compared.
    let file = "/proc/sys/net/ipv6/conf/docker0/disable_ipv6";
    bond.edge.host().run(move || std::fs::write(file, "1")).unwrap();
    for step in [
        "address add 172.17.0.1/16 dev docker0",
        "link set docker0 up",
        "route add default via 172.17.0.2 dev docker0 metric 900",
    ] {
        bond.edge.ip(step);
    }
    assert!(bond.edge.ip("route").contains("docker0 metric 900"));
    bond
}

fn pull_out(bond: &Bond) {
    bond.edge.host().set_carrier("up2", false).unwrap();
    bond.edge.ip("address flush dev up2");
}

fn plug_in(bond: &Bond) {
    bond.edge.ip("address add 10.1.2.2/24 dev up2");
    bond.edge.host().set_carrier("up2", true).unwrap();
}

/// Rules, routes and settings of the edge that a node may change.
fn state(edge: &Node) -> String {
    let mut state = String::new();
    for what in
        ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "link show type tun"]
    {
        state.push_str(&edge.ip(what));
    }
    for interface in ["up0", "up1", "up2", "docker0", "all"] {
        let file = format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter");
        state.push_str(&edge.host().run(move || std::fs::read_to_string(file)).unwrap());
    }
    state
}

/// Names of the uplinks in use.
fn uplinks(edge: &Node) -> Vec<String> {
    let status = edge.status().unwrap_or_default();
    let list = status["uplinks"].as_array().cloned().unwrap_or_default();
    list.iter().map(|uplink| uplink["name"].as_str().unwrap().to_owned()).collect()
}

/// Links of the paths that carry packets.
fn paths(edge: &Node) -> Vec<String> {
    let status = edge.status().unwrap_or_default();
    let paths = status["sessions"][0]["paths"].as_array().cloned().unwrap_or_default();
    let up = paths.iter().filter(|path| path["health"] == "up" || path["health"] == "degraded");
    up.map(|path| path["link"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_for(edge: &Node, what: &str, names: fn(&Node) -> Vec<String>, wanted: &[&str]) -> Duration {
    let begin = Instant::now();
    while names(edge) != wanted {
        assert!(begin.elapsed() < PATIENCE, "{what}: {:?}, not {wanted:?}\n{}", names(edge), edge.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    begin.elapsed()
}

/// What a command that went well has printed.
#[track_caller]
fn done(output: std::process::Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Bytes that the third link has delivered to the edge.
fn delivered(bond: &Bond) -> u64 {
    bond.carried()[2].0
}

/// How long it takes until the third link delivers its share; no longer than `at_most`.
fn time_to_share(bond: &Bond, at_most: Duration) -> Option<Duration> {
    const WINDOW: Duration = Duration::from_millis(200);
    let begin = Instant::now();
    let mut seen = vec![(begin, delivered(bond))];
    while begin.elapsed() < at_most {
        std::thread::sleep(Duration::from_millis(20));
        let (now, bytes) = (Instant::now(), delivered(bond));
        seen.push((now, bytes));
        let (then, before) = *seen.iter().rev().find(|(then, _)| now - *then >= WINDOW).unwrap_or(&seen[0]);
        let span = (now - then).max(WINDOW).as_secs_f64();
        if (bytes - before) as f64 * 8.0 / span >= SHARE * NEW_MBIT * 1e6 {
            return Some(begin.elapsed());
        }
    }
    None
}

#[test]
fn a_running_download_uses_what_is_plugged_in_and_survives_what_is_pulled_out() {
    in_lab("a_running_download_uses_what_is_plugged_in_and_survives_what_is_pulled_out", || {
        let mut bond = host();
        bond.configure_apart("", "");
        let before = state(&bond.edge);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_for(&bond.edge, "the uplinks that are there", uplinks, &["up0", "up1"]);
        wait_for(&bond.edge, "their paths", paths, &["up0", "up1"]);
        let status = bond.edge.status().unwrap();
        for uplink in status["uplinks"].as_array().unwrap() {
            assert!(
                uplink["found"] == true && uplink["type"] == "ethernet" && uplink["metered"] == false,
                "{uplink}"
            );
        }
        let text = String::from_utf8(bond.edge.ask(&["status"]).stdout).unwrap();
        assert!(text.contains("ethernet, found by itself"), "{text}");

        let spec = FlowSpec::seconds(bond.server(), 16);
        let running = bond.edge.host().start(move || (Instant::now(), download(&spec).unwrap()));
        std::thread::sleep(Duration::from_secs(4));
        plug_in(&bond);
        let share = time_to_share(&bond, SHARE_WITHIN);
        println!("the new uplink carries {SHARE} of its rate after {share:.2?}");
        assert!(share.is_some(), "the new uplink never carried its share\n{}", bond.edge.log());
        wait_for(&bond.edge, "the new path", paths, &["up0", "up1", "up2"]);
        assert!(bond.edge.log().contains("uplink found"), "{}", bond.edge.log());

        std::thread::sleep(Duration::from_secs(2));
        let pulled = Instant::now();
        pull_out(&bond);
        let noticed = wait_for(&bond.edge, "what is left", uplinks, &["up0", "up1"]);
        assert!(!running.is_finished(), "the download was over before");
        let (begin, result) = running.join();
        assert!(result.failure.is_none() && result.total_bytes > 20_000_000, "{:?}", result.failure);
        let pause = result.longest_gap_ms_after(pulled.saturating_duration_since(begin));
        println!(
            "pulled out: gone from the node after {noticed:.2?}, longest pause of the download {pause:.0} ms"
        );
        assert!(pause < PAUSE_MAX_MS, "{pause} ms without a byte");

        // Nothing of it is left in the node.
        let status = bond.edge.status().unwrap();
        let names = |list: &Value, key: &str| -> Vec<String> {
            list.as_array().unwrap().iter().map(|one| one[key].as_str().unwrap().to_owned()).collect()
        };
        wait_until("its actors have ended", PATIENCE, || {
            let status = bond.edge.status().unwrap();
            !names(&status["actors"], "name").iter().any(|name| name.contains("up2") || name.ends_with("-3"))
        });
        assert_eq!(names(&status["links"], "name"), ["up0", "up1"]);
        assert_eq!(names(&status["peers"][0]["slots"], "link"), ["up0", "up1"]);
        assert_eq!(paths(&bond.edge), ["up0", "up1"]);
        assert!(bond.edge.log().contains("uplink has gone"), "{}", bond.edge.log());

        // Who comes back has its number again.
        plug_in(&bond);
        wait_for(&bond.edge, "the uplink is back", paths, &["up0", "up1", "up2"]);
        let status = bond.edge.status().unwrap();
        assert_eq!(status["uplinks"][2]["id"], 3);
        pull_out(&bond);
        wait_for(&bond.edge, "it is pulled out again", uplinks, &["up0", "up1"]);
        bond.edge.stop();
        assert_eq!(state(&bond.edge), before);
    });
}

#[test]
fn another_address_is_followed() {
    in_lab("another_address_is_followed", || {
        let mut bond = host();
        bond.configure_apart("", "");
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_for(&bond.edge, "both paths", paths, &["up0", "up1"]);
        let remotes = |bond: &Bond| {
            let status = bond.exit.status().unwrap_or_default();
            let paths = status["sessions"][0]["paths"].as_array().cloned().unwrap_or_default();
            paths.iter().map(|path| path["remote"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert!(remotes(&bond).iter().any(|remote| remote.starts_with("10.1.1.2:")), "{:?}", remotes(&bond));
        for step in [
            "address del 10.1.1.2/24 dev up1",
            "address add 10.1.1.77/24 dev up1",
            "route add default via 10.1.1.1 dev up1 metric 101",
        ] {
            bond.edge.ip(step);
        }
        wait_until("the exit sees the new address", PATIENCE, || {
            remotes(&bond).iter().any(|remote| remote.starts_with("10.1.1.77:"))
        });
        wait_for(&bond.edge, "both paths carry packets", paths, &["up0", "up1"]);
        // The kernel sends from the new address at once; the node is told a moment later.
        wait_until("the node has noticed", PATIENCE, || {
            let log = bond.edge.log();
            log.contains("attached elsewhere") || log.contains("uplink has gone")
        });
        wait_for(&bond.edge, "both paths carry packets again", paths, &["up0", "up1"]);
    });
}

#[test]
fn a_killed_node_leaves_nothing_that_down_does_not_remove() {
    in_lab("a_killed_node_leaves_nothing_that_down_does_not_remove", || {
        let mut bond = host();
        bond.configure_apart("", "");
        let before = state(&bond.edge);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        plug_in(&bond);
        wait_for(&bond.edge, "the new path", paths, &["up0", "up1", "up2"]);
        assert_ne!(state(&bond.edge), before);
        bond.edge.kill();
        pull_out(&bond);
        let down = bond.edge.down();
        assert!(down.status.success(), "{down:?}");
        assert_eq!(state(&bond.edge), before);
    });
}

#[test]
fn what_the_configuration_says_wins() {
    in_lab("what_the_configuration_says_wins", || {
        let mut bond = host();
        plug_in(&bond);
        bond.exit.start();
        let named = "[[uplinks]]\nname = \"fibre\"\ninterface = \"up0\"\ntype = \"fiber\"\n";
        let disabled = "[[uplinks]]\ninterface = \"up1\"\nenabled = false\n";
        let found = |what: &str| format!("[discovery]\nuplinks = \"{what}\"\n");
        let ignore = "[discovery]\nignore = [\"*2\"]\n".to_owned();
        let cases = [
            ("a block switches it off", named.to_owned(), &["fibre"][..]),
            ("unless told otherwise", found("also") + named, &["fibre", "up1", "up2"]),
            ("a disabled block excludes", found("also") + named + disabled, &["fibre", "up2"]),
            ("alone, too", disabled.to_owned(), &["up0", "up2"]),
            ("as a pattern does", ignore, &["up0", "up1"]),
        ];
        for (what, config, wanted) in cases {
            bond.configure_apart("", &config);
            bond.edge.start();
            wait_for(&bond.edge, what, uplinks, wanted);
            bond.edge.stop();
        }
        bond.configure_apart("", &found("off"));
        bond.edge.start();
        let (code, log) = bond.edge.ended(PATIENCE);
        assert_eq!(code, Some(2), "{log}");
    });
}

/// The third uplink comes as a modem that the host calls `wwan0`.
fn plug_in_modem(bond: &Bond) {
    for step in [
        "link set up2 down",
        "link set up2 name wwan0",
        "address add 10.1.2.2/24 dev wwan0",
        "link set wwan0 up",
        "route add default via 10.1.2.1 dev wwan0 metric 300",
    ] {
        bond.edge.ip(step);
    }
}

#[test]
fn an_uplink_named_by_its_type_uses_whichever_is_there() {
    in_lab("an_uplink_named_by_its_type_uses_whichever_is_there", || {
        let mut bond = host();
        let before = state(&bond.edge);
        let blocks =
            "[[uplinks]]\nname = \"home\"\ntype = \"fiber\"\n[[uplinks]]\nname = \"stick\"\ntype = \"lte\"\n";
        bond.configure_apart("", blocks);
        bond.exit.start();
        bond.edge.start();
        bond.wait_until_through();
        wait_for(&bond.edge, "the one that is there, and no other", uplinks, &["home"]);
        assert!(bond.edge.log().contains("no free interface of type lte"), "{}", bond.edge.log());
        let told = String::from_utf8(bond.edge.doctor(&[]).stdout).unwrap();
        assert!(told.contains("uplink stick") && told.contains("waited for"), "{told}");
        plug_in_modem(&bond);
        wait_for(&bond.edge, "the modem", paths, &["home", "stick"]);
        let status = bond.edge.status().unwrap();
        let shown = |at: usize, key: &str| status["uplinks"][at][key].to_string();
        assert_eq!([shown(0, "interface"), shown(1, "interface")], ["\"up0\"", "\"wwan0\""]);
        assert_eq!([shown(1, "id"), shown(1, "type"), shown(1, "found")], ["2", "\"lte\"", "false"]);
        // The first line fails, and another of its kind is there.
        bond.edge.host().set_carrier("up0", false).unwrap();
        wait_until("it has the other", PATIENCE, || {
            bond.edge.status().is_some_and(|status| status["uplinks"][0]["interface"] == "up1")
        });
        wait_for(&bond.edge, "its path", paths, &["home", "stick"]);
        bond.wait_until_through();
        bond.edge.host().set_carrier("up0", true).unwrap();
        bond.edge.stop();
        // With those that are found beside it.
        bond.configure_apart("", &format!("[discovery]\nuplinks = \"also\"\n{blocks}"));
        bond.edge.start();
        wait_for(&bond.edge, "all", uplinks, &["home", "stick", "up1"]);
        bond.edge.stop();
        for step in ["link set wwan0 down", "address flush dev wwan0", "link set wwan0 name up2"] {
            bond.edge.ip(step);
        }
        // An interface that was down and up again has its routes at another place.
        let lines = |state: &str| {
            let mut lines: Vec<_> = state.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(lines(&state(&bond.edge)), lines(&before));
    });
}

#[test]
fn a_member_needs_no_file() {
    in_lab("a_member_needs_no_file", || {
        let mut bond = host();
        let public = bond.exit.host().address().to_string();
        done(bond.exit.mwb(&["init", "--exit", "--public", &public, "--name", "exit"]));
        bond.exit.start_without_a_file();
        wait_until("the exit runs", PATIENCE, || bond.exit.status().is_some());
        let token = done(bond.exit.mwb(&["invite"]));
        done(bond.edge.mwb(&["join", &token]));
        bond.edge.start_without_a_file();
        bond.wait_until_through();
        wait_for(&bond.edge, "both paths", paths, &["up0", "up1"]);
        bond.exit.check();
    });
}

#[test]
fn hosts_on_a_lan_lend_each_other_their_uplinks_without_a_file() {
    in_lab("hosts_on_a_lan_lend_each_other_their_uplinks_without_a_file", || {
        let link = |k| vec![LinkSpec::symmetric(format!("link{k}"), DirectionSpec::mbit(20.0).delay_ms(5))];
        let lab = Lab::lan(&[link(1), link(2)]).unwrap();
        let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        let [mut exit, mut one, mut other] =
            ["exit", "host1", "host2"].map(|name| Node::new(lab.host(name), dir.path()));
        let public = exit.host().address().to_string();
        done(exit.mwb(&["init", "--exit", "--public", &public, "--name", "exit"]));
        exit.start_without_a_file();
        wait_until("the exit runs", PATIENCE, || exit.status().is_some());
        let token = done(exit.mwb(&["invite", "--uses", "2"]));
        for node in [&one, &other] {
            done(node.mwb(&["join", &token, "--name", node.host().name()]));
        }
        let begin = Instant::now();
        one.start_without_a_file();
        other.start_without_a_file();
        wait_for(&one, "its own path and the other's", paths, &["up0", "lan-lan0"]);
        wait_for(&other, "its own path and the other's", paths, &["up0", "lan-lan0"]);
        println!("each uses the uplinks of both {:.2?} after the start", begin.elapsed());

        // The LAN's cable is pulled out, and put back.
        one.host().set_carrier("lan0", false).unwrap();
        wait_for(&one, "its own path", paths, &["up0"]);
        let ports = |node: &Node| {
            let status = node.status().unwrap_or_default();
            let ports = status["lan"]["ports"].as_array().cloned().unwrap_or_default();
            ports.iter().map(|port| port["interface"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        wait_until("the port has gone", PATIENCE, || ports(&one) == ["up0"]);
        one.host().set_carrier("lan0", true).unwrap();
        wait_for(&one, "both again", paths, &["up0", "lan-lan0"]);
        exit.check();
        one.stop();
        other.stop();
    });
}
