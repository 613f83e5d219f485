//! Goal: on a host that is short of something a node says what, in one sentence, does what it still can, and loses
//! nothing: settings that cannot be changed as in a container, a state folder that is full or read-only, a process that is
//! stopped for a while as a notebook's is. Method: real nodes in a lab, mounts in the hosts' own mount namespaces, SIGSTOP.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mwb_sim::traffic::{FlowSpec, download};
use rustix::process::Signal;

use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

const UPLINKS: &str = "[[uplinks]]\ninterface = \"up0\"\n[[uplinks]]\ninterface = \"up1\"\n";
/// As in a container.
const FIX_SETTINGS: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys";

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

/// Runs a line of shell on the node's host.
#[track_caller]
fn shell(node: &Node, line: &str) {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    done(&node.host().output(command).unwrap());
}

fn set(node: &Node, file: &str, value: &'static str) {
    let file = format!("/proc/sys/net/{file}");
    node.host().run(move || std::fs::write(file, value)).unwrap();
}

fn transfer(bond: &Bond) {
    let spec = FlowSpec::bytes(bond.server(), 2_000_000);
    let result = bond.edge.host().run(move || download(&spec)).unwrap();
    assert!(result.complete(), "{:?}", result.failure);
}

#[test]
fn settings_that_are_fixed_and_fit_are_no_obstacle() {
    in_lab("settings_that_are_fixed_and_fit_are_no_obstacle", || {
        let mut bond = Bond::prepare();
        shell(&bond.exit, FIX_SETTINGS);
        bond.exit.start();
        let words = ["this host does not forward", "docker run --sysctl net.ipv4.ip_forward=1"];
        wait_until("it says what is missing", PATIENCE, || {
            words.iter().all(|word| bond.exit.log().contains(word))
        });
        bond.exit.stop();
        // As the sentence says.
        shell(&bond.exit, "mount -o remount,bind,rw /proc/sys");
        set(&bond.exit, "ipv4/ip_forward", "1");
        shell(&bond.exit, "mount -o remount,bind,ro /proc/sys");
        bond.exit.start();

        // Strict filters that cannot be changed: the node runs and says so.
        shell(&bond.edge, FIX_SETTINGS);
        bond.edge.start();
        let words = ["nothing may arrive on this uplink", "sysctl -w net.ipv4.conf.up1.rp_filter=2"];
        wait_until("it says so", PATIENCE, || words.iter().all(|word| bond.edge.log().contains(word)));
        bond.edge.check();
        bond.edge.stop();
        shell(&bond.edge, "mount -o remount,bind,rw /proc/sys");
        for name in ["up0", "up1", "all"] {
            set(&bond.edge, &format!("ipv4/conf/{name}/rp_filter"), "2");
        }
        shell(&bond.edge, "mount -o remount,bind,ro /proc/sys");
        bond.edge.start();
        bond.wait_until_through();
        transfer(&bond);
        assert!(!bond.edge.log().contains("nothing may arrive"), "{}", bond.edge.log());
        bond.edge.stop();
        bond.exit.stop();
    });
}

/// Puts the node's state folder on a file system of its own, with little room.
fn confine(node: &Node) {
    let dir = node.state_dir().display();
    let line = format!(
        "mkdir -p {dir}; cp -a {dir} {dir}.old; mount -t tmpfs -o size=128k,mode=700 tmpfs {dir}; cp -a {dir}.old/. {dir}"
    );
    shell(node, &line);
}

fn fill(node: &Node) {
    shell(node, &format!("head -c 1M /dev/zero > {}/fill 2>/dev/null || true", node.state_dir().display()));
}

fn make_room(node: &Node) {
    shell(node, &format!("rm {}/fill", node.state_dir().display()));
}

#[test]
fn a_full_or_read_only_state_folder_costs_nothing_that_was_there() {
    in_lab("a_full_or_read_only_state_folder_costs_nothing_that_was_there", || {
        let mut bond = Bond::prepare();
        confine(&bond.exit);
        let public = bond.exit.host().address().to_string();
        done(&bond.exit.mwb(&["init", "--exit", "--public", &public, "--name", "exit"]));
        bond.exit.configure("");
        bond.edge.configure(UPLINKS);
        let token = done(&bond.exit.mwb(&["invite"]));
        bond.exit.start();
        wait_until("the exit runs", PATIENCE, || bond.exit.log().contains("the host is an exit"));

        let says = |output: &Output, words: &[&str]| {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && words.iter().all(|word| text.contains(word)), "{text}");
        };
        fill(&bond.exit);
        says(&bond.exit.mwb(&["invite"]), &["invites.json", "No space left on device"]);
        says(&bond.edge.mwb(&["join", &token]), &["this node cannot let anybody in now"]);
        bond.exit.check();
        make_room(&bond.exit);
        confine(&bond.edge);
        fill(&bond.edge);
        says(&bond.edge.mwb(&["join", &token]), &["No space left on device"]);
        make_room(&bond.edge);
        // The token was for one node, and still is for this one.
        let mesh = done(&bond.edge.mwb(&["join", &token]));
        assert!(done(&bond.exit.mwb(&["members"])).contains(&mesh));

        // Read-only, the exit full: what is known suffices.
        shell(&bond.edge, &format!("mount -o remount,ro {}", bond.edge.state_dir().display()));
        fill(&bond.exit);
        bond.edge.start();
        bond.wait_until_through();
        transfer(&bond);
        wait_until("it is said", PATIENCE, || bond.edge.log().contains("the membership cannot be saved"));
        assert_eq!(bond.edge.log().matches("cannot be saved").count(), 1, "once: {}", bond.edge.log());
        bond.edge.check();
        bond.exit.check();
        bond.edge.stop();
        bond.exit.stop();
        make_room(&bond.exit);
        assert_eq!(done(&bond.exit.mwb(&["members"])).lines().count(), 3, "the mesh and both");
    });
}

#[test]
fn a_node_that_slept_carries_on() {
    in_lab("a_node_that_slept_carries_on", || {
        let mut bond = Bond::start();
        let spec = FlowSpec::bytes(bond.server(), 30_000_000).patience(Duration::from_secs(180));
        let running = bond.edge.host().start(move || download(&spec));
        std::thread::sleep(Duration::from_secs(1));
        bond.edge.signal(Signal::STOP);
        // After 90 s the exit has forgotten the session: MWB_SLEEP_SECONDS=100.
        let asleep = std::env::var("MWB_SLEEP_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
        std::thread::sleep(Duration::from_secs(asleep.unwrap_or(20)));
        let sum = |bond: &Bond| bond.carried().iter().map(|(down, up)| down + up).sum::<u64>();
        let (lines, bytes) = (bond.edge.log().lines().count() + bond.exit.log().lines().count(), sum(&bond));
        bond.edge.signal(Signal::CONT);
        let begin = Instant::now();
        wait_until("it is through again", PATIENCE, || bond.is_through());
        eprintln!("through again after {:?}", begin.elapsed());
        let result = running.join().unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        eprintln!("the download ended after {:?}", begin.elapsed());
        // What was left of the download, and no storm.
        let more = sum(&bond) - bytes;
        assert!(more < 45_000_000, "{more} bytes after it");
        let log = format!("{}\n{}", bond.edge.log(), bond.exit.log());
        let more = log.lines().count() - lines;
        assert!(more < 60, "{more} lines after it:\n{log}");
        bond.edge.check();
        bond.exit.check();
    });
}
