// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receive-side scaling and reports of hashes.

use super::*;
use crate::nic::flow_hash::{FlowHasher, VIRTIO_NET_HASH_TYPE_UDPV4};

#[test]
fn scaling_takes_the_place_of_pairs_and_the_other_way_round() {
    let mut state = without(&[]);
    assert!(scaling(&state).is_none());
    // The highest of the table, of the queue beside it, and of the transmit queues.
    for (command, pairs) in [
        (rss(&[0, 2], 0, 1), 3),
        (rss(&[0, 1], 3, 1), 4),
        (rss(&[0; 128], 0, 2), 2),
    ] {
        assert_eq!(state.obey(&command), ok(Change::Scaling));
        assert_eq!(state.queue_pairs(), pairs);
    }
    let before = scaling(&state).cloned();
    for bad in [
        rss(&[4], 0, 1),
        rss(&[0], 4, 1),
        rss(&[0x8000], 0, 1),
        rss(&[0], 0, 0),
        rss(&[0], 0, 5),
        rss(&[0; 3], 0, 1),
        rss(&[0; 256], 0, 1),
    ] {
        assert_eq!(state.obey(&bad), ERR, "{bad:?}");
    }
    assert_eq!((scaling(&state), state.queue_pairs()), (before.as_ref(), 2));
    assert_eq!(state.obey(&[4, 0, 3, 0]), ok(Change::QueuePairs(3)));
    assert!(scaling(&state).is_none());
    assert_eq!(state.obey(&rss(&[0], 0, 1)), ok(Change::Scaling));
    state.reset(Features::offered(&config()));
    assert!(scaling(&state).is_none());
}

#[test]
fn hashes_are_of_types_and_with_a_key_that_the_device_can_have() {
    let mut state = without(&[]);
    let good = rss(&[0], 0, 1);
    let key = good.len() - 41;
    let with = |types: u32, key_len: u8| {
        let mut command = good.clone();
        command[2..6].copy_from_slice(&types.to_le_bytes());
        command.truncate(key);
        command.push(key_len);
        command.resize(key + 1 + usize::from(key_len), 0x11);
        command
    };
    // A driver that wants no hashes needs no key.
    for (types, key_len) in [(0x3f, 40), (1, 1), (0, 0), (0, 40)] {
        assert_eq!(state.obey(&with(types, key_len)), ok(Change::Scaling));
    }
    for (types, key_len) in [
        (0x40, 40),
        (0x8000_0001, 40),
        (0x3f, 41),
        (0, 255),
        (0x3f, 0),
    ] {
        assert_eq!(state.obey(&with(types, key_len)), ERR, "{types} {key_len}");
    }
}

/// The value of the hash of some UDP packet over IPv4, if it is hashed.
fn hash(state: &DriverState) -> Option<u32> {
    let start = crate::datapath::tests::scaling::of_flow(7, 1, 100);
    Some(state.hashing()?.hash(&start[12..])?.value)
}

/// What that value is with this key.
fn by_key(key: &[u8]) -> Option<u32> {
    let start = crate::datapath::tests::scaling::of_flow(7, 1, 100);
    let hasher = FlowHasher::new(VIRTIO_NET_HASH_TYPE_UDPV4, key);
    Some(hasher.hash(&start[12..])?.value)
}

#[test]
fn without_scaling_hashes_are_as_the_last_command_says_until_a_reset() {
    for refused in [
        &[VIRTIO_NET_F_RSS][..],
        &[VIRTIO_NET_F_RSS, VIRTIO_NET_F_MQ],
    ] {
        let mut state = without(refused);
        assert_eq!(hash(&state), None);
        for (types, key, expected) in [
            (0x3f, &[9; 40][..], by_key(&[9; 40])),
            (0x3f, &[8; 40], by_key(&[8; 40])),
            (VIRTIO_NET_HASH_TYPE_UDPV4, &[8], by_key(&[8])),
            (0x3b, &[8], by_key(&[8])),
            // Nothing that this packet is.
            (0x38, &[8], None),
            (0, &[8; 40], None),
            (0, &[], None),
            (0x3f, &[1; 40], by_key(&[1; 40])),
        ] {
            assert_eq!(state.obey(&hashes(types, key)), ok(Change::Hashing));
            assert_eq!(hash(&state), expected, "{types}");
            assert_eq!(state.queue_pairs(), 1);
        }
        assert_eq!(state.obey(&rss(&[0], 0, 1)), ERR);
        assert_eq!(hash(&state), by_key(&[1; 40]));
        state.reset(state.features());
        assert!(state.hashing().is_none());
    }
}

