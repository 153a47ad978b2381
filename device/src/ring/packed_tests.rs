// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the packed ring: by situation, and random ring programs against a model of what the
//! driver may expect, with devices that are killed in between.

use std::collections::VecDeque;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{BUFFERS, INDIRECT, MEMORY, NEXT, WRITE};
use super::packed::{BEGINNING, PackedRing};
use super::packed_driver::{AVAIL, At, Buffer, DESC, DISABLE, ENABLE, PackedDriver, USED};
use super::piece_list::PieceList;
use super::virtqueue::tests::take;
use super::virtqueue::{Chain, Direction, Format, Layout, Ring, RingError, Start, Take};

const B: u64 = BUFFERS;
const PACKED: Format = Format {
    packed: true,
    batches: false,
};

pub fn ring(driver: &PackedDriver) -> PackedRing {
    let place = driver.used.bits();
    PackedRing::new(&driver.map, driver.layout, place, driver.in_order).unwrap()
}

pub fn recovered(driver: &PackedDriver) -> Result<u16, RingError> {
    let ring = PackedRing::recover(&driver.map, driver.layout, driver.in_order);
    ring.map(|ring| ring.next_avail())
}

pub fn pop(driver: &PackedDriver, ring: &mut PackedRing) -> Option<Chain> {
    ring.pop(Direction::Readable, &mut PieceList::new(driver.map.clone()))
        .unwrap()
}

fn chain(head: u16, len: usize) -> Option<Chain> {
    let len = Some(len);
    Some(Chain { head, len })
}

#[test]
fn chains_are_read_in_order_and_used_at_once() {
    let mut driver = PackedDriver::new(8, true);
    let memory = driver.memory();
    memory.write_slice(b"hello ", GuestAddress(B)).unwrap();
    memory.write_slice(b"world", GuestAddress(B + 9)).unwrap();
    driver.offer(7, &[(B, 6, 0), (B + 9, 5, 0), (B, 1, WRITE)]);
    driver.offer(3, &[(B, 5, 0)]);
    driver.offer_indirect(5, &[(B, 2, 0), (B, 1, 0)]);
    let mut ring = ring(&driver);
    let mut list = PieceList::new(driver.map.clone());
    let taken = ring.pop(Direction::Readable, &mut list).unwrap();
    assert_eq!(taken, chain(7, 11));
    let mut bytes = [0; 11];
    list.packet().copy_to(0, &mut bytes);
    assert_eq!(&bytes, b"hello world");
    assert_eq!(pop(&driver, &mut ring), chain(3, 5));
    assert_eq!(pop(&driver, &mut ring), chain(5, 3));
    assert_eq!(pop(&driver, &mut ring), None);
    for (id, written) in [(7, 1), (3, 0), (5, 0)] {
        ring.push(id, written);
    }
    assert_eq!(driver.take_used(), []);
    ring.publish();
    assert_eq!(driver.take_used(), [(7, 1), (3, 0), (5, 0)]);
    assert_eq!(ring.next_avail(), BEGINNING | 5);
}

#[test]
fn both_ways_of_a_chain_can_be_taken() {
    let mut driver = PackedDriver::new(4, true);
    driver.offer(0, &[(B, 5, 0), (B + 100, 3, WRITE)]);
    driver.offer(1, &[(B, 5, WRITE), (B + 100, 3, 0)]);
    let start = Start::At(BEGINNING);
    let mut ring = Ring::new(PACKED, &driver.map, driver.layout, start).unwrap();
    let [mut readable, mut writable] = [0; 2].map(|_| PieceList::new(driver.map.clone()));
    let taken = ring.pop_both(&mut readable, &mut writable).unwrap();
    assert_eq!(taken, chain(0, 5));
    assert_eq!((readable.len(), writable.len()), (5, 3));
    let taken = ring.pop_both(&mut readable, &mut writable).unwrap();
    assert_eq!(taken, Some(Chain { head: 1, len: None }));
    assert_eq!((readable.len(), writable.len()), (5, 3));
}

