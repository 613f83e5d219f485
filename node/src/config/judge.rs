//! Whether a value is what its key allows, by the table alone.

use std::time::Duration;

use config::{Value, ValueKind};
use serde_json::{Value as Json, json};

use super::duration;
use super::keys::{Key, Kind};

/// What is wrong with a value.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// Where in a list, from 0.
    pub(super) index: Option<usize>,
    /// What is wrong.
    pub(super) problem: String,
    /// What to write instead.
    pub(super) fix: String,
}

impl Wrong {
    /// The number in a list of what is wrong, as `[3]`, and that value itself; all of `value` where it is no list.
    pub(super) fn place<'v>(&self, value: &'v Value) -> (String, &'v Value) {
        match (&value.kind, self.index) {
            (ValueKind::Array(values), Some(index)) => {
                (format!("[{index}]"), values.get(index).unwrap_or(value))
            }
            _ => (String::new(), value),
        }
    }
}

/// `value` as the key's type, times as text.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn judge(key: &Key, value: &Value) -> Result<Json, Vec<Wrong>> {
    let each = match (&key.kind, &value.kind) {
        (Kind::List(each), _) => Some(each),
        (Kind::ChoiceOr(_, Kind::List(each)), ValueKind::Array(_)) => Some(each),
        _ => None,
    };
    if let Some(each) = each {
        let ValueKind::Array(values) = &value.kind else {
            let fix = format!("write a list: {} = [ … ], {}", key.name(), key.kind.describe());
            let problem = format!("found {}, expected a list", describe(value));
            return Err(vec![Wrong { index: None, problem, fix }]);
        };
        let (mut good, mut wrong) = (Vec::with_capacity(values.len()), Vec::new());
        for (index, value) in values.iter().enumerate() {
            match one(key, each, value) {
                Ok(value) => good.push(value),
                Err((problem, fix)) => wrong.push(Wrong { index: Some(index), problem, fix }),
            }
        }
        return if wrong.is_empty() { Ok(Json::Array(good)) } else { Err(wrong) };
    }
    one(key, &key.kind, value).map_err(|(problem, fix)| vec![Wrong { index: None, problem, fix }])
}

fn one(key: &Key, kind: &Kind, value: &Value) -> Result<Json, (String, String)> {
    let strange = || {
        let found = describe(value);
        (
            format!("found {found}, expected {}", kind.describe()),
            format!("write {}{}", kind.describe(), hint(key)),
        )
    };
    let range = |written: String, what: &str, bounds: String| {
        (format!("{written} is out of range"), format!("write {what} {bounds}{}", hint(key)))
    };
    match kind {
        Kind::Bool => match value.kind {
            ValueKind::Boolean(value) => Ok(json!(value)),
            _ => Err(strange()),
        },
        Kind::Whole(least, most) => {
            let whole = whole(value).ok_or_else(strange)?;
            let bounds =
                if *most == u64::MAX { format!("from {least}") } else { format!("from {least} to {most}") };
            match u64::try_from(whole).ok().filter(|whole| (least..=most).contains(&whole)) {
                Some(whole) => Ok(json!(whole)),
                None => Err(range(whole.to_string(), "a number", bounds)),
            }
        }
        Kind::Number(least, most) => {
            let number = match value.kind {
                ValueKind::Float(number) => number,
                _ => whole(value).ok_or_else(strange)? as f64,
            };
            if (least..=most).contains(&&number) {
                Ok(json!(number))
            } else {
                // Without a point 1 reads as if only whole numbers would do.
                Err(range(number.to_string(), "a number", format!("from {least} to {most:?}")))
            }
        }
        Kind::Span(least, most) => {
            let fix = || span_fix(*least, *most);
            let text = match &value.kind {
                ValueKind::String(text) => text,
                _ if whole(value).is_some() => {
                    return Err((format!("{} has no unit", plain(value)), fix()));
                }
                _ => return Err(strange()),
            };
            match duration::parse(text) {
                Ok(span) if (least..=most).contains(&&span) => Ok(json!(text)),
                Ok(_) => Err((format!("{text:?} is out of range"), fix())),
                Err(problem) => Err((problem, fix())),
            }
        }
        Kind::Choice(names) | Kind::ChoiceOr(names, _) => {
            let ValueKind::String(text) = &value.kind else { return Err(strange()) };
            if names().contains(&text.as_str()) {
                return Ok(json!(text));
            }
            let near = names()
                .into_iter()
                .map(|name| (strsim::damerau_levenshtein(&text.to_lowercase(), name), name))
                .min()
                .filter(|(distance, name)| *distance <= 1.max(name.len() / 3));
            let meant = near.map(|(_, name)| format!("; did you mean {name:?}?")).unwrap_or_default();
            Err((format!("{text:?} is none of them"), format!("write {}{meant}", kind.describe())))
        }
        Kind::Text(_) => match &value.kind {
            ValueKind::String(text) => Ok(json!(text)),
            // A YAML file's unquoted 007.
            _ => Err((strange().0, format!("write {} between quotation marks", kind.describe()))),
        },
        Kind::List(_) => Err(strange()),
        Kind::Anything => Ok(Json::Null),
    }
}

