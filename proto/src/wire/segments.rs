//! Splitting of a GRO buffer into the datagrams it was merged from.

use std::ops::Range;

/// The datagrams of one receive buffer of `buffer_len` bytes: all are `stride` bytes long, the last
/// one may be shorter (UDP GRO). A `stride` of zero, or one not below the length, means one datagram;
/// an empty buffer holds none.
pub fn segments(buffer_len: usize, stride: usize) -> Segments {
    Segments { next: 0, end: buffer_len, stride: if stride == 0 { buffer_len } else { stride } }
}

/// Iterator of [`segments`].
#[derive(Clone, Debug)]
pub struct Segments {
    next: usize,
    end: usize,
    stride: usize,
}

impl Iterator for Segments {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        if self.next >= self.end {
            return None;
        }
        let start = self.next;
        self.next = start.saturating_add(self.stride).min(self.end);
        Some(start..self.next)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = match self.stride {
            0 => 0,
            stride => (self.end - self.next).div_ceil(stride),
        };
        (left, Some(left))
    }
}

impl ExactSizeIterator for Segments {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_cut_a_buffer_into_its_datagrams() {
        let cut = |len, stride| segments(len, stride).map(|r| (r.start, r.end)).collect::<Vec<_>>();
        assert_eq!(cut(0, 0), []);
        assert_eq!(cut(0, 1200), []);
        assert_eq!(cut(40, 0), [(0, 40)]);
        assert_eq!(cut(40, 1200), [(0, 40)]);
        assert_eq!(cut(40, 40), [(0, 40)]);
        assert_eq!(cut(100, 40), [(0, 40), (40, 80), (80, 100)]);
        assert_eq!(cut(10, usize::MAX), [(0, 10)]);
        assert_eq!(segments(100, 40).len(), 3);
    }
}
