//! `ListenerActor`: one per listen address of an exit. Takes connections through the TLS handshake
//! and hands them to the door.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Incoming};
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
    let ListenerLent { exit, link } = lent;
    let port = Arc::clone(&link);
    let enter = move |connection| {
        let (exit, link) = (Arc::clone(&exit), Arc::clone(&port));
        async move { door::enter(&exit, connection, &link).await }
    };
    accept(&link, &pulse, enter).await
}

/// Takes connections of `link` through the handshake and hands them to `enter`, for ever.
///
/// # Errors
/// When the endpoint cannot be made or has stopped.
pub(crate) async fn accept<F, Fut>(link: &Arc<Link>, pulse: &Pulse, enter: F) -> Result<(), DriverError>
where
    F: Fn(Connection) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let endpoint = link.endpoint().map_err(DriverError::io("make the QUIC endpoint"))?;
    let mut handshakes = JoinSet::new();
    let mut entering = JoinSet::new();
    loop {
        pulse.beat().await?;
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    pulse.count_handled(1);
                    let underway = handshakes.len() + entering.len();
                    if underway >= HANDSHAKES_MAX {
                        incoming.refuse();
                    } else if underway >= HANDSHAKES_UNPROVEN_MAX && incoming.may_retry() {
                        let _ = incoming.retry();
                    } else {
                        handshakes.spawn(handshake(incoming));
                    }
                }
                None => {
                    link.renew_endpoint();
                    return Err(DriverError::Failed("the QUIC endpoint has stopped".to_owned()));
                }
            },
            Some(made) = handshakes.join_next() => {
                if let Ok(Some(connection)) = made {
                    entering.spawn(enter(connection));
                }
            }
            Some(_) = entering.join_next() => {}
            () = pulse.asked() => {}
        }
    }
}

async fn handshake(incoming: Incoming) -> Option<Connection> {
    let remote = incoming.remote_address();
    let connecting = incoming.accept().ok()?;
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "handshake failed");
            None
        }
        Err(_elapsed) => {
            tracing::debug!(%remote, "handshake took too long");
            None
        }
    }
}
