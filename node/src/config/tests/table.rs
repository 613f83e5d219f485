//! Goal: the table of keys, the types that are filled, the sample, the schema and the page of documentation agree.
//! Method: each is held against the table, the schema also against values within and out of every bound.

use std::cmp::Ordering;

use serde_json::{Value as Json, json};

use super::*;
use crate::config::keys::{Given, Key, Kind, Means};

/// A block of everything: all keys that exist have a default or a value here.
const FULL: &str = "[[uplinks]]\n[[peers]]\nnode_id = \"ID\"\n";

#[test]
fn every_key_has_a_field_and_every_field_a_key() {
    // Fields without a key are missing here, keys without a field are refused as unknown ones.
    let loaded = load_text(&FULL.replace("ID", ID), Format::Toml, &[], &[]).expect("all fields");
    let exit =
        load_text(&format!("[exit]\n[[peers]]\nnode_id = \"{ID}\""), Format::Toml, &[], &[]).expect("exit");
    let seen = |key: &Key| {
        let same = |entry: &Entry| keys::pattern(&entry.key) == key.path;
        loaded.entries.iter().chain(&exit.entries).any(same)
    };
    for key in keys::own() {
        assert!(seen(key), "{} is in no section that is read", key.path);
        assert!(SECTIONS_OF.contains(&key.section()), "{} stands in no section", key.path);
        assert!(key.means == Means::Itself && !key.about.is_empty(), "{}", key.path);
        let good = match key.default.value() {
            None => true,
            Some(value) => in_schema(&schema_of(key), &value),
        };
        assert!(good, "the default of {} is not allowed", key.path);
    }
    let mut paths: Vec<_> = keys::all().map(|key| key.path).collect();
    paths.sort_unstable();
    assert!(paths.windows(2).all(|two| two[0] != two[1]), "a key stands there twice: {paths:?}");
    for key in keys::second() {
        assert!(key.means != Means::Itself && matches!(key.default, Given::Nothing(_)), "{}", key.path);
        if let Means::Same(ours) = key.means {
            let blocks = format!("{ours}[]");
            assert!(keys::own().any(|own| own.path == ours || own.section() == blocks), "{ours}");
        }
    }
}

const SECTIONS_OF: [&str; 12] = [
    "node",
    "tun",
    "discovery",
    "uplinks[]",
    "peers[]",
    "lan",
    "exit",
    "routing",
    "bond",
    "fec",
    "duplication",
    "log",
];

#[test]
fn the_sample_has_every_key() {
    let mut section = String::new();
    let mut seen = Vec::new();
    for line in SAMPLE.lines() {
        let line = line.trim_start_matches("# ");
        if let Some(rest) = line.strip_prefix('[') {
            let blocks = if rest.starts_with('[') { "[]" } else { "" };
            section = format!("{}{blocks}", rest.trim_matches(['[', ']']));
        } else if let Some((name, _)) = line.split_once(" = ") {
            seen.push(format!("{section}.{name}"));
        }
    }
    for key in keys::own() {
        assert!(seen.iter().any(|path| path == key.path), "{} is missing in sample.toml", key.path);
    }
}

#[test]
fn the_page_of_keys_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/CONFIG.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == markdown(),
        "node/CONFIG.md is out of date; make it again: cargo run -- config keys > node/CONFIG.md"
    );
}

/// The schema of one key, found by its path.
fn schema_of(key: &Key) -> Json {
    let mut at = schema();
    for part in key.path.split('.') {
        let name = part.trim_end_matches("[]");
        at = at["properties"][name].clone();
        if part.ends_with("[]") {
            at = at["items"].clone();
        }
    }
    assert!(at.is_object(), "{} is not in the schema", key.path);
    at
}

/// Judges `value` by as much of JSON schema as ours uses, patterns aside.
fn in_schema(schema: &Json, value: &Json) -> bool {
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| in_schema(schema, value));
    }
    let kind = match schema["type"].as_str() {
        None => true,
        Some("object") => value.as_object().is_some_and(|object| {
            object.iter().all(|(name, value)| match schema["properties"].get(name) {
                Some(inner) if inner["$ref"] == json!("#/properties/uplinks") => {
                    in_schema(&schema["properties"]["uplinks"], value)
                }
                Some(inner) => in_schema(inner, value),
                None => schema["additionalProperties"] != json!(false),
            }) && schema["required"].as_array().is_none_or(|names| {
                names.iter().all(|name| name.as_str().is_some_and(|name| object.contains_key(name)))
            })
        }),
        Some("array") => {
            value.as_array().is_some_and(|array| array.iter().all(|value| in_schema(&schema["items"], value)))
        }
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some(other) => panic!("{other}"),
    };
    let order = |bound: &str| match (schema[bound].as_u64(), value.as_u64()) {
        // Beyond what a float tells apart.
        (Some(bound), Some(value)) => Some(value.cmp(&bound)),
        _ => value.as_f64()?.partial_cmp(&schema[bound].as_f64()?),
    };
    let named = schema["enum"].as_array().is_none_or(|names| names.contains(value));
    let both = schema["not"]["required"].as_array().is_some_and(|names| {
        names.iter().all(|name| name.as_str().is_some_and(|name| value.get(name).is_some()))
    });
    let within = order("minimum") != Some(Ordering::Less) && order("maximum") != Some(Ordering::Greater);
    kind && named && !both && within
}

