//! Single values from outside the file: `MWB__TUN__MTU=1400`, `--set tun.mtu=1400`.

use config::{ConfigError, Map, Source, Value};

use super::keys::{self, Key, Means};
use super::{Fault, judge};

/// Begins the names of variables that set a key.
pub(crate) const PREFIX: &str = "MWB__";
/// Before the name of a variable in a value's origin.
pub(super) const VARIABLE: &str = "environment variable ";
/// Before the key in the origin of a value from the command line.
pub(super) const OPTION: &str = "--set ";
/// Blocks of one section that can be set from here: more than there are uplinks.
const INDEX_MAX: usize = 63;

/// Values by their dotted key: a source for the `config` crate.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(pub(super) Map<String, Value>);

impl Source for Values {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

/// What the variables that begin with [`PREFIX`] set. Lists are separated by commas, blocks are numbered from 0:
/// `MWB__UPLINKS__0__WEIGHT=20`.
pub(super) fn environment(
    variables: impl IntoIterator<Item = (String, String)>,
    faults: &mut Vec<Fault>,
) -> Values {
    let mut variables: Vec<_> = variables.into_iter().collect();
    variables.sort();
    let mut values = Values::default();
    for (name, text) in variables {
        let Some(rest) = name.get(..PREFIX.len()).filter(|start| start.eq_ignore_ascii_case(PREFIX)) else {
            continue;
        };
        let path = path(name[rest.len()..].to_lowercase().split("__"));
        add(&mut values, &path, &text, &format!("{VARIABLE}{name}"), variable, faults);
    }
    values
}

/// What `--set KEY=VALUE` sets, in their order: the last one of a key holds. `uplinks[0].weight=20` and
/// `uplinks.0.weight=20` are the same.
pub(super) fn options(options: &[String], faults: &mut Vec<Fault>) -> Values {
    let mut values = Values::default();
    for option in options {
        let Some((key, text)) = option.split_once('=') else {
            faults.push(Fault {
                key: String::new(),
                origin: format!("{OPTION}{option}"),
                problem: "has no value".to_owned(),
                fix: "write --set KEY=VALUE, such as --set tun.mtu=1400".to_owned(),
            });
            continue;
        };
        let key = key.trim();
        let path = path(key.split(['.', '[']).map(|part| part.trim_end_matches(']')));
        add(&mut values, &path, text, &format!("{OPTION}{key}"), str::to_owned, faults);
    }
    values
}

/// The dotted path of `parts`, numbers in brackets.
fn path<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let mut path = String::new();
    for part in parts {
        match part.parse::<usize>() {
            Ok(index) => path.push_str(&format!("[{index}]")),
            Err(_) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(part);
            }
        }
    }
    path
}

/// The name of the variable that sets `key`.
pub(crate) fn variable(key: &str) -> String {
    let parts = key.split(['.', '[']).map(|part| part.trim_end_matches(']'));
    // A block's number; 0 where only the pattern is known.
    let parts: Vec<_> = parts.map(|part| if part.is_empty() { "0" } else { part }).collect();
    format!("{PREFIX}{}", parts.join("__")).to_uppercase()
}

fn add(
    values: &mut Values,
    path: &str,
    text: &str,
    origin: &String,
    spelling: impl Fn(&str) -> String,
    faults: &mut Vec<Fault>,
) {
    let mut refuse = |problem: String, fix: String| {
        faults.push(Fault { key: path.to_owned(), origin: origin.clone(), problem, fix });
    };
    let index = |part: &str| part.split(']').next().and_then(|index| index.parse::<usize>().ok());
    if path.split('[').skip(1).filter_map(index).any(|index| index > INDEX_MAX) {
        return refuse("there are not so many blocks".to_owned(), format!("count from 0 to {INDEX_MAX}"));
    }
    match keys::find(path) {
        Some(key @ Key { means: Means::Itself, .. }) => {
            values.0.insert(path.to_owned(), judge::from_text(key, text, origin));
        }
        Some(Key { means: Means::Same(ours), .. }) => {
            refuse("is a name for files".to_owned(), format!("set {}", spelling(ours)));
        }
        Some(Key { means: Means::Turned(how), .. }) => {
            refuse(format!("is for files: {how}"), "set the key that it stands for".to_owned());
        }
        Some(Key { means: Means::Nothing(why), .. }) => {
            refuse(format!("has no effect: {why}"), "remove it".to_owned());
        }
        None => {
            let pattern = keys::pattern(path);
            let (section, name) = pattern.rsplit_once('.').unwrap_or(("", &pattern));
            let meant = keys::meant(section, name)
                .map_or_else(String::new, |known| format!("; did you mean {}?", spelling(&known)));
            let blocks = format!("{pattern}[]");
            let known =
                !pattern.is_empty() && [&pattern, &blocks].iter().any(|path| !keys::names(path).is_empty());
            let problem = if known { "is a section" } else { "unknown key" };
            refuse(
                format!("{problem}{meant}"),
                "name one of the keys that mwb-node config default prints".to_owned(),
            );
        }
    }
}
