//! Checks merged values against the table of keys, all of them, and completes them by its defaults.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};
use serde_json::{Map as Object, Value as Json};

use super::keys::{self, Given, Key, Means, SECTIONS};
use super::settings::{OPTION, VARIABLE};
use super::{Fault, judge};

/// The origin of what nobody wrote.
pub(super) const DEFAULT: &str = "default";

/// One key of the configuration that holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// With numbers: `uplinks[0].weight`.
    pub(crate) key: String,
    /// Its value; none when the table has no default for it.
    pub(crate) value: Option<Json>,
    /// Where it came from: `default`, `FILE:LINE`, `environment variable NAME`, `--set KEY`.
    pub(crate) origin: String,
}

impl Entry {
    /// `default`, `file`, `environment` or `flag`.
    pub(crate) fn source(&self) -> &'static str {
        match self.origin.as_str() {
            DEFAULT => DEFAULT,
            origin if origin.starts_with(VARIABLE) => "environment",
            origin if origin.starts_with(OPTION) => "flag",
            _ => "file",
        }
    }
}

/// Where things stand, for those who judge them later.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    /// The file's name.
    pub(super) file: String,
    /// Sections, blocks and values by their path.
    pub(super) origins: BTreeMap<String, String>,
    /// Paths that the file has under another name.
    pub(super) written: BTreeMap<String, String>,
}

impl Places {
    /// Notes where `values` and all in them stand, under `path`.
    pub(super) fn note(&mut self, path: &str, values: &Map<String, Value>) {
        for (name, value) in values {
            self.note_value(join(path, name), value);
        }
    }

    fn note_value(&mut self, path: String, value: &Value) {
        match &value.kind {
            ValueKind::Table(table) => self.note(&path, table),
            ValueKind::Array(array) => {
                for (index, value) in array.iter().enumerate() {
                    self.note_value(format!("{path}[{index}]"), value);
                }
            }
            _ => {}
        }
        if let Some(origin) = value.origin() {
            self.origins.insert(path, origin.to_owned());
        }
    }

    /// Of `path`, or of what it stands in; the file at last.
    pub(super) fn origin(&self, path: &str) -> &str {
        let mut path = path;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return origin;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return &self.file,
            }
        }
    }

    /// `path` as the file calls it.
    pub(super) fn written(&self, path: &str) -> String {
        let mut end = path.len();
        loop {
            if let Some(written) = self.written.get(&path[..end]) {
                return format!("{written}{}", &path[end..]);
            }
            match path[..end].rfind(['.', '[']) {
                Some(shorter) => end = shorter,
                None => return path.to_owned(),
            }
        }
    }
}

/// What [`walk`] finds.
pub(super) struct Walked {
    /// Every section and every value that holds, ready for [`super::file::File`].
    pub(super) tree: Json,
    /// The same as a list, in the order of the table.
    pub(super) entries: Vec<Entry>,
    /// Paths of what was refused; the tree has the default instead.
    pub(super) refused: Vec<String>,
}

/// Checks `values`, adds to `faults`, and fills in defaults.
pub(super) fn walk(values: &Map<String, Value>, places: &Places, faults: &mut Vec<Fault>) -> Walked {
    let mut walker = Walker { places, faults, entries: Vec::new(), refused: Vec::new() };
    let tree = walker.section("", "", values);
    Walked { tree: Json::Object(tree), entries: walker.entries, refused: walker.refused }
}

struct Walker<'a> {
    places: &'a Places,
    faults: &'a mut Vec<Fault>,
    entries: Vec<Entry>,
    refused: Vec<String>,
}

