//! What was announced and by whom, so that hints go when what they came from goes.

use std::collections::VecDeque;

use mwb_proto::discovery::Tag;

use crate::lan::{HINTS_MAX, HINTS_PER_TAG_MAX, LanHint, LanHints};

/// Service instances that are remembered.
const SIGHTINGS_MAX: usize = 64;

/// How much the announcer's tag says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is that of a node that we know.
    Known,
    /// It is that of nobody we know, but the mesh is ours: perhaps a member we have not heard of.
    Stranger,
}

#[derive(Debug)]
struct Sighting {
    instance: String,
    standing: Standing,
    hints: Vec<LanHint>,
}

/// The service instances that matter to us, the most recently announced last.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    seen: VecDeque<Sighting>,
}

impl Sightings {
    /// `instance` was resolved: it is at `found` and nowhere else.
    pub(super) fn resolved(
        &mut self,
        instance: &str,
        standing: Standing,
        found: Vec<LanHint>,
        hints: &LanHints,
    ) {
        let mut distinct = Vec::new();
        for hint in found {
            if distinct.len() < HINTS_PER_TAG_MAX && !distinct.contains(&hint) {
                distinct.push(hint);
            }
        }
        let before = self.take(instance);
        // Room is made before anything is added: the hints would forget the oldest, whoever it is of.
        while self.seen.len() >= SIGHTINGS_MAX || self.hint_count() + distinct.len() > HINTS_MAX {
            // Whoever invents members pushes out inventions first, and never a member.
            let oldest = match self.seen.iter().position(|one| one.standing == Standing::Stranger) {
                None if standing == Standing::Stranger => return self.forget(before, hints),
                stranger => stranger.unwrap_or(0),
            };
            let pushed_out = self.seen.remove(oldest);
            self.forget(pushed_out, hints);
        }
        if let Some(before) = before {
            let stays = |hint: &LanHint| distinct.contains(hint) || self.contains(hint);
            hints.retain(|hint| !before.hints.contains(hint) || stays(hint));
        }
        for hint in &distinct {
            hints.add(hint.clone());
        }
        self.seen.push_back(Sighting { instance: instance.to_owned(), standing, hints: distinct });
    }

    fn hint_count(&self) -> usize {
        self.seen.iter().map(|one| one.hints.len()).sum()
    }

    /// `instance` has said goodbye or its records have expired.
    pub(super) fn removed(&mut self, instance: &str, hints: &LanHints) {
        let before = self.take(instance);
        self.forget(before, hints);
    }

    /// The tag under which `instance` was seen.
    pub(super) fn tag(&self, instance: &str) -> Option<Tag> {
        self.seen.iter().find(|one| one.instance == instance)?.hints.first().map(|hint| hint.tag)
    }

    /// Whether an instance that was seen is at `hint`.
    pub(super) fn contains(&self, hint: &LanHint) -> bool {
        self.seen.iter().any(|one| one.hints.contains(hint))
    }

    fn take(&mut self, instance: &str) -> Option<Sighting> {
        let at = self.seen.iter().position(|one| one.instance == instance)?;
        self.seen.remove(at)
    }

    /// Withdraws the hints of `gone` that no other instance gives.
    fn forget(&self, gone: Option<Sighting>, hints: &LanHints) {
        if let Some(gone) = gone {
            hints.retain(|hint| !gone.hints.contains(hint) || self.contains(hint));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn hint(tag: u8, host: u8) -> LanHint {
        LanHint {
            tag: [tag; 8],
            address: SocketAddr::from(([192, 168, 50, host], 9100)),
            port: "lan0".into(),
        }
    }

    #[test]
    fn hints_follow_what_is_announced() {
        let (mut sightings, hints) = (Sightings::default(), LanHints::default());
        sightings.resolved("a", Standing::Known, vec![hint(1, 10), hint(1, 11)], &hints);
        assert_eq!(hints.all(), [hint(1, 10), hint(1, 11)]);
        sightings.resolved("a", Standing::Known, vec![hint(1, 12), hint(1, 11)], &hints);
        assert_eq!(hints.all(), [hint(1, 12), hint(1, 11)], "the address has changed");
        assert_eq!(sightings.tag("a"), Some([1; 8]));

        // Another one that claims the same takes nothing away by going.
        sightings.resolved("b", Standing::Stranger, vec![hint(1, 11), hint(2, 20)], &hints);
        sightings.removed("b", &hints);
        assert_eq!(hints.all(), [hint(1, 12), hint(1, 11)]);
        sightings.removed("never seen", &hints);
        sightings.removed("a", &hints);
        assert_eq!((hints.all(), sightings.tag("a")), (vec![], None));
    }

    #[test]
    fn inventions_push_out_inventions() {
        let (mut sightings, hints) = (Sightings::default(), LanHints::default());
        sightings.resolved("member", Standing::Known, vec![hint(255, 10)], &hints);
        for number in 0..=200 {
            let invented = if number % 2 == 0 {
                vec![hint(number, 1); 100]
            } else {
                (0..100).map(|host| hint(number, host)).collect()
            };
            sightings.resolved(&format!("invented-{number}"), Standing::Stranger, invented, &hints);
            assert!(hints.all().contains(&hint(255, 10)), "after {number}");
        }
        assert!(sightings.seen.len() <= SIGHTINGS_MAX && hints.all().len() <= HINTS_MAX);
        assert!(hints.all().contains(&hint(200, 1)));
    }
}
