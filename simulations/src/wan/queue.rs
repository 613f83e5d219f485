//! The drop-tail queue in front of a link's rate.

use std::collections::VecDeque;
use std::time::Duration;

use mwb_proto::time::Time;

/// How much may wait in front of the rate, the packet being sent included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueLimit {
    /// IP bytes.
    Bytes(usize),
    /// As many bytes as the rate, or the mean rate of the trace, sends in this time.
    Time(Duration),
}

impl QueueLimit {
    /// The limit in bytes at `rate` bit/s. Without a rate nothing ever waits.
    pub fn bytes(self, rate: Option<u64>) -> usize {
        match (self, rate) {
            (Self::Bytes(bytes), _) => bytes,
            (Self::Time(time), Some(rate)) => (time.as_secs_f64() * rate as f64 / 8.0) as usize,
            (Self::Time(_), None) => usize::MAX,
        }
    }
}

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Waiting<P> {
    pub(super) packet: P,
    pub(super) bytes: usize,
    pub(super) arrived: Time,
}

/// First in, first out, bounded in bytes; what does not fit is refused.
#[derive(Debug)]
pub(super) struct DropTail<P> {
    waiting: VecDeque<Waiting<P>>,
    bytes: usize,
    bytes_max: usize,
    limit: usize,
}

impl<P> DropTail<P> {
    pub(super) fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, bytes_max: 0, limit }
    }

    /// Changes the limit; what waits already stays.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Takes the packet unless it would not fit; an empty queue takes one of any size, else a limit
    /// below one packet would let nothing through.
    pub(super) fn push(&mut self, item: Waiting<P>) -> Result<(), P> {
        if !self.waiting.is_empty() && self.bytes.saturating_add(item.bytes) > self.limit {
            return Err(item.packet);
        }
        self.bytes += item.bytes;
        self.bytes_max = self.bytes_max.max(self.bytes);
        self.waiting.push_back(item);
        Ok(())
    }

    pub(super) fn head(&self) -> Option<&Waiting<P>> {
        self.waiting.front()
    }

    pub(super) fn pop(&mut self) -> Option<Waiting<P>> {
        let item = self.waiting.pop_front()?;
        self.bytes -= item.bytes;
        Some(item)
    }

    /// Empties the queue and says how many packets that were.
    pub(super) fn clear(&mut self) -> usize {
        self.bytes = 0;
        let count = self.waiting.len();
        self.waiting.clear();
        count
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(bytes: usize) -> Waiting<usize> {
        Waiting { packet: bytes, bytes, arrived: Time::ZERO }
    }

    #[test]
    fn a_limit_in_time_follows_the_rate() {
        let limit = QueueLimit::Time(Duration::from_millis(100));
        assert_eq!(limit.bytes(Some(8_000_000)), 100_000);
        assert_eq!(limit.bytes(None), usize::MAX);
        assert_eq!(QueueLimit::Bytes(7).bytes(Some(1)), 7);
    }

    #[test]
    fn refuses_what_does_not_fit_but_never_the_first() {
        let mut queue = DropTail::new(1000);
        assert!(queue.push(item(1500)).is_ok());
        assert_eq!(queue.push(item(1)), Err(1));
        assert_eq!(queue.pop().map(|w| w.bytes), Some(1500));
        assert!(queue.push(item(600)).is_ok());
        assert!(queue.push(item(400)).is_ok());
        assert_eq!(queue.push(item(1)), Err(1));
        assert_eq!((queue.bytes(), queue.bytes_max()), (1000, 1500));
        assert_eq!(queue.clear(), 2);
        assert!(queue.pop().is_none());
    }
}
