// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A packet as it lies in guest memory: pieces, in order.
//!
//! The guest may change these bytes at any moment, so no reference to them is ever made: data is
//! moved by the kernel (`readv`, `writev`) or by volatile copies.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

/// A packet to be read: the device-readable part of a descriptor chain.
///
/// # Invariants
/// Each piece points to `iov_len` octets that stay mapped, and are read by others only through
/// volatile or kernel access, for `'m`.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'m> {
    iov: &'m [libc::iovec],
    len: usize,
}

/// Room for a packet: the device-writable part of one or more descriptor chains.
///
/// # Invariants
/// As [`Pieces`], and each piece may be written.
#[derive(Debug)]
pub struct PiecesMut<'m> {
    iov: &'m [libc::iovec],
    len: usize,
    _exclusive: PhantomData<&'m mut [u8]>,
}

/// Octets in `iov`.
pub(super) fn total(iov: &[libc::iovec]) -> usize {
    iov.iter()
        .fold(0, |sum, piece| sum.saturating_add(piece.iov_len))
}

fn checked(n: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// No piece.
const EMPTY: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};
/// Most packets have no more pieces than this: 64 KiB in pages, and the headers.
const FEW_PIECES: usize = 20;

/// The kernel takes no more pieces than this in one call (`IOV_MAX`).
pub const MAX_PIECES: usize = 1024;

fn count(iov: &[libc::iovec]) -> libc::c_int {
    // Never truncates: MAX_PIECES is far below c_int's range.
    iov.len().min(MAX_PIECES) as libc::c_int
}

/// So many octets are copied in place, without a call; headers are no more.
const FEW_OCTETS: usize = 64;

/// Octets from `offset` on, if they are few and in the first piece: headers of nearly all packets.
#[inline]
fn few_in_first(iov: &[libc::iovec], offset: usize, len: usize) -> Option<*mut u8> {
    (len <= FEW_OCTETS).then(|| in_first(iov, offset, len))?
}

/// Octets from `offset` on, if they are all in the first piece.
#[inline]
fn in_first(iov: &[libc::iovec], offset: usize, len: usize) -> Option<*mut u8> {
    let first = iov.first()?;
    let end = offset.checked_add(len)?;
    if end > first.iov_len {
        return None;
    }
    // SAFETY: offset + len <= iov_len (just checked), all of it mapped by the invariant of Pieces and
    // PiecesMut.
    Some(unsafe { first.iov_base.cast::<u8>().add(offset) })
}

/// Copies octets that others may be changing: each is read once.
///
/// # Safety
/// As many as `into` has are mapped at `from`.
#[inline]
unsafe fn read_few(from: *const u8, into: &mut [u8]) {
    let mut at = 0;
    // SAFETY: the caller's promise; and `N` is the size of each number.
    unsafe {
        read_numbers(from, into, &mut at, u64::to_ne_bytes);
        read_numbers(from, into, &mut at, u32::to_ne_bytes);
        read_numbers(from, into, &mut at, u16::to_ne_bytes);
        read_numbers(from, into, &mut at, u8::to_ne_bytes);
    }
}

/// Copies octets from `at` on, in as many numbers as fit, wherever they lie.
///
/// # Safety
/// As for [`read_few`]; `N` is the size of `T`.
#[inline]
unsafe fn read_numbers<T: Copy, const N: usize>(
    from: *const u8,
    into: &mut [u8],
    at: &mut usize,
    octets: fn(T) -> [u8; N],
) {
    #[repr(C, packed)]
    struct Anywhere<T>(T);
    while let Some(to) = into.get_mut(*at..*at + N) {
        // SAFETY: these octets are some of those that are mapped (the caller's promise); a volatile
        // read makes no reference to them, and a packed type has no alignment.
        let number = unsafe { from.add(*at).cast::<Anywhere<T>>().read_volatile() };
        to.copy_from_slice(&octets(number.0));
        *at += N;
    }
}

