//! Inner addresses of an exit's edges.
//!
//! An edge's address follows from its node id, so that it is the same after a restart of either
//! side unless two ids fall on one address; then the later one gets the next free address.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::identity::NodeId;

/// The addresses of one pool and who has them.
#[derive(Debug)]
pub struct AddressPool {
    network: u32,
    prefix: u8,
    by_node: BTreeMap<NodeId, u32>,
    by_host: BTreeMap<u32, NodeId>,
}

impl AddressPool {
    /// The pool of `network`/`prefix`; `None` when that has fewer than two hosts. The first host is
    /// the exit itself.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Option<Self> {
        let prefix_ok = (1..=30).contains(&prefix);
        let mask = prefix_ok.then(|| u32::MAX << (32 - prefix))?;
        Some(Self {
            network: u32::from(network) & mask,
            prefix,
            by_node: BTreeMap::new(),
            by_host: BTreeMap::new(),
        })
    }

    /// Length of the pool's prefix.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The exit's own inner address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The address of `node`, kept as long as the pool lives; `None` when none is left.
    pub fn assign(&mut self, node: NodeId) -> Option<Ipv4Addr> {
        if let Some(host) = self.by_node.get(&node) {
            return Some(self.address(*host));
        }
        // Hosts 2 up to the last before the broadcast address.
        let hosts = (1_u32 << (32 - self.prefix)) - 3;
        let bytes = node.as_bytes();
        let start = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) % hosts;
        let host =
            (0..hosts).map(|i| 2 + (start + i) % hosts).find(|host| !self.by_host.contains_key(host))?;
        self.by_node.insert(node, host);
        self.by_host.insert(host, node);
        Some(self.address(host))
    }

    fn address(&self, host: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network + host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        let mut bytes = [0; 32];
        bytes[3] = n;
        NodeId::from_bytes(bytes)
    }

    #[test]
    fn addresses_follow_the_node_and_run_out() {
        let mut pool = AddressPool::new("10.77.1.9".parse().expect("ip"), 29).expect("a pool");
        assert_eq!(pool.gateway(), Ipv4Addr::new(10, 77, 1, 9), "first host of 10.77.1.8/29");
        let got: Vec<_> = [3, 0, 3, 8, 1, 2].into_iter().map(|n| pool.assign(node(n))).collect();
        let ip = |n| Some(Ipv4Addr::new(10, 77, 1, n));
        assert_eq!(got, [ip(13), ip(10), ip(13), ip(14), ip(11), ip(12)]);
        assert_eq!(pool.assign(node(9)), None);
        assert!(AddressPool::new(Ipv4Addr::LOCALHOST, 31).is_none());
        assert!(AddressPool::new(Ipv4Addr::LOCALHOST, 0).is_none());
    }
}
