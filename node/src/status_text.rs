//! The state of a node for people, from the JSON that the node answers with. What is missing there (another
//! version of the node) is left out here.

use std::fmt::Write;

use serde_json::Value;

/// How many paths of all sessions carry packets.
pub(crate) fn paths_up(state: &Value) -> usize {
    let paths = list(state, "sessions").flat_map(|session| list(session, "paths"));
    paths.filter(|path| matches!(text_of(path, "health"), "up" | "degraded")).count()
}

/// Whether a session of an edge has no path that could carry packets now.
pub(crate) fn is_offline(session: &Value) -> bool {
    text_of(session, "role") == "edge"
        && list(session, "paths").all(|path| matches!(text_of(path, "health"), "" | "down"))
}

/// How long nothing has come over any path of a session, seconds; `None` without a path.
pub(crate) fn silence(session: &Value) -> Option<f64> {
    list(session, "paths").map(|path| number(path, "silent_seconds")).min_by(f64::total_cmp)
}

/// One screen of text.
pub(crate) fn text(state: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, state);
    out
}

fn write(out: &mut String, state: &Value) -> std::fmt::Result {
    let uptime = state["uptime_seconds"].as_u64().unwrap_or_default();
    writeln!(out, "{}  {}", text_of(state, "name"), text_of(state, "node_id"))?;
    writeln!(out, "version {}, running for {}", text_of(state, "version"), span(uptime))?;
    if state["membership"]["revoked"] == true {
        let mesh = text_of(&state["membership"], "mesh");
        writeln!(
            out,
            "warning: the membership in the mesh {mesh} was revoked; stop this node, or join again"
        )?;
    }
    let problem = text_of(&state["exit"], "problem");
    if !problem.is_empty() {
        writeln!(out, "warning: {problem}")?;
    }
    for session in list(state, "sessions").filter(|session| is_offline(session)) {
        write!(out, "OFFLINE: no path to the exit {} carries packets", text_of(session, "name"))?;
        match silence(session) {
            Some(seconds) => writeln!(out, ", nothing has come for {}", span(seconds as u64))?,
            None => writeln!(out, ", none has joined (mwb-node doctor says why)")?,
        }
    }
    for session in list(state, "sessions") {
        write_session(out, session)?;
    }
    if list(state, "sessions").next().is_none() {
        writeln!(out, "\nno session")?;
    }
    writeln!(
        out,
        "\n{:<16}{:<24}{:>12}{:>14}  {:<28}problem",
        "link", "local address", "sent MB", "received MB", "what"
    )?;
    for link in list(state, "links") {
        let (sent, received) = (megabytes(link, "sent_bytes"), megabytes(link, "received_bytes"));
        let (local, problem) = (text_of(link, "local"), text_of(link, "problem"));
        let name = text_of(link, "name");
        let what = what(list(state, "uplinks").find(|uplink| text_of(uplink, "name") == name));
        writeln!(out, "{name:<16}{local:<24}{sent:>12.1}{received:>14.1}  {what:<28}{problem}")?;
    }
    for peer in list(state, "peers") {
        let joined = number(peer, "paths_joined");
        writeln!(
            out,
            "\npeer {}  {}  {joined:.0} paths joined",
            text_of(peer, "name"),
            text_of(peer, "node_id")
        )?;
        for slot in list(peer, "slots") {
            let problem = text_of(slot, "problem");
            if !problem.is_empty() {
                writeln!(out, "  {} to {}: {problem}", text_of(slot, "link"), text_of(slot, "address"))?;
            }
        }
    }
    let members = list(&state["lan"], "peers").filter(|peer| peer["connected"] == true);
    let members: Vec<_> = members.map(|peer| text_of(peer, "name")).collect();
    if !members.is_empty() {
        writeln!(out, "\non the LAN: {} (mwb-node peers says more)", members.join(", "))?;
    }
    write_leases(out, &state["leases"])?;
    write_actors(out, state)
}

