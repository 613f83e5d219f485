//! Inner addresses of an exit's edges.
//!
//! An edge's address follows from its node id. Where two ids fall on one address, the later one gets the next free
//! address; that an edge gets the same again after a restart of either side is the memory of [`book`].

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::identity::NodeId;

pub(crate) mod book;

/// Shortest and longest prefix of an IPv6 pool.
const V6_PREFIXES: std::ops::RangeInclusive<u8> = 32..=120;
/// Most nodes that one pool remembers: many times what an exit serves, and less than a megabyte.
const NODES_MAX: usize = 4096;

/// What one node has.
#[derive(Clone, Copy, Debug)]
struct Holding {
    number: u128,
    /// Whether it is used now; if not, another may get it once nothing else is left.
    used: bool,
    /// When it was last assigned or released, as a place in the order of all these.
    turn: u64,
}

/// Who has which number of a row, and who had it last.
#[derive(Debug, Default)]
struct Numbers {
    by_node: BTreeMap<NodeId, Holding>,
    taken: BTreeMap<u128, NodeId>,
    turns: u64,
    /// Whether a node has come or gone since somebody asked.
    news: bool,
}

impl Numbers {
    /// The number of `node`, used from now on: what it has or had, or `start` modulo `count`, or the next that nobody
    /// has. When all `count` are somebody's, what has been unused for longest; `None` when all are used.
    fn assign(&mut self, node: NodeId, start: u128, count: u128) -> Option<u128> {
        let number = match self.by_node.get(&node) {
            Some(holding) => holding.number,
            None => self.free(start % count, count)?,
        };
        self.hold(node, number, true);
        Some(number)
    }

    /// A number that nobody has or that its node does not use.
    fn free(&mut self, start: u128, count: u128) -> Option<u128> {
        if self.by_node.len() < NODES_MAX {
            // Among one more than are taken there is a free one.
            let tries = count.min(self.taken.len() as u128 + 1);
            let free = (0..tries).map(|i| (start + i) % count).find(|it| !self.taken.contains_key(it));
            if free.is_some() {
                return free;
            }
        }
        let unused = self.by_node.iter().filter(|(_, holding)| !holding.used);
        let (&node, holding) = unused.min_by_key(|(_, holding)| holding.turn)?;
        let number = holding.number;
        self.by_node.remove(&node);
        self.taken.remove(&number);
        Some(number)
    }

    fn hold(&mut self, node: NodeId, number: u128, used: bool) {
        self.turns += 1;
        let holding = Holding { number, used, turn: self.turns };
        self.news |= self.by_node.insert(node, holding).is_none();
        self.taken.insert(number, node);
    }

    /// `node` does not use its number any more; it gets the same again unless all others are used before.
    fn release(&mut self, node: NodeId) {
        if let Some(holding) = self.by_node.get_mut(&node) {
            self.turns += 1;
            (holding.used, holding.turn) = (false, self.turns);
        }
    }

    /// `node` had `number` once. Of two that say so of one number, the first is believed.
    fn recall(&mut self, node: NodeId, number: u128) {
        let room = self.by_node.len() < NODES_MAX;
        if room && !self.by_node.contains_key(&node) && !self.taken.contains_key(&number) {
            self.hold(node, number, false);
        }
    }

