//! Supervised ractor actors and I/O drivers around the machines of `mwb-proto`.
//!
//! Mailboxes carry control, packets do not: a data-plane actor starts *drivers*, tasks that own a
//! machine and wait for a batch, a deadline or the end. Batches travel between drivers over bounded
//! queues. Sockets, the TUN device, QUIC endpoints, queues and the table of paths belong to the
//! supervisors, which lend them to their children; they survive the death of any child.
//! `actors/README.md` draws the tree, lists every bound and says what each death costs.

mod address_pool;
pub mod channel;
pub mod clock;
pub mod control;
pub mod discovery;
pub mod driver;
pub mod fec_codec;
pub mod health_probe;
pub mod host;
pub mod identity;
pub mod lan;
pub mod lend;
pub mod membership;
pub mod node;
mod readiness;
pub mod registry;
pub mod relay;
pub mod reorder;
pub mod router;
pub mod session;
pub mod spec;
pub mod status;
pub mod supervisor;
pub mod tls;
pub mod trace;
pub mod tun;
pub mod uplinks;
pub mod wan_link;

pub use identity::{Identity, NodeId};
pub use node::{RunningNode, start};
pub use registry::Fault;
pub use session::InnerAddresses;
pub use spec::{
    BondSpec, ExitSpec, FoundUplink, Gateways, LanSpec, NodeSpec, PeerSpec, Platform, StartError, UplinkSpec,
};
pub use status::NodeStatus;
pub use tun::TunSpec;
