//! The exit's side of one edge: takes its connections, lets their paths join, watches them.

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
    loop {
        pulse.beat().await?;
        while let Some(arrival) = peer.connections.pop() {
            joins.spawn(join(Arc::clone(&exit), Arc::clone(&peer), arrival));
        }
        watch(&peer);
        exit.expire(&peer);
        tokio::select! {
            () = peer.connections.wait() => {}
            Some(result) = joins.join_next() => {
                pulse.count_handled(1);
                if let Err(error) = result {
                    tracing::error!(edge = peer.name, %error, "a join died");
                }
            }
            () = tokio::time::sleep(WATCH_EVERY) => {}
            () = pulse.asked() => {}
        }
    }
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
    let remote = connection.remote_address();
    tracing::info!(edge = peer.name, %remote, %error, "no path from this connection");
    code.close(&connection);
}

/// Answers the hello and lets the path join, on the connection's first stream.
async fn serve(exit: &Exit, peer: &Arc<EdgePeer>, arrival: Arrival) -> Result<(), JoinError> {
    let Arrival { connection, link, mut stream } = arrival;
    stream.trust();
    stream.send(&Message::HelloAck(hello(&exit.node_name, exit.instance, exit.access()))).await?;
    let join = match stream.next().await? {
        Message::PathJoin(join) => join,
        other => return Err(JoinError::Unexpected(other.kind())),
    };
    match exit.join(peer, &connection, &link, &join) {
        Ok((accept, endpoint)) => {
            // Installed before the edge knows: its first datagram finds the path.
            let remote = endpoint.remote();
            peer.held.add(connection.clone(), endpoint);
            stream.send(&Message::PathAccept(accept)).await?;
            stream.finish();
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
