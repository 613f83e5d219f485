//! The configuration that holds, with the origin of each value.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::keys::{self, Given};
use super::{Entry, LinkType};

/// Longest value beside which its origin still stands on the line.
const COLUMN: usize = 44;

/// TOML that means the same as what `entries` came from, the origin behind each value.
pub(crate) fn text(entries: &[Entry]) -> String {
    let mut text = String::new();
    let mut open = String::new();
    for Entry { key, value, origin } in entries {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        if section != open {
            let gap = if open.is_empty() { "" } else { "\n" };
            open = section.to_owned();
            // Writing to a String cannot fail.
            let _ = match section.split_once('[') {
                Some((blocks, _)) => writeln!(text, "{gap}[[{blocks}]]"),
                None => writeln!(text, "{gap}[{section}]"),
            };
        }
        let unset = keys::find(key).and_then(|key| match key.default {
            Given::Nothing(unset) => Some(unset),
            Given::Value(_) | Given::Required => None,
        });
        let line = match value {
            Some(value) => format!("{name} = {value}"),
            None => format!("# {name} is not set"),
        };
        let why = match (value, unset) {
            (None, Some(unset)) => format!("{origin}: {unset}"),
            (Some(_), _) | (None, None) => origin.clone(),
        };
        let _ = writeln!(text, "{line:<COLUMN$}  # {why}");
        if let Some(typical) = typical(name, value.as_ref()) {
            let _ = writeln!(text, "# {typical}");
        }
    }
    text
}

/// What such a line is like, for the reader only.
fn typical(name: &str, value: Option<&Json>) -> Option<String> {
    let named = value.and_then(Json::as_str).filter(|_| name == "type")?;
    let typical = LinkType::ALL.into_iter().find(|kind| kind.name() == named)?.typical()?;
    let ((fast, slow), (least, most)) = (typical.latency_ms, typical.mbit);
    Some(format!(
        "such lines have {fast} to {slow} ms and {least} to {most} Mbit/s as a rule; what this one has is measured"
    ))
}

/// One object for each key: `key`, `value` (null when nothing is set), `origin` (`default`, `file`, `environment`,
/// `flag`), and `place`: the line, the variable or the option.
pub(crate) fn json(entries: &[Entry]) -> Json {
    let entry = |entry: &Entry| {
        let place = (entry.source() != entry.origin).then_some(&entry.origin);
        json!({ "key": entry.key, "value": entry.value, "origin": entry.source(), "place": place })
    };
    Json::Array(entries.iter().map(entry).collect())
}
