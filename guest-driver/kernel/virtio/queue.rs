// SPDX-License-Identifier: GPL-2.0

//! Virtqueues (VIRTIO 1.3, 2.6).
//!
//! # Design
//!
//! A [`Virtqueue`] has two sides. The [`Ledger`] is private memory and is believed; the three areas
//! of the ring, [`Split`] or [`Packed`], are memory that the device can write to as it likes, and
//! are only written, but for what the device says there: what it has used, and when it wants to be
//! notified.
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

use super::{
    features::Features,
    memory::Tables,
    packed::Packed,
    ring::{
        is_valid_size,
        Broken,
        Chain,
        Full,
        Ledger,
        Refused,
        Used,
        MAX_SIZE, //
    },
    split::Split,
    transport::QueueAddresses, //
};
use crate::dma::Segment;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    prelude::*, //
};

#[cfg(CONFIG_KUNIT = "y")]
#[path = "queue_tests/mod.rs"]
mod tests;

/// The areas of a ring in one layout, in terms of chains. What a method does is said of the one of
/// the same name in [`Virtqueue`].
pub(super) trait Layout {
    /// Where the areas are.
    fn addresses(&self) -> QueueAddresses;

    /// Whether a callback can be asked for ahead.
    fn has_event_idx(&self) -> bool;

    /// Writes `count` pieces, of which there are as many, to free descriptors, of which there are
    /// as many, too.
    fn write_chain<T>(
        &mut self,
        ledger: &Ledger<T>,
        count: u16,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused>;

    /// Writes `count` pieces, of which there are as many, to a table, and that to a free
    /// descriptor, of which there is one.
    fn write_table<T>(
        &mut self,
        ledger: &Ledger<T>,
        tables: &Tables,
        count: usize,
        out: &[Segment],
        input: &[Segment],
    ) -> Result<Chain, Refused>;

    /// Adds the chain that was just written. Its first slot is `head`.
    fn add(&mut self, head: u16, chain: &Chain);

    fn publish(&mut self) -> bool;

    /// What the device says of the next used chain, identifier and length, if there is one.
    fn peek(&mut self) -> Result<Option<(u32, u32)>, Broken>;

    /// Goes on behind that chain, which has `count` descriptors.
    fn pop(&mut self, count: u16);

    fn disable_callback(&mut self);

    fn enable_callback(&mut self) -> bool;

    fn enable_callback_delayed(&mut self) -> bool;

    fn reset(&mut self);
}

/// One of the two layouts.
enum Ring {
    Split(Split),
    Packed(Packed),
}

/// Calls a method of the layout that a queue has.
///
/// What is hot is inlined for split rings, which most devices have, and called for packed ones:
/// both inlined would be slower for both.
macro_rules! both {
    ($ring:expr, $ring_name:ident => $call:expr) => {
        match $ring {
            Ring::Split($ring_name) => $call,
            Ring::Packed($ring_name) => $call,
        }
    };
}

/// A queue of buffers for the device, each with a token of type `T`.
///
/// It must not be dropped while the device may use it: reset the device, or the queue, first.
pub(crate) struct Virtqueue<T> {
    index: u16,
    size: u16,
    /// Number of buffers that were added and not popped.
    outstanding: u16,
    broken: Option<Broken>,
    ledger: Ledger<T>,
    ring: Ring,
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

    /// The same, for buffers of up to `segments` pieces that, if the features have
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
        let ring = if features.contains(Features::RING_PACKED) {
            Ring::Packed(Packed::new(dev, size, features)?)
        } else {
            Ring::Split(Split::new(dev, size, features)?)
        };
        Ok(Self {
            index,
            size,
            outstanding: 0,
            broken: None,
            ledger: Ledger::new(size)?,
            ring,
            tables,
        })
    }

    /// What the device must be told of the queue.
    pub(crate) fn addresses(&self) -> QueueAddresses {
        both!(&self.ring, ring => ring.addresses())
    }

    /// The number of the queue.
    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Number of descriptors.
    pub(crate) fn size(&self) -> u16 {
        self.size
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
        self.outstanding
    }

    /// Whether a callback can be asked for ahead: for when a certain buffer is used.
    pub(crate) fn has_event_idx(&self) -> bool {
        both!(&self.ring, ring => ring.has_event_idx())
    }

    /// What the device did wrong, if it did.
    pub(crate) fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// Adds a buffer: pieces for the device to read, then pieces for it to write.
    ///
    /// The device sees it with the next [`Self::publish`].
    #[inline(always)]
    pub(crate) fn add(
        &mut self,
        out: &[Segment],
        input: &[Segment],
        token: T,
    ) -> Result<(), Full<T>> {
        if self.broken.is_some() {
            let why = Refused::Broken;
            return Err(Full { token, why });
        }
        let (ledger, tables) = (&mut self.ledger, self.tables.as_ref());
        let added = match &mut self.ring {
            Ring::Split(ring) => add_to(ring, ledger, tables, out, input, token),
            Ring::Packed(ring) => add_to_packed(ring, ledger, tables, out, input, token),
        };
        if added.is_ok() {
            self.outstanding = self.outstanding.wrapping_add(1);
        }
        added
    }

