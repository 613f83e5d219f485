//! Which of the latest 24-bit sequences have been handed on (a sliding window, as RFC 6479).

use super::lane::signed;

#[derive(Debug)]
pub(super) struct Seen {
    bits: Vec<u64>,
    window: u32,
    highest: Option<u32>,
}

impl Seen {
    /// Remembers the latest `window` sequences; a power of two, at least 64.
    pub(super) fn new(window: usize) -> Self {
        assert!(window.is_power_of_two() && window >= 64, "a window is a power of two");
        Self { bits: vec![0; window / 64], window: window as u32, highest: None }
    }

    pub(super) fn clear(&mut self) {
        self.bits.fill(0);
        self.highest = None;
    }

    /// Marks `seq`; false when it was marked before or is too old to tell.
    pub(super) fn insert(&mut self, seq: u32) -> bool {
        let Some(highest) = self.highest else {
            self.highest = Some(seq);
            self.set(seq);
            return true;
        };
        let ahead = signed(seq, highest);
        if ahead > 0 {
            if ahead as u32 >= self.window {
                self.bits.fill(0);
            } else {
                for step in 1..=ahead as u32 {
                    self.unset(highest.wrapping_add(step));
                }
            }
            self.highest = Some(seq);
            self.set(seq);
            return true;
        }
        if ahead.unsigned_abs() >= self.window || self.is_set(seq) {
            return false;
        }
        self.set(seq);
        true
    }

    fn slot(&self, seq: u32) -> (usize, u64) {
        let i = seq & (self.window - 1);
        ((i / 64) as usize, 1 << (i % 64))
    }

    fn is_set(&self, seq: u32) -> bool {
        let (word, bit) = self.slot(seq);
        self.bits[word] & bit != 0
    }

    fn set(&mut self, seq: u32) {
        let (word, bit) = self.slot(seq);
        self.bits[word] |= bit;
    }

    fn unset(&mut self, seq: u32) {
        let (word, bit) = self.slot(seq);
        self.bits[word] &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sequence_passes_once_also_across_the_wrap() {
        let mut seen = Seen::new(64);
        for seq in [0xff_fffe_u32, 0, 0xff_ffff, 1] {
            assert!(seen.insert(seq), "{seq:#x}");
            assert!(!seen.insert(seq), "{seq:#x}");
        }
        assert!(seen.insert(63));
        assert!(!seen.insert(0xff_ffff), "older than the window");
        assert!(seen.insert(2));
        assert!(seen.insert(10_000));
        assert!(!seen.insert(63));
    }
}
