//! The payload of a test flow: a stream that the seed decides and the receiver checks.

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

/// Length after which the stream repeats: a prime, so that no packet or block size divides it and
/// displaced data never fits.
const PERIOD: usize = 1_048_573;

/// A place in the stream.
#[derive(Debug)]
pub(super) struct Payload {
    block: Vec<u8>,
    at: usize,
}

impl Payload {
    pub(super) fn new(seed: u64) -> Self {
        let mut block = vec![0; PERIOD];
        SmallRng::seed_from_u64(seed).fill_bytes(&mut block);
        Self { block, at: 0 }
    }

    /// The next bytes, at most `max` and at least one.
    pub(super) fn next(&self, max: usize) -> &[u8] {
        let end = PERIOD.min(self.at + max);
        &self.block[self.at..end]
    }

    /// `count` bytes of what [`Self::next`] gave are sent.
    pub(super) fn advance(&mut self, count: usize) {
        self.at = (self.at + count) % PERIOD;
    }

    /// Whether these bytes are the next of the stream; goes past them.
    pub(super) fn check(&mut self, mut bytes: &[u8]) -> bool {
        let mut same = true;
        while !bytes.is_empty() {
            let expected = self.next(bytes.len());
            let (part, rest) = bytes.split_at(expected.len());
            same &= part == expected;
            self.advance(part.len());
            bytes = rest;
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_is_checked_over_its_seams() {
        let (mut sender, mut receiver) = (Payload::new(1), Payload::new(1));
        let mut stream = Vec::new();
        while stream.len() < 3 * PERIOD {
            let part = sender.next(100_000).to_vec();
            sender.advance(part.len());
            stream.extend(part);
        }
        assert!(stream.chunks(77_777).all(|part| receiver.check(part)));
        assert!(!Payload::new(2).check(&stream[..100]));
        let mut damaged = Payload::new(1);
        stream[1_500_000] ^= 1;
        assert!(!damaged.check(&stream));
        let mut displaced = Payload::new(1);
        assert!(!displaced.check(&stream[1448..]));
    }
}
