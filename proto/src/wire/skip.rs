//! Lane sequences that the sender gives up.

use super::{LANE_SEQ_MASK, Reader, Refusal, be24};
use crate::time::Stamp;

/// Consecutive packets of one lane that will not come any more. 6 bytes: lane 2, first sequence 3,
/// count 1.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SkipRun {
    /// The lane.
    pub lane: u16,
    /// The first sequence given up, 24 bits.
    pub lane_seq: u32,
    /// How many, counting on from `lane_seq` modulo 2^24; at least one.
    pub len: u8,
}

/// The body of a skip frame: send stamp 3, incarnation 1, number of runs 1, the runs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Skip {
    /// The sender's clock when it left.
    pub sent: Stamp,
    /// Which life of the sending router counts the lanes.
    pub incarnation: u8,
    /// What is given up, at most [`RUNS_MAX`](Self::RUNS_MAX) runs.
    pub runs: Vec<SkipRun>,
}

impl Skip {
    /// The most runs of one frame.
    pub const RUNS_MAX: usize = 64;
    /// Length of the longest body.
    pub const LEN_MAX: usize = 5 + 6 * Self::RUNS_MAX;

    /// Appends the body to `out`.
    ///
    /// There must be no more than [`RUNS_MAX`](Self::RUNS_MAX) runs and no empty one; what exceeds
    /// the bound is not sent.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        debug_assert!(self.runs.len() <= Self::RUNS_MAX, "a skip frame is bounded");
        debug_assert!(self.runs.iter().all(|run| run.len > 0), "an empty run says nothing");
        let runs = &self.runs[..self.runs.len().min(Self::RUNS_MAX)];
        out.extend_from_slice(&be24(self.sent.raw()));
        out.push(self.incarnation);
        out.push(runs.len() as u8);
        for run in runs {
            out.extend_from_slice(&run.lane.to_be_bytes());
            out.extend_from_slice(&be24(run.lane_seq & LANE_SEQ_MASK));
            out.push(run.len);
        }
    }

    /// Reads an opened body.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], [`Refusal::TooMany`], [`Refusal::BadRange`] for an empty run,
    /// [`Refusal::BadLength`].
    pub fn decode(plain: &[u8]) -> Result<Self, Refusal> {
        let mut r = Reader(plain);
        let sent = r.stamp()?;
        let incarnation = r.u8()?;
        let count = usize::from(r.u8()?);
        if count > Self::RUNS_MAX {
            return Err(Refusal::TooMany);
        }
        let mut runs = Vec::with_capacity(count);
        for _ in 0..count {
            let run = SkipRun { lane: r.u16()?, lane_seq: r.u24()?, len: r.u8()? };
            if run.len == 0 {
                return Err(Refusal::BadRange);
            }
            runs.push(run);
        }
        r.end()?;
        Ok(Self { sent, incarnation, runs })
    }
}
