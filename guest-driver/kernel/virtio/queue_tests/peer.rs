// SPDX-License-Identifier: GPL-2.0

//! The device's side of a virtqueue, played over the same memory, which can be told to lie.

use super::super::super::memory::{
    packed_rest,
    Descriptor,
    INDIRECT,
    NEXT,
    WRITE, //
};
use super::super::super::testing::Random;
use super::super::*;
use kernel::{
    bindings,
    dma::Coherent,
    faux,
    io::{
        io_project,
        io_read,
        io_write,
        Io, //
    }, //
};

/// A device that can do DMA, on no real bus.
pub(super) struct Platform(faux::Registration);

impl Platform {
    pub(super) fn new() -> Result<Self> {
        let registration = faux::Registration::new(c"ferronic-kunit", None)?;
        let device: &Device<Bound> = registration.as_ref().as_ref();
        let raw: *mut bindings::device = core::ptr::from_ref(device).cast_mut().cast();
        // SAFETY: `device` is a transparent wrapper of a valid `struct device` that nobody else
        // knows yet.
        unsafe {
            (*raw).coherent_dma_mask = u64::MAX;
            (*raw).dma_mask = &raw mut (*raw).coherent_dma_mask;
        }
        Ok(Self(registration))
    }

    pub(super) fn device(&self) -> &Device<Bound> {
        self.0.as_ref().as_ref()
    }
}

/// A piece of a chain, as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) write: bool,
}

/// A chain, as the device sees it.
pub(super) struct Taken {
    pub(super) head: u16,
    pub(super) pieces: KVec<Piece>,
}

/// A position in a packed ring: place and wrap counter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u16, bool);

impl Place {
    /// The position `steps` on, or back if negative.
    pub(super) fn step(self, steps: i32, size: u16) -> Self {
        let laps = 2 * i32::from(size);
        let on = i32::from(self.0) + steps + if self.1 { 0 } else { i32::from(size) };
        let on = on.rem_euclid(laps);
        Place((on % i32::from(size)) as u16, on < i32::from(size))
    }

    pub(super) fn as_event(self) -> u16 {
        self.0 | u16::from(self.1) << 15
    }
}

/// The device's side of a queue: of a split ring the indices, of a packed one the positions.
pub(super) struct Peer {
    pub(super) available: u16,
    pub(super) used: u16,
    pub(super) next_available: Place,
    pub(super) next_used: Place,
    /// How many descriptors each identifier has in a packed ring.
    pub(super) counts: KVec<u16>,
    /// How many chains were used.
    pub(super) given: u16,
}

impl Default for Peer {
    fn default() -> Self {
        Peer {
            available: 0,
            used: 0,
            next_available: Place(0, true),
            next_used: Place(0, true),
            counts: KVec::new(),
            given: 0,
        }
    }
}

/// Offset in octets of `addr` from the start of `area`, if it is in there.
pub(super) fn offset_in<T>(area: &Coherent<[T]>, addr: u64) -> Option<usize> {
    let offset = usize::try_from(addr.checked_sub(area.dma_address())?).ok()?;
    (offset < area.size()).then_some(offset)
}

/// A descriptor's address and second word.
pub(super) fn read(table: &Coherent<[Descriptor]>, at: usize) -> Result<(u64, u64)> {
    let descriptor = io_project!(table, [try: at]);
    let addr = io_project!(descriptor, .addr).copy_read();
    let rest = io_project!(descriptor, .rest).copy_read();
    Ok((u64::from_le(addr), u64::from_le(rest)))
}

pub(super) fn overwrite(table: &Coherent<[Descriptor]>, at: usize, addr: u64, rest: u64) -> Result {
    let descriptor = io_project!(table, [try: at]);
    io_project!(descriptor, .addr).copy_write(addr.to_le());
    io_project!(descriptor, .rest).copy_write(rest.to_le());
    Ok(())
}

