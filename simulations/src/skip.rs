//! Skipped tests, which are not passed tests.

use std::io::Write;

/// Records that a test did not run: prints `SKIPPED name: reason`, and adds `name: reason` to the file that
/// `MWB_SKIPS` names, because the output of a test that ends well is not seen. With `MWB_REQUIRE=all` in
/// the environment, as in CI, a skip is a failure.
///
/// # Panics
/// With `MWB_REQUIRE=all`.
pub fn record(name: &str, reason: &str) {
    eprintln!("SKIPPED {name}: {reason}");
    if let Some(path) = std::env::var_os("MWB_SKIPS") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        if let Err(error) = file.and_then(|mut file| writeln!(file, "{name}: {reason}")) {
            eprintln!("MWB_SKIPS cannot be written: {error}");
        }
    }
    let required = std::env::var_os("MWB_REQUIRE").is_some_and(|value| value == "all");
    assert!(!required, "{name} must not be skipped (MWB_REQUIRE=all): {reason}");
}

/// Records a skip, see [`skip::record`](crate::skip::record), and returns from the test.
#[macro_export]
macro_rules! skip {
    ($name:expr, $($reason:tt)+) => {{
        $crate::skip::record($name, &format!($($reason)+));
        return;
    }};
}
