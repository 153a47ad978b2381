// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the split ring: by situation, and against virtio-queue over random ring programs.

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::driver::{BUFFERS, Desc, Driver, INDIRECT, MEMORY, NEXT, WRITE};
use super::piece_list::PieceList;
use super::split::SplitRing;
use super::virtqueue::tests::take;
use super::virtqueue::{Chain, Direction, Format, Layout, Ring, RingError, Start, Take};

const B: u64 = BUFFERS;

fn ring(driver: &Driver) -> SplitRing {
    SplitRing::new(&driver.map, driver.layout, 0, false).unwrap()
}

fn pieces(driver: &Driver) -> PieceList {
    PieceList::new(driver.map.clone())
}

fn pop(driver: &Driver, ring: &mut SplitRing, direction: Direction) -> (Option<Chain>, Vec<u8>) {
    let mut list = pieces(driver);
    let chain = ring.pop(direction, &mut list).unwrap();
    let packet = list.packet();
    let mut bytes = vec![0; packet.len()];
    packet.copy_to(0, &mut bytes);
    (chain, bytes)
}

#[test]
fn chains_are_read_in_order_and_used_at_once() {
    let mut driver = Driver::new(8, true);
    driver.write(B, b"hello ");
    driver.write(B + 100, b"world");
    driver.write_chain(2, 0, &[(B, 6), (B + 100, 5)]);
    driver.write_chain(0, 0, &[(B, 5)]);
    driver.offer(2);
    driver.offer(0);
    let mut ring = ring(&driver);
    let (chain, bytes) = pop(&driver, &mut ring, Direction::Readable);
    assert_eq!(
        chain,
        Some(Chain {
            head: 2,
            len: Some(11)
        })
    );
    assert_eq!(bytes, b"hello world");
    let (chain, bytes) = pop(&driver, &mut ring, Direction::Readable);
    assert_eq!((chain.unwrap().head, &bytes[..]), (0, &b"hello"[..]));
    assert_eq!(pop(&driver, &mut ring, Direction::Readable).0, None);
    ring.push(2, 0);
    ring.push(0, 7);
    assert_eq!(driver.take_used(), []);
    ring.publish();
    assert_eq!(driver.take_used(), [(2, 0), (0, 7)]);
}

#[test]
fn a_batch_is_one_entry_of_the_used_ring() {
    let mut driver = Driver::at(8, true, 6).in_order();
    let mut ring = SplitRing::new(&driver.map, driver.layout, 6, true).unwrap();
    ring.interrupt_wanted();
    for (batch, at) in [(vec![1, 4, 2], 6), (vec![0], 1), (vec![3, 5, 7, 6], 2)] {
        let used = driver.layout.used + 4;
        driver.write(used, &[0xff; 8 * 8]);
        for &head in &batch {
            driver.write_chain(head, 0, &[(B, 10)]);
            driver.offer(head);
            let (chain, _) = pop(&driver, &mut ring, Direction::Readable);
            assert_eq!(chain.unwrap().head, head);
            ring.push(head, 0);
            assert!(!driver.has_used());
        }
        ring.publish();
        for slot in 0..8 {
            let entry = driver.read(used + 8 * slot, 8);
            let expected = if slot == at {
                u64::from(batch[batch.len() - 1]).to_le_bytes()
            } else {
                [0xff; 8]
            };
            assert_eq!(entry, expected, "{batch:?}: entry {slot}");
        }
        assert_eq!(ring.undecided(), batch.len() as u16);
        ring.interrupt_wanted();
        let expected: Vec<_> = batch.iter().map(|&head| (u32::from(head), 0)).collect();
        assert_eq!(driver.take_used(), expected);
    }
}

