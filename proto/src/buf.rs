//! Pooled packet buffers: one inner packet or frame body each, recycled on drop.
//!
//! The pool bounds how many idle buffers are kept, not how many are alive: bounds on live packets
//! are kept by the queues that hold them (flow queue, resend ring, resequencer), in bytes.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

/// A shared free list of equally sized buffers. Cheap to clone.
#[derive(Clone)]
pub struct BufPool {
    inner: Arc<PoolInner>,
}

struct PoolInner {
    idle: ArrayQueue<Box<[u8]>>,
    capacity: usize,
}

impl BufPool {
    /// A pool of buffers of `capacity` bytes that keeps at most `idle_max` of them when unused.
    ///
    /// # Panics
    /// When `capacity` or `idle_max` is zero.
    pub fn new(capacity: usize, idle_max: usize) -> Self {
        assert!(capacity > 0 && idle_max > 0, "a pool holds something");
        Self { inner: Arc::new(PoolInner { idle: ArrayQueue::new(idle_max), capacity }) }
    }

    /// An empty buffer (length 0) with the pool's capacity.
    pub fn take(&self) -> PacketBuf {
        let data = self.inner.idle.pop().unwrap_or_else(|| vec![0; self.inner.capacity].into_boxed_slice());
        PacketBuf { data, len: 0, pool: Arc::clone(&self.inner) }
    }

    /// A buffer holding a copy of `bytes`; `None` when they exceed the pool's capacity.
    pub fn copy_from(&self, bytes: &[u8]) -> Option<PacketBuf> {
        let mut buf = self.take();
        buf.extend_from_slice(bytes).then_some(buf)
    }

    /// Capacity of each buffer, in bytes.
    pub fn capacity(&self) -> usize {
        self.inner.capacity
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool")
            .field("capacity", &self.inner.capacity)
            .field("idle", &self.inner.idle.len())
            .finish()
    }
}

/// One packet in a pooled buffer; dereferences to its bytes.
pub struct PacketBuf {
    data: Box<[u8]>,
    len: usize,
    pool: Arc<PoolInner>,
}

impl PacketBuf {
    /// Appends `bytes`; returns false and changes nothing when they do not fit.
    #[must_use]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> bool {
        let end = self.len + bytes.len();
        if end > self.data.len() {
            return false;
        }
        self.data[self.len..end].copy_from_slice(bytes);
        self.len = end;
        true
    }

    /// The whole capacity, for a reader to fill before [`set_len`](Self::set_len).
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Declares the first `len` bytes to be the packet.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.data.len(), "length within capacity");
        self.len = len;
    }

    /// Capacity in bytes.
    pub fn capacity(&self) -> usize {
        self.data.len()
    }
}

impl Deref for PacketBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

impl DerefMut for PacketBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.data[..self.len]
    }
}

impl Drop for PacketBuf {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        if data.len() == self.pool.capacity {
            // A full free list means that the load has fallen; the buffer goes back to the allocator.
            let _ = self.pool.idle.push(data);
        }
    }
}

impl fmt::Debug for PacketBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketBuf({} B)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_empty_and_refuse_what_does_not_fit() {
        let pool = BufPool::new(8, 2);
        let mut a = pool.copy_from(b"12345678").expect("fits");
        assert!(!a.extend_from_slice(b"9"));
        assert_eq!(&*a, b"12345678");
        drop(a);
        assert_eq!(pool.inner.idle.len(), 1);
        assert_eq!(pool.take().len(), 0);
        assert!(pool.copy_from(b"123456789").is_none());
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let pool = BufPool::new(8, 2);
        let held: Vec<_> = (0..5).map(|_| pool.take()).collect();
        drop(held);
        assert_eq!(pool.inner.idle.len(), 2);
    }
}
