//! What must hold at every moment of a simulation, whatever the links do.
//!
//! - In = sent + waiting + dropped by reason, at the sender; and what was sent is delivered, held by one of the two
//!   machines, or given up: nothing vanishes.
//! - No inner packet comes out twice, none that never went in, none altered (but for ECN).
//! - Ordered packets of a flow come out in order, except for those that the resequencer counts as late.
//! - Memory stays under its bounds.
//! - No path sequence is used twice; batches and datagrams keep their limits.

use mwb_proto::bond::{ReceiverSnapshot, SenderSnapshot};
use mwb_proto::time::Time;

use super::{Scenario, Side};

/// Violations kept in words; all are counted.
const KEPT: usize = 20;
/// Bytes a sender may hold for resends: above what 4,096 datagrams on each of five paths could need.
const HELD_BYTES_MAX: usize = 64 << 20;

/// One direction of one flow, as seen from outside.
#[derive(Debug)]
struct Stream {
    /// Where its packets go in.
    from: Side,
    name: String,
    emitted: u32,
    delivered: Vec<u64>,
    last_ordered: u32,
}

/// Follows every inner packet by its number.
#[derive(Debug)]
pub(super) struct Ledger {
    streams: Vec<Stream>,
    emitted: [u64; 2],
    /// Of these, not taken in by the node.
    unread: [u64; 2],
    delivered: [u64; 2],
    overtaken: [u64; 2],
    violations: Vec<String>,
    count: u64,
}

impl Ledger {
    /// A ledger of streams given by where their packets go in and a name.
    pub(super) fn new(streams: Vec<(Side, String)>) -> Self {
        let stream = |(from, name)| Stream { from, name, emitted: 0, delivered: Vec::new(), last_ordered: 0 };
        Self {
            streams: streams.into_iter().map(stream).collect(),
            emitted: [0; 2],
            unread: [0; 2],
            delivered: [0; 2],
            overtaken: [0; 2],
            violations: Vec::new(),
            count: 0,
        }
    }

    pub(super) fn violation(&mut self, now: Time, text: String) {
        self.count += 1;
        if self.violations.len() < KEPT {
            self.violations.push(format!("{:.6} s: {text}", now.as_secs_f64()));
        }
    }

    /// All violations in words, and the number of those beyond the first few.
    pub(super) fn into_violations(mut self) -> Vec<String> {
        let more = self.count - self.violations.len() as u64;
        if more > 0 {
            self.violations.push(format!("and {more} more"));
        }
        self.violations
    }

    /// Packet `number` of a stream went in; numbers count from one.
    pub(super) fn emit(&mut self, stream: usize, number: u32) {
        let stream = &mut self.streams[stream];
        stream.emitted = number;
        self.emitted[stream.from.index()] += 1;
    }

    /// So many packets from `side` wait outside the machines, or were lost there.
    pub(super) fn set_unread(&mut self, side: Side, packets: u64) {
        self.unread[side.index()] = packets;
    }

    /// Packet `number` of a stream came out.
    pub(super) fn deliver(&mut self, stream: usize, number: u32, ordered: bool, now: Time) {
        let entry = &mut self.streams[stream];
        if number == 0 || number > entry.emitted {
            let text = format!("{}: packet {number} was never sent", entry.name);
            return self.violation(now, text);
        }
        let (word, bit) = (number as usize / 64, 1u64 << (number % 64));
        if entry.delivered.len() <= word {
            entry.delivered.resize(word + 1, 0);
        }
        if entry.delivered[word] & bit != 0 {
            let text = format!("{}: packet {number} delivered twice", entry.name);
            return self.violation(now, text);
        }
        entry.delivered[word] |= bit;
        let from = entry.from.index();
        self.delivered[from] += 1;
        if ordered {
            if number < entry.last_ordered {
                self.overtaken[from] += 1;
            }
            entry.last_ordered = entry.last_ordered.max(number);
        }
    }

    /// Something came out that is none of ours.
    pub(super) fn unknown(&mut self, side: Side, now: Time) {
        self.violation(now, format!("{side:?}: a packet came out that is damaged or not ours"));
    }

