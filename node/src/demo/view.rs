//! The live view: a table that is redrawn in place on a terminal, else one line every second.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use crate::output;

/// Columns of a bar of full length.
const BAR: usize = 32;
/// Columns of the picture of the download over time.
pub(super) const HISTORY: usize = 56;
/// A terminal that is narrower or lower would wrap or scroll the table.
const COLUMNS_MIN: u16 = 80;
const ROWS_MIN: u16 = 14;
/// Between two lines where the table cannot be redrawn.
const LINE_EVERY: Duration = Duration::from_secs(1);

const BLOCKS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_HEIGHTS: [char; 8] = ['_', '.', '-', ':', '=', '+', '*', '#'];

/// What is to be seen at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    /// What is going on.
    pub(super) headline: String,
    /// The uplinks.
    pub(super) rows: Vec<Row>,
    /// The downloading host.
    pub(super) host: String,
    /// What the program there gets, Mbit/s.
    pub(super) goodput: f64,
    /// Mbit/s that fill a bar.
    pub(super) full: f64,
    /// The download over the bond so far, Mbit/s at equal distances; at most [`HISTORY`].
    pub(super) history: Vec<f64>,
}

/// One uplink.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) host: String,
    pub(super) rtt_ms: u64,
    /// Goodput without a tunnel, once measured, Mbit/s.
    pub(super) alone: Option<f64>,
    /// IP packets now, Mbit/s.
    pub(super) now: f64,
    pub(super) cut: bool,
}

/// Where the view goes.
pub(super) struct Screen {
    start: Instant,
    way: Way,
}

enum Way {
    /// In place on standard output; the lines drawn so far.
    Table { drawn: usize, unicode: bool },
    /// Lines, to standard error if standard output is for the result alone.
    Lines { last: Option<Instant>, headline: String, aside: bool },
}

impl Screen {
    /// For a person, or beside the answer for a program (`aside`).
    pub(super) fn new(aside: bool) -> Self {
        let way = if !aside && can_redraw() {
            Way::Table { drawn: 0, unicode: is_unicode() }
        } else {
            Way::Lines { last: None, headline: String::new(), aside }
        };
        Self { start: Instant::now(), way }
    }

    /// Shows the present; called often.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub(super) fn show(&mut self, picture: &Picture) -> io::Result<()> {
        let seconds = self.start.elapsed().as_secs();
        match &mut self.way {
            Way::Table { drawn, unicode } => {
                let lines = picture.table(seconds, *unicode);
                let mut text = String::new();
                if *drawn > 0 {
                    text.push_str(&format!("\x1b[{drawn}A"));
                }
                for line in &lines {
                    text.push_str(&format!("\r\x1b[2K{line}\n"));
                }
                *drawn = lines.len();
                output::text(&text)
            }
            Way::Lines { last, headline, aside } => {
                let due = last.is_none_or(|last| last.elapsed() >= LINE_EVERY);
                if !due && *headline == picture.headline {
                    return Ok(());
                }
                *last = Some(Instant::now());
                headline.clone_from(&picture.headline);
                let line = picture.line(seconds);
                if *aside {
                    output::progress(&line);
                    return Ok(());
                }
                output::line(&line)
            }
        }
    }
}

impl Picture {
    fn table(&self, seconds: u64, unicode: bool) -> Vec<String> {
        let mut lines = vec![
            self.title(),
            String::new(),
            format!("  {:<10}{:<8}{:>7}{:>8}{:>8}  Mbit/s", "uplink", "of", "rtt ms", "alone", "now"),
        ];
        for row in &self.rows {
            let alone = row.alone.map_or("-".to_owned(), |alone| format!("{alone:.1}"));
            let bar = if row.cut { "cut".to_owned() } else { bar(row.now / self.full, unicode) };
            lines.push(format!(
                "  {:<10}{:<8}{:>7}{alone:>8}{:>8.1}  {bar}",
                row.name, row.host, row.rtt_ms, row.now
            ));
        }
        let sum: Option<f64> = self.rows.iter().map(|row| row.alone).sum();
        let sum = sum.map_or("-".to_owned(), |sum| format!("{sum:.1}"));
        lines.push(format!(
            "  {:<10}{:<8}{:>7}{sum:>8}{:>8.1}  {}",
            "download",
            self.host,
            "",
            self.goodput,
            bar(self.goodput / self.full, unicode)
        ));
        lines.push(String::new());
        let heights = if unicode { HEIGHTS } else { ASCII_HEIGHTS };
        let height = |value: &f64| heights[((value / self.full * 8.0) as usize).min(7)];
        let history: String = self.history.iter().take(HISTORY).map(height).collect();
        lines.push(format!("  bond over time  {history}"));
        lines.push(format!("  [{seconds:>3} s] {}", self.headline));
        // Some part of the text may grow: a line that wraps would ruin the redrawing.
        lines.iter().map(|line| line.chars().take(usize::from(COLUMNS_MIN) - 1).collect()).collect()
    }

