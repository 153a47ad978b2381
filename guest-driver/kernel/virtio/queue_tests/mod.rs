// SPDX-License-Identifier: GPL-2.0

//! Virtqueues against a device that is played over the same memory, and that can be told to lie.

mod peer;

use super::super::testing::Random;
use super::*;
use kernel::io::io_write;
use peer::*;

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
