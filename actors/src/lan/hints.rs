//! Addresses at which members of the LAN may be. Whoever sends multicast on the LAN can put one here,
//! so a hint is only dialled; what answers there has to prove who it is.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Hints kept; one more forgets the one that was not seen for longest.
pub const HINTS_MAX: usize = 64;
/// Hints kept of one tag, so that a single talker does not push out all others: two address families
/// on two LAN interfaces, twice.
pub const HINTS_PER_TAG_MAX: usize = 8;

/// One address at which a member may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LanHint {
    /// Whom the announcement claims to be from: the first bytes of a hash of a node id.
    pub tag: [u8; 8],
    /// Where to dial. A link-local IPv6 address has its scope.
    pub address: SocketAddr,
    /// The LAN interface on which it was seen.
    pub port: Arc<str>,
}

/// The hints of all LAN interfaces. Shared by who discovers and who dials; outlives both.
pub struct LanHints {
    /// The most recently seen last.
    hints: Mutex<VecDeque<LanHint>>,
    /// Grows with every change of the set.
    changes: watch::Sender<u64>,
}

impl Default for LanHints {
    fn default() -> Self {
        Self { hints: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl LanHints {
    /// Takes a hint. One that is known already counts as seen now and is no change.
    pub fn add(&self, hint: LanHint) {
        let mut hints = self.hints.lock();
        if let Some(at) = hints.iter().position(|known| *known == hint) {
            hints.remove(at);
            hints.push_back(hint);
            return;
        }
        if hints.iter().filter(|known| known.tag == hint.tag).count() >= HINTS_PER_TAG_MAX
            && let Some(oldest) = hints.iter().position(|known| known.tag == hint.tag)
        {
            hints.remove(oldest);
        }
        if hints.len() >= HINTS_MAX {
            hints.pop_front();
        }
        hints.push_back(hint);
        drop(hints);
        self.changed();
    }

    /// Forgets all hints of `tag`: it has said goodbye, or its announcement has expired.
    pub fn remove(&self, tag: [u8; 8]) {
        self.retain(|hint| hint.tag != tag);
    }

    /// Forgets the hints for which `keep` is false.
    pub fn retain(&self, keep: impl FnMut(&LanHint) -> bool) {
        let mut hints = self.hints.lock();
        let before = hints.len();
        hints.retain(keep);
        let changed = hints.len() != before;
        drop(hints);
        if changed {
            self.changed();
        }
    }

    /// All hints, the one that was not seen for longest first.
    pub fn all(&self) -> Vec<LanHint> {
        self.hints.lock().iter().cloned().collect()
    }

    /// Follows the changes of the set.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }
}

impl fmt::Debug for LanHints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(tag: u8, host: u8) -> LanHint {
        LanHint {
            tag: [tag; 8],
            address: SocketAddr::from(([192, 168, 50, host], 9100)),
            port: "lan0".into(),
        }
    }

    #[test]
    fn a_hint_is_kept_once_and_its_changes_are_followed() {
        let hints = LanHints::default();
        let mut changes = hints.changes();
        hints.add(hint(1, 10));
        assert!(changes.has_changed().expect("open"));
        changes.mark_unchanged();
        hints.add(hint(2, 11));
        hints.add(hint(1, 12));
        changes.mark_unchanged();
        hints.add(hint(1, 10));
        assert!(!changes.has_changed().expect("open"), "known already");
        assert_eq!(hints.all(), [hint(2, 11), hint(1, 12), hint(1, 10)], "the last seen is last");

        hints.remove([1; 8]);
        assert!(changes.has_changed().expect("open"));
        changes.mark_unchanged();
        assert_eq!(hints.all(), [hint(2, 11)]);
        hints.remove([1; 8]);
        assert!(!changes.has_changed().expect("open"), "nothing was removed");
    }

    #[test]
    fn one_talker_cannot_push_out_the_others() {
        let hints = LanHints::default();
        hints.add(hint(1, 10));
        for host in 0..=255 {
            hints.add(hint(2, host));
        }
        assert_eq!(hints.all().len(), 1 + HINTS_PER_TAG_MAX);
        assert!(hints.all().contains(&hint(1, 10)));
        assert!(hints.all().contains(&hint(2, 255)), "the newest of a tag stays");
    }

    #[test]
    fn the_oldest_is_forgotten_when_there_are_too_many() {
        let hints = LanHints::default();
        for tag in 0..=HINTS_MAX as u8 {
            hints.add(hint(tag, 10));
        }
        let all = hints.all();
        assert_eq!(all.len(), HINTS_MAX);
        assert_eq!((all[0].clone(), all[HINTS_MAX - 1].clone()), (hint(1, 10), hint(HINTS_MAX as u8, 10)));
    }
}
