//! Which of the latest 24-bit sequences have been handed on (a sliding window, as RFC 6479).

use super::lane::signed;

/// Sequences remembered. What is lost is sent again for 600 ms and then travels for up to some
/// hundred milliseconds, while its lane goes on: this is one second of full packets at 780 Mbit/s.
/// 8 KiB, taken as the sequences come, so that a lane of few packets stays small.
pub(super) const WINDOW: u32 = 1 << 16;

/// What is known of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sight {
    /// Not seen before.
    New,
    /// Seen before: a copy.
    Known,
    /// Older than the window: new or a copy, nobody can tell.
    TooOld,
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    /// One bit per sequence of the window, by `seq % WINDOW`; words not there yet are zero.
    bits: Vec<u64>,
    highest: Option<u32>,
}

impl Seen {
    pub(super) fn clear(&mut self) {
        self.bits.fill(0);
        self.highest = None;
    }

    /// Marks `seq`, unless it is too old; says what was known of it before.
    pub(super) fn insert(&mut self, seq: u32) -> Sight {
        let Some(highest) = self.highest else {
            self.highest = Some(seq);
            self.set(seq);
            return Sight::New;
        };
        let ahead = signed(seq, highest);
        if ahead > 0 {
            if ahead as u32 >= WINDOW {
                self.bits.fill(0);
            } else {
                for step in 1..=ahead as u32 {
                    self.unset(highest.wrapping_add(step));
                }
            }
            self.highest = Some(seq);
            self.set(seq);
            return Sight::New;
        }
        if ahead.unsigned_abs() >= WINDOW {
            return Sight::TooOld;
        }
        if self.is_set(seq) {
            return Sight::Known;
        }
        self.set(seq);
        Sight::New
    }

    fn slot(seq: u32) -> (usize, u64) {
        let i = seq % WINDOW;
        ((i / 64) as usize, 1 << (i % 64))
    }

    fn is_set(&self, seq: u32) -> bool {
        let (word, bit) = Self::slot(seq);
        self.bits.get(word).is_some_and(|w| w & bit != 0)
    }

    fn set(&mut self, seq: u32) {
        let (word, bit) = Self::slot(seq);
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        self.bits[word] |= bit;
    }

    fn unset(&mut self, seq: u32) {
        let (word, bit) = Self::slot(seq);
        if let Some(w) = self.bits.get_mut(word) {
            *w &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sequence_passes_once_also_across_the_wrap() {
        let mut seen = Seen::default();
        for seq in [0xff_fffe_u32, 0, 0xff_ffff, 1] {
            assert_eq!(seen.insert(seq), Sight::New, "{seq:#x}");
            assert_eq!(seen.insert(seq), Sight::Known, "{seq:#x}");
        }
        assert_eq!(seen.insert(WINDOW - 1), Sight::New);
        assert_eq!(seen.insert(0xff_ffff), Sight::TooOld);
        assert_eq!(seen.insert(2), Sight::New);
        assert_eq!(seen.insert(10 * WINDOW), Sight::New);
        assert_eq!(seen.insert(WINDOW - 1), Sight::TooOld);
        // Its bit was that of sequences long gone.
        assert_eq!(seen.insert(9 * WINDOW + 2), Sight::New);
        assert_eq!(seen.insert(10 * WINDOW), Sight::Known);
    }

    #[test]
    fn memory_comes_with_the_sequences_and_ends_with_the_window() {
        let mut seen = Seen::default();
        (0..1000).for_each(|seq| _ = seen.insert(seq));
        assert!(seen.bits.len() * 64 < 2000);
        (0..3 * WINDOW).for_each(|seq| _ = seen.insert(seq));
        assert_eq!(seen.bits.len() * 64, WINDOW as usize);
    }
}
