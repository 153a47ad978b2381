// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of batches in a packed ring, by situation; [`packed_tests`](super::packed_tests) has the random
//! ring programs.

use vm_memory::{Bytes, GuestAddress};

use super::driver::BUFFERS;
use super::packed::{BEGINNING, PackedRing};
use super::packed_driver::{AVAIL, PackedDriver, USED};
use super::packed_tests::{pop, recovered, ring};
use super::virtqueue::RingError;

const B: u64 = BUFFERS;

/// A driver of chains of so many descriptors, ids from 0 on, that have all been taken and pushed.
fn pushed(size: u16, start: u64, counts: &[u16]) -> (PackedDriver, PackedRing) {
    let mut driver = PackedDriver::new(size, true);
    driver.in_order = true;
    driver.start_at(start);
    let mut ring = ring(&driver);
    for (id, &count) in counts.iter().enumerate() {
        driver.offer(id as u16, &vec![(B, 1, 0); count.into()]);
        pop(&driver, &mut ring);
        ring.push(id as u16, 0);
    }
    (driver, ring)
}

#[test]
fn a_batch_is_one_used_descriptor_and_a_mark() {
    for (counts, marks) in [
        (&[1u16][..], [true, false, false, false, false, false]),
        (&[1, 1], [true, true, false, false, false, false]),
        (&[2, 1, 1], [true, false, false, true, false, false]),
        (&[1, 5], [true, false, false, false, false, true]),
    ] {
        for start in 0..12 {
            let (mut driver, mut ring) = pushed(6, start, counts);
            ring.publish();
            let places = (0..6).map(|n| driver.used.on(n));
            let is_marked: Vec<_> = places
                .take(counts.iter().sum::<u16>().into())
                .map(|at| driver.flags(at.slot()) == at.used())
                .collect();
            assert_eq!(is_marked, marks[..is_marked.len()], "{counts:?} at {start}");
            assert_eq!(driver.take_used().len(), counts.len());
            assert_eq!(ring.next_avail(), driver.used.bits());
            assert_eq!(recovered(&driver), Ok(ring.next_avail()));
        }
    }
}

#[test]
fn a_batch_that_was_not_shown_is_shown_by_the_next_device() {
    for counts in [&[1u16, 1][..], &[2], &[1, 2, 3], &[6]] {
        for start in 0..12 {
            for (writes, shown) in [(0, 0), (1, counts.len()), (2, counts.len())] {
                let (mut driver, mut ring) = pushed(6, start, counts);
                ring.life.set(writes);
                ring.publish();
                let now = if writes == 2 { counts.len() } else { 0 };
                assert_eq!(driver.take_used().len(), now);
                let found = recovered(&driver).unwrap();
                assert_eq!(driver.take_used().len(), shown - now);
                assert_eq!(found, driver.used.bits());
            }
        }
    }
}

#[test]
fn marks_that_no_device_has_made_are_not_followed() {
    let (mut driver, mut ring) = pushed(6, 0, &[1, 1, 1]);
    ring.life.set(1);
    ring.publish();
    // It says that the batch is larger than the ring.
    for size in [7u32, 0x1_0001, u32::MAX] {
        let at = GuestAddress(16 * 2 + 8);
        driver.memory().write_obj(size, at).unwrap();
        assert_eq!(recovered(&driver), Ok(BEGINNING | 3));
        assert_eq!(driver.take_used(), []);
    }
    // One of this lap, behind those of the lap before.
    let (driver, mut ring) = pushed(6, 0, &[1]);
    ring.publish();
    driver.set_flags(4, AVAIL | USED);
    assert_eq!(recovered(&driver), Err(RingError::Lost));
}

#[test]
fn the_driver_may_go_on_while_a_ring_is_looked_at() {
    const SIZE: u16 = 4096;
    let chains: Vec<_> = (0..SIZE).collect();
    for start in [0, 1, 3000, 5000] {
        let mut driver = PackedDriver::new(SIZE, true);
        driver.in_order = true;
        driver.start_at(start);
        let mut ring = ring(&driver);
        for batch in chains.chunks(32) {
            for &id in batch {
                driver.offer(id, &[(B, 60000, 0)]);
                pop(&driver, &mut ring);
                ring.push(id, 0);
            }
            ring.publish();
        }
        assert_eq!(driver.take_used().len(), chains.len());
        let (map, layout) = (driver.map.clone(), driver.layout);
        std::thread::scope(|scope| {
            let offer = || {
                for &id in &chains {
                    driver.offer(id, &[(B, 60000, 0)]);
                }
            };
            let offering = scope.spawn(offer);
            while !offering.is_finished() {
                let found = PackedRing::recover(&map, layout, true).unwrap();
                assert_eq!(found.next_avail(), ring.next_avail());
            }
        });
        assert_eq!(recovered(&driver), Ok(ring.next_avail()));
    }
}
