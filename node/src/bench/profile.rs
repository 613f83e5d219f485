//! The table of emulated links, and what it means to the emulator.

use std::time::Duration;

use anyhow::Context;
use mwb_sim::wan::{DirectionSpec, LinkSpec, QueueLimit};
use serde::{Deserialize, Serialize};

const TABLE: &str = include_str!("profiles.toml");
/// Queue of a link, in milliseconds of its rate, unless the table says another.
const QUEUE_MS: u64 = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    profile: Vec<Profile>,
}

/// A set of links to bond.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Profile {
    /// What the command line calls it.
    pub(super) name: String,
    /// One line for people.
    pub(super) about: String,
    /// One host of a LAN for each link, instead of one host with all of them.
    #[serde(default)]
    pub(super) lan: bool,
    /// At least one.
    pub(super) links: Vec<Link>,
}

/// One emulated link, the same both ways.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    /// Unique in its profile.
    pub(super) name: String,
    /// Rate in Mbit/s of Ethernet frames.
    pub(super) mbit: f64,
    /// Round trip time without any queue.
    pub(super) rtt_ms: u64,
    /// Random loss each way.
    #[serde(default)]
    pub(super) loss_percent: f64,
    /// Queue each way, in milliseconds of the rate.
    #[serde(default = "queue_ms")]
    pub(super) queue_ms: u64,
    /// What the edge's configuration says of it.
    #[serde(default = "weight")]
    pub(super) weight: u32,
}

fn weight() -> u32 {
    10
}

fn queue_ms() -> u64 {
    QUEUE_MS
}

impl Link {
    /// What the emulator is told.
    pub(super) fn spec(&self) -> LinkSpec {
        let mut way = DirectionSpec::mbit(self.mbit).loss(self.loss_percent / 100.0);
        way.delay = Duration::from_micros(self.rtt_ms * 500);
        way.queue = QueueLimit::Time(Duration::from_millis(self.queue_ms));
        LinkSpec::symmetric(self.name.clone(), way)
    }

    /// Whether CUBIC alone cannot fill it: then BBR is the reference.
    pub(super) fn is_lossy(&self) -> bool {
        self.loss_percent > 0.0
    }
}

/// The profile called `name`.
///
/// # Errors
/// When there is none: the message lists them.
pub(super) fn find(name: &str) -> anyhow::Result<Profile> {
    let mut table = table()?;
    let Some(index) = table.profile.iter().position(|profile| profile.name == name) else {
        let known: Vec<String> =
            table.profile.iter().map(|profile| format!("  {:<12}{}", profile.name, profile.about)).collect();
        anyhow::bail!("there is no profile {name:?}; choose one of\n{}", known.join("\n"));
    };
    Ok(table.profile.swap_remove(index))
}

fn table() -> anyhow::Result<Table> {
    let source = config::File::from_str(TABLE, config::FileFormat::Toml);
    let table =
        config::Config::builder().add_source(source).build().and_then(config::Config::try_deserialize);
    table.context("the built-in table of profiles")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_readable_and_every_name_is_found() {
        let table = table().unwrap();
        for profile in &table.profile {
            let found = find(&profile.name).unwrap();
            assert!(!found.links.is_empty());
            let mut names: Vec<_> = found.links.iter().map(|link| &link.name).collect();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), found.links.len(), "{}", profile.name);
        }
        assert!(find("nothing").unwrap_err().to_string().contains("two-path"));
    }

    #[test]
    fn round_trips_are_split_between_the_directions() {
        let link = &find("two-path").unwrap().links[1];
        let spec = link.spec();
        assert_eq!(spec.up.delay, Duration::from_millis(20));
        assert_eq!(spec.down.rate, Some(20_000_000));
        assert!(find("lossy").unwrap().links[1].is_lossy() && !link.is_lossy());
    }
}
