//! YAML with lines, from the parser's events, without recursion. Anchors and tags are refused: a configuration needs
//! none, and a few lines of them can stand for gigabytes.

use config::{Map, Value, ValueKind};
use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{DEPTH_MAX, Malformed, located};

/// A collection that is not complete.
enum Open {
    /// With the key whose value comes next.
    Map {
        line: usize,
        values: Map<String, Value>,
        key: Option<String>,
    },
    List {
        line: usize,
        values: Vec<Value>,
    },
}

pub(super) fn parse(text: &str, file: &str) -> Result<Map<String, Value>, Malformed> {
    let mut open: Vec<Open> = Vec::new();
    let (mut root, mut documents) = (None, 0);
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| Malformed::at(error.marker().line().max(1), error.info()))?;
        let line = span.start.line().max(1);
        let plain = |anchor: usize, tag: bool| match (anchor, tag) {
            (0, false) => Ok(()),
            (0, true) => Err(Malformed::at(line, "tags (!name) are not read here")),
            (_, _) => Err(Malformed::at(line, "anchors (&name) are not read here: write the value again")),
        };
        let complete = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(Malformed::at(line, "a second document begins here"));
                }
                continue;
            }
            Event::Alias(_) => plain(1, false).map(|()| Value::default())?,
            Event::SequenceStart(anchor, tag) => {
                plain(anchor, tag.is_some())?;
                open.push(Open::List { line, values: Vec::new() });
                deep(&open, line)?;
                continue;
            }
            Event::MappingStart(anchor, tag) => {
                plain(anchor, tag.is_some())?;
                open.push(Open::Map { line, values: Map::new(), key: None });
                deep(&open, line)?;
                continue;
            }
            Event::Scalar(text, style, anchor, tag) => {
                plain(anchor, tag.is_some())?;
                if let Some(Open::Map { key: key @ None, .. }) = open.last_mut() {
                    *key = Some(text.into_owned());
                    continue;
                }
                let kind = if matches!(style, ScalarStyle::Plain) {
                    resolve(&text)
                } else {
                    ValueKind::String(text.into_owned())
                };
                located(file, line, kind)
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List { line, values }) => located(file, line, ValueKind::Array(values)),
                Some(Open::Map { line, values, .. }) => located(file, line, ValueKind::Table(values)),
                None => return Err(Malformed::at(line, "ends what did not begin")),
            },
        };
        match open.last_mut() {
            None => root = Some(complete),
            Some(Open::List { values, .. }) => values.push(complete),
            Some(Open::Map { values, key, .. }) => {
                let Some(key) = key.take() else {
                    return Err(Malformed::at(line, "a key must be a word"));
                };
                if values.insert(key.clone(), complete).is_some() {
                    return Err(Malformed::at(line, format!("{key:?} is written twice")));
                }
            }
        }
    }
    match root.map(|root| root.kind) {
        Some(ValueKind::Table(table)) => Ok(table),
        // An empty file, or one of comments.
        None | Some(ValueKind::Nil) => Ok(Map::new()),
        Some(_) => Err(Malformed::at(1, "it must be made of keys and values")),
    }
}

fn deep(open: &[Open], line: usize) -> Result<(), Malformed> {
    if open.len() > DEPTH_MAX { Err(Malformed::at(line, "is nested too deeply")) } else { Ok(()) }
}

/// The core schema (YAML 1.2.2, section 10.3.2).
fn resolve(text: &str) -> ValueKind {
    let radix = |digits: &str, radix| i64::from_str_radix(digits, radix).map(ValueKind::I64).ok();
    let number = |text: &str| {
        let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
        if !numeric || !text.bytes().any(|byte| byte.is_ascii_digit()) {
            return None;
        }
        match (text.parse(), text.parse()) {
            (Ok(number), _) => Some(ValueKind::I64(number)),
            (_, Ok(number)) => Some(ValueKind::Float(number)),
            _ => None,
        }
    };
    let other = match text {
        "" | "~" | "null" | "Null" | "NULL" => Some(ValueKind::Nil),
        "true" | "True" | "TRUE" => Some(ValueKind::Boolean(true)),
        "false" | "False" | "FALSE" => Some(ValueKind::Boolean(false)),
        ".inf" | ".Inf" | ".INF" | "+.inf" => Some(ValueKind::Float(f64::INFINITY)),
        "-.inf" | "-.Inf" | "-.INF" => Some(ValueKind::Float(f64::NEG_INFINITY)),
        ".nan" | ".NaN" | ".NAN" => Some(ValueKind::Float(f64::NAN)),
        _ => match (text.strip_prefix("0x"), text.strip_prefix("0o")) {
            (Some(digits), _) => radix(digits, 16),
            (_, Some(digits)) => radix(digits, 8),
            _ => number(text),
        },
    };
    other.unwrap_or_else(|| ValueKind::String(text.to_owned()))
}
