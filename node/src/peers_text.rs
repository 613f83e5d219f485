//! The members on the LAN for people, from the JSON that the node answers with. What is missing there
//! (another version of the node) is left out here.

use std::fmt::Write;

use serde_json::Value;

use crate::status_text::{list, megabits, number, span, text_of};

/// A table of peers, and one of their uplinks and ours.
pub(crate) fn text(lan: &Value) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, lan);
    out
}

fn write(out: &mut String, lan: &Value) -> std::fmt::Result {
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
    use serde_json::json;

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
        let text = text(&lan);
        for part in [
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
        assert_eq!(super::text(&json!({"ports": [{"interface": "lan0"}]})), "nobody was seen on lan0\n");
    }
}
