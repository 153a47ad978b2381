// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rings that stop and go on, there or elsewhere.

use std::fs::File;
use std::sync::Arc;

use crate::datapath::workers::Workers;
use crate::datapath::{Dataplane, RingSetup, StartError};
use crate::nic::counters::DropReason;
use crate::ring::driver::memory;
use crate::ring::memory::MemoryMap;
use crate::ring::virtqueue::RingError;

use super::cable::CableUplink;
use super::guest::{event, packet, packets};
use super::rig::{Make, drops};

#[test]
fn buffers_taken_ahead_are_given_back() {
    use crate::nic::features::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};
    // With segmentation, room for the largest packet is taken before anything comes.
    let features = [VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4];
    for make in Make::mergeable().with(&features).every_kind() {
        taken_ahead_are_given_back(make);
    }
}

fn taken_ahead_are_given_back(make: Make) {
    let mut rig = make.rig();
    for _ in 0..20 {
        rig.rx.offer_room(&[1526]);
    }
    rig.cable().arrive(packet(0, 2000));
    rig.settle();
    let place = rig.rx.driver.index(2);
    assert_eq!(rig.dataplane.stop_ring(0), Some(place));
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(0, 2000)]);
    rig.cable().arrive(packet(1, 500));
    rig.settle();
    assert_eq!(rig.cable().waiting(), 1);
    rig.start(0, &rig.rx, 2);
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(1, 500)]);
    let place = rig.rx.driver.index(3);
    assert_eq!(rig.dataplane.stop_ring(0), Some(place));
    assert_eq!(rig.dataplane.stop_ring(0), None);
}

#[test]
fn what_a_full_uplink_refused_is_still_in_the_ring() {
    for make in Make::default().every_kind() {
        refused_is_still_in_the_ring(make);
    }
}

fn refused_is_still_in_the_ring(make: Make) {
    let mut rig = make.rig();
    rig.cable().set_space(3);
    for number in 0..5 {
        rig.tx.send(&packet(number, 100), &[]);
    }
    rig.settle();
    let place = rig.tx.driver.index(3);
    assert_eq!(rig.dataplane.stop_ring(1), Some(place));
    rig.cable().set_space(usize::MAX);
    rig.settle();
    assert_eq!(rig.cable().take_sent().len(), 3);
    rig.start(1, &rig.tx, 3);
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [packet(3, 100), packet(4, 100)]);
    assert_eq!(rig.tx.on_interrupt().len(), 5);
}

#[test]
fn a_packet_held_when_its_ring_stops_is_counted() {
    let mut rig = Make::mergeable().rig();
    rig.rx.offer_room(&[1000]);
    rig.cable().arrive(packet(0, 1500));
    rig.settle();
    assert_eq!(rig.dataplane.stop_ring(0), Some(0));
    assert_eq!(drops(&rig.counters().rx), [(DropReason::RingStopped, 1)]);
    rig.start(0, &rig.rx, 0);
    rig.cable().arrive(packet(1, 900));
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(1, 900)]);
}

#[test]
fn indices_wrap_around() {
    for make in Make::default().size(4).every_kind() {
        wraps_around(make);
    }
}

fn wraps_around(make: Make) {
    let mut rig = make.idle();
    rig.tx.driver.start_at(0xfffe);
    rig.start(1, &rig.tx, 0xfffe);
    for number in 0..8 {
        rig.tx.send(&packet(number, 100), &[]);
        rig.settle();
        assert_eq!(rig.cable().take_sent(), [packet(number, 100)]);
        assert_eq!(rig.tx.used().len(), 1);
        rig.tx.driver.ask_interrupt();
    }
    let place = rig.tx.driver.index(6);
    assert_eq!(rig.dataplane.stop_ring(1), Some(place));
}