/// What kind of uplink a link is, if it is one.
fn what(uplink: Option<&Value>) -> String {
    let Some(uplink) = uplink else { return String::new() };
    let mark = |key: &str, word: &'static str| (uplink[key] == true).then_some(word);
    let words = [Some(text_of(uplink, "type")), mark("metered", "metered"), mark("found", "found by itself")];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What is lent and borrowed now.
fn write_leases(out: &mut String, leases: &Value) -> std::fmt::Result {
    let limits = |lease: &Value| match (lease["grant_up"].as_f64(), lease["grant_down"].as_f64()) {
        (None, None) => "no limit now".to_owned(),
        (up, down) => {
            let rate =
                |limit: Option<f64>| limit.map_or("any".to_owned(), |limit| format!("{:.1}", limit / 1e6));
            format!("at most {} Mbit/s up, {} down", rate(up), rate(down))
        }
    };
    for lent in list(leases, "lent") {
        let (up, down) = (megabytes(&lent["up"], "bytes"), megabytes(&lent["down"], "bytes"));
        let (uplink, peer) = (text_of(lent, "uplink"), text_of(lent, "peer"));
        writeln!(out, "\nlent: {uplink} to {peer}, {up:.1} MB up, {down:.1} MB down, {}", limits(lent))?;
    }
    for borrowed in list(leases, "borrowed") {
        let (uplink, peer, exit) =
            (text_of(borrowed, "uplink"), text_of(borrowed, "peer"), text_of(borrowed, "exit"));
        writeln!(out, "\nborrowed: {uplink} of {peer}, to the exit {exit}, {}", limits(borrowed))?;
    }
    Ok(())
}

fn write_session(out: &mut String, session: &Value) -> std::fmt::Result {
    write!(out, "\nsession {} ({})", text_of(session, "name"), text_of(session, "role"))?;
    match text_of(&session["sender"], "mode") {
        "" => {}
        mode => write!(out, ", routing {mode}")?,
    }
    if let Some([address, prefix]) = session["inner"]["v4"].as_array().map(Vec::as_slice) {
        write!(out, ", inner address {}/{prefix}", address.as_str().unwrap_or_default())?;
    }
    let receiver = &session["receiver"];
    let (delivered, held) = (megabytes(receiver, "delivered_bytes"), number(receiver, "held_packets"));
    writeln!(out, ", {delivered:.1} MB delivered, {held:.0} packets held")?;
    writeln!(
        out,
        "  {:<16}{:<12}{:>9}{:>10}{:>10}{:>10}{:>9}  remote",
        "path", "health", "rtt ms", "can Mb/s", "queue ms", "sent MB", "lost"
    )?;
    for path in list(session, "paths") {
        let sender = list(&session["sender"], "paths").find(|sender| sender["path"] == path["path"]);
        let sender = sender.unwrap_or(&Value::Null);
        writeln!(
            out,
            "  {:<16}{:<12}{:>9.1}{:>10.1}{:>10.1}{:>10.1}{:>9.0}  {}",
            path["name"].as_str().unwrap_or(text_of(path, "link")),
            text_of(path, "health"),
            number(sender, "rtt_ms"),
            number(sender, "rate_mbit"),
            number(sender, "queue_ms"),
            megabytes(sender, "sent_bytes"),
            number(sender, "lost"),
            text_of(path, "remote"),
        )?;
    }
    let (sender, receiver) = (&session["sender"], &session["receiver"]);
    let (parity, rebuilt) = (number(sender, "parity_sent"), number(receiver, "fec_recovered"));
    if parity + rebuilt > 0.0 {
        let redundancy = 100.0 * number(sender, "redundancy");
        writeln!(out, "  parity: {parity:.0} sent, {redundancy:.0} % now; {rebuilt:.0} packets rebuilt")?;
    }
    Ok(())
}

/// Only the actors that need a look: all the others are counted.
fn write_actors(out: &mut String, state: &Value) -> std::fmt::Result {
    let quiet = |actor: &&Value| text_of(actor, "state") == "running" && number(actor, "restarts") == 0.0;
    let total = list(state, "actors").count();
    let running = list(state, "actors").filter(quiet).count();
    writeln!(out, "\n{running} of {total} actors and drivers are running and never failed")?;
    for actor in list(state, "actors").filter(|actor| !quiet(actor)) {
        let (name, now) = (text_of(actor, "name"), text_of(actor, "state"));
        write!(out, "  {name}: {now}, {:.0} restarts", number(actor, "restarts"))?;
        match text_of(actor, "last_failure") {
            "" => writeln!(out)?,
            failure => writeln!(out, ", last failure: {failure}")?,
        }
    }
    Ok(())
}

/// The elements of the list `key`, none when it is missing.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// The text `key`, empty when it is missing.
pub(crate) fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The number `key`, 0 when it is missing.
pub(crate) fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_default()
}