/// Volatile copy of `pieces`, from octet `offset` on, in or out of a buffer of `want` octets.
/// `copy(slice, done)` moves one piece's share; returns the octets moved.
fn walk(
    iov: &[libc::iovec],
    mut offset: usize,
    want: usize,
    mut copy: impl FnMut(VolatileSlice<'_>, usize) -> usize,
) -> usize {
    let mut done = 0;
    for piece in iov {
        if offset >= piece.iov_len {
            offset -= piece.iov_len;
            continue;
        }
        if done == want {
            break;
        }
        let here = (piece.iov_len - offset).min(want - done);
        // SAFETY: by the invariant of Pieces and PiecesMut the piece is mapped for the borrow's
        // length, and offset + here <= iov_len.
        let slice = unsafe { VolatileSlice::new(piece.iov_base.cast::<u8>().add(offset), here) };
        done += copy(slice, done);
        offset = 0;
    }
    done
}

/// A place in a packet, for going through it piece by piece.
///
/// # Invariants
/// `iov` is that of a [`Pieces`] or [`PiecesMut`] which lives for `'m`.
struct Place<'m> {
    iov: &'m [libc::iovec],
    /// Octets of the first piece that are behind us.
    offset: usize,
}

impl<'m> Place<'m> {
    /// Octet `offset` of the packet or room over `iov`.
    fn new(iov: &'m [libc::iovec], offset: usize) -> Self {
        let mut place = Place { iov, offset };
        place.advance(0);
        place
    }

    /// Goes on by so much, and over pieces that are done with.
    fn advance(&mut self, octets: usize) {
        self.offset += octets;
        while let Some((first, rest)) = self.iov.split_first()
            && self.offset >= first.iov_len
        {
            self.offset -= first.iov_len;
            self.iov = rest;
        }
    }

    /// What is left of the piece here; `None` at the end.
    fn rest(&self) -> Option<VolatileSlice<'m>> {
        let piece = self.iov.first()?;
        let left = piece.iov_len.checked_sub(self.offset)?;
        // SAFETY: by the invariant the piece is mapped for 'm, and offset + left == iov_len.
        Some(unsafe { VolatileSlice::new(piece.iov_base.cast::<u8>().add(self.offset), left) })
    }
}

impl<'m> Pieces<'m> {
    /// A packet over `iov`.
    ///
    /// # Safety
    /// The invariant of the type must hold for `'m`.
    pub unsafe fn new(iov: &'m [libc::iovec]) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Pieces::with_len(iov, total(iov)) }
    }

    /// A packet over `iov`, which is known to be `len` octets.
    ///
    /// # Safety
    /// As for [`Pieces::new`].
    pub(super) unsafe fn with_len(iov: &'m [libc::iovec], len: usize) -> Self {
        Pieces { iov, len }
    }

    /// A packet over one buffer of our own.
    pub fn with_bytes<R>(bytes: &[u8], run: impl FnOnce(Pieces<'_>) -> R) -> R {
        let iov = [libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        }];
        // SAFETY: the shared borrow of `bytes` outlives the call and Pieces only reads.
        run(unsafe { Pieces::new(&iov) })
    }

    /// Octets in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces.
    pub fn count(&self) -> usize {
        self.iov.len()
    }

    /// Copies out from octet `offset` on; returns how much was there, up to `into.len()`.
    #[inline]
    pub fn copy_to(&self, offset: usize, into: &mut [u8]) -> usize {
        if let Some(from) = few_in_first(self.iov, offset, into.len()) {
            // SAFETY: so many octets are mapped there.
            unsafe { read_few(from, into) };
            return into.len();
        }
        self.copy_many_to(offset, into)
    }

    fn copy_many_to(&self, offset: usize, into: &mut [u8]) -> usize {
        walk(self.iov, offset, into.len(), |slice, done| {
            match into.get_mut(done..) {
                Some(rest) => slice.copy_to(rest),
                None => 0,
            }
        })
    }

    /// Runs `run` on a packet that is `front`, and behind it this one without its first `skip`
    /// octets.
    pub fn with_front<R>(self, front: &[u8], skip: usize, run: impl FnOnce(Pieces<'_>) -> R) -> R {
        let place = Place::new(self.iov, skip);
        let first = [
            libc::iovec {
                iov_base: front.as_ptr().cast_mut().cast(),
                iov_len: front.len(),
            },
            place.rest().map_or(EMPTY, |rest| libc::iovec {
                iov_base: rest.ptr_guard_mut().as_ptr().cast(),
                iov_len: rest.len(),
            }),
        ];
        let others = place.iov.get(1..).unwrap_or_default();
        let len = front.len() + self.len.saturating_sub(skip);
        let mut few = [EMPTY; FEW_PIECES];
        let many: Vec<libc::iovec>;
        let count = first.len() + others.len();
        let iov = match few.get_mut(..count) {
            Some(few) => {
                for (to, from) in few.iter_mut().zip(first.iter().chain(others)) {
                    *to = *from;
                }
                few
            }
            None => {
                many = first.iter().chain(others).copied().collect();
                &many[..]
            }
        };
        // SAFETY: `front` is borrowed until after the call and Pieces only reads; the others are
        // pieces of this packet, the first of them without what is skipped. Together they are `len`
        // octets.
        run(unsafe { Pieces::with_len(iov, len) })
    }

    /// Writes the whole packet to `fd` in one `writev`.
    pub fn write_to(&self, fd: impl AsFd) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the pieces are mapped (invariant); the kernel only reads them.
        checked(unsafe { libc::writev(fd, self.iov.as_ptr(), count(self.iov)) })
    }
}

