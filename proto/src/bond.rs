//! Many paths as one: the machines of a bonded session.
//!
//! [`Sender`] and [`Receiver`] are the two halves; each side of a session runs both. The sender
//! owns the ingress queue, the models of all paths and the resends; the receiver owns what arrived
//! on each path, the lanes and the reports.

mod arq;
mod batch;
pub mod classify;
mod config;
pub mod flow_queue;
mod receiver;
mod reorder;
mod sender;
mod snapshot;

pub use batch::{BATCH_BYTES_MAX, BATCH_PACKETS_MAX, RxItem, TxBatch, TxSegment};
pub use config::{
    Classes, DuplicationConfig, DuplicationMode, FecConfig, FecMode, ReceiverConfig, SenderConfig,
};
pub use receiver::{PATHS_MAX, Receiver, SentMark, TcpTuple};
pub use sender::{LANE_UNORDERED, LANES, PathSetup, RoutingMode, Sender, SenderEvent, UnknownMode};
pub use snapshot::{PathSnapshot, PathState, ReceiverSnapshot, SenderSnapshot};
