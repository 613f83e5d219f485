//! What does not wait behind bulk: acknowledgements, SYN, DNS, small echoes.
//!
//! Two lists, one of TCP and one of all else, so that an echo does not stand behind a flood of acknowledgements; neither gets
//! more than [`LEAD`] ahead of the other. Acknowledgements are cumulative: where they flood a thin uplink, a new one takes the
//! place of the oldest. What waits in the flow queues has its turns: see [`Express::owed`].

use std::collections::VecDeque;

use crate::bond::flow_queue::Queued;
use crate::packet::{self, tcp_flags};

/// Packets of each kind that may wait here; more go through the flow queues, or take the place of old acknowledgements.
const WAITING_MAX: usize = 256;
/// Bytes by which one list may be ahead of the other: one full packet.
const LEAD: i64 = 1514;

/// The express packets that wait.
#[derive(Debug, Default)]
pub(super) struct Express {
    tcp: VecDeque<Queued>,
    others: VecDeque<Queued>,
    /// Bytes by which the others are ahead of TCP.
    lead: i64,
    /// Bytes by which all of these are ahead of what waits in the flow queues.
    owed: i64,
    dropped: u64,
}

impl Express {
    /// Takes a packet, unless there is no room for it; then it comes back.
    pub(super) fn push(&mut self, queued: Queued) -> Option<Queued> {
        let list = if packet::is_tcp(&queued.packet) { &mut self.tcp } else { &mut self.others };
        if list.len() >= WAITING_MAX {
            if !list.front().is_some_and(|oldest| is_pure_ack(&oldest.packet)) {
                return Some(queued);
            }
            list.pop_front();
            self.dropped += 1;
        }
        list.push_back(queued);
        None
    }

    fn others_first(&self) -> bool {
        !self.others.is_empty() && (self.tcp.is_empty() || self.lead < LEAD)
    }

    /// The packet that goes next.
    pub(super) fn front(&self) -> Option<&Queued> {
        if self.others_first() { self.others.front() } else { self.tcp.front() }
    }

    /// Takes it. `beside`: something waits in the flow queues.
    pub(super) fn pop_front(&mut self, beside: bool) -> Option<Queued> {
        let others = self.others_first();
        let queued = if others { self.others.pop_front() } else { self.tcp.pop_front() }?;
        let len = queued.packet.len() as i64;
        self.lead = (self.lead + if others { len } else { -len }).clamp(0, LEAD);
        self.owed = if beside { (self.owed + len).min(LEAD) } else { 0 };
        Some(queued)
    }

    /// Bytes by which the flow queues have got less than this queue while they had something to send.
    pub(super) fn owed(&self) -> i64 {
        self.owed
    }

    /// The flow queues have sent so many bytes.
    pub(super) fn on_queue_sent(&mut self, bytes: usize) {
        self.owed = (self.owed - bytes as i64).max(-LEAD);
    }

    /// Acknowledgements that were dropped for newer ones.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Packets waiting.
    pub(super) fn len(&self) -> usize {
        self.tcp.len() + self.others.len()
    }
}

/// Whether the packet is a TCP segment that acknowledges and does nothing else.
fn is_pure_ack(bytes: &[u8]) -> bool {
    let Ok(inner) = packet::parse(bytes) else { return false };
    let signals = tcp_flags::ECE | tcp_flags::CWR;
    inner.tcp.is_some_and(|tcp| tcp.payload_len == 0 && tcp.flags & !signals == tcp_flags::ACK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bond::classify::Classifier;
    use crate::buf::BufPool;
    use crate::packet::{PROTO_ICMP, PROTO_TCP, tcp_flags};
    use crate::time::Time;

    fn queued(packet: &[u8]) -> Queued {
        let packet = BufPool::new(2048, 1).copy_from(packet).expect("fits");
        let verdict = Classifier::new([1, 2]).classify(&packet).expect("valid");
        assert!(verdict.express);
        Queued { packet, verdict, enqueued: Time::ZERO }
    }

    fn ip(protocol: u8, len: usize) -> Vec<u8> {
        let mut p = vec![0; len];
        p[0] = 0x45;
        p[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        p[9] = protocol;
        p
    }

    fn ack() -> Queued {
        let mut p = ip(PROTO_TCP, 40);
        p[32] = 0x50;
        p[33] = tcp_flags::ACK;
        queued(&p)
    }

    fn syn() -> Queued {
        let mut p = ip(PROTO_TCP, 40);
        p[32] = 0x50;
        p[33] = tcp_flags::SYN;
        queued(&p)
    }

    fn echo() -> Queued {
        let mut p = ip(PROTO_ICMP, 84);
        p[20] = 8;
        queued(&p)
    }

    #[test]
    fn an_echo_does_not_stand_behind_acknowledgements_nor_they_behind_echoes() {
        let mut express = Express::default();
        (0..100).for_each(|_| assert!(express.push(ack()).is_none()));
        (0..50).for_each(|_| assert!(express.push(echo()).is_none()));
        let first: Vec<usize> =
            std::iter::from_fn(|| express.pop_front(false)).take(60).map(|q| q.packet.len()).collect();
        assert_eq!(first[0], 84, "the echo first");
        assert!(first.iter().filter(|&&len| len == 40).count() > 15, "and then by turns: {first:?}");
    }

    #[test]
    fn the_flow_queues_are_owed_what_leaves_while_they_wait() {
        let mut express = Express::default();
        (0..100).for_each(|_| assert!(express.push(ack()).is_none()));
        (0..10).for_each(|_| assert!(express.pop_front(true).is_some()));
        assert_eq!(express.owed(), 400);
        express.on_queue_sent(1200);
        assert_eq!(express.owed(), -800);
        (0..80).for_each(|_| assert!(express.pop_front(true).is_some()));
        assert_eq!(express.owed(), LEAD, "and no more than a packet");
        assert!(express.pop_front(false).is_some());
        assert_eq!(express.owed(), 0, "nothing waits there");
    }

    #[test]
    fn when_there_is_no_room_the_oldest_acknowledgement_goes_and_nothing_else() {
        let mut express = Express::default();
        (0..WAITING_MAX).for_each(|_| assert!(express.push(ack()).is_none()));
        assert!(express.push(echo()).is_none(), "it has a list of its own");
        assert!(express.push(ack()).is_none());
        assert_eq!((express.len(), express.dropped()), (WAITING_MAX + 1, 1));
        (1..WAITING_MAX).for_each(|_| assert!(express.push(echo()).is_none()));
        assert!(express.push(echo()).is_some(), "it comes back");
        let mut syns = Express::default();
        (0..WAITING_MAX).for_each(|_| assert!(syns.push(syn()).is_none()));
        assert!(syns.push(ack()).is_some(), "no SYN is dropped for an acknowledgement");
    }
}
