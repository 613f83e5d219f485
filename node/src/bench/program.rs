//! What the program itself weighs, and how long it takes until it does anything: part of `--profile idle`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde::Serialize;

/// How often it is started.
const STARTS: usize = 21;

/// Aims: milliseconds, MB.
const START_MS_MAX: f64 = 150.0;
const SIZE_MB_MAX: f64 = 30.0;

/// What was found.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Program {
    /// From its start until `--version` has answered and it has ended, the median of 21, milliseconds.
    start_ms: f64,
    /// What is left of its file when it is stripped, MB.
    stripped_mb: f64,
    /// No more than this.
    target_start_ms: f64,
    /// No more than this.
    target_stripped_mb: f64,
}

impl Program {
    /// This program.
    ///
    /// # Errors
    /// When its file cannot be read or started.
    pub(super) fn measure() -> anyhow::Result<Self> {
        let file = std::env::current_exe().context("finding this program's file")?;
        let mut starts = Vec::with_capacity(STARTS);
        for _ in 0..STARTS {
            let begin = Instant::now();
            let mut version = Command::new(&file);
            let status = version.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
            ensure!(status.context("starting this program")?.success(), "it does not tell its version");
            starts.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        starts.sort_by(f64::total_cmp);
        Ok(Self {
            start_ms: starts[STARTS / 2],
            stripped_mb: stripped(&file)? as f64 / 1e6,
            target_start_ms: START_MS_MAX,
            target_stripped_mb: SIZE_MB_MAX,
        })
    }

    /// For people.
    pub(super) fn line(&self) -> String {
        format!(
            "  the program: {:.1} ms until it answers (target < {:.0}), {:.1} MB stripped (target < {:.0})\n",
            self.start_ms, self.target_start_ms, self.stripped_mb, self.target_stripped_mb
        )
    }
}

/// The bytes of an ELF file that its segments need: what strip(1) leaves, but for a table of a kilobyte or two.
///
/// # Errors
/// When it cannot be read, or is not such a file of 64 bits in this machine's order (elf(5)).
fn stripped(file: &Path) -> anyhow::Result<u64> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    segments_end(&bytes).with_context(|| format!("{} is no ELF file of this machine", file.display()))
}

fn segments_end(bytes: &[u8]) -> Option<u64> {
    const PROGRAM_HEADERS: usize = 32;
    const HEADER_SIZE: usize = 54;
    const HEADERS: usize = 56;
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let short = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?));
    if bytes.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let (first, size) = (usize::try_from(long(PROGRAM_HEADERS)?).ok()?, usize::from(short(HEADER_SIZE)?));
    let mut end = None;
    for number in 0..usize::from(short(HEADERS)?) {
        let header = first.checked_add(number * size)?;
        // Offset and length in the file.
        end = end.max(Some(long(header + 8)?.checked_add(long(header + 32)?)?));
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_without_symbols_is_less_than_the_file() {
        let file = std::env::current_exe().unwrap();
        let (whole, stripped) = (std::fs::metadata(&file).unwrap().len(), stripped(&file).unwrap());
        assert!((100_000..whole).contains(&stripped), "{stripped} of {whole}");
        let bytes = std::fs::read(&file).unwrap();
        assert_eq!(segments_end(&bytes[..70]), None, "a file that ends in its headers");
        assert_eq!(segments_end(b"#!/bin/sh"), None);
    }
}
