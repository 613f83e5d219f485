//! Whether the tables of others let through what a node needs: read from `nft`, judged without touching them.
//!
//! A packet of ours is followed through every base chain of its hook. Where a rule's conditions are not all understood, the
//! rule may hold or not, and what depends on it is uncertain: that is no fault. Rules of the older `iptables-legacy` are
//! not in that list; that they exist is said.

use std::collections::BTreeSet;

use serde_json::Value;

use super::kernel::{AS_ROOT, Refused, run_nft};
use super::{Patient, Report};

/// Deepest chain of jumps that is followed; the kernel allows 16.
const DEPTH_MAX: u32 = 16;
/// Where members of a mesh look for each other (RFC 6762).
const MDNS: u16 = 5353;

/// A packet that has to get through.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// A datagram to this UDP port, from somebody who was never heard of.
    Call(u16),
    /// The answer to a datagram of ours.
    Answer,
    /// What came out of this interface, on its way to the internet.
    Forward(String),
}

impl Wanted {
    fn hook(&self) -> &'static str {
        match self {
            Self::Call(_) | Self::Answer => "input",
            Self::Forward(_) => "forward",
        }
    }

    fn state(&self) -> &'static str {
        if *self == Self::Answer { "established" } else { "new" }
    }
}

/// Yes, no, or not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Yes,
    Maybe,
    No,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// It gets through.
    Through,
    /// It may.
    Uncertain,
    /// This chain eats it: family, table, chain.
    Eaten([String; 3]),
}

pub(super) async fn firewall(patient: &Patient<'_>, report: &mut Report) {
    let ruleset = match run_nft(&["-j", "list", "ruleset"]).await {
        Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
        Err(Refused::Missing) => {
            return report.note(
                "firewall",
                "cannot be read: the program nft is missing",
                "sudo apt-get install nftables",
            );
        }
        Err(Refused::Failed(_)) => {
            return report.note("firewall", "cannot be read as this user", AS_ROOT);
        }
    };
    let ruleset = Ruleset::of(&ruleset);
    let mut clear = true;
    for (wanted, what, is_vital) in wanted(patient) {
        match ruleset.fate(&wanted) {
            Fate::Through => continue,
            Fate::Uncertain => report.note(
                "firewall",
                format!("{what}: whether it gets through depends on rules that are not understood here"),
                "sudo nft list ruleset",
            ),
            Fate::Eaten(chain) => {
                let says = format!("{what} is dropped by {}", chain.join(" "));
                let todo = ruleset.cure(&wanted, &chain);
                if is_vital {
                    report.fault("firewall", says, todo)
                } else {
                    report.note("firewall", says, todo)
                }
            }
        }
        clear = false;
    }
    if let Ok(tables) = std::fs::read_to_string("/proc/net/ip_tables_names")
        && !tables.trim().is_empty()
    {
        let says = "there are rules of iptables-legacy too, which are not read here";
        report.note("firewall", says, "sudo iptables-legacy-save");
    } else if clear {
        report.ok("firewall", "nothing that is known to be in the way");
    }
}

/// What has to get through for this node, in words, and whether it is nothing without.
fn wanted(patient: &Patient<'_>) -> Vec<(Wanted, String, bool)> {
    let mut wanted = Vec::new();
    if let Some(exit) = patient.config.and_then(|config| config.exit.as_ref()) {
        let ports: BTreeSet<u16> = exit.listen.iter().map(|listen| listen.port()).collect();
        let call = |port| (Wanted::Call(port), format!("UDP port {port}, where edges call,"), true);
        wanted.extend(ports.into_iter().map(call));
        wanted.push((Wanted::Forward(patient.tun().to_owned()), "the traffic of the edges".to_owned(), true));
    }
    if patient.is_edge() {
        wanted.push((Wanted::Answer, "what the exit answers".to_owned(), true));
    }
    if let Some(lan) = patient.config.and_then(|config| config.lan.as_ref()) {
        wanted.push((Wanted::Call(lan.port), format!("UDP port {}, where the LAN calls,", lan.port), false));
        if lan.mdns {
            wanted.push((
                Wanted::Call(MDNS),
                "mDNS (UDP 5353), by which the LAN is found,".to_owned(),
                false,
            ));
        }
    }
    wanted
}

