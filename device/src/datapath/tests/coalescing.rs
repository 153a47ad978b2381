// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts that wait as the driver has asked for (VIRTIO 1.3, 5.1.6.5.9).

use std::time::Instant;

use crate::datapath::Frame;
use crate::datapath::wait_set::Sleep;
use crate::nic::control::VIRTIO_NET_OK;
use crate::nic::features::{
    Features, VIRTIO_F_EVENT_IDX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_NOTF_COAL,
};
use crate::nic::header::VirtioNetHdr;
use crate::ring::pieces::Pieces;

use super::guest::packet;
use super::rig::{Make, Rig};

const TX: u8 = 0;
const RX: u8 = 1;
/// Microseconds that no test takes.
const LONG: u32 = u32::MAX;

/// Drivers that want to hear of everything.
fn makes() -> [Make; 4] {
    Make::default()
        .without(&[VIRTIO_F_EVENT_IDX])
        .with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_NOTF_COAL])
        .every_kind()
}

fn ask(rig: &Rig, direction: u8, max_packets: u32, max_usecs: u32) {
    let data = [max_packets.to_le_bytes(), max_usecs.to_le_bytes()].concat();
    let command = [&[6, direction], &data[..]].concat();
    let outcome = rig.dataplane.agreement.command(&command);
    assert_eq!(outcome.ack, VIRTIO_NET_OK);
}

fn send(rig: &mut Rig, count: u32) -> Sleep {
    for number in 0..count {
        rig.tx.send(&packet(number, 100), &[]);
    }
    rig.pair().work(Sleep::Forever)
}

fn receive(rig: &mut Rig, count: u32) -> Sleep {
    for number in 0..count {
        rig.rx.offer_room(&[1526]);
        rig.cable().arrive(packet(number, 100));
    }
    rig.pair().work(Sleep::Forever)
}

#[test]
fn an_interrupt_waits_for_so_many_packets() {
    for make in makes() {
        let mut rig = make.rig();
        ask(&rig, TX, 3, LONG);
        for _ in 0..2 {
            assert!(matches!(send(&mut rig, 1), Sleep::Until(_)));
            assert!(rig.tx.driver.has_used());
            assert!(matches!(send(&mut rig, 1), Sleep::Until(_)));
            assert_eq!(rig.tx.interrupts(), 0);
            assert_eq!(send(&mut rig, 1), Sleep::Forever);
            assert_eq!((rig.tx.interrupts(), rig.tx.used().len()), (1, 3));
        }
        // Of the other queue nothing was asked, and it does not take this one along.
        assert!(matches!(send(&mut rig, 1), Sleep::Until(_)));
        assert!(matches!(receive(&mut rig, 1), Sleep::Until(_)));
        assert_eq!((rig.rx.interrupts(), rig.tx.interrupts()), (1, 0));
    }
}

#[test]
fn an_interrupt_waits_for_so_long() {
    for make in makes() {
        let mut rig = make.rig();
        ask(&rig, RX, 1000, 20_000);
        let sleep = receive(&mut rig, 2);
        assert!(matches!(sleep, Sleep::Until(_)));
        assert_eq!(rig.rx.interrupts(), 0);
        // Then there is nothing left to wake up for.
        assert_eq!(rig.pair().work(sleep), Sleep::Forever);
        assert_eq!((rig.rx.interrupts(), rig.rx.used().len()), (1, 2));
    }
}

#[test]
fn each_queue_counts_for_itself() {
    let mut rig = makes()[0].rig();
    ask(&rig, RX, 2, LONG);
    ask(&rig, TX, 3, LONG);
    send(&mut rig, 2);
    receive(&mut rig, 1);
    assert_eq!((rig.rx.interrupts(), rig.tx.interrupts()), (0, 0));
    receive(&mut rig, 1);
    assert_eq!((rig.rx.interrupts(), rig.tx.interrupts()), (1, 0));
    send(&mut rig, 1);
    assert_eq!((rig.rx.interrupts(), rig.tx.interrupts()), (0, 1));
}

/// Without the pair's worker, as a switch does: when its interrupt is due.
fn put(rig: &Rig) -> Option<Instant> {
    let packet = packet(0, 100);
    let (header, frame) = packet.split_at(12);
    let (head, body) = frame.split_at(14);
    let mut inlet = rig.dataplane.inlets()[0].open();
    Pieces::with_bytes(body, |body| {
        inlet.put(&Frame {
            header: VirtioNetHdr::decode(header).unwrap(),
            head,
            body,
            offset: 0,
        });
    });
    inlet.close()
}

#[test]
fn what_others_put_in_waits_just_so() {
    for make in makes() {
        let mut rig = make.rig();
        for _ in 0..4 {
            rig.rx.offer_room(&[1526]);
        }
        rig.settle();
        ask(&rig, RX, 3, LONG);
        assert!(put(&rig).is_some() && put(&rig).is_some());
        assert_eq!(rig.rx.interrupts(), 0);
        assert_eq!(put(&rig), None);
        assert_eq!((rig.rx.interrupts(), rig.rx.used().len()), (1, 3));
        assert!(put(&rig).is_some());
        ask(&rig, RX, 1, LONG);
        rig.settle();
        assert_eq!((rig.rx.interrupts(), rig.rx.used().len()), (1, 1));
    }
}

#[test]
fn a_new_wish_is_for_what_waits_already() {
    for make in makes() {
        let mut rig = make.rig();
        ask(&rig, TX, 15, LONG);
        send(&mut rig, 10);
        assert_eq!(rig.tx.interrupts(), 0);
        ask(&rig, TX, 8, LONG);
        assert_eq!(rig.pair().work(Sleep::Forever), Sleep::Forever);
        assert_eq!(rig.tx.interrupts(), 1);
    }
}

#[test]
fn an_interrupt_comes_before_the_driver_runs_out_of_buffers() {
    for make in makes() {
        let mut rig = make.rig();
        ask(&rig, TX, u32::MAX, LONG);
        // A quarter of the 64 descriptors.
        send(&mut rig, 16);
        assert_eq!(rig.tx.interrupts(), 0);
        assert_eq!(send(&mut rig, 1), Sleep::Forever);
        assert_eq!(rig.tx.interrupts(), 1);
    }
}

#[test]
fn a_driver_that_polls_is_not_told_when_the_time_has_come() {
    for make in makes() {
        let mut rig = make.rig();
        ask(&rig, TX, 2, LONG);
        rig.tx.driver.set_avail_flags(1);
        assert_eq!(send(&mut rig, 2), Sleep::Forever);
        assert_eq!(rig.tx.interrupts(), 0);
        assert_eq!(rig.counters().tx.interrupts_suppressed.get(), 1);
    }
}

#[test]
fn wishes_outlive_a_ring_but_not_a_reset() {
    let make = makes()[0];
    let mut rig = make.rig();
    ask(&rig, TX, 3, LONG);
    send(&mut rig, 2);
    // What waits is told when the ring stops, as when the machine is paused.
    assert_eq!(rig.dataplane.stop_ring(1), Some(2));
    assert_eq!(rig.tx.interrupts(), 1);
    rig.start(1, &rig.tx, 2);
    assert!(matches!(send(&mut rig, 1), Sleep::Until(_)));
    rig.dataplane.negotiate(Features(make.features));
    assert_eq!(rig.pair().work(Sleep::Forever), Sleep::Forever);
    assert_eq!(rig.tx.interrupts(), 1);
    assert_eq!(send(&mut rig, 1), Sleep::Forever);
    assert_eq!(rig.tx.interrupts(), 1);
}
