// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The split virtqueue, seen from the device (VIRTIO 1.3, 2.7).
//!
//! # Design
//! The three areas are translated once, when the ring starts, into [`Window`]s. Chains are taken
//! with `pop`, or in runs with `pop_run` where they are one buffer each, and come back in the same order with [`SplitRing::push`]; what was pushed becomes
//! visible to the driver in one store with [`SplitRing::publish`], so that a packet of several buffers
//! appears whole. Because order is kept, the ring's position is one number: chains that were popped
//! and not pushed are given back with [`SplitRing::rewind`].
//!
//! With [batches](super::virtqueue::Format::batches) all that is published at a time is one entry of
//! the used ring (2.7.9), of the last chain. It stands where the entry of the first would be, and
//! those behind it are left as they were.
//!
//! # Limitations
//! Nothing in a chain is trusted, and a chain that breaks the rules costs only itself. An index
//! that no driver could have written (more entries than the ring holds, a head outside the table)
//! means that the ring's memory is not what we think: that is a [`RingError`], and the ring is not
//! used again until the driver sets it up anew.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::memory::{MemoryMap, Window};
use super::piece_list::PieceList;
use super::virtqueue::{
    Collect, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, Direction, KIND, Layout,
    MAX_CHAIN, MAX_SIZE, One, RingError, Take,
};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (2.7.6).
const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY` (2.7.8).
const USED_F_NO_NOTIFY: u16 = 1;
/// Offset of `idx` in both the available and the used ring.
const IDX: usize = 2;
/// Offset of the entries in both.
const ENTRIES: usize = 4;
/// Size of an entry of the used ring: id and length.
const USED_ENTRY: usize = 8;

/// A split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    size: u16,
    event_idx: bool,
    batches: bool,
    desc: Window,
    avail: Window,
    used: Window,
    /// The next entry of the available ring to take.
    next_avail: u16,
    /// The driver's available index as last seen.
    avail_idx: u16,
    /// The next entry of the used ring to fill.
    next_used: u16,
    /// Head of the chain that was pushed last.
    last: u16,
    /// The used index as last published.
    published: u16,
    /// The published index at the last decision on an interrupt; `None` before the first.
    signalled: Option<u16>,
    /// The driver notifies of something, or we do not know. Without event index only.
    enabled: bool,
}

/// Whether an index that moves from `old` to `new` passes `event` (2.7.7.2, 2.7.10).
fn passes(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Flags of a descriptor, of which this is what follows the address.
fn flags(rest: u64) -> u16 {
    (rest >> 32) as u16
}

impl Take for SplitRing {
    #[inline]
    fn pop_run(
        &mut self,
        direction: Direction,
        pieces: &mut PieceList,
        most: usize,
        mut took: impl FnMut(One),
    ) {
        // What is wrong with the ring `pop` finds out, too.
        if self.avail_idx == self.next_avail && self.refresh() != Ok(true) {
            return;
        }
        let waiting = self.avail_idx.wrapping_sub(self.next_avail);
        let descriptors = self.desc.descriptors();
        for _ in 0..most.min(waiting.into()) {
            let entry = ENTRIES + 2 * self.slot(self.next_avail);
            let head = self.avail.load_u16(entry, Ordering::Relaxed);
            let Some(descriptor) = descriptors.get(usize::from(head)) else {
                return;
            };
            let rest = descriptor.word(Ordering::Relaxed);
            let len = rest as u32;
            if flags(rest) & KIND != direction.alone() || !pieces.gather_one(descriptor.addr(), len)
            {
                return;
            }
            self.next_avail = self.next_avail.wrapping_add(1);
            took(One { head, len });
        }
    }

    fn take(&mut self, to: &mut impl Collect) -> Result<Option<(u16, bool)>, RingError> {
        if self.avail_idx == self.next_avail && !self.refresh()? {
            return Ok(None);
        }
        let entry = ENTRIES + 2 * self.slot(self.next_avail);
        let head = self.avail.load_u16(entry, Ordering::Relaxed);
        if head >= self.size {
            return Err(RingError::BadHead(head));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        let whole = self.walk(head, to).is_some();
        Ok(Some((head, whole)))
    }
}

impl SplitRing {
    /// The ring at `layout`, to go on at available index `next_avail`. The used index is taken from
    /// the ring itself, where the device left it.
    pub fn new(
        map: &Arc<MemoryMap>,
        layout: Layout,
        next_avail: u16,
        batches: bool,
    ) -> Result<Self, RingError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(RingError::BadSize(size));
        }
        let n = usize::from(size);
        // Each ring ends with the event field of the other side (2.7.6, 2.7.8).
        let window = |name, addr, len, align| {
            Window::new(map, addr, len, align).ok_or(RingError::BadArea(name, addr))
        };
        let desc = window("descriptor table", layout.desc, n * DESC_SIZE, 16)?;
        let avail = window("available ring", layout.avail, ENTRIES + 2 * n + 2, 2)?;
        let used = window("used ring", layout.used, ENTRIES + USED_ENTRY * n + 2, 4)?;
        let next_used = used.load_u16(IDX, Ordering::Acquire);
        Ok(SplitRing {
            size,
            event_idx: layout.event_idx,
            batches,
            desc,
            avail,
            used,
            next_avail,
            avail_idx: next_avail,
            next_used,
            last: 0,
            published: next_used,
            signalled: None,
            enabled: true,
        })
    }

    /// The ring at `layout`, that is used in batches, to go on where the device before us stood: what
    /// was used in order was all that was taken.
    ///
    /// QEMU, when it throws away packets of a driver whose link is down, counts them as taken, and does
    /// not find the way to use them where `VIRTIO_F_IN_ORDER` was negotiated.
    pub fn recover(map: &Arc<MemoryMap>, layout: Layout) -> Result<Self, RingError> {
        let mut ring = SplitRing::new(map, layout, 0, true)?;
        ring.next_avail = ring.next_used;
        ring.avail_idx = ring.next_used;
        Ok(ring)
    }

    /// Queue size.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The available index at which this or another device goes on.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// Looks at the driver's index; whether chains wait.
    fn refresh(&mut self) -> Result<bool, RingError> {
        // Acquire: what the driver wrote before it moved the index is read after (2.7.13.1).
        let idx = self.avail.load_u16(IDX, Ordering::Acquire);
        if idx.wrapping_sub(self.next_avail) > self.size {
            return Err(RingError::BadAvailIndex {
                driver: idx,
                device: self.next_avail,
            });
        }
        self.avail_idx = idx;
        Ok(idx != self.next_avail)
    }

    /// Follows a chain (2.7.5). `None` when it breaks the rules: a loop, an index outside the
    /// table, a buffer outside guest memory, a writable descriptor before a readable one, an
    /// indirect table that is nested, empty or of odd size, more descriptors or pieces than
    /// [`MAX_CHAIN`].
    ///
    /// An indirect table may be larger than the ring: no driver should make such (2.7.5.3.1), but
    /// Linux does where the ring is small, and QEMU and vhost take them.
    fn walk(&self, head: u16, to: &mut impl Collect) -> Option<()> {
        let mut table = self.desc.view();
        let mut entries = u32::from(self.size);
        let mut nested = false;
        let mut index = head;
        // More descriptors than the table has means a loop.
        let mut budget = self.size.min(MAX_CHAIN);
        let mut seen_writable = false;
        loop {
            budget = budget.checked_sub(1)?;
            if u32::from(index) >= entries {
                return None;
            }
            // struct virtq_desc: an address, and length, flags and next together.
            let [addr, rest] = table.read_descriptor(usize::from(index))?;
            let (len, flags, next) = (rest as u32, flags(rest), (rest >> 48) as u16);
            if flags & DESC_F_INDIRECT != 0 {
                let size = len as usize;
                if nested
                    || flags & DESC_F_NEXT != 0
                    || size == 0
                    || !size.is_multiple_of(DESC_SIZE)
                {
                    return None;
                }
                table = self.desc.map().view(addr, size)?;
                entries = len / DESC_SIZE as u32;
                nested = true;
                budget = MAX_CHAIN;
                index = 0;
                continue;
            }
            let writable = flags & DESC_F_WRITE != 0;
            if seen_writable && !writable {
                return None;
            }
            seen_writable = writable;
            to.put(writable, addr, len)?;
            if flags & DESC_F_NEXT == 0 {
                return Some(());
            }
            index = next;
        }
    }

    /// Gives back the last `n` chains that were popped and not pushed; they come again.
    pub fn rewind(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_sub(n);
    }

    /// Uses a chain; `written` is what the device wrote into its buffers. The driver sees it after
    /// [`SplitRing::publish`].
    #[inline]
    pub fn push(&mut self, head: u16, written: u32) {
        if !self.batches {
            self.write_used(self.next_used, head, written);
        }
        self.last = head;
        self.next_used = self.next_used.wrapping_add(1);
    }

    fn write_used(&self, index: u16, head: u16, written: u32) {
        let entry = ENTRIES + USED_ENTRY * self.slot(index);
        self.used.write_u32(entry, u32::from(head));
        self.used.write_u32(entry + 4, written);
    }

    /// Shows the driver all that was pushed.
    pub fn publish(&mut self) {
        if self.published != self.next_used {
            if self.batches {
                self.write_used(self.published, self.last, 0);
            }
            // Release: entries and buffers before the index (2.7.8.2).
            self.used.store_u16(IDX, self.next_used, Ordering::Release);
            self.published = self.next_used;
        }
    }

    /// Entries that were published since the last decision on an interrupt.
    pub fn undecided(&self) -> u16 {
        // A ring that was never decided on may have some from before it was ours.
        self.signalled
            .map_or(1, |signalled| self.published.wrapping_sub(signalled))
    }

    /// Whether the driver wants an interrupt for what was published since the last call (2.7.7).
    /// `None`: nothing was.
    pub fn interrupt_wanted(&mut self) -> Option<bool> {
        let old = match self.signalled.replace(self.published) {
            Some(old) if old == self.published => return None,
            old => old,
        };
        // The used index must be visible before we read what the driver wants, or each side could
        // miss the other (2.7.7.2).
        fence(Ordering::SeqCst);
        let Some(old) = old else {
            return Some(true);
        };
        if self.event_idx {
            let used_event = ENTRIES + 2 * usize::from(self.size);
            let event = self.avail.load_u16(used_event, Ordering::Relaxed);
            Some(passes(event, self.published, old))
        } else {
            Some(self.avail.load_u16(0, Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// Asks the driver not to notify while we look at the ring ourselves. With event index there is
    /// nothing to do: an old event number is passed only once. It is not said twice, which would take
    /// the cache line that it shares with the used index from a driver that waits for that.
    #[inline]
    pub fn disarm(&mut self) {
        if !self.event_idx && std::mem::take(&mut self.enabled) {
            self.used.store_u16(0, USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    /// Asks the driver to notify when it makes more available than we have seen (2.7.10). `true`
    /// when it already has: the caller must look again, no notification may come.
    pub fn arm(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            let avail_event = ENTRIES + USED_ENTRY * usize::from(self.size);
            self.used
                .store_u16(avail_event, self.avail_idx, Ordering::Relaxed);
        } else {
            self.used.store_u16(0, 0, Ordering::Relaxed);
            self.enabled = true;
        }
        // Our wish must be visible before we read the index, or each side could miss the other.
        fence(Ordering::SeqCst);
        let seen = self.avail_idx;
        self.refresh()?;
        Ok(self.avail_idx != seen)
    }
}
