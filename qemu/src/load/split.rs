// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The driver's side of a split virtqueue (VIRTIO 1.3, 2.7).

use std::sync::atomic::{AtomicU16, Ordering, fence};

use anyhow::Result;
use vm_memory::VolatileArrayRef;

use super::memory::Memory;
use super::ring::{Buffer, Place, Used};

/// `VIRTQ_DESC_F_WRITE`.
const WRITE: u64 = 1 << 1;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`.
const NO_NOTIFY: u16 = 1;
/// Octets of flags and index, in front of the entries of either ring.
const HEAD: usize = 4;

/// A ring whose chains are one descriptor each: that of the buffer's number.
#[derive(Debug)]
pub struct Split<'m> {
    mask: u16,
    /// Two words a descriptor: address; length, flags and next.
    desc: VolatileArrayRef<'m, u64>,
    avail: Head<'m>,
    heads: VolatileArrayRef<'m, u16>,
    used: Head<'m>,
    elements: VolatileArrayRef<'m, u64>,
    /// The next entry of the available ring.
    next: u16,
    /// The used index as the driver has seen it, and up to where it has looked at elements.
    shown: u16,
    seen: u16,
}

/// Flags and index of the available or the used ring.
#[derive(Debug)]
struct Head<'m> {
    flags: VolatileArrayRef<'m, u16>,
    index: &'m AtomicU16,
}

impl<'m> Head<'m> {
    fn new(memory: &'m Memory, at: usize) -> Result<Self> {
        Ok(Head {
            flags: memory.array(at, 1)?,
            index: memory.atomic(at + 2)?,
        })
    }
}

impl<'m> Split<'m> {
    /// One that nobody has used yet.
    pub fn new(memory: &'m Memory, place: Place) -> Result<Self> {
        let size = usize::from(place.size);
        Ok(Split {
            mask: place.size - 1,
            desc: memory.array(place.desc(), 2 * size)?,
            avail: Head::new(memory, place.driver())?,
            heads: memory.array(place.driver() + HEAD, size)?,
            used: Head::new(memory, place.device())?,
            elements: memory.array(place.device() + HEAD, size)?,
            next: 0,
            shown: 0,
            seen: 0,
        })
    }

    /// See [`super::ring::Ring::offer`].
    #[inline]
    pub fn offer(&mut self, buffer: Buffer) {
        let at = 2 * usize::from(buffer.id);
        let flags = if buffer.writable { WRITE << 32 } else { 0 };
        self.desc.store(at, buffer.addr);
        self.desc.store(at + 1, u64::from(buffer.len) | flags);
        let entry = usize::from(self.next & self.mask);
        self.heads.store(entry, buffer.id);
        self.next = self.next.wrapping_add(1);
    }

    /// See [`super::ring::Ring::publish`].
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.avail.index.store(self.next, Ordering::Release);
        // The device looks at the index once more after it has asked to be notified; one of the two
        // sees what the other has written (2.7.13.4.1).
        fence(Ordering::SeqCst);
        self.used.flags.load(0) & NO_NOTIFY == 0
    }

    /// See [`super::ring::Ring::reap`].
    #[inline]
    pub fn reap(&mut self) -> Option<Used> {
        if self.seen == self.shown {
            self.shown = self.used.index.load(Ordering::Acquire);
            if self.seen == self.shown {
                return None;
            }
        }
        let element = self.elements.load(usize::from(self.seen & self.mask));
        self.seen = self.seen.wrapping_add(1);
        Some(Used {
            // A driver's ids are 16 bits; the caller checks that this is one of them.
            id: u16::try_from(element & 0xffff_ffff).unwrap_or(u16::MAX),
            len: (element >> 32) as u32,
        })
    }

    /// See [`super::ring::Ring::set_interrupts`].
    pub fn set_interrupts(&self, wanted: bool) {
        let flags = if wanted { 0 } else { NO_INTERRUPT };
        self.avail.flags.store(0, flags);
    }
}
