// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The packed virtqueue, seen from the device (VIRTIO 1.3, 2.8).
//!
//! # Design
//! As [`split`](super::split): chains come back in the order in which they were taken, so where the
//! ring stands is one place, a descriptor and the wrap counter. What is pushed is kept until
//! [`PackedRing::publish`] writes it into the descriptor ring, the first descriptor's flags last:
//! the driver looks at that one alone (2.8.2, 2.8.9), so a batch appears whole.
//!
//! A split ring has its used index in guest memory, and a device that was killed can be replaced by
//! one that reads it. Of a packed ring nobody has an index but the device. So this one sees to it
//! that the ring tells by itself: the descriptors of a chain behind its first, over which the driver
//! skips (2.8.6), are marked as used, too. Then the `VIRTQ_DESC_F_USED` flags, which only the device
//! changes, are one value in front of the place where it stands and the other one behind.
//! The submodule `recovery` reads them.
//!
//! With [batches](super::virtqueue::Format::batches) all that is published at a time is one used
//! descriptor (2.8.6): the first, with the id of the last chain. The submodule `batches` says how the
//! ring tells by itself then.
//!
//! # Limitations
//! As in a split ring a chain that breaks the rules costs only itself. One that never ends, so that
//! nobody can say where the next begins, is a [`RingError`]: the ring is not used again until the
//! driver sets it up anew. Buffer ids are the driver's own, and given back as they are.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::memory::{Descriptor, MemoryMap, Window};
use super::piece_list::PieceList;
use super::virtqueue::{
    Collect, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, Direction, KIND, Layout,
    MAX_CHAIN, MAX_SIZE, One, RingError, Take,
};

mod batches;
mod place;
mod recovery;

use place::Place;

