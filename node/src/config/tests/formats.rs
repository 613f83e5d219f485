//! Goal: TOML, JSON and YAML mean the same, every value knows its line, and no bytes can make the program panic, hang
//! or eat memory.
//! Method: one configuration in three formats; malformed texts one by one; random bytes and random configurations.

use proptest::prelude::*;

use super::*;

const TOML: &str = "[tun]\nmtu = 1400\n\n[[uplinks]]\ninterface = \"eth0\"\nweight = 3\n[[uplinks]]\ninterface = \"eth1\"\nlend = false\n\n[fec]\nredundancy = 0.25\n[bond]\nspread_max = \"90ms\"\n[duplication]\nclasses = [\"voice\", \"video\"]\n";
const JSON: &str = r#"{
  "tun": { "mtu": 1400 },
  "uplinks": [
    { "interface": "eth0", "weight": 3 },
    { "interface": "eth\u0031", "lend": false, "max_bandwidth": null }
  ],
  "fec": { "redundancy": 0.25 },
  "bond": { "spread_max": "90ms" },
  "duplication": { "classes": ["voice",
    "video"] }
}"#;
const YAML: &str = "# a comment\ntun:\n  mtu: 1400\nuplinks:\n  - interface: eth0\n    weight: 0x3\n  - interface: \"eth1\"\n    lend: false\n    max_bandwidth: ~\nfec: {redundancy: 0.25}\nbond:\n  spread_max: 90ms\nduplication:\n  classes: [voice, video]\n";

#[test]
fn three_formats_mean_the_same() {
    let toml = load_text(TOML, Format::Toml, &[], &[]).expect("TOML").node;
    assert_eq!(toml.uplinks[0].weight, 3);
    assert_eq!(load_text(JSON, Format::Json, &[], &[]).expect("JSON").node, toml);
    assert_eq!(load_text(YAML, Format::Yaml, &[], &[]).expect("YAML").node, toml);
}

#[test]
fn the_ending_tells_the_format() {
    for (name, format) in [
        ("node.toml", Format::Toml),
        ("node.JSON", Format::Json),
        ("a.b/node.yaml", Format::Yaml),
        ("node.yml", Format::Yaml),
        ("node.conf", Format::Toml),
        ("node", Format::Toml),
    ] {
        assert_eq!(Format::of(Path::new(name)), format, "{name}");
    }
}

#[test]
fn every_format_knows_its_lines() {
    let bad = |text: &str, format| {
        let faults = load_text(text, format, &[], &[]).expect_err("bad").0;
        faults.into_iter().map(|fault| (fault.key, fault.origin)).collect::<Vec<_>>()
    };
    let at = |key: &str, line: u32| (key.to_owned(), format!("{FILE}:{line}"));
    assert_eq!(bad(&TOML.replace("lend = false", "lend = 3"), Format::Toml), [at("uplinks[1].lend", 9)]);
    assert_eq!(
        bad(&JSON.replace("\"lend\": false", "\"lend\": 3"), Format::Json),
        [at("uplinks[1].lend", 5)]
    );
    assert_eq!(bad(&YAML.replace("lend: false", "lend: 3"), Format::Yaml), [at("uplinks[1].lend", 8)]);
    assert_eq!(bad(&YAML.replace("lend: false", "led: true"), Format::Yaml), [at("uplinks[1].led", 8)]);
    assert_eq!(bad(&JSON.replace("video", "viedo"), Format::Json), [at("duplication.classes[1]", 10)]);
    // What is missing is missing where its block stands.
    assert_eq!(bad("\n\n[[peers]]\nexit = false\n", Format::Toml), [at("peers[0].node_id", 3)]);
    assert_eq!(bad("{\n\"peers\": [\n{}]}", Format::Json), [at("peers[0].node_id", 3)]);
    assert_eq!(bad("peers:\n  - exit: false\n", Format::Yaml), [at("peers[0].node_id", 2)]);
}

#[test]
fn malformed_texts_are_refused_with_format_and_line() {
    let deep = "[".repeat(5000);
    let deep_yaml = "- ".repeat(5000);
    for (text, format, line, says) in [
        ("a = 1\n[tun\nmtu = 3", Format::Toml, 2, "is not TOML"),
        ("a = 1\na = 2", Format::Toml, 2, "is not TOML"),
        ("\na = 99999999999999999999", Format::Toml, 2, "too large"),
        ("{\n \"tun\": {\n", Format::Json, 3, "is not JSON"),
        ("{\"a\": 1,\n \"a\": 2}", Format::Json, 2, "written twice"),
        ("[1]", Format::Json, 1, "must begin with {"),
        ("", Format::Json, 1, "is not JSON"),
        ("{\"a\": \"\\ud800\"}", Format::Json, 1, "is not JSON"),
        (&deep, Format::Json, 1, "is not JSON"),
        ("tun:\n  mtu: 3\n bad", Format::Yaml, 3, "is not YAML"),
        ("a: 1\nb: 2\na: 3", Format::Yaml, 3, "written twice"),
        ("a: &x 1\n", Format::Yaml, 1, "anchors"),
        ("a: !!str 1\n", Format::Yaml, 1, "tags"),
        ("a: 1\n---\nb: 2\n", Format::Yaml, 2, "second document"),
        ("- 1\n", Format::Yaml, 1, "keys and values"),
        ("? [1]\n: 2\n", Format::Yaml, 1, "a key must be"),
        (&deep, Format::Yaml, 1, "is not YAML"),
        (&deep_yaml, Format::Yaml, 1, "nested too deeply"),
    ] {
        let faults = load_text(text, format, &[], &[]).expect_err(text).0;
        let message = faults[0].to_string();
        assert!(message.contains(says), "{message}");
        assert!(message.starts_with(&format!("{FILE}:{line}: ")), "line {line}: {message}");
    }
    for deep in [
        format!("{}1{}", "[".repeat(200), "]".repeat(200)),
        format!("{{\"a\":{}1{}}}", "[".repeat(99), "]".repeat(99)),
    ] {
        assert!(
            load_text(&deep, Format::Json, &[], &[]).expect_err("deep").to_string().contains("is not JSON")
        );
    }
}

