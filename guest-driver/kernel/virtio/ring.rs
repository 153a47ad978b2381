// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of rings (VIRTIO 1.3, 2.7 and 2.8), without their memory.
//!
//! [`Ledger`] remembers what was given to the device: which descriptors are free, which chains are
//! outstanding, and what belongs to each. It is all that a queue goes by. The device can write to
//! every part of a ring, so nothing that was once written there is read back.

use kernel::prelude::*;

/// The largest size of a queue (2.7).
pub(super) const MAX_SIZE: u16 = 32768;

/// Whether there can be a ring of `size` descriptors. (A packed one could have other sizes, too.)
pub(super) const fn is_valid_size(size: u16) -> bool {
    size.is_power_of_two() && size <= MAX_SIZE
}

/// Whether moving an index from `old` to `new` passes `event`, so that whoever asked to be told at
/// `event` must be (2.7.10). All three wrap at 65536.
#[inline(always)]
pub(super) const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Where to ask for an event so that three quarters of `outstanding` buffers are used before it.
#[inline(always)]
pub(super) const fn delayed_event(used: u16, outstanding: u16) -> u16 {
    // Not `* 3 / 4`, which could overflow.
    used.wrapping_add(outstanding - outstanding / 4)
}

/// Why a buffer was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are too few free descriptors now.
    NoRoom,
    /// It has more pieces than the queue can ever hold, or 4 GiB or more to write.
    TooLong,
    /// It has no pieces, or an empty one (2.7.4.2 allows none).
    Empty,
    /// The queue is broken.
    Broken,
}

/// A buffer that was not taken. Nothing of it was shown to the device.
pub(crate) struct Full<T> {
    /// Its token.
    pub(crate) token: T,
    /// Why.
    pub(crate) why: Refused,
}

/// A buffer that the device has used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Used<T> {
    /// The token that it was added with.
    pub(crate) token: T,
    /// How many octets the device has written, from the first on. No more than it could.
    pub(crate) len: u32,
}

/// What a device did that no device may do. A queue that has seen it is no longer used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The used index says that more was used than was available.
    UsedIndex {
        /// What was read.
        index: u16,
        /// The index up to which the driver had made buffers available.
        available: u16,
    },
    /// A used element names no chain that was outstanding.
    NotOutstanding {
        /// What it names.
        id: u32,
    },
    /// A used element says that more was written than there was room for.
    Length {
        /// What it says.
        len: u32,
        /// The room.
        room: u32,
    },
    /// The driver's own state is inconsistent; cannot happen.
    Internal,
}

impl Broken {
    /// In words.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Broken::UsedIndex { .. } => "used index ahead of available index",
            Broken::NotOutstanding { .. } => "used a buffer that it was not given",
            Broken::Length { .. } => "wrote more than there was room for",
            Broken::Internal => "driver state inconsistent",
        }
    }

    /// The values that show it: what the device said and what was the limit.
    pub(crate) fn values(self) -> (u32, u32) {
        match self {
            Broken::UsedIndex { index, available } => (index.into(), available.into()),
            Broken::NotOutstanding { id } => (id, 0),
            Broken::Length { len, room } => (len, room),
            Broken::Internal => (0, 0),
        }
    }
}

/// What is known of one slot.
struct Slot<T> {
    /// The token, if the slot is the head of an outstanding chain.
    token: Option<T>,
    /// How many octets the device can write to that chain.
    room: u32,
    /// The last slot of that chain.
    tail: u16,
    /// The number of descriptors that it takes.
    count: u16,
    /// The next slot: of the list of free ones, or of the chain.
    next: u16,
}

/// A chain of free descriptors that is about to be given to the device.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    /// The number of its descriptors, at least 1.
    pub(super) count: u16,
    /// The last that is taken from the list of free ones, which begins with the first.
    pub(super) tail: u16,
    /// What follows that in the list.
    pub(super) after: u16,
    /// How many octets the device can write.
    pub(super) room: u32,
}

/// Which descriptors are free and which are given to the device.
///
/// # Invariants
///
/// - There are `size` slots, `size` being a power of two and at most [`MAX_SIZE`].
/// - From `free_head` on, following `next`, there are at least `free` distinct free slots.
/// - From each slot with a token to its `tail`, following `next`, there are slots that are in no
///   other chain and not free, at most `count` of them.
/// - `free` and the `count` of all slots with a token add up to `size`.
///
/// In a split ring a slot is a descriptor, and chains have `count` slots; in a packed ring it is an
/// identifier, of which each chain has one.
pub(super) struct Ledger<T> {
    slots: KVVec<Slot<T>>,
    free_head: u16,
    free: u16,
}