    /// Makes all added buffers visible to the device. Returns whether it wants to be notified.
    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        both!(&mut self.ring, ring => ring.publish())
    }

    /// Takes back the next buffer that the device has used, if there is one.
    ///
    /// Fails, now and for good, if the device does what no device may do.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Result<Option<Used<T>>, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let popped = match &mut self.ring {
            Ring::Split(ring) => pop_from(ring, &mut self.ledger),
            Ring::Packed(ring) => pop_from_packed(ring, &mut self.ledger),
        };
        match popped {
            Ok(Some(used)) => {
                self.outstanding = self.outstanding.wrapping_sub(1);
                Ok(Some(used))
            }
            Ok(None) => Ok(None),
            Err(broken) => {
                self.broken = Some(broken);
                Err(broken)
            }
        }
    }

    /// Asks the device for no more interrupts. Some may still come.
    #[inline]
    pub(crate) fn disable_callback(&mut self) {
        both!(&mut self.ring, ring => ring.disable_callback())
    }

    /// Asks the device for an interrupt with the next buffer that it uses.
    ///
    /// Returns true if there are used buffers already, for which none may come: poll again.
    #[inline]
    #[must_use]
    pub(crate) fn enable_callback(&mut self) -> bool {
        both!(&mut self.ring, ring => ring.enable_callback())
    }

    /// Asks the device for an interrupt when it has used most of the outstanding buffers; with the
    /// next one, if it cannot wait.
    ///
    /// Returns true if none may come for what it has used already: poll again.
    #[inline]
    #[must_use]
    pub(crate) fn enable_callback_delayed(&mut self) -> bool {
        both!(&mut self.ring, ring => ring.enable_callback_delayed())
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
        both!(&mut self.ring, ring => ring.reset());
        self.outstanding = 0;
        self.broken = None;
    }
}

/// See [`Virtqueue::add`].
#[inline(always)]
fn add_to<T>(
    ring: &mut impl Layout,
    ledger: &mut Ledger<T>,
    tables: Option<&Tables>,
    out: &[Segment],
    input: &[Segment],
    token: T,
) -> Result<(), Full<T>> {
    let chain = match write_to(ring, ledger, tables, out, input) {
        Ok(chain) => chain,
        Err(why) => return Err(Full { token, why }),
    };
    let head = ledger.head();
    if let Err(token) = ledger.take(chain, token) {
        let why = Refused::NoRoom;
        return Err(Full { token, why });
    }
    ring.add(head, &chain);
    Ok(())
}

#[inline(never)]
fn add_to_packed<T>(
    ring: &mut Packed,
    ledger: &mut Ledger<T>,
    tables: Option<&Tables>,
    out: &[Segment],
    input: &[Segment],
    token: T,
) -> Result<(), Full<T>> {
    add_to(ring, ledger, tables, out, input, token)
}

/// Writes a buffer to free descriptors, which stay free.
#[inline(always)]
fn write_to<T>(
    ring: &mut impl Layout,
    ledger: &Ledger<T>,
    tables: Option<&Tables>,
    out: &[Segment],
    input: &[Segment],
) -> Result<Chain, Refused> {
    let count = out.len().saturating_add(input.len());
    if count == 0 {
        return Err(Refused::Empty);
    }
    match tables {
        Some(tables) if count > 1 && count <= tables.length() => {
            if ledger.free() == 0 {
                return Err(Refused::NoRoom);
            }
            ring.write_table(ledger, tables, count, out, input)
        }
        _ => {
            if count > usize::from(ledger.free()) {
                return Err(if count > ledger.size() {
                    Refused::TooLong
                } else {
                    Refused::NoRoom
                });
            }
            // CAST: It is at most the size.
            ring.write_chain(ledger, count as u16, out, input)
        }
    }
}

/// See [`Virtqueue::pop`].
#[inline(always)]
fn pop_from<T>(ring: &mut impl Layout, ledger: &mut Ledger<T>) -> Result<Option<Used<T>>, Broken> {
    let Some((id, len)) = ring.peek()? else {
        return Ok(None);
    };
    let (used, count) = ledger.give_back(id, len)?;
    ring.pop(count);
    Ok(Some(used))
}

#[inline(never)]
fn pop_from_packed<T>(
    ring: &mut Packed,
    ledger: &mut Ledger<T>,
) -> Result<Option<Used<T>>, Broken> {
    pop_from(ring, ledger)
}

/// The size for a queue of which the device allows `max` and `wanted` would be right: the largest
/// that a queue can have and that is neither more than the one nor the other.
pub(crate) fn best_size(max: u16, wanted: u16) -> Option<u16> {
    let limit = max.min(wanted).min(MAX_SIZE);
    Some(1 << limit.checked_ilog2()?)
}