#[test]
fn a_ring_of_any_size_goes_round() {
    for size in [1, 3, 5, 32] {
        let mut driver = PackedDriver::new(size, true);
        let mut ring = ring(&driver);
        for round in 0..7 * size {
            assert_eq!(pop(&driver, &mut ring), None);
            let buffers = vec![(B, 1, 0); usize::from(1 + round % size)];
            driver.offer(round, &buffers);
            assert_eq!(pop(&driver, &mut ring), chain(round, buffers.len()));
            ring.push(round, 0);
            ring.publish();
            assert_eq!(driver.take_used(), [(u32::from(round), 0)]);
            assert_eq!(ring.next_avail(), driver.used.bits());
            assert_eq!(recovered(&driver), Ok(ring.next_avail()));
        }
    }
}

#[test]
fn rewound_chains_come_again() {
    let mut driver = PackedDriver::new(8, true);
    for id in 0..3 {
        driver.offer(id, &vec![(B, 10, 0); 1 + usize::from(id)]);
    }
    let mut ring = ring(&driver);
    for id in 0..3 {
        assert_eq!(pop(&driver, &mut ring).unwrap().head, id);
    }
    ring.push(0, 0);
    ring.rewind(2);
    assert_eq!(ring.next_avail(), BEGINNING | 1);
    assert_eq!(pop(&driver, &mut ring).unwrap().head, 1);
    ring.rewind(1);
    ring.publish();
    assert_eq!(driver.take_used(), [(0, 0)]);
    assert_eq!(pop(&driver, &mut ring).unwrap().head, 1);
}

#[test]
fn a_chain_that_breaks_the_rules_costs_only_itself() {
    let many = vec![(B, 1, 0); 513];
    let cases: [(&str, &[Buffer]); 9] = [
        ("outside memory", &[(MEMORY - 1, 2, 0)]),
        ("address wraps", &[(u64::MAX, 2, 0)]),
        ("outside, but not first", &[(B, 1, 0), (MEMORY, 1, 0)]),
        ("readable after writable", &[(B, 1, WRITE), (B, 1, 0)]),
        ("empty indirect", &[(B, 0, INDIRECT)]),
        ("odd indirect", &[(B, 17, INDIRECT)]),
        ("indirect outside memory", &[(MEMORY, 16, INDIRECT)]),
        ("indirect among others", &[(B, 16, INDIRECT), (B, 1, 0)]),
        ("too many", &many),
    ];
    for (name, buffers) in cases {
        let mut driver = PackedDriver::new(600, true);
        driver.offer(1, buffers);
        // An id that no driver has a use for is the driver's own business.
        driver.offer(0xffff, &[(B, 5, 0)]);
        let mut ring = ring(&driver);
        let mut list = PieceList::new(driver.map.clone());
        let bad = ring.pop(Direction::Readable, &mut list).unwrap();
        assert_eq!(bad, Some(Chain { head: 1, len: None }), "{name}");
        assert_eq!(list.count(), 0, "{name}");
        assert_eq!(pop(&driver, &mut ring), chain(0xffff, 5), "{name}");
        ring.push(1, 0);
        ring.push(0xffff, 0);
        ring.publish();
        assert_eq!(driver.take_used(), [(1, 0), (0xffff, 0)], "{name}");
    }
}

#[test]
fn an_indirect_table_may_be_larger_than_the_ring_but_not_endless() {
    for (count, expected) in [(4, Some(4)), (20, Some(20)), (512, Some(512)), (513, None)] {
        let mut driver = PackedDriver::new(4, true);
        // Of the flags in a table only WRITE counts.
        driver.offer_indirect(0, &vec![(B, 1, NEXT | INDIRECT | AVAIL); count]);
        let taken = pop(&driver, &mut ring(&driver)).unwrap();
        assert_eq!(taken.len, expected, "{count}");
    }
}

#[test]
fn a_chain_without_end_breaks_the_ring() {
    let mut driver = PackedDriver::new(4, true);
    driver.offer(0, &[(B, 1, 0)]);
    let mut ring = ring(&driver);
    assert_eq!(pop(&driver, &mut ring), chain(0, 1));
    driver.offer(1, &[(B, 1, NEXT); 4]);
    let mut list = PieceList::new(driver.map.clone());
    assert_eq!(
        ring.pop(Direction::Readable, &mut list),
        Err(RingError::Endless(1))
    );
}

