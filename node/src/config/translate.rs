//! Turns the second names of a file into our keys, before anything is merged: what means the same is renamed, what
//! says the same otherwise is computed, what has no effect is told.

use std::net::SocketAddr;

use config::{Map, Value, ValueKind};
use mwb_actors::spec::UPLINK_ID_MAX;
use mwb_proto::bond::FecConfig;
use mwb_proto::wire::Parity;
use serde_json::Value as Json;

use super::keys::{self, Kind, Means};
use super::walk::{Places, join};
use super::{Fault, Warning, class_names, duration, judge};

/// A full packet, for those who count packets where we count bytes.
const PACKET_BYTES: u64 = 1500;
/// Weight of the first interface of a list of one primary and backups; the backups have the default.
const PRIMARY_WEIGHT: i64 = 20;

/// Turns `values`, which a file holds, in place.
pub(super) fn translate(
    values: &mut Map<String, Value>,
    places: &mut Places,
    faults: &mut Vec<Fault>,
    warnings: &mut Vec<Warning>,
) {
    let mut translator = Translator { values, places, faults, warnings };
    translator.blocks();
    translator.same_and_nothing();
    translator.session();
    translator.endpoints();
    translator.health_checks();
    translator.fec();
    translator.mesh_network();
}

struct Translator<'a> {
    values: &'a mut Map<String, Value>,
    places: &'a mut Places,
    faults: &'a mut Vec<Fault>,
    warnings: &'a mut Vec<Warning>,
}