/// The chains and rules of others.
struct Ruleset<'a> {
    chains: Vec<&'a Value>,
    rules: Vec<&'a Value>,
}

impl<'a> Ruleset<'a> {
    /// From `nft -j list ruleset`; what is not of that form is left out.
    fn of(json: &'a Value) -> Self {
        let of = |kind: &'static str| {
            let objects = json["nftables"].as_array().into_iter().flatten();
            // Ours drops what comes from outside to the edges, on purpose.
            objects
                .map(move |object| &object[kind])
                .filter(|object| object.is_object() && object["table"] != "mwb")
        };
        Self { chains: of("chain").collect(), rules: of("rule").collect() }
    }

    /// What becomes of a packet in all chains together.
    fn fate(&self, wanted: &Wanted) -> Fate {
        let mut fate = Fate::Through;
        for chain in &self.chains {
            let is_family = chain["family"] == "ip" || chain["family"] == "inet";
            if !is_family || chain["hook"] != wanted.hook() {
                continue;
            }
            let place = ["family", "table"].map(|key| chain[key].as_str().unwrap_or_default());
            let name = chain["name"].as_str().unwrap_or_default();
            let (end, may_pass) = self.walk(place, name, wanted, 0);
            let is_through = end.unwrap_or(chain["policy"] != "drop");
            match (is_through, may_pass) {
                (true, _) => {}
                (false, true) => fate = Fate::Uncertain,
                (false, false) => return Fate::Eaten([place[0], place[1], name].map(str::to_owned)),
            }
        }
        fate
    }

    /// Follows the packet: whether the chain lets it through, if it says; and whether a rule that may hold would.
    fn walk(&self, place: [&str; 2], chain: &str, wanted: &Wanted, depth: u32) -> (Option<bool>, bool) {
        let mut may_pass = false;
        if depth > DEPTH_MAX {
            return (None, true);
        }
        let rules = self
            .rules
            .iter()
            .filter(|rule| rule["family"] == place[0] && rule["table"] == place[1] && rule["chain"] == chain);
        for rule in rules {
            let expressions = rule["expr"].as_array().map(Vec::as_slice).unwrap_or_default();
            let holds = expressions.iter().map(|expression| holds(expression, wanted));
            let holds = holds.fold(Holds::Yes, |all, one| match (all, one) {
                (Holds::No, _) | (_, Holds::No) => Holds::No,
                (Holds::Maybe, _) | (_, Holds::Maybe) => Holds::Maybe,
                _ => Holds::Yes,
            });
            if holds == Holds::No {
                continue;
            }
            let is_sure = holds == Holds::Yes;
            for expression in expressions {
                let Some((verb, object)) = expression.as_object().and_then(|one| one.iter().next()) else {
                    continue;
                };
                match verb.as_str() {
                    "accept" if is_sure => return (Some(true), may_pass),
                    "accept" => may_pass = true,
                    "drop" | "reject" if is_sure => return (Some(false), may_pass),
                    "return" if is_sure => return (None, may_pass),
                    "jump" | "goto" => {
                        let target = object["target"].as_str().unwrap_or_default();
                        let (end, may) = self.walk(place, target, wanted, depth + 1);
                        may_pass |= may;
                        match end {
                            Some(end) if is_sure => return (Some(end), may_pass),
                            Some(true) => may_pass = true,
                            // After a goto the chain's policy decides.
                            None if is_sure && verb == "goto" => return (None, may_pass),
                            _ => {}
                        }
                    }
                    _ => {}
                }
            }
        }
        (None, may_pass)
    }

    /// A command that lets the packet through, for whoever made the rules.
    fn cure(&self, wanted: &Wanted, [family, table, chain]: &[String; 3]) -> String {
        let has_chain = |prefix: &str| {
            self.chains
                .iter()
                .any(|chain| chain["name"].as_str().is_some_and(|name| name.starts_with(prefix)))
        };
        let is_ufw = has_chain("ufw-") && chain != "DOCKER-USER";
        match wanted {
            Wanted::Call(port) if is_ufw => format!("sudo ufw allow {port}/udp"),
            Wanted::Call(port) if table == "firewalld" => {
                format!("sudo firewall-cmd --permanent --add-port={port}/udp && sudo firewall-cmd --reload")
            }
            Wanted::Call(port) => {
                format!("sudo nft insert rule {family} {table} {chain} udp dport {port} accept")
            }
            Wanted::Answer => {
                format!("sudo nft insert rule {family} {table} {chain} ct state established,related accept")
            }
            Wanted::Forward(tun) if has_chain("DOCKER-USER") => format!(
                "sudo iptables -I DOCKER-USER -i {tun} -j ACCEPT && sudo iptables -I DOCKER-USER -o {tun} -j ACCEPT"
            ),
            Wanted::Forward(tun) if is_ufw => {
                format!("sudo ufw route allow in on {tun} && sudo ufw route allow out on {tun}")
            }
            Wanted::Forward(tun) if table == "firewalld" => format!(
                "sudo firewall-cmd --permanent --zone=trusted --add-interface={tun} && sudo firewall-cmd --reload"
            ),
            Wanted::Forward(tun) => format!(
                "sudo nft insert rule {family} {table} {chain} iifname {tun} accept && sudo nft insert rule {family} {table} \
                 {chain} oifname {tun} accept"
            ),
        }
    }
}