/// The unit and what the table advises.
fn hint(key: &Key) -> String {
    let unit = if key.unit.is_empty() { String::new() } else { format!(" ({})", key.unit) };
    let advice = if key.advice.is_empty() { String::new() } else { format!(". {}", key.advice) };
    unit + &advice
}

fn span_fix(least: Duration, most: Duration) -> String {
    format!("write a time from {least:?} to {most:?}, such as \"250ms\" or \"1s\"")
}

fn whole(value: &Value) -> Option<i128> {
    match value.kind {
        ValueKind::I64(number) => Some(number.into()),
        ValueKind::U64(number) => Some(number.into()),
        ValueKind::I128(number) => Some(number),
        ValueKind::U128(number) => i128::try_from(number).ok(),
        _ => None,
    }
}

fn plain(value: &Value) -> String {
    whole(value).map(|number| number.to_string()).unwrap_or_default()
}

/// A value in words, cut where it is long.
pub(super) fn describe(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "nothing".to_owned(),
        ValueKind::Boolean(value) => value.to_string(),
        ValueKind::Float(number) => format!("the number {number:?}"),
        ValueKind::String(text) if text.chars().count() > 60 => {
            format!("the text {:?}", text.chars().take(60).chain("…".chars()).collect::<String>())
        }
        ValueKind::String(text) => format!("the text {text:?}"),
        ValueKind::Table(_) => "a section".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        _ => format!("the number {}", plain(value)),
    }
}

/// What `text` of a variable or an option is as a value of `key`: numbers and true or false as such, a list cut at its
/// commas, all else as it stands.
pub(super) fn from_text(key: &Key, text: &str, origin: &String) -> Value {
    let one = |kind: &Kind, text: &str| match kind {
        Kind::Bool => text.to_lowercase().parse::<bool>().map_or_else(|_| text.into(), ValueKind::Boolean),
        Kind::Whole(..) | Kind::Number(..) => {
            match (text.parse::<i64>(), text.parse::<u64>(), text.parse::<f64>()) {
                (Ok(number), _, _) => ValueKind::I64(number),
                (_, Ok(number), _) => ValueKind::U64(number),
                (_, _, Ok(number)) => ValueKind::Float(number),
                _ => text.into(),
            }
        }
        _ => text.into(),
    };
    let list = |each: &Kind| {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        ValueKind::Array(parts.map(|part| Value::new(Some(origin), one(each, part))).collect())
    };
    let kind = match &key.kind {
        Kind::List(each) => list(each),
        Kind::ChoiceOr(names, _) if names().contains(&text.trim()) => text.trim().into(),
        Kind::ChoiceOr(_, Kind::List(each)) => list(each),
        kind => one(kind, text.trim()),
    };
    Value::new(Some(origin), kind)
}
