// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the device before us stood, read from the ring.
//!
//! # Design
//! A frontend whose backend was killed, or has hung up, still knows where that backend has started,
//! not where it has stopped. What is published in guest memory is what counts, and only the device
//! changes the `VIRTQ_DESC_F_USED` flag: the driver, when it makes a descriptor available, leaves it
//! as it is (2.8.1). Each lap turns it over. So, with the value of the lap, the flags are
//!
//! ```text
//!   descriptor   0 1 2 3 4 5 6 7
//!   used flag    1 1 1 1 1 0 0 0      the device stands at 5, wrap counter 1
//! ```
//!
//! and there is one place where a flag differs from the one before (between the last and the first:
//! where it does not). It needs a device that turns over all descriptors of a chain, as ours does.
//!
//! A device that was killed while it published has written descriptors behind the first, but not
//! the first, at which the driver looks:
//!
//! ```text
//!   used flag    1 1 0 1 1 0 0 0      it stood at 2, and was about to show 2, 3 and 4
//! ```
//!
//! That is finished here: what is needed is in the first descriptor already. The same is found where
//! QEMU has thrown away packets of a driver whose link is down, from a place that was out of date;
//! then the hole may be longer, and its packets are thrown away as well. In a hole all descriptors
//! are available, and behind it all are used: by that it is known. If hole and batch are all of the
//! ring, there is only one place where the used flag differs, which is the end of the hole.
//!
//! A ring that is used in batches tells it in another way: see [`batches`](super::batches).
//!
//! # Limitations
//! Any other picture is of a device that leaves descriptors of longer chains as they were, or of one
//! that was killed while it marked those of a chain inside a batch. Such a ring is not guessed at: a
//! buffer that the driver has taken back long ago may look available in it.
//!
//! Of a packet in several buffers that was about to be shown when the device was killed, the end may
//! be missing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{
    DESC_F_AVAIL, DESC_F_NEXT, DESC_F_PREPARED, DESC_F_USED, Layout, MemoryMap, PackedRing, Place,
    RingError, Used, word_flags, word_id, word_len,
};

/// A stretch of the ring.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: Place,
    count: u16,
}

impl PackedRing {
    /// The ring at `layout`, to go on where the device before us stood.
    pub fn recover(map: &Arc<MemoryMap>, layout: Layout, batches: bool) -> Result<Self, RingError> {
        let mut ring = PackedRing::new(map, layout, 0, batches)?;
        if batches {
            let place = ring.end_of_batches()?;
            ring.go_to(place);
            return Ok(ring);
        }
        let (hole, place) = ring.picture()?;
        ring.go_to(hole.start);
        let mut left = hole.count;
        while left > 0 {
            left -= ring.finish(left);
        }
        ring.publish();
        // What was not shown, not even behind a hole.
        ring.go_to(place);
        while ring.is_prepared() {
            ring.finish(ring.size);
        }
        ring.publish();
        Ok(ring)
    }

    fn go_to(&mut self, place: Place) {
        self.next_avail = place;
        self.next_used = place;
    }

    /// Where the device stood, and a hole in front of that.
    fn picture(&self) -> Result<(Run, Place), RingError> {
        let found = match *self.boundaries() {
            [place] => self.hole_before(place),
            [first, second, third] => (0..3).find_map(|i| {
                let mut turned = [first, second, third];
                turned.rotate_left(i);
                let [start, end, after] = turned;
                self.hole(start, self.distance(start, end), self.distance(end, after))
            }),
            _ => None,
        };
        found.ok_or(RingError::Lost)
    }

    pub(super) fn flags(&self, place: Place) -> u16 {
        let flags = word_flags(self.read(place.slot, Ordering::Acquire));
        flags & (DESC_F_AVAIL | DESC_F_USED)
    }

    /// Descriptors from one place to another, less than one lap.
    fn distance(&self, from: Place, to: Place) -> u16 {
        if to.slot >= from.slot {
            to.slot - from.slot
        } else {
            self.size - from.slot + to.slot
        }
    }

    /// The places where a used flag differs from the one before it, with that as the wrap counter;
    /// up to four of them.
    fn boundaries(&self) -> Vec<Place> {
        let is_used = |slot| {
            let wrap = false;
            self.flags(Place { slot, wrap }) & DESC_F_USED != 0
        };
        // What it would be, had the last descriptor been of this lap.
        let mut before = !is_used(self.size - 1);
        let mut boundaries = Vec::with_capacity(4);
        for slot in 0..self.size {
            let used = is_used(slot);
            if used != before && boundaries.len() < 4 {
                boundaries.push(Place { slot, wrap: before });
            }
            before = used;
        }
        boundaries
    }

    /// What there is if the used flag differs only at `place`: nothing special, or a hole that ends
    /// there and is all that was not used in the ring.
    fn hole_before(&self, place: Place) -> Option<(Run, Place)> {
        let lap = |n: u16| self.after(place, self.size - n);
        let ahead = |n: &u16| self.flags(lap(*n)) == lap(*n).available();
        // The descriptor before is the last that the driver can have made available.
        if place.is_available(self.flags(place)) || !ahead(&1) {
            let none = Run {
                start: place,
                count: 0,
            };
            return Some((none, place));
        }
        let count = (1..self.size).take_while(ahead).last()?;
        self.hole(lap(count), count, self.size - count)
    }

    /// If there is a hole of `count` descriptors at `start` and a batch of `used` behind it, the hole
    /// and where the batch ends.
    fn hole(&self, start: Place, count: u16, used: u16) -> Option<(Run, Place)> {
        let batch = self.after(start, count);
        let all = |start: Place, count: u16, wanted: fn(Place) -> u16| {
            (0..count)
                .map(|n| self.after(start, n))
                .all(|place| self.flags(place) == wanted(place))
        };
        let is_hole = all(start, count, Place::available) && all(batch, used, Place::used);
        is_hole.then(|| (Run { start, count }, self.after(batch, used)))
    }

    /// Whether the device before us has dealt with the next chain.
    fn is_prepared(&self) -> bool {
        let at = self.next_avail;
        let flags = word_flags(self.read(at.slot, Ordering::Acquire));
        at.is_available(flags) && flags & DESC_F_PREPARED != 0
    }

    /// Uses the next chain, of which at most `most` descriptors are left; how many there were.
    fn finish(&mut self, most: u16) -> u16 {
        let at = self.next_avail;
        let first = self.read(at.slot, Ordering::Acquire);
        let mut last = first;
        let mut count = 1;
        while word_flags(last) & DESC_F_NEXT != 0 && count < most {
            last = self.read(self.after(at, count).slot, Ordering::Relaxed);
            count += 1;
        }
        let used = if word_flags(first) & DESC_F_PREPARED != 0 {
            Used {
                id: word_id(first),
                written: word_len(first),
            }
        } else {
            Used {
                id: word_id(last),
                written: 0,
            }
        };
        if let Some(slot) = self.counts.get_mut(usize::from(at.slot)) {
            *slot = count;
        }
        self.next_avail = self.after(at, count);
        self.pushed.push(used);
        count
    }
}
