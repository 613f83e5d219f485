//! Which tests can run here, decided by trying.

use mwb_sim::lab;

/// Runs `body` where labs can be built (as root right here, else in a process of its own in a user namespace).
/// Where something that labs or nodes need is refused, the test is skipped with that reason, which is a failure
/// when `MWB_REQUIRE=all`.
///
/// `test` is the test's name in its binary; `body` runs alone on this machine.
pub(crate) fn in_lab(test: &str, body: impl FnOnce()) {
    lab::in_lab_process(test, || {
        if let Err(error) = lab::Lab::preflight() {
            mwb_sim::skip::record(test, &error.to_string());
            return;
        }
        let _alone = lab::machine_lock().expect("the lock file in the temporary folder can be opened");
        body();
    });
}
