//! The members on the LAN and at the other end of sessions for people, from the JSON that the node answers with. What is missing there
//! (another version of the node) is left out here.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::status_text::{list, megabits, number, span, text_of};

/// Tables of the other ends of sessions, of the members on the LAN, and of their uplinks and ours.
pub(crate) fn text(state: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_sessions(&mut out, state);
    let lan = &state["lan"];
    let _ = if lan.is_null() {
        writeln!(out, "\nthis node takes no part in a LAN")
    } else {
        writeln!(out).and_then(|()| write_lan(&mut out, lan))
    };
    out
}

/// An object for each session: `name` and `node_id` of the peer, `role` (`exit` or `edge`: what the peer is), `paths`,
/// `paths_up`, `addresses` (where its paths come from or lead to), `inner` (the edge's address in the bond).
pub(crate) fn sessions(state: &Value) -> impl Iterator<Item = Value> {
    list(state, "sessions").map(|session| {
        let paths: Vec<_> = list(session, "paths").collect();
        let remotes: BTreeSet<_> = paths.iter().map(|path| text_of(path, "remote")).collect();
        let is_up = |path: &&&Value| matches!(text_of(path, "health"), "up" | "degraded");
        json!({
            "name": session["name"],
            "node_id": session["peer"],
            "role": if text_of(session, "role") == "edge" { "exit" } else { "edge" },
            "paths": paths.len(),
            "paths_up": paths.iter().filter(is_up).count(),
            "addresses": remotes,
            "inner": session["inner"]["v4"][0],
        })
    })
}

fn write_sessions(out: &mut String, state: &Value) -> std::fmt::Result {
    let mut sessions = sessions(state).peekable();
    if sessions.peek().is_none() {
        let exit = !state["exit"].is_null();
        let who = if exit { "no edge uses this exit now" } else { "no session with an exit" };
        return writeln!(out, "{who}");
    }
    writeln!(
        out,
        "{:<20}{:<14}{:<6}{:>9}  {:<18}addresses",
        "bonded with", "node", "as", "paths up", "inner"
    )?;
    for session in sessions {
        let node: String = text_of(&session, "node_id").chars().take(12).collect();
        let up = format!("{} of {}", session["paths_up"], session["paths"]);
        let addresses: Vec<_> = list(&session, "addresses").filter_map(Value::as_str).collect();
        writeln!(
            out,
            "{:<20}{node:<14}{:<6}{up:>9}  {:<18}{}",
            text_of(&session, "name"),
            text_of(&session, "role"),
            text_of(&session, "inner"),
            addresses.join(" "),
        )?;
    }
    Ok(())
}

fn write_lan(out: &mut String, lan: &Value) -> std::fmt::Result {
    let ports: Vec<_> = list(lan, "ports").map(|port| text_of(port, "interface")).collect();
    if list(lan, "peers").next().is_none() {
        writeln!(out, "nobody was seen on {}", ports.join(", "))?;
    } else {
        writeln!(
            out,
            "{:<20}{:<14}{:<24}{:<14}{:>9}  {:<20}{:>8}",
            "peer", "node", "address", "connected", "rtt ms", "roles", "uplinks"
        )?;
    }
    for peer in list(lan, "peers") {
        let connected = match peer["connected_seconds"].as_f64() {
            Some(seconds) => span(seconds as u64),
            None => "no".to_owned(),
        };
        let node: String = text_of(peer, "node_id").chars().take(12).collect();
        let rtt = peer["rtt_ms"].as_f64().map(|rtt| format!("{rtt:.2}")).unwrap_or_default();
        let uplinks = list(peer, "uplinks").count();
        let (name, address, roles) =
            (text_of(peer, "name"), text_of(peer, "address"), text_of(peer, "roles"));
        writeln!(out, "{name:<20}{node:<14}{address:<24}{connected:<14}{rtt:>9}  {roles:<20}{uplinks:>8}")?;
    }
    let ours = list(lan, "uplinks").map(|uplink| ("this node", uplink));
    let theirs = list(lan, "peers")
        .flat_map(|peer| list(peer, "uplinks").map(move |uplink| (text_of(peer, "name"), uplink)));
    let mut uplinks = ours.chain(theirs).peekable();
    if uplinks.peek().is_some() {
        writeln!(
            out,
            "\n{:<20}{:<16}{:<12}{:<7}{:<7}{:>12}{:>14}{:>9}  gateway",
            "uplink of", "name", "type", "up", "lends", "up Mbit/s", "down Mbit/s", "rtt ms"
        )?;
    }
    for (of, uplink) in uplinks {
        let word = |key: &str| if uplink[key] == true { "yes" } else { "no" };
        let known = |rate: f64| if rate > 0.0 { format!("{rate:.1}") } else { "?".to_owned() };
        let (up, down) = (known(megabits(uplink, "rate_up")), known(megabits(uplink, "rate_down")));
        let rtt = known(number(uplink, "rtt_ms"));
        writeln!(
            out,
            "{of:<20}{:<16}{:<12}{:<7}{:<7}{up:>12}{down:>14}{rtt:>9}  {}",
            text_of(uplink, "name"),
            text_of(uplink, "type"),
            word("up"),
            word("lend"),
            text_of(uplink, "gateway"),
        )?;
    }
    for (address, problem) in lan["problems"].as_object().into_iter().flatten() {
        writeln!(out, "\n{address}: {}", problem.as_str().unwrap_or_default())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_show_what_a_person_asks() {
        let uplink = |name: &str, gateway: Value| {
            json!({"name": name, "type": "lte", "up": true, "lend": false, "rate_up": 20_500_000_u64,
                   "rate_down": 0, "rtt_ms": 31.25, "gateway": gateway})
        };
        let lan = json!({
            "ports": [{"interface": "lan0"}],
            "peers": [{"name": "attic", "node_id": "aabbccddeeff00112233", "roles": "edge,lender",
                       "address": "192.168.50.12:9100", "connected": true, "connected_seconds": 75.2, "rtt_ms": 0.42,
                       "uplinks": [uplink("wwan0", json!("192.168.8.1 (02:00:00:00:00:01)"))]},
                      {"name": "cellar", "node_id": "00", "connected": false}],
            "uplinks": [uplink("fibre", Value::Null)],
            "problems": {"192.168.50.14:9100": "no answer in time"},
        });
        let path =
            |name: &str, health: &str| json!({"name": name, "health": health, "remote": "192.0.2.1:9000"});
        let sessions = json!([{"name": "vps", "peer": "112233445566778899", "role": "edge", "inner": {"v4": ["10.9.8.2", 24]},
                               "paths": [path("a", "up"), path("b", "down")]}]);
        let text = text(&json!({"sessions": sessions, "lan": lan}));
        for part in [
            "vps                 112233445566  exit     1 of 2  10.9.8.2          192.0.2.1:9000\n",
            "attic               aabbccddeeff  192.168.50.12:9100      1 min",
            "0.42  edge,lender                1",
            "cellar              00                                    no",
            "this node           fibre           lte         yes    no             20.5             ?     31.2",
            "attic               wwan0",
            "192.168.8.1 (02:00:00:00:00:01)",
            "192.168.50.14:9100: no answer in time",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let alone = super::text(&json!({"lan": {"ports": [{"interface": "lan0"}]}}));
        assert_eq!(alone, "no session with an exit\n\nnobody was seen on lan0\n");
        let exit = super::text(&json!({"exit": {}, "sessions": []}));
        assert_eq!(exit, "no edge uses this exit now\n\nthis node takes no part in a LAN\n");
    }
}
