// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A virtqueue with its buffers: one for each entry, of one size.

use anyhow::{Context, Result, bail};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::memory::Memory;
use super::ring::{Buffer, Form, Place, Ring, Used};

/// What a queue is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Entries, and buffers.
    pub size: u16,
    /// Octets of a buffer that the device is told of.
    pub len: u32,
    /// Whether they are for the device to write into.
    pub writable: bool,
}

impl Shape {
    /// Octets from one buffer to the next: each begins a cache line.
    fn stride(self) -> usize {
        (self.len as usize).next_multiple_of(64)
    }

    /// Where a buffer begins, from the first on.
    pub fn offset(self, id: u16) -> usize {
        usize::from(id) * self.stride()
    }

    /// Octets of all buffers.
    pub fn octets(self) -> usize {
        usize::from(self.size) * self.stride()
    }
}

/// A virtqueue.
#[derive(Debug)]
pub struct Queue<'m> {
    /// Tells the device.
    pub kick: EventFd,
    /// Tells the driver.
    pub call: EventFd,
    ring: Ring<'m>,
    shape: Shape,
    place: Place,
    buffers: Vec<VolatileSlice<'m>>,
    /// The guest's address of the first.
    base: u64,
    /// Numbers of the buffers that the driver has; the device has the others.
    free: Vec<u16>,
    away: Vec<bool>,
    offered: bool,
    /// Notifications that the device wanted.
    pub kicks: u64,
}

impl<'m> Queue<'m> {
    /// A queue at `place` with its buffers from `at` on.
    pub fn new(
        memory: &'m Memory,
        form: Form,
        place: Place,
        shape: Shape,
        at: usize,
    ) -> Result<Self> {
        let buffer = |id| memory.slice(at + shape.offset(id), shape.len as usize);
        Ok(Queue {
            kick: EventFd::new(EFD_NONBLOCK).context("no eventfd")?,
            call: EventFd::new(EFD_NONBLOCK).context("no eventfd")?,
            ring: Ring::new(memory, form, place)?,
            shape,
            place,
            buffers: (0..shape.size).map(buffer).collect::<Result<_>>()?,
            base: memory.guest(at),
            free: (0..shape.size).rev().collect(),
            away: vec![false; usize::from(shape.size)],
            offered: false,
            kicks: 0,
        })
    }

    /// Where its ring lies.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Where the device is to begin.
    pub fn ring_base(&self) -> u16 {
        self.ring.base()
    }

    /// What it is like.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// A buffer's memory.
    pub fn buffer(&self, id: u16) -> Result<&VolatileSlice<'m>> {
        let buffer = self.buffers.get(usize::from(id));
        buffer.with_context(|| format!("there is no buffer {id}"))
    }

    /// All buffers.
    pub fn buffers(&self) -> &[VolatileSlice<'m>] {
        &self.buffers
    }

    /// Gives the device a free buffer, after `fill`, with the first `len` octets of it.
    #[inline]
    pub fn offer(&mut self, len: u32, fill: impl FnOnce(&VolatileSlice<'m>)) -> bool {
        let Some(id) = self.free.pop() else {
            return false;
        };
        let at = usize::from(id);
        let (Some(buffer), Some(away)) = (self.buffers.get(at), self.away.get_mut(at)) else {
            return false;
        };
        fill(buffer);
        *away = true;
        self.ring.offer(Buffer {
            id,
            addr: self.base + self.shape.offset(id) as u64,
            len,
            writable: self.shape.writable,
        });
        self.offered = true;
        true
    }

    /// Gives the device all free buffers to write into.
    #[inline]
    pub fn refill(&mut self) {
        while self.offer(self.shape.len, |_| ()) {}
    }

    /// Makes what was given available, and notifies the device if it wants that.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.offered) {
            return Ok(());
        }
        if self.ring.publish() {
            self.kicks += 1;
            self.kick.write(1).context("cannot notify the device")?;
        }
        Ok(())
    }

    /// The next buffer that the device has used. [`Queue::release`] makes it free again.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<Used>> {
        let Some(used) = self.ring.reap() else {
            return Ok(None);
        };
        match self.away.get_mut(usize::from(used.id)) {
            Some(away) if *away => *away = false,
            _ => bail!(
                "the backend has used buffer {}, which it did not have",
                used.id
            ),
        }
        if used.len > self.shape.len {
            bail!(
                "the backend says that it has written {} octets into a buffer of {}",
                used.len,
                self.shape.len
            );
        }
        Ok(Some(used))
    }

    /// Makes a buffer free that the device has used.
    #[inline]
    pub fn release(&mut self, id: u16) {
        self.free.push(id);
    }

    /// Buffers that the device has.
    pub fn away(&self) -> usize {
        self.away.iter().filter(|away| **away).count()
    }

    /// Whether the device is to interrupt.
    pub fn set_interrupts(&self, wanted: bool) {
        self.ring.set_interrupts(wanted);
    }
}
