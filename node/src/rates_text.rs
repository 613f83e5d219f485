//! Tables of links and sessions for people and programs, from two states of a node. What is missing there (another version
//! of the node) is left out here. Lines fit into 80 columns as long as names are not longer than a dozen letters.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::status_text::{list, number, span, text_of};

/// Longest name that keeps its column.
const NAME: usize = 12;

/// Two states of a node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<'a> {
    /// The earlier one.
    pub(crate) before: &'a Value,
    /// The later one.
    pub(crate) now: &'a Value,
    /// Time between them, seconds.
    pub(crate) seconds: f64,
}

impl Sample<'_> {
    /// Mbit/s of a counter of bytes; 0 when it began anew.
    fn mbit(&self, now: f64, before: f64) -> f64 {
        let bits = 8.0 * (now - before).max(0.0);
        if self.seconds > 0.0 { (bits / self.seconds / 1e6 * 1e3).round() / 1e3 } else { 0.0 }
    }
}

/// One object for each link: uplinks, listen addresses, ports on the LAN.
///
/// `name`, `type`, `interface`, `state`, `gateway`, `local`, `problem`, `mbit_up` and `mbit_down` (now: UDP payload of ours,
/// and whole packets of those it is lent to; `sent_bytes` and `received_bytes` likewise),
/// `capacity_mbit` (most sent in two seconds), `delay_ms`, `loss` (share of what was sent), `sent_bytes`, `received_bytes`,
/// `metered`, `found`, `lent_to` (names). `null`: not known, or nothing to be known.
pub(crate) fn links_json(sample: &Sample<'_>, gateways: &BTreeMap<String, String>) -> Vec<Value> {
    let Sample { before, now, .. } = sample;
    let row = |link: &Value| {
        let name = text_of(link, "name");
        let earlier =
            list(before, "links").find(|link| text_of(link, "name") == name).unwrap_or(&Value::Null);
        let uplink = list(now, "uplinks").find(|uplink| text_of(uplink, "name") == name);
        let uplink = uplink.unwrap_or(&Value::Null);
        let announced = list(&now["lan"], "uplinks").find(|uplink| text_of(uplink, "name") == name);
        let known = gateways.get(text_of(uplink, "interface")).cloned().map(Value::from);
        let gateway = known.or_else(|| announced.map(|uplink| uplink["gateway"].clone()));
        let paths: Vec<_> = paths(now).filter(|(path, _)| text_of(path, "link") == name).collect();
        let values = |key: &'static str| paths.iter().map(move |(_, sender)| number(sender, key));
        let delays = values("rtt_ms").filter(|delay| *delay > 0.0);
        // What others send over a lent uplink is on its line too.
        let total = |of: &Value, own: &str, lent: &str| number(of, own) + number(of, lent);
        let up = |of: &Value| total(of, "sent_bytes", "lent_up_bytes");
        let down = |of: &Value| total(of, "received_bytes", "lent_down_bytes");
        let is_port = list(&now["lan"], "ports").any(|port| text_of(port, "link") == name);
        let lent = list(&now["leases"], "lent").filter(|lent| text_of(lent, "uplink") == name);
        let some = |values: f64| (!paths.is_empty()).then_some(values);
        json!({
            "name": name,
            "type": if is_port { json!("LAN port") } else { uplink["type"].clone() },
            "interface": uplink["interface"],
            "state": state(link, is_port, paths.iter().map(|(path, _)| text_of(path, "health"))),
            "gateway": gateway,
            "local": link["local"],
            "problem": link["problem"],
            "mbit_up": sample.mbit(up(link), up(earlier)),
            "mbit_down": sample.mbit(down(link), down(earlier)),
            "capacity_mbit": some(values("capacity_mbit").fold(0.0, f64::max)),
            "delay_ms": delays.min_by(f64::total_cmp),
            "loss": some(values("loss").fold(0.0, f64::max)),
            "sent_bytes": up(link),
            "received_bytes": down(link),
            "metered": uplink["metered"],
            "found": uplink["found"],
            "lent_to": lent.map(|lent| text_of(lent, "peer")).collect::<Vec<_>>(),
        })
    };
    list(now, "links").map(row).collect()
}

/// All paths of all sessions, each with what its sender knows of it.
fn paths(state: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    list(state, "sessions").flat_map(|session| {
        list(session, "paths").map(|path| {
            let sender = list(&session["sender"], "paths").find(|sender| sender["path"] == path["path"]);
            (path, sender.unwrap_or(&Value::Null))
        })
    })
}

