//! All of a host's network that a program may change, to be compared byte by byte.

use std::collections::BTreeMap;
use std::path::Path;

use super::node::Node;

/// What a host looked like at some time: by question, the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footprint(BTreeMap<String, String>);

/// What `ip` is asked: rules, all routing tables, interfaces with their details, addresses.
const ASKED: [&str; 6] =
    ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "-d link", "addr"];

/// Settings that a node may change, or that the kernel changes along with them.
const SETTINGS: [&str; 3] =
    ["/proc/sys/net/ipv4/conf", "/proc/sys/net/ipv6/conf", "/proc/sys/net/ipv4/ip_forward"];

impl Footprint {
    /// Of the node's host as it is now.
    ///
    /// Left out is only what passes by itself: the lifetimes of addresses and routes (`expires 1799sec`,
    /// `valid_lft`), and `stable_secret`, which the kernel does not show before it is set.
    pub(crate) fn of(node: &Node) -> Self {
        let mut found: BTreeMap<_, _> =
            ASKED.iter().map(|what| (format!("ip {what}"), without_lifetimes(&node.ip(what)))).collect();
        found.insert("nft list ruleset".to_owned(), node.nft());
        let files = node.host().run(|| {
            let mut files = BTreeMap::from([text("/etc/resolv.conf".as_ref())]);
            SETTINGS.iter().for_each(|setting| collect(setting.as_ref(), &mut files));
            files
        });
        found.extend(files);
        Self(found)
    }

    /// The lines that one of them has and the other has not; empty when both are the same.
    pub(crate) fn differences(&self, now: &Self) -> String {
        let mut out = String::new();
        let keys: std::collections::BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        for key in keys {
            let of = |side: &Self| side.0.get(key).cloned().unwrap_or_default();
            let (before, after) = (of(self), of(now));
            if before == after {
                continue;
            }
            out.push_str(&format!("{key}:\n"));
            let lost = before.lines().filter(|line| !after.lines().any(|other| other == *line));
            out.extend(lost.map(|line| format!("  - {line}\n")));
            let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
            out.extend(new.map(|line| format!("  + {line}\n")));
        }
        out
    }

    /// Fails, and says how, unless the node's host is as it was.
    #[track_caller]
    pub(crate) fn check(&self, node: &Node, after: &str) {
        let differences = self.differences(&Self::of(node));
        assert!(differences.is_empty(), "{after}, {} is not as before:\n{differences}", node.host().name());
    }
}

fn without_lifetimes(text: &str) -> String {
    let line = |line: &str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        for word in ["expires", "valid_lft", "preferred_lft"] {
            if let Some(at) = words.iter().position(|found| *found == word) {
                words.drain(at..(at + 2).min(words.len()));
            }
        }
        words.join(" ") + "\n"
    };
    text.lines().map(line).collect()
}

fn collect(path: &Path, files: &mut BTreeMap<String, String>) {
    if path.ends_with("stable_secret") {
        return;
    }
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().for_each(|entry| collect(&entry.path(), files)),
        Err(_) => files.extend([text(path)]),
    }
}

fn text(path: &Path) -> (String, String) {
    // Some may be written only (flush); what cannot be read was not read before either.
    (path.display().to_string(), std::fs::read_to_string(path).unwrap_or_default())
}
