// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guest to uplink.

use crate::nic::counters::DropReason;
use crate::nic::features::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HOST_TSO4,
};
use crate::nic::header::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4, VirtioNetHdr};

use super::guest::packet;
use super::rig::{Make, drops};

#[test]
fn packets_go_out_whole_and_in_order_however_they_are_cut() {
    for make in Make::default().every_kind() {
        go_out_whole_and_in_order(make);
    }
}

fn go_out_whole_and_in_order(make: Make) {
    let mut rig = make.rig();
    let cuts: [&[usize]; 5] = [&[], &[12], &[1, 1, 1, 9], &[500, 0, 500], &[13, 1]];
    for (number, cuts) in (0..).zip(cuts) {
        rig.tx.send(&packet(number, 1526), cuts);
    }
    rig.settle();
    let expected: Vec<_> = (0..5).map(|number| packet(number, 1526)).collect();
    assert_eq!(rig.cable().take_sent(), expected);
    let used = rig.tx.on_interrupt();
    assert!(used.iter().all(|used| used.written.is_empty()));
    assert_eq!(used.len(), 5);
    assert_eq!(rig.counters().tx.packets.get(), 5);
    assert_eq!(rig.counters().tx.bytes.get(), 5 * 1514);
}

#[test]
fn what_cannot_be_sent_is_dropped_for_its_reason_and_the_rest_goes() {
    let features = [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4];
    for make in Make::default().with(&features).size(32).every_kind() {
        dropped_for_its_reason(make);
    }
}

fn dropped_for_its_reason(make: Make) {
    let mut rig = make.rig();
    rig.tx.offer_bad(false);
    rig.tx.send(&packet(0, 26)[..25], &[]);
    let mut checksum_outside = packet(1, 100);
    let header = VirtioNetHdr {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        csum_start: 80,
        csum_offset: 16,
        ..VirtioNetHdr::default()
    };
    checksum_outside[..12].copy_from_slice(&header.encode()[..12]);
    rig.tx.send(&checksum_outside, &[]);
    let mut segmented = packet(2, 8000);
    let header = VirtioNetHdr {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type: VIRTIO_NET_HDR_GSO_TCPV4,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        ..VirtioNetHdr::default()
    };
    segmented[..12].copy_from_slice(&header.encode()[..12]);
    rig.tx.send(&segmented, &[66]);
    let too_long = packet(3, 12 + 65535 + 18 + 1);
    rig.tx.send(&too_long, &[8192; 8]);
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [segmented]);
    assert_eq!(rig.tx.on_interrupt().len(), 5);
    let expected = [
        (DropReason::BadDescriptor, 1),
        (DropReason::BadHeader, 1),
        (DropReason::TooShort, 1),
        (DropReason::TooLong, 1),
    ];
    assert_eq!(drops(&rig.counters().tx), expected);
}

#[test]
fn what_the_uplink_refuses_is_counted_for_the_reason_it_gives() {
    let mut rig = Make::default().rig();
    for reason in [DropReason::UplinkError, DropReason::UplinkFull] {
        rig.cable().refuse(Some(reason));
        rig.tx.send(&packet(0, 100), &[]);
        rig.settle();
        assert_eq!(rig.counters().tx.drops.get(reason), 1);
    }
    rig.cable().refuse(None);
    rig.tx.send(&packet(1, 100), &[]);
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [packet(1, 100)]);
    assert_eq!(rig.counters().tx.packets.get(), 1);
}

#[test]
fn a_full_uplink_delays_but_neither_loses_nor_reorders() {
    for make in Make::default().every_kind() {
        delays_but_neither_loses_nor_reorders(make);
    }
}

fn delays_but_neither_loses_nor_reorders(make: Make) {
    let mut rig = make.rig();
    rig.cable().set_space(2);
    for number in 0..10 {
        rig.tx.send(&packet(number, 300), &[12]);
        rig.settle();
    }
    assert_eq!(rig.tx.used().len(), 2);
    let mut sent = rig.cable().take_sent();
    rig.cable().set_space(3);
    rig.settle();
    assert_eq!(rig.tx.used().len(), 3);
    rig.cable().set_space(usize::MAX);
    rig.settle();
    assert_eq!(rig.tx.used().len(), 5);
    sent.extend(rig.cable().take_sent());
    let expected: Vec<_> = (0..10).map(|number| packet(number, 300)).collect();
    assert_eq!(sent, expected);
    assert_eq!(drops(&rig.counters().tx), []);
}

