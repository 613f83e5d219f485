//! What arrived over each path: the acknowledgement from which the sender finds loss and delay.

use super::{PathId, Reader, Refusal, be24};
use crate::time::Stamp;

/// The body of an ack frame: send stamp 3, number 4, receiver clock 3, number of paths 1, the paths.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Report {
    /// The reporter's clock when this copy left (a report travels on two paths).
    pub sent: Stamp,
    /// Counts reports; the copies of one report share it.
    pub number: u32,
    /// The receiver's clock when the report was built.
    pub time: Stamp,
    /// At most [`PATHS_MAX`](Self::PATHS_MAX).
    pub paths: Vec<PathReport>,
}

/// One path's part of a [`Report`]: 23 bytes and 4 per missing range, in this order
/// (the number of ranges, one byte, follows `path`).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PathReport {
    /// The path.
    pub path: PathId,
    /// Low 32 bits of the highest path sequence that arrived.
    pub highest: u32,
    /// How long ago the highest arrived when the report was built, in 16 µs units, saturating.
    pub highest_age: u16,
    /// UDP payload bytes received since the path began, wrapping.
    pub received_bytes: u32,
    /// Datagrams that arrived marked CE since the path began, wrapping.
    pub ce: u16,
    /// Least raw one-way delay (arrival - sent, modulo 2^24) since the last report.
    pub owd_min: Stamp,
    /// Mean delay of the same packets above `owd_min`, in 16 µs units.
    pub owd_mean_excess: u16,
    /// Delay of the highest above `owd_min`, in 16 µs units.
    pub owd_highest_excess: u16,
    /// How far down the report speaks: everything from `highest - floor` on that is not in `missing`
    /// has arrived; nothing is said about what lies below.
    pub floor: u16,
    /// What did not arrive, newest first, disjoint, at most [`MISSING_MAX`](Self::MISSING_MAX).
    pub missing: Vec<MissingRange>,
}

/// Path sequences that did not arrive: `len` of them, the first being `highest - below_highest`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MissingRange {
    /// Distance of the first (oldest) one from the highest. Between `len` and the path's floor.
    pub below_highest: u16,
    /// How many; at least one.
    pub len: u16,
}

impl Report {
    /// The most paths in one report.
    pub const PATHS_MAX: usize = 32;

    /// Appends the body to `out`. At most [`PATHS_MAX`](Self::PATHS_MAX) paths are sent.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        debug_assert!(self.paths.len() <= Self::PATHS_MAX, "a report is bounded");
        let paths = &self.paths[..self.paths.len().min(Self::PATHS_MAX)];
        out.extend_from_slice(&be24(self.sent.raw()));
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&be24(self.time.raw()));
        out.push(paths.len() as u8);
        for path in paths {
            path.encode_into(out);
        }
    }

    /// Reads an opened body.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], [`Refusal::TooMany`], [`Refusal::BadRange`], [`Refusal::BadLength`].
    pub fn decode(plain: &[u8]) -> Result<Self, Refusal> {
        let mut r = Reader(plain);
        let sent = r.stamp()?;
        let number = r.u32()?;
        let time = r.stamp()?;
        let count = usize::from(r.u8()?);
        if count > Self::PATHS_MAX {
            return Err(Refusal::TooMany);
        }
        let mut paths = Vec::with_capacity(count);
        for _ in 0..count {
            paths.push(PathReport::decode(&mut r)?);
        }
        r.end()?;
        Ok(Self { sent, number, time, paths })
    }
}

impl PathReport {
    /// The most missing ranges of one path.
    pub const MISSING_MAX: usize = 24;
    /// Bytes of one path without missing ranges.
    pub const LEN_MIN: usize = 23;
    /// Bytes of one path with all missing ranges.
    pub const LEN_MAX: usize = Self::LEN_MIN + 4 * Self::MISSING_MAX;

    /// Appends this path. Of more than [`MISSING_MAX`](Self::MISSING_MAX) ranges the newest are sent
    /// and the floor is raised to the oldest of those: silence about the rest, not a false receipt.
    fn encode_into(&self, out: &mut Vec<u8>) {
        debug_assert!(ranges_hold(&self.missing, self.floor), "{self:?}");
        let (missing, floor) = match self.missing.get(..Self::MISSING_MAX) {
            Some(newest) if self.missing.len() > newest.len() => {
                (newest, newest.last().map_or(self.floor, |oldest| oldest.below_highest))
            }
            _ => (&self.missing[..], self.floor),
        };
        out.push(self.path.0);
        out.push(missing.len() as u8);
        out.extend_from_slice(&self.highest.to_be_bytes());
        out.extend_from_slice(&self.highest_age.to_be_bytes());
        out.extend_from_slice(&self.received_bytes.to_be_bytes());
        out.extend_from_slice(&self.ce.to_be_bytes());
        out.extend_from_slice(&be24(self.owd_min.raw()));
        out.extend_from_slice(&self.owd_mean_excess.to_be_bytes());
        out.extend_from_slice(&self.owd_highest_excess.to_be_bytes());
        out.extend_from_slice(&floor.to_be_bytes());
        for range in missing {
            out.extend_from_slice(&range.below_highest.to_be_bytes());
            out.extend_from_slice(&range.len.to_be_bytes());
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, Refusal> {
        let path = PathId(r.u8()?);
        let count = usize::from(r.u8()?);
        if count > Self::MISSING_MAX {
            return Err(Refusal::TooMany);
        }
        let mut report = Self {
            path,
            highest: r.u32()?,
            highest_age: r.u16()?,
            received_bytes: r.u32()?,
            ce: r.u16()?,
            owd_min: r.stamp()?,
            owd_mean_excess: r.u16()?,
            owd_highest_excess: r.u16()?,
            floor: r.u16()?,
            missing: Vec::with_capacity(count),
        };
        for _ in 0..count {
            report.missing.push(MissingRange { below_highest: r.u16()?, len: r.u16()? });
        }
        if ranges_hold(&report.missing, report.floor) { Ok(report) } else { Err(Refusal::BadRange) }
    }
}

/// Whether the ranges are not empty, below the highest, not below the floor, disjoint and newest
/// first. So a report names at most 65,535 sequences of a path, whatever it holds.
fn ranges_hold(missing: &[MissingRange], floor: u16) -> bool {
    let mut newer = 0;
    missing.iter().all(|range| {
        let disjoint =
            range.len > 0 && range.below_highest.checked_sub(range.len).is_some_and(|end| end >= newer);
        newer = range.below_highest;
        disjoint && range.below_highest <= floor
    })
}
