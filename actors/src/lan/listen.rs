//! `LanListenerActor`: one per LAN port. Takes connections of members, and of nodes that want to join.

use std::sync::Arc;

use mwb_proto::control::Message;
use quinn::Connection;

use super::plane::{Arrival, DialledBy, LanPlane};
use super::port::LanPort;
use crate::control::door::{self, Guest};
use crate::control::listen::accept;
use crate::control::{CloseCode, JoinError, hello};
use crate::driver::{Crew, Drive, DrivenActor, DriverError};
use crate::tls;

/// Marker of [`LanListenerActor`].
#[derive(Debug)]
pub struct LanListener;

/// The actor that accepts connections on a LAN port.
pub type LanListenerActor = DrivenActor<LanListener>;

impl Drive for LanListener {
    type Lent = (Arc<LanPlane>, LanPort);

    fn launch((plane, port): &Self::Lent, crew: &mut Crew) -> Result<(), DriverError> {
        let (plane, port) = (Arc::clone(plane), port.clone());
        crew.launch("accept", |pulse| async move {
            let link = Arc::clone(&port.link);
            let enter = move |connection| {
                let (plane, port) = (Arc::clone(&plane), port.clone());
                async move { enter(&plane, &port, connection).await }
            };
            accept(&link, &pulse, enter).await
        });
        Ok(())
    }
}

async fn enter(plane: &LanPlane, port: &LanPort, connection: Connection) {
    let Some(node) = tls::peer_of(&connection) else {
        return door::send_away(&connection, CloseCode::Stranger, "no key").await;
    };
    match door::first_message(&plane.parts.access, &connection).await {
        Ok(Guest::Peer(admitted, greeting, stream)) => {
            if plane.is_me(node, Some(&greeting), connection.remote_address()) {
                return CloseCode::Done.close(&connection);
            }
            let (by, port) = (DialledBy::Them, Arc::clone(&port.link));
            let arrival = Arrival { node, admitted, hello: &greeting, by, connection, port };
            if let Err(error) = welcome(plane, arrival, stream).await {
                tracing::debug!(node = %node.short(), %error, "a connection on the LAN is not used");
            }
        }
        Ok(Guest::Joined) => {}
        Err(error) => door::refuse(&connection, node, &error).await,
    }
}

/// Answers the greeting and takes the connection into use.
async fn welcome(
    plane: &LanPlane,
    arrival: Arrival<'_>,
    mut stream: crate::control::ControlStream,
) -> Result<(), JoinError> {
    if !plane.may_replace(arrival.node, arrival.hello.node_instance, arrival.by) {
        CloseCode::Replaced.close(&arrival.connection);
        return Err(JoinError::NotNeeded);
    }
    stream.trust();
    let parts = &plane.parts;
    stream.send(&Message::HelloAck(hello(&parts.node_name, parts.instance, &parts.access))).await?;
    plane.arrived(arrival, stream)
}