#[test]
fn a_full_uplink_does_not_stop_receiving() {
    let mut rig = Make::default().rig();
    rig.cable().set_space(0);
    rig.tx.send(&packet(0, 100), &[]);
    rig.rx.offer_room(&[1526]);
    rig.settle();
    rig.cable().arrive(packet(1, 100));
    rig.settle();
    assert_eq!(rig.rx.on_interrupt().len(), 1);
}

#[test]
fn a_pulled_cable_drops_also_what_waited_for_room() {
    let mut rig = Make::default().rig();
    rig.cable().set_space(0);
    for number in 0..3 {
        rig.tx.send(&packet(number, 100), &[]);
    }
    rig.settle();
    rig.set_link(false);
    rig.settle();
    rig.tx.send(&packet(3, 100), &[]);
    rig.settle();
    assert_eq!(rig.tx.on_interrupt().len(), 4);
    assert_eq!(drops(&rig.counters().tx), [(DropReason::LinkDown, 4)]);
    rig.set_link(true);
    rig.cable().set_space(1);
    rig.tx.send(&packet(4, 100), &[]);
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [packet(4, 100)]);
}

#[test]
fn an_uplink_is_asked_again_when_the_control_plane_has_changed_something() {
    let mut rig = Make::default().rig();
    rig.cable().set_space(0);
    rig.tx.send(&packet(0, 100), &[]);
    rig.settle();
    rig.cable().set_space_unseen(1);
    rig.settle();
    assert_eq!(rig.tx.outstanding(), 1);
    assert!(rig.cable().take_sent().is_empty());
    rig.dataplane.agreement.pairs[0].wake();
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [packet(0, 100)]);
}

#[test]
fn a_loop_goes_on_although_nothing_of_it_is_wanted() {
    let make = Make::default().with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX]);
    let mut rig = make.silent().rig();
    assert_eq!(rig.dataplane.agreement.command(&[0, 0, 0]).ack, 0);
    rig.settle();
    rig.cable().set_looped(4);
    rig.rx.offer_room(&[1526]);
    for number in 0..50 {
        let mut strangers = packet(number, 100);
        strangers[12..18].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        rig.tx.send(&strangers, &[]);
    }
    rig.settle();
    assert_eq!(rig.tx.on_interrupt().len(), 50);
    assert_eq!(drops(&rig.counters().rx), [(DropReason::Filtered, 50)]);
}

#[test]
fn a_full_loop_waits_for_receive_buffers_and_goes_on_with_them() {
    for make in Make::default().silent().every_kind() {
        waits_for_receive_buffers(make);
    }
}

fn waits_for_receive_buffers(make: Make) {
    let mut rig = make.rig();
    rig.cable().set_looped(4);
    for number in 0..10 {
        rig.tx.send(&packet(number, 100), &[]);
    }
    rig.settle();
    assert_eq!(rig.tx.used().len(), 4);
    for _ in 0..10 {
        rig.rx.offer_room(&[1526]);
    }
    rig.settle();
    assert_eq!(rig.tx.used().len(), 6);
    let expected: Vec<_> = (0..10).map(|number| packet(number, 100)).collect();
    assert_eq!(super::guest::packets(rig.rx.on_interrupt()), expected);
}

#[test]
fn a_broken_ring_stops_alone() {
    let mut rig = Make::default().rig();
    rig.tx.send(&packet(0, 100), &[]);
    rig.settle();
    // A head outside the table.
    rig.tx.driver.offer(64);
    rig.tx.kick();
    rig.settle();
    assert_eq!(rig.counters().tx.ring_errors.get(), 1);
    rig.tx.send(&packet(1, 100), &[]);
    rig.tx.kick();
    rig.rx.offer_room(&[1526]);
    rig.cable().arrive(packet(2, 100));
    rig.settle();
    assert_eq!(rig.cable().take_sent(), [packet(0, 100)]);
    assert_eq!(rig.rx.on_interrupt().len(), 1);
    assert_eq!(rig.counters().tx.ring_errors.get(), 1);
    assert_eq!(rig.dataplane.stop_ring(1), None);
}

#[test]
fn neither_direction_waits_for_the_other_to_run_out() {
    let mut rig = Make::default().size(256).rig();
    for number in 0..200 {
        rig.tx.send(&packet(number, 100), &[]);
        rig.rx.offer_room(&[1000]);
        rig.cable().arrive(packet(number, 100));
    }
    rig.settle();
    let runs = rig.cable().take_runs();
    assert!(runs.iter().all(|(_, count)| *count <= 64), "{runs:?}");
    let moved: usize = runs.iter().map(|(_, count)| count).sum();
    assert_eq!(moved, 400);
}