/// Adds a piece to a chain. Device-readable ones come first (2.7.4.2).
pub(super) fn push(pieces: &mut KVec<Piece>, addr: u64, rest: u64, flags: u16) -> Result {
    let write = flags & WRITE != 0;
    if pieces.last().is_some_and(|piece| piece.write && !write) {
        return Err(EINVAL);
    }
    let len = rest as u32;
    pieces.push(Piece { addr, len, write }, GFP_KERNEL)?;
    Ok(())
}

/// Follows the table at `addr`, of as many octets as the second word says.
pub(super) fn follow_table<T>(queue: &Virtqueue<T>, addr: u64, rest: u64) -> Result<KVec<Piece>> {
    let mut pieces = KVec::new();
    let tables = queue.tables.as_ref().ok_or(EINVAL)?;
    let mut chunks = tables.chunks.iter();
    let (chunk, offset) = chunks
        .find_map(|chunk| Some((chunk, offset_in(chunk, addr)?)))
        .ok_or(EFAULT)?;
    let first = offset / size_of::<Descriptor>();
    let count = rest as u32 as usize / size_of::<Descriptor>();
    let packed = matches!(queue.ring, Ring::Packed(_));
    let mut at = 0;
    // A chain that is longer than its table loops.
    while pieces.len() < count {
        let (addr, rest) = read(chunk, first + at)?;
        let flags = (rest >> if packed { 48 } else { 32 }) as u16;
        push(&mut pieces, addr, rest, flags)?;
        if packed {
            at += 1;
        } else if flags & NEXT != 0 {
            at = usize::from((rest >> 48) as u16);
        } else {
            // Its length is that of the chain.
            return if pieces.len() == count {
                Ok(pieces)
            } else {
                Err(EINVAL)
            };
        }
    }
    if packed {
        Ok(pieces)
    } else {
        Err(ELOOP)
    }
}

impl Peer {
    /// The next available chain, if there is one. Fails if it breaks the rules.
    pub(super) fn next<T>(&mut self, queue: &Virtqueue<T>) -> Result<Option<Taken>> {
        match &queue.ring {
            Ring::Split(ring) => self.next_split(queue, ring),
            Ring::Packed(ring) => self.next_packed(queue, ring),
        }
    }

    pub(super) fn next_split<T>(
        &mut self,
        queue: &Virtqueue<T>,
        ring: &Split,
    ) -> Result<Option<Taken>> {
        let index = u16::from_le(io_read!(ring.driver, [try: 1]));
        if index == self.available {
            return Ok(None);
        }
        let place = 2 + usize::from(self.available & (queue.size - 1));
        let head = u16::from_le(io_read!(ring.driver, [try: place]));
        self.available = self.available.wrapping_add(1);

        let mut pieces = KVec::new();
        let mut at = head;
        while pieces.len() < usize::from(queue.size) {
            let (addr, rest) = read(&ring.descriptors, at.into())?;
            let flags = (rest >> 32) as u16;
            if flags & INDIRECT != 0 {
                // Only one, and alone (2.7.5.3.1).
                if flags != INDIRECT || !pieces.is_empty() {
                    return Err(EINVAL);
                }
                let pieces = follow_table(queue, addr, rest)?;
                return Ok(Some(Taken { head, pieces }));
            }
            push(&mut pieces, addr, rest, flags)?;
            if flags & NEXT == 0 {
                return Ok(Some(Taken { head, pieces }));
            }
            at = (rest >> 48) as u16;
        }
        // A chain that is longer than the ring loops.
        Err(ELOOP)
    }

    pub(super) fn next_packed<T>(
        &mut self,
        queue: &Virtqueue<T>,
        ring: &Packed,
    ) -> Result<Option<Taken>> {
        let mut pieces = KVec::new();
        let mut at = self.next_available;
        for count in 1..=queue.size {
            let (addr, rest) = read(&ring.descriptors, at.0.into())?;
            let (id, flags) = ((rest >> 32) as u16, (rest >> 48) as u16);
            let (available, used) = (flags & 1 << 7 != 0, flags & 1 << 15 != 0);
            if available != at.1 || used == at.1 {
                // Only a chain as a whole is available.
                return if count == 1 { Ok(None) } else { Err(EINVAL) };
            }
            at = at.step(1, queue.size);
            if flags & INDIRECT != 0 {
                if flags & (NEXT | WRITE) != 0 || !pieces.is_empty() {
                    return Err(EINVAL);
                }
                pieces = follow_table(queue, addr, rest)?;
            } else {
                push(&mut pieces, addr, rest, flags)?;
            }
            if flags & NEXT == 0 {
                self.next_available = at;
                while self.counts.len() <= id.into() {
                    self.counts.push(1, GFP_KERNEL)?;
                }
                *self.counts.get_mut(usize::from(id)).ok_or(EINVAL)? = count;
                return Ok(Some(Taken { head: id, pieces }));
            }
        }
        Err(ELOOP)
    }