#[test]
fn what_is_used_in_batches_goes_on_behind_the_last() {
    let mut driver = Driver::at(8, true, 0xfffe).in_order();
    for head in 0..5 {
        driver.write_chain(head, 0, &[(B, 10)]);
        driver.offer(head);
    }
    for (taken, given_back) in [(2, 1), (3, 0), (1, 1), (1, 0)] {
        // Whatever somebody believes that we have taken.
        let batches = Format {
            packed: false,
            batches: true,
        };
        let start = Start::Perhaps(taken + 1);
        let mut ring = Ring::new(batches, &driver.map, driver.layout, start).unwrap();
        assert_eq!(ring.next_avail(), driver.used_idx());
        let mut list = pieces(&driver);
        let heads: Vec<_> = (0..taken)
            .map(|_| {
                ring.pop(Direction::Readable, &mut list)
                    .unwrap()
                    .unwrap()
                    .head
            })
            .collect();
        let used = heads.len() - given_back;
        for &head in &heads[..used] {
            ring.push(head, 0);
        }
        ring.publish();
        let expected: Vec<_> = heads[..used]
            .iter()
            .map(|&head| (u32::from(head), 0))
            .collect();
        assert_eq!(driver.take_used(), expected);
    }
    assert_eq!(driver.used_idx(), 3);
}

#[test]
fn indirect_tables_are_followed() {
    let mut driver = Driver::new(4, true);
    driver.write(B, b"abc");
    driver.write(B + 10, b"de");
    // Not aligned: only the descriptor table of the ring itself has to be (2.7.5.3).
    let table = B + 0x1003;
    let at = |addr, len, flags, next| Desc {
        addr,
        len,
        flags,
        next,
    };
    driver.write_desc(table, 0, at(B, 3, NEXT, 2));
    driver.write_desc(table, 2, at(B + 10, 2, 0, 0));
    driver.write_desc(0, 1, at(table, 48, INDIRECT, 0));
    driver.offer(1);
    assert_eq!(
        pop(&driver, &mut ring(&driver), Direction::Readable).1,
        b"abcde"
    );
}

#[test]
fn rewound_chains_come_again() {
    let mut driver = Driver::new(4, true);
    for head in 0..3 {
        driver.write_chain(head, WRITE, &[(B, 10)]);
        driver.offer(head);
    }
    let mut ring = ring(&driver);
    for head in 0..3 {
        assert_eq!(
            pop(&driver, &mut ring, Direction::Writable).0.unwrap().head,
            head
        );
    }
    ring.rewind(2);
    assert_eq!(ring.next_avail(), 1);
    assert_eq!(
        pop(&driver, &mut ring, Direction::Writable).0.unwrap().head,
        1
    );
}

#[test]
fn a_chain_that_breaks_the_rules_costs_only_itself() {
    let at = |addr, len, flags, next| Desc {
        addr,
        len,
        flags,
        next,
    };
    let cases: [(&str, Vec<Desc>); 8] = [
        ("loop", vec![at(B, 1, NEXT, 0)]),
        ("next outside the table", vec![at(B, 1, NEXT, 4)]),
        ("outside memory", vec![at(MEMORY - 1, 2, 0, 0)]),
        ("address wraps", vec![at(u64::MAX, 2, 0, 0)]),
        (
            "readable after writable",
            vec![at(B, 1, WRITE | NEXT, 1), at(B, 1, 0, 0)],
        ),
        ("empty indirect", vec![at(B, 0, INDIRECT, 0)]),
        ("odd indirect", vec![at(B, 17, INDIRECT, 0)]),
        (
            "indirect that goes on",
            vec![at(B, 16, INDIRECT | NEXT, 1), at(B, 1, 0, 0)],
        ),
    ];
    for (name, descs) in cases {
        let mut driver = Driver::new(4, true);
        for (i, desc) in descs.into_iter().enumerate() {
            driver.write_desc(0, i as u16, desc);
        }
        driver.write_chain(3, 0, &[(B, 5)]);
        driver.offer(0);
        driver.offer(3);
        let mut ring = ring(&driver);
        let (chain, bytes) = pop(&driver, &mut ring, Direction::Readable);
        assert_eq!(
            (chain, bytes.len()),
            (Some(Chain { head: 0, len: None }), 0),
            "{name}"
        );
        let (chain, _) = pop(&driver, &mut ring, Direction::Readable);
        assert_eq!(
            chain,
            Some(Chain {
                head: 3,
                len: Some(5)
            }),
            "{name}"
        );
    }
}

