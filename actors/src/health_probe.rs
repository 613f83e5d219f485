//! `HealthProbeActor`: one per path; the shell of [`Health`].
//!
//! Each round it looks at what the path's link and sender counted, feeds the chart, publishes the
//! state and asks the router for a ping, so that an idle path has something to be heard by. What the router says of
//! the path, that it has given it up or uses it again, ends a round.

use std::sync::Arc;
use std::time::Duration;

use mwb_proto::bond::PathSnapshot;
use mwb_proto::health::{Health, HealthConfig, Observation};

use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::session::path::PathEndpoint;

/// What a probe is lent.
#[derive(Clone)]
pub struct HealthProbeLent {
    /// The path.
    pub path: Arc<PathEndpoint>,
    /// Limits.
    pub config: HealthConfig,
}

/// Marker of [`HealthProbeActor`].
#[derive(Debug)]
pub struct HealthProbe;

/// The actor around a path's health.
pub type HealthProbeActor = DrivenActor<HealthProbe>;

impl Drive for HealthProbe {
    type Lent = HealthProbeLent;

    fn launch(lent: &HealthProbeLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("probe", move |pulse| run(lent, pulse));
        Ok(())
    }
}

/// Counters at the end of the previous round.
#[derive(Default)]
struct Before {
    received: u64,
    acked: u64,
    lost: u64,
    packets: u64,
}

async fn run(lent: HealthProbeLent, pulse: Pulse) -> Result<(), DriverError> {
    let path = lent.path;
    let session = path.session();
    let mut health = Health::new(lent.config);
    let mut before = Before::default();
    // The first round is short, so that a new path soon has a state.
    let mut round = Duration::from_millis(250);
    loop {
        let _ = session.pings.try_push(path.id());
        let ended = async {
            tokio::select! {
                () = tokio::time::sleep(round) => {}
                // What the sender has found out need not wait: an idle path has long rounds.
                () = path.given_up_changed() => {}
            }
        };
        pulse.alive_during(ended).await?;
        pulse.beat().await?;
        pulse.count_handled(1);
        let (packets_in, snapshot) = {
            let sender = session.sender.borrow();
            let snapshot = sender.paths.iter().find(|p| p.path == path.id().0).cloned();
            (sender.packets_in, snapshot)
        };
        let packets = packets_in + session.receiver.borrow().delivered;
        let received = path.received();
        let seen = Observation {
            heard: received > before.received,
            active: packets > before.packets,
            given_up: path.is_given_up(),
            ..snapshot.as_ref().map_or_else(Observation::default, |now| measures(now, &before))
        };
        before = Before {
            received,
            packets,
            acked: snapshot.as_ref().map_or(0, |p| p.acked),
            lost: snapshot.as_ref().map_or(0, |p| p.lost),
        };
        if health.handle_round(&seen) {
            let (name, state) = (session.name(), health.state());
            tracing::info!(session = name, path = %path.id(), link = path.link().name(), ?state, "health");
        }
        path.set_health(health.state());
        round = health.next_round();
    }
}

fn measures(now: &PathSnapshot, before: &Before) -> Observation {
    let millis = |ms: f64| Duration::from_secs_f64((ms / 1e3).clamp(0.0, 3_600.0));
    Observation {
        rtt: (now.rtt_ms > 0.0).then(|| millis(now.rtt_ms)),
        jitter: millis(now.deviation_ms),
        // A restarted router counts from zero again.
        arrived: now.acked.saturating_sub(before.acked),
        lost: now.lost.saturating_sub(before.lost),
        ..Observation::default()
    }
}
