// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Workers that look for a while before they sleep.

use std::thread;
use std::time::{Duration, Instant};

use crate::datapath::Dataplane;
use crate::datapath::wait_set::Sleep;
use crate::datapath::workers::Workers;
use crate::nic::features::{Features, VIRTIO_F_EVENT_IDX};
use crate::ring::driver::memory;

use super::cable::CableUplink;
use super::guest::packet;
use super::rig::{Make, Rig};
use super::threads::{drop_in_time, eventually};

/// As good as for ever: however long this thread is stopped, the time does not run out.
const LONG: Duration = Duration::from_secs(1000);
/// Soon over.
const SHORT: Duration = Duration::from_millis(5);

/// Rings of all kinds, served by workers that poll so long.
fn makes(poll: Duration) -> impl Iterator<Item = Make> {
    let with = Make {
        poll,
        ..Make::default()
    };
    let without = with.without(&[VIRTIO_F_EVENT_IDX]);
    [with, without].into_iter().flat_map(Make::every_kind)
}

/// Both rings started, and nothing to do.
fn asleep(make: Make) -> Rig {
    let rig = make.idle();
    rig.start(0, &rig.rx, 0);
    rig.start(1, &rig.tx, 0);
    turns_until_asleep(&rig);
    rig
}

fn turns_until_asleep(rig: &Rig) {
    let start = Instant::now();
    while rig.pair().turn() != Some(Sleep::Forever) {
        assert!(start.elapsed() < Duration::from_secs(20), "it goes on");
    }
}

#[test]
fn who_polls_is_not_notified() {
    for make in makes(LONG) {
        let mut rig = asleep(make);
        rig.tx.send(&packet(0, 100), &[]);
        assert_eq!(rig.pair().turn(), Some(Sleep::No));
        assert_eq!(rig.tx.used().len(), 1);
        let kicks = |rig: &Rig| [&rig.counters().tx, &rig.counters().rx].map(|q| q.kicks.get());
        let mut before = [0; 2];
        // Several times round the ring.
        for number in 1..300 {
            if number == 2 {
                // When it slept it had asked for buffers, too. With an event index that is not taken
                // back, but answered once.
                before = kicks(&rig);
            }
            rig.tx.send(&packet(number, 100), &[]);
            rig.cable().arrive(packet(number, 100));
            assert_eq!(rig.pair().turn(), Some(Sleep::No));
            rig.rx.offer_room(&[1526]);
            assert_eq!(rig.pair().turn(), Some(Sleep::No));
            assert_eq!((rig.tx.used().len(), rig.rx.used().len()), (1, 1));
        }
        assert_eq!(rig.pair().turn(), Some(Sleep::No));
        assert_eq!(kicks(&rig), before);
        assert_eq!(rig.cable().take_sent().len(), 300);
    }
}

#[test]
fn who_has_polled_for_long_enough_sleeps_and_is_notified() {
    for make in makes(SHORT) {
        // Before there was a packet there is nothing to poll for.
        let mut rig = asleep(make);
        for number in 0..3 {
            let kicks = rig.counters().tx.kicks.get();
            let start = Instant::now();
            rig.tx.send(&packet(number, 100), &[]);
            turns_until_asleep(&rig);
            assert!(start.elapsed() >= SHORT);
            assert!(rig.counters().tx.kicks.get() > kicks, "it was asleep");
            assert_eq!(rig.cable().take_sent(), [packet(number, 100)]);
            rig.tx.used();
        }
    }
}

#[test]
fn what_is_received_keeps_it_awake_too() {
    for make in makes(SHORT) {
        let mut rig = asleep(make);
        rig.rx.offer_room(&[1526]);
        let start = Instant::now();
        rig.cable().arrive(packet(0, 100));
        assert_eq!(rig.pair().turn(), Some(Sleep::No));
        assert_eq!(rig.rx.used().len(), 1);
        turns_until_asleep(&rig);
        assert!(start.elapsed() >= SHORT);
        // A packet that finds no buffers when the time is over gets the next one.
        rig.cable().arrive(packet(1, 100));
        turns_until_asleep(&rig);
        let kicks = rig.counters().rx.kicks.get();
        rig.rx.offer_room(&[1526]);
        assert_eq!(rig.pair().turn(), Some(Sleep::No));
        assert_eq!(rig.counters().rx.kicks.get(), kicks + 1);
        assert_eq!(rig.rx.used().len(), 1);
    }
}

#[test]
fn who_does_not_poll_sleeps_at_once() {
    let mut rig = Make::default().rig();
    rig.tx.send(&packet(0, 100), &[]);
    assert_eq!(rig.pair().turn(), Some(Sleep::Forever));
}

/// Packets that come just when a worker falls asleep, and buffers too: each must be seen, by the
/// worker itself or because it is woken.
#[test]
fn no_wake_up_is_lost_between_polling_and_sleeping() {
    const ROUNDS: u32 = 4000;
    const POLL: Duration = Duration::from_micros(50);
    for make in makes(POLL) {
        let (uplink, cables, _) = CableUplink::new(1, false);
        let nic = make.nic();
        let workers = Workers::new(None, POLL);
        let dataplane = Dataplane::start(nic.clone(), Box::new(uplink), &workers).unwrap();
        dataplane.negotiate(Features(make.features));
        let map = memory();
        let (mut rx, mut tx) = (make.guest(&map, 0), make.guest(&map, 1));
        dataplane.start_ring(0, rx.setup(0)).unwrap();
        dataplane.start_ring(1, tx.setup(0)).unwrap();
        let cable = &cables[0];
        // A packet is at the cable and waits for buffers, which are all that comes every other time.
        let mut waits = false;
        for round in 0..ROUNDS {
            // About as long as it polls, and at times not at all.
            let pause = match round % 8 {
                0 | 1 => Duration::ZERO,
                _ => POLL * (48 + round * 37 % 32) / 64,
            };
            let start = Instant::now();
            while start.elapsed() < pause {
                std::hint::spin_loop();
            }
            if round % 2 == 0 {
                tx.send(&packet(round, 100), &[]);
                eventually("a packet is sent", || {
                    spin(|| tx.driver.has_used()).then(|| tx.used())
                });
            } else if waits {
                rx.offer_room(&[1526]);
                eventually("buffers are found", || {
                    spin(|| rx.driver.has_used()).then(|| rx.used())
                });
                waits = false;
            } else {
                cable.arrive(packet(round, 100));
                waits = true;
            }
        }
        let counters = &nic.counters[0];
        let sent = u64::from(ROUNDS / 2);
        assert_eq!(counters.tx.packets.get(), sent);
        assert_eq!(counters.rx.packets.get(), sent / 2);
        // It did sleep. How often it has polled instead is for the host to say: where the worker and
        // this thread have one processor between them, hardly ever.
        assert!(counters.tx.kicks.get() > 0);
        drop_in_time(dataplane);
    }
}

/// Looks for a while, which is quicker than to sleep between two looks.
fn spin(done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_micros(500) {
            return false;
        }
        thread::yield_now();
    }
    true
}
