// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kicks and interrupts: who is told when, and that telling never blocks.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::datapath::RingSetup;
use crate::datapath::notify::Interrupt;
use crate::datapath::wait_set::Sleep;
use crate::nic::features::VIRTIO_F_EVENT_IDX;

use super::guest::{event, packet, take_count};
use super::rig::Make;

#[test]
fn with_event_index_the_driver_is_told_of_what_it_asked_for() {
    for make in Make::default().every_kind() {
        let mut rig = make.rig();
        let counts = |rig: &super::rig::Rig| {
            let tx = &rig.counters().tx;
            (tx.interrupts.get(), tx.interrupts_suppressed.get())
        };
        // The third from now on.
        rig.tx.driver.set_used_event(2);
        for expected in [(1, 1), (1, 2), (2, 2), (2, 3)] {
            rig.tx.send(&packet(0, 100), &[]);
            rig.settle();
            assert_eq!(counts(&rig), expected);
        }
        assert_eq!(rig.tx.interrupts(), 1);
    }
}

#[test]
fn without_event_index_the_flag_decides() {
    let make = Make::default().without(&[VIRTIO_F_EVENT_IDX]);
    for make in make.every_kind() {
        let mut rig = make.rig();
        for (flags, sent, suppressed) in [(1, 1, 1), (0, 2, 1), (1, 2, 2)] {
            rig.rx.driver.set_avail_flags(flags);
            rig.rx.offer_room(&[1526]);
            rig.cable().arrive(packet(0, 100));
            rig.settle();
            let rx = &rig.counters().rx;
            assert_eq!(rx.interrupts.get(), sent);
            assert_eq!(rx.interrupts_suppressed.get(), suppressed);
        }
    }
}

#[test]
fn many_packets_in_one_turn_are_one_interrupt() {
    let mut rig = Make::default().rig();
    for number in 0..20 {
        rig.tx.send(&packet(number, 100), &[]);
    }
    rig.settle();
    assert_eq!(rig.tx.interrupts(), 1);
}

/// A pair that has much to send right after an interrupt, and whose driver wants to hear of it all.
fn in_bulk(make: Make) -> super::rig::Rig {
    let mut rig = make.rig();
    for number in 0..2 {
        rig.tx.send(&packet(number, 9000), &[2000; 4]);
    }
    rig.tx.driver.set_used_event(1);
    rig.pair().just_interrupted();
    rig
}

/// Something that is held back must be seen once; each time it may be that this thread is stopped
/// for so long that nothing is held back.
fn until_held(attempt: impl Fn() -> bool) {
    assert!((0..100).any(|_| attempt()), "no interrupt was held back");
}

#[test]
fn in_bulk_an_interrupt_waits_but_is_not_lost() {
    for make in Make::default().every_kind() {
        waits_but_is_not_lost(make);
    }
}

fn waits_but_is_not_lost(make: Make) {
    until_held(|| {
        let rig = in_bulk(make);
        let sleep = rig.pair().work(Sleep::Forever);
        // The driver sees the packets at once, whatever becomes of the interrupt.
        assert!(rig.tx.driver.has_used());
        let at_once = rig.tx.interrupts();
        let held = matches!(sleep, Sleep::Until(_));
        assert_eq!(at_once, u64::from(!held));
        if held {
            assert_eq!(rig.pair().work(sleep), Sleep::Forever);
            assert_eq!(rig.tx.interrupts(), 1);
        }
        held
    });
}

#[test]
fn an_interrupt_that_waits_is_raised_when_its_ring_stops() {
    until_held(|| {
        let rig = in_bulk(Make::default());
        let held = rig.pair().work(Sleep::Forever) != Sleep::Forever;
        rig.dataplane.stop_ring(1);
        assert_eq!(rig.tx.interrupts(), 1);
        held
    });
}

#[test]
fn an_interrupt_does_not_wait_when_the_driver_runs_out_of_buffers() {
    for make in Make::default().every_kind() {
        let mut rig = in_bulk(make);
        rig.tx.driver.set_used_event(17);
        for number in 2..18 {
            rig.tx.send(&packet(number, 100), &[]);
        }
        // More than a quarter of the 64 descriptors.
        assert_eq!(rig.pair().work(Sleep::Forever), Sleep::Forever);
        assert_eq!(rig.tx.interrupts(), 1);
    }
}

