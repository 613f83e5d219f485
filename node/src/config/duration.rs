//! Spans of time as a person writes them: `500ms`, `1.5s`, `2m`, `1h`, `7d`.

use std::time::Duration;

/// What [`parse`] reads, as a regular expression; not how long it may be.
pub(super) const PATTERN: &str = r"^\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(us|ms|s|m|h|d)\s*$";

/// Reads a number followed by `us`, `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "" => return Err(format!("\"{text}\" has no unit")),
        other => return Err(format!("\"{other}\" is no unit of time")),
    };
    let value: f64 = number.parse().map_err(|_| format!("\"{text}\" does not start with a number"))?;
    Duration::try_from_secs_f64(value * scale).map_err(|_| format!("\"{text}\" is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_units_and_refuses_the_rest() {
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse(" 1.5s "), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse("1 h"), Ok(Duration::from_secs(3600)));
        assert_eq!(parse("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "5", "ms", "-1s", "5 days", "1.2.3s", "1e400s", "99999999999999999999h"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