#[test]
fn rings_go_on_in_another_memory_map() {
    let mut rig = Make::mergeable().rig();
    let before = Arc::downgrade(&rig.map);
    for _ in 0..3 {
        rig.rx.offer_room(&[1526]);
    }
    rig.cable().arrive(packet(0, 100));
    rig.tx.send(&packet(1, 100), &[]);
    rig.settle();
    // The same memory, as after a hot-plug that left it where it was.
    let guest = Arc::new(rig.map.guest().clone());
    let map = Arc::new(MemoryMap::new(guest).unwrap());
    let stopped = [rig.dataplane.stop_ring(0), rig.dataplane.stop_ring(1)];
    assert_eq!(stopped, [Some(1), Some(1)]);
    rig.rx.set_map(map.clone());
    rig.tx.set_map(map.clone());
    rig.map = map;
    rig.start(0, &rig.rx, 1);
    rig.start(1, &rig.tx, 1);
    assert!(before.upgrade().is_none(), "nobody keeps the old map");
    rig.cable().arrive(packet(2, 100));
    rig.tx.send(&packet(3, 100), &[]);
    rig.settle();
    let received = packets(rig.rx.on_interrupt());
    assert_eq!(received, [packet(0, 100), packet(2, 100)]);
    let sent = rig.cable().take_sent();
    assert_eq!(sent, [packet(1, 100), packet(3, 100)]);
}

#[test]
fn a_broken_ring_starts_again() {
    let mut rig = Make::default().rig();
    rig.tx.driver.offer(64);
    rig.tx.kick();
    rig.settle();
    assert_eq!(rig.dataplane.stop_ring(1), None);
    rig.tx = Make::default().guest(&memory(), 1);
    rig.start(1, &rig.tx, 0);
    rig.tx.send(&packet(0, 100), &[]);
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [packet(0, 100)]);
}

#[test]
fn a_stopped_ring_is_neither_kicked_nor_interrupted() {
    let rig = Make::default().rig();
    rig.dataplane.stop_ring(1);
    let kicks = rig.counters().tx.kicks.get();
    rig.tx.kick();
    rig.settle();
    assert_eq!(rig.counters().tx.kicks.get(), kicks);
    rig.dataplane
        .set_interrupt(1, Some(rig.tx.call().try_clone().unwrap()));
    assert_eq!(rig.tx.interrupts(), 0);
}

#[test]
fn rings_that_cannot_be_are_refused_and_change_nothing() {
    let rig = Make::default().rig();
    let file: File = tempfile::tempfile().unwrap();
    let setup = |kick| RingSetup {
        kick,
        ..rig.tx.setup(0)
    };
    let refused = rig.dataplane.start_ring(1, setup(Some(file.into())));
    assert!(matches!(refused, Err(StartError::Kick(_))), "{refused:?}");
    let mut bad = rig.rx.setup(0);
    bad.layout.size = 3;
    let refused = rig.dataplane.start_ring(0, bad);
    assert!(matches!(
        refused,
        Err(StartError::Ring(RingError::BadSize(3)))
    ));
    for index in [2, 3, usize::MAX] {
        let refused = rig.dataplane.start_ring(index, setup(Some(event())));
        assert!(matches!(refused, Err(StartError::NoSuchQueue(i)) if i == index));
        assert_eq!(rig.dataplane.stop_ring(index), None);
        rig.dataplane.set_interrupt(index, Some(event()));
    }
    // A driver that polls is fine.
    assert!(rig.dataplane.start_ring(1, setup(None)).is_ok());
}

#[test]
fn pairs_and_the_uplinks_queues_must_agree() {
    for queues in [0, 1, 3] {
        let (uplink, ..) = CableUplink::new(queues, false);
        let make = Make {
            pairs: 2,
            ..Make::default()
        };
        let error =
            Dataplane::start(make.nic(), Box::new(uplink), &Workers::default()).unwrap_err();
        assert!(error.to_string().contains("2 are needed"), "{error}");
    }
}

#[test]
fn a_pair_receives_only_while_its_ring_runs() {
    let rig = Make::default().rig();
    assert_eq!(rig.cable().take_active(), [false, true]);
    rig.dataplane.stop_ring(0);
    assert_eq!(rig.cable().take_active(), [false]);
    rig.start(0, &rig.rx, 0);
    assert_eq!(rig.cable().take_active().last(), Some(&true));
}
