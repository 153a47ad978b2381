// SPDX-License-Identifier: GPL-2.0

//! The memory of a packed ring (VIRTIO 1.3, 2.8).
//!
//! The device answers in the descriptors themselves. So which ones a chain took and how far it goes
//! is only in the ledger: identifiers are its slots, each with the number of descriptors that its
//! chain has in the ring.

use super::{
    features::Features,
    memory::{
        check,
        full_barrier,
        packed_rest,
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
        Io,
        IoBase, //
    },
    prelude::*,
    sync::barrier::{
        dma_mb,
        Read,
        Write, //
    }, //
};

/// VIRTQ_DESC_F_AVAIL: equals the driver's wrap counter when the descriptor is made available.
const AVAIL: u16 = 1 << 7;
/// VIRTQ_DESC_F_USED: equals the wrap counter when the descriptor is used.
const USED: u16 = 1 << 15;

/// RING_EVENT_FLAGS_ENABLE: notify always.
const EVENT_ENABLE: u16 = 0;
/// RING_EVENT_FLAGS_DISABLE: notify never.
const EVENT_DISABLE: u16 = 1;
/// RING_EVENT_FLAGS_DESC: notify of one descriptor.
const EVENT_DESC: u16 = 2;

// An event suppression structure (2.8.14), as little-endian u16.
const EVENT_PLACE: usize = 0;
const EVENT_FLAGS: usize = 1;
/// In the place: the wrap counter.
const EVENT_WRAP: u16 = 1 << 15;

/// A place in the ring, and how often the end was passed before.
#[derive(Clone, Copy)]
struct Position {
    place: u16,
    /// The wrap counter (2.8.1).
    wrap: bool,
}

impl Position {
    const START: Self = Self {
        place: 0,
        wrap: true,
    };

    /// The position `count` further on, `count` being at most `size`.
    #[inline]
    fn advance(self, count: u16, size: u16) -> Self {
        let place = self.place.wrapping_add(count);
        if place >= size {
            Self {
                place: place.wrapping_sub(size),
                wrap: !self.wrap,
            }
        } else {
            Self { place, ..self }
        }
    }

    /// The position `count` before, `count` being at most `size`.
    #[inline]
    fn back(self, count: u16, size: u16) -> Self {
        match self.place.checked_sub(count) {
            Some(place) => Self { place, ..self },
            None => Self {
                place: self.place.wrapping_add(size).wrapping_sub(count),
                wrap: !self.wrap,
            },
        }
    }

    /// The flags of a descriptor that is made available here.
    #[inline]
    fn available(self) -> u16 {
        if self.wrap {
            AVAIL
        } else {
            USED
        }
    }

    /// Whether a descriptor with `flags` here was used.
    #[inline]
    fn is_used(self, flags: u16) -> bool {
        let (available, used) = (flags & AVAIL != 0, flags & USED != 0);
        available == used && used == self.wrap
    }

    /// As the place of an event.
    #[inline]
    fn as_event(self) -> u16 {
        self.place | if self.wrap { EVENT_WRAP } else { 0 }
    }
}

/// A packed ring.
///
/// The first descriptor of what is added stays unavailable until it is published: the device looks
/// no further.
pub(super) struct Packed {
    size: u16,
    pub(super) event_idx: bool,
    order_platform: bool,
    /// The flags of the driver area as the device can see them.
    callback: u16,
    /// Where the next chain goes.
    added: Position,
    /// How many descriptors were added since the last [`Self::publish`].
    unpublished: u16,
    /// The second word of the first of these, which is not yet written.
    first: u64,
    /// How many descriptors the device can see and has not given back.
    outstanding: u16,
    /// Where the next used descriptor will be.
    popped: Position,
    pub(super) descriptors: Coherent<[Descriptor]>,
    pub(super) driver: Coherent<[u16]>,
    pub(super) device: Coherent<[u16]>,
}

