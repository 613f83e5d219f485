//! The log: lines on standard error. Where that is the journal of systemd, each line begins with its priority
//! (sd-daemon(3)) and has no time of its own, since the journal has both.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Begins to log what `directives` let through.
pub(crate) fn start(directives: &str) {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // A second initialisation can only happen in tests, where the first one serves.
    if is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
        let format = tracing_subscriber::fmt::format().without_time().with_level(false).with_ansi(false);
        lines.with_ansi(false).event_format(ForJournal(format)).try_init().ok();
    } else {
        lines.try_init().ok();
    }
}

/// Whether standard error is the stream that systemd has named (systemd.exec(5)): device and inode, in decimal. A program that
/// was started by a service has the variable too, and perhaps another standard error.
fn is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr()) else { return false };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

/// Puts the priority before a line.
struct ForJournal(Format<tracing_subscriber::fmt::format::Full, ()>);

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// A level as one of syslog's severities (RFC 5424, section 6.2.1).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stream_that_is_named_is_the_journal() {
        let stat = rustix::fs::fstat(std::io::stderr()).unwrap();
        let named = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_journal(Some(&named)));
        for other in [None, Some(""), Some("1"), Some("x:y"), Some(&named[1..])] {
            assert!(!is_journal(other), "{other:?}");
        }
        assert_eq!([Level::ERROR, Level::WARN, Level::INFO, Level::TRACE].map(priority), [3, 4, 6, 7]);
    }
}