impl Translator<'_> {
    /// Takes what stands at `path`, if its key's table allows it; refuses it if not.
    fn take(&mut self, path: &str) -> Option<(Json, Value)> {
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        let value = table(self.values, section, false)?.remove(name)?;
        let key = keys::find(path)?;
        if matches!(value.kind, ValueKind::Nil) {
            return None;
        }
        match judge::judge(key, &value) {
            Ok(json) => Some((json, value)),
            Err(wrongs) => {
                for wrong in wrongs {
                    let (index, at) = wrong.place(&value);
                    self.refuse(&format!("{path}{index}"), at, wrong.problem, wrong.fix);
                }
                None
            }
        }
    }

    /// Whether anything is written at `path`.
    fn has(&mut self, path: &str) -> bool {
        self.look(path).is_some()
    }

    fn look(&mut self, path: &str) -> Option<&Value> {
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        table(self.values, section, false)?.get(name).filter(|value| !matches!(value.kind, ValueKind::Nil))
    }

    /// Writes at `path` what `from` says, unless something else stands there.
    fn put(&mut self, path: &str, kind: ValueKind, from: &str, value: &Value) {
        if let Some(other) = self.look(path) {
            let place = other.origin().map(|origin| format!(" ({origin})")).unwrap_or_default();
            let ours = self.places.written(path);
            let problem = format!("says what {ours}{place} says, and both are written");
            return self.refuse(from, value, problem, "keep one of the two".to_owned());
        }
        let (section, name) = path.rsplit_once('.').unwrap_or(("", path));
        if let Some(table) = table(self.values, section, true) {
            let origin = value.origin().map(str::to_owned);
            table.insert(name.to_owned(), Value::new(origin.as_ref(), kind));
            let written = self.places.written(from);
            self.places.written.insert(path.to_owned(), written);
        }
    }

    fn refuse(&mut self, path: &str, value: &Value, problem: String, fix: String) {
        let origin = value.origin().unwrap_or(&self.places.file).to_owned();
        self.faults.push(Fault { key: self.places.written(path), origin, problem, fix });
    }

    fn warn(&mut self, path: &str, value: &Value, says: impl Into<String>) {
        let origin = value.origin().unwrap_or(&self.places.file).to_owned();
        self.warnings.push(Warning { key: self.places.written(path), origin, says: says.into() });
    }

    /// How many uplinks are written.
    fn uplinks(&self) -> usize {
        match self.values.get("uplinks").map(|uplinks| &uplinks.kind) {
            Some(ValueKind::Array(uplinks)) => uplinks.len(),
            _ => 0,
        }
    }

    fn blocks(&mut self) {
        let Some(wans) = self.values.remove("wans") else { return };
        if self.has("uplinks") {
            self.put("uplinks", ValueKind::Nil, "wans", &wans);
            return;
        }
        self.values.insert("uplinks".to_owned(), wans);
        self.places.written.insert("uplinks".to_owned(), "wans".to_owned());
        // They may be numbered to 255 there.
        for index in 0..self.uplinks() {
            let path = format!("uplinks[{index}].id");
            let high = match self.look(&path).map(|id| &id.kind) {
                Some(ValueKind::I64(id)) => (i64::from(UPLINK_ID_MAX) + 1..=255).contains(id),
                _ => false,
            };
            if let Some((name, id)) = high
                .then(|| table(self.values, &format!("uplinks[{index}]"), false)?.remove_entry("id"))
                .flatten()
            {
                self.warn(
                    &path,
                    &id,
                    format!("{name}s end at {UPLINK_ID_MAX} here: this one is numbered anew"),
                );
            }
        }
    }

    fn same_and_nothing(&mut self) {
        for key in keys::second().filter(|key| key.path != "wans") {
            let paths = match key.path.strip_prefix("uplinks[]") {
                Some(rest) => (0..self.uplinks()).map(|index| format!("uplinks[{index}]{rest}")).collect(),
                None => vec![key.path.to_owned()],
            };
            for path in paths {
                match key.means {
                    Means::Same(ours) => {
                        let ours = path.rsplit_once('.').filter(|_| ours.contains("[]")).map_or_else(
                            || ours.to_owned(),
                            |(block, _)| join(block, ours.rsplit('.').next().unwrap_or(ours)),
                        );
                        // Judged under the name that it gets.
                        let (section, name) = path.rsplit_once('.').unwrap_or(("", &path));
                        let value = table(self.values, section, false).and_then(|table| table.remove(name));
                        if let Some(value) = value.filter(|value| !matches!(value.kind, ValueKind::Nil)) {
                            self.put(&ours, value.kind.clone(), &path, &value);
                        }
                    }
                    Means::Nothing(why) => {
                        if let Some((_, value)) = self.take(&path) {
                            // Who asks for nothing gets it.
                            if !matches!(value.kind, ValueKind::Boolean(false)) {
                                self.warn(&path, &value, format!("has no effect: {why}"));
                            }
                        }
                    }
                    Means::Itself | Means::Turned(_) => {}
                }
            }
        }
    }

    fn session(&mut self) {
        if let Some((Json::String(text), value)) = self.take("session.local_endpoint") {
            let from = "session.local_endpoint";
            if self.has("exit") {
                let list = vec![Value::new(value.origin().map(str::to_owned).as_ref(), text)];
                self.put("exit.listen", ValueKind::Array(list), from, &value);
            } else {
                self.warn(from, &value, "has no effect on an edge: it sends from free ports");
            }
        }
        let mode = self.take("session.duplicate_mode");
        match self.take("session.duplicate_packets") {
            Some((Json::Bool(true), value)) => {
                let copies = mode.and_then(|(mode, _)| mode.as_str().map(str::to_owned));
                let copies = copies.unwrap_or_else(|| "fastest".to_owned());
                self.put("duplication.mode", copies.into(), "session.duplicate_packets", &value);
                if !self.has("duplication.classes") {
                    let origin = value.origin().map(str::to_owned);
                    let all =
                        class_names().into_iter().map(|class| Value::new(origin.as_ref(), class)).collect();
                    self.put(
                        "duplication.classes",
                        ValueKind::Array(all),
                        "session.duplicate_packets",
                        &value,
                    );
                }
            }
            Some((_, value)) => {
                self.put("duplication.mode", "off".into(), "session.duplicate_packets", &value);
            }
            None => {
                if let Some((_, value)) = mode {
                    let says = "has no effect without duplicate_packets = true";
                    self.warn("session.duplicate_mode", &value, says);
                }
            }
        }
        self.packets("session.reorder_buffer", "bond.reorder_bytes_max");
    }

    /// Turns a number of packets into one of bytes, within the bounds of `ours`.
    fn packets(&mut self, from: &str, ours: &str) {
        let Some((packets, value)) = self.take(from) else { return };
        let bytes = packets.as_u64().unwrap_or_default().saturating_mul(PACKET_BYTES);
        let (least, most) = match keys::find(ours).map(|key| &key.kind) {
            Some(Kind::Whole(least, most)) => (*least, *most),
            _ => (0, u64::MAX),
        };
        if bytes < least {
            self.warn(from, &value, format!("{packets} packets are {bytes} bytes: raised to {least}"));
        }
        self.put(ours, ValueKind::U64(bytes.clamp(least, most)), from, &value);
    }

    /// Addresses of the exit that stand elsewhere than in its block.
    fn endpoints(&mut self) {
        let mut paths = vec!["session.remote_endpoint".to_owned()];
        paths.extend((0..self.uplinks()).map(|index| format!("uplinks[{index}].remote_addr")));
        let exit = match self.values.get("peers").map(|peers| &peers.kind) {
            Some(ValueKind::Array(peers)) => peers.iter().position(|peer| match &peer.kind {
                ValueKind::Table(peer) => {
                    let exit =
                        peer.get("exit").is_some_and(|exit| matches!(exit.kind, ValueKind::Boolean(true)));
                    exit && !peer.contains_key("addresses")
                }
                _ => false,
            }),
            _ => None,
        };
        let mut addresses: Vec<Value> = Vec::new();
        let mut seen = Vec::new();
        let mut first = None;
        for path in paths {
            let Some((Json::String(text), value)) = self.take(&path) else { continue };
            if text.is_empty() {
                continue;
            }
            let Ok(address) = text.parse::<SocketAddr>() else {
                let says = format!(
                    "{text:?} has no effect: names are not looked up; the exit's address stands in \
                                    [[peers]] addresses or in the mesh's records"
                );
                self.warn(&path, &value, says);
                continue;
            };
            if exit.is_none() {
                let says = "has no effect: no peer with exit = true lacks addresses; a member of a mesh knows its exit";
                self.warn(&path, &value, says);
            } else if !seen.contains(&address) {
                seen.push(address);
                addresses.push(Value::new(value.origin().map(str::to_owned).as_ref(), text));
                first.get_or_insert((path, value));
            }
        }
        if let (Some(exit), Some((path, value))) = (exit, first) {
            self.put(&format!("peers[{exit}].addresses"), ValueKind::Array(addresses), &path, &value);
        }
    }

    fn health_checks(&mut self) {
        let mut all = Vec::new();
        for index in 0..self.uplinks() {
            let path = format!("uplinks[{index}].health_check_interval");
            if let Some((Json::String(text), value)) = self.take(&path)
                && let Ok(interval) = duration::parse(&text)
            {
                all.push((interval, text, path, value));
            }
        }
        let Some(least) = all.iter().map(|(interval, ..)| *interval).min() else { return };
        let mut chosen = None;
        for (interval, text, path, value) in all {
            if interval > least {
                self.warn(&path, &value, format!("is {least:?}, as of another uplink: all are probed alike"));
            } else if chosen.is_none() {
                chosen = Some((text, path, value));
            }
        }
        if let Some((text, path, value)) = chosen {
            self.put("bond.heartbeat_idle", text.into(), &path, &value);
        }
    }

    fn fec(&mut self) {
        let Some((enabled, value)) = self.take("fec.enabled") else { return };
        if enabled == Json::Bool(false) {
            return self.put("fec.mode", "off".into(), "fec.enabled", &value);
        }
        self.put("fec.mode", "enabled".into(), "fec.enabled", &value);
        let number = |value: &Value| match value.kind {
            ValueKind::Float(number) => Some(number),
            ValueKind::I64(number) => Some(number as f64),
            _ => None,
        };
        let Some(redundancy) = self.look("fec.redundancy").cloned() else { return };
        if self.has("fec.parity_shards") {
            let says =
                "has no effect beside parity_shards: with fec.enabled = true those say how much is sent";
            return self.warn("fec.redundancy", &redundancy, says);
        }
        let data = self.look("fec.data_shards").and_then(number);
        let data = data.unwrap_or(f64::from(FecConfig::default().data_shards));
        if let Some(share) = number(&redundancy) {
            // 0.3 of 10 are 3, whatever a computer makes of 0.3.
            let parity = (share * data - 1e-9).ceil().clamp(1.0, f64::from(Parity::PARITY_MAX));
            self.put("fec.parity_shards", ValueKind::U64(parity as u64), "fec.redundancy", &redundancy);
        }
    }

    fn mesh_network(&mut self) {
        let (primary, backups) = ("mesh_network.interfaces.primary", "mesh_network.interfaces.backups");
        let mut uplinks = Vec::new();
        let mut uplink = |interface: Value, weight: Option<i64>| {
            let origin = interface.origin().map(str::to_owned);
            let mut block = Map::new();
            if let Some(weight) = weight {
                block.insert("weight".to_owned(), Value::new(origin.as_ref(), weight));
            }
            block.insert("interface".to_owned(), interface);
            uplinks.push(Value::new(origin.as_ref(), block));
        };
        let mut from = None;
        if let Some((_, value)) = self.take(primary) {
            uplink(value.clone(), Some(PRIMARY_WEIGHT));
            from = Some((primary, value));
        }
        if let Some((_, value)) = self.take(backups) {
            if let ValueKind::Array(interfaces) = &value.kind {
                interfaces.iter().for_each(|interface| uplink(interface.clone(), None));
            }
            from.get_or_insert((backups, value));
        }
        if let Some((path, value)) = from {
            self.put("uplinks", ValueKind::Array(uplinks), path, &value);
            self.places.written.remove("uplinks");
        }
        if let Some((Json::String(mode), value)) = self.take("mesh_network.link_aggregation.mode") {
            let mode = if mode == "load_balance" { "round_robin".to_owned() } else { mode };
            self.put("routing.mode", mode.into(), "mesh_network.link_aggregation.mode", &value);
        }
        self.packets("mesh_network.link_aggregation.max_queue_size", "bond.queue_bytes_max");
    }
}

/// The table at `path`, made with those above it if `make` says so; none where something else stands.
fn table<'v>(root: &'v mut Map<String, Value>, path: &str, make: bool) -> Option<&'v mut Map<String, Value>> {
    let mut table = root;
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, index) = match part.split_once('[') {
            Some((name, index)) => (name, Some(index.trim_end_matches(']').parse::<usize>().ok()?)),
            None => (part, None),
        };
        if make && index.is_none() && !table.contains_key(name) {
            table.insert(name.to_owned(), Value::new(None, ValueKind::Table(Map::new())));
        }
        let mut value = table.get_mut(name)?;
        if let Some(index) = index {
            let ValueKind::Array(blocks) = &mut value.kind else { return None };
            value = blocks.get_mut(index)?;
        }
        let ValueKind::Table(inner) = &mut value.kind else { return None };
        table = inner;
    }
    Some(table)
}