#[test]
fn a_number_of_pairs_leaves_reports_as_they_are_and_ends_what_is_for_scaling_alone() {
    let mut state = without(&[]);
    assert_eq!(state.obey(&rss(&[0, 3], 0, 1)), ok(Change::Scaling));
    let by_rss = hash(&state);
    assert!(by_rss.is_some());
    assert_eq!(state.obey(&[4, 0, 2, 0]), ok(Change::QueuePairs(2)));
    assert_eq!((hash(&state), scaling(&state)), (by_rss, None));
    assert_eq!(state.obey(&hashes(0x3f, &[3; 40])), ok(Change::Hashing));
    assert_eq!(state.obey(&[4, 0, 3, 0]), ok(Change::QueuePairs(3)));
    assert_eq!(hash(&state), by_key(&[3; 40]));
    // Nothing to report, and nothing to look at.
    let mut untyped = rss(&[0, 3], 0, 1);
    untyped[2..6].fill(0);
    assert_eq!(state.obey(&untyped), ok(Change::Scaling));
    assert!(hash(&state).is_none() && scaling(&state).is_some());
    assert_eq!(state.obey(&[4, 0, 3, 0]), ok(Change::QueuePairs(3)));
    assert!(state.hashing().is_none());

    let mut state = without(&[VIRTIO_NET_F_HASH_REPORT]);
    assert_eq!(state.obey(&rss(&[0, 3], 0, 1)), ok(Change::Scaling));
    assert_eq!(state.obey(&[4, 0, 2, 0]), ok(Change::QueuePairs(2)));
    assert!(state.hashing().is_none());
}

#[test]
fn hashes_for_reports_take_the_place_of_scaling_and_the_other_way_round() {
    let mut state = without(&[]);
    assert_eq!(state.obey(&rss(&[0, 3], 0, 1)), ok(Change::Scaling));
    let by_rss = hash(&state);
    assert_eq!(state.obey(&hashes(0x3f, &[3; 40])), ok(Change::Hashing));
    assert_eq!((hash(&state), scaling(&state)), (by_key(&[3; 40]), None));
    assert_eq!(state.queue_pairs(), 4);
    assert_eq!(state.obey(&rss(&[0, 1], 0, 1)), ok(Change::Scaling));
    assert_eq!((hash(&state), state.queue_pairs()), (by_rss, 2));
    assert!(scaling(&state).is_some());
}

#[test]
fn a_config_of_hashes_that_the_device_cannot_have_changes_nothing() {
    let mut state = without(&[]);
    let good = hashes(0x3f, &[3; 40]);
    assert_eq!(state.obey(&good), ok(Change::Hashing));
    for bad in [
        hashes(0x40, &[1; 40]),
        hashes(0x8000_0001, &[1; 40]),
        hashes(0x3f, &[1; 41]),
        hashes(0, &[1; 255]),
        hashes(0x3f, &[]),
    ] {
        assert_eq!(state.obey(&bad), ERR, "{bad:?}");
    }
    for len in 0..good.len() {
        assert_eq!(state.obey(&good[..len]), ERR, "{len}");
    }
    assert_eq!(hash(&state), by_key(&[3; 40]));
    // What is reserved is not looked at: Linux has something there.
    let mut reserved = hashes(0x3f, &[4; 40]);
    reserved[6..14].fill(0xff);
    assert_eq!(state.obey(&reserved), ok(Change::Hashing));
    assert_eq!(hash(&state), by_key(&[4; 40]));
    assert_eq!(without(&[VIRTIO_NET_F_HASH_REPORT]).obey(&good), ERR);
}
