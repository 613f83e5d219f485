//! `LanPortsActor`: follows the LAN interfaces that the host is found to have: a [port](super::port) for each.
//!
//! The list is always complete, so that a round that is done twice changes nothing. Interfaces that the configuration
//! names are not its business.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::listen::LanListener;
use super::plane::LanPlane;
use super::port::{LanPort, PortParts};
use crate::driver::{Crew, Drive, DrivenActor, DriverError, Pulse};
use crate::supervisor::{ChildSpec, Plan};
use crate::wan_link::WanLink;

/// Time for QUIC's goodbye before the socket of a port is closed.
const FAREWELL: Duration = Duration::from_millis(50);

/// What the actor is lent.
#[derive(Clone)]
pub struct LanFollowLent {
    /// Where the ports are.
    pub plane: Arc<LanPlane>,
    /// What ports are made from.
    pub parts: PortParts,
    /// Plan of the link supervisor.
    pub links: Arc<Plan>,
    /// The interfaces that are found.
    pub found: watch::Receiver<Vec<String>>,
}

impl fmt::Debug for LanFollowLent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LanFollowLent({:?})", *self.found.borrow())
    }
}

/// Marker of [`LanPortsActor`].
#[derive(Debug)]
pub struct LanFollow;

/// The actor that follows the interfaces of LANs.
pub type LanPortsActor = DrivenActor<LanFollow>;

impl Drive for LanFollow {
    type Lent = LanFollowLent;

    fn launch(lent: &LanFollowLent, crew: &mut Crew) -> Result<(), DriverError> {
        let lent = lent.clone();
        crew.launch("follow", |pulse| run(lent, pulse));
        Ok(())
    }
}

async fn run(lent: LanFollowLent, pulse: Pulse) -> Result<(), DriverError> {
    let mut found = lent.found.clone();
    loop {
        pulse.beat().await?;
        let now = found.borrow_and_update().clone();
        lent.plane.take_out_ports(&now);
        close_leaving(&lent, &pulse).await?;
        for interface in &now {
            take_in(&lent, interface)?;
        }
        pulse.count_handled(1);
        let change = async {
            // Nobody tells any more: what was told last stays.
            if found.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        pulse.alive_during(change).await?;
    }
}

/// Closes the ports that were taken out; those that an earlier incarnation did not get to as well.
async fn close_leaving(lent: &LanFollowLent, pulse: &Pulse) -> Result<(), DriverError> {
    let leaving = lent.plane.leaving_ports();
    if leaving.is_empty() {
        return Ok(());
    }
    for port in &leaving {
        tracing::info!(interface = &*port.interface, "no LAN any more");
        lent.plane.parts.control.remove(port.link.name());
        port.link.close();
    }
    pulse.alive_during(tokio::time::sleep(FAREWELL)).await?;
    for port in &leaving {
        port.link.shut();
        lent.links.remove(port.link.name());
        lent.plane.forget_port(port);
    }
    Ok(())
}

fn take_in(lent: &LanFollowLent, interface: &str) -> Result<(), DriverError> {
    if lent.plane.ports().iter().any(|port| &*port.interface == interface) {
        return Ok(());
    }
    let port = LanPort::new(interface, &lent.parts, true)
        .map_err(|error| DriverError::Failed(format!("a LAN port cannot be made: {error}")))?;
    tracing::info!(interface, "LAN found");
    let name = port.link.name().to_owned();
    lent.links.add(ChildSpec::driven::<WanLink>(name.clone(), Arc::clone(&port.link)));
    let listener = (Arc::clone(&lent.plane), port.clone());
    lent.plane.add_port(port);
    lent.plane.parts.control.add(ChildSpec::driven::<LanListener>(name, listener));
    Ok(())
}
