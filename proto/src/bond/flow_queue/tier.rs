//! The queues of a [`FlowQueue`](super::FlowQueue): what each knows of itself, and in which tier it is.

use std::collections::VecDeque;

use super::codel::CoDel;
use super::store::List;
use crate::wire::v2::Class;

/// Which list a queue is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Idle,
    New,
    Old,
}

#[derive(Debug)]
pub(super) struct FlowState {
    pub(super) list: List,
    pub(super) place: Place,
    /// Bytes it may still send in this round; a packet may overdraw it.
    pub(super) deficit: i64,
    /// Quantum by the class of the packet that came last.
    pub(super) quantum: i64,
    pub(super) codel: CoDel,
}

impl FlowState {
    const IDLE: Self =
        Self { list: List::EMPTY, place: Place::Idle, deficit: 0, quantum: 0, codel: CoDel::new() };
}

/// Which queues: tiers differ in who goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rank {
    Express,
    Bulk,
    Spare,
}

impl Rank {
    pub(super) const ALL: [Self; 3] = [Self::Express, Self::Bulk, Self::Spare];
}

/// Queues scheduled among each other by DRR++.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) flows: Vec<FlowState>,
    pub(super) new: VecDeque<u32>,
    pub(super) old: VecDeque<u32>,
    pub(super) packets: usize,
}

impl Tier {
    pub(super) fn new(queues: usize) -> Self {
        Self {
            flows: (0..queues).map(|_| FlowState::IDLE).collect(),
            new: VecDeque::new(),
            old: VecDeque::new(),
            packets: 0,
        }
    }
}

/// A queue: the tier and its index there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) rank: Rank,
    pub(super) index: usize,
}

/// Share of a class among backlogged flows.
pub(super) const fn weight(class: Class) -> usize {
    match class {
        Class::Voice => 4,
        Class::Video => 3,
        Class::BestEffort => 2,
        Class::Background => 1,
    }
}