impl<'m> PiecesMut<'m> {
    /// Room over `iov`.
    ///
    /// # Safety
    /// The invariant of the type must hold for `'m`.
    pub unsafe fn new(iov: &'m [libc::iovec]) -> Self {
        // SAFETY: the caller's promise.
        unsafe { PiecesMut::with_len(iov, total(iov)) }
    }

    /// Room over `iov`, which is known to be `len` octets.
    ///
    /// # Safety
    /// As for [`PiecesMut::new`].
    pub(super) unsafe fn with_len(iov: &'m [libc::iovec], len: usize) -> Self {
        PiecesMut {
            iov,
            len,
            _exclusive: PhantomData,
        }
    }

    /// Room over one buffer of our own.
    pub fn with_bytes<R>(bytes: &mut [u8], run: impl FnOnce(PiecesMut<'_>) -> R) -> R {
        let iov = [libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }];
        // SAFETY: the exclusive borrow of `bytes` outlives the call.
        run(unsafe { PiecesMut::new(&iov) })
    }

    /// Octets of room in all.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no room.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies in from octet `offset` on; returns how much fitted.
    #[inline(always)]
    pub fn copy_from(&mut self, offset: usize, from: &[u8]) -> usize {
        if let Some(to) = few_in_first(self.iov, offset, from.len()) {
            // SAFETY: so many octets are mapped there and may be written; `from` is memory of ours,
            // which no piece is while somebody else has it borrowed.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
            return from.len();
        }
        self.copy_many_from(offset, from)
    }

    fn copy_many_from(&mut self, offset: usize, from: &[u8]) -> usize {
        walk(self.iov, offset, from.len(), |slice, done| {
            match from.get(done..) {
                Some(rest) => {
                    let n = slice.len().min(rest.len());
                    slice.copy_from(rest);
                    n
                }
                None => 0,
            }
        })
    }

    /// Copies in, from octet `offset` on, what lies in `from` from octet `skip` on; returns how much
    /// there was and fitted. Both may be memory of guests, even the same.
    #[inline]
    pub fn copy_pieces(&mut self, offset: usize, from: Pieces<'_>, skip: usize) -> usize {
        let len = from.len.saturating_sub(skip);
        let ends = (
            in_first(self.iov, offset, len),
            in_first(from.iov, skip, len),
        );
        if let (Some(into), Some(out)) = ends {
            // SAFETY: so many octets are mapped at both places (invariants of Pieces and PiecesMut).
            let (into, out) =
                unsafe { (VolatileSlice::new(into, len), VolatileSlice::new(out, len)) };
            out.copy_to_volatile_slice(into);
            return len;
        }
        self.copy_many_pieces(offset, from, skip)
    }

    fn copy_many_pieces(&mut self, offset: usize, from: Pieces<'_>, skip: usize) -> usize {
        let (mut to, mut from) = (Place::new(self.iov, offset), Place::new(from.iov, skip));
        let mut done = 0;
        while let (Some(into), Some(out)) = (to.rest(), from.rest()) {
            let here = into.len().min(out.len());
            // The shorter of the two is copied.
            out.copy_to_volatile_slice(into);
            to.advance(here);
            from.advance(here);
            done += here;
        }
        done
    }

    /// Copies out what was put in, from octet `offset` on.
    #[inline]
    pub fn copy_to(&self, offset: usize, into: &mut [u8]) -> usize {
        Pieces {
            iov: self.iov,
            len: self.len,
        }
        .copy_to(offset, into)
    }