impl<T> Ledger<T> {
    /// For `size` descriptors, all free.
    pub(super) fn new(size: u16) -> Result<Self> {
        if !is_valid_size(size) {
            return Err(EINVAL);
        }
        let mut slots = KVVec::with_capacity(size.into(), GFP_KERNEL)?;
        for i in 0..size {
            let slot = Slot {
                token: None,
                room: 0,
                tail: i,
                count: 0,
                next: (i + 1) & (size - 1),
            };
            slots.push(slot, GFP_KERNEL)?;
        }
        // INVARIANT: The slots are linked in one ring, all are free, and there is no token.
        Ok(Self {
            slots,
            free_head: 0,
            free: size,
        })
    }

    /// Number of descriptors.
    #[inline(always)]
    pub(super) fn size(&self) -> usize {
        self.slots.len()
    }

    /// Number of free descriptors.
    #[inline(always)]
    pub(super) fn free(&self) -> u16 {
        self.free
    }

    /// The first free descriptor, meaningful if there is one: the head of the next chain.
    #[inline(always)]
    pub(super) fn head(&self) -> u16 {
        self.free_head
    }

    /// The descriptor that follows `index` in the list of free ones.
    #[inline(always)]
    pub(super) fn next(&self, index: u16) -> u16 {
        self.slots
            .get(usize::from(index))
            .map_or(0, |slot| slot.next)
    }

    /// Takes `chain`, which must be the beginning of the list of free descriptors, for `token`.
    ///
    /// Gives the token back if there are not so many.
    #[inline(always)]
    pub(super) fn take(&mut self, chain: Chain, token: T) -> Result<(), T> {
        let head = usize::from(self.free_head);
        match (self.free.checked_sub(chain.count), self.slots.get_mut(head)) {
            (Some(free), Some(slot)) => {
                slot.token = Some(token);
                slot.room = chain.room;
                slot.tail = chain.tail;
                slot.count = chain.count;
                // INVARIANT: The chain is no longer in the list of free descriptors, which goes on
                // behind it, and belongs to its head.
                self.free_head = chain.after;
                self.free = free;
                Ok(())
            }
            _ => Err(token),
        }
    }

    /// Takes back the chain whose head the device says is `id`, and of which it says that it has
    /// written `len` octets. Returns how many descriptors it had, too.
    ///
    /// A chain that the device could not write to at all yields a length of 0 whatever the device
    /// says: some devices in use return nonsense there, and nobody looks at it.
    #[inline(always)]
    pub(super) fn give_back(&mut self, id: u32, len: u32) -> Result<(Used<T>, u16), Broken> {
        // CAST: To an equal or wider type on all that the kernel runs on.
        let Some(slot) = self.slots.get_mut(id as usize) else {
            return Err(Broken::NotOutstanding { id });
        };
        let (room, tail, count) = (slot.room, slot.tail, slot.count);
        let len = if room == 0 { 0 } else { len };
        if len > room {
            // The token stays: the device may still be at the buffer.
            return match slot.token {
                Some(_) => Err(Broken::Length { len, room }),
                None => Err(Broken::NotOutstanding { id }),
            };
        }
        let Some(token) = slot.token.take() else {
            return Err(Broken::NotOutstanding { id });
        };
        if let Some(last) = self.slots.get_mut(usize::from(tail)) {
            last.next = self.free_head;
        }
        // INVARIANT: The chain is put before the free descriptors; its links are as they were.
        // CAST: `id` is less than the number of slots.
        self.free_head = id as u16;
        self.free = self.free.wrapping_add(count);
        Ok((Used { token, len }, count))
    }

    /// Takes out the token of some outstanding chain. The descriptors stay taken.
    pub(super) fn take_token(&mut self) -> Option<T> {
        self.slots.iter_mut().find_map(|slot| slot.token.take())
    }

    /// Takes out the tokens of all outstanding chains. The descriptors stay taken until
    /// [`Self::clear`].
    pub(super) fn tokens(&mut self) -> impl Iterator<Item = T> + '_ {
        self.slots.iter_mut().filter_map(|slot| slot.token.take())
    }

    /// Frees all descriptors and drops what tokens there are.
    pub(super) fn clear(&mut self) {
        let last = (self.slots.len() as u16).wrapping_sub(1);
        for (i, slot) in self.slots.iter_mut().enumerate() {
            slot.token = None;
            // CAST: There are at most `MAX_SIZE` slots.
            slot.next = (i as u16).wrapping_add(1) & last;
        }
        // INVARIANT: As in `new`.
        self.free_head = 0;
        self.free = last.wrapping_add(1);
    }
}

