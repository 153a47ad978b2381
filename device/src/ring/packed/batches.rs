// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Batches (VIRTIO 1.3, 2.8.6), and where a device stood that has used chains in them.
//!
//! # Design
//! A batch is one used descriptor, that of its first chain. A device that was killed must be replaced
//! by one that goes on behind the batch, and the flags between say nothing: they are as the driver has
//! left them, those of available descriptors. So the last descriptor of a batch is marked as used, too,
//! over which the driver skips. With `u` for what is used or marked, `.` for what was skipped, `a` for
//! what is available, and capitals for the lap before:
//!
//! ```text
//!   descriptor   0 1 2 3 4 5 6 7
//!                u . . u a a U U      the device stands at 4, and the driver at 6
//!                b b . u a a a a      the driver is in the next lap, with two more
//!                b b b b a a a a      ... with all
//! ```
//!
//! The driver makes descriptors available in the order of the ring, so the last mark is there until
//! nothing else is. The device stands behind the last one of the lap in which the first one in memory
//! is, and if there is none, where two laps meet.
//!
//! A device that was killed while it published has written the last mark, and not the used descriptor
//! of the first chain, at which the driver looks. What that takes, id and number of descriptors, is in
//! the mark.
//!
//! # Limitations
//! A device of another make leaves no such marks. Nobody can tell that from a ring of batches of one
//! descriptor each, and a ring of larger ones is taken over at the wrong place.

use std::sync::atomic::Ordering;

use super::{
    DESC_F_AVAIL, DESC_F_USED, PackedRing, Place, RingError, Used, word, word_flags, word_id,
    word_len,
};

impl PackedRing {
    /// Marks the end of a batch of more than one descriptor; what is to be shown of it, and where it
    /// ends.
    pub(super) fn mark_batch(&self, first: Used, rest: &[Used]) -> (Used, Place) {
        let count = self.count(self.next_used.slot);
        let mut size = u32::from(count);
        let mut end = self.after(self.next_used, count);
        for _ in rest {
            let count = self.count(end.slot);
            size += u32::from(count);
            end = self.after(end, count);
        }
        let last = *rest.last().unwrap_or(&first);
        let tail = end.before(1, self.size);
        self.write(
            tail.slot,
            word(size, last.id, tail.used()),
            Ordering::Relaxed,
        );
        (last, end)
    }

    /// Where the device before us stood; shows its last batch, if that was not done.
    pub(super) fn end_of_batches(&self) -> Result<Place, RingError> {
        // The driver goes on meanwhile. It takes marks away in the order of the ring, so a place that
        // was found by another mark than the last is not found again.
        let place = agreed(|| self.last_mark()).flatten();
        let place = place.ok_or(RingError::Lost)?;
        self.show_batch(place);
        Ok(place)
    }

    /// The place behind the last mark, or where the laps meet. `None` when marks are of more laps than
    /// two.
    fn last_mark(&self) -> Option<Place> {
        let flags = |slot| {
            let flags = word_flags(self.read(slot, Ordering::Acquire));
            (flags & DESC_F_AVAIL != 0, flags & DESC_F_USED != 0)
        };
        let mut marks = (0..self.size)
            .map(|slot| (slot, flags(slot)))
            .filter(|&(_, (avail, used))| avail == used)
            .map(|(slot, (_, wrap))| Place { slot, wrap });
        if let Some(first) = marks.next() {
            let mut last = first;
            let mut older = false;
            for mark in marks {
                if mark.wrap != first.wrap {
                    older = true;
                } else if older {
                    return None;
                } else {
                    last = mark;
                }
            }
            return Some(self.after(last, 1));
        }
        let (first, _) = flags(0);
        let other = (1..self.size).find(|&slot| flags(slot).0 != first);
        Some(match other {
            Some(slot) => Place { slot, wrap: !first },
            None => Place {
                slot: 0,
                wrap: first,
            },
        })
    }

    /// Shows the batch that ends at `place`, if that was not done.
    fn show_batch(&self, place: Place) {
        let tail = place.before(1, self.size);
        let word = self.read(tail.slot, Ordering::Acquire);
        // A driver that is about to make this descriptor available again has written its length
        // already. It has seen the batch, and all before is available in the next lap.
        let size = word_len(word);
        if self.flags(tail) != tail.used() || size > u32::from(self.size) {
            return;
        }
        let head = place.before(size.max(1) as u16, self.size);
        if head.is_available(self.flags(head)) {
            let used = Used {
                id: word_id(word),
                written: 0,
            };
            self.write(head.slot, used.word(head), Ordering::Release);
        }
    }
}

/// What two looks in a row have seen, if they agree soon.
fn agreed<T: PartialEq>(mut look: impl FnMut() -> T) -> Option<T> {
    let mut before = look();
    for _ in 0..4 {
        let now = look();
        if now == before {
            return Some(now);
        }
        before = now;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::agreed;

    #[test]
    fn what_is_seen_once_is_not_believed() {
        for (seen, expected) in [
            (&[3, 3][..], Some(3)),
            (&[1, 3, 3], Some(3)),
            (&[1, 2, 1, 3, 3], Some(3)),
            (&[1, 2, 3, 4, 5, 5], None),
        ] {
            let mut seen = seen.iter().copied();
            assert_eq!(agreed(|| seen.next().unwrap()), expected);
        }
    }
}