    /// Uses a chain. In a split ring [`Self::show`] is needed before that can be seen.
    pub(super) fn put<T>(&mut self, queue: &Virtqueue<T>, id: u32, len: u32) -> Result {
        match &queue.ring {
            Ring::Split(ring) => {
                let place = 1 + 2 * usize::from(self.used & (queue.size - 1));
                io_write!(ring.device, [try: place], id.to_le());
                io_write!(ring.device, [try: place + 1], len.to_le());
                self.used = self.used.wrapping_add(1);
            }
            Ring::Packed(ring) => {
                let at = self.next_used;
                let flags = if at.1 { 1 << 7 | 1 << 15 } else { 0 };
                let rest = packed_rest(len, id as u16, flags);
                overwrite(&ring.descriptors, at.0.into(), 0, rest)?;
                let count = self.counts.get(id as usize).copied().unwrap_or(1);
                self.next_used = at.step(count.into(), queue.size);
            }
        }
        self.given = self.given.wrapping_add(1);
        Ok(())
    }

    /// Where the used chains end.
    pub(super) fn mark(&self) -> (u16, Place) {
        (self.used, self.next_used)
    }

    /// Shows what was used since `old`. Returns whether the driver wants an interrupt; found by
    /// looking at each position.
    pub(super) fn show<T>(&self, queue: &Virtqueue<T>, old: (u16, Place)) -> Result<bool> {
        match &queue.ring {
            Ring::Split(ring) => {
                let index = u32::from(self.used) << 16;
                io_write!(ring.device, [try: 0], index.to_le());
                let flags = u16::from_le(io_read!(ring.driver, [try: 0]));
                let event = 2 + usize::from(queue.size);
                let event = u16::from_le(io_read!(ring.driver, [try: event]));
                let count = self.used.wrapping_sub(old.0);
                Ok(if is_by_event(queue) {
                    // The flags are not to be used then (2.7.7.1).
                    flags == 0 && (0..count).any(|i| old.0.wrapping_add(i) == event)
                } else {
                    flags & 1 == 0
                })
            }
            Ring::Packed(ring) => {
                let event = u16::from_le(io_read!(ring.driver, [try: 0]));
                let flags = u16::from_le(io_read!(ring.driver, [try: 1]));
                let steps = (0..2 * i32::from(queue.size))
                    .map(|steps| old.1.step(steps, queue.size))
                    .take_while(|at| *at != self.next_used);
                Ok(match flags {
                    0 => true,
                    1 => false,
                    _ => steps.into_iter().any(|at| at.as_event() == event),
                })
            }
        }
    }

    /// Uses one chain and shows it. Returns whether the driver wants an interrupt.
    pub(super) fn give<T>(&mut self, queue: &Virtqueue<T>, id: u32, len: u32) -> Result<bool> {
        let old = self.mark();
        self.put(queue, id, len)?;
        self.show(queue, old)
    }

    /// Uses all available chains. Returns how many, and whether the driver wants an interrupt.
    pub(super) fn give_all<T>(&mut self, queue: &Virtqueue<T>) -> Result<(u16, bool)> {
        let old = self.mark();
        let mut count = 0;
        while let Some(chain) = self.next(queue)? {
            self.put(queue, chain.head.into(), 0)?;
            count += 1;
        }
        Ok((count, count != 0 && self.show(queue, old)?))
    }

