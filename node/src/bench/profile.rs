//! The table of profiles: which links are emulated, and what is measured over them.

use std::fmt;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use mwb_sim::lab::{Lab, LabError, LabOptions};
use mwb_sim::wan::LinkSpec;
use serde::{Deserialize, Serialize};

use super::{idle, udp_loss};
pub(super) use link::Link;

mod link;

const TABLE: &str = include_str!("profiles.toml");
/// An edge has at most as many uplinks.
const LINKS_MAX: usize = 31;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    profile: Vec<Profile>,
}

/// A set of links and what is measured over them.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    /// What the command line calls it.
    pub(super) name: String,
    /// One line for people.
    #[serde(default)]
    pub(super) about: String,
    /// What is measured.
    #[serde(default)]
    pub(super) kind: Kind,
    /// Also measure the same tunnel over this link alone.
    #[serde(default)]
    pub(super) reference: Option<String>,
    /// At least one.
    pub(super) links: Vec<Link>,
}

/// What is measured over the links of a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// One host with all links: each link alone, then one flow over all.
    #[default]
    Bond,
    /// A LAN with one host for each link: they lend each other theirs.
    Lan,
    /// The same links behind one host, and spread over the hosts of a LAN.
    Relayed,
    /// Each link is cut once under a running flow.
    Cut,
    /// The last link returns to a running flow.
    Return,
    /// Flows of neighbours on the first two links.
    Neighbours,
    /// An edge behind each of two links, of which the second is flooded.
    Flood,
    /// An edge behind each link, all at one exit.
    Edges,
    /// Plain interfaces without an emulator: what the nodes cost, against rivals.
    Cpu,
}

impl Kind {
    /// With fewer there is nothing to measure.
    fn links_min(self) -> usize {
        match self {
            Self::Bond | Self::Cpu => 1,
            Self::Lan
            | Self::Relayed
            | Self::Flood
            | Self::Edges
            | Self::Cut
            | Self::Return
            | Self::Neighbours => 2,
        }
    }
}

impl Profile {
    /// Its namespaces and links.
    ///
    /// # Errors
    /// When the system refuses something.
    pub(super) fn lab(&self) -> Result<Lab, LabError> {
        let links = || self.links.iter().map(Link::spec);
        match self.kind {
            Kind::Lan | Kind::Relayed | Kind::Flood | Kind::Edges => {
                Lab::lan(&links().map(|link| vec![link]).collect::<Vec<_>>())
            }
            Kind::Cpu => Lab::edge_exit_with(
                &links().collect::<Vec<LinkSpec>>(),
                &LabOptions { plain: true, ..LabOptions::default() },
            ),
            Kind::Bond | Kind::Cut | Kind::Return | Kind::Neighbours => {
                Lab::edge_exit(&links().collect::<Vec<LinkSpec>>())
            }
        }
    }

    /// Reads the traces that links name, relative to `folder`, and refuses what cannot be emulated.
    fn prepare(&mut self, folder: &Path) -> anyhow::Result<()> {
        let (count, min) = (self.links.len(), self.kind.links_min());
        ensure!((min..=LINKS_MAX).contains(&count), "it needs {min} to {LINKS_MAX} links, not {count}");
        for index in 0..count {
            let (before, rest) = self.links.split_at_mut(index);
            let link = &mut rest[0];
            ensure!(
                before.iter().all(|other| other.name != link.name),
                "two links are named {:?}",
                link.name
            );
            if self.kind != Kind::Cpu {
                link.prepare(folder, index as u64).with_context(|| format!("link {:?}", link.name))?;
            }
        }
        if let Some(reference) = &self.reference {
            let known = self.links.iter().any(|link| link.name == *reference);
            ensure!(known, "its reference {reference:?} is none of its links");
        }
        Ok(())
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<17} {}", self.name, self.about)
    }
}

/// The profile called `name`, from the user's file or the built-in table.
///
/// # Errors
/// When there is none (the message lists all), the file is not readable, or the profile cannot be emulated.
pub(super) fn find(name: &str, file: Option<&Path>) -> anyhow::Result<Profile> {
    let own = match file {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            parse(&text).with_context(|| format!("the profiles in {}", file.display()))?
        }
        None => Vec::new(),
    };
    let folder = file.and_then(Path::parent).unwrap_or(Path::new(""));
    let built_in = built_in()?;
    let found = own.iter().chain(&built_in).find(|profile| profile.name == name);
    let Some(mut profile) = found.cloned() else {
        bail!("there is no profile {name:?}; choose one of{}", list(own.iter().chain(&built_in)));
    };
    profile.prepare(folder).with_context(|| format!("profile {name:?}"))?;
    Ok(profile)
}