#[test]
fn a_driver_kicks_only_a_ring_that_waits() {
    let silent = Make::default().without(&[VIRTIO_F_EVENT_IDX]);
    for make in [Make::default(), silent]
        .into_iter()
        .flat_map(Make::every_kind)
    {
        let mut rig = make.rig();
        rig.tx.send(&packet(0, 100), &[]);
        rig.settle();
        assert_eq!(rig.counters().tx.kicks.get(), 1);
        // Blocked by the uplink: there is nothing a kick could do.
        rig.cable().set_space(0);
        rig.tx.send(&packet(1, 100), &[]);
        rig.settle();
        for number in 2..5 {
            rig.tx.send(&packet(number, 100), &[]);
            rig.settle();
        }
        assert_eq!(rig.counters().tx.kicks.get(), 2);
        assert_eq!(rig.counters().rx.kicks.get(), 0);
    }
}

#[test]
fn another_interrupt_is_raised_at_once_and_used_from_then_on() {
    let mut rig = Make::default().rig();
    let new = event();
    rig.dataplane
        .set_interrupt(1, Some(new.try_clone().unwrap()));
    assert_eq!((take_count(&new), rig.tx.interrupts()), (1, 0));
    rig.tx.send(&packet(0, 100), &[]);
    rig.settle();
    assert_eq!((take_count(&new), rig.tx.interrupts()), (1, 0));
    assert_eq!(rig.counters().tx.interrupts.get(), 3);
    rig.dataplane.set_interrupt(1, None);
    rig.tx.used();
    rig.tx.driver.ask_interrupt();
    rig.tx.send(&packet(1, 100), &[]);
    rig.settle();
    assert_eq!((take_count(&new), rig.cable().take_sent().len()), (0, 2));
    assert_eq!(rig.counters().tx.interrupts.get(), 3);
}

#[test]
fn a_driver_that_polls_needs_no_descriptors() {
    let mut rig = Make::default().idle();
    let setup = RingSetup {
        kick: None,
        call: None,
        ..rig.tx.setup(0)
    };
    rig.tx.send(&packet(0, 100), &[]);
    rig.settle();
    rig.dataplane.start_ring(1, setup).unwrap();
    rig.settle();
    assert_eq!((rig.tx.used().len(), rig.tx.interrupts()), (1, 0));
    assert_eq!(rig.counters().tx.interrupts.get(), 0);
}

/// Raises an interrupt that is `fd`, and fails if that does not end.
fn raise_in_time(fd: OwnedFd) {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        Interrupt::new(Some(fd)).signal();
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(10))
        .expect("raising an interrupt does not block");
}

#[test]
fn raising_does_not_block_on_a_full_eventfd_or_pipe() {
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    raise_in_time(full.try_clone().unwrap());
    assert_eq!(take_count(&full), u64::MAX - 1);

    let (mut read, write) = std::io::pipe().unwrap();
    let write = OwnedFd::from(write);
    let flags = rustix::fs::fcntl_getfl(&write).unwrap();
    rustix::fs::fcntl_setfl(&write, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&write, &[1; 4096]).is_ok() {}
    rustix::fs::fcntl_setfl(&write, flags).unwrap();
    raise_in_time(write);
    read.read_exact(&mut [0; 4096]).unwrap();
}

#[test]
fn a_kick_that_is_always_readable_or_hung_up_wakes_once() {
    let rig = Make::default().idle();
    let (read, write) = std::io::pipe().unwrap();
    rustix::io::write(&write, &[1]).unwrap();
    let setup = RingSetup {
        kick: Some(read.into()),
        ..rig.tx.setup(0)
    };
    rig.dataplane.start_ring(1, setup).unwrap();
    // Panics if the worker spins.
    rig.settle();
    drop(write);
    rig.settle();
    assert_eq!(rig.counters().tx.kicks.get(), 2);
}
