// SPDX-License-Identifier: GPL-2.0

//! Virtqueues: split rings (VIRTIO 1.3, 2.7) in memory that the device can reach.
//!
//! # Design
//!
//! A [`Virtqueue`] has two sides. The [`Ledger`] is private memory and is believed; the three areas
//! of the ring are memory that the device can write to as it likes, and are only written, but for
//! what the device says there: the used index and elements, and when it wants to be notified.
//!
//! With each buffer goes a token, which owns what the buffer is made of. It is in the queue's
//! keeping until the device gives the buffer back, so memory cannot be freed while the device may
//! write to it.
//!
//! # Locking
//!
//! All methods take `&mut self`: whoever shares a queue among contexts serialises them.
//!
//! # Memory ordering
//!
//! Between a ring's memory and the device DMA barriers are used, which are right for hardware and
//! for other processors (6.1, `ORDER_PLATFORM`). Only the full barrier, before looking whether the
//! other side sleeps, has a cheaper form between processors.

pub(crate) use crate::dma::Segment;

use super::{
    features::Features,
    ring::{
        delayed_event,
        is_valid_size,
        need_event,
        Broken,
        Chain,
        Full,
        Ledger,
        Refused,
        Used,
        MAX_SIZE, //
    },
    transport::QueueAddresses, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::{
        Coherent,
        CoherentView, //
    },
    io::{
        io_project,
        io_read,
        io_write,
        Io,
        IoBase, //
    },
    prelude::*,
    sync::barrier::{
        dma_mb,
        mb,
        smp_mb,
        Full as FullBarrier,
        Read,
        Write, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    }, //
};

#[cfg(CONFIG_KUNIT = "y")]
#[path = "queue_tests.rs"]
mod tests;

/// A descriptor (2.7.5), little-endian.
///
/// In two words, since so it is written in two stores.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
struct Descriptor {
    addr: u64,
    /// Length, flags and next, 32, 16 and 16 bits from the least significant on.
    rest: u64,
}

// SAFETY: All bit patterns are values: the fields are integers and there is no padding.
unsafe impl FromBytes for Descriptor {}
// SAFETY: The fields are integers and there is no padding.
unsafe impl AsBytes for Descriptor {}

/// VIRTQ_DESC_F_NEXT: the chain goes on at `next`.
const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: for the device to write.
const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: not a piece, but a table of pieces.
const INDIRECT: u16 = 4;

impl Descriptor {
    /// Writes the descriptor at `place` of `table`.
    #[inline]
    fn write(
        table: CoherentView<'_, [Descriptor]>,
        place: usize,
        segment: Segment,
        flags: u16,
        next: u16,
    ) -> Result {
        let rest = u64::from(segment.len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let descriptor = io_project!(table, [try: place]);
        io_project!(descriptor, .addr).copy_write(u64::to_le(segment.addr));
        io_project!(descriptor, .rest).copy_write(rest.to_le());
        Ok(())
    }
}

/// The driver area: flags, index, ring, used_event (2.7.6), each a little-endian u16.
mod driver_area {
    pub(super) const FLAGS: usize = 0;
    pub(super) const INDEX: usize = 1;
    pub(super) const RING: usize = 2;
    /// VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub(super) const NO_INTERRUPT: u16 = 1;

    /// Number of u16 for a ring of `size`.
    pub(super) const fn length(size: u16) -> usize {
        used_event(size) + 1
    }

    pub(super) const fn used_event(size: u16) -> usize {
        RING + size as usize
    }
}

/// The device area: flags and index, ring of identifier and length, avail_event (2.7.8), taken as
/// little-endian u32.
mod device_area {
    pub(super) const FLAGS_AND_INDEX: usize = 0;
    pub(super) const RING: usize = 1;
    /// VIRTQ_USED_F_NO_NOTIFY.
    pub(super) const NO_NOTIFY: u16 = 1;

    /// Number of u32 for a ring of `size`.
    pub(super) const fn length(size: u16) -> usize {
        avail_event(size) + 1
    }