impl Packed {
    /// `size` must be a valid one.
    pub(super) fn new(dev: &Device<Bound>, size: u16, features: Features) -> Result<Self> {
        Ok(Self {
            size,
            event_idx: features.contains(Features::EVENT_IDX),
            order_platform: features.contains(Features::ORDER_PLATFORM),
            callback: EVENT_ENABLE,
            added: Position::START,
            unpublished: 0,
            first: 0,
            outstanding: 0,
            popped: Position::START,
            descriptors: Coherent::zeroed_slice(dev, size.into(), GFP_KERNEL)?,
            driver: Coherent::zeroed_slice(dev, 2, GFP_KERNEL)?,
            device: Coherent::zeroed_slice(dev, 2, GFP_KERNEL)?,
        })
    }

    #[inline]
    fn write_descriptor(&mut self, at: Position, addr: u64, rest: u64) -> Result<(), Refused> {
        let place = usize::from(at.place);
        self.try_write_descriptor(place, addr, rest, at.place == self.added.place)
            .map_err(|_| Refused::Broken)
    }

    /// `head`: the descriptor is the first of its chain.
    #[inline]
    fn try_write_descriptor(&mut self, place: usize, addr: u64, rest: u64, head: bool) -> Result {
        if head && self.unpublished == 0 {
            // What is there now says "used" or nothing, and does so until it is published.
            self.first = rest;
            let descriptor = io_project!(self.descriptors, [try: place]);
            io_project!(descriptor, .addr).copy_write(u64::to_le(addr));
            return Ok(());
        }
        write_descriptor(self.descriptors.as_view(), place, addr, rest)
    }

    #[inline]
    fn wants_notification(&self, count: u16) -> Result<bool> {
        let flags = u16::from_le(io_read!(self.device, [try: EVENT_FLAGS]));
        if flags != EVENT_DESC || !self.event_idx {
            return Ok(flags != EVENT_DISABLE);
        }
        // The flags before the place, which is written before them.
        dma_mb(Read);
        let event = u16::from_le(io_read!(self.device, [try: EVENT_PLACE]));
        let mut place = event & !EVENT_WRAP;
        // Both on one scale: places of the lap before are below 0.
        if (event & EVENT_WRAP != 0) != self.added.wrap {
            place = place.wrapping_sub(self.size);
        }
        let new = self.added.place;
        Ok(need_event(place, new, new.wrapping_sub(count)))
    }

    #[inline]
    fn is_used(&self) -> Result<bool> {
        // CAST: The flags are the last two octets.
        let flags = (self.read_rest(self.popped.place)? >> 48) as u16;
        Ok(self.outstanding != 0 && self.popped.is_used(flags))
    }

    #[inline]
    fn enable_callback_at(&mut self, event: Position) -> bool {
        if self.event_idx {
            let _ = self.write_driver(EVENT_PLACE, event.as_event());
            // The place before the flags that say it counts.
            dma_mb(Write);
            self.set_callback(EVENT_DESC);
        } else {
            self.set_callback(EVENT_ENABLE);
        }
        // The wish before looking for what was used before the device saw it. In a delayed wish
        // the descriptor asked for may be inside a chain, where nothing is written: what counts
        // is whether anything was used.
        full_barrier(self.order_platform);
        self.is_used().unwrap_or(true)
    }

    #[inline]
    fn set_callback(&mut self, flags: u16) {
        if self.callback != flags {
            self.callback = flags;
            let _ = self.write_driver(EVENT_FLAGS, flags);
        }
    }

    #[inline]
    fn read_rest(&self, place: u16) -> Result<u64> {
        let descriptor = io_project!(self.descriptors, [try: usize::from(place)]);
        Ok(u64::from_le(io_project!(descriptor, .rest).copy_read()))
    }

    #[inline]
    fn write_rest(&self, place: u16, rest: u64) -> Result {
        let descriptor = io_project!(self.descriptors, [try: usize::from(place)]);
        io_project!(descriptor, .rest).copy_write(rest.to_le());
        Ok(())
    }

    #[inline]
    fn write_driver(&self, place: usize, value: u16) -> Result {
        io_write!(self.driver, [try: place], value.to_le());
        Ok(())
    }

    fn clear_device(&self, place: usize) -> Result {
        io_write!(self.device, [try: place], 0);
        Ok(())
    }
}

