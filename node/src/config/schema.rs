//! The table of keys as a JSON schema (draft 2020-12): editors complete and check with it.

use serde_json::{Map, Value as Json, json};

use super::keys::{self, Given, Key, Kind, Means, SECTIONS};

/// Of all keys, second names among them.
pub(crate) fn schema() -> Json {
    let mut schema = section("");
    if let Some(object) = schema.as_object_mut() {
        object.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        object.insert("title".to_owned(), json!("mwb-node configuration"));
        // Another name for the same blocks; both at once are refused.
        object.insert("not".to_owned(), json!({ "required": ["uplinks", "wans"] }));
    }
    schema
}

fn section(pattern: &str) -> Json {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for name in keys::names(pattern) {
        let path = super::walk::join(pattern, name);
        let blocks = format!("{path}[]");
        let about =
            |path: &str| SECTIONS.iter().find(|section| section.path == path).map(|section| section.about);
        let property = if path == "wans" {
            json!({ "$ref": "#/properties/uplinks" })
        } else if let Some(key) = keys::find(&path) {
            if matches!(key.default, Given::Required) {
                required.push(json!(name));
            }
            property(key)
        } else if let Some(about) = about(&blocks) {
            json!({ "type": "array", "items": section(&blocks), "description": about })
        } else {
            let mut inner = section(&path);
            if let (Some(about), Some(object)) = (about(&path), inner.as_object_mut()) {
                object.insert("description".to_owned(), json!(about));
            }
            inner
        };
        properties.insert(name.to_owned(), property);
    }
    let mut schema = json!({ "type": "object", "additionalProperties": false, "properties": properties });
    if let (false, Some(object)) = (required.is_empty(), schema.as_object_mut()) {
        object.insert("required".to_owned(), Json::Array(required));
    }
    schema
}

fn property(key: &Key) -> Json {
    let mut schema = kind(&key.kind);
    let about = match key.means {
        Means::Itself => key.about.to_owned(),
        Means::Same(ours) => format!("Another name for {ours}."),
        Means::Turned(how) => how.to_owned(),
        Means::Nothing(why) => format!("Has no effect: {why}."),
    };
    let unit = if key.unit.is_empty() { String::new() } else { format!(" In {}.", key.unit) };
    let advice = if key.advice.is_empty() { String::new() } else { format!(" {}", key.advice) };
    let unset = match key.default {
        Given::Nothing(unset) if key.means == Means::Itself => format!(" Default: {unset}."),
        _ => String::new(),
    };
    if let Some(object) = schema.as_object_mut() {
        object.insert("description".to_owned(), json!(format!("{about}{unit}{unset}{advice}")));
        if let Some(default) = key.default.value() {
            object.insert("default".to_owned(), default);
        }
        if matches!(key.means, Means::Nothing(_) | Means::Same(_)) {
            object.insert("deprecated".to_owned(), json!(true));
        }
    }
    schema
}

fn kind(kind: &Kind) -> Json {
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Whole(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Kind::Number(least, most) => json!({ "type": "number", "minimum": least, "maximum": most }),
        Kind::Span(..) => {
            json!({ "type": "string", "pattern": super::duration::PATTERN, "examples": [kind.describe()] })
        }
        Kind::Choice(names) => json!({ "type": "string", "enum": names() }),
        Kind::Text(_) => json!({ "type": "string" }),
        Kind::List(each) => json!({ "type": "array", "items": self::kind(each) }),
        Kind::ChoiceOr(names, list) => {
            json!({ "anyOf": [{ "type": "string", "enum": names() }, self::kind(list)] })
        }
        Kind::Anything => json!({}),
    }
}
