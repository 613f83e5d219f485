//! The first message of a connection: it decides whether the node at the other end may stay.
//!
//! TLS lets in whoever proves to own a key. A node that says hello is judged by [`Access`]; one that asks to
//! join the mesh is answered; anything else is a stranger, with [`STRANGER_BYTES_MAX`] and
//! [`STEP_TIMEOUT`] to spend.
//!
//! [`Access`]: crate::membership::Access
//! [`STRANGER_BYTES_MAX`]: super::STRANGER_BYTES_MAX

use std::sync::Arc;
use std::time::Duration;

use mwb_proto::control::{Hello, Message};
use mwb_proto::mesh::Roles;
use quinn::Connection;

use super::exit::{Arrival, Exit};
use super::{CloseCode, ControlStream, JoinError, STEP_TIMEOUT, check_hello};
use crate::identity::NodeId;
use crate::membership::{Access, Admitted, join};
use crate::tls;
use crate::wan_link::Link;

/// How long a stranger's connection is kept so that the reason for closing it can arrive.
const FAREWELL: Duration = Duration::from_millis(500);

/// Who stands at the door.
pub(crate) enum Guest {
    /// A node that may stay, with its greeting and its stream.
    Peer(Admitted, Box<Hello>, ControlStream),
    /// A node that came to join the mesh; it has its answer.
    Joined,
}

/// Takes a connection whose handshake is done: hands it to its edge's actor, lets the node join the
/// mesh, or sends it away.
pub(super) async fn enter(exit: &Arc<Exit>, connection: Connection, link: &Arc<Link>) {
    let remote = connection.remote_address();
    let Some(node) = tls::peer_of(&connection) else {
        return send_away(&connection, CloseCode::Stranger, "no key").await;
    };
    match first_message(exit.access(), &connection).await {
        Ok(Guest::Peer(admitted, ..)) if !admitted.roles.contains(Roles::EDGE) => {
            let error = JoinError::Role(Roles::EDGE);
            tracing::info!(%remote, node = %node, name = admitted.name, %error, "a member is sent away");
            send_away(&connection, CloseCode::Stranger, "this member may not use exits").await;
        }
        Ok(Guest::Peer(admitted, greeting, stream)) => {
            let (link, bundles) = (Arc::clone(link), greeting.can(Hello::BUNDLES));
            exit.connected(node, admitted, Arrival { connection, link, bundles, stream });
        }
        Ok(Guest::Joined) => {}
        Err(error) => refuse(&connection, node, &error).await,
    }
}

/// Sends a stranger away, and tells it why.
pub(crate) async fn refuse(connection: &Connection, node: NodeId, error: &JoinError) {
    let (code, text) = match error {
        JoinError::NotAdmitted(reason) => (CloseCode::Stranger, reason.to_string()),
        JoinError::Timeout => (CloseCode::Timeout, "no message in time".to_owned()),
        other => (CloseCode::Protocol, other.to_string()),
    };
    tracing::info!(remote = %connection.remote_address(), node = %node, %error, "a stranger is sent away");
    send_away(connection, code, &text).await;
}

/// Waits for the first message and judges who sent it; a node that wants to join gets its answer.
///
/// # Errors
/// Why the node at the other end may not stay.
pub(crate) async fn first_message(access: &Access, connection: &Connection) -> Result<Guest, JoinError> {
    let first = async {
        let mut stream = ControlStream::new(connection.accept_bi().await?);
        let message = stream.next().await?;
        Ok::<_, JoinError>((message, stream))
    };
    let (message, stream) =
        tokio::time::timeout(STEP_TIMEOUT, first).await.map_err(|_elapsed| JoinError::Timeout)??;
    match message {
        Message::Hello(hello) => {
            let admitted = admit(access, connection, &hello)?;
            Ok(Guest::Peer(admitted, Box::new(hello), stream))
        }
        Message::JoinRequest(request) => {
            join::serve(access.membership(), connection, stream, request).await?;
            Ok(Guest::Joined)
        }
        other => Err(JoinError::Unexpected(other.kind())),
    }
}

/// Judges the greeting of the node at the other end of `connection`, whoever dialled.
pub(crate) fn admit(access: &Access, connection: &Connection, hello: &Hello) -> Result<Admitted, JoinError> {
    let node = tls::peer_of(connection).ok_or(JoinError::Keys)?;
    let admitted = access.admit(node, &hello.record)?;
    check_hello(hello)?;
    Ok(admitted)
}

pub(crate) async fn send_away(connection: &Connection, code: CloseCode, text: &str) {
    code.close_saying(connection, text);
    tokio::time::sleep(FAREWELL).await;
}
