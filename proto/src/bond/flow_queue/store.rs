//! Packets of all queues in one slab, each queue a linked list through it: pushing and popping never
//! allocate once the slab has grown, and its memory follows the total, not each queue's peak.

use super::Queued;

/// End of a list.
const NIL: u32 = u32::MAX;

/// One waiting packet.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) queued: Queued,
    /// CoDel has marked this packet instead of dropping it, and is done with it.
    pub(super) marked: bool,
}

#[derive(Debug)]
struct Node {
    /// `None` while the node is on the free list.
    waiting: Option<Waiting>,
    next: u32,
}

/// A first-in, first-out list of packets in a [`Store`].
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
    packets: usize,
    bytes: usize,
}

impl List {
    pub(super) const EMPTY: Self = Self { head: NIL, tail: NIL, packets: 0, bytes: 0 };

    pub(super) fn packets(&self) -> usize {
        self.packets
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[derive(Debug)]
pub(super) struct Store {
    nodes: Vec<Node>,
    free: u32,
}

impl Store {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), free: NIL }
    }

    pub(super) fn push_back(&mut self, list: &mut List, queued: Queued) {
        list.packets += 1;
        list.bytes += queued.packet.len();
        let node = Node { waiting: Some(Waiting { queued, marked: false }), next: NIL };
        let at = self.free;
        let at = if at == NIL {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        } else {
            self.free = self.nodes[at as usize].next;
            self.nodes[at as usize] = node;
            at
        };
        if list.tail == NIL {
            list.head = at;
        } else {
            self.nodes[list.tail as usize].next = at;
        }
        list.tail = at;
    }

    pub(super) fn pop_front(&mut self, list: &mut List) -> Option<Waiting> {
        let at = list.head;
        let node = self.nodes.get_mut(at as usize)?;
        let waiting = node.waiting.take()?;
        list.head = std::mem::replace(&mut node.next, self.free);
        self.free = at;
        if list.head == NIL {
            list.tail = NIL;
        }
        list.packets -= 1;
        list.bytes -= waiting.queued.packet.len();
        Some(waiting)
    }

    pub(super) fn front(&self, list: &List) -> Option<&Waiting> {
        self.nodes.get(list.head as usize)?.waiting.as_ref()
    }

    pub(super) fn front_mut(&mut self, list: &List) -> Option<&mut Waiting> {
        self.nodes.get_mut(list.head as usize)?.waiting.as_mut()
    }
}
