//! Wire format and protocol machines of mwb-node.
//!
//! Everything here is pure state: no socket, no clock, no task. A machine is fed with `handle_*`
//! and the time, and drained with `poll_*` until it has nothing more; `poll_timeout` says when it
//! wants to be called again. Early, late or repeated calls are harmless.

pub mod bond;
pub mod buf;
pub mod control;
pub mod discovery;
pub mod fec;
pub mod health;
pub mod lend;
pub mod mesh;
pub mod packet;
pub mod path;
pub mod seal;
pub mod time;
pub mod wire;
