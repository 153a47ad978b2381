// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The driver's side of a packed virtqueue (VIRTIO 1.3, 2.8).

use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::Result;
use vm_memory::VolatileArrayRef;

use super::memory::Memory;
use super::ring::{Buffer, Place, Used};

/// Flags of a descriptor, as they lie in its second word.
const WRITE: u64 = 1 << (48 + 1);
const AVAIL: u64 = 1 << (48 + 7);
const USED: u64 = 1 << (48 + 15);
/// `RING_EVENT_FLAGS_DISABLE`.
const DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_ENABLE`.
const ENABLE: u16 = 0;

/// A place in the ring that is gone through again and again.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    slot: u16,
    wrap: bool,
}

impl Cursor {
    const START: Cursor = Cursor {
        slot: 0,
        wrap: true,
    };

    #[inline]
    fn advance(&mut self, size: u16) {
        self.slot += 1;
        if self.slot == size {
            self.slot = 0;
            self.wrap = !self.wrap;
        }
    }
}

/// A ring whose chains are one descriptor each.
#[derive(Debug)]
pub struct Packed<'m> {
    size: u16,
    /// Two words a descriptor: address; length, buffer id and flags.
    desc: VolatileArrayRef<'m, u64>,
    /// The second words again.
    words: Vec<&'m AtomicU64>,
    /// Event suppression: place, flags.
    driver: VolatileArrayRef<'m, u16>,
    device: VolatileArrayRef<'m, u16>,
    avail: Cursor,
    used: Cursor,
}

impl<'m> Packed<'m> {
    /// One that nobody has used yet.
    pub fn new(memory: &'m Memory, place: Place) -> Result<Self> {
        let size = usize::from(place.size);
        let word = |slot| memory.atomic(place.desc() + 16 * slot + 8);
        Ok(Packed {
            size: place.size,
            desc: memory.array(place.desc(), 2 * size)?,
            words: (0..size).map(word).collect::<Result<_>>()?,
            driver: memory.array(place.driver(), 2)?,
            device: memory.array(place.device(), 2)?,
            avail: Cursor::START,
            used: Cursor::START,
        })
    }

    /// The word of a descriptor that says whose it is.
    #[inline]
    fn word(&self, slot: u16) -> Option<&'m AtomicU64> {
        self.words.get(usize::from(slot)).copied()
    }

    /// See [`super::ring::Ring::offer`]. Each descriptor is available as soon as it is written.
    #[inline]
    pub fn offer(&mut self, buffer: Buffer) {
        let slot = self.avail.slot;
        self.desc.store(2 * usize::from(slot), buffer.addr);
        let whose = if self.avail.wrap { AVAIL } else { USED };
        let write = if buffer.writable { WRITE } else { 0 };
        let word = u64::from(buffer.len) | u64::from(buffer.id) << 32 | whose | write;
        if let Some(at) = self.word(slot) {
            at.store(word, Ordering::Release);
        }
        self.avail.advance(self.size);
    }

    /// See [`super::ring::Ring::publish`].
    #[inline]
    pub fn publish(&mut self) -> bool {
        // As with a split ring: either the device sees the descriptors, or we its wish.
        fence(Ordering::SeqCst);
        self.device.load(1) != DISABLE
    }

    /// See [`super::ring::Ring::reap`].
    #[inline]
    pub fn reap(&mut self) -> Option<Used> {
        let word = self.word(self.used.slot)?.load(Ordering::Acquire);
        let whose = word & (AVAIL | USED);
        if whose != if self.used.wrap { AVAIL | USED } else { 0 } {
            return None;
        }
        self.used.advance(self.size);
        Some(Used {
            id: (word >> 32) as u16,
            len: word as u32,
        })
    }

    /// See [`super::ring::Ring::set_interrupts`].
    pub fn set_interrupts(&self, wanted: bool) {
        self.driver.store(1, if wanted { ENABLE } else { DISABLE });
    }
}
