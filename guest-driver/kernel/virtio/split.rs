// SPDX-License-Identifier: GPL-2.0

//! The memory of a split ring (VIRTIO 1.3, 2.7).

use super::{
    features::Features,
    memory::{
        check,
        full_barrier,
        split_rest,
        write_descriptor,
        Descriptor,
        Tables,
        INDIRECT,
        NEXT,
        WRITE, //
    },
    queue::Layout,
    ring::{
        delayed_event,
        need_event,
        Broken,
        Chain,
        Ledger,
        Refused, //
    },
    transport::QueueAddresses, //
};
use crate::dma::Segment;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::Coherent,
    io::{
        io_project,
        io_read,
        io_write,
        IoBase, //
    },
    prelude::*,
    sync::barrier::{
        dma_mb,
        Read,
        Write, //
    }, //
};

/// The driver area: flags, index, ring, used_event (2.7.6), each a little-endian u16.
pub(super) mod driver_area {
    pub(in super::super) const FLAGS: usize = 0;
    pub(in super::super) const INDEX: usize = 1;
    pub(in super::super) const RING: usize = 2;
    /// VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub(in super::super) const NO_INTERRUPT: u16 = 1;

    /// Number of u16 for a ring of `size`.
    pub(in super::super) const fn length(size: u16) -> usize {
        used_event(size) + 1
    }

    pub(in super::super) const fn used_event(size: u16) -> usize {
        RING + size as usize
    }
}

/// The device area: flags and index, ring of identifier and length, avail_event (2.7.8), taken as
/// little-endian u32.
pub(super) mod device_area {
    pub(in super::super) const FLAGS_AND_INDEX: usize = 0;
    pub(in super::super) const RING: usize = 1;
    /// VIRTQ_USED_F_NO_NOTIFY.
    pub(in super::super) const NO_NOTIFY: u16 = 1;

    /// Number of u32 for a ring of `size`.
    pub(in super::super) const fn length(size: u16) -> usize {
        avail_event(size) + 1
    }

    pub(in super::super) const fn avail_event(size: u16) -> usize {
        RING + 2 * size as usize
    }
}

/// A split ring.
pub(super) struct Split {
    /// Number of descriptors less one.
    mask: u16,
    pub(super) event_idx: bool,
    order_platform: bool,
    /// Callbacks are asked for, as far as the device has been told.
    callback: bool,
    /// The available index with all chains that were added.
    added: u16,
    /// The available index as the device can see it.
    published: u16,
    /// The used index up to which chains were taken back.
    popped: u16,
    /// The used index when it was last read.
    used: u16,
    pub(super) descriptors: Coherent<[Descriptor]>,
    pub(super) driver: Coherent<[u16]>,
    pub(super) device: Coherent<[u32]>,
}

impl Split {
    /// `size` must be a valid one.
    pub(super) fn new(dev: &Device<Bound>, size: u16, features: Features) -> Result<Self> {
        Ok(Self {
            mask: size.wrapping_sub(1),
            event_idx: features.contains(Features::EVENT_IDX),
            order_platform: features.contains(Features::ORDER_PLATFORM),
            callback: true,
            added: 0,
            published: 0,
            popped: 0,
            used: 0,
            descriptors: Coherent::zeroed_slice(dev, size.into(), GFP_KERNEL)?,
            driver: Coherent::zeroed_slice(dev, driver_area::length(size), GFP_KERNEL)?,
            device: Coherent::zeroed_slice(dev, device_area::length(size), GFP_KERNEL)?,
        })
    }

    fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    #[inline(always)]
    fn write_descriptor(&self, place: u16, addr: u64, rest: u64) -> Result<(), Refused> {
        write_descriptor(self.descriptors.as_view(), place.into(), addr, rest)
            .map_err(|_| Refused::Broken)
    }

    #[inline(always)]
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

    /// Reads the used index. Returns whether there is something to pop.
    #[inline(always)]
    fn look(&mut self) -> Result<bool, Broken> {
        let index = self.used_index();
        if index == self.popped {
            return Ok(false);
        }
        let available = self.published;
        if index.wrapping_sub(self.popped) > available.wrapping_sub(self.popped) {
            return Err(Broken::UsedIndex { index, available });
        }
        // The index before the elements that it is about.
        dma_mb(Read);
        self.used = index;
        Ok(true)
    }