#[kunit_tests(ferronic_ring)]
mod tests {
    use super::super::testing::Random;
    use super::*;

    /// Takes `count` descriptors as `Virtqueue` does. Returns head and tail.
    fn take<T>(ledger: &mut Ledger<T>, count: u16, room: u32, token: T) -> Result<(u16, u16), T> {
        let head = ledger.head();
        let mut tail = head;
        for _ in 1..count {
            tail = ledger.next(tail);
        }
        let after = ledger.next(tail);
        let chain = Chain {
            count,
            tail,
            after,
            room,
        };
        ledger.take(chain, token).map(|()| (head, tail))
    }

    /// Whether the invariants hold, from the slots themselves, the slow way.
    fn is_sound<T>(ledger: &Ledger<T>) -> bool {
        let size = ledger.slots.len();
        let mut seen = [false; 64];
        // Notes a descriptor; false if it was seen before or does not exist.
        let mut see = |at: u16| match seen.get_mut(usize::from(at)) {
            Some(seen) => usize::from(at) < size && !core::mem::replace(seen, true),
            None => false,
        };
        let mut at = ledger.free_head;
        for _ in 0..ledger.free {
            if !see(at) {
                return false;
            }
            at = ledger.next(at);
        }
        for (head, slot) in ledger.slots.iter().enumerate() {
            if slot.token.is_none() {
                continue;
            }
            let mut at = head as u16;
            let mut last = at;
            for _ in 0..slot.count {
                if !see(at) {
                    return false;
                }
                last = at;
                at = ledger.next(at);
            }
            if last != slot.tail {
                return false;
            }
        }
        seen.iter().filter(|seen| **seen).count() == size
    }

    #[test]
    fn sizes() {
        for size in [1, 2, 256, 32768] {
            assert!(is_valid_size(size));
        }
        for size in [0, 3, 255, 257, 32769, 65535] {
            assert!(!is_valid_size(size));
            assert!(Ledger::<()>::new(size).is_err());
        }
    }

    #[test]
    fn events_are_those_between_old_and_new() {
        // Every step of up to 300 over the wrap, against counting.
        for old in [0u16, 1, 100, 32767, 65300, 65535] {
            for steps in 0..300u16 {
                let new = old.wrapping_add(steps);
                for event in [0u16, 1, 50, 250, 65299, 65400, 65534, 65535, old, new] {
                    let passed = (0..steps).any(|i| old.wrapping_add(i) == event);
                    assert_eq!(need_event(event, new, old), passed);
                }
            }
        }
    }

    #[test]
    fn delayed_events_are_three_quarters_on() {
        assert_eq!(delayed_event(0, 0), 0);
        assert_eq!(delayed_event(10, 1), 11);
        assert_eq!(delayed_event(0, 4), 3);
        assert_eq!(delayed_event(65500, 256), 65500u16.wrapping_add(192));
        assert_eq!(delayed_event(0, 32768), 24576);
    }

    #[test]
    fn all_descriptors_can_be_taken_and_no_more() -> Result {
        let mut ledger = Ledger::new(8)?;
        for i in 0..8 {
            assert!(take(&mut ledger, 1, 0, i).is_ok());
            assert!(is_sound(&ledger));
        }
        assert_eq!(ledger.free(), 0);
        assert_eq!(take(&mut ledger, 1, 0, 99), Err(99));
        assert_eq!(ledger.give_back(3, 0), Ok((Used { token: 3, len: 0 }, 1)));
        assert_eq!(ledger.free(), 1);
        assert_eq!(take(&mut ledger, 2, 0, 99), Err(99));
        assert_eq!(take(&mut ledger, 1, 0, 99), Ok((3, 3)));
        assert!(is_sound(&ledger));
        Ok(())
    }

    #[test]
    fn a_ring_of_one() -> Result {
        let mut ledger = Ledger::new(1)?;
        for i in 0..3 {
            assert_eq!(take(&mut ledger, 1, 10, i), Ok((0, 0)));
            assert_eq!(take(&mut ledger, 1, 10, 9), Err(9));
            assert_eq!(ledger.give_back(0, 10), Ok((Used { token: i, len: 10 }, 1)));
        }
        Ok(())
    }

