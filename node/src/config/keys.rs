//! Every key that may be written, in one table: what it is, its default, unit and bounds, what it means, and when to
//! change it.
//!
//! The checker, the JSON schema, the documentation and `config show` all read this table. A new key is one line in
//! [`table`] and one field in [`super::file`]; a test says so when one of the two is missing.

mod second;
mod table;

use std::time::Duration;

use serde_json::Value as Json;

pub(crate) use table::SECTIONS;

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    /// Dotted, with `[]` after what may be written several times: `uplinks[].weight`.
    pub(crate) path: &'static str,
    /// What may stand there.
    pub(crate) kind: Kind,
    /// What holds when nothing is written.
    pub(crate) default: Given,
    /// Of a number; empty for all else.
    pub(crate) unit: &'static str,
    /// What it means.
    pub(crate) about: &'static str,
    /// When to write something else than the default; may be empty.
    pub(crate) advice: &'static str,
    /// What becomes of it.
    pub(crate) means: Means,
}

/// What may stand as a value.
#[derive(Debug)]
pub(crate) enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number within these bounds.
    Whole(u64, u64),
    /// A number within these bounds.
    Number(f64, f64),
    /// A time with its unit within these bounds: `"250ms"`.
    Span(Duration, Duration),
    /// One of these words.
    Choice(fn() -> Vec<&'static str>),
    /// Text; what is wrong with it is found by [`super::check`]. The first string says what it is.
    Text(&'static str),
    /// Any number of such values.
    List(&'static Kind),
    /// One of these words, or a list.
    ChoiceOr(fn() -> Vec<&'static str>, &'static Kind),
    /// Whatever stands there is not looked at.
    Anything,
}

impl Kind {
    /// What may stand there, for people: "a whole number from 1 to 31".
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Whole(least, u64::MAX) => format!("a whole number from {least}"),
            Self::Whole(least, most) => format!("a whole number from {least} to {most}"),
            Self::Number(least, most) => format!("a number from {least} to {most}"),
            Self::Span(least, most) => format!("a time from {least:?} to {most:?}"),
            Self::Choice(names) => format!("one of {}", names().join(", ")),
            Self::Text(what) => (*what).to_owned(),
            Self::List(each) => format!("a list, each {}", each.describe()),
            Self::ChoiceOr(names, list) => format!("{} or {}", names().join(", "), list.describe()),
            Self::Anything => "anything".to_owned(),
        }
    }
}

/// What holds when nothing is written.
#[derive(Debug)]
pub(crate) enum Given {
    /// This value.
    Value(fn() -> Json),
    /// Nothing; the text says what that comes to.
    Nothing(&'static str),
    /// It must be written.
    Required,
}

impl Given {
    /// The value that holds, if there is one.
    pub(crate) fn value(&self) -> Option<Json> {
        match self {
            Self::Value(value) => Some(value()),
            Self::Nothing(_) | Self::Required => None,
        }
    }
}

/// What becomes of a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// It is one of ours.
    Itself,
    /// It is another name for this key, with the same values.
    Same(&'static str),
    /// [`super::translate`] turns it into others, as the text says.
    Turned(&'static str),
    /// It is accepted and has no effect; the text says why, or what to write instead.
    Nothing(&'static str),
}

/// A section, or the blocks of one.
#[derive(Debug)]
pub(crate) struct Section {
    /// As in [`Key::path`]: `tun`, `uplinks[]`.
    pub(crate) path: &'static str,
    /// Whether leaving it out means something else than leaving out all its keys.
    pub(crate) optional: bool,
    /// What it is for.
    pub(crate) about: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: Given, about: &'static str) -> Key {
    Key { path, kind, default, unit: "", about, advice: "", means: Means::Itself }
}

impl Key {
    const fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    const fn advice(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    const fn means(self, means: Means) -> Self {
        Self { means, ..self }
    }

    /// The section it stands in; empty at the top.
    pub(crate) fn section(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(section, _)| section)
    }

    /// Its name within the section.
    pub(crate) fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }
}

/// All keys: ours in the order of the documentation, then the second names.
pub(crate) fn all() -> impl Iterator<Item = &'static Key> {
    table::KEYS.iter().chain(second::KEYS)
}

/// Our own keys.
pub(crate) fn own() -> impl Iterator<Item = &'static Key> {
    table::KEYS.iter()
}

/// The keys that mean others, or nothing.
pub(crate) fn second() -> impl Iterator<Item = &'static Key> {
    second::KEYS.iter()
}

/// The key at `path`, which may carry numbers (`uplinks[3].weight`).
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    let pattern = pattern(path);
    all().find(|key| key.path == pattern)
}

/// `uplinks[3].weight` as `uplinks[].weight`.
pub(crate) fn pattern(path: &str) -> String {
    let mut inside = false;
    let outside = |c: &char| {
        inside = *c == '[' || (inside && *c != ']');
        *c == '[' || !inside
    };
    path.chars().filter(outside).collect()
}

/// The names that may stand in `section` (a pattern; empty for the top), sections among them.
pub(crate) fn names(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for path in all().map(|key| key.path).chain(SECTIONS.iter().map(|section| section.path)) {
        let rest = if section.is_empty() {
            Some(path)
        } else {
            path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.'))
        };
        let name = rest
            .and_then(|rest| rest.split('.').next())
            .map(|name| name.trim_end_matches("[]"))
            .unwrap_or("");
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What somebody who wrote the unknown `name` in `section` may have meant, as a dotted path.
pub(crate) fn meant(section: &str, name: &str) -> Option<String> {
    let lower = name.to_lowercase().replace('-', "_");
    let near = names(section)
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(&lower, known), known))
        .min()
        .filter(|(distance, known)| *distance <= 1.max(known.len() / 3));
    if let Some((_, known)) = near {
        return Some(if section.is_empty() { known.to_owned() } else { format!("{section}.{known}") });
    }
    // The right key in the wrong section.
    let mut elsewhere = own().filter(|key| key.name() == lower);
    match (elsewhere.next(), elsewhere.next()) {
        (Some(key), None) => Some(key.path.to_owned()),
        _ => None,
    }
}