    /// Asks to be notified of the buffer that is `ahead` of the next to become available.
    pub(super) fn set_event<T>(&self, queue: &Virtqueue<T>, ahead: i32) -> Result {
        match &queue.ring {
            Ring::Split(ring) => {
                let place = 1 + 2 * usize::from(queue.size);
                let event = self.available.wrapping_add(ahead as u16);
                io_write!(ring.device, [try: place], u32::from(event).to_le());
            }
            Ring::Packed(ring) => {
                let event = self.next_available.step(ahead, queue.size).as_event();
                io_write!(ring.device, [try: 0], event.to_le());
                io_write!(ring.device, [try: 1], 2u16.to_le());
            }
        }
        Ok(())
    }
}

/// The split ring of a queue.
pub(super) fn split<T>(queue: &Virtqueue<T>) -> Result<&Split> {
    match &queue.ring {
        Ring::Split(ring) => Ok(ring),
        Ring::Packed(_) => Err(EINVAL),
    }
}

/// Writes the used index of a split ring.
pub(super) fn set_index<T>(queue: &Virtqueue<T>, index: u16) -> Result {
    io_write!(split(queue)?.device, [try: 0], (u32::from(index) << 16).to_le());
    Ok(())
}

/// Overwrites what the driver wrote: descriptors, and the available ring of a split ring of 8.
pub(super) fn scribble_on_driver<T>(queue: &Virtqueue<T>, random: &mut Random) -> Result {
    let descriptors = match &queue.ring {
        Ring::Split(ring) => &ring.descriptors,
        Ring::Packed(ring) => &ring.descriptors,
    };
    for at in 0..usize::from(queue.size) {
        let mut word = || u64::from(random.next()) << 32 | u64::from(random.next());
        overwrite(descriptors, at, word(), word())?;
        if let Ring::Split(ring) = &queue.ring {
            io_write!(ring.driver, [try: at + 2], random.next() as u16);
        }
    }
    Ok(())
}

/// Overwrites what the device writes. Small numbers, so that some of it makes sense.
pub(super) fn scribble_on_device<T>(queue: &Virtqueue<T>, random: &mut Random) -> Result {
    match &queue.ring {
        Ring::Split(ring) => {
            for at in 0..ring.device.len() {
                let word = match random.below(4) {
                    0 => random.next(),
                    1 => random.below(20) << 16,
                    _ => random.below(20),
                };
                io_write!(ring.device, [try: at], word.to_le());
            }
        }
        Ring::Packed(ring) => {
            for at in 0..2 {
                io_write!(ring.device, [try: at], random.next() as u16);
            }
            for at in 0..usize::from(queue.size) {
                let len = match random.below(4) {
                    0 => random.next(),
                    _ => random.below(3000),
                };
                let flags = if random.below(2) == 0 {
                    0
                } else {
                    1 << 7 | 1 << 15
                };
                let rest = packed_rest(len, random.below(20) as u16, flags);
                if random.below(2) == 0 {
                    overwrite(&ring.descriptors, at, 0, rest)?;
                }
            }
        }
    }
    Ok(())
}

/// Whether interrupts are asked for by event.
pub(super) fn is_by_event<T>(queue: &Virtqueue<T>) -> bool {
    match &queue.ring {
        Ring::Split(ring) => ring.event_idx,
        Ring::Packed(ring) => ring.event_idx,
    }
}

/// `N` pieces at addresses that tell them apart.
pub(super) fn segments<const N: usize>(seed: u64, len: u32) -> [Segment; N] {
    core::array::from_fn(|i| Segment {
        addr: seed * 0x10_0000 + i as u64 * 0x1000,
        len,
    })
}

/// Whether `pieces` are `out` and `input`, in this order.
pub(super) fn is_same(pieces: &[Piece], out: &[Segment], input: &[Segment]) -> bool {
    let piece = |segment: &Segment, write| Piece {
        addr: segment.addr,
        len: segment.len,
        write,
    };
    let out = out.iter().map(|segment| piece(segment, false));
    let input = input.iter().map(|segment| piece(segment, true));
    pieces.iter().copied().eq(Iterator::chain(out, input))
}