/// Values at and beyond the bounds of a kind, and of other types.
fn candidates(kind: &Kind) -> Vec<Json> {
    let mut values = vec![json!(true), json!("x"), json!(7), json!(0.5), json!([]), json!({}), json!(["x"])];
    match kind {
        Kind::Whole(least, most) => {
            values.extend([
                json!(least),
                json!(most),
                json!(least.saturating_sub(1)),
                json!(most + 1),
                json!(-1),
            ]);
        }
        Kind::Number(least, most) => {
            values.extend([json!(least), json!(most), json!(least / 2.0), json!(most * 2.0)])
        }
        Kind::Choice(names) => values.extend(names().into_iter().map(Json::from)),
        Kind::ChoiceOr(names, list) => {
            values.extend(names().into_iter().map(Json::from));
            values.extend(candidates(list));
        }
        Kind::List(each) => values.extend(candidates(each).into_iter().map(|value| json!([value]))),
        Kind::Bool | Kind::Span(..) | Kind::Text(_) | Kind::Anything => {}
    }
    values
}

#[test]
fn the_schema_allows_what_the_checker_allows() {
    let mut judged = 0;
    for key in keys::own() {
        let schema = schema_of(key);
        for value in candidates(&key.kind) {
            let values = read::parse(&json!({ "v": value }).to_string(), Format::Json, FILE).expect("JSON");
            let allowed = judge::judge(key, &values["v"]).is_ok();
            // Bounds and units of times are more than a pattern can say.
            if !matches!(key.kind, Kind::Span(..)) {
                assert_eq!(in_schema(&schema, &value), allowed, "{} = {value}: {schema}", key.path);
                judged += 1;
            }
        }
    }
    assert!(judged > 300, "{judged}");
}

#[test]
fn the_sample_fits_the_schema() {
    let merged = Config::builder()
        .add_source(settings::Values(read::parse(&samples().0, Format::Toml, FILE).expect("TOML")));
    let sample: Json = merged.build().expect("one source").try_deserialize().expect("JSON");
    assert!(in_schema(&schema(), &sample), "{sample}");
    assert!(!in_schema(&schema(), &json!({ "tunn": {} })));
    assert!(!in_schema(&schema(), &json!({ "peers": [{}] })), "node_id is required");
    assert!(!in_schema(&schema(), &json!({ "uplinks": [], "wans": [] })));
    assert!(in_schema(&schema(), &json!({ "wans": [{ "local_addr": "192.0.2.1" }] })));
    assert!(!in_schema(&schema(), &json!({ "wans": [{ "colour": 1 }] })));
}

#[test]
fn types_of_uplinks_have_one_name_each() {
    for kind in LinkType::ALL {
        assert_eq!(serde_json::from_value::<LinkType>(json!(kind.name())).expect("a name"), kind);
        if let Some(typical) = kind.typical() {
            assert!(typical.latency_ms.0 < typical.latency_ms.1 && typical.mbit.0 < typical.mbit.1);
        }
    }
}

#[test]
fn what_is_shown_means_the_same() {
    let env = [("MWB__BOND__ECN", "false")];
    let shown = |text: &str| load_text(text, Format::Toml, &env, &["tun.mtu=1300"]).expect("good");
    let sample = samples().0;
    let loaded = shown(&sample);
    let text = show(&loaded.entries);
    let again =
        load_text(&text, Format::Toml, &[], &[]).unwrap_or_else(|refused| panic!("{refused}\n{text}"));
    assert_eq!(again.node, loaded.node, "{text}");
    for line in
        ["mtu = 1300", "# --set tun.mtu", "ecn = false", "# environment variable MWB__BOND__ECN", "# default"]
    {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let weight = text.lines().find(|line| line.starts_with("weight = 10")).expect("a weight");
    let line = sample.lines().position(|line| line == "weight = 10").expect("a weight") + 1;
    assert!(weight.ends_with(&format!("# /etc/test.toml:{line}")), "{weight}");
    let objects = show_json(&loaded.entries);
    let of = |key: &str| {
        objects.as_array().and_then(|all| all.iter().find(|object| object["key"] == key)).cloned().expect(key)
    };
    assert_eq!(
        of("tun.mtu"),
        json!({ "key": "tun.mtu", "value": 1300, "origin": "flag", "place": "--set tun.mtu" })
    );
    assert_eq!(of("bond.ecn")["origin"], "environment");
    assert_eq!(of("node.name")["origin"], "file");
    assert_eq!(
        of("uplinks[1].weight"),
        json!({ "key": "uplinks[1].weight", "value": 10, "origin": "default", "place": null })
    );
}

#[test]
fn what_was_chosen_for_unwritten_keys_is_shown() {
    let loaded = load_text("[[uplinks]]\ninterface = \"eth7\"\n", Format::Toml, &[], &[]).expect("good");
    let of = |key: &str| {
        loaded.entries.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.clone())
    };
    assert_eq!(of("uplinks[0].id"), Some(json!(1)));
    assert_eq!(of("uplinks[0].name"), Some(json!("eth7")));
    assert_eq!(of("node.name"), Some(json!(host_name())));
    assert_eq!(of("node.workers"), None);
}
