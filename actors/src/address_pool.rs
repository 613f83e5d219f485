//! Inner addresses of an exit's edges.
//!
//! An edge's address follows from its node id, so that it is the same after a restart of either
//! side unless two ids fall on one address; then the later one gets the next free address.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::identity::NodeId;

/// Shortest and longest prefix of an IPv6 pool.
const V6_PREFIXES: std::ops::RangeInclusive<u8> = 32..=120;

/// Who has which number of a row.
#[derive(Debug, Default)]
struct Numbers {
    by_node: BTreeMap<NodeId, u128>,
    taken: BTreeMap<u128, NodeId>,
}

impl Numbers {
    /// The number of `node`: `start` modulo `count` unless that is taken by another; `None` when all
    /// `count` are.
    fn assign(&mut self, node: NodeId, start: u128, count: u128) -> Option<u128> {
        if let Some(number) = self.by_node.get(&node) {
            return Some(*number);
        }
        let start = start % count;
        let number = (0..count).map(|i| (start + i) % count).find(|it| !self.taken.contains_key(it))?;
        self.by_node.insert(node, number);
        self.taken.insert(number, node);
        Some(number)
    }
}

/// The IPv4 addresses of one pool and who has them.
#[derive(Debug)]
pub struct AddressPool {
    network: u32,
    prefix: u8,
    numbers: Numbers,
}

impl AddressPool {
    /// The pool of `network`/`prefix`; `None` when that has fewer than two hosts. The first host is
    /// the exit itself.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Option<Self> {
        let prefix_ok = (1..=30).contains(&prefix);
        let mask = prefix_ok.then(|| u32::MAX << (32 - prefix))?;
        Some(Self { network: u32::from(network) & mask, prefix, numbers: Numbers::default() })
    }

    /// Length of the pool's prefix.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The exit's own inner address.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// The address of `node`, kept as long as the pool lives; `None` when none is left.
    pub fn assign(&mut self, node: NodeId) -> Option<Ipv4Addr> {
        // Hosts 2 up to the last before the broadcast address.
        let hosts = (1_u32 << (32 - self.prefix)) - 3;
        let bytes = node.as_bytes();
        let start = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let number = self.numbers.assign(node, start.into(), hosts.into())?;
        let host = 2 + u32::try_from(number).expect("smaller than the number of hosts");
        Some(Ipv4Addr::from(self.network + host))
    }
}

/// The same for IPv6. There is no broadcast address; host 0 belongs to all routers (RFC 4291, 2.6.1).
#[derive(Debug)]
pub struct AddressPoolV6 {
    network: u128,
    prefix: u8,
    numbers: Numbers,
}

impl AddressPoolV6 {
    /// The pool of `network`/`prefix`; `None` unless the prefix has 32 to 120 bits. The first host is the
    /// exit itself.
    pub fn new(network: Ipv6Addr, prefix: u8) -> Option<Self> {
        let mask = V6_PREFIXES.contains(&prefix).then(|| u128::MAX << (128 - prefix))?;
        Some(Self { network: u128::from(network) & mask, prefix, numbers: Numbers::default() })
    }

    /// Length of the pool's prefix.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The exit's own inner address.
    pub fn gateway(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.network | 1)
    }

    /// The address of `node`, kept as long as the pool lives; `None` when none is left.
    pub fn assign(&mut self, node: NodeId) -> Option<Ipv6Addr> {
        let hosts = (1_u128 << (128 - self.prefix)) - 2;
        let start = node.as_bytes().first_chunk().map(|bytes| u128::from_be_bytes(*bytes))?;
        let number = self.numbers.assign(node, start, hosts)?;
        Some(Ipv6Addr::from(self.network + 2 + number))
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

    #[test]
    fn ipv6_addresses_are_stable_and_lie_in_the_pool() {
        let network = "fd6d:7762::7".parse().expect("ip");
        let mut pool = AddressPoolV6::new(network, 64).expect("a pool");
        assert_eq!(pool.gateway().to_string(), "fd6d:7762::1");
        let id = |n: u8| NodeId::from_bytes(std::array::from_fn(|i| n.wrapping_mul(i as u8 + 1)));
        let first = pool.assign(id(1)).expect("room");
        assert_eq!(first.segments()[..4], [0xfd6d, 0x7762, 0, 0]);
        assert_ne!(pool.assign(id(2)), Some(first));
        let mut again = AddressPoolV6::new(network, 64).expect("a pool");
        again.assign(id(2));
        assert_eq!(again.assign(id(1)), Some(first), "in whatever order they come");
    }

    #[test]
    fn a_small_ipv6_pool_runs_out_without_handing_out_the_exits_address() {
        let mut pool = AddressPoolV6::new("fd00::".parse().expect("ip"), 120).expect("a pool");
        let same = |n: u8| {
            let mut bytes = [0; 32];
            bytes[31] = n;
            NodeId::from_bytes(bytes)
        };
        let got: Vec<_> = (0..=253).map_while(|n| pool.assign(same(n))).collect();
        assert_eq!((got.len(), got[0].to_string().as_str()), (254, "fd00::2"));
        assert_eq!(got[253].to_string(), "fd00::ff");
        assert_eq!(pool.assign(same(254)), None);
        assert!(AddressPoolV6::new(Ipv6Addr::LOCALHOST, 121).is_none());
        assert!(AddressPoolV6::new(Ipv6Addr::LOCALHOST, 31).is_none());
    }
}
