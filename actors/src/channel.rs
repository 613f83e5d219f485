//! Bounded queues of batches between drivers, owned by a supervisor and lent to both ends.
//!
//! A queue survives the death of its writer and of its reader: what was in it is still there for the
//! next incarnation. Writing never waits; what does not fit is handed back and counted, because a
//! driver that waits on a slow neighbour would stop serving the others.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use serde::Serialize;
use tokio::sync::Notify;

/// A bounded queue with one waiting reader. Cheap to clone; all clones are the same queue.
pub struct BatchQueue<T> {
    inner: Arc<Inner<T>>,
}

struct Inner<T> {
    queue: ArrayQueue<T>,
    bell: Arc<Notify>,
    pushed: AtomicU64,
    popped: AtomicU64,
    dropped_full: AtomicU64,
}

/// Counters of one queue since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueueStats {
    /// Items accepted.
    pub pushed: u64,
    /// Items taken out.
    pub popped: u64,
    /// Items handed back to their writer because the queue was full.
    pub dropped_full: u64,
    /// Items waiting now.
    pub waiting: usize,
}

impl<T> BatchQueue<T> {
    /// A queue of at most `bound` items.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn new(bound: usize) -> Self {
        Self::with_bell(bound, Arc::new(Notify::new()))
    }

    /// A queue that rings `bell`, so that one reader can wait for several queues at once. The reader
    /// must look into all of them after each ring.
    ///
    /// # Panics
    /// When `bound` is zero.
    pub fn with_bell(bound: usize, bell: Arc<Notify>) -> Self {
        Self {
            inner: Arc::new(Inner {
                queue: ArrayQueue::new(bound),
                bell,
                pushed: AtomicU64::new(0),
                popped: AtomicU64::new(0),
                dropped_full: AtomicU64::new(0),
            }),
        }
    }

    /// Appends `item` and wakes the reader, or hands it back when the queue is full.
    ///
    /// # Errors
    /// The item itself, counted as dropped: the caller decides what to do with it.
    pub fn try_push(&self, item: T) -> Result<(), T> {
        match self.inner.queue.push(item) {
            Ok(()) => {
                self.inner.pushed.fetch_add(1, Ordering::Relaxed);
                self.inner.bell.notify_one();
                Ok(())
            }
            Err(item) => {
                self.inner.dropped_full.fetch_add(1, Ordering::Relaxed);
                // The reader is behind; make sure that it is not asleep.
                self.inner.bell.notify_one();
                Err(item)
            }
        }
    }

    /// Counts an item as dropped that its writer did not even bring, for a bound of its own.
    pub(crate) fn count_refused(&self) {
        self.inner.dropped_full.fetch_add(1, Ordering::Relaxed);
        self.inner.bell.notify_one();
    }

    /// Takes the oldest item.
    pub fn pop(&self) -> Option<T> {
        let item = self.inner.queue.pop()?;
        self.inner.popped.fetch_add(1, Ordering::Relaxed);
        Some(item)
    }

    /// Returns when an item is waiting. Safe to cancel. For a queue with a shared bell use the bell.
    pub async fn wait(&self) {
        while self.is_empty() {
            self.inner.bell.notified().await;
        }
    }

    /// Wakes the reader without an item.
    pub fn ring(&self) {
        self.inner.bell.notify_one();
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.inner.queue.is_empty()
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.inner.queue.len()
    }

    /// The most items that can wait.
    pub fn bound(&self) -> usize {
        self.inner.queue.capacity()
    }

    /// The counters.
    pub fn stats(&self) -> QueueStats {
        QueueStats {
            pushed: self.inner.pushed.load(Ordering::Relaxed),
            popped: self.inner.popped.load(Ordering::Relaxed),
            dropped_full: self.inner.dropped_full.load(Ordering::Relaxed),
            waiting: self.len(),
        }
    }
}

impl<T> Clone for BatchQueue<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> fmt::Debug for BatchQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchQueue({}/{})", self.len(), self.bound())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_queue_hands_back_and_counts() {
        let queue = BatchQueue::new(2);
        assert_eq!(queue.try_push(1), Ok(()));
        assert_eq!(queue.try_push(2), Ok(()));
        assert_eq!(queue.try_push(3), Err(3));
        assert_eq!(queue.pop(), Some(1));
        assert_eq!(queue.try_push(4), Ok(()));
        assert_eq!(queue.stats(), QueueStats { pushed: 3, popped: 1, dropped_full: 1, waiting: 2 });
    }

    #[tokio::test]
    async fn items_and_wake_ups_survive_the_death_of_either_end() {
        let queue = BatchQueue::new(8);
        let writer = tokio::spawn({
            let queue = queue.clone();
            async move {
                queue.try_push(1).expect("room");
                panic!("the writer dies");
            }
        });
        assert!(writer.await.is_err());

        // A reader that dies while it waits does not take the next wake-up with it.
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move {
                assert_eq!(queue.pop(), Some(1));
                queue.wait().await;
            }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        queue.try_push(2).expect("room");
        reader.abort();
        let _ = reader.await;
        tokio::time::timeout(Duration::from_secs(1), queue.wait()).await.expect("woken");
        assert_eq!(queue.pop(), Some(2));
    }
}
