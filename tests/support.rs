//! What the end-to-end tests share: a lab with an edge and an exit running the real program.
#![allow(dead_code, reason = "each test target uses a part")]

pub(crate) mod avahi;
pub(crate) mod dns;
pub(crate) mod footprint;
pub(crate) mod icmp;
pub(crate) mod lab;
pub(crate) mod node;
pub(crate) mod skip;