    #[inline(always)]
    fn enable_callback_at(&mut self, event: u16) -> bool {
        self.callback = true;
        if self.event_idx {
            self.write_used_event(event);
        } else {
            let _ = self.write_driver(driver_area::FLAGS, 0);
        }
        // The wish before looking for what was used before the device saw it.
        full_barrier(self.order_platform);
        let ahead = self.used_index().wrapping_sub(self.popped);
        ahead > event.wrapping_sub(self.popped)
    }

    #[inline(always)]
    fn used_index(&self) -> u16 {
        // CAST: The index is in the last two of four octets.
        self.read_device(device_area::FLAGS_AND_INDEX)
            .map_or(self.popped, |word| (word >> 16) as u16)
    }

    #[inline(always)]
    fn write_used_event(&self, event: u16) {
        let _ = self.write_driver(driver_area::used_event(self.size()), event);
    }

    #[inline(always)]
    fn write_driver(&self, place: usize, value: u16) -> Result {
        io_write!(self.driver, [try: place], value.to_le());
        Ok(())
    }

    #[inline(always)]
    fn read_device(&self, place: usize) -> Result<u32> {
        Ok(u32::from_le(io_read!(self.device, [try: place])))
    }

    #[inline(always)]
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

impl Layout for Split {
    fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            size: self.size(),
            descriptor: self.descriptors.dma_address(),
            driver: self.driver.dma_address(),
            device: self.device.dma_address(),
        }
    }

    #[inline]
    fn has_event_idx(&self) -> bool {
        self.event_idx
    }

    #[inline(always)]
    fn write_chain<T>(
        &mut self,
        ledger: &Ledger<T>,
        count: u16,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused> {
        let mut chain = Chain {
            count,
            tail: 0,
            after: ledger.head(),
            room: 0,
        };
        let mut left = count;
        let mut write = |segment: &Segment, flags: u16| -> Result<(), Refused> {
            chain.tail = chain.after;
            chain.after = ledger.next(chain.tail);
            left = left.wrapping_sub(1);
            check(segment, flags, &mut chain.room)?;
            let flags = if left == 0 { flags } else { flags | NEXT };
            let rest = split_rest(segment.len, flags, chain.after);
            self.write_descriptor(chain.tail, segment.addr, rest)
        };
        for segment in out {
            write(segment, 0)?;
        }
        for segment in input {
            write(segment, WRITE)?;
        }
        Ok(chain)
    }

    #[inline(always)]
    fn write_table<T>(
        &mut self,
        ledger: &Ledger<T>,
        tables: &Tables,
        count: usize,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused> {
        let head = ledger.head();
        let (table, room) = tables.write(head, count, out, input, |len, flags, place, last| {
            let flags = if last { flags } else { flags | NEXT };
            // CAST: A table has fewer than 65536 descriptors.
            split_rest(len, flags, place.wrapping_add(1) as u16)
        })?;
        self.write_descriptor(head, table.addr, split_rest(table.len, INDIRECT, 0))?;
        Ok(Chain {
            count: 1,
            tail: head,
            after: ledger.next(head),
            room,
        })
    }

    #[inline(always)]
    fn add(&mut self, head: u16, _chain: &Chain) {
        // The place is in the ring, whatever the index.
        let _ = self.write_driver(
            driver_area::RING + usize::from(self.added & self.mask),
            head,
        );
        self.added = self.added.wrapping_add(1);
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
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
        full_barrier(self.order_platform);
        self.wants_notification(new, old).unwrap_or(true)
    }

    #[inline(always)]
    fn peek(&mut self) -> Result<Option<(u32, u32)>, Broken> {
        if self.popped == self.used && !self.look()? {
            return Ok(None);
        }
        let place = device_area::RING + 2 * usize::from(self.popped & self.mask);
        self.read_element(place)
            .map(Some)
            .map_err(|_| Broken::Internal)
    }

    #[inline(always)]
    fn pop(&mut self, _count: u16) {
        self.popped = self.popped.wrapping_add(1);
    }

    #[inline(always)]
    fn disable_callback(&mut self) {
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

    #[inline(always)]
    fn enable_callback(&mut self) -> bool {
        self.enable_callback_at(self.popped)
    }

    #[inline(always)]
    fn enable_callback_delayed(&mut self) -> bool {
        let outstanding = self.published.wrapping_sub(self.popped);
        if outstanding == 0 || !self.event_idx {
            return self.enable_callback();
        }
        // The interrupt comes when that many are used: the event is one before (2.7.7.2).
        self.enable_callback_at(delayed_event(self.popped, outstanding).wrapping_sub(1))
    }

    fn reset(&mut self) {
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
    }
}
