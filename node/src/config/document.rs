//! The table of keys as Markdown: `node/CONFIG.md`.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::LinkType;
use super::keys::{self, Given, Key, Kind, Means, SECTIONS};
use super::settings::variable;

/// What stands above the tables.
const HEAD: &str = "# Configuration keys

Made from the table in the program by `mwb-node config keys > node/CONFIG.md`; a test says so when it is out of date.

A file in TOML, JSON (`.json`) or YAML (`.yaml`, `.yml`); every key may be left out if not said otherwise. Any key can be
set by a variable, `MWB__TUN__MTU=1400`, and by an option, `--set tun.mtu=1400`: options over variables over the file.
Blocks are numbered from 0 there, `MWB__UPLINKS__0__WEIGHT=20` and `--set uplinks[0].weight=20`; lists are separated by
commas. Times have a unit: `us`, `ms`, `s`, `m`, `h` or `d`.

`mwb-node config schema` prints the same as a JSON schema (draft 2020-12), `mwb-node config show FILE` what holds and
where each value came from.
";

const SECOND: &str = "
## Second names

Files written for other bonding programs load as they are: these keys mean others, or are accepted with a warning. They
stand in files only.

| key | allowed | what becomes of it |
|---|---|---|
";

const TYPES: &str = "
## Types of uplinks

What lines of a kind are like as a rule. `mwb-node` measures its uplinks and assumes nothing of this: a type changes no
rate. It is shown to people, told to others on the LAN, and chooses the interface where none is named.

| `type` | round trip | rate | dependable |
|---|---|---|---|
";

/// The whole page.
pub(crate) fn markdown() -> String {
    let mut page = HEAD.to_owned();
    // Writing to a String cannot fail.
    for section in SECTIONS {
        let title = match section.path.strip_suffix("[]") {
            Some(blocks) => format!("[[{blocks}]]"),
            None => format!("[{}]", section.path),
        };
        let _ = writeln!(page, "\n## `{title}`\n\n{}\n", section.about);
        page.push_str("| key | default | allowed | meaning |\n|---|---|---|---|\n");
        for key in keys::own().filter(|key| key.section() == section.path) {
            let advice = if key.advice.is_empty() { String::new() } else { format!(" {}", key.advice) };
            let _ = writeln!(
                page,
                "| `{}` | {} | {} | {} |",
                key.name(),
                default(key),
                allowed(key),
                cell(&format!("{}{advice}", key.about))
            );
        }
    }
    let example = variable("uplinks[].max_bandwidth");
    let _ = writeln!(page, "\nThe variable of `uplinks[].max_bandwidth` of the first block is `{example}`.");
    page.push_str(SECOND);
    for key in keys::second() {
        let becomes = match key.means {
            Means::Same(ours) => format!("`{ours}`"),
            Means::Turned(how) => how.to_owned(),
            Means::Nothing(why) => format!("a warning: {why}"),
            Means::Itself => String::new(),
        };
        let allowed = if matches!(key.kind, Kind::Anything) { "as there".to_owned() } else { allowed(key) };
        let _ = writeln!(page, "| `{}` | {allowed} | {} |", key.path, cell(&becomes));
    }
    page.push_str(TYPES);
    for kind in LinkType::ALL {
        if let Some(typical) = kind.typical() {
            let ((fast, slow), (least, most)) = (typical.latency_ms, typical.mbit);
            let (name, reliability) = (kind.name(), typical.reliability);
            let _ = writeln!(
                page,
                "| `{name}` | {fast} to {slow} ms | {least} to {most} Mbit/s | {reliability} |"
            );
        }
    }
    page
}

fn default(key: &Key) -> String {
    match (&key.default, key.default.value()) {
        (_, Some(Json::String(text))) => format!("`\"{text}\"`"),
        (_, Some(value)) => format!("`{value}`"),
        (Given::Required, _) => "required".to_owned(),
        (Given::Nothing(unset), _) => cell(unset),
        (Given::Value(_), None) => String::new(),
    }
}

fn allowed(key: &Key) -> String {
    let unit = if key.unit.is_empty() { String::new() } else { format!(", {}", key.unit) };
    let kind = match &key.kind {
        Kind::Choice(names) => names().iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" "),
        Kind::ChoiceOr(names, list) => {
            let names: Vec<_> = names().iter().map(|name| format!("`{name}`")).collect();
            format!("{} or {}", names.join(" "), cell(&list.describe()))
        }
        // Its most is what fits a counter: no bound for people.
        Kind::Whole(least, most) if *most >= u64::MAX / 8 => format!("a whole number from {least}"),
        kind => cell(&kind.describe()),
    };
    format!("{kind}{unit}")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