    pub(super) const fn avail_event(size: u16) -> usize {
        RING + 2 * size as usize
    }
}

/// Tables of descriptors for chains that take but one descriptor of the ring (2.7.5.3): one for
/// each descriptor, all made beforehand.
struct Tables {
    /// Each a number of tables that is a power of two; the last may have fewer.
    chunks: KVec<Coherent<[Descriptor]>>,
    /// That power.
    shift: u32,
    /// Descriptors in a table.
    length: u16,
}

impl Tables {
    /// More is asked for in one piece only for a single table.
    const CHUNK_OCTETS: usize = 32 * 1024;

    fn new(dev: &Device<Bound>, count: u16, length: u16) -> Result<Self> {
        let octets = usize::from(length) * size_of::<Descriptor>();
        let shift = (Self::CHUNK_OCTETS / octets.max(1)).max(1).ilog2();
        let per_chunk = 1usize << shift;
        let mut chunks = KVec::new();
        let mut left = usize::from(count);
        while left > 0 {
            let tables = left.min(per_chunk);
            let descriptors = tables * usize::from(length);
            chunks.push(
                Coherent::zeroed_slice(dev, descriptors, GFP_KERNEL)?,
                GFP_KERNEL,
            )?;
            left -= tables;
        }
        Ok(Self {
            chunks,
            shift,
            length,
        })
    }

    /// The first `count` descriptors of the table of descriptor `head`.
    #[inline]
    fn table(&self, head: u16, count: usize) -> Result<CoherentView<'_, [Descriptor]>> {
        let chunk = self
            .chunks
            .get(usize::from(head) >> self.shift)
            .ok_or(EINVAL)?;
        let table = usize::from(head) & ((1 << self.shift) - 1);
        let first = table * usize::from(self.length);
        Ok(io_project!(chunk, [try: first..first + count]))
    }
}

/// A queue of buffers for the device, each with a token of type `T`.
///
/// It must not be dropped while the device may use it: reset the device, or the queue, first.
pub(crate) struct Virtqueue<T> {
    index: u16,
    /// Number of descriptors less one.
    mask: u16,
    event_idx: bool,
    /// The device is real hardware: barriers between processors are not enough.
    order_platform: bool,
    /// Callbacks are asked for, as far as the device has been told.
    callback: bool,
    /// The available index with all buffers that were added.
    added: u16,
    /// The available index as the device can see it.
    published: u16,
    /// The used index up to which buffers were popped.
    popped: u16,
    /// The used index when it was last read.
    used: u16,
    broken: Option<Broken>,
    ledger: Ledger<T>,
    descriptors: Coherent<[Descriptor]>,
    driver: Coherent<[u16]>,
    device: Coherent<[u32]>,
    tables: Option<Tables>,
}

impl<T> Virtqueue<T> {
    /// Makes queue `index` with `size` descriptors, a power of two up to 32768.
    ///
    /// `EINVAL` if it is not one. May sleep.
    pub(crate) fn new(
        dev: &Device<Bound>,
        index: u16,
        size: u16,
        features: Features,
    ) -> Result<Self> {
        Self::with_tables(dev, index, size, features, 1)
    }

    /// The same, for chains of up to `segments` pieces that, if the features have
    /// [`Features::INDIRECT_DESC`], take one descriptor each.
    pub(crate) fn with_tables(
        dev: &Device<Bound>,
        index: u16,
        size: u16,
        features: Features,
        segments: u16,
    ) -> Result<Self> {
        if !is_valid_size(size) {
            return Err(EINVAL);
        }
        let tables = if segments > 1 && features.contains(Features::INDIRECT_DESC) {
            Some(Tables::new(dev, size, segments)?)
        } else {
            None
        };
        Ok(Self {
            index,
            mask: size - 1,
            event_idx: features.contains(Features::EVENT_IDX),
            order_platform: features.contains(Features::ORDER_PLATFORM),
            callback: true,
            added: 0,
            published: 0,
            popped: 0,
            used: 0,
            broken: None,
            ledger: Ledger::new(size)?,
            descriptors: Coherent::zeroed_slice(dev, size.into(), GFP_KERNEL)?,
            driver: Coherent::zeroed_slice(dev, driver_area::length(size), GFP_KERNEL)?,
            device: Coherent::zeroed_slice(dev, device_area::length(size), GFP_KERNEL)?,
            tables,
        })
    }