    fn title(&self) -> String {
        let hosts: BTreeSet<&str> = self.rows.iter().map(|row| row.host.as_str()).collect();
        let who = if hosts.len() > 1 {
            format!("{} hosts on one LAN with {} uplinks", hosts.len(), self.rows.len())
        } else {
            format!("one host with {} uplinks", self.rows.len())
        };
        format!("{who}: emulated lines, real nodes, real kernel")
    }

    fn line(&self, seconds: u64) -> String {
        let mut text = format!("[{seconds:>3} s] ");
        if self.goodput >= 0.05 {
            text.push_str(&format!("{:>5.1} Mbit/s (", self.goodput));
            for (index, row) in self.rows.iter().enumerate() {
                let now = if row.cut { "cut".to_owned() } else { format!("{:.1}", row.now) };
                let comma = if index == 0 { "" } else { ", " };
                text.push_str(&format!("{comma}{} {now:>4}", row.name));
            }
            text.push_str(")  ");
        }
        text + &self.headline
    }
}

/// A bar for a share of the whole.
fn bar(share: f64, unicode: bool) -> String {
    let eighths = (share.clamp(0.0, 1.2) * BAR as f64 * 8.0).round() as usize;
    if !unicode {
        return "#".repeat((eighths + 4) / 8);
    }
    let mut bar = "█".repeat(eighths / 8);
    if let Some(rest) = (eighths % 8).checked_sub(1) {
        bar.push(BLOCKS[rest]);
    }
    bar
}

fn can_redraw() -> bool {
    let out = io::stdout();
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    let size = rustix::termios::tcgetwinsize(&out);
    out.is_terminal() && !dumb && size.is_ok_and(|size| size.ws_col >= COLUMNS_MIN && size.ws_row >= ROWS_MIN)
}

/// Whether the locale's character set is UTF-8, by the variable that decides.
fn is_unicode() -> bool {
    let decides = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(std::env::var_os).find(|v| !v.is_empty());
    decides.is_some_and(|value| {
        let value = value.to_string_lossy().to_ascii_lowercase();
        value.contains("utf-8") || value.contains("utf8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let row = |name: &str, rtt_ms, alone, now, cut| Row {
            name: name.to_owned(),
            host: "host1".to_owned(),
            rtt_ms,
            alone,
            now,
            cut,
        };
        Picture {
            headline: "a headline ".repeat(20),
            rows: vec![row("fibre", 10, Some(48.0), 50.0, false), row("lte", 60, Some(19.0), 0.0, true)],
            host: "host1".to_owned(),
            goodput: 250.0,
            full: 100.0,
            history: (0..100).map(|i| f64::from(i) * 2.0).collect(),
        }
    }

    #[test]
    fn the_table_keeps_its_width_and_shows_the_cut() {
        for unicode in [true, false] {
            let lines = picture().table(7, unicode);
            assert!(lines.iter().all(|line| line.chars().count() < usize::from(COLUMNS_MIN)), "{lines:#?}");
            assert_eq!(lines.iter().any(|line| !line.is_ascii()), unicode);
            assert!(lines[0].starts_with("one host with 2 uplinks"), "{lines:#?}");
            assert!(lines[3].contains("48.0") && lines[4].ends_with("cut"), "{lines:#?}");
            assert!(lines[5].contains("67.0") && lines[5].contains("250.0"), "{lines:#?}");
            assert!(lines.len() < usize::from(ROWS_MIN));
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(0.5, false).len(), BAR / 2);
        assert_eq!(bar(1.0, true).chars().count(), BAR);
        assert_eq!(bar(0.5 + 1.0 / 256.0, true).chars().last(), Some('▏'));
        assert_eq!((bar(0.0, true), bar(-1.0, false)), (String::new(), String::new()));
        assert_eq!(bar(f64::NAN, true), "");
    }
}