    #[test]
    fn only_an_outstanding_head_can_be_given_back() -> Result {
        let mut ledger = Ledger::new(8)?;
        let not = |id| Err(Broken::NotOutstanding { id });
        assert_eq!(ledger.give_back(0, 0), not(0));
        assert_eq!(take(&mut ledger, 3, 0, 'a'), Ok((0, 2)));
        // Inside the chain, free, outside the ring, and far outside.
        for id in [1, 2, 3, 7, 8, 9, 65536, 65537, 1 << 31, u32::MAX] {
            assert_eq!(ledger.give_back(id, 0), not(id));
            assert!(is_sound(&ledger));
        }
        assert_eq!(ledger.give_back(0, 0), Ok((Used { token: 'a', len: 0 }, 3)));
        assert_eq!(ledger.give_back(0, 0), not(0));
        assert!(is_sound(&ledger));
        Ok(())
    }

    #[test]
    fn a_length_beyond_the_room_is_refused_and_the_token_kept() -> Result {
        let mut ledger = Ledger::new(4)?;
        assert!(take(&mut ledger, 1, 100, 'a').is_ok());
        for len in [101, 1 << 16, u32::MAX] {
            let broken = Broken::Length { len, room: 100 };
            assert_eq!(ledger.give_back(0, len), Err(broken));
        }
        assert_eq!(ledger.take_token(), Some('a'));
        assert_eq!(ledger.take_token(), None);
        // The stale room of a free slot is no excuse.
        assert_eq!(
            ledger.give_back(0, u32::MAX),
            Err(Broken::NotOutstanding { id: 0 })
        );
        Ok(())
    }

    #[test]
    fn nothing_can_have_been_written_where_there_was_no_room() -> Result {
        let mut ledger = Ledger::new(4)?;
        assert!(take(&mut ledger, 2, 0, 'a').is_ok());
        assert_eq!(
            ledger.give_back(0, 1500),
            Ok((Used { token: 'a', len: 0 }, 2))
        );
        Ok(())
    }

    #[test]
    fn clearing_frees_everything() -> Result {
        let mut ledger = Ledger::new(16)?;
        for i in 0..5 {
            assert!(take(&mut ledger, 3, 0, i).is_ok());
        }
        assert!(ledger.give_back(6, 0).is_ok());
        let mut left = 0;
        for token in ledger.tokens() {
            assert!(token != 2);
            left += 1;
        }
        assert_eq!(left, 4);
        ledger.clear();
        assert_eq!(ledger.free(), 16);
        assert!(is_sound(&ledger));
        assert_eq!(take(&mut ledger, 16, 0, 9), Ok((0, 15)));
        assert!(is_sound(&ledger));
        Ok(())
    }

    #[test]
    fn random_programs_keep_the_books() -> Result {
        for size in [1u16, 2, 8, 64] {
            let mut random = Random::new(u64::from(size));
            let mut ledger = Ledger::new(size)?;
            // What is outstanding, by head: token, room, count.
            let mut model = [None; 64];
            let mut free = size;
            for step in 0..4000u32 {
                if random.below(2) == 0 {
                    let count = (random.below(5) + 1) as u16;
                    let room = random.below(3) * 700;
                    match take(&mut ledger, count, room, step) {
                        Ok((head, _)) => {
                            assert!(count <= free);
                            assert!(model[usize::from(head)].is_none());
                            model[usize::from(head)] = Some((step, room, count));
                            free -= count;
                        }
                        Err(token) => {
                            assert!(count > free);
                            assert_eq!(token, step);
                        }
                    }
                } else {
                    // Half of the time something that is not outstanding.
                    let id = random.below(u32::from(size) + 2);
                    let len = random.below(2000);
                    let expected = model.get(id as usize).copied().flatten();
                    match (expected, ledger.give_back(id, len)) {
                        (None, Err(Broken::NotOutstanding { id: said })) => assert_eq!(said, id),
                        (Some((_, room, _)), Err(broken)) => {
                            assert!(room != 0 && len > room);
                            assert_eq!(broken, Broken::Length { len, room });
                        }
                        (Some((token, room, count)), Ok((used, freed))) => {
                            assert_eq!(freed, count);
                            assert_eq!(used.token, token);
                            assert_eq!(used.len, if room == 0 { 0 } else { len });
                            assert!(used.len <= room);
                            model[id as usize] = None;
                            free += count;
                        }
                        _ => assert!(false),
                    }
                }
                assert_eq!(ledger.free(), free);
                assert!(is_sound(&ledger));
            }
        }
        Ok(())
    }
}
