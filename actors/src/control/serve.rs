//! The exit's side of one edge: takes its connections, lets their paths join, watches them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::Message;
use tokio::task::JoinSet;

use super::exit::{Arrival, EdgePeer, Exit};
use super::held::{HeldPath, REPLACED_GRACE};
use super::{CloseCode, JoinError, hello};
use crate::clock;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};

/// How often the edge's paths are looked at.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// A path that has been silent for so long is given up; a living edge has dialled anew long before.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Least time between two limits of one path that are heeded.
const LIMIT_EVERY_MIN: Duration = Duration::from_millis(20);

/// Marker of an exit's [`PeerActor`].
#[derive(Debug)]
pub struct Server;

/// The actor that serves one edge's connections.
pub type PeerActor = DrivenActor<Server>;

impl Drive for Server {
    type Lent = (Arc<Exit>, Arc<EdgePeer>);

    fn launch((exit, peer): &Self::Lent, crew: &mut Crew) -> Result<(), DriverError> {
        let (exit, peer) = (Arc::clone(exit), Arc::clone(peer));
        crew.launch("paths", |pulse| run(exit, peer, pulse));
        Ok(())
    }
}

async fn run(exit: Arc<Exit>, peer: Arc<EdgePeer>, pulse: Pulse) -> Result<(), DriverError> {
    // Dropped, and so aborted, with this driver.
    let mut joins = JoinSet::new();
    let (mut followers, mut followed) = (JoinSet::new(), BTreeSet::new());
    loop {
        pulse.beat().await?;
        while let Some(arrival) = peer.connections.pop() {
            joins.spawn(join(Arc::clone(&exit), Arc::clone(&peer), arrival));
        }
        watch(&peer);
        exit.expire(&peer);
        for held in peer.held.all() {
            if followed.insert(held.endpoint.generation()) {
                followers.spawn(follow(held));
            }
        }
        tokio::select! {
            () = peer.connections.wait() => {}
            Some(result) = joins.join_next() => {
                pulse.count_handled(1);
                if let Err(error) = result {
                    tracing::error!(edge = peer.name, %error, "a join died");
                }
            }
            Some(ended) = followers.join_next() => {
                if let Ok(generation) = ended && !peer.held.all().iter().any(|h| h.endpoint.generation() == generation) {
                    followed.remove(&generation);
                }
            }
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = pulse.asked() => {}
        }
    }
}

/// Keeps our sender to what the edge asks for on the stream of a path, until the stream ends. Gives the
/// path's generation.
async fn follow(held: HeldPath) -> u64 {
    let path = held.endpoint.id();
    loop {
        match held.stream.next().await {
            Ok(Some(Message::PathLimit(limit))) => {
                let rate_max = (limit.rate_max != u64::MAX).then_some(limit.rate_max);
                tracing::debug!(%path, ?rate_max, "limit");
                held.endpoint.set_rate_cap(rate_max);
                // The stream's window holds back an edge that says more.
                tokio::time::sleep(LIMIT_EVERY_MIN).await;
            }
            Ok(Some(other)) => {
                tracing::info!(%path, kind = other.kind(), "unexpected message on the stream of a path");
                CloseCode::Protocol.close(&held.connection);
                break;
            }
            Err(JoinError::Control(error)) => {
                tracing::info!(%path, %error, "the stream of a path is broken");
                CloseCode::Protocol.close(&held.connection);
                break;
            }
            Ok(None) | Err(_) => break,
        }
    }
    held.endpoint.generation()
}

/// Lets go of paths that have ended.
fn watch(peer: &EdgePeer) {
    for held in peer.held.all() {
        let path = held.endpoint.id();
        if let Some(reason) = held.connection.close_reason() {
            tracing::info!(edge = peer.name, %path, %reason, "connection of the path has ended");
            peer.held.remove(&held, CloseCode::Done);
        } else if peer.held.is_superseded(&held) && grace_is_over(peer, &held) {
            peer.held.remove(&held, CloseCode::Replaced);
        } else if held.silence() >= SILENCE_MAX {
            tracing::info!(edge = peer.name, %path, "path is silent");
            peer.held.remove(&held, CloseCode::Timeout);
        }
    }
}

fn grace_is_over(peer: &EdgePeer, held: &HeldPath) -> bool {
    let newest = peer.held.newest(held.endpoint.id());
    newest.is_some_and(|newest| clock::now() - newest.since >= 2 * REPLACED_GRACE)
}

async fn join(exit: Arc<Exit>, peer: Arc<EdgePeer>, arrival: Arrival) {
    let connection = arrival.connection.clone();
    let result = serve(&exit, &peer, arrival).await;
    let Err(error) = result else { return };
    let code = match &error {
        JoinError::Timeout => CloseCode::Timeout,
        JoinError::Refused { .. } => CloseCode::Refused,
        _ => CloseCode::Protocol,
    };
    let (edge, remote) = (&peer.name, connection.remote_address());
    match &error {
        // Something is to be done here, but an edge that asks again and again is told of once.
        JoinError::Refused { reason, .. } if peer.refused.lock().replace(*reason) != Some(*reason) => {
            tracing::warn!(edge, %remote, %error, "an edge is turned away");
        }
        JoinError::Refused { .. } => tracing::debug!(edge, %remote, %error, "no path from this connection"),
        _ => tracing::info!(edge, %remote, %error, "no path from this connection"),
    }
    code.close(&connection);
}

/// Answers the hello and lets the path join, on the connection's first stream.
async fn serve(exit: &Exit, peer: &Arc<EdgePeer>, arrival: Arrival) -> Result<(), JoinError> {
    let Arrival { connection, link, bundles, mut stream } = arrival;
    stream.trust();
    stream.send(&Message::HelloAck(hello(&exit.node_name, exit.instance, exit.access()))).await?;
    let join = match stream.next().await? {
        Message::PathJoin(join) => join,
        other => return Err(JoinError::Unexpected(other.kind())),
    };
    match exit.join(peer, &connection, (&link, bundles), &join) {
        Ok((accept, endpoint)) => {
            // Installed before the edge knows: its first datagram finds the path.
            let remote = endpoint.remote();
            let held = peer.held.add(connection.clone(), endpoint, stream);
            *peer.refused.lock() = None;
            held.stream.send(&Message::PathAccept(accept)).await?;
            let (edge, path, uplink) = (&peer.name, join.path, &join.link_name);
            tracing::info!(edge, path, uplink, %remote, "path joined");
            Ok(())
        }
        Err(refuse) => {
            let error = JoinError::Refused { reason: refuse.reason, text: refuse.text.clone() };
            stream.send(&Message::PathRefuse(refuse)).await?;
            stream.finish();
            // Closing at once would overtake the refusal.
            tokio::time::sleep(Duration::from_millis(500)).await;
            Err(error)
        }
    }
}