/// A rate in bit/s, as Mbit/s.
pub(crate) fn megabits(value: &Value, key: &str) -> f64 {
    number(value, key) / 1e6
}

fn megabytes(value: &Value, key: &str) -> f64 {
    number(value, key) / 1e6
}

/// A time for people.
pub(crate) fn span(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_shown() {
        let state = serde_json::json!({
            "name": "edge-1", "node_id": "00ff", "version": "0.1.0", "uptime_seconds": 3725,
            "links": [{"name": "fibre", "local": "10.0.0.2:4000", "sent_bytes": 1_500_000, "received_bytes": 0},
                {"name": "wwan0", "problem": "gone"}],
            "uplinks": [{"name": "fibre", "type": "fiber", "metered": false, "found": false},
                {"name": "wwan0", "type": "lte", "metered": true, "found": true}],
            "peers": [{"name": "exit", "node_id": "aa", "paths_joined": 1, "slots": [
                {"link": "lte", "address": "192.0.2.1:9000", "problem": "timed out"}]}],
            "sessions": [{"name": "exit", "role": "edge", "inner": {"v4": ["10.9.8.2", 24]},
                "paths": [{"path": 1, "link": "fibre", "health": "up", "remote": "192.0.2.1:9000"},
                          {"path": 2, "link": "lte", "health": "down", "remote": "192.0.2.1:9000"}],
                "sender": {"mode": "per_flow", "paths": [{"path": 1, "rtt_ms": 12.34, "lost": 7}],
                    "parity_sent": 40, "redundancy": 0.25},
                "receiver": {"delivered_bytes": 2_000_000, "held_packets": 3, "fec_recovered": 9}}],
            "leases": {"lent": [{"peer": "van", "uplink": "fibre", "up": {"bytes": 1_200_000}, "down": {"bytes": 0},
                    "grant_up": 5e6, "grant_down": null}],
                "borrowed": [{"peer": "barn", "uplink": "dsl", "exit": "exit"}]},
            "actors": [{"name": "a", "state": "running", "restarts": 0},
                       {"name": "b", "state": "parked", "restarts": 5, "last_failure": "boom"}],
        });
        assert_eq!(paths_up(&state), 1);
        let text = text(&state);
        for part in [
            "running for 1 h 2 min",
            "inner address 10.9.8.2/24",
            "routing per_flow",
            "12.3",
            "lte to 192.0.2.1:9000: timed out",
            "parity: 40 sent, 25 % now; 9 packets rebuilt",
            "lent: fibre to van, 1.2 MB up, 0.0 MB down, at most 5.0 Mbit/s up, any down",
            "borrowed: dsl of barn, to the exit exit, no limit now",
            "1.5           0.0  fiber   ",
            "lte, metered, found by itself",
            "1 of 2 actors",
            "b: parked, 5 restarts, last failure: boom",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn an_empty_answer_is_no_panic() {
        assert_eq!(paths_up(&Value::Null), 0);
        assert!(text(&Value::Null).contains("no session"));
        assert_eq!(span(59), "59 s");
        assert_eq!(span(90_000), "1 d 1 h");
    }
}
