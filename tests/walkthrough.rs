//! Goal: who types what the README's quick start says, and nothing else, has a mesh of three hosts that bonds; and it takes
//! no longer than it promises. Method: its commands, taken from the text, by a shell on each host of a lab: an exit
//! and two hosts on one LAN with an uplink each, which have a `/run`, a `/var/lib` and a name of their own. Only what the
//! text cannot know is filled in: the exit's address, and the token that was printed.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]
#![allow(clippy::print_stdout, reason = "figures, shown with --nocapture")]

mod support;

use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use mwb_sim::lab::{Host, Lab, LabChild};
use mwb_sim::traffic::{FlowSpec, download, server};
use mwb_sim::wan::{DirectionSpec, LinkSpec};
use serde_json::Value;
use tempfile::TempDir;

use support::dns::Resolver;
use support::node::{PATIENCE, program, wait_until};
use support::skip::in_lab;

const README: &str = include_str!("../README.md");
/// The address in the text, and how a token begins there.
const PUBLIC: &str = "203.0.113.5";
const TOKEN: &str = "mwb1-…";
/// Of each uplink.
const MBIT: f64 = 20.0;

/// The commands of the quick start: those of each block that a shell runs, without comments.
fn blocks() -> Vec<Vec<String>> {
    let (_, start) = README.split_once("\n## Quick start\n").expect("the section is there");
    let (section, _) = start.split_once("\n### ").expect("another one follows");
    let blocks = section.split("\n```sh\n").skip(1);
    let commands = |block: &str| -> Vec<String> {
        let (commands, _) = block.split_once("\n```").expect("a block ends");
        let command =
            |line: &str| line.split_once("  #").map_or(line, |(command, _)| command).trim().to_owned();
        commands.lines().map(command).collect()
    };
    blocks.map(commands).collect()
}

/// A host with folders of its own where the program keeps its files, and with a name.
struct Home {
    host: Host,
    programs: PathBuf,
}

impl Home {
    fn new(host: Host, dir: &Path) -> Self {
        let home = Self { host, programs: dir.join("bin") };
        let own = dir.join(home.host.name());
        for folder in ["run", "var/lib"] {
            let own = own.join(folder);
            std::fs::create_dir_all(&own).unwrap();
            done(home.output(&format!("mount --bind {} /{folder}", own.display())));
        }
        home
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("unshare");
        let script = format!("hostname {} && {line}", self.host.name());
        command.args(["--uts", "sh", "-c", &script]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MWB_") {
                command.env_remove(name);
            }
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.programs.display()));
        command
    }

    /// What somebody types who waits for the end of it.
    fn output(&self, line: &str) -> Output {
        self.host.output(self.command(line)).unwrap()
    }

    /// What somebody leaves running.
    fn start(&self, line: &str) -> LabChild {
        self.host.spawn(self.command(&format!("exec {line}"))).unwrap()
    }

    fn status(&self) -> Value {
        let output = self.output("mwb-node status --json");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// Links of the paths that carry packets.
    fn paths(&self) -> Vec<String> {
        let status = self.status();
        let paths = status["sessions"][0]["paths"].as_array().cloned().unwrap_or_default();
        let up = paths.iter().filter(|path| path["health"] == "up" || path["health"] == "degraded");
        up.map(|path| path["link"].as_str().unwrap().to_owned()).collect()
    }
}

/// What a command that went well has printed.
#[track_caller]
fn done(output: Output) -> String {
    let [text, problem] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{}\n{text}\n{problem}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The program under its name, and a `sudo` for who is root already.
fn install(dir: &Path) {
    let programs = dir.join("bin");
    std::fs::create_dir(&programs).unwrap();
    symlink(std::path::absolute(program()).unwrap(), programs.join("mwb-node")).unwrap();
    let sudo = programs.join("sudo");
    std::fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").unwrap();
    std::fs::set_permissions(&sudo, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn the_quick_start_as_written() {
    in_lab("the_quick_start_as_written", || {
        let blocks = blocks();
        let link = |k| vec![LinkSpec::symmetric(format!("link{k}"), DirectionSpec::mbit(MBIT).delay_ms(5))];
        let lab = Lab::lan(&[link(1), link(2)]).unwrap();
        let dir: TempDir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
        install(dir.path());
        let [exit, one, other] = ["exit", "host1", "host2"].map(|name| Home::new(lab.host(name), dir.path()));
        let address = lab.host("server").address();
        // A server that is rented has a resolver.
        let _resolver = Resolver::start(&lab.host("server"), address);
        let resolver = format!("nameserver {address}\n");
        exit.host.run(move || std::fs::write("/etc/resolv.conf", resolver)).unwrap();
        let files = lab.host("server").run(move || server((address, 7000).into())).unwrap();

        // Built is the program with this test.
        assert!(
            blocks[0][0].starts_with("cargo build --release && sudo install -s target/release/mwb-node ")
        );
        let [init, run, invite] = &blocks[1][..] else { panic!("{:?}", blocks[1]) };
        done(exit.output(&init.replace(PUBLIC, &exit.host.address().to_string())));
        let mut running = vec![exit.start(run)];
        wait_until("the exit runs", PATIENCE, || exit.status().is_object());
        let token = done(exit.output(invite));

        let [join, run] = &blocks[2][..] else { panic!("{:?}", blocks[2]) };
        let begin = Instant::now();
        done(one.output(&join.replace(TOKEN, &token)));
        let joined = begin.elapsed();
        running.push(one.start(run));
        let files_at = files.address();
        let bonded = |home: &Home| {
            // One that begins in the moment before the bond goes past it, and is not answered in this lab.
            let patience = Duration::from_millis(300);
            let connected = move || TcpStream::connect_timeout(&files_at, patience).is_ok();
            home.host.run(connected)
                && home.status()["sessions"][0]["receiver"]["delivered_bytes"].as_u64() > Some(0)
        };
        wait_until("the first bytes through the exit", PATIENCE, || bonded(&one));
        println!("joined after {joined:.2?}, first bytes through the exit after {:.2?}", begin.elapsed());

        done(other.output(&join.replace(TOKEN, &token)));
        running.push(other.start(run));
        for home in [&one, &other] {
            wait_until("both uplinks on each", PATIENCE, || home.paths() == ["up0", "lan-lan0"]);
        }
        println!("three hosts {:.2?} after the first was told to join", begin.elapsed());
        let spec = FlowSpec::seconds(files.address(), 6);
        let flow = one.host.run(move || download(&spec)).unwrap();
        let mbit = flow.total_bytes as f64 * 8.0 / 6e6;
        println!("one download on the first: {mbit:.1} Mbit/s");
        assert!(mbit > 1.2 * MBIT, "{mbit:.1} Mbit/s are no more than one uplink's");

        let (last, asked) = blocks[3].split_last().unwrap();
        assert!(asked.len() >= 6, "{asked:?}");
        for line in asked {
            let text = done(one.output(line));
            assert!(!text.is_empty(), "{line}");
        }
        done(exit.output(&last.replace("NAME", "host2")));
        wait_until("who was sent away has no session", PATIENCE, || other.paths().is_empty());

        for mut node in running.into_iter().rev() {
            let status = node.stop(PATIENCE).unwrap();
            assert!(status.success(), "{status}\n{}", node.stderr());
        }
        done(one.output("sudo mwb-node down"));
    });
}