/// A driver of ring size 4 with one chain of so many one-octet buffers in an indirect table.
fn large_table(count: u16) -> Driver {
    let mut driver = Driver::new(4, true);
    for i in 0..count {
        let flags = if i + 1 < count { NEXT } else { 0 };
        let (addr, next) = (B + u64::from(i), i + 1);
        driver.write_desc(
            B + 0x1_0000,
            i,
            Desc {
                addr,
                len: 1,
                flags,
                next,
            },
        );
    }
    driver.write_desc(
        0,
        3,
        Desc {
            addr: B + 0x1_0000,
            len: 16 * u32::from(count),
            flags: INDIRECT,
            next: 0,
        },
    );
    driver.offer(3);
    driver
}

#[test]
fn an_indirect_table_may_be_larger_than_the_ring_but_not_endless() {
    for (count, expected) in [(4, Some(4)), (20, Some(20)), (512, Some(512)), (513, None)] {
        let driver = large_table(count);
        driver.write(B, &[7; 600]);
        let (chain, bytes) = pop(&driver, &mut ring(&driver), Direction::Readable);
        assert_eq!(chain.unwrap().len, expected, "{count}");
        assert_eq!(bytes, vec![7; expected.unwrap_or(0)]);
    }
}

#[test]
fn a_loop_in_an_indirect_table_ends() {
    let mut driver = large_table(2);
    // Empty buffers leave no pieces to be counted.
    for i in 0..2 {
        driver.write_desc(
            B + 0x1_0000,
            i,
            Desc {
                addr: B,
                len: 0,
                flags: NEXT,
                next: 1 - i,
            },
        );
    }
    let (chain, _) = pop(&driver, &mut ring(&driver), Direction::Readable);
    assert_eq!(chain, Some(Chain { head: 3, len: None }));
}

#[test]
fn a_nested_indirect_table_is_refused() {
    let mut driver = Driver::new(4, true);
    let inner = Desc {
        addr: B,
        len: 16,
        flags: INDIRECT,
        next: 0,
    };
    driver.write_desc(B, 0, inner);
    driver.write_desc(0, 0, inner);
    driver.offer(0);
    assert_eq!(
        pop(&driver, &mut ring(&driver), Direction::Readable)
            .0
            .unwrap()
            .len,
        None
    );
}

#[test]
fn indices_that_no_driver_could_write_break_the_ring() {
    let mut driver = Driver::new(4, true);
    let mut list = pieces(&driver);
    driver.set_avail_idx(5);
    assert_eq!(
        ring(&driver).pop(Direction::Readable, &mut list),
        Err(RingError::BadAvailIndex {
            driver: 5,
            device: 0
        })
    );
    driver.set_avail_idx(0);
    driver.offer(4);
    assert_eq!(
        ring(&driver).pop(Direction::Readable, &mut list),
        Err(RingError::BadHead(4))
    );
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let driver = Driver::new(4, true);
    let good = driver.layout;
    let new = |layout| SplitRing::new(&driver.map, layout, 0, false).map(|_| ());
    for size in [0, 3, 40000] {
        assert_eq!(new(Layout { size, ..good }), Err(RingError::BadSize(size)));
    }
    for layout in [
        Layout { desc: 8, ..good },
        Layout { avail: 1, ..good },
        Layout { used: 2, ..good },
        Layout {
            used: MEMORY - 4,
            ..good
        },
        Layout {
            desc: u64::MAX - 15,
            ..good
        },
    ] {
        assert!(
            matches!(new(layout), Err(RingError::BadArea(..))),
            "{layout:x?}"
        );
    }
    assert_eq!(new(good), Ok(()));
}

