//! Pooled packet buffers: one inner packet or frame body each, recycled on drop.
//!
//! The pool bounds how many idle buffers are kept, not how many are alive: bounds on live packets
//! are kept by the queues that hold them (flow queue, resend ring, resequencer), in bytes.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

/// A shared free list of equally sized buffers. Cheap to clone.
#[derive(Clone)]
pub struct BufPool {
    inner: Arc<PoolInner>,
}

/// The buffer freed last is lent first: it is still in the processor's cache, where the one that has rested longest
/// among thousands is not.
struct PoolInner {
    idle: Mutex<Vec<Box<[u8]>>>,
    idle_max: usize,
    capacity: usize,
}

impl PoolInner {
    /// The free list, unless somebody else has it now: the allocator is nearer than a sleep.
    fn idle(&self) -> Option<MutexGuard<'_, Vec<Box<[u8]>>>> {
        match self.idle.try_lock() {
            Ok(idle) => Some(idle),
            // A list of buffers is whole after each of its operations.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl BufPool {
    /// A pool of buffers of `capacity` bytes that keeps at most `idle_max` of them when unused.
    ///
    /// # Panics
    /// When `capacity` or `idle_max` is zero, or `capacity` does not fit 32 bits.
    pub fn new(capacity: usize, idle_max: usize) -> Self {
        assert!(capacity > 0 && idle_max > 0, "a pool holds something");
        assert!(u32::try_from(capacity).is_ok(), "a packet is short");
        Self { inner: Arc::new(PoolInner { idle: Mutex::default(), idle_max, capacity }) }
    }

    /// An empty buffer (length 0) with the pool's capacity.
    pub fn take(&self) -> PacketBuf {
        let idle = self.inner.idle().and_then(|mut idle| idle.pop());
        let data = idle.unwrap_or_else(|| vec![0; self.inner.capacity].into_boxed_slice());
        PacketBuf { data, start: 0, end: 0, pool: Arc::clone(&self.inner) }
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
            .field("idle", &self.inner.idle().map(|idle| idle.len()))
            .finish()
    }
}

/// One packet in a pooled buffer; dereferences to its bytes.
pub struct PacketBuf {
    data: Box<[u8]>,
    /// The packet is `start..end` of the buffer.
    start: u32,
    end: u32,
    pool: Arc<PoolInner>,
}

impl PacketBuf {
    fn range(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// Appends `bytes`; returns false and changes nothing when they do not fit.
    #[must_use]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> bool {
        let from = self.end as usize;
        let Some(room) = self.data.get_mut(from..from + bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.end += bytes.len() as u32;
        true
    }

    /// A part of the packet in a buffer of its own, from the same pool.
    ///
    /// # Panics
    /// When the part lies outside of the packet.
    pub fn copy_of(&self, part: Range<usize>) -> Self {
        let pool = BufPool { inner: Arc::clone(&self.pool) };
        let mut copy = pool.take();
        let fits = copy.extend_from_slice(&self[part]);
        debug_assert!(fits, "all buffers of a pool are equally long");
        copy
    }

    /// Drops the first `len` bytes of the packet, without moving the others. They are lost as room until
    /// [`set_len`](Self::set_len).
    ///
    /// # Panics
    /// When the packet is shorter.
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.len(), "no more than there is");
        self.start += len as u32;
    }

    /// The whole capacity, for a reader to fill before [`set_len`](Self::set_len).
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Declares the first `len` bytes of the capacity to be the packet.
    ///
    /// # Panics
    /// When `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.data.len(), "length within capacity");
        (self.start, self.end) = (0, len as u32);
    }

    /// Capacity in bytes.
    pub fn capacity(&self) -> usize {
        self.data.len()
    }
}

impl Deref for PacketBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.data[self.range()]
    }
}

impl DerefMut for PacketBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let range = self.range();
        &mut self.data[range]
    }
}

impl Drop for PacketBuf {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        // A full free list means that the load has fallen; the buffer goes back to the allocator.
        if data.len() == self.pool.capacity
            && let Some(mut idle) = self.pool.idle()
            && idle.len() < self.pool.idle_max
        {
            idle.push(data);
        }
    }
}

impl fmt::Debug for PacketBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PacketBuf({} B)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(pool: &BufPool) -> usize {
        pool.inner.idle().expect("nobody else").len()
    }

    #[test]
    fn buffers_come_back_empty_and_refuse_what_does_not_fit() {
        let pool = BufPool::new(8, 2);
        let mut a = pool.copy_from(b"12345678").expect("fits");
        assert!(!a.extend_from_slice(b"9"));
        assert_eq!(&*a, b"12345678");
        drop(a);
        assert_eq!(idle(&pool), 1);
        assert_eq!(pool.take().len(), 0);
        assert!(pool.copy_from(b"123456789").is_none());
    }

    #[test]
    fn idle_buffers_are_bounded() {
        let pool = BufPool::new(8, 2);
        let held: Vec<_> = (0..5).map(|_| pool.take()).collect();
        drop(held);
        assert_eq!(idle(&pool), 2);
    }

    #[test]
    fn a_front_is_cut_off_without_a_copy() {
        let pool = BufPool::new(8, 2);
        let mut buf = pool.copy_from(b"123456").expect("fits");
        buf.advance(2);
        assert_eq!(&*buf, b"3456");
        assert!(!buf.extend_from_slice(b"789"), "what was cut off is not room");
        assert!(buf.extend_from_slice(b"78"));
        buf.advance(6);
        assert!(buf.is_empty());
        buf.set_len(8);
        assert_eq!(&*buf, b"12345678");
    }

    #[test]
    fn a_part_is_copied_into_a_buffer_of_the_same_pool() {
        let pool = BufPool::new(8, 4);
        let buf = pool.copy_from(b"12345678").expect("fits");
        let part = buf.copy_of(2..5);
        assert_eq!((&*part, part.capacity()), (&b"345"[..], 8));
        drop(buf);
        drop(part);
        assert_eq!(idle(&pool), 2);
    }

    #[test]
    fn the_buffer_freed_last_is_lent_first() {
        let pool = BufPool::new(8, 4);
        let (a, b) = (pool.copy_from(b"a").expect("fits"), pool.copy_from(b"b").expect("fits"));
        drop(a);
        drop(b);
        assert_eq!(pool.take().spare()[0], b'b');
    }
}
