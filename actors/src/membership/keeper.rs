//! `MembershipActor`: keeps the membership in memory, on disk and among the members the same.
//!
//! Where the disk is full or cannot be written, the node goes on with what it knows: it takes what it can read, follows
//! the exits, exchanges records, and tries to save again now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::store::{Stamp, StoreError};
use super::{Access, Membership, spread};
use crate::control::CloseCode;
use crate::control::exits::Exits;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};

/// How often the stored membership is looked at: the command line may have changed it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long what could not be saved waits for the next try.
const SAVE_AGAIN: Duration = Duration::from_secs(10);
/// How long a node that was sent away is still connected: for what tells it.
const FAREWELL: Duration = Duration::from_millis(500);

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
    // When saving failed last, if it does.
    let mut failed: Option<Instant> = None;
    // Dropped, and so aborted, with this driver; its successor finds the connections again.
    let (mut spreads, mut spreading) = (JoinSet::new(), BTreeSet::new());
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        pulse.beat().await?;
        connected.mark_unchanged();
        let version = *changes.borrow_and_update();
        let (stamp, again) = (membership.store.stamp(), failed.is_some_and(|at| at.elapsed() >= SAVE_AGAIN));
        if (stamp, version) != saved || again {
            saved = match save(&membership, &pulse).await? {
                Ok(stamp) => {
                    if failed.take().is_some() {
                        tracing::info!("the membership is saved again");
                    }
                    (stamp, version)
                }
                Err(error) => {
                    if failed.replace(Instant::now()).is_none() {
                        tracing::warn!(
                            %error,
                            "the membership cannot be saved: the node goes on with what it knows, and forgets at a restart \
                             what it has learnt since"
                        );
                    }
                    (stamp, version)
                }
            };
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

/// Brings disk and memory together; if nothing can be saved, at least memory has what the disk has.
async fn save(membership: &Arc<Membership>, pulse: &Pulse) -> Result<Result<Stamp, StoreError>, DriverError> {
    let lent = Arc::clone(membership);
    let saving = tokio::task::spawn_blocking(move || {
        let saved = lent.store.merge(&lent.snapshot());
        let stored = match &saved {
            Ok((stored, _)) => Some(stored.clone()),
            Err(_) => lent.store.load().ok().flatten(),
        };
        (stored, saved.map(|(_, stamp)| stamp))
    });
    let saved = pulse.alive_during(saving).await?;
    let (stored, saved) = saved.map_err(|error| DriverError::Failed(error.to_string()))?;
    if let Some(stored) = stored {
        membership.merge(&stored);
    }
    Ok(saved)
}

/// Closes the connections of nodes that are members no more.
fn send_away(membership: &Membership, access: &Access) {
    if membership.own().is_none() {
        tracing::error!(
            "this node's membership was revoked: nobody talks to it; stop it, or join again with a new token"
        );
    }
    for (_, node, connection) in membership.connections() {
        if !access.is_known(node) && membership.members.lock().record(node).is_none() {
            tracing::info!(node = %node.short(), "the membership of this node was revoked");
            // What the root has signed is on its way to that node: it should know for itself, and stop trying.
            tokio::spawn(async move {
                tokio::time::sleep(FAREWELL).await;
                CloseCode::Stranger.close_saying(&connection, "this node's membership was revoked");
            });
        }
    }
}