#[test]
fn notifications_are_never_lost_with_event_index() {
    let mut driver = Driver::new(4, true);
    driver.write_chain(0, 0, &[(B, 1)]);
    let mut ring = ring(&driver);
    assert_eq!(ring.arm(), Ok(false));
    assert_eq!(driver.avail_event(), 0);
    // The driver was quicker than our wish.
    driver.offer(0);
    assert_eq!(ring.arm(), Ok(true));
    // Seen, not taken: "more than this" is what is asked for.
    assert_eq!(ring.arm(), Ok(false));
    assert_eq!(driver.avail_event(), 1);
}

#[test]
fn interrupts_follow_used_event() {
    let mut driver = Driver::new(8, true);
    driver.write_chain(0, 0, &[(B, 1)]);
    let mut ring = ring(&driver);
    let mut use_one = |ring: &mut SplitRing| {
        driver.offer(0);
        let mut list = PieceList::new(driver.map.clone());
        ring.pop(Direction::Readable, &mut list).unwrap();
        ring.push(0, 0);
        ring.publish();
    };
    // The first is always told: the driver may have armed before this device was there.
    assert_eq!(ring.interrupt_wanted(), Some(true));
    assert_eq!(ring.interrupt_wanted(), None);
    use_one(&mut ring);
    assert_eq!(ring.interrupt_wanted(), Some(true));
    use_one(&mut ring);
    assert_eq!(ring.interrupt_wanted(), Some(false));
}

#[test]
fn interrupts_follow_the_flag_without_event_index() {
    let mut driver = Driver::new(8, false);
    driver.write_chain(0, 0, &[(B, 1)]);
    let mut ring = ring(&driver);
    assert_eq!(ring.interrupt_wanted(), Some(true));
    for (flags, wanted) in [(1, false), (0, true)] {
        driver.set_avail_flags(flags);
        driver.offer(0);
        pop(&driver, &mut ring, Direction::Readable);
        ring.push(0, 0);
        ring.publish();
        assert_eq!(ring.interrupt_wanted(), Some(wanted));
    }
}

/// One step of a ring program.
#[derive(Clone, Debug)]
enum Step {
    /// The driver offers a chain of so many buffers of such lengths, direct or indirect.
    Offer { lens: Vec<u32>, indirect: bool },
    /// The device takes and uses up to so many chains.
    Serve(usize),
    /// The driver moves `used_event` so far from its used index.
    Event(i16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (proptest::collection::vec(0u32..3000, 1..4), any::<bool>())
            .prop_map(|(lens, indirect)| Step::Offer { lens, indirect }),
        (1usize..6).prop_map(Step::Serve),
        (-3i16..4).prop_map(Step::Event),
    ]
}