/// The best of the healths of its paths, or why there are none: a LAN port has some only while it leads to a lender.
fn state<'a>(link: &Value, is_port: bool, healths: impl Iterator<Item = &'a str>) -> String {
    if link["local"].is_null() {
        return "gone".to_owned();
    }
    const BEST_FIRST: [&str; 5] = ["up", "degraded", "recovering", "starting", "down"];
    let rank =
        |health: &&str| BEST_FIRST.iter().position(|known| known == health).unwrap_or(BEST_FIRST.len());
    healths.min_by_key(rank).unwrap_or(if is_port { "ready" } else { "no path" }).to_owned()
}

/// A line for each link, and one below it with what is not a number.
pub(crate) fn links_text(links: &[Value]) -> String {
    let mut out = format!(
        "{:<NAME$} {:<10} {:>8} {:>8} {:>7} {:>6} {:>9} {:>9}\n",
        "link", "state", "up Mb/s", "down", "ms", "loss", "sent MB", "recv MB"
    );
    for link in links {
        let name = text_of(link, "name");
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{name:<NAME$} {:<10} {:>8.1} {:>8.1} {:>7} {:>6} {:>9.1} {:>9.1}",
            text_of(link, "state"),
            number(link, "mbit_up"),
            number(link, "mbit_down"),
            shown(&link["delay_ms"], |delay| format!("{delay:.1}")),
            shown(&link["loss"], |loss| format!("{:.1}%", 100.0 * loss)),
            megabytes(link, "sent_bytes"),
            megabytes(link, "received_bytes"),
        );
        let lent: Vec<_> = list(link, "lent_to").filter_map(Value::as_str).collect();
        let words = [
            text_of(link, "type").to_owned(),
            // A name that says it already needs no repetition.
            Some(text_of(link, "interface")).filter(|it| *it != name).unwrap_or_default().to_owned(),
            text_of(link, "local").to_owned(),
            prefixed("via ", text_of(link, "gateway").split(' ').next().unwrap_or_default()),
            if link["metered"] == true { "metered".to_owned() } else { String::new() },
            prefixed("lent to ", &lent.join(" ")),
        ];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        wrapped(&mut out, &words);
        if !text_of(link, "problem").is_empty() {
            let _ = writeln!(out, "  {}", text_of(link, "problem"));
        }
    }
    out
}

/// One object for each session.
///
/// `name`, `peer` (name, or the beginning of its id), `role`, `mode`, `paths`, `paths_up`, `mbit_in` (inner bytes handed on,
/// now), `mbit_out` (bytes sent for inner packets, now: copies, resends and headers count), `bytes_in`, `bytes_out`,
/// `delay_ms` (round trip of the nearest path), `delay_max_ms` (of the farthest), `hold_ms` (how long a gap may be waited for),
/// `held_packets`, `resent`, `copied`, `parity_sent`, `rebuilt`, `timed_out` (gaps given up), `age_seconds`.
pub(crate) fn sessions_json(sample: &Sample<'_>) -> Vec<Value> {
    let row = |session: &Value| {
        let same = |other: &&Value| other["id"] == session["id"] && other["name"] == session["name"];
        let earlier = list(sample.before, "sessions").find(same).unwrap_or(&Value::Null);
        let id = text_of(session, "peer");
        let peer = list(sample.now, "peers").find(|peer| text_of(peer, "node_id") == id);
        let peer =
            peer.map_or_else(|| id.chars().take(NAME).collect(), |peer| text_of(peer, "name").to_owned());
        let (sender, receiver) = (&session["sender"], &session["receiver"]);
        let health = |path: &&Value| matches!(text_of(path, "health"), "up" | "degraded");
        let delays = list(sender, "paths").map(|path| number(path, "rtt_ms")).filter(|delay| *delay > 0.0);
        let delays: Vec<f64> = delays.collect();
        let delivered = |of: &Value| number(&of["receiver"], "delivered_bytes");
        let (bytes_in, bytes_out) = (delivered(session), bytes_out(session));
        json!({
            "name": session["name"],
            "peer": peer,
            "role": session["role"],
            "mode": sender["mode"],
            "paths": list(session, "paths").count(),
            "paths_up": list(session, "paths").filter(health).count(),
            "mbit_in": sample.mbit(bytes_in, delivered(earlier)),
            "mbit_out": sample.mbit(bytes_out, self::bytes_out(earlier)),
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "delay_ms": delays.iter().copied().min_by(f64::total_cmp),
            "delay_max_ms": delays.iter().copied().max_by(f64::total_cmp),
            "hold_ms": receiver["hold_ms"],
            "held_packets": receiver["held_packets"],
            "resent": sender["resent"],
            "copied": sender["copied"],
            "parity_sent": sender["parity_sent"],
            "rebuilt": receiver["fec_recovered"],
            "timed_out": receiver["timed_out"],
            "age_seconds": session["age_seconds"],
        })
    };
    list(sample.now, "sessions").map(row).collect()
}