#[test]
fn descriptors_of_another_lap_are_not_taken() {
    let mut driver = PackedDriver::new(4, true);
    driver.offer(0, &[(B, 1, 0)]);
    for flags in [0, AVAIL | USED, USED] {
        driver.set_flags(0, flags);
        assert_eq!(pop(&driver, &mut ring(&driver)), None, "{flags:#x}");
    }
    driver.set_flags(0, AVAIL);
    assert_eq!(pop(&driver, &mut ring(&driver)), chain(0, 1));
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let driver = PackedDriver::new(4, true);
    let good = driver.layout;
    let new = |layout, place| PackedRing::new(&driver.map, layout, place, false).map(|_| ());
    for size in [0, 32769] {
        let bad = Layout { size, ..good };
        assert_eq!(new(bad, BEGINNING), Err(RingError::BadSize(size)));
    }
    for layout in [
        Layout { desc: 8, ..good },
        Layout { avail: 2, ..good },
        Layout { used: 1, ..good },
        Layout {
            used: MEMORY - 2,
            ..good
        },
        Layout {
            desc: MEMORY - 48,
            ..good
        },
        Layout {
            desc: u64::MAX - 15,
            ..good
        },
    ] {
        let refused = new(layout, BEGINNING);
        assert!(
            matches!(refused, Err(RingError::BadArea(..))),
            "{layout:x?}"
        );
    }
    assert_eq!(new(good, 4), Err(RingError::BadPlace(4)));
    assert_eq!(new(good, u16::MAX), Err(RingError::BadPlace(0x7fff)));
    assert_eq!(new(good, BEGINNING | 3), Ok(()));
}

#[test]
fn notifications_are_asked_for_where_the_next_chain_will_be() {
    let mut driver = PackedDriver::new(4, true);
    let mut ring = ring(&driver);
    ring.disarm();
    assert_eq!(driver.device_event().1, DISABLE);
    assert_eq!(ring.arm(), Ok(false));
    assert_eq!(driver.device_event(), (BEGINNING, DESC));
    driver.offer(0, &[(B, 1, 0)]);
    assert!(driver.kick_wanted(1));
    ring.disarm();
    assert!(!driver.kick_wanted(1));
    // The driver was quicker than our wish.
    assert_eq!(ring.arm(), Ok(true));
    pop(&driver, &mut ring);
    assert_eq!(ring.arm(), Ok(false));
    assert_eq!(driver.device_event(), (BEGINNING | 1, DESC));
    driver.offer(1, &[(B, 1, 0)]);
    driver.offer(2, &[(B, 1, 0)]);
    assert!(!driver.kick_wanted(1) && driver.kick_wanted(2));
}

#[test]
fn without_event_index_notifications_are_on_or_off() {
    let mut driver = PackedDriver::new(4, false);
    let mut ring = ring(&driver);
    for _ in 0..2 {
        ring.disarm();
        assert!(!driver.kick_wanted(1));
        assert_eq!(ring.arm(), Ok(false));
        assert!(driver.kick_wanted(1));
    }
    driver.offer(0, &[(B, 1, 0)]);
    assert_eq!(ring.arm(), Ok(true));
}

#[test]
fn nonsense_in_the_event_structure_means_an_interrupt() {
    for (event_idx, place, flags, wanted) in [
        (true, 0, 3, true),
        (true, 7, DESC, true),
        (true, 0, DESC, false),
        (true, 0, DISABLE, false),
        (false, 0, DESC, true),
        (false, 0, 0xfff0, true),
    ] {
        let mut driver = PackedDriver::new(4, event_idx);
        let mut ring = ring(&driver);
        assert_eq!(ring.interrupt_wanted(), Some(true));
        assert_eq!(ring.interrupt_wanted(), None);
        driver.set_event(place, flags);
        driver.offer(0, &[(B, 1, 0)]);
        pop(&driver, &mut ring);
        ring.push(0, 0);
        assert_eq!(ring.undecided(), 0);
        ring.publish();
        assert_eq!(ring.undecided(), 1);
        assert_eq!(ring.interrupt_wanted(), Some(wanted), "{place} {flags:#x}");
    }
}

#[test]
fn a_frontend_that_remembers_only_the_beginning_does_no_harm() {
    let mut driver = PackedDriver::new(4, true);
    let mut ring = ring(&driver);
    for id in 0..6 {
        driver.offer(id, &[(B, 1, 0)]);
        pop(&driver, &mut ring);
        ring.push(id, 0);
        ring.publish();
        driver.take_used();
    }
    driver.offer(6, &[(B, 1, 0)]);
    let start = Start::Perhaps(BEGINNING);
    let again = Ring::new(PACKED, &driver.map, driver.layout, start).unwrap();
    assert_eq!(again.next_avail(), driver.used.bits());
}