proptest! {
    /// The same program on our ring and on virtio-queue's: same chains, same used ring, same
    /// decisions on interrupts. With batches the used ring is one that says the same.
    #[test]
    fn agrees_with_virtio_queue(
        steps in proptest::collection::vec(step(), 1..80),
        event_idx in any::<bool>(),
        start in any::<u16>(),
        batches in any::<bool>(),
        runs in any::<bool>(),
    ) {
        let mut ours_driver = Driver::at(16, event_idx, start);
        if batches {
            ours_driver = ours_driver.in_order();
        }
        let mut their_driver = Driver::at(16, event_idx, start);
        let map = ours_driver.map.clone();
        let mut ours = SplitRing::new(&map, ours_driver.layout, start, batches).unwrap();
        let mut theirs = Queue::new(16).unwrap();
        theirs.set_size(16);
        theirs.try_set_desc_table_address(GuestAddress(their_driver.layout.desc)).unwrap();
        theirs.try_set_avail_ring_address(GuestAddress(their_driver.layout.avail)).unwrap();
        theirs.try_set_used_ring_address(GuestAddress(their_driver.layout.used)).unwrap();
        theirs.set_event_idx(event_idx);
        theirs.set_next_avail(start);
        theirs.set_next_used(start);
        theirs.set_ready(true);
        let mut outstanding = 0u16;
        let mut head = 0u16;
        let mut first_signal = true;
        for step in steps {
            match step {
                Step::Offer { lens, indirect } => {
                    if outstanding == 4 { continue; }
                    for driver in [&mut ours_driver, &mut their_driver] {
                        driver.offer_buffers(head * 4, &lens, indirect);
                    }
                    outstanding += 1;
                    head = (head + 1) % 4;
                }
                Step::Serve(n) => {
                    let mut served = 0;
                    let mut list = pieces(&ours_driver);
                    let our_chains = take(&mut ours, Direction::Readable, &mut list, n, runs);
                    let mut our_chains = our_chains.unwrap().into_iter();
                    for _ in 0..n {
                        let our_chain = our_chains.next();
                        let their_chain = theirs.pop_descriptor_chain(their_driver.memory());
                        prop_assert_eq!(our_chain.is_some(), their_chain.is_some());
                        let (Some(our_chain), Some(their_chain)) = (our_chain, their_chain) else {
                            break;
                        };
                        prop_assert_eq!(our_chain.head, their_chain.head_index());
                        let lens: usize = their_chain.map(|d| d.len() as usize).sum();
                        prop_assert_eq!(our_chain.len, Some(lens));
                        let written = if batches { 0 } else { lens as u32 };
                        ours.push(our_chain.head, written);
                        theirs.add_used(their_driver.memory(), our_chain.head, written).unwrap();
                        served += 1;
                        outstanding -= 1;
                    }
                    if served > 0 {
                        ours.publish();
                        let wanted = ours.interrupt_wanted();
                        let expected = theirs.needs_notification(their_driver.memory()).unwrap();
                        // Without event index virtio-queue always interrupts; nobody set the flag.
                        // Our first is unconditional.
                        if !first_signal {
                            prop_assert_eq!(wanted, Some(expected));
                        }
                        first_signal = false;
                    }
                    prop_assert_eq!(ours_driver.take_used(), their_driver.take_used());
                }
                Step::Event(delta) => {
                    for driver in [&ours_driver, &their_driver] {
                        driver.set_used_event(driver.used_idx().wrapping_add_signed(delta));
                    }
                }
            }
        }
    }

    /// Whatever a driver leaves in its memory, taking chains neither panics nor hangs, and all
    /// pieces lie in guest memory.
    #[test]
    fn survives_any_memory(
        table in proptest::collection::vec(
            (any::<u64>(), any::<u32>(), any::<u16>(), 0u16..20, any::<bool>()), 16),
        heads in proptest::collection::vec(0u16..18, 16),
        idx in any::<u16>(),
        direction in prop_oneof![Just(Direction::Readable), Just(Direction::Writable)],
        batches in any::<bool>(),
        (most, runs) in (1usize..4, any::<bool>()),
    ) {
        let mut driver = Driver::new(16, true);
        for (i, (addr, len, flags, next, near)) in table.into_iter().enumerate() {
            // Wild addresses are refused at once: most should be of the kind that is not.
            let (addr, len) = if near { (addr % MEMORY, len % 4096) } else { (addr, len) };
            driver.write_desc(0, i as u16, Desc { addr, len, flags: flags & 7, next });
        }
        for head in heads {
            driver.offer(head);
        }
        driver.set_avail_idx(idx);
        let mut ring = SplitRing::new(&driver.map, driver.layout, 0, batches).unwrap();
        let mut list = pieces(&driver);
        for _ in 0..20 {
            list.clear();
            match take(&mut ring, direction, &mut list, most, runs) {
                Ok(chains) if !chains.is_empty() => {
                    let octets: usize = chains.iter().filter_map(|chain| chain.len).sum();
                    prop_assert_eq!(octets, list.packet().len());
                    for chain in chains {
                        ring.push(chain.head, 0);
                    }
                    ring.publish();
                }
                Ok(_) | Err(_) => break,
            }
        }
    }
}
