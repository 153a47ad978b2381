// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the pieces of packets are collected: the buffers of descriptor chains, in order.

use std::fmt;
use std::slice;
use std::sync::Arc;

use super::memory::MemoryMap;
use super::pieces::{MAX_PIECES, Pieces, PiecesMut, total};

/// Buffers of one or more descriptor chains, in order.
///
/// # Invariants
/// Every piece lies in a region of `map`. The pieces from `first` on are `len` octets.
pub struct PieceList {
    iov: Vec<libc::iovec>,
    /// Pieces before this one are forgotten; they are only moved over now and then.
    first: usize,
    len: usize,
    map: Arc<MemoryMap>,
}

// SAFETY: as for MemoryMap, which `map` keeps alive.
unsafe impl Send for PieceList {}

impl fmt::Debug for PieceList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PieceList")
            .field("count", &self.count())
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl PieceList {
    /// An empty list of pieces of `map`.
    pub fn new(map: Arc<MemoryMap>) -> Self {
        PieceList {
            iov: Vec::with_capacity(2 * MAX_PIECES),
            first: 0,
            len: 0,
            map,
        }
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.iov.len() - self.first
    }

    /// Octets in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn pieces(&self) -> &[libc::iovec] {
        self.iov.get(self.first..).unwrap_or_default()
    }

    /// Appends `len` octets at guest address `addr`. `false`, and nothing appended, when any octet
    /// is not guest memory.
    #[inline]
    pub fn gather(&mut self, addr: u64, len: u32) -> bool {
        let gathered = self.map.gather(addr, len, &mut self.iov);
        if gathered {
            // Cannot overflow: there are some thousand pieces at most, each below 2^32.
            self.len += len as usize;
        }
        gathered
    }

    /// As `gather`, of octets that are one piece, as nearly always; else nothing is appended.
    #[inline]
    pub(super) fn gather_one(&mut self, addr: u64, len: u32) -> bool {
        let gathered = self.map.gather_one(addr, len, &mut self.iov);
        if gathered {
            // As in `gather`.
            self.len += len as usize;
        }
        gathered
    }

    /// Forgets all.
    #[inline]
    pub fn clear(&mut self) {
        self.iov.clear();
        self.first = 0;
        self.len = 0;
    }

    /// Forgets all but the first `count` pieces.
    pub fn truncate(&mut self, count: usize) {
        let rest = self.pieces().get(count..).unwrap_or_default();
        self.len -= total(rest);
        self.iov.truncate(self.first + count);
    }

    /// Forgets the first piece.
    #[inline]
    pub fn remove_first(&mut self) {
        let Some(piece) = self.iov.get(self.first) else {
            return;
        };
        if self.first + 1 == self.iov.len() {
            // The next is where this was, in the cache.
            return self.clear();
        }
        self.len -= piece.iov_len;
        self.first += 1;
        self.move_up();
    }

    /// Forgets the first `count` pieces.
    pub fn remove_front(&mut self, count: usize) {
        if count >= self.count() {
            return self.clear();
        }
        let front = self.pieces().get(..count).unwrap_or_default();
        self.len -= total(front);
        self.first += count;
        self.move_up();
    }

    /// Moves the pieces over those that are forgotten, if there are many.
    #[inline]
    fn move_up(&mut self) {
        if self.first >= MAX_PIECES {
            self.iov.drain(..self.first);
            self.first = 0;
        }
    }

    /// The packet that lies in one piece, by its number; an empty one if there is no such piece.
    #[inline]
    pub fn packet_in(&self, piece: usize) -> Pieces<'_> {
        let piece = self.pieces().get(piece).map(slice::from_ref);
        let len = piece.map_or(0, total);
        // SAFETY: by the invariant the piece is mapped while `map` is held, so for this borrow, and is
        // `len` octets.
        unsafe { Pieces::with_len(piece.unwrap_or_default(), len) }
    }

    /// The packet that lies in the pieces.
    pub fn packet(&self) -> Pieces<'_> {
        // SAFETY: by the invariant the pieces are mapped while `map` is held, so for this borrow,
        // and are `len` octets.
        unsafe { Pieces::with_len(self.pieces(), self.len) }
    }

    /// The room that the pieces are.
    pub fn room(&mut self) -> PiecesMut<'_> {
        // SAFETY: as for `packet`; regions are mapped writable, and the exclusive borrow makes this
        // the only view of ours.
        unsafe { PiecesMut::with_len(self.pieces(), self.len) }
    }

    /// Runs `fill` on the room that the pieces are, followed by `overflow`.
    pub fn room_and<R>(
        &mut self,
        overflow: &mut [u8],
        fill: impl FnOnce(&mut PiecesMut<'_>) -> R,
    ) -> R {
        /// Takes the last piece off again, even when `fill` panics: it is not one of the map's.
        struct Borrowed<'a>(&'a mut Vec<libc::iovec>);
        impl Drop for Borrowed<'_> {
            fn drop(&mut self) {
                self.0.pop();
            }
        }
        self.iov.push(libc::iovec {
            iov_base: overflow.as_mut_ptr().cast(),
            iov_len: overflow.len(),
        });
        let len = self.len + overflow.len();
        let borrowed = Borrowed(&mut self.iov);
        let pieces = borrowed.0.get(self.first..).unwrap_or_default();
        // SAFETY: as for `room`; `overflow` is borrowed exclusively until after the call, and its
        // piece is taken off again before anything else can use the list.
        fill(&mut unsafe { PiecesMut::with_len(pieces, len) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::map;
    use super::*;

    #[test]
    fn gather_crosses_adjacent_regions_and_refuses_holes() {
        let map = map();
        let mut pieces = PieceList::new(map);
        assert!(pieces.gather(0xff0, 0x20));
        assert_eq!(
            pieces.iov.iter().map(|p| p.iov_len).collect::<Vec<_>>(),
            [0x10, 0x10]
        );
        for (addr, len) in [
            (0x1ff0, 0x11),
            (0x3fff, 2),
            (0x5000, 1),
            (u64::MAX, 1),
            (0x4ff0, 17),
        ] {
            assert!(!pieces.gather(addr, len), "{addr:#x}");
            assert_eq!(pieces.count(), 2);
        }
        assert!(pieces.gather(u64::MAX, 0));
        assert_eq!(pieces.count(), 2);
    }

    #[test]
    fn a_list_forgets_from_both_ends() {
        let mut pieces = PieceList::new(map());
        let lens = |pieces: &PieceList| {
            let lens: Vec<usize> = pieces.pieces().iter().map(|p| p.iov_len).collect();
            assert_eq!(pieces.count(), lens.len());
            assert_eq!(pieces.len(), lens.iter().sum::<usize>());
            assert_eq!(pieces.packet().len(), pieces.len());
            lens
        };
        // More than fits between two moves.
        for i in 0..3000 {
            for len in [i + 1, i + 2, i + 3] {
                assert!(pieces.gather(0x4000, len % 100));
            }
            let before = lens(&pieces);
            pieces.truncate(pieces.count() - 1);
            pieces.remove_front(pieces.count() - 1);
            assert_eq!(lens(&pieces), before[before.len() - 2..before.len() - 1]);
            assert!(pieces.iov.capacity() <= 2 * MAX_PIECES);
        }
        pieces.remove_front(10);
        assert!(pieces.is_empty());
        assert!(pieces.gather(0, 7));
        pieces.clear();
        assert!(pieces.is_empty() && pieces.first == 0);
    }

    #[test]
    fn a_piece_of_ours_goes_even_when_its_user_panics() {
        let mut pieces = PieceList::new(map());
        assert!(pieces.gather(0, 4));
        let mut overflow = [0; 4];
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pieces.room_and(&mut overflow, |room| {
                assert_eq!(room.len(), 8);
                std::panic::resume_unwind(Box::new(()));
            })
        }));
        assert!(panicked.is_err());
        assert_eq!((pieces.count(), pieces.packet().len()), (1, 4));
    }
}