impl Layout for Packed {
    fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            size: self.size,
            descriptor: self.descriptors.dma_address(),
            driver: self.driver.dma_address(),
            device: self.device.dma_address(),
        }
    }

    #[inline]
    fn has_event_idx(&self) -> bool {
        self.event_idx
    }

    #[inline]
    fn write_chain<T>(
        &mut self,
        ledger: &Ledger<T>,
        count: u16,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused> {
        // All is looked at first: with the flags a descriptor is as good as published.
        let mut room = 0;
        for segment in out {
            check(segment, 0, &mut room)?;
        }
        for segment in input {
            check(segment, WRITE, &mut room)?;
        }
        let id = ledger.head();
        let size = self.size;
        let mut left = count;
        let mut at = self.added;
        let mut write = |segment: &Segment, flags: u16| -> Result<(), Refused> {
            left = left.wrapping_sub(1);
            let flags = if left == 0 { flags } else { flags | NEXT };
            let rest = packed_rest(segment.len, id, flags | at.available());
            self.write_descriptor(at, segment.addr, rest)?;
            at = at.advance(1, size);
            Ok(())
        };
        for segment in out {
            write(segment, 0)?;
        }
        for segment in input {
            write(segment, WRITE)?;
        }
        Ok(Chain {
            count,
            tail: id,
            after: ledger.next(id),
            room,
        })
    }

    #[inline]
    fn write_table<T>(
        &mut self,
        ledger: &Ledger<T>,
        tables: &Tables,
        count: usize,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused> {
        let id = ledger.head();
        // In a table the order is that of the places (2.8.7).
        let (table, room) = tables.write(id, count, out, input, |len, flags, _, _| {
            packed_rest(len, 0, flags)
        })?;
        let flags = INDIRECT | self.added.available();
        self.write_descriptor(self.added, table.addr, packed_rest(table.len, id, flags))?;
        Ok(Chain {
            count: 1,
            tail: id,
            after: ledger.next(id),
            room,
        })
    }

    #[inline]
    fn add(&mut self, _head: u16, chain: &Chain) {
        self.added = self.added.advance(chain.count, self.size);
        self.unpublished = self.unpublished.wrapping_add(chain.count);
    }

    fn publish(&mut self) -> bool {
        let count = self.unpublished;
        if count == 0 {
            return false;
        }
        let first = self.added.back(count, self.size);
        // All descriptors before the one that makes them available (2.8.21.2).
        dma_mb(Write);
        self.unpublished = 0;
        self.outstanding = self.outstanding.wrapping_add(count);
        // None of these is outside the areas.
        let _ = self.write_rest(first.place, self.first);
        // That before looking whether the device sleeps (2.8.21.3).
        full_barrier(self.order_platform);
        self.wants_notification(count).unwrap_or(true)
    }

    #[inline]
    fn peek(&mut self) -> Result<Option<(u32, u32)>, Broken> {
        if !self.is_used().map_err(|_| Broken::Internal)? {
            return Ok(None);
        }
        // The flags before the rest of the descriptor, and the buffer.
        dma_mb(Read);
        let rest = self
            .read_rest(self.popped.place)
            .map_err(|_| Broken::Internal)?;
        // CAST: The fields are taken apart.
        Ok(Some((u32::from((rest >> 32) as u16), rest as u32)))
    }

    #[inline]
    fn pop(&mut self, count: u16) {
        self.popped = self.popped.advance(count, self.size);
        // A device that gives back what it cannot see yet is not worth more than this.
        self.outstanding = self.outstanding.saturating_sub(count);
    }

    fn disable_callback(&mut self) {
        self.set_callback(EVENT_DISABLE);
    }

    fn enable_callback(&mut self) -> bool {
        self.enable_callback_at(self.popped)
    }

    fn enable_callback_delayed(&mut self) -> bool {
        let count = delayed_event(0, self.outstanding);
        // The interrupt comes when that many are used: the event is one before.
        self.enable_callback_at(self.popped.advance(count.saturating_sub(1), self.size))
    }

    fn reset(&mut self) {
        for place in 0..self.size {
            let _ = self.write_rest(place, 0);
        }
        for place in [EVENT_PLACE, EVENT_FLAGS] {
            let _ = self.write_driver(place, 0);
            let _ = self.clear_device(place);
        }
        self.callback = EVENT_ENABLE;
        self.added = Position::START;
        self.unpublished = 0;
        self.outstanding = 0;
        self.popped = Position::START;
    }
}