/// `VIRTQ_DESC_F_AVAIL` (2.8.1).
const DESC_F_AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`.
const DESC_F_USED: u16 = 1 << 15;
/// Ours, among the reserved flags, in a descriptor that is not used yet: its chain has been dealt with,
/// and length and id are what they will be when it is.
const DESC_F_PREPARED: u16 = 1 << 14;
/// Offset of the flags.
const FLAGS: usize = 14;
/// Size of an event suppression structure (2.8.14).
const EVENT_SIZE: usize = 4;
/// Offset of its flags.
const EVENT_FLAGS: usize = 2;
/// `RING_EVENT_FLAGS_ENABLE` (2.8.10).
const EVENT_ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`.
const EVENT_DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`: for one descriptor; only with `VIRTIO_F_EVENT_IDX`.
const EVENT_DESC: u16 = 2;
/// The wrap counter in 16 bits that are a place.
const WRAP: u16 = 1 << 15;
/// Where a driver that starts afresh begins: at descriptor 0 with a wrap counter of 1 (2.8.1).
pub const BEGINNING: u16 = WRAP;

/// A chain that was pushed and not published.
#[derive(Clone, Copy, Debug)]
struct Used {
    id: u16,
    written: u32,
}

impl Used {
    /// Length, id and flags of its descriptor at `place`. The length means something only with
    /// `VIRTQ_DESC_F_WRITE` (2.8.4).
    fn word(self, place: Place) -> u64 {
        let written = if self.written > 0 { DESC_F_WRITE } else { 0 };
        word(self.written, self.id, place.used() | written)
    }
}

fn word(len: u32, id: u16, flags: u16) -> u64 {
    u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
}

fn word_len(word: u64) -> u32 {
    word as u32
}

fn word_id(word: u64) -> u16 {
    (word >> 32) as u16
}

fn word_flags(word: u64) -> u16 {
    (word >> 48) as u16
}

/// Takes the buffer of a descriptor with this length, id and flags.
fn element(descriptor: &Descriptor, word: u64, to: &mut impl Collect) -> Option<()> {
    let writable = word_flags(word) & DESC_F_WRITE != 0;
    to.put(writable, descriptor.addr(), word_len(word))
}

/// A packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    size: u16,
    event_idx: bool,
    batches: bool,
    desc: Window,
    driver_event: Window,
    device_event: Window,
    /// Where the next chain will be.
    next_avail: Place,
    /// Where the next used descriptor will be written.
    next_used: Place,
    /// Descriptors of each chain that was popped and not published, by that of its first.
    counts: Box<[u16]>,
    /// Chains that were popped and not pushed.
    popped: u16,
    /// Those that were pushed and not published.
    pushed: Vec<Used>,
    /// Descriptors that were published since the last decision on an interrupt.
    undecided: u32,
    /// There was no decision yet.
    undecided_start: bool,
    /// The driver notifies of something, or we do not know.
    enabled: bool,
    /// Descriptors that can be written until the device is killed.
    #[cfg(test)]
    pub(super) life: std::cell::Cell<usize>,
}

impl Take for PackedRing {
    #[inline]
    fn pop_run(
        &mut self,
        direction: Direction,
        pieces: &mut PieceList,
        most: usize,
        mut took: impl FnMut(One),
    ) {
        let descriptors = self.desc.descriptors();
        let mut place = self.next_avail;
        let mut count = 0;
        while count < most {
            let slot = usize::from(place.slot);
            let (Some(descriptor), Some(descriptors)) =
                (descriptors.get(slot), self.counts.get_mut(slot))
            else {
                break;
            };
            // Acquire: what the driver wrote before these flags is read after (2.8.20.1).
            let word = descriptor.word(Ordering::Acquire);
            let flags = word_flags(word) & (DESC_F_AVAIL | DESC_F_USED | KIND);
            let len = word_len(word);
            if flags != place.available() | direction.alone()
                || !pieces.gather_one(descriptor.addr(), len)
            {
                break;
            }
            *descriptors = 1;
            took(One {
                head: word_id(word),
                len,
            });
            place = place.after(1, self.size);
            count += 1;
        }
        self.next_avail = place;
        // No more than the ring has descriptors, or a broken driver makes available again.
        self.popped = self.popped.wrapping_add(count as u16);
    }

    fn take(&mut self, to: &mut impl Collect) -> Result<Option<(u16, bool)>, RingError> {
        let at = self.next_avail;
        let Some(descriptor) = self.desc.descriptor(at.slot) else {
            return Ok(None);
        };
        // As in `pop_run`.
        let word = descriptor.word(Ordering::Acquire);
        if !at.is_available(word_flags(word)) {
            return Ok(None);
        }
        let (id, count, whole) = self.follow(at.slot, descriptor, word, to)?;
        if let Some(slot) = self.counts.get_mut(usize::from(at.slot)) {
            *slot = count;
        }
        self.next_avail = self.after(at, count);
        self.popped += 1;
        Ok(Some((id, whole)))
    }
}

impl PackedRing {
    /// The ring at `layout`, to go on at descriptor and wrap counter `place`.
    pub fn new(
        map: &Arc<MemoryMap>,
        layout: Layout,
        place: u16,
        batches: bool,
    ) -> Result<Self, RingError> {
        let size = layout.size;
        if size == 0 || size > MAX_SIZE {
            return Err(RingError::BadSize(size));
        }
        let place = Place::from_bits(place);
        if place.slot >= size {
            return Err(RingError::BadPlace(place.slot));
        }
        let n = usize::from(size);
        let window = |name, addr, len, align| {
            Window::new(map, addr, len, align).ok_or(RingError::BadArea(name, addr))
        };
        Ok(PackedRing {
            size,
            event_idx: layout.event_idx,
            batches,
            desc: window("descriptor ring", layout.desc, n * DESC_SIZE, 16)?,
            driver_event: window("driver event suppression", layout.avail, EVENT_SIZE, 4)?,
            device_event: window("device event suppression", layout.used, EVENT_SIZE, 4)?,
            next_avail: place,
            next_used: place,
            counts: vec![1; n].into(),
            popped: 0,
            pushed: Vec::with_capacity(n),
            undecided: 0,
            undecided_start: true,
            enabled: true,
            #[cfg(test)]
            life: std::cell::Cell::new(usize::MAX),
        })
    }

    /// Queue size.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The place at which this or another device goes on: bit 15 is the wrap counter.
    pub fn next_avail(&self) -> u16 {
        self.next_avail.bits()
    }

    /// Length, id and flags of a descriptor; slots are below the queue size.
    #[inline]
    fn read(&self, slot: u16, order: Ordering) -> u64 {
        let descriptor = self.desc.descriptor(slot);
        descriptor.map_or(0, |descriptor| descriptor.word(order))
    }

    #[inline]
    fn write(&self, slot: u16, word: u64, order: Ordering) {
        if self.lives()
            && let Some(descriptor) = self.desc.descriptor(slot)
        {
            descriptor.set_word(word, order);
        }
    }

    fn write_flags(&self, place: Place) {
        if self.lives() {
            let at = usize::from(place.slot) * DESC_SIZE + FLAGS;
            self.desc.store_u16(at, place.used(), Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    fn lives(&self) -> bool {
        let left = self.life.get();
        self.life.set(left.saturating_sub(1));
        left > 0
    }

    #[cfg(not(test))]
    fn lives(&self) -> bool {
        true
    }

    fn after(&self, place: Place, count: u16) -> Place {
        place.after(count, self.size)
    }

    /// Descriptors of the chain that was taken at `slot`.
    fn count(&self, slot: u16) -> u16 {
        self.counts.get(usize::from(slot)).copied().unwrap_or(1)
    }

    /// Follows a chain (2.8.6) to its end, whatever is wrong with it: its id is in the last
    /// descriptor, and the next one begins behind. Gives id, number of descriptors and whether it
    /// keeps the rules. It does not with a buffer outside guest memory, a writable descriptor before
    /// a readable one, an indirect table beside other descriptors, or more descriptors or pieces than
    /// [`MAX_CHAIN`].
    fn follow<'a>(
        &'a self,
        first: u16,
        mut descriptor: &'a Descriptor,
        mut word: u64,
        to: &mut impl Collect,
    ) -> Result<(u16, u16, bool), RingError> {
        let mut slot = first;
        let mut count = 1;
        let mut seen_writable = false;
        let mut whole = true;
        loop {
            let flags = word_flags(word);
            let more = flags & DESC_F_NEXT != 0;
            if whole {
                let taken = if flags & DESC_F_INDIRECT != 0 {
                    let alone = count == 1 && !more;
                    alone.then(|| self.table(descriptor, word, to)).flatten()
                } else {
                    let writable = flags & DESC_F_WRITE != 0;
                    let ordered = writable || !seen_writable;
                    seen_writable = writable;
                    let fits = ordered && count <= MAX_CHAIN;
                    fits.then(|| element(descriptor, word, to)).flatten()
                };
                whole = taken.is_some();
            }
            if !more {
                return Ok((word_id(word), count, whole));
            }
            if count == self.size {
                return Err(RingError::Endless(first));
            }
            count += 1;
            slot = if slot + 1 == self.size { 0 } else { slot + 1 };
            let next = self.desc.descriptor(slot);
            // Slots are below the queue size, for which the window was made.
            descriptor = next.ok_or(RingError::Endless(first))?;
            word = descriptor.word(Ordering::Relaxed);
        }
    }

    /// Takes an indirect table (2.8.7): its descriptors lie one behind the other, and of their flags
    /// only `VIRTQ_DESC_F_WRITE` means something. It may be larger than the ring, as in
    /// [`split`](super::split).
    fn table(&self, own: &Descriptor, word: u64, to: &mut impl Collect) -> Option<()> {
        let size = word_len(word) as usize;
        let entries = size / DESC_SIZE;
        if entries == 0 || !size.is_multiple_of(DESC_SIZE) || entries > usize::from(MAX_CHAIN) {
            return None;
        }
        let table = self.desc.map().view(own.addr(), size)?;
        let mut seen_writable = false;
        for index in 0..entries {
            let [addr, word] = table.read_descriptor(index)?;
            let writable = word_flags(word) & DESC_F_WRITE != 0;
            if seen_writable && !writable {
                return None;
            }
            seen_writable = writable;
            to.put(writable, addr, word_len(word))?;
        }
        Some(())
    }

    /// Gives back the last `n` chains that were popped and not pushed; they come again.
    pub fn rewind(&mut self, n: u16) {
        self.popped = self.popped.saturating_sub(n);
        let mut place = self.next_used;
        for _ in 0..self.pushed.len() + usize::from(self.popped) {
            place = self.after(place, self.count(place.slot));
        }
        self.next_avail = place;
    }

    /// Uses the chain that was taken first of those that are left; `written` is what the device
    /// wrote into its buffers. The driver sees it after [`PackedRing::publish`].
    #[inline]
    pub fn push(&mut self, id: u16, written: u32) {
        self.popped = self.popped.saturating_sub(1);
        self.pushed.push(Used { id, written });
    }

    /// Shows the driver all that was pushed.
    #[inline]
    pub fn publish(&mut self) {
        let Some((&first, rest)) = self.pushed.split_first() else {
            return;
        };
        let head = self.next_used;
        let count = self.count(head.slot);
        let (mut shown, mut end) = (first, self.after(head, count));
        if count > 1 || !rest.is_empty() {
            if self.batches {
                (shown, end) = self.mark_batch(first, rest);
            } else {
                end = self.write_rest(first, rest);
            }
        }
        // Release: the other descriptors and the buffers before the one that the driver looks at
        // (2.8.2, 2.8.9).
        self.write(head.slot, shown.word(head), Ordering::Release);
        let published = self.after_in_laps(head, end);
        self.undecided = self.undecided.saturating_add(published);
        self.next_used = end;
        self.pushed.clear();
    }

    /// Writes all of what was pushed but the used descriptor of the `first` chain; where it ends.
    fn write_rest(&self, first: Used, rest: &[Used]) -> Place {
        let head = self.next_used;
        let count = self.count(head.slot);
        self.prepare(head, first);
        self.mark(head, count);
        let mut place = self.after(head, count);
        let (descriptors, counts) = (self.desc.descriptors(), &self.counts[..]);
        for &used in rest {
            let slot = usize::from(place.slot);
            let count = counts.get(slot).copied().unwrap_or(1);
            if count > 1 {
                self.prepare(place, used);
                self.mark(place, count);
            }
            if self.lives()
                && let Some(descriptor) = descriptors.get(slot)
            {
                descriptor.set_word(used.word(place), Ordering::Relaxed);
            }
            place = self.after(place, count);
        }
        place
    }

    /// Descriptors from `from` to `to`, which is behind it and less than two laps on.
    fn after_in_laps(&self, from: Place, to: Place) -> u32 {
        let laps = 2 * u32::from(self.size);
        let distance = to.number(self.size) + laps - from.number(self.size);
        if distance < laps {
            distance
        } else {
            distance - laps
        }
    }

    /// Writes into the first descriptor of a chain all but what makes it used, so that another
    /// device can do that if this one is killed right after.
    fn prepare(&self, head: Place, used: Used) {
        let flags = word_flags(self.read(head.slot, Ordering::Relaxed)) | DESC_F_PREPARED;
        let word = word(used.written, used.id, flags);
        self.write(head.slot, word, Ordering::Relaxed);
    }

    /// Marks all but the first of the `count` descriptors of a chain as used, from the last on: so
    /// there is always a mark where the chain ends.
    fn mark(&self, head: Place, count: u16) {
        for behind in (1..count).rev() {
            self.write_flags(self.after(head, behind));
        }
    }

    /// Descriptors that were published since the last decision on an interrupt.
    pub fn undecided(&self) -> u16 {
        // A ring that was never decided on may have some from before it was ours.
        let count = self.undecided.max(u32::from(self.undecided_start));
        u16::try_from(count).unwrap_or(u16::MAX)
    }

    /// Whether the driver wants an interrupt for what was published since the last call (2.8.10).
    /// `None`: nothing was.
    pub fn interrupt_wanted(&mut self) -> Option<bool> {
        let start = std::mem::take(&mut self.undecided_start);
        let published = std::mem::take(&mut self.undecided);
        if !start && published == 0 {
            return None;
        }
        // What was used must be visible before we read what the driver wants, or each side could
        // miss the other (2.8.22).
        fence(Ordering::SeqCst);
        if start {
            return Some(true);
        }
        let flags = self.driver_event.load_u16(EVENT_FLAGS, Ordering::Acquire) & 3;
        Some(match flags {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => self.has_passed(published),
            _ => true,
        })
    }

    /// Whether the descriptor that the driver waits for is among the last `published`.
    fn has_passed(&self, published: u32) -> bool {
        let event = Place::from_bits(self.driver_event.load_u16(0, Ordering::Relaxed));
        if event.slot >= self.size {
            // Nonsense: rather one interrupt too many.
            return true;
        }
        let ago = self.after_in_laps(event, self.next_used);
        // Right here it is the next to be used, or two laps ago.
        let laps = 2 * u32::from(self.size);
        published >= if ago == 0 { laps } else { ago }
    }

    /// Asks the driver not to notify while we look at the ring ourselves. When it was asked for one
    /// descriptor there is nothing to do: that is made available only once.
    #[inline]
    pub fn disarm(&mut self) {
        if self.enabled {
            self.tell_driver(0, EVENT_DISABLE);
            self.enabled = false;
        }
    }

    /// After `pop` has found nothing: asks the driver to notify when it makes the next descriptor
    /// available. `true` when it already has: the caller must look again, no notification may come.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            self.tell_driver(self.next_avail.bits(), EVENT_DESC);
        } else {
            self.tell_driver(0, EVENT_ENABLE);
        }
        self.enabled = true;
        // Our wish must be visible before we read the flags, or each side could miss the other.
        fence(Ordering::SeqCst);
        let at = self.next_avail;
        let flags = word_flags(self.read(at.slot, Ordering::Relaxed));
        Ok(at.is_available(flags))
    }

    /// Writes the device event suppression structure (2.8.14), in one piece.
    fn tell_driver(&self, place: u16, flags: u16) {
        let word = u32::from(place) | u32::from(flags) << 16;
        self.device_event.write_u32(0, word);
    }
}
