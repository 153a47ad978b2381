// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Uplink to guest.

use crate::nic::counters::DropReason;
use crate::nic::features::VIRTIO_F_VERSION_1;

use super::guest::{Used, packet, packets};
use super::rig::{Make, drops};

#[test]
fn a_packet_that_fits_fills_one_buffer() {
    for make in [Make::mergeable(), Make::default()] {
        let mut rig = make.rig();
        rig.rx.offer_room(&[2000]);
        // The legacy arrangement: the header in a buffer of its own.
        rig.rx.offer_room(&[12, 1000, 600]);
        rig.settle();
        for number in 0..2 {
            rig.cable().arrive(packet(number, 1526));
        }
        rig.settle();
        let used = rig.rx.on_interrupt();
        assert_eq!(used.len(), 2);
        for (number, used) in (0..).zip(&used) {
            assert_eq!(used.written[10..12], [1, 0]);
            assert_eq!(used.written[12..], packet(number, 1526)[12..]);
        }
        assert_eq!(rig.counters().rx.packets.get(), 2);
        assert_eq!(rig.counters().rx.bytes.get(), 2 * 1514);
    }
}

#[test]
fn a_packet_takes_as_many_small_buffers_as_it_needs() {
    let mut rig = Make::mergeable().rig();
    for _ in 0..20 {
        rig.rx.offer_room(&[60, 40]);
    }
    rig.cable().arrive(packet(0, 1526));
    rig.cable().arrive(packet(1, 300));
    rig.settle();
    let used = rig.rx.on_interrupt();
    let lens: Vec<usize> = used.iter().map(|used| used.written.len()).collect();
    assert_eq!(lens[..16], [[100; 15].as_slice(), &[26]].concat());
    assert_eq!(lens[16..], [100; 3]);
    assert_eq!(used[0].written[10..12], [16, 0]);
    assert_eq!(used[16].written[10..12], [3, 0]);
    assert_eq!(packets(used), [packet(0, 1526), packet(1, 300)]);
}

#[test]
fn a_legacy_header_has_no_number_of_buffers() {
    let mut rig = Make::default().without(&[VIRTIO_F_VERSION_1]).rig();
    rig.rx.offer_room(&[10, 1514]);
    let mut short = vec![0; 10];
    short.extend_from_slice(&packet(7, 500)[12..]);
    rig.cable().arrive(short.clone());
    rig.settle();
    let written = &rig.rx.on_interrupt()[0].written;
    assert_eq!(*written, short);
}

#[test]
fn buffers_too_small_for_a_header_go_back_and_the_next_serve() {
    for make in [Make::mergeable(), Make::default()] {
        let mut rig = make.rig();
        let small = [rig.rx.offer_room(&[11]), rig.rx.offer_bad(true)];
        let good = rig.rx.offer_room(&[1526]);
        rig.cable().arrive(packet(0, 1000));
        rig.settle();
        let used = rig.rx.on_interrupt();
        for (used, head) in used.iter().zip(small) {
            let written = Vec::new();
            assert_eq!(*used, Used { head, written });
        }
        assert_eq!((used.len(), used[2].head), (3, good));
        assert_eq!(packets(used), [packet(0, 1000)]);
        assert_eq!(drops(&rig.counters().rx), [(DropReason::BadDescriptor, 2)]);
    }
}

#[test]
fn more_bad_buffers_than_a_turn_looks_at_hide_no_good_one() {
    for make in [Make::mergeable(), Make::default()] {
        let mut rig = make.size(256).rig();
        for _ in 0..200 {
            rig.rx.offer_bad(true);
        }
        rig.rx.offer_room(&[1000]);
        rig.cable().arrive(packet(0, 500));
        rig.settle();
        assert_eq!(packets(rig.rx.on_interrupt()), [packet(0, 500)]);
    }
}

#[test]
fn a_bad_chain_in_the_middle_of_a_packet_is_used_empty() {
    let mut rig = Make::mergeable().rig();
    rig.rx.offer_room(&[500]);
    rig.rx.offer_bad(true);
    rig.rx.offer_room(&[500]);
    rig.cable().arrive(packet(0, 900));
    rig.settle();
    let used = rig.rx.on_interrupt();
    assert_eq!(used[0].written[10..12], [3, 0]);
    let written: Vec<u8> = used.into_iter().flat_map(|used| used.written).collect();
    assert_eq!(written[12..], packet(0, 900)[12..]);
}

#[test]
fn a_packet_larger_than_the_room_is_held_until_there_is_more() {
    let mut rig = Make::mergeable().rig();
    rig.rx.offer_room(&[2000]);
    rig.cable().arrive(packet(0, 5000));
    rig.cable().arrive(packet(1, 400));
    rig.settle();
    for _ in 0..2 {
        assert_eq!(rig.rx.on_interrupt(), []);
        rig.rx.offer_room(&[1000]);
        rig.settle();
    }
    assert_eq!((rig.rx.on_interrupt(), rig.cable().waiting()), (vec![], 1));
    rig.rx.offer_room(&[1000]);
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(0, 5000)]);
    rig.rx.offer_room(&[1000]);
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(1, 400)]);
    assert_eq!(rig.counters().rx.packets.get(), 2);
    assert_eq!(drops(&rig.counters().rx), []);
}