/// As QEMU does when the link is down: uses all that is available from a place on, one descriptor a
/// chain.
fn throw_away(driver: &PackedDriver, from: At) {
    let mut at = from;
    while at != driver.avail {
        driver.set_flags(at.slot(), at.used());
        at = at.on(1);
    }
}

#[test]
fn what_another_has_thrown_away_out_of_order_is_passed_over() {
    for size in [3u16, 4, 7] {
        for first in 0..2 * size {
            for offered in 1..=size {
                for kept in 0..offered {
                    let mut driver = PackedDriver::new(size, true);
                    driver.start_at(u64::from(first));
                    for id in 0..offered {
                        driver.offer(id, &[(B, 1, 0)]);
                    }
                    throw_away(&driver, driver.used.on(kept));
                    let ring = PackedRing::recover(&driver.map, driver.layout, false).unwrap();
                    assert_eq!(ring.next_avail(), driver.avail.bits());
                    assert_eq!(driver.take_used().len(), usize::from(offered));
                }
            }
        }
    }
}

#[test]
fn a_ring_that_tells_nothing_is_not_guessed_at() {
    let mut driver = PackedDriver::new(8, true);
    // Two chains of two descriptors, used by a device that leaves the second as it is.
    for id in 0..4 {
        driver.offer(id, &[(B, 1, 0), (B, 1, 0)]);
    }
    for slot in [0, 2, 4] {
        driver.set_flags(slot, AVAIL | USED);
    }
    assert_eq!(recovered(&driver), Err(RingError::Lost));
}

/// One step of a ring program.
#[derive(Clone, Debug)]
enum Step {
    /// The driver offers a chain of so many buffers of such lengths, direct or indirect.
    Offer { lens: Vec<u32>, indirect: bool },
    /// The device takes up to so many chains, uses all but some of them and gives those back.
    Serve { most: usize, back: usize },
    /// The driver asks for an interrupt so far from what was used last.
    Event { delta: i64, flags: u16 },
    /// Another device goes on, where it was told or where it finds out.
    Replace { told: bool },
    /// The device serves so many chains and is killed after so many writes; another goes on.
    Kill { most: usize, writes: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (proptest::collection::vec(1u32..3000, 1..4), any::<bool>())
            .prop_map(|(lens, indirect)| Step::Offer { lens, indirect }),
        4 => (1usize..6, 0usize..3).prop_map(|(most, back)| Step::Serve { most, back }),
        1 => (-9i64..9, 0u16..4).prop_map(|(delta, flags)| Step::Event { delta, flags }),
        1 => any::<bool>().prop_map(|told| Step::Replace { told }),
        1 => (1usize..6, 0usize..12).prop_map(|(most, writes)| Step::Kill { most, writes }),
    ]
}

/// A program under way.
struct Run {
    driver: PackedDriver,
    ring: PackedRing,
    flags: u16,
    /// The device takes chains in runs.
    runs: bool,
    /// Chains that the driver has offered and not got back: id, octets, descriptors.
    outstanding: VecDeque<(u16, u32, u16)>,
    next_id: u16,
    /// Descriptors used before the last decision on an interrupt; none before the first.
    decided: Option<u64>,
    event: (i64, u16),
}

impl Run {
    fn direction(&self) -> Direction {
        if self.flags & WRITE == 0 {
            Direction::Readable
        } else {
            Direction::Writable
        }
    }

    fn written(&self, len: u32) -> u32 {
        if self.flags & WRITE == 0 { 0 } else { len }
    }

    /// Takes up to so many chains; how many there were.
    fn take(&mut self, most: usize) -> Result<usize, TestCaseError> {
        let direction = self.direction();
        let mut list = PieceList::new(self.driver.map.clone());
        let chains = take(&mut self.ring, direction, &mut list, most, self.runs).unwrap();
        let taken = chains.len();
        for (chain, &(id, len, _)) in chains.iter().zip(&self.outstanding) {
            prop_assert_eq!(chain.head, id);
            prop_assert_eq!(chain.len, Some(len as usize));
        }
        prop_assert_eq!(taken, most.min(self.outstanding.len()));
        Ok(taken)
    }