#[test]
fn yaml_scalars_are_those_of_the_core_schema() {
    let config = |text: &str| load_text(text, Format::Yaml, &[], &[]);
    assert_eq!(config("node:\n  name: 'true'\n").expect("text").node.name, "true");
    assert_eq!(
        config("duplication:\n  mode: off\n").expect("a word").node.bond.sender.duplication.mode.name(),
        "off"
    );
    assert_eq!(config("uplinks:\n- type: 5g\n").expect("a word").node.uplinks[0].kind, LinkType::FiveG);
    let refused = config("node:\n  name: 007\n").expect_err("a number").to_string();
    assert!(refused.contains("quotation marks"), "{refused}");
    assert!(config("# nothing\n").is_ok() && config("").is_ok() && config("~\n").is_ok());
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("node.toml");
    let refused = |path: &Path| load(Some(path), &[]).expect_err("bad").to_string();
    assert!(refused(&path).contains("cannot be read"));
    assert!(refused(dir.path()).contains("cannot be read"));
    assert!(refused(Path::new("/dev/zero")).contains("is longer than"));
    std::fs::write(&path, b"[tun]\nname = \"\xff\"\n").expect("written");
    assert!(refused(&path).contains("byte 14 is not UTF-8"), "{}", refused(&path));
    std::fs::write(&path, "\u{feff}[node]\r\nname = \"x\"\r\n").expect("written");
    assert_eq!(load(Some(&path), &[]).expect("as Windows writes it").node.name, "x");
}

/// Words that make texts which are almost configurations.
fn word() -> impl Strategy<Value = String> {
    let words: Vec<String> = keys::all()
        .flat_map(|key| key.path.split('.'))
        .map(|word| word.trim_end_matches("[]").to_owned())
        .chain(
            [
                "{", "}", "[", "]", "[[", "]]", ":", ",", "=", "\"", "'", "\n", "\n  ", "- ", "? ", "&a",
                "*a", "<<", "|\n", "#", "%", "!!x", "---\n", "0", "-1", "1e999", "nan", "true", "null",
                "\\u", "\"5ms\"", "\t", ".",
            ]
            .map(str::to_owned),
        )
        .collect();
    prop::sample::select(words)
}

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(vec![Format::Toml, Format::Json, Format::Yaml])
}

/// Whatever comes out, it is a configuration or names what is wrong.
fn survives(text: &str, format: Format, env: &[(&str, &str)], set: &[&str]) -> Result<(), TestCaseError> {
    if let Err(refused) = load_text(text, format, env, set) {
        prop_assert!(!refused.0.is_empty());
        for fault in refused.0 {
            prop_assert!(
                !fault.problem.is_empty() && !fault.fix.is_empty() && !fault.origin.is_empty(),
                "{fault:?}"
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), format in any_format()) {
        survives(&String::from_utf8_lossy(&bytes), format, &[], &[])?;
    }

    #[test]
    fn any_words_are_read_or_refused(words in prop::collection::vec(word(), 0..60), format in any_format()) {
        survives(&words.concat(), format, &[], &[])?;
        survives(&words.join(" "), format, &[], &[])?;
    }

    #[test]
    fn any_variable_and_option_is_read_or_refused(
        key in prop::collection::vec(word(), 1..4),
        index in any::<u64>(),
        text in ".{0,20}",
    ) {
        let name = format!("MWB__{}", key.join("__"));
        let numbered = format!("MWB__UPLINKS__{index}__{}", key[0]);
        let option = format!("{}={text}", key.join("."));
        survives("", Format::Toml, &[(&name, &text), (&numbered, &text)], &[&option, &text])?;
    }

    #[test]
    fn a_changed_byte_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), format in any_format()) {
        let mut bytes = match format {
            Format::Toml => samples().0,
            Format::Json => JSON.to_owned(),
            Format::Yaml => YAML.to_owned(),
        }.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        survives(&String::from_utf8_lossy(&bytes), format, &[], &[])?;
    }

    /// Any tree of values under the names of our keys.
    #[test]
    fn any_values_are_judged(entries in prop::collection::vec((0..keys::all().count(), 0..12_usize), 0..12)) {
        let values = ["1", "-1", "0.3", "1e300", "true", "null", "\"x\"", "\"1s\"", "[]", "{}", "[[{}]]", "18446744073709551615"];
        let mut root = serde_json::Map::new();
        for (key, value) in entries {
            let path: Vec<&str> = keys::all().nth(key).map(|key| key.path.split('.').collect()).unwrap_or_default();
            let mut value: serde_json::Value = serde_json::from_str(values[value]).expect("JSON");
            for part in path.iter().rev() {
                let name = part.trim_end_matches("[]").to_owned();
                if part.ends_with("[]") { value = serde_json::Value::Array(vec![value.clone(), value]); }
                value = serde_json::Value::Object([(name, value)].into_iter().collect());
            }
            if let serde_json::Value::Object(value) = value { root.extend(value); }
        }
        survives(&serde_json::Value::Object(root).to_string(), Format::Json, &[], &[])?;
    }
}
