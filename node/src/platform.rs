//! What a node changes on its host: addresses, routes, rules, forwarding, masquerade, and all of it back.

pub(crate) mod linux;

pub(crate) use linux::{Candidate, LinuxPlatform, MARK, OnHost, Wanted};