    fn push(&mut self, count: usize) {
        for &(id, len, _) in self.outstanding.iter().take(count) {
            let written = self.written(len);
            self.ring.push(id, written);
        }
    }

    /// What the driver gets back is what it has offered, in order.
    fn check_used(&mut self) -> Result<usize, TestCaseError> {
        let used = self.driver.take_used();
        for &(id, written) in &used {
            let (expected, len, _) = self.outstanding.pop_front().expect("no more than offered");
            prop_assert_eq!(id, u32::from(expected));
            prop_assert_eq!(written, self.written(len));
        }
        Ok(used.len())
    }

    fn check_interrupt(&mut self) -> Result<(), TestCaseError> {
        let now = self.driver.used.number;
        let expected = match (self.decided, self.event) {
            (None, _) => Some(true),
            (Some(before), _) if before == now => None,
            (_, (_, DISABLE)) => Some(false),
            (Some(before), (event, DESC)) if self.driver.layout.event_idx => {
                // Places repeat every two laps.
                let laps = 2 * i64::from(self.driver.layout.size);
                let hit = (before..now).any(|n| (n as i64 - event).rem_euclid(laps) == 0);
                Some(hit)
            }
            (_, (_, _)) => Some(true),
        };
        prop_assert_eq!(self.ring.interrupt_wanted(), expected);
        self.decided = Some(now);
        Ok(())
    }

    /// The driver is in order, so the device uses chains in batches.
    fn batches(&self) -> bool {
        self.driver.in_order
    }

    fn replace(&mut self, ring: PackedRing) {
        self.ring = ring;
        self.decided = None;
    }