/// Bytes that a session's paths have sent for inner packets.
fn bytes_out(session: &Value) -> f64 {
    let own = |path: &Value| {
        number(path, "sent_bytes") - number(path, "report_bytes") - number(path, "heartbeat_bytes")
    };
    // The sum of nothing is -0.0.
    list(&session["sender"], "paths").map(own).fold(0.0, |sum, bytes| sum + bytes)
}

/// A line for each session, and one below it with what was repaired.
pub(crate) fn sessions_text(sessions: &[Value]) -> String {
    if sessions.is_empty() {
        return "no session\n".to_owned();
    }
    let mut out = format!(
        "{:<NAME$} {:<4} {:<13} {:>5} {:>8} {:>8} {:>11} {:>11}\n",
        "session", "role", "mode", "paths", "in Mb/s", "out", "ms", "age"
    );
    for session in sessions {
        let paths = format!("{:.0}/{:.0}", number(session, "paths_up"), number(session, "paths"));
        let delay = shown(&session["delay_ms"], |delay| {
            let short = |ms: f64| if ms < 100.0 { format!("{ms:.1}") } else { format!("{ms:.0}") };
            format!("{}-{}", short(delay), short(number(session, "delay_max_ms").max(delay)))
        });
        let age = session["age_seconds"].as_f64().map(|age| span(age as u64)).unwrap_or_default();
        let count = |key: &str, word: &str| {
            let count = number(session, key);
            if count > 0.0 { format!("{count:.0} {word}") } else { String::new() }
        };
        let (name, peer) = (text_of(session, "name"), text_of(session, "peer"));
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{name:<NAME$} {:<4} {:<13} {paths:>5} {:>8.1} {:>8.1} {delay:>11} {age:>11}",
            text_of(session, "role"),
            text_of(session, "mode"),
            number(session, "mbit_in"),
            number(session, "mbit_out"),
        );
        let words = [
            if peer == name { String::new() } else { prefixed("with ", peer) },
            format!(
                "{:.1} MB in, {:.1} MB out",
                megabytes(session, "bytes_in"),
                megabytes(session, "bytes_out")
            ),
            count("held_packets", "packets held"),
            format!("gaps wait up to {:.0} ms", number(session, "hold_ms")),
            count("resent", "resent"),
            count("copied", "copied"),
            count("parity_sent", "parity"),
            count("rebuilt", "rebuilt"),
            count("timed_out", "gaps given up"),
        ];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        wrapped(&mut out, &words);
    }
    out
}

/// Words separated by commas, in as many indented lines of 80 columns as they need.
fn wrapped(out: &mut String, words: &[String]) {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() && line.chars().count() + word.chars().count() + 5 > 80 {
            out.push_str(&format!("  {line},\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        out.push_str(&format!("  {line}\n"));
    }
}

fn shown(value: &Value, show: impl Fn(f64) -> String) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), show)
}

fn prefixed(prefix: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{prefix}{text}") }
}