    /// Balances the books of the direction that begins at `side`.
    pub(super) fn balance(
        &mut self,
        side: Side,
        sender: &SenderSnapshot,
        receiver: &ReceiverSnapshot,
        held_bytes: usize,
        scenario: &Scenario,
        now: Time,
    ) {
        let (emitted, delivered) = (self.emitted[side.index()], self.delivered[side.index()]);
        let emitted = emitted - self.unread[side.index()];
        let accounted = sender.packets_sent
            + sender.queue_packets as u64
            + sender.dropped_codel
            + sender.dropped_overflow
            + sender.dropped_stale
            + sender.dropped_invalid;
        if emitted != sender.packets_in || emitted != accounted {
            self.violation(now, format!("{side:?}: {emitted} packets in, {accounted} accounted for"));
        }
        let missing = sender.packets_sent.saturating_sub(delivered);
        let held = sender.held_packets as u64 + receiver.held_packets as u64;
        if delivered > sender.packets_sent || missing > held + sender.given_up + receiver.too_old {
            self.violation(
                now,
                format!(
                    "{side:?}: {} sent, {delivered} delivered, {} held for resends, {} held in lanes, \
                     {} given up, {} too old",
                    sender.packets_sent,
                    sender.held_packets,
                    receiver.held_packets,
                    sender.given_up,
                    receiver.too_old
                ),
            );
        }
        let overtaken = self.overtaken[side.index()];
        if overtaken > receiver.late {
            self.violation(now, format!("{side:?}: {overtaken} overtaken, {} late", receiver.late));
        }
        if receiver.held_bytes > scenario.receiver.reorder_bytes_max {
            self.violation(now, format!("{side:?}: {} B held in lanes", receiver.held_bytes));
        }
        if sender.queue_bytes > scenario.sender.queue_bytes_max || held_bytes > HELD_BYTES_MAX {
            self.violation(now, format!("{side:?}: {} B queued, {held_bytes} B held", sender.queue_bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wan::{DirectionSpec, LinkSpec};

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(vec![(Side::Exit, "data".to_owned())]);
        (1..=5).for_each(|number| ledger.emit(0, number));
        ledger
    }

    fn balance(ledger: &mut Ledger, sender: &SenderSnapshot, receiver: &ReceiverSnapshot) {
        let link = LinkSpec::symmetric("a", DirectionSpec::default());
        ledger.balance(Side::Exit, sender, receiver, 0, &Scenario::new(vec![link]), Time::ZERO);
    }

    #[test]
    fn what_must_not_happen_is_noticed() {
        let mut ledger = ledger();
        ledger.deliver(0, 1, true, Time::ZERO);
        assert_eq!(ledger.count, 0);
        ledger.deliver(0, 1, true, Time::ZERO);
        assert_eq!(ledger.count, 1, "twice");
        ledger.deliver(0, 6, true, Time::ZERO);
        assert_eq!(ledger.count, 2, "never sent");
        assert_eq!(ledger.into_violations().len(), 2);
    }

    #[test]
    fn books_that_do_not_balance_are_noticed() {
        let sent =
            SenderSnapshot { packets_in: 5, packets_sent: 4, queue_packets: 1, ..SenderSnapshot::default() };
        let mut books = ledger();
        (1..=4).for_each(|number| books.deliver(0, number, true, Time::ZERO));
        balance(&mut books, &sent, &ReceiverSnapshot::default());
        assert_eq!(books.count, 0);
        balance(
            &mut books,
            &SenderSnapshot { queue_packets: 0, ..sent.clone() },
            &ReceiverSnapshot::default(),
        );
        assert_eq!(books.count, 1, "one packet vanished in the queue");

        let mut books = ledger();
        (1..=3).for_each(|number| books.deliver(0, number, true, Time::ZERO));
        balance(&mut books, &sent, &ReceiverSnapshot::default());
        assert_eq!(books.count, 1, "one packet vanished on the way");
        balance(&mut books, &SenderSnapshot { held_packets: 1, ..sent }, &ReceiverSnapshot::default());
        assert_eq!(books.count, 1, "held for a resend is not lost");
    }

    #[test]
    fn overtaking_must_be_owned_up_to() {
        let sent =
            SenderSnapshot { packets_in: 5, packets_sent: 5, held_packets: 3, ..SenderSnapshot::default() };
        let mut books = ledger();
        books.deliver(0, 3, true, Time::ZERO);
        books.deliver(0, 2, true, Time::ZERO);
        balance(&mut books, &sent, &ReceiverSnapshot { late: 1, ..ReceiverSnapshot::default() });
        assert_eq!(books.count, 0);
        balance(&mut books, &sent, &ReceiverSnapshot::default());
        assert_eq!(books.count, 1);
    }
}
