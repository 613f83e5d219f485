//! Goal: who holds a token joins and reaches the internet through the mesh's exit without ever being told its
//! address; every other node is refused and told why. Method: real nodes in a lab; one edge with two links, an
//! exit, and further nodes that only join.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use mwb_sim::traffic::{FlowSpec, download};
use serde_json::Value;
use tempfile::TempDir;

use support::lab::Bond;
use support::node::{Node, PATIENCE, wait_until};
use support::skip::in_lab;

const UPLINKS: &str = "[[uplinks]]\ninterface = \"up0\"\n[[uplinks]]\ninterface = \"up1\"\n";

/// An exit that has made a mesh and runs, and an edge that has not joined it.
fn mesh() -> Bond {
    let mut bond = Bond::prepare();
    init_exit(&bond);
    bond.exit.configure("");
    bond.edge.configure(UPLINKS);
    bond.exit.start();
    bond
}

fn init_exit(bond: &Bond) {
    let public = bond.exit.host().address().to_string();
    done(&bond.exit.mwb(&["init", "--exit", "--public", &public, "--name", "exit"]));
}

/// A node on the edge's host that shares nothing else with it.
fn another(bond: &Bond) -> (Node, TempDir) {
    let dir = tempfile::Builder::new().prefix("mwb-e2e-").tempdir().unwrap();
    (Node::new(bond.edge.host().clone(), dir.path()), dir)
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && text.contains(words), "{words:?} in {output:?}");
}

fn token(inviter: &Node, more: &[&str]) -> String {
    done(&inviter.mwb(&[&["invite"], more].concat()))
}