/// The help of `--profile`: all built-in ones.
pub(super) fn help() -> String {
    let built_in = built_in().unwrap_or_default();
    format!("What to measure, over which emulated links{}\n", list(built_in.iter()))
}

/// One line each; those without links of their own are the last.
fn list<'a>(profiles: impl Iterator<Item = &'a Profile>) -> String {
    let mut text = String::new();
    for profile in profiles {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {profile}");
    }
    for (name, about) in [(idle::NAME, idle::ABOUT), (udp_loss::NAME, udp_loss::ABOUT)] {
        let _ = write!(text, "\n  {name:<17} {about}");
    }
    text
}

fn built_in() -> anyhow::Result<Vec<Profile>> {
    parse(TABLE).context("the built-in table of profiles")
}

fn parse(text: &str) -> anyhow::Result<Vec<Profile>> {
    let source = config::File::from_str(text, config::FileFormat::Toml);
    let table = config::Config::builder().add_source(source).build()?.try_deserialize::<Table>()?;
    Ok(table.profile)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mwb_sim::wan::Trace;

    use super::*;

    fn find_built_in(name: &str) -> Profile {
        find(name, None).unwrap()
    }

    #[test]
    fn every_built_in_profile_is_found_and_listed() {
        for profile in built_in().unwrap() {
            let found = find_built_in(&profile.name);
            let limited = found.links.iter().all(|link| link.spec().down.mean_rate() > Some(0));
            assert!(limited || profile.kind == Kind::Cpu, "{}", profile.name);
            assert!(help().contains(&profile.name) && !profile.about.is_empty());
        }
        let error = find("nothing", None).unwrap_err().to_string();
        assert!(error.contains("two-path") && error.contains(idle::NAME), "{error}");
    }

    #[test]
    fn round_trips_are_split_between_the_directions() {
        let link = &find_built_in("two-path").links[1];
        let spec = link.spec();
        assert_eq!(spec.up.delay, Duration::from_millis(20));
        assert_eq!(spec.down.rate, Some(20_000_000));
        assert!(find_built_in("lossy").links[1].is_lossy() && !link.is_lossy());
    }

    /// A run of 15 s must meet what a satellite is known for.
    #[test]
    fn the_satellite_goes_dark_both_ways_within_the_first_seconds() {
        let spec = find_built_in("traces").links[0].spec();
        for way in [spec.down, spec.up] {
            let trace = way.trace.unwrap();
            let gaps = trace.millis().windows(2).filter(|pair| pair[1] - pair[0] >= 60);
            let first = gaps.map(|pair| pair[0]).next().unwrap();
            assert!((4000..12_000).contains(&first), "{first}");
        }
    }

    #[test]
    fn a_file_brings_own_profiles_and_recorded_traces() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.toml");
        let trace = Trace::lte(8.0, Duration::from_secs(2), 1);
        std::fs::write(folder.path().join("drive.down"), trace.to_text()).unwrap();
        let write =
            |links: &str| std::fs::write(&file, format!("[[profile]]\nname = \"mine\"\nlinks = [{links}]"));
        let mine = || find("mine", Some(&file));

        write(r#"{ name = "a", rtt_ms = 50, trace_down = "drive.down", mbit_up = 2 }"#).unwrap();
        let link = mine().unwrap().links.remove(0);
        assert!((link.mbit - 8.0).abs() < 0.1, "{}", link.mbit);
        assert_eq!((link.spec().down.trace, link.spec().up.rate), (Some(trace), Some(2_000_000)));
        assert_eq!(find("big", Some(&file)).unwrap().name, "big");

        for (links, why) in [
            ("", "links"),
            (r#"{ name = "a", rtt_ms = 5 }"#, "mbit"),
            (r#"{ name = "a", rtt_ms = 5, mbit = -1 }"#, "mbit"),
            (r#"{ name = "a", rtt_ms = 5, mbit = 5, loss_percent = 101 }"#, "loss"),
            (r#"{ name = "a", rtt_ms = 5, trace_down = "none" }"#, "none"),
            (r#"{ name = "a", rtt_ms = 5, mbit = 1 }, { name = "a", rtt_ms = 5, mbit = 1 }"#, "two links"),
            (r#"{ name = "a", rtt_ms = 5, mbit = 1, speed = 2 }"#, "speed"),
        ] {
            write(links).unwrap();
            let error = format!("{:#}", mine().unwrap_err());
            assert!(error.contains(why), "{links}: {error}");
        }
        std::fs::write(&file, "[[profile]]\nname = \"mine\"\nreference = \"b\"\nlinks = []").unwrap();
        assert!(mine().is_err());
        assert!(find("mine", Some(&folder.path().join("missing"))).is_err());
    }
}