/// Whether a part of a rule holds for the packet. What decides and what only counts holds always.
fn holds(expression: &Value, wanted: &Wanted) -> Holds {
    let condition = &expression["match"];
    if !condition.is_object() {
        let verb = expression.as_object().and_then(|one| one.keys().next()).map(String::as_str);
        let is_condition =
            matches!(verb, Some("limit" | "xt" | "quota" | "vmap" | "ct count" | "meter") | None);
        return if is_condition { Holds::Maybe } else { Holds::Yes };
    }
    let (left, right) = (&condition["left"], &condition["right"]);
    let is = |key: &str, of: &str| left[key]["key"] == of;
    let found = if left["payload"]["field"] == "dport" {
        match (left["payload"]["protocol"].as_str(), wanted) {
            (Some("udp" | "th"), Wanted::Call(port)) => among(right, &|one| has_port(one, *port)),
            (Some("udp" | "th"), _) => Holds::Maybe,
            _ => Holds::No,
        }
    } else if is("ct", "state") {
        among(right, &|one| one.as_str().map(|state| state == wanted.state()))
    } else if is("meta", "l4proto") || left["payload"]["field"] == "protocol" {
        match wanted {
            Wanted::Forward(_) => Holds::Maybe,
            _ => among(right, &|one| one.as_str().map(|protocol| protocol == "udp")),
        }
    } else if is("meta", "iifname") || is("meta", "iif") {
        match wanted {
            Wanted::Forward(tun) => among(right, &|one| one.as_str().map(|name| name == tun)),
            // Calls come from elsewhere than this host.
            _ => among(right, &|one| (one == "lo").then_some(false)),
        }
    } else if is("meta", "nfproto") {
        among(right, &|one| one.as_str().map(|family| family == "ipv4"))
    } else {
        Holds::Maybe
    };
    match (condition["op"].as_str(), found) {
        (Some("!="), Holds::Yes) => Holds::No,
        (Some("!="), Holds::No) => Holds::Yes,
        _ => found,
    }
}

/// Whether one of what stands at a condition's right is it: a value, a list or a set. `None`: not known.
fn among(right: &Value, is: &dyn Fn(&Value) -> Option<bool>) -> Holds {
    let list = right["set"].as_array().or_else(|| right.as_array());
    let all: Vec<&Value> = list.map_or_else(|| vec![right], |list| list.iter().collect());
    let found: Vec<_> = all.into_iter().map(is).collect();
    if found.contains(&Some(true)) {
        Holds::Yes
    } else if found.contains(&None) {
        Holds::Maybe
    } else {
        Holds::No
    }
}

/// A port, or a range of ports. A named set is not looked into.
fn has_port(value: &Value, port: u16) -> Option<bool> {
    if let Some([from, to]) = value["range"].as_array().map(Vec::as_slice) {
        return Some(from.as_u64()? <= port.into() && u64::from(port) <= to.as_u64()?);
    }
    Some(value.as_u64()? == u64::from(port))
}

#[cfg(test)]
mod tests;