/// Names in `mwb-node members --json`.
fn members(node: &Node) -> Vec<String> {
    let value: Value = serde_json::from_str(&done(&node.mwb(&["members", "--json"]))).unwrap();
    let mut names: Vec<_> = value["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["name"].as_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

/// What the edge's status says about its way to the exit.
fn problem(edge: &Node) -> String {
    let status = edge.status().unwrap_or_default();
    status["peers"][0]["slots"][0]["problem"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_member_needs_no_address_and_a_revoked_one_gets_no_further() {
    in_lab("a_member_needs_no_address_and_a_revoked_one_gets_no_further", || {
        let mut bond = mesh();
        let token = token(&bond.exit, &[]);
        done(&bond.edge.mwb(&["join", &token, "--name", "home"]));
        bond.edge.start();
        bond.wait_until_through();
        let spec = FlowSpec::bytes(bond.server(), 5_000_000);
        let result = bond.edge.host().run(move || download(&spec)).unwrap();
        assert!(result.complete(), "{:?}", result.failure);
        assert_eq!(members(&bond.edge), ["exit", "home"]);
        assert_eq!(members(&bond.exit), ["exit", "home"]);

        for (node, files) in
            [(&bond.exit, &["root.key", "invites.json", "members.json"][..]), (&bond.edge, &["members.json"])]
        {
            let dir = node.state_dir().join("membership");
            assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
            for file in files {
                let mode = std::fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{file}");
            }
        }

        // A member that joins later becomes known to those that run.
        let (later, _dir) = another(&bond);
        let second = done(&bond.exit.mwb(&["invite", "--role", "lender", "--uses", "2"]));
        done(&later.mwb(&["join", &second, "--name", "home"]));
        wait_until("the new record arrives", PATIENCE, || members(&bond.edge) == ["exit", "home", "home-2"]);

        refused(&bond.edge.mwb(&["revoke", "home-2"]), 1, "root key");
        refused(&bond.exit.mwb(&["revoke", "nobody"]), 1, "no member");
        assert_eq!(done(&bond.exit.mwb(&["revoke", "home-2"])), later.id);
        wait_until("the revocation arrives", PATIENCE, || members(&bond.edge) == ["exit", "home"]);
        done(&bond.exit.mwb(&["revoke", "home"]));
        wait_until("nothing goes through for a revoked node", PATIENCE, || !bond.is_through());
        wait_until("it is told why", PATIENCE, || {
            problem(&bond.edge).contains("revoked") || problem(&bond.edge).contains("record")
        });
        let words = ["OFFLINE", "was revoked; stop this node"];
        wait_until("its status says so", PATIENCE, || {
            let status = String::from_utf8(bond.edge.ask(&["status"]).stdout).unwrap();
            words.iter().all(|words| status.contains(words))
        });
        // It comes back while the node runs whose rules lead everything into its dead bond.
        let again = self::token(&bond.exit, &[]);
        done(&bond.edge.mwb(&["join", &again, "--name", "home-again"]));
        bond.wait_until_through();
        bond.edge.stop();
        bond.edge.start();
        bond.wait_until_through();
        let status = bond.edge.status().unwrap();
        assert_eq!(status["name"], "home-again", "the mesh's name for it");
        assert_eq!(status["membership"]["revoked"], false, "{status}");
        bond.exit.check();
        bond.edge.check();
    });
}

#[test]
fn a_token_comes_from_anywhere_and_survives_a_restart() {
    in_lab("a_token_comes_from_anywhere_and_survives_a_restart", || {
        let mut bond = mesh();
        let token = token(&bond.exit, &["--uses", "3", "--role", "edge"]);
        bond.exit.kill();
        bond.exit.start();
        let (by_file, by_input) = (another(&bond), another(&bond));
        let file = by_file.1.path().join("token");
        std::fs::write(&file, format!("  {}\n{}\n", &token[..30], &token[30..])).unwrap();
        let open = || Stdio::from(std::fs::File::open(&file).unwrap());
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            let answer = by_file.0.mwb(&["join", "--file", file.to_str().unwrap()]);
            if answer.status.success() {
                break;
            }
            bond.exit.check();
            let late = std::time::Instant::now() > end;
            assert!(!late, "the exit is not back: {answer:?}\n{}", bond.exit.log());
        }
        done(&by_input.0.mwb_with(&["join", "-"], |command| {
            command.stdin(open());
        }));
        done(&bond.edge.mwb_with(&["join"], |command| {
            command.env("MWB_TOKEN", &token);
        }));
        // Once more is no mistake and uses nothing up.
        done(&bond.edge.mwb(&["join", &token]));
        let (fourth, _dir) = another(&bond);
        refused(&fourth.mwb(&["join", &token]), 1, "the token is used up");
        bond.edge.start();
        bond.wait_until_through();
    });
}

#[test]
fn each_token_that_does_not_let_in_is_told_apart() {
    in_lab("each_token_that_does_not_let_in_is_told_apart", || {
        let mut bond = mesh();
        let good = token(&bond.exit, &[]);
        let join = |token: &str| bond.edge.mwb(&["join", token]);
        refused(&join("hello"), 2, "not a token");
        refused(&join(""), 2, "empty");
        refused(&join(&good.replace("mwb1-", "mwb9-")), 2, "version 9");
        refused(&join(&good[..good.len() / 2]), 2, "its end is missing");
        let other = if good.as_bytes()[30] == b'a' { "b" } else { "a" };
        refused(&join(&format!("{}{other}{}", &good[..30], &good[31..])), 2, "checksum");
        let short = token(&bond.exit, &["--ttl", "1s"]);
        std::thread::sleep(Duration::from_millis(2100));
        refused(&join(&short), 1, "has expired");
        let (first, _dir) = another(&bond);
        done(&first.mwb(&["join", &good]));
        refused(&join(&good), 1, "is used up");
        refused(&first.mwb(&["invite"]), 1, "root key");
        let exit = token(&bond.exit, &["--role", "exit"]);
        refused(&join(&exit), 1, "--public");
        refused(&bond.exit.mwb(&["invite", "--role", "king"]), 2, "no role");
        refused(&bond.exit.mwb(&["invite", "--uses", "0"]), 2, "1 to 256");
        refused(&bond.exit.mwb(&["init"]), 1, "already belongs to the mesh");

        // The inviter's host begins anew: same key and address, another root.
        let old = token(&bond.exit, &[]);
        bond.exit.stop();
        refused(&bond.edge.mwb(&["join", &old]), 1, "cannot be reached");
        std::fs::remove_dir_all(bond.exit.state_dir().join("membership")).unwrap();
        init_exit(&bond);
        bond.exit.start();
        wait_until("the new exit answers", PATIENCE, || {
            let output = bond.edge.mwb(&["join", &old]);
            String::from_utf8_lossy(&output.stderr).contains("the token is for another mesh")
        });
        let new = token(&bond.exit, &[]);
        refused(&first.mwb(&["join", &new]), 1, "already belongs to the mesh");
        done(&bond.edge.mwb(&["join", &new]));
        bond.edge.start();
        bond.wait_until_through();
    });
}

#[test]
fn strangers_and_members_of_another_mesh_are_refused() {
    in_lab("strangers_and_members_of_another_mesh_are_refused", || {
        let mut bond = mesh();
        // It knows all about the exit, and the exit nothing about it.
        bond.edge.configure(&format!(
            "{UPLINKS}[[peers]]\nname = \"exit\"\nnode_id = \"{}\"\naddresses = [\"{}:9000\"]\nexit = true\n",
            bond.exit.id,
            bond.exit.host().address()
        ));
        bond.edge.start();
        wait_until("the stranger is told", PATIENCE, || problem(&bond.edge).contains("no membership record"));
        bond.edge.stop();
        done(&bond.edge.mwb(&["init"]));
        bond.edge.start();
        wait_until("the foreigner is told", PATIENCE, || problem(&bond.edge).contains("another mesh"));
        assert!(!bond.is_through());
        let status = bond.exit.status().unwrap();
        assert_eq!(status["sessions"].as_array().map(Vec::len), Some(0), "{status}");
        bond.edge.stop();

        // What can do nothing says so at once.
        std::fs::remove_dir_all(bond.edge.state_dir().join("membership")).unwrap();
        bond.edge.configure(UPLINKS);
        let runtime = bond.edge.state_dir().with_extension("no-run");
        let config = bond.edge.config_file().to_str().unwrap().to_owned();
        let output = bond.edge.mwb(&["run", "--config", &config, "--runtime-dir", runtime.to_str().unwrap()]);
        refused(&output, 2, "mwb-node join TOKEN");
        refused(&bond.edge.mwb(&["members"]), 1, "belongs to no mesh");
        refused(&bond.edge.mwb(&["invite"]), 1, "belongs to no mesh");
    });
}
