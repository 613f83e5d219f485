//! Replay window of one path (RFC 6479) and the rebuilding of 64-bit sequences (RFC 4303 A2).

use crate::wire::Refusal;

const WORD_BITS: u64 = u64::BITS as u64;
/// One word more than the window needs: advancing clears whole words, and the word that holds the
/// window's lower edge must stay (RFC 6479 section 2.2).
const WORDS: u64 = ReplayWindow::WIDTH / WORD_BITS + 1;

/// Which sequences below the highest one have been accepted. About 1 KiB.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// The highest accepted sequence; `None` before the first.
    highest: Option<u64>,
    /// Bit `s % 64` of word `s / 64 % WORDS` stands for sequence `s`.
    seen: [u64; WORDS as usize],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { highest: None, seen: [0; WORDS as usize] }
    }
}

impl ReplayWindow {
    /// How many sequences, the highest included, are told apart; older ones are refused.
    pub const WIDTH: u64 = 8192;

    /// The highest accepted sequence.
    pub const fn highest(&self) -> Option<u64> {
        self.highest
    }

    /// Whether `sequence` may still be accepted. Changes nothing: it is asked before the datagram is
    /// known to be authentic.
    ///
    /// # Errors
    /// [`Refusal::TooOld`], [`Refusal::Replayed`].
    pub fn check(&self, sequence: u64) -> Result<(), Refusal> {
        let Some(highest) = self.highest else { return Ok(()) };
        if sequence > highest {
            return Ok(());
        }
        if highest - sequence >= Self::WIDTH {
            return Err(Refusal::TooOld);
        }
        if self.seen[word(sequence)] & bit(sequence) != 0 {
            return Err(Refusal::Replayed);
        }
        Ok(())
    }

    /// Marks `sequence` as accepted; returns whether it is the new highest. Only for an authentic
    /// datagram that passed [`check`](Self::check).
    pub fn accept(&mut self, sequence: u64) -> bool {
        debug_assert_eq!(self.check(sequence), Ok(()), "accepted once");
        let newest = self.highest.is_none_or(|highest| sequence > highest);
        if newest {
            let first_new = self.highest.map_or(sequence / WORD_BITS, |highest| highest / WORD_BITS + 1);
            let last_new = sequence / WORD_BITS;
            // More new words than there are: each is cleared once.
            for index in first_new.max(last_new.saturating_sub(WORDS - 1))..=last_new {
                self.seen[(index % WORDS) as usize] = 0;
            }
            self.highest = Some(sequence);
        }
        self.seen[word(sequence)] |= bit(sequence);
        newest
    }

    /// The 64-bit sequence whose low half is `low`: the one nearest to the highest accepted, as RFC
    /// 4303 appendix A2 finds it with a window of 2^31. Before the first packet the high half is
    /// taken to be zero.
    ///
    /// # Errors
    /// [`Refusal::TooOld`] when it would lie before the beginning; also past the end of the numbers.
    pub fn rebuild(&self, low: u32) -> Result<u64, Refusal> {
        /// W of the RFC. As wide as it can be, so that a late packet is told from one far ahead.
        const HALF: u32 = 1 << 31;
        let highest = self.highest.unwrap_or(0);
        let (top_high, top_low) = ((highest >> 32) as u32, highest as u32);
        let bottom = top_low.wrapping_sub(HALF - 1);
        let high = if top_low >= HALF - 1 {
            // Case A: the window lies within one high half.
            if low >= bottom { Some(top_high) } else { top_high.checked_add(1) }
        } else if low >= bottom {
            // Case B: its lower part lies in the high half before.
            top_high.checked_sub(1)
        } else {
            Some(top_high)
        };
        // In the first 2^31 packets of a path a number that can only lie before the beginning, where
        // nothing can be, is a jump ahead: the first sequence of a path may be any below 2^32.
        match high {
            Some(high) => Ok(u64::from(high) << 32 | u64::from(low)),
            None if top_high == 0 => Ok(u64::from(low)),
            None => Err(Refusal::TooOld),
        }
    }
}

const fn word(sequence: u64) -> usize {
    (sequence / WORD_BITS % WORDS) as usize
}

const fn bit(sequence: u64) -> u64 {
    1 << (sequence % WORD_BITS)
}