    /// False when the ring is lost, which must have a reason.
    fn step(&mut self, step: Step) -> Result<bool, TestCaseError> {
        match step {
            Step::Offer { lens, indirect } => {
                let count = if indirect { 1 } else { lens.len() as u16 };
                if self.driver.room() < u64::from(count) {
                    return Ok(true);
                }
                let flags = self.flags;
                let buffers: Vec<_> = lens.iter().map(|&len| (B, len, flags)).collect();
                let id = self.next_id;
                self.next_id = (self.next_id + 1) % 40;
                if indirect {
                    self.driver.offer_indirect(id, &buffers);
                } else {
                    self.driver.offer(id, &buffers);
                }
                let len = lens.iter().sum();
                self.outstanding.push_back((id, len, count));
            }
            Step::Serve { most, back } => {
                let taken = self.take(most)?;
                let back = back.min(taken);
                self.push(taken - back);
                self.ring.rewind(back as u16);
                prop_assert!(!self.driver.has_used());
                self.ring.publish();
                prop_assert_eq!(self.check_used()?, taken - back);
                self.check_interrupt()?;
                prop_assert_eq!(self.ring.next_avail(), self.driver.used.bits());
            }
            Step::Event { delta, flags } => {
                let at = self.driver.used.number as i64 + delta;
                let size = self.driver.layout.size;
                let number = at.rem_euclid(2 * i64::from(size)) as u64;
                self.driver.set_event(At { number, size }.bits(), flags);
                self.event = (at, flags);
            }
            Step::Replace { told } => {
                let place = self.driver.used.bits();
                prop_assert_eq!(recovered(&self.driver), Ok(place));
                let start = if told {
                    Start::At(place)
                } else {
                    Start::Perhaps(BEGINNING)
                };
                let batches = self.batches();
                let format = Format { batches, ..PACKED };
                let ring = Ring::new(format, &self.driver.map, self.driver.layout, start);
                let Ok(Ring::Packed(ring)) = ring else {
                    panic!("{ring:?}");
                };
                self.replace(ring);
            }
            Step::Kill { most, writes } => {
                let taken = self.take(most)?;
                self.push(taken);
                self.ring.life.set(writes);
                self.ring.publish();
                let before = self.check_used()?;
                prop_assert!(before == 0 || before == taken);
                let mut batch = self.outstanding.iter().take(taken.saturating_sub(before));
                let inner_list = batch.any(|&(_, _, count)| count > 1) && taken > 1;
                let layout = self.driver.layout;
                match PackedRing::recover(&self.driver.map, layout, self.batches()) {
                    Ok(ring) => self.replace(ring),
                    Err(e) => {
                        prop_assert!(!self.batches());
                        prop_assert_eq!(e, RingError::Lost);
                        prop_assert!(inner_list);
                        return Ok(false);
                    }
                }
                let finished = self.check_used()?;
                prop_assert!(finished + before <= taken);
                if self.batches() {
                    prop_assert!(finished == 0 || before == 0 && finished == taken);
                }
                prop_assert_eq!(self.ring.next_avail(), self.driver.used.bits());
                // All the rest is still there.
                let all = self.outstanding.len();
                let left = self.take(usize::MAX)?;
                prop_assert_eq!(left, all);
                self.push(left);
                self.ring.publish();
                prop_assert_eq!(self.check_used()?, left);
                self.check_interrupt()?;
            }
        }
        Ok(true)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn a_driver_gets_back_what_it_has_offered(
        steps in proptest::collection::vec(step(), 1..80),
        size in prop_oneof![Just(16u16), 3u16..20],
        start in 0u64..50,
        event_idx in any::<bool>(),
        (flags, batches) in prop_oneof![Just((0u16, false)), Just((0, true)), Just((WRITE, false))],
        runs in any::<bool>(),
    ) {
        let mut driver = PackedDriver::new(size, event_idx);
        driver.in_order = batches;
        driver.start_at(start);
        let mut run = Run {
            ring: ring(&driver),
            driver,
            flags,
            runs,
            outstanding: VecDeque::new(),
            next_id: 0,
            decided: None,
            event: (0, ENABLE),
        };
        for step in steps {
            if !run.step(step)? {
                break;
            }
            prop_assert_eq!(recovered(&run.driver), Ok(run.driver.used.bits()));
        }
    }

    /// Whatever a driver leaves in its memory, taking chains neither panics nor hangs, and all
    /// pieces lie in guest memory. Nor does finding out where a ring stands.
    #[test]
    fn survives_any_memory(
        table in proptest::collection::vec(
            (any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>(), any::<bool>()), 16),
        events in any::<[u16; 4]>(),
        size in 1u16..17,
        place in any::<u16>(),
        direction in prop_oneof![Just(Direction::Readable), Just(Direction::Writable)],
        event_idx in any::<bool>(),
        recover in any::<bool>(),
        batches in any::<bool>(),
        (most, runs) in (1usize..4, any::<bool>()),
    ) {
        let driver = PackedDriver::new(size, event_idx);
        let memory = driver.memory();
        for (i, (addr, len, id, flags, near)) in table.into_iter().enumerate() {
            // Wild addresses are refused at once: most should be of the kind that is not.
            let (addr, len) = if near { (addr % MEMORY, len % 4096) } else { (addr, len) };
            let at = 16 * i as u64;
            memory.write_obj(addr, GuestAddress(at)).unwrap();
            memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            memory.write_obj(id, GuestAddress(at + 12)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 14)).unwrap();
        }
        driver.set_event(events[0], events[1]);
        let place = (place % size) | (place & BEGINNING);
        let start = if recover { Start::Perhaps(place) } else { Start::At(place) };
        let format = Format { batches, ..PACKED };
        let Ok(mut ring) = Ring::new(format, &driver.map, driver.layout, start) else {
            prop_assert!(recover);
            return Ok(());
        };
        let mut list = PieceList::new(driver.map.clone());
        for i in 0..40 {
            list.clear();
            let Ring::Packed(packed) = &mut ring else {
                unreachable!();
            };
            match take(packed, direction, &mut list, most, runs) {
                Ok(chains) if chains.is_empty() => {
                    ring.arm().unwrap();
                    ring.disarm();
                }
                Ok(chains) => {
                    let octets: usize = chains.iter().filter_map(|chain| chain.len).sum();
                    prop_assert_eq!(octets, list.packet().len());
                    for chain in chains {
                        ring.push(chain.head, i % 3);
                    }
                    if i % 2 == 0 {
                        ring.publish();
                        ring.interrupt_wanted();
                    }
                }
                Err(e) => {
                    prop_assert!(matches!(e, RingError::Endless(_)));
                    break;
                }
            }
        }
        prop_assert!(ring.next_avail() & !BEGINNING < size);
    }
}