fn megabytes(value: &Value, key: &str) -> f64 {
    number(value, key) / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(bytes: u64) -> Value {
        json!({
            "links": [{"name": "fibre", "local": "10.0.0.2:4000", "sent_bytes": bytes, "received_bytes": 3 * bytes},
                {"name": "wwan0", "local": null, "problem": "there is no interface wwan0", "sent_bytes": 0}],
            "uplinks": [{"name": "fibre", "type": "fiber", "interface": "eth0", "metered": false},
                {"name": "wwan0", "type": "lte", "interface": "wwan0", "metered": true}],
            "peers": [{"name": "exit", "node_id": "aabb"}],
            "sessions": [{"name": "exit", "id": "01", "role": "edge", "peer": "aabb", "age_seconds": 75.5,
                "paths": [{"path": 1, "link": "fibre", "health": "up"}, {"path": 2, "link": "fibre", "health": "down"}],
                "sender": {"mode": "adaptive", "resent": 7, "copied": 0, "parity_sent": 0, "paths": [
                    {"path": 1, "rtt_ms": 12.34, "loss": 0.015, "capacity_mbit": 48.0, "sent_bytes": bytes,
                     "report_bytes": 1000, "heartbeat_bytes": 0},
                    {"path": 2, "rtt_ms": 40.0, "loss": 0.0}]},
                "receiver": {"delivered_bytes": 2 * bytes, "hold_ms": 31.7, "held_packets": 3}}],
            "leases": {"lent": [{"peer": "van", "uplink": "fibre"}]},
        })
    }

    #[test]
    fn links_show_what_they_are_and_carry() {
        let (before, now) = (state(1_000_000), state(2_000_000));
        let gateways = BTreeMap::from([("eth0".to_owned(), "10.0.0.1".to_owned())]);
        let links = links_json(&Sample { before: &before, now: &now, seconds: 2.0 }, &gateways);
        assert_eq!((&links[0]["mbit_up"], &links[0]["mbit_down"]), (&json!(4.0), &json!(12.0)));
        assert_eq!((&links[0]["state"], &links[1]["state"]), (&json!("up"), &json!("gone")));
        assert_eq!((&links[0]["lent_to"], &links[1]["delay_ms"]), (&json!(["van"]), &Value::Null));
        let text = links_text(&links);
        for part in [
            "fibre        up              4.0     12.0    12.3   1.5%       2.0       6.0",
            "  fiber, eth0, 10.0.0.2:4000, via 10.0.0.1, lent to van",
            "wwan0        gone            0.0      0.0       -      -       0.0       0.0",
            "  lte, metered",
            "  there is no interface wwan0",
        ] {
            assert!(text.lines().any(|line| line == part), "{part} in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn a_lent_link_carries_for_others_too_and_a_port_without_a_lender_is_ready() {
        let (mut before, mut now) = (state(1_000_000), state(1_000_000));
        for (state, bytes) in [(&mut before, 0), (&mut now, 500_000)] {
            state["links"][0]["lent_up_bytes"] = bytes.into();
            state["links"][0]["lent_down_bytes"] = (2 * bytes).into();
            state["links"][1] = json!({"name": "lan-eth1", "local": "192.168.1.2:9100"});
            state["lan"] = json!({"ports": [{"interface": "eth1", "link": "lan-eth1"}]});
        }
        let links = links_json(&Sample { before: &before, now: &now, seconds: 1.0 }, &BTreeMap::new());
        assert_eq!((&links[0]["mbit_up"], &links[0]["mbit_down"]), (&json!(4.0), &json!(8.0)));
        assert_eq!((&links[0]["sent_bytes"], &links[0]["received_bytes"]), (&json!(1.5e6), &json!(4e6)));
        assert_eq!((&links[1]["state"], &links[1]["type"]), (&json!("ready"), &json!("LAN port")));
    }

    #[test]
    fn sessions_show_what_they_carry_and_repair() {
        let (before, now) = (state(1_000_000), state(2_000_000));
        let sessions = sessions_json(&Sample { before: &before, now: &now, seconds: 1.0 });
        assert_eq!((&sessions[0]["mbit_in"], &sessions[0]["mbit_out"]), (&json!(16.0), &json!(8.0)));
        let text = sessions_text(&sessions);
        for part in [
            "exit         edge adaptive        1/2     16.0      8.0   12.3-40.0  1 min 15 s",
            "  4.0 MB in, 2.0 MB out, 3 packets held, gaps wait up to 32 ms, 7 resent",
        ] {
            assert!(text.lines().any(|line| line == part), "{part} in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert_eq!(sessions_text(&[]), "no session\n");
        let idle = json!({"sessions": [{"name": "exit", "role": "edge"}]});
        let idle = sessions_json(&Sample { before: &idle, now: &idle, seconds: 1.0 });
        assert!(!sessions_text(&idle).contains("-0.0"), "{}", sessions_text(&idle));
    }

    #[test]
    fn a_counter_that_began_anew_and_an_empty_answer_are_no_trouble() {
        let (before, now) = (state(2_000_000), state(1_000_000));
        let sample = Sample { before: &before, now: &now, seconds: 1.0 };
        assert_eq!(links_json(&sample, &BTreeMap::new())[0]["mbit_up"], 0.0);
        let empty = Sample { before: &Value::Null, now: &Value::Null, seconds: 0.0 };
        assert!(links_json(&empty, &BTreeMap::new()).is_empty());
        assert!(sessions_json(&empty).is_empty());
        let words: Vec<_> = (0..30).map(|n| format!("word {n}")).collect();
        let mut out = String::new();
        wrapped(&mut out, &words);
        assert!(out.lines().count() > 1 && out.lines().all(|line| line.len() <= 80), "{out}");
    }
}
