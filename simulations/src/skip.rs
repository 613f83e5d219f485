//! Skipped tests, which are not passed tests.

/// Records that a test did not run: prints `SKIPPED name: reason`. With `MWB_REQUIRE=all` in the
/// environment, as in CI, a skip is a failure.
///
/// # Panics
/// With `MWB_REQUIRE=all`.
pub fn record(name: &str, reason: &str) {
    eprintln!("SKIPPED {name}: {reason}");
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