    /// Everybody's number, who has been away for longest first.
    fn all(&self) -> Vec<(NodeId, u128)> {
        let mut all: Vec<_> = self.by_node.iter().collect();
        all.sort_by_key(|(_, holding)| (holding.used, holding.turn));
        all.into_iter().map(|(node, holding)| (*node, holding.number)).collect()
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

    /// Hosts 2 up to the last before the broadcast address.
    fn hosts(&self) -> u32 {
        (1 << (32 - self.prefix)) - 3
    }

    /// How many edges have room at once.
    pub fn room(&self) -> usize {
        NODES_MAX.min(self.hosts() as usize)
    }

    /// The address of `node`, its own until it is released; `None` when all are used.
    pub fn assign(&mut self, node: NodeId) -> Option<Ipv4Addr> {
        let bytes = node.as_bytes();
        let start = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let number = self.numbers.assign(node, start.into(), self.hosts().into())?;
        Some(self.address(number))
    }

    fn address(&self, number: u128) -> Ipv4Addr {
        let host = 2 + u32::try_from(number).expect("smaller than the number of hosts");
        Ipv4Addr::from(self.network + host)
    }

    /// `node` is gone; it gets the same address again unless all others are used before.
    pub fn release(&mut self, node: NodeId) {
        self.numbers.release(node);
    }

    /// `node` had `address` when this exit ran before. What is not of this pool is forgotten.
    fn recall(&mut self, node: NodeId, address: Ipv4Addr) {
        let number = u32::from(address).checked_sub(self.network + 2);
        if let Some(number) = number.filter(|number| *number < self.hosts()) {
            self.numbers.recall(node, number.into());
        }
    }

    fn all(&self) -> Vec<(NodeId, Ipv4Addr)> {
        let all = self.numbers.all().into_iter();
        all.map(|(node, number)| (node, self.address(number))).collect()
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

    fn hosts(&self) -> u128 {
        (1 << (128 - self.prefix)) - 2
    }

    /// The address of `node`, its own until it is released; `None` when all are used.
    pub fn assign(&mut self, node: NodeId) -> Option<Ipv6Addr> {
        let start = node.as_bytes().first_chunk().map(|bytes| u128::from_be_bytes(*bytes))?;
        let number = self.numbers.assign(node, start, self.hosts())?;
        Some(Ipv6Addr::from(self.network + 2 + number))
    }

    /// `node` is gone; it gets the same address again unless all others are used before.
    pub fn release(&mut self, node: NodeId) {
        self.numbers.release(node);
    }

    /// `node` had `address` when this exit ran before. What is not of this pool is forgotten.
    fn recall(&mut self, node: NodeId, address: Ipv6Addr) {
        let number = u128::from(address).checked_sub(self.network + 2);
        if let Some(number) = number.filter(|number| *number < self.hosts()) {
            self.numbers.recall(node, number);
        }
    }

    fn all(&self) -> Vec<(NodeId, Ipv6Addr)> {
        let all = self.numbers.all().into_iter();
        all.map(|(node, number)| (node, Ipv6Addr::from(self.network + 2 + number))).collect()
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
    fn who_has_been_away_for_longest_makes_room_for_a_newcomer() {
        let mut pool = AddressPool::new(Ipv4Addr::new(10, 77, 1, 8), 29).expect("a pool");
        let of: Vec<_> = (0..5).map(|n| pool.assign(node(n)).expect("room")).collect();
        assert_eq!((pool.room(), pool.assign(node(5))), (5, None), "all are used");
        pool.release(node(3));
        pool.release(node(1));
        assert_eq!(pool.assign(node(3)), Some(of[3]), "its own again");
        pool.release(node(3));
        assert_eq!(pool.assign(node(5)), Some(of[1]));
        assert_eq!(pool.assign(node(1)), Some(of[3]), "its own has gone to another, so has the last");
        assert_eq!(pool.assign(node(3)), None);
    }

    #[test]
    fn what_is_remembered_is_left_to_its_node_while_there_is_another() {
        let mut pool = AddressPool::new(Ipv4Addr::new(10, 77, 1, 8), 29).expect("a pool");
        let ip = |n| Ipv4Addr::new(10, 77, 1, n);
        pool.recall(node(0), ip(11));
        pool.recall(node(7), ip(11));
        for beyond in [ip(8), ip(9), ip(15), ip(16), Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
            pool.recall(node(8), beyond);
        }
        assert_eq!(pool.all(), [(node(0), ip(11))]);
        assert_eq!(pool.assign(node(1)), Some(ip(12)), "its own would be 11");
        assert_eq!(pool.assign(node(0)), Some(ip(11)), "it would be 10");
        assert_eq!(pool.all(), [(node(1), ip(12)), (node(0), ip(11))]);
    }

    #[test]
    fn a_large_pool_remembers_no_more_than_its_bound() {
        let mut numbers = Numbers::default();
        let id = |n: usize| NodeId::from_bytes(std::array::from_fn(|i| n.to_be_bytes()[i % 8]));
        for n in 0..NODES_MAX {
            numbers.assign(id(n), n as u128, 1 << 40).expect("room");
        }
        assert_eq!(numbers.assign(id(NODES_MAX), 0, 1 << 40), None);
        numbers.release(id(7));
        assert_eq!(numbers.assign(id(NODES_MAX), 0, 1 << 40), Some(7));
        numbers.recall(id(7), 1 << 30);
        assert_eq!(numbers.by_node.len(), NODES_MAX);
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