    /// What the device must be told of the queue.
    pub(crate) fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            size: self.size(),
            descriptor: self.descriptors.dma_address(),
            driver: self.driver.dma_address(),
            device: self.device.dma_address(),
        }
    }

    /// The number of the queue.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    pub(crate) fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    /// Number of free descriptors. A buffer takes as many as it has pieces, or one if it goes into
    /// a table.
    #[inline]
    pub(crate) fn free(&self) -> u16 {
        self.ledger.free()
    }

    /// Number of buffers that were added and not popped.
    #[inline]
    pub(crate) fn outstanding(&self) -> u16 {
        self.added.wrapping_sub(self.popped)
    }

    /// What the device did wrong, if it did.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// Adds a buffer: pieces for the device to read, then pieces for it to write.
    ///
    /// The device sees it with the next [`Self::publish`].
    #[inline]
    pub(crate) fn add(
        &mut self,
        out: &[Segment],
        input: &[Segment],
        token: T,
    ) -> Result<(), Full<T>> {
        match self.write_buffer(out, input) {
            Ok(chain) => {
                let head = self.ledger.head();
                if let Err(token) = self.ledger.take(chain, token) {
                    let why = Refused::NoRoom;
                    return Err(Full { token, why });
                }
                // The place is in the ring, whatever the index.
                let _ = self.write_available(head);
                self.added = self.added.wrapping_add(1);
                Ok(())
            }
            Err(why) => Err(Full { token, why }),
        }
    }

    /// Writes a buffer to free descriptors, which stay free.
    #[inline]
    fn write_buffer(&self, out: &[Segment], input: &[Segment]) -> Result<Chain, Refused> {
        if self.broken.is_some() {
            return Err(Refused::Broken);
        }
        let count = out.len().saturating_add(input.len());
        if count == 0 {
            return Err(Refused::Empty);
        }
        match &self.tables {
            Some(tables) if count > 1 && count <= usize::from(tables.length) => {
                if self.free() == 0 {
                    return Err(Refused::NoRoom);
                }
                self.write_table(tables, count, out, input)
            }
            _ => {
                if count > usize::from(self.size()) {
                    return Err(Refused::TooLong);
                }
                if count > usize::from(self.free()) {
                    return Err(Refused::NoRoom);
                }
                // CAST: It is at most the size.
                self.write_chain(count as u16, out, input)
            }
        }
    }

    /// Writes `count` pieces, of which there are as many, to the first free descriptors.
    #[inline]
    fn write_chain(
        &self,
        count: u16,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused> {
        let mut chain = Chain {
            count,
            tail: 0,
            after: self.ledger.head(),
            room: 0,
        };
        let mut left = count;
        let mut write = |segment: &Segment, flags: u16| -> Result<(), Refused> {
            chain.tail = chain.after;
            chain.after = self.ledger.next(chain.tail);
            left = left.wrapping_sub(1);
            let flags = if left == 0 { flags } else { flags | NEXT };
            check(segment, flags, &mut chain.room)?;
            let place = usize::from(chain.tail);
            Descriptor::write(
                self.descriptors.as_view(),
                place,
                *segment,
                flags,
                chain.after,
            )
            .map_err(|_| Refused::Broken)
        };
        for segment in out {
            write(segment, 0)?;
        }
        for segment in input {
            write(segment, WRITE)?;
        }
        Ok(chain)
    }

    /// Writes `count` pieces, of which there are as many, to the table of the first free
    /// descriptor, and that descriptor.
    #[inline]
    fn write_table(
        &self,
        tables: &Tables,
        count: usize,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused> {
        let head = self.ledger.head();
        let table = tables.table(head, count).map_err(|_| Refused::Broken)?;
        let mut room = 0;
        let mut at = 0usize;
        let mut write = |segment: &Segment, flags: u16| -> Result<(), Refused> {
            let place = at;
            at = at.wrapping_add(1);
            let flags = if at == count { flags } else { flags | NEXT };
            check(segment, flags, &mut room)?;
            // CAST: A table has fewer than 65536 descriptors.
            Descriptor::write(table, place, *segment, flags, at as u16).map_err(|_| Refused::Broken)
        };
        for segment in out {
            write(segment, 0)?;
        }
        for segment in input {
            write(segment, WRITE)?;
        }
        let whole = Segment {
            addr: table.dma_address(),
            // CAST: A table has fewer than 65536 descriptors of 16 octets.
            len: (count * size_of::<Descriptor>()) as u32,
        };
        Descriptor::write(
            self.descriptors.as_view(),
            usize::from(head),
            whole,
            INDIRECT,
            0,
        )
        .map_err(|_| Refused::Broken)?;
        Ok(Chain {
            count: 1,
            tail: head,
            after: self.ledger.next(head),
            room,
        })
    }

    /// Puts `head` into the available ring.
    #[inline]
    fn write_available(&self, head: u16) -> Result {
        let place = driver_area::RING + usize::from(self.added & self.mask);
        io_write!(self.driver, [try: place], head.to_le());
        Ok(())
    }

    /// Makes all added buffers visible to the device. Returns whether it wants to be notified.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.added);
        if old == new {
            return false;
        }
        // Descriptors and ring before the index (2.7.13.2).
        dma_mb(Write);
        self.published = new;
        // None of these is outside the areas.
        let _ = self.write_driver(driver_area::INDEX, new);
        // The index before looking whether the device sleeps (2.7.13.3).
        self.full_barrier();
        self.wants_notification(new, old).unwrap_or(true)
    }

    #[inline]
    fn wants_notification(&self, new: u16, old: u16) -> Result<bool> {
        if self.event_idx {
            let word = self.read_device(device_area::avail_event(self.size()))?;
            // CAST: The event is in the first two of four octets.
            Ok(need_event(word as u16, new, old))
        } else {
            let word = self.read_device(device_area::FLAGS_AND_INDEX)?;
            // CAST: The flags are in the first two of four octets.
            Ok(word as u16 & device_area::NO_NOTIFY == 0)
        }
    }

    /// Takes back the next buffer that the device has used, if there is one.
    ///
    /// Fails, now and for good, if the device does what no device may do.
    #[inline]
    pub(crate) fn pop(&mut self) -> Result<Option<Used<T>>, Broken> {
        if self.popped == self.used && !self.look()? {
            return Ok(None);
        }
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let place = device_area::RING + 2 * usize::from(self.popped & self.mask);
        let Ok((id, len)) = self.read_element(place) else {
            return Err(self.break_off(Broken::Internal));
        };
        match self.ledger.give_back(id, len) {
            Ok(used) => {
                self.popped = self.popped.wrapping_add(1);
                Ok(Some(used))
            }
            Err(broken) => Err(self.break_off(broken)),
        }
    }

    /// Reads the used index. Returns whether there is something to pop.
    #[inline]
    fn look(&mut self) -> Result<bool, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let index = self.used_index();
        if index == self.popped {
            return Ok(false);
        }
        let available = self.published;
        if index.wrapping_sub(self.popped) > available.wrapping_sub(self.popped) {
            return Err(self.break_off(Broken::UsedIndex { index, available }));
        }
        // The index before the elements that it is about.
        dma_mb(Read);
        self.used = index;
        Ok(true)
    }

    #[cold]
    fn break_off(&mut self, broken: Broken) -> Broken {
        self.broken = Some(broken);
        broken
    }

    /// Asks the device for no more interrupts. Some may still come.
    #[inline]
    pub(crate) fn disable_callback(&mut self) {
        if !self.callback {
            return;
        }
        self.callback = false;
        if self.event_idx {
            // There is no "never": the event furthest away is the one just passed. It comes again
            // after 65536 buffers, to no harm.
            self.write_used_event(self.popped.wrapping_sub(1));
        } else {
            let _ = self.write_driver(driver_area::FLAGS, driver_area::NO_INTERRUPT);
        }
    }

    /// Asks the device for an interrupt with the next buffer that it uses.
    ///
    /// Returns true if there are used buffers already, for which none may come: poll again.
    #[inline]
    #[must_use]
    pub(crate) fn enable_callback(&mut self) -> bool {
        self.enable_callback_at(self.popped)
    }

    /// Asks the device for an interrupt when it has used most of the outstanding buffers; with the
    /// next one, if it cannot wait.
    ///
    /// Returns true if it has already: poll again.
    #[inline]
    #[must_use]
    pub(crate) fn enable_callback_delayed(&mut self) -> bool {
        let outstanding = self.published.wrapping_sub(self.popped);
        if outstanding == 0 || !self.event_idx {
            return self.enable_callback();
        }
        // The interrupt comes when that many are used: the event is one before (2.7.7.2).
        self.enable_callback_at(delayed_event(self.popped, outstanding).wrapping_sub(1))
    }

    fn enable_callback_at(&mut self, event: u16) -> bool {
        self.callback = true;
        if self.event_idx {
            self.write_used_event(event);
        } else {
            let _ = self.write_driver(driver_area::FLAGS, 0);
        }
        // The wish before looking for what was used before the device saw it.
        self.full_barrier();
        let ahead = self.used_index().wrapping_sub(self.popped);
        ahead > event.wrapping_sub(self.popped)
    }

    /// Takes out the tokens of all buffers that were not popped.
    ///
    /// The device, or the queue, must have been reset. Until [`Self::reset`] the queue is of no use.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.broken.get_or_insert(Broken::Internal);
        self.ledger.tokens()
    }

    /// Makes the queue as new; tokens that are left are dropped.
    ///
    /// The device, or the queue, must have been reset, and can then be given it anew.
    pub(crate) fn reset(&mut self) {
        self.ledger.clear();
        for place in 0..driver_area::length(self.size()) {
            let _ = self.write_driver(place, 0);
        }
        for place in 0..device_area::length(self.size()) {
            let _ = self.clear_device(place);
        }
        self.callback = true;
        self.added = 0;
        self.published = 0;
        self.popped = 0;
        self.used = 0;
        self.broken = None;
    }

    /// Orders everything before against everything after, for the other side too.
    #[inline]
    fn full_barrier(&self) {
        if self.order_platform || cfg!(not(CONFIG_SMP)) {
            // A kernel for one processor may run beside a device on another: its barriers between
            // processors would be too weak.
            mb(FullBarrier);
        } else {
            smp_mb(FullBarrier);
        }
    }

    #[inline]
    fn used_index(&self) -> u16 {
        // CAST: The index is in the last two of four octets.
        self.read_device(device_area::FLAGS_AND_INDEX)
            .map_or(self.popped, |word| (word >> 16) as u16)
    }

    #[inline]
    fn write_used_event(&self, event: u16) {
        let _ = self.write_driver(driver_area::used_event(self.size()), event);
    }

    #[inline]
    fn write_driver(&self, place: usize, value: u16) -> Result {
        io_write!(self.driver, [try: place], value.to_le());
        Ok(())
    }

    #[inline]
    fn read_device(&self, place: usize) -> Result<u32> {
        Ok(u32::from_le(io_read!(self.device, [try: place])))
    }

    #[inline]
    fn read_element(&self, place: usize) -> Result<(u32, u32)> {
        let element = io_project!(self.device, [try: place..place + 2]);
        let id = io_read!(element, [try: 0]);
        let len = io_read!(element, [try: 1]);
        Ok((u32::from_le(id), u32::from_le(len)))
    }

    fn clear_device(&self, place: usize) -> Result {
        io_write!(self.device, [try: place], 0);
        Ok(())
    }
}

/// The size for a queue of which the device allows `max` and `wanted` would be right: the largest
/// that a queue can have and that is neither more than the one nor the other.
pub(crate) fn best_size(max: u16, wanted: u16) -> Option<u16> {
    let limit = max.min(wanted).min(MAX_SIZE);
    Some(1 << limit.checked_ilog2()?)
}

/// Checks a piece of a buffer, and adds what of it the device can write to `room`.
#[inline]
fn check(segment: &Segment, flags: u16, room: &mut u32) -> Result<(), Refused> {
    if segment.len == 0 {
        return Err(Refused::Empty);
    }
    if flags & WRITE != 0 {
        *room = room.checked_add(segment.len).ok_or(Refused::TooLong)?;
    }
    Ok(())
}
