// SPDX-License-Identifier: GPL-2.0

//! Virtqueues against a device that is played over the same memory, and that can be told to lie.

use super::super::memory::{
    packed_rest,
    Descriptor,
    INDIRECT,
    NEXT,
    WRITE, //
};
use super::super::testing::Random;
use super::*;
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
struct Platform(faux::Registration);

impl Platform {
    fn new() -> Result<Self> {
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

    fn device(&self) -> &Device<Bound> {
        self.0.as_ref().as_ref()
    }
}

/// A piece of a chain, as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    addr: u64,
    len: u32,
    write: bool,
}

/// A chain, as the device sees it.
struct Taken {
    head: u16,
    pieces: KVec<Piece>,
}

/// A position in a packed ring: place and wrap counter.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place(u16, bool);

impl Place {
    /// The position `steps` on, or back if negative.
    fn step(self, steps: i32, size: u16) -> Self {
        let laps = 2 * i32::from(size);
        let on = i32::from(self.0) + steps + if self.1 { 0 } else { i32::from(size) };
        let on = on.rem_euclid(laps);
        Place((on % i32::from(size)) as u16, on < i32::from(size))
    }

    fn as_event(self) -> u16 {
        self.0 | u16::from(self.1) << 15
    }
}

/// The device's side of a queue: of a split ring the indices, of a packed one the positions.
struct Peer {
    available: u16,
    used: u16,
    next_available: Place,
    next_used: Place,
    /// How many descriptors each identifier has in a packed ring.
    counts: KVec<u16>,
    /// How many chains were used.
    given: u16,
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
fn offset_in<T>(area: &Coherent<[T]>, addr: u64) -> Option<usize> {
    let offset = usize::try_from(addr.checked_sub(area.dma_address())?).ok()?;
    (offset < area.size()).then_some(offset)
}

/// A descriptor's address and second word.
fn read(table: &Coherent<[Descriptor]>, at: usize) -> Result<(u64, u64)> {
    let descriptor = io_project!(table, [try: at]);
    let addr = io_project!(descriptor, .addr).copy_read();
    let rest = io_project!(descriptor, .rest).copy_read();
    Ok((u64::from_le(addr), u64::from_le(rest)))
}

fn overwrite(table: &Coherent<[Descriptor]>, at: usize, addr: u64, rest: u64) -> Result {
    let descriptor = io_project!(table, [try: at]);
    io_project!(descriptor, .addr).copy_write(addr.to_le());
    io_project!(descriptor, .rest).copy_write(rest.to_le());
    Ok(())
}

/// Adds a piece to a chain. Device-readable ones come first (2.7.4.2).
fn push(pieces: &mut KVec<Piece>, addr: u64, rest: u64, flags: u16) -> Result {
    let write = flags & WRITE != 0;
    if pieces.last().is_some_and(|piece| piece.write && !write) {
        return Err(EINVAL);
    }
    let len = rest as u32;
    pieces.push(Piece { addr, len, write }, GFP_KERNEL)?;
    Ok(())
}

/// Follows the table at `addr`, of as many octets as the second word says.
fn follow_table<T>(queue: &Virtqueue<T>, addr: u64, rest: u64) -> Result<KVec<Piece>> {
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
    fn next<T>(&mut self, queue: &Virtqueue<T>) -> Result<Option<Taken>> {
        match &queue.ring {
            Ring::Split(ring) => self.next_split(queue, ring),
            Ring::Packed(ring) => self.next_packed(queue, ring),
        }
    }

    fn next_split<T>(&mut self, queue: &Virtqueue<T>, ring: &Split) -> Result<Option<Taken>> {
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

    fn next_packed<T>(&mut self, queue: &Virtqueue<T>, ring: &Packed) -> Result<Option<Taken>> {
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
    fn put<T>(&mut self, queue: &Virtqueue<T>, id: u32, len: u32) -> Result {
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
    fn mark(&self) -> (u16, Place) {
        (self.used, self.next_used)
    }

    /// Shows what was used since `old`. Returns whether the driver wants an interrupt; found by
    /// looking at each position.
    fn show<T>(&self, queue: &Virtqueue<T>, old: (u16, Place)) -> Result<bool> {
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
    fn give<T>(&mut self, queue: &Virtqueue<T>, id: u32, len: u32) -> Result<bool> {
        let old = self.mark();
        self.put(queue, id, len)?;
        self.show(queue, old)
    }

    /// Uses all available chains. Returns how many, and whether the driver wants an interrupt.
    fn give_all<T>(&mut self, queue: &Virtqueue<T>) -> Result<(u16, bool)> {
        let old = self.mark();
        let mut count = 0;
        while let Some(chain) = self.next(queue)? {
            self.put(queue, chain.head.into(), 0)?;
            count += 1;
        }
        Ok((count, count != 0 && self.show(queue, old)?))
    }

    /// Asks to be notified of the buffer that is `ahead` of the next to become available.
    fn set_event<T>(&self, queue: &Virtqueue<T>, ahead: i32) -> Result {
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
fn split<T>(queue: &Virtqueue<T>) -> Result<&Split> {
    match &queue.ring {
        Ring::Split(ring) => Ok(ring),
        Ring::Packed(_) => Err(EINVAL),
    }
}

/// Writes the used index of a split ring.
fn set_index<T>(queue: &Virtqueue<T>, index: u16) -> Result {
    io_write!(split(queue)?.device, [try: 0], (u32::from(index) << 16).to_le());
    Ok(())
}

/// Overwrites what the driver wrote: descriptors, and the available ring of a split ring of 8.
fn scribble_on_driver<T>(queue: &Virtqueue<T>, random: &mut Random) -> Result {
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
fn scribble_on_device<T>(queue: &Virtqueue<T>, random: &mut Random) -> Result {
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
fn is_by_event<T>(queue: &Virtqueue<T>) -> bool {
    match &queue.ring {
        Ring::Split(ring) => ring.event_idx,
        Ring::Packed(ring) => ring.event_idx,
    }
}

/// `N` pieces at addresses that tell them apart.
fn segments<const N: usize>(seed: u64, len: u32) -> [Segment; N] {
    core::array::from_fn(|i| Segment {
        addr: seed * 0x10_0000 + i as u64 * 0x1000,
        len,
    })
}

/// Whether `pieces` are `out` and `input`, in this order.
fn is_same(pieces: &[Piece], out: &[Segment], input: &[Segment]) -> bool {
    let piece = |segment: &Segment, write| Piece {
        addr: segment.addr,
        len: segment.len,
        write,
    };
    let out = out.iter().map(|segment| piece(segment, false));
    let input = input.iter().map(|segment| piece(segment, true));
    pieces.iter().copied().eq(Iterator::chain(out, input))
}

const PACKED: Features = Features::RING_PACKED;

/// The combinations of features that make a difference.
const COMBINATIONS: [Features; 9] = [
    Features::NONE,
    Features::EVENT_IDX,
    Features::INDIRECT_DESC,
    Features::EVENT_IDX.with(Features::INDIRECT_DESC),
    Features::EVENT_IDX.with(Features::ORDER_PLATFORM),
    PACKED,
    PACKED.with(Features::EVENT_IDX),
    PACKED.with(Features::INDIRECT_DESC),
    PACKED
        .with(Features::EVENT_IDX)
        .with(Features::INDIRECT_DESC),
];

#[kunit_tests(ferronic_virtqueue)]
mod cases {
    use super::*;

    #[test]
    fn a_buffer_goes_round() -> Result {
        let platform = Platform::new()?;
        for features in COMBINATIONS {
            let mut queue = Virtqueue::with_tables(platform.device(), 3, 16, features, 4)?;
            let mut peer = Peer::default();
            let out: [Segment; 2] = segments(1, 100);
            let input: [Segment; 2] = segments(2, 200);
            assert!(queue.add(&out, &input, 'a').is_ok());
            // Not before it is published.
            assert!(peer.next(&queue)?.is_none());
            assert!(queue.publish());
            assert!(!queue.publish());
            let Some(chain) = peer.next(&queue)? else {
                return Err(ENOENT);
            };
            assert!(is_same(&chain.pieces, &out, &input));
            assert!(peer.next(&queue)?.is_none());
            assert_eq!(queue.outstanding(), 1);
            assert_eq!(queue.pop(), Ok(None));
            peer.give(&queue, chain.head.into(), 399)?;
            let token = 'a';
            assert_eq!(queue.pop(), Ok(Some(Used { token, len: 399 })));
            assert_eq!(queue.pop(), Ok(None));
            assert_eq!(queue.free(), 16);
            assert_eq!(queue.outstanding(), 0);
        }
        Ok(())
    }

    #[test]
    fn the_device_is_told_where_the_areas_are() -> Result {
        let platform = Platform::new()?;
        let queue = Virtqueue::<()>::new(platform.device(), 5, 256, Features::EVENT_IDX)?;
        let addresses = queue.addresses();
        assert_eq!(addresses.size, 256);
        assert_eq!(queue.index(), 5);
        // 2.7: alignment of the areas, and their sizes.
        assert!(addresses.descriptor.is_multiple_of(16));
        assert!(addresses.driver.is_multiple_of(2));
        assert!(addresses.device.is_multiple_of(4));
        let ring = split(&queue)?;
        assert_eq!(ring.descriptors.size(), 16 * 256);
        assert_eq!(ring.driver.size(), 6 + 2 * 256);
        assert!(ring.device.size() >= 6 + 8 * 256);
        let queue = Virtqueue::<()>::new(platform.device(), 5, 256, PACKED)?;
        // 2.8: alignment of the areas.
        let addresses = queue.addresses();
        assert!(addresses.descriptor.is_multiple_of(16));
        assert!(addresses.driver.is_multiple_of(4));
        assert!(addresses.device.is_multiple_of(4));
        for size in [0, 3, 255, 32769] {
            assert!(Virtqueue::<()>::new(platform.device(), 0, size, Features::NONE).is_err());
        }
        Ok(())
    }

    #[test]
    fn the_best_size_is_a_power_of_two_that_both_sides_can_do() {
        for (max, wanted, best) in [
            (256, 1024, Some(256)),
            (1024, 256, Some(256)),
            (300, 1000, Some(256)),
            (256, 255, Some(128)),
            (65535, 65535, Some(32768)),
            (1, 1, Some(1)),
            (0, 256, None),
            (256, 0, None),
        ] {
            assert_eq!(best_size(max, wanted), best);
        }
    }

    #[test]
    fn a_full_queue_says_so_and_gives_the_token_back() -> Result {
        let platform = Platform::new()?;
        for features in COMBINATIONS {
            let mut queue = Virtqueue::new(platform.device(), 0, 8, features)?;
            let mut peer = Peer::default();
            let piece: [Segment; 1] = segments(1, 64);
            for i in 0..8 {
                assert_eq!(queue.free(), 8 - i);
                assert!(queue.add(&[], &piece, i).is_ok());
            }
            let refused = queue.add(&[], &piece, 99);
            assert!(refused.is_err_and(|full| full.token == 99 && full.why == Refused::NoRoom));
            queue.publish();
            let Some(chain) = peer.next(&queue)? else {
                return Err(ENOENT);
            };
            peer.give(&queue, chain.head.into(), 1)?;
            assert!(queue.pop().is_ok_and(|used| used.is_some()));
            let two: [Segment; 2] = segments(1, 64);
            let refused = queue.add(&[], &two, 99);
            assert!(refused.is_err_and(|full| full.why == Refused::NoRoom));
            assert!(queue.add(&[], &piece, 8).is_ok());
        }
        Ok(())
    }

    #[test]
    fn what_can_never_be_sent_is_told_apart() -> Result {
        let platform = Platform::new()?;
        for features in [Features::NONE, PACKED] {
            let mut queue = Virtqueue::new(platform.device(), 0, 4, features)?;
            let mut peer = Peer::default();
            let why = |result: Result<(), Full<()>>| result.err().map(|full| full.why);
            let five: [Segment; 5] = segments(1, 1);
            let empty: [Segment; 1] = segments(1, 0);
            let huge: [Segment; 2] = segments(1, 1 << 31);
            assert_eq!(why(queue.add(&[], &[], ())), Some(Refused::Empty));
            assert_eq!(why(queue.add(&empty, &[], ())), Some(Refused::Empty));
            assert_eq!(why(queue.add(&[], &empty, ())), Some(Refused::Empty));
            assert_eq!(why(queue.add(&five, &[], ())), Some(Refused::TooLong));
            assert_eq!(
                why(queue.add(&five[..3], &five[3..], ())),
                Some(Refused::TooLong)
            );
            assert_eq!(why(queue.add(&[], &huge, ())), Some(Refused::TooLong));
            assert_eq!(queue.free(), 4);
            assert!(!queue.publish());
            // Nor is anything of it seen when it comes behind what is all right.
            assert!(queue.add(&five[..1], &[], ()).is_ok());
            assert_eq!(why(queue.add(&five[..1], &empty, ())), Some(Refused::Empty));
            queue.publish();
            let chain = peer.next(&queue)?.ok_or(ENOENT)?;
            assert!(is_same(&chain.pieces, &five[..1], &[]));
            assert!(peer.next(&queue)?.is_none());
            assert!(queue.add(&five[..3], &[], ()).is_ok());
        }
        Ok(())
    }

    #[test]
    fn indices_wrap() -> Result {
        let platform = Platform::new()?;
        // Indices of a split queue have 16 bits, and those of a packed one end with the queue.
        for (features, rounds) in [(Features::EVENT_IDX, 66_000), (PACKED, 1_000)] {
            let mut queue = Virtqueue::new(platform.device(), 0, 4, features)?;
            let mut peer = Peer::default();
            let piece: [Segment; 3] = segments(1, 64);
            for i in 0..rounds {
                let count = 1 + i as usize % 3;
                assert!(queue.add(&piece[..count], &[], i).is_ok());
                queue.publish();
                let Some(chain) = peer.next(&queue)? else {
                    return Err(ENOENT);
                };
                assert_eq!(chain.pieces.len(), count);
                peer.give(&queue, chain.head.into(), 0)?;
                assert_eq!(queue.pop(), Ok(Some(Used { token: i, len: 0 })));
            }
            assert_eq!(queue.free(), 4);
        }
        Ok(())
    }

    #[test]
    fn chains_in_tables_take_one_descriptor_each() -> Result {
        let platform = Platform::new()?;
        for features in [Features::NONE, PACKED] {
            // Several chunks of tables, and a longest chain that fills its table.
            let features = features.with(Features::INDIRECT_DESC);
            let mut queue = Virtqueue::with_tables(platform.device(), 0, 256, features, 18)?;
            assert!(queue
                .tables
                .as_ref()
                .is_some_and(|tables| tables.chunks.len() > 1));
            let mut peer = Peer::default();
            for i in 0..256u16 {
                let out: [Segment; 18] = segments(i.into(), 1 + u32::from(i));
                let count = 1 + usize::from(i) % 18;
                assert!(queue.add(&out[..count], &[], i).is_ok());
                assert_eq!(queue.free(), 255 - i);
            }
            queue.publish();
            for i in 0..256u16 {
                let Some(chain) = peer.next(&queue)? else {
                    return Err(ENOENT);
                };
                let out: [Segment; 18] = segments(i.into(), 1 + u32::from(i));
                let count = 1 + usize::from(i) % 18;
                // All tables are looked at after all were written: none overlaps another.
                assert!(is_same(&chain.pieces, &out[..count], &[]));
                peer.give(&queue, chain.head.into(), 0)?;
            }
            for i in 0..256u16 {
                assert_eq!(queue.pop(), Ok(Some(Used { token: i, len: 0 })));
            }
            // One that does not fit into a table goes into the ring itself.
            let long: [Segment; 19] = segments(7, 7);
            assert!(queue.add(&long[..4], &long[4..], 0).is_ok());
            assert_eq!(queue.free(), 256 - 19);
            queue.publish();
            let Some(chain) = peer.next(&queue)? else {
                return Err(ENOENT);
            };
            assert!(is_same(&chain.pieces, &long[..4], &long[4..]));
        }
        Ok(())
    }

    #[test]
    fn out_of_order_use_is_fine() -> Result {
        let platform = Platform::new()?;
        for features in [Features::NONE, PACKED] {
            let mut queue = Virtqueue::new(platform.device(), 0, 16, features)?;
            let mut peer = Peer::default();
            let pieces: [Segment; 4] = segments(1, 10);
            let mut heads = [0u32; 4];
            for (i, head) in heads.iter_mut().enumerate() {
                assert!(queue.add(&pieces[..i], &pieces[i..], i).is_ok());
                queue.publish();
                *head = peer.next(&queue)?.ok_or(ENOENT)?.head.into();
            }
            for i in [2usize, 0, 3, 1] {
                peer.give(&queue, heads[i], 10)?;
                assert_eq!(queue.pop(), Ok(Some(Used { token: i, len: 10 })));
            }
            assert_eq!(queue.free(), 16);
        }
        Ok(())
    }

    #[test]
    fn a_used_index_out_of_reach_breaks_the_queue() -> Result {
        let platform = Platform::new()?;
        for ahead in [3u16, 4, 100, 32768, 65535] {
            let mut queue = Virtqueue::new(platform.device(), 0, 8, Features::EVENT_IDX)?;
            let piece: [Segment; 1] = segments(1, 10);
            assert!(queue.add(&[], &piece, 0).is_ok());
            assert!(queue.add(&[], &piece, 1).is_ok());
            queue.publish();
            // One that was added but not shown does not count.
            assert!(queue.add(&[], &piece, 2).is_ok());
            set_index(&queue, ahead)?;
            let broken = Broken::UsedIndex {
                index: ahead,
                available: 2,
            };
            assert_eq!(queue.pop(), Err(broken));
            // For good, even if the device says something else now.
            set_index(&queue, 1)?;
            assert_eq!(queue.pop(), Err(broken));
            assert_eq!(queue.broken(), Some(broken));
            let refused = queue.add(&[], &piece, 3);
            assert!(refused.is_err_and(|full| full.why == Refused::Broken));
        }
        Ok(())
    }

    #[test]
    fn a_used_element_that_lies_breaks_the_queue() -> Result {
        let platform = Platform::new()?;
        let not = |id| Broken::NotOutstanding { id };
        let length = Broken::Length { len: 31, room: 30 };
        for (id, len, broken) in [
            (8, 0, not(8)),
            (1, 0, not(1)),
            (7, 0, not(7)),
            (65536, 0, not(65536)),
            (u32::MAX, u32::MAX, not(u32::MAX)),
            (0, 31, length),
        ] {
            for features in [Features::NONE, PACKED] {
                // In a packed ring an identifier has 16 bits, and all are used by the device.
                if features == PACKED && id > 65535 {
                    continue;
                }
                let mut queue = Virtqueue::new(platform.device(), 0, 8, features)?;
                let mut peer = Peer::default();
                let pieces: [Segment; 3] = segments(1, 10);
                assert!(queue.add(&[], &pieces, 'a').is_ok());
                queue.publish();
                peer.give(&queue, id, len)?;
                assert_eq!(queue.pop(), Err(broken));
                assert_eq!(queue.pop(), Err(broken));
                // The buffer is still in the queue's keeping.
                let mut left = queue.drain();
                assert_eq!(left.next(), Some('a'));
                assert_eq!(left.next(), None);
            }
        }
        Ok(())
    }

    #[test]
    fn a_chain_used_twice_breaks_the_queue() -> Result {
        let platform = Platform::new()?;
        for features in [Features::NONE, PACKED] {
            let mut queue = Virtqueue::new(platform.device(), 0, 8, features)?;
            let mut peer = Peer::default();
            let piece: [Segment; 1] = segments(1, 10);
            for i in 0..2 {
                assert!(queue.add(&[], &piece, i).is_ok());
            }
            queue.publish();
            peer.give(&queue, 0, 10)?;
            peer.give(&queue, 0, 10)?;
            assert_eq!(queue.pop(), Ok(Some(Used { token: 0, len: 10 })));
            assert_eq!(queue.pop(), Err(Broken::NotOutstanding { id: 0 }));
        }
        Ok(())
    }

    #[test]
    fn nothing_the_device_writes_to_the_driver_is_believed() -> Result {
        let platform = Platform::new()?;
        for features in COMBINATIONS {
            let mut queue = Virtqueue::with_tables(platform.device(), 0, 8, features, 2)?;
            let mut peer = Peer::default();
            let pieces: [Segment; 3] = segments(1, 10);
            let mut random = Random::new(7);
            for token in 0..200u32 {
                let out = random.below(4) as usize;
                assert!(queue.add(&pieces[..out], &pieces[out..], token).is_ok());
                queue.publish();
                let head = peer.next(&queue)?.ok_or(ENOENT)?.head;
                scribble_on_driver(&queue, &mut random)?;
                peer.give(&queue, head.into(), 0)?;
                assert_eq!(queue.pop(), Ok(Some(Used { token, len: 0 })));
                assert_eq!(queue.pop(), Ok(None));
                assert_eq!(queue.free(), 8);
            }
        }
        Ok(())
    }

    #[test]
    fn garbage_in_the_device_area_never_yields_a_token_twice() -> Result {
        let platform = Platform::new()?;
        let mut random = Random::new(11);
        let pieces: [Segment; 3] = segments(1, 1000);
        for _ in 0..500 {
            let features = COMBINATIONS[random.below(COMBINATIONS.len() as u32) as usize];
            let mut queue = Virtqueue::with_tables(platform.device(), 0, 16, features, 3)?;
            let (mut given, mut seen) = (0u32, 0u64);
            for _ in 0..40 {
                let count = 1 + random.below(3) as usize;
                if given < 64 && queue.add(&[], &pieces[..count], given).is_ok() {
                    given += 1;
                }
                queue.publish();
                scribble_on_device(&queue, &mut random)?;
                let _ = queue.enable_callback_delayed();
                while let Ok(Some(used)) = queue.pop() {
                    assert!(used.token < given && used.len <= 3000);
                    assert_eq!(seen >> used.token & 1, 0);
                    seen |= 1 << used.token;
                }
                queue.disable_callback();
            }
            for token in queue.drain() {
                assert_eq!(seen >> token & 1, 0);
                seen |= 1 << token;
            }
            // And none is lost.
            assert_eq!(seen.count_ones(), given);
        }
        Ok(())
    }

    #[test]
    fn a_queue_that_was_reset_is_as_new() -> Result {
        let platform = Platform::new()?;
        for features in COMBINATIONS {
            let mut queue = Virtqueue::with_tables(platform.device(), 0, 8, features, 2)?;
            let pieces: [Segment; 2] = segments(1, 10);
            for round in 0..3 {
                let mut peer = Peer::default();
                for i in 0..4 {
                    assert!(queue.add(&[], &pieces, i + round).is_ok());
                }
                queue.publish();
                let chain = peer.next(&queue)?.ok_or(ENOENT)?;
                peer.give(&queue, chain.head.into(), 20)?;
                assert!(queue.pop().is_ok_and(|used| used.is_some()));
                queue.disable_callback();
                peer.give(&queue, 7, 0)?;
                assert!(queue.pop().is_err());
                assert_eq!(queue.drain().count(), 3);
                queue.reset();
                assert_eq!(queue.free(), 8);
                assert_eq!(queue.broken(), None);
                assert_eq!(queue.pop(), Ok(None));
                assert!(Peer::default().next(&queue)?.is_none());
            }
        }
        Ok(())
    }

    #[test]
    fn the_device_is_notified_when_it_asks_to_be() -> Result {
        let platform = Platform::new()?;
        let piece: [Segment; 1] = segments(1, 10);
        // By index: compared with looking at each buffer's.
        for features in [Features::EVENT_IDX, Features::EVENT_IDX.with(PACKED)] {
            let mut random = Random::new(3);
            let mut queue = Virtqueue::new(platform.device(), 0, 64, features)?;
            let mut peer = Peer::default();
            for _ in 0..10_000 {
                let ahead = random.below(80) as i32 - 8;
                peer.set_event(&queue, ahead)?;
                let count = random.below(6) as i32;
                for _ in 0..count {
                    assert!(queue.add(&piece, &[], ()).is_ok());
                }
                assert_eq!(queue.publish(), (0..count).contains(&ahead));
                peer.give_all(&queue)?;
                while queue.pop().is_ok_and(|used| used.is_some()) {}
            }
        }
        // By flag.
        let mut queue = Virtqueue::new(platform.device(), 0, 8, Features::NONE)?;
        for (flags, expected) in [(0u32, true), (1, false), (0, true)] {
            io_write!(split(&queue)?.device, [try: 0], flags.to_le());
            assert!(queue.add(&piece, &[], ()).is_ok());
            assert_eq!(queue.publish(), expected);
        }
        for features in [PACKED, PACKED.with(Features::EVENT_IDX)] {
            let mut queue = Virtqueue::new(platform.device(), 0, 8, features)?;
            for (flags, expected) in [(0u16, true), (1, false), (0, true)] {
                let Ring::Packed(ring) = &queue.ring else {
                    return Err(EINVAL);
                };
                io_write!(ring.device, [try: 1], flags.to_le());
                assert!(queue.add(&piece, &[], ()).is_ok());
                assert_eq!(queue.publish(), expected);
            }
        }
        Ok(())
    }

    #[test]
    fn there_is_no_interrupt_while_callbacks_are_disabled() -> Result {
        let platform = Platform::new()?;
        let piece: [Segment; 1] = segments(1, 10);
        for features in COMBINATIONS {
            let mut queue = Virtqueue::new(platform.device(), 0, 1024, features)?;
            let mut peer = Peer::default();
            assert!(!queue.enable_callback());
            // Before anything is used, so the event asked for is still to come.
            queue.disable_callback();
            for _ in 0..1024 {
                assert!(queue.add(&piece, &[], ()).is_ok());
            }
            queue.publish();
            for _ in 0..1024 {
                let chain = peer.next(&queue)?.ok_or(ENOENT)?;
                assert!(!peer.give(&queue, chain.head.into(), 0)?);
            }
            assert!(queue.enable_callback());
        }
        Ok(())
    }

    #[test]
    fn no_wake_up_is_lost() -> Result {
        let platform = Platform::new()?;
        let piece: [Segment; 1] = segments(1, 10);
        for features in COMBINATIONS {
            let mut random = Random::new(5);
            let mut queue = Virtqueue::new(platform.device(), 0, 32, features)?;
            let mut peer = Peer::default();
            // The driver sleeps until an interrupt; `wait` used buffers may pass without one.
            let mut wait = 0u16;
            for _ in 0..5_000 {
                for _ in 0..random.below(5) {
                    let _ = queue.add(&piece, &[], ());
                }
                queue.publish();
                // The device uses some, if it likes, and decides on one interrupt for them.
                let old = peer.mark();
                let before = peer.given;
                for _ in 0..random.below(8) {
                    let Some(chain) = peer.next(&queue)? else {
                        break;
                    };
                    peer.put(&queue, chain.head.into(), 0)?;
                }
                let used = peer.given.wrapping_sub(before);
                if used == 0 {
                    continue;
                }
                let interrupt = peer.show(&queue, old)?;
                if features.contains(Features::EVENT_IDX) {
                    // Exactly when enough are used.
                    assert_eq!(interrupt, used > wait);
                } else {
                    assert!(interrupt);
                }
                if !interrupt {
                    wait -= used;
                    continue;
                }
                // The driver wakes up and polls.
                loop {
                    queue.disable_callback();
                    // While it does, it is not interrupted.
                    if random.below(2) == 0 {
                        let (count, interrupt) = peer.give_all(&queue)?;
                        assert!(count == 0 || !interrupt);
                    }
                    while queue.pop().is_ok_and(|used| used.is_some()) {}
                    let delayed = random.below(2) == 0;
                    // Buffers that are used just before it goes to sleep are found.
                    let late = match random.below(3) {
                        0 => peer.give_all(&queue)?.0,
                        _ => 0,
                    };
                    let outstanding = queue.outstanding();
                    let again = if delayed {
                        queue.enable_callback_delayed()
                    } else {
                        queue.enable_callback()
                    };
                    wait = 0;
                    if delayed && features.contains(Features::EVENT_IDX) && outstanding > 0 {
                        wait = (0..outstanding)
                            .find(|n| 4 * (n + 1) >= 3 * outstanding)
                            .unwrap_or(0);
                    }
                    if features.contains(PACKED) {
                        assert_eq!(again, late > 0);
                    } else {
                        assert_eq!(again, late > wait);
                    }
                    if !again {
                        wait -= late;
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}