    /// Fills from `fd` with one `readv`.
    pub fn read_from(&mut self, fd: impl AsFd) -> io::Result<usize> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: the pieces are mapped and may be written (invariant).
        checked(unsafe { libc::readv(fd, self.iov.as_ptr(), count(self.iov)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iov(bytes: &mut [u8]) -> libc::iovec {
        libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        }
    }

    #[test]
    fn copies_cross_pieces() {
        let (mut a, mut b, mut c) = (*b"abc", *b"", *b"defgh");
        let pieces = [iov(&mut a), iov(&mut b), iov(&mut c)];
        // SAFETY: the arrays outlive the views.
        let packet = unsafe { Pieces::new(&pieces) };
        let mut out = [0; 8];
        assert_eq!(packet.len(), 8);
        assert_eq!(packet.copy_to(0, &mut out), 8);
        assert_eq!(&out, b"abcdefgh");
        assert_eq!(packet.copy_to(2, &mut out[..3]), 3);
        assert_eq!(&out[..3], b"cde");
        assert_eq!(packet.copy_to(7, &mut out), 1);
        assert_eq!(packet.copy_to(8, &mut out), 0);
        // SAFETY: as above.
        let mut room = unsafe { PiecesMut::new(&pieces) };
        assert_eq!(room.copy_from(1, b"XYZW"), 4);
        assert_eq!(room.copy_from(7, b"QQ"), 1);
        assert_eq!((&a, &c), (b"aXY", b"ZWfgQ"));
    }

    #[test]
    fn copies_of_all_lengths_are_whole() {
        let text: [u8; 200] = std::array::from_fn(|i| i as u8 + 1);
        for (offset, len) in (0..9).flat_map(|offset| (0..120).map(move |len| (offset, len))) {
            let mut memory = text;
            // More than a few octets, and less.
            for split in [60, 130] {
                let (head, tail) = memory.split_at_mut(split);
                let pieces = [iov(head), iov(tail)];
                // SAFETY: the array outlives the views.
                let (packet, mut room) = unsafe { (Pieces::new(&pieces), PiecesMut::new(&pieces)) };
                let mut out = [0; 120];
                assert_eq!(packet.copy_to(offset, &mut out[..len]), len);
                assert_eq!(out[..len], text[offset..offset + len]);
                assert!(out[len..].iter().all(|octet| *octet == 0));
                assert_eq!(room.copy_from(offset, &[0; 120][..len]), len);
                let mut all = [0; 200];
                packet.copy_to(0, &mut all);
                let expected = text.iter().enumerate();
                let expected = expected.map(|(i, octet)| match i {
                    i if (offset..offset + len).contains(&i) => 0,
                    _ => *octet,
                });
                assert!(all.into_iter().eq(expected), "{offset} {len} {split}");
                assert_eq!(room.copy_from(0, &text), 200);
            }
        }
    }

    #[test]
    fn a_front_takes_the_place_of_the_first_octets() {
        let mut bytes = *b"0123456789abcdefghijklmnopqrstuv";
        for size in [1, 5, 32] {
            let pieces: Vec<_> = bytes.chunks_mut(size).map(iov).collect();
            for skip in [0, 1, 5, 31, 32, 40] {
                // SAFETY: the array outlives the views.
                let packet = unsafe { Pieces::new(&pieces) };
                packet.with_front(b"<>", skip, |packet| {
                    let mut out = [0; 40];
                    let len = packet.copy_to(0, &mut out);
                    assert_eq!(len, packet.len());
                    assert_eq!(&out[..2], b"<>");
                    let rest = b"0123456789abcdefghijklmnopqrstuv".get(skip..);
                    assert_eq!(&out[2..len], rest.unwrap_or_default());
                });
            }
        }
    }

    #[test]
    fn pieces_are_copied_to_pieces_however_they_are_cut() {
        let text = *b"0123456789abcdef";
        for (cut, gap) in [(0, 3), (5, 0), (7, 9), (16, 1)] {
            let mut from = text;
            let (head, tail) = from.split_at_mut(cut);
            let from = [iov(head), iov(&mut []), iov(tail)];
            let mut into = [b'.'; 16];
            let (head, tail) = into.split_at_mut(gap);
            let to = [iov(head), iov(tail)];
            // SAFETY: the arrays outlive the views.
            let (from, mut to) = unsafe { (Pieces::new(&from), PiecesMut::new(&to)) };
            assert_eq!(to.copy_pieces(2, from, 4), 12);
            assert_eq!(to.copy_pieces(15, from, 0), 1);
            assert_eq!(to.copy_pieces(16, from, 0), 0);
            assert_eq!(to.copy_pieces(usize::MAX, from, 17), 0);
            assert_eq!(&into, b"..456789abcdef.0");
        }
    }
}
