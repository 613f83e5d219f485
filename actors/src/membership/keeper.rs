//! `MembershipActor`: keeps the membership in memory, on disk and among the members the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::store::Stamp;
use super::{Access, Membership, spread};
use crate::control::CloseCode;
use crate::control::exits::Exits;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};

/// How often the stored membership is looked at: the command line may have changed it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the actor is lent.
#[derive(Clone, Debug)]
pub struct KeeperLent {
    /// The mesh.
    pub membership: Arc<Membership>,
    /// Who else may talk to us.
    pub access: Arc<Access>,
    /// On an edge, the exits that follow the mesh.
    pub exits: Option<Arc<Exits>>,
}

/// Marker of [`MembershipActor`].
#[derive(Debug)]
pub struct Keeper;

/// The actor that keeps the membership.
pub type MembershipActor = DrivenActor<Keeper>;

impl Drive for Keeper {
    type Lent = KeeperLent;

    fn launch(lent: &KeeperLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("keep", |pulse| run(lent, pulse));
        Ok(())
    }
}

async fn run(lent: KeeperLent, pulse: Pulse) -> Result<(), DriverError> {
    let KeeperLent { membership, access, exits } = lent;
    let (mut changes, mut connected) = (membership.changes(), membership.connected.subscribe());
    // What was last brought together: the file's stamp, and the version in memory before.
    let mut saved = (Stamp::default(), u64::MAX);
    // Dropped, and so aborted, with this driver; its successor finds the connections again.
    let (mut spreads, mut spreading) = (JoinSet::new(), BTreeSet::new());
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        pulse.beat().await?;
        connected.mark_unchanged();
        let version = *changes.borrow_and_update();
        if (membership.store.stamp(), version) != saved {
            saved = (save(&membership, &pulse).await?, version);
            send_away(&membership, &access);
            if let Some(exits) = &exits {
                exits.follow(&membership).map_err(|error| DriverError::Failed(error.to_string()))?;
            }
        }
        for (id, node, connection) in membership.connections() {
            if spreading.insert(id) {
                let membership = Arc::clone(&membership);
                spreads.spawn(async move {
                    spread::run(&membership, &connection).await;
                    tracing::debug!(node = %node.short(), "records are no longer exchanged");
                    id
                });
            }
        }
        tokio::select! {
            _ = changes.changed() => {}
            _ = connected.changed() => {}
            Some(ended) = spreads.join_next() => {
                pulse.count_handled(1);
                // A connection that still lives is not tried again: its peer does not exchange records.
                if let Ok(id) = ended && !membership.connections().iter().any(|(other, ..)| *other == id) {
                    spreading.remove(&id);
                }
            }
            _ = look.tick() => {}
            () = pulse.asked() => {}
        }
    }
}

/// Brings disk and memory together.
async fn save(membership: &Arc<Membership>, pulse: &Pulse) -> Result<Stamp, DriverError> {
    let lent = Arc::clone(membership);
    let saving = tokio::task::spawn_blocking(move || lent.store.merge(&lent.snapshot()));
    let saved = pulse.alive_during(saving).await?;
    match saved.map_err(|error| DriverError::Failed(error.to_string()))? {
        Ok((stored, stamp)) => {
            membership.merge(&stored);
            Ok(stamp)
        }
        Err(error) => Err(DriverError::Failed(format!("saving the membership: {error}"))),
    }
}

/// Closes the connections of nodes that are members no more.
fn send_away(membership: &Membership, access: &Access) {
    if membership.own().is_none() {
        tracing::error!("this node's membership was revoked: the others will not talk to it");
    }
    for (_, node, connection) in membership.connections() {
        if !access.is_known(node) && membership.members.lock().record(node).is_none() {
            tracing::info!(node = %node.short(), "the membership of this node was revoked");
            CloseCode::Stranger.close_saying(&connection, "this node's membership was revoked");
        }
    }
}
