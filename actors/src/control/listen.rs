//! `ListenerActor`: one per listen address of an exit. Takes connections through the TLS handshake
//! and hands them to the door.

use std::sync::Arc;
use std::time::Duration;

use quinn::Incoming;
use tokio::task::JoinSet;

use super::door;
use super::exit::Exit;
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::wan_link::Link;

/// Handshakes at the same time; more are refused. Each costs some 20 KiB and half a millisecond.
const HANDSHAKES_MAX: usize = 256;
/// Handshakes at the same time above which an address must prove itself first.
const HANDSHAKES_UNPROVEN_MAX: usize = 32;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a listener is lent.
#[derive(Clone, Debug)]
pub struct ListenerLent {
    /// The exit.
    pub exit: Arc<Exit>,
    /// The link of the listen address.
    pub link: Arc<Link>,
}

/// Marker of [`ListenerActor`].
#[derive(Debug)]
pub struct Listener;

/// The actor that accepts connections.
pub type ListenerActor = DrivenActor<Listener>;

impl Drive for Listener {
    type Lent = ListenerLent;

    fn launch(lent: &ListenerLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("accept", |pulse| run(lent, pulse));
        Ok(())
    }
}

async fn run(lent: ListenerLent, pulse: Pulse) -> Result<(), DriverError> {
    let endpoint = lent.link.endpoint().map_err(DriverError::io("make the QUIC endpoint"))?;
    let mut handshakes = JoinSet::new();
    loop {
        pulse.beat().await?;
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    pulse.count_handled(1);
                    admit(&lent, incoming, &mut handshakes);
                }
                None => {
                    lent.link.renew_endpoint();
                    return Err(DriverError::Failed("the QUIC endpoint has stopped".to_owned()));
                }
            },
            Some(_) = handshakes.join_next() => {}
            () = pulse.asked() => {}
        }
    }
}

fn admit(lent: &ListenerLent, incoming: Incoming, handshakes: &mut JoinSet<()>) {
    if handshakes.len() >= HANDSHAKES_MAX {
        incoming.refuse();
        return;
    }
    if handshakes.len() >= HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() {
        let _ = incoming.retry();
        return;
    }
    let lent = lent.clone();
    handshakes.spawn(async move {
        let remote = incoming.remote_address();
        let Ok(connecting) = incoming.accept() else { return };
        let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                tracing::debug!(%remote, %error, "handshake failed");
                return;
            }
            Err(_elapsed) => {
                tracing::debug!(%remote, "handshake took too long");
                return;
            }
        };
        door::enter(&lent.exit, connection, &lent.link).await;
    });
}
