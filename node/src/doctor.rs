//! `mwb-node doctor`: what this host has of what a node needs, found out by looking and by trying, without changing
//! anything. Each [`Finding`] is a line, with what to do where something is to be done.
//!
//! Input: the configuration and membership as `run` would take them, what a running node says of itself, and the
//! kernel. Where a user may not look, that is said; it is no fault of the host.

mod firewall;
mod kernel;
mod network;
mod own;

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::config::NodeConfig;
use crate::status_text::{is_offline, list};

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As a node needs it.
    Ok,
    /// It works; something is less than it could be, or could not be looked at.
    Note,
    /// The node, or a part of it, does not work so.
    Fault,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How to take it.
    pub(crate) verdict: Verdict,
    /// What was looked at, one word or two.
    pub(crate) subject: String,
    /// What was found, one sentence.
    pub(crate) says: String,
    /// What to do about it: a command, or a sentence where there is none.
    #[serde(rename = "do")]
    pub(crate) todo: Option<String>,
}

/// All findings, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report(Vec<Finding>);

impl Report {
    /// All is well.
    pub(crate) fn ok(&mut self, subject: impl Into<String>, says: impl Into<String>) {
        self.add(Verdict::Ok, subject, says, None);
    }

    /// Worth knowing.
    pub(crate) fn note(
        &mut self,
        subject: impl Into<String>,
        says: impl Into<String>,
        todo: impl Into<String>,
    ) {
        self.add(Verdict::Note, subject, says, Some(todo.into()));
    }

    /// Something does not work.
    pub(crate) fn fault(
        &mut self,
        subject: impl Into<String>,
        says: impl Into<String>,
        todo: impl Into<String>,
    ) {
        self.add(Verdict::Fault, subject, says, Some(todo.into()));
    }

    fn add(
        &mut self,
        verdict: Verdict,
        subject: impl Into<String>,
        says: impl Into<String>,
        todo: Option<String>,
    ) {
        let todo = todo.filter(|todo| !todo.is_empty());
        self.0.push(Finding { verdict, subject: subject.into(), says: says.into(), todo });
    }

    /// How many findings are so.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// For people: a line for each finding, below it what to do.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for Finding { verdict, subject, says, todo } in &self.0 {
            let word = match verdict {
                Verdict::Ok => "ok",
                Verdict::Note => "note",
                Verdict::Fault => "FAULT",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{word:<6} {subject:<16} {says}");
            if let Some(todo) = todo {
                let _ = writeln!(out, "       {:<16} do: {todo}", "");
            }
        }
        let [faults, notes] = [Verdict::Fault, Verdict::Note].map(|verdict| self.count(verdict));
        let plural = |count: usize, word: &str| match count {
            0 => format!("no {word}s"),
            1 => format!("1 {word}"),
            count => format!("{count} {word}s"),
        };
        let _ = writeln!(out, "\n{}, {}", plural(faults, "fault"), plural(notes, "note"));
        out
    }

    /// For programs: `findings` with `verdict`, `subject`, `says`, `do`, and how many are faults and notes.
    pub(crate) fn json(&self) -> Value {
        serde_json::json!({
            "findings": self.0,
            "faults": self.count(Verdict::Fault),
            "notes": self.count(Verdict::Note),
        })
    }
}

/// What the user who asks may do, of what a node must be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Routes, rules, the TUN device, nftables, marks.
    pub(crate) net_admin: bool,
    /// Sockets bound to a device.
    pub(crate) net_raw: bool,
    /// The user is root, as far as the kernel shows.
    pub(crate) root: bool,
}

impl Rights {
    /// Of this process.
    pub(crate) fn own() -> Self {
        use rustix::thread::{CapabilitySet, capabilities};
        let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        Self {
            net_admin: effective.contains(CapabilitySet::NET_ADMIN),
            net_raw: effective.contains(CapabilitySet::NET_RAW),
            root: rustix::process::geteuid().is_root(),
        }
    }
}

/// What is examined.
pub(crate) struct Patient<'a> {
    /// What the node would be; nothing when that could not be found out.
    pub(crate) config: Option<&'a NodeConfig>,
    /// What the running node says of itself.
    pub(crate) running: Option<&'a Value>,
    /// Folder of the running node.
    pub(crate) runtime_dir: &'a Path,
    /// Folder of the key and the membership.
    pub(crate) state_dir: &'a Path,
    /// What we may do.
    pub(crate) rights: Rights,
}

impl Patient<'_> {
    fn is_exit(&self) -> bool {
        self.config.is_some_and(|config| config.exit.is_some())
    }

    /// What has uplinks of its own, or looks for some.
    fn is_edge(&self) -> bool {
        self.config.is_none_or(|config| {
            config.exit.is_none() || !config.uplinks.is_empty() || config.discovery.uplinks
        })
    }

    /// Whether this host's way to the internet is a bond that carries nothing now.
    fn is_offline(&self) -> bool {
        self.running.is_some_and(|state| list(state, "sessions").any(is_offline))
    }

    fn tun(&self) -> &str {
        self.config.map_or("mwb0", |config| &config.tun.name)
    }
}

/// Examines everything but the configuration, which the caller has read.
pub(crate) async fn examine(patient: &Patient<'_>, report: &mut Report) {
    own::node(patient, report).await;
    own::rules(patient, report).await;
    own::clock(report);
    own::folders(patient, report);
    kernel::rights(patient, report);
    kernel::tun(patient, report);
    kernel::nft(patient, report).await;
    kernel::forwarding(patient, report);
    kernel::sockets(patient, report);
    network::uplinks(patient, report).await;
    network::ports(patient, report);
    network::resolvers(patient, report).await;
    firewall::firewall(patient, report).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_and_what_to_do_follows_it() {
        let mut report = Report::default();
        report.ok("tun", "can be opened");
        report.note("buffers", "are small", "sudo sysctl -w net.core.rmem_max=1");
        report.fault("port 9000", "is taken", "");
        let text = report.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ok     tun              can be opened");
        assert_eq!(lines[1], "note   buffers          are small");
        assert_eq!(lines[2], "                        do: sudo sysctl -w net.core.rmem_max=1");
        assert_eq!(lines[3], "FAULT  port 9000        is taken");
        assert_eq!(lines[5], "1 fault, 1 note");
        let json = report.json();
        assert_eq!((&json["faults"], &json["findings"][1]["verdict"]), (&1.into(), &"note".into()));
        assert!(json["findings"][2]["do"].is_null());
    }
}