#[test]
fn a_packet_that_can_never_fit_is_dropped_and_its_room_serves_the_next() {
    // All the ring's buffers together are too small.
    let mut rig = Make::mergeable().size(4).rig();
    for _ in 0..4 {
        rig.rx.offer_room(&[100]);
    }
    rig.cable().arrive(packet(0, 401));
    rig.cable().arrive(packet(1, 400));
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(1, 400)]);
    assert_eq!(drops(&rig.counters().rx), [(DropReason::TooLong, 1)]);

    // Without mergeable buffers it has to fit the first.
    let mut rig = Make::default().rig();
    rig.rx.offer_room(&[1000]);
    rig.rx.offer_room(&[3000]);
    rig.cable().arrive(packet(0, 1001));
    rig.cable().arrive(packet(1, 1000));
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(1, 1000)]);
    assert_eq!(drops(&rig.counters().rx), [(DropReason::TooLong, 1)]);
}

#[test]
fn buffers_of_more_pieces_than_a_system_call_takes_still_serve() {
    let mut rig = Make::mergeable().size(1024).rig();
    // 600 pieces of 2 octets: more than are taken ahead.
    for _ in 0..60 {
        rig.rx.offer_room(&[2; 10]);
    }
    rig.cable().arrive(packet(0, 1100));
    rig.cable().arrive(packet(1, 900));
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(1, 900)]);
    assert_eq!(drops(&rig.counters().rx), [(DropReason::TooLong, 1)]);
}

#[test]
fn a_driver_that_never_ceases_to_offer_cannot_make_us_collect() {
    let mut rig = Make::mergeable().size(4).rig();
    rig.rx.offer_room(&[100]);
    let empty = rig.rx.offer_room(&[0]);
    rig.cable().arrive(packet(0, 300));
    rig.settle();
    for _ in 0..10 {
        // More than the ring has entries: the same empty chain again and again.
        for _ in 0..3 {
            rig.rx.driver.offer(empty);
        }
        rig.rx.kick();
        rig.cable().arrive(packet(0, 300));
        rig.settle();
        let inlet = rig.pair().inlet.lock();
        assert!(inlet.rx.as_ref().unwrap().taken() <= 4);
    }
    assert_eq!(drops(&rig.counters().rx), [(DropReason::TooLong, 11)]);
}

#[test]
fn packets_wait_in_the_uplink_while_there_are_no_buffers() {
    let mut rig = Make::mergeable().rig();
    for number in 0..3 {
        rig.cable().arrive(packet(number, 200));
    }
    rig.settle();
    assert_eq!(rig.cable().waiting(), 3);
    for _ in 0..4 {
        rig.rx.offer_room(&[1526]);
    }
    rig.settle();
    let expected: Vec<_> = (0..3).map(|number| packet(number, 200)).collect();
    assert_eq!(packets(rig.rx.on_interrupt()), expected);
}

#[test]
fn what_the_filter_does_not_want_and_the_uplink_lost_is_counted() {
    use crate::nic::features::{VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ};
    let make = Make::mergeable().with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX]);
    let mut rig = make.rig();
    // VIRTIO_NET_CTRL_RX_PROMISC off.
    assert_eq!(rig.dataplane.agreement.command(&[0, 0, 0]).ack, 0);
    rig.rx.offer_room(&[1526]);
    let mut strangers = packet(0, 100);
    strangers[12..18].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    rig.cable().arrive(strangers);
    let mut ours = packet(1, 100);
    ours[12..18].copy_from_slice(&super::rig::MAC);
    rig.cable().lose_one(DropReason::UplinkError);
    rig.cable().arrive(vec![0; 12 + 13]);
    rig.cable().arrive(ours.clone());
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [ours]);
    let expected = [(DropReason::Filtered, 2), (DropReason::UplinkError, 1)];
    assert_eq!(drops(&rig.counters().rx), expected);
}

#[test]
fn a_pulled_cable_drops_and_a_plugged_one_resumes() {
    let mut rig = Make::mergeable().rig();
    rig.rx.offer_room(&[1526]);
    rig.set_link(false);
    for number in 0..200 {
        rig.cable().arrive(packet(number, 100));
    }
    rig.settle();
    assert_eq!(rig.cable().waiting(), 0);
    rig.set_link(true);
    rig.cable().arrive(packet(200, 100));
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(200, 100)]);
    assert_eq!(drops(&rig.counters().rx), [(DropReason::LinkDown, 200)]);
    assert_eq!(*rig.told.links.lock(), [false, true]);
}

#[test]
fn a_held_packet_is_dropped_with_the_cable_not_mixed_with_others() {
    let mut rig = Make::mergeable().rig();
    rig.rx.offer_room(&[1000]);
    rig.cable().arrive(packet(0, 1500));
    rig.settle();
    rig.set_link(false);
    rig.cable().arrive(packet(1, 1400));
    rig.settle();
    rig.set_link(true);
    rig.rx.offer_room(&[1000]);
    rig.settle();
    assert_eq!(rig.rx.on_interrupt(), []);
    rig.cable().arrive(packet(2, 1500));
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(2, 1500)]);
    assert_eq!(drops(&rig.counters().rx), [(DropReason::LinkDown, 2)]);
}

#[test]
fn a_broken_ring_stops_alone_and_is_taken_from_the_steering() {
    let mut rig = Make::mergeable().rig();
    rig.rx.offer_room(&[1000]);
    rig.cable().arrive(packet(0, 1500));
    rig.settle();
    rig.cable().take_active();
    rig.rx.driver.set_avail_idx(500);
    rig.rx.kick();
    rig.settle();
    assert_eq!(rig.counters().rx.ring_errors.get(), 1);
    // The packet that was held is not forgotten.
    assert_eq!(drops(&rig.counters().rx), [(DropReason::RingStopped, 1)]);
    assert_eq!(rig.cable().take_active(), [false]);
    rig.tx.send(&packet(1, 100), &[]);
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [packet(1, 100)]);
    assert_eq!(rig.dataplane.stop_ring(0), None);
    assert_eq!(rig.counters().tx.ring_errors.get(), 0);
}
