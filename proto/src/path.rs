//! One path's model: what the sender knows of it, from what the receiver reports.

pub mod delay;
pub mod flight;
pub mod mtu;
pub mod rate;
