//! Talking to the service manager (systemd, `sd_notify(3)`): ready, alive, stopping. Without one nothing is said.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;

/// Runs until it is dropped: the manager is told at half of the time after which it would take the node for dead.
/// Scheduled like all of the node's tasks, so a runtime that hangs is noticed.
pub(crate) async fn keep_alive() -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut tick = tokio::time::interval((limit / 2).max(Duration::from_millis(1)));
    loop {
        tick.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// The node serves: what was ordered after it may start.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The node is on its way out, and puts the host back.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    // Nobody may listen any more; the manager's own timeout says so then.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
