//! From a file's text to values that know the line they came from.

mod json;
mod yaml;

use std::io::Read;
use std::path::Path;

use config::{Map, Value, ValueKind};
use toml::de::{DeTable, DeValue};

use super::Fault;

/// Far more than any configuration has: a wrong path is told instead of read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Sections within sections; ours end at three.
const DEPTH_MAX: usize = 32;

/// How a configuration is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// <https://toml.io>
    Toml,
    /// RFC 8259.
    Json,
    /// YAML 1.2, core schema, without anchors and tags.
    Yaml,
}

impl Format {
    /// By the ending of the file's name; TOML when there is none that is known.
    pub(crate) fn of(path: &Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("json") => Self::Json,
            Some("yaml" | "yml") => Self::Yaml,
            _ => Self::Toml,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Toml => "TOML",
            Self::Json => "JSON",
            Self::Yaml => "YAML",
        }
    }
}

/// What is wrong with a text as such.
struct Malformed {
    /// From 1.
    line: Option<usize>,
    problem: String,
}

impl Malformed {
    fn at(line: usize, problem: impl Into<String>) -> Self {
        Self { line: Some(line), problem: problem.into() }
    }
}

/// The text of the file at `path`.
///
/// # Errors
/// When it cannot be read, is too long or is no UTF-8.
pub(super) fn text(path: &Path) -> Result<String, Fault> {
    let fault = |problem: String, fix: String| Fault {
        key: String::new(),
        origin: path.display().to_string(),
        problem,
        fix,
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            let fix =
                format!("write one, starting from the sample: mwb-node config default > {}", path.display());
            fault(format!("cannot be read: {error}"), fix)
        })?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(fault(
            format!("is longer than {FILE_BYTES_MAX} bytes"),
            "name the configuration, not another file".to_owned(),
        ));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        fault(format!("is no text: byte {at} is not UTF-8"), "save it as UTF-8".to_owned())
    })?;
    // Windows' editors begin a file so.
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}

/// The values in `text`, each with `origin` and its line as its origin.
///
/// # Errors
/// The line that is no `format`.
pub(super) fn parse(text: &str, format: Format, origin: &str) -> Result<Map<String, Value>, Fault> {
    let read = match format {
        Format::Toml => toml(text, origin),
        Format::Json => json::parse(text, origin),
        Format::Yaml => yaml::parse(text, origin),
    };
    read.map_err(|Malformed { line, problem }| Fault {
        key: String::new(),
        origin: line.map_or_else(|| origin.to_owned(), |line| format!("{origin}:{line}")),
        problem: format!("is not {}: {problem}", format.name()),
        fix: format!(
            "correct the line that is named; the file's ending says what it is read as: .toml, .json, or .yaml, and {} \
             here",
            format.name()
        ),
    })
}

/// Where values came from, for their origin.
struct Lines<'a> {
    file: &'a str,
    /// Offsets at which lines begin.
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &str, file: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file, starts }
    }

    /// Of the byte at `offset`, from 1.
    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset).max(1)
    }

    fn value(&self, offset: usize, kind: impl Into<ValueKind>) -> Value {
        located(self.file, self.line(offset), kind)
    }
}

fn located(file: &str, line: usize, kind: impl Into<ValueKind>) -> Value {
    Value::new(Some(&format!("{file}:{line}")), kind)
}

fn toml(text: &str, file: &str) -> Result<Map<String, Value>, Malformed> {
    let lines = Lines::new(text, file);
    let table = DeTable::parse(text).map_err(|error| Malformed {
        line: error.span().map(|span| lines.line(span.start)),
        problem: error.message().to_owned(),
    })?;
    toml_table(table.into_inner(), &lines, 0)
}

fn toml_table(table: DeTable<'_>, lines: &Lines<'_>, depth: usize) -> Result<Map<String, Value>, Malformed> {
    let mut values = Map::new();
    for (key, value) in table {
        values.insert(key.into_inner().into_owned(), toml_value(value, lines, depth + 1)?);
    }
    Ok(values)
}

fn toml_value(
    value: toml::Spanned<DeValue<'_>>,
    lines: &Lines<'_>,
    depth: usize,
) -> Result<Value, Malformed> {
    let at = value.span().start;
    let bad = |problem: String| Malformed::at(lines.line(at), problem);
    if depth > DEPTH_MAX {
        return Err(bad("is nested too deeply".to_owned()));
    }
    let kind = match value.into_inner() {
        DeValue::String(text) => ValueKind::String(text.into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(ValueKind::I64)
            .map_err(|_| bad(format!("{} is too large for a number", number.as_str())))?,
        DeValue::Float(number) => number
            .as_str()
            .parse()
            .map(ValueKind::Float)
            .map_err(|_| bad(format!("{} is no number", number.as_str())))?,
        DeValue::Boolean(value) => ValueKind::Boolean(value),
        DeValue::Datetime(time) => ValueKind::String(time.to_string()),
        DeValue::Array(array) => {
            let values = array.into_iter().map(|value| toml_value(value, lines, depth + 1));
            ValueKind::Array(values.collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => ValueKind::Table(toml_table(table, lines, depth)?),
    };
    Ok(lines.value(at, kind))
}