impl Walker<'_> {
    fn refuse(&mut self, path: &str, origin: Option<&str>, problem: String, fix: String) {
        let origin = origin.unwrap_or_else(|| self.places.origin(path)).to_owned();
        let foreign = origin.starts_with(VARIABLE) || origin.starts_with(OPTION);
        let key = if foreign { path.to_owned() } else { self.places.written(path) };
        self.faults.push(Fault { key, origin, problem, fix });
        self.refused.push(path.to_owned());
    }

    /// The section of pattern `pattern` that stands at `path`.
    fn section(&mut self, pattern: &str, path: &str, values: &Map<String, Value>) -> Object<String, Json> {
        let mut object = Object::new();
        for key in keys::own().filter(|key| key.section() == pattern) {
            if let Some(value) = self.value(key, &join(path, key.name()), values.get(key.name())) {
                object.insert(key.name().to_owned(), value);
            }
        }
        let parts: Vec<&str> = keys::names(pattern);
        for name in &parts {
            let (pattern, path) = (join(pattern, name), join(path, name));
            let blocks = format!("{pattern}[]");
            if SECTIONS.iter().any(|section| section.path == blocks) {
                let blocks = self.blocks(&blocks, &path, values.get(*name));
                object.insert((*name).to_owned(), Json::Array(blocks));
            } else if keys::find(&pattern).is_none() {
                let optional = SECTIONS.iter().any(|section| section.path == pattern && section.optional);
                let inner = self.table(&path, values.get(*name));
                if !(optional && inner.is_none()) {
                    let inner = self.section(&pattern, &path, inner.unwrap_or(&Map::new()));
                    // Sections of second names alone are none of ours.
                    if SECTIONS.iter().any(|section| section.path == pattern) {
                        object.insert((*name).to_owned(), Json::Object(inner));
                    }
                }
            }
        }
        let mut unknown: Vec<_> = values.iter().filter(|(name, _)| !parts.contains(&name.as_str())).collect();
        unknown.sort_by_key(|(name, _)| *name);
        for (name, value) in unknown {
            self.unknown(pattern, path, name, value);
        }
        object
    }

    fn unknown(&mut self, pattern: &str, path: &str, name: &str, value: &Value) {
        let meant = keys::meant(pattern, name);
        let problem = match &meant {
            Some(meant) => format!("unknown key; did you mean {meant}?"),
            None => "unknown key".to_owned(),
        };
        let fix = match &meant {
            Some(_) => "correct its spelling or remove it".to_owned(),
            None if pattern.is_empty() => format!("remove it; there are {}", keys::names(pattern).join(", ")),
            None => format!("remove it; {pattern} has {}", keys::names(pattern).join(", ")),
        };
        self.refuse(&join(path, name), value.origin(), problem, fix);
    }

    /// The table at `path`, if one is written.
    fn table<'v>(&mut self, path: &str, value: Option<&'v Value>) -> Option<&'v Map<String, Value>> {
        match value.map(|value| (&value.kind, value)) {
            None | Some((ValueKind::Nil, _)) => None,
            Some((ValueKind::Table(table), _)) => Some(table),
            Some((_, value)) => {
                let problem = format!("found {}, expected a section", judge::describe(value));
                self.refuse(path, value.origin(), problem, format!("write [{path}] and its keys below"));
                None
            }
        }
    }

    fn blocks(&mut self, pattern: &str, path: &str, value: Option<&Value>) -> Vec<Json> {
        let Some(value) = value.filter(|value| !matches!(value.kind, ValueKind::Nil)) else {
            return Vec::new();
        };
        let ValueKind::Array(blocks) = &value.kind else {
            let problem = format!("found {}, expected a list of blocks", judge::describe(value));
            let fix = format!("write [[{path}]] in TOML, [ … ] in JSON, items that begin with - in YAML");
            self.refuse(path, value.origin(), problem, fix);
            return Vec::new();
        };
        let mut objects = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let table = self.table(&path, Some(block));
            if table.is_none() && matches!(block.kind, ValueKind::Nil) {
                let fix = "number the blocks from 0 without a gap".to_owned();
                self.refuse(&path, None, "is not written".to_owned(), fix);
            }
            let empty = Map::new();
            // Kept in its place, so that the others keep theirs.
            objects.push(Json::Object(self.section(pattern, &path, table.unwrap_or(&empty))));
        }
        objects
    }

    fn value(&mut self, key: &Key, path: &str, value: Option<&Value>) -> Option<Json> {
        debug_assert!(key.means == Means::Itself, "second names are translated before");
        let written = value.filter(|value| !matches!(value.kind, ValueKind::Nil));
        let (value, origin) = match written.map(|value| (judge::judge(key, value), value)) {
            Some((Ok(json), value)) => (Some(json), value.origin().unwrap_or(&self.places.file).to_owned()),
            Some((Err(wrongs), value)) => {
                for wrong in wrongs {
                    let (index, at) = wrong.place(value);
                    self.refuse(&format!("{path}{index}"), at.origin(), wrong.problem, wrong.fix);
                }
                self.refused.push(path.to_owned());
                (key.default.value(), DEFAULT.to_owned())
            }
            None => {
                let block = path.rsplit_once('.').map_or("", |(block, _)| block);
                if matches!(key.default, Given::Required)
                    && !self.refused.iter().any(|refused| refused == block)
                {
                    let fix = format!("write {}: {}", key.name(), lower(key.about));
                    self.refuse(path, None, "is missing".to_owned(), fix);
                }
                (key.default.value(), DEFAULT.to_owned())
            }
        };
        self.entries.push(Entry { key: path.to_owned(), value: value.clone(), origin });
        // What is required and wrong has no default to go on with.
        value.or_else(|| matches!(key.default, Given::Required).then(|| Json::String(String::new())))
    }
}

fn lower(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
