// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The same with the workers' own threads.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::station::{Station, frame, mac, payload};
use crate::datapath::tests::guest::packets;
use crate::datapath::tests::rig::Make;
use crate::switch::Switch;

const TIME: Duration = Duration::from_secs(60);

/// Fails when `work` hangs.
fn in_time(work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match wait.recv_timeout(TIME) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it hangs"),
        _ => thread.join().unwrap(),
    }
}

/// Sends numbered frames to another and takes what comes, until told to stop; gives the numbers of
/// what has come, and in `count` how many those are so far.
fn talk(station: &mut Station, to: u8, stop: &AtomicBool, count: &AtomicUsize) -> Vec<u32> {
    let mut got = Vec::new();
    let mut number = 0u32;
    while !stop.load(Ordering::Relaxed) {
        station.offer(512);
        while station.tx.free() > 8 {
            let mut body = number.to_le_bytes().to_vec();
            body.extend(payload(number, 200));
            station
                .tx
                .send(&frame(mac(to), station.mac(), None, &body), &[]);
            number += 1;
        }
        station.tx.used();
        station.tx.driver.ask_interrupt();
        for packet in packets(station.rx.used()) {
            let number = u32::from_le_bytes(packet[26..30].try_into().unwrap());
            // Before the other has spoken, what is for it comes here, too.
            if packet[12..18] == station.mac() {
                assert_eq!(&packet[30..], payload(number, 200));
                got.push(number);
            }
        }
        station.rx.driver.ask_interrupt();
        count.store(got.len(), Ordering::Relaxed);
        thread::yield_now();
    }
    got
}

/// Whether so many frames have come to each.
fn reached(counts: &[AtomicUsize], frames: usize) -> bool {
    let mut counts = counts.iter().map(|count| count.load(Ordering::Relaxed));
    counts.all(|count| count >= frames)
}

#[test]
fn two_that_send_to_each_other_and_a_third_to_both_do_not_block() {
    in_time(|| {
        for make in Make::mergeable().every_kind() {
            let switch = Switch::new();
            let mut stations = [0, 1, 2].map(|n| Station::running(&switch, n, make));
            let stop = AtomicBool::new(false);
            let counts = [0, 0].map(AtomicUsize::new);
            let (stop, [to_one, to_two], to_three) = (&stop, &counts, &AtomicUsize::new(0));
            let [one, two, three] = &mut stations;
            thread::scope(|scope| {
                let threads = [(one, 1, to_one), (two, 0, to_two), (three, 0, to_three)].map(
                    |(station, to, count)| scope.spawn(move || talk(station, to, stop, count)),
                );
                while !reached(&counts, 3000) {
                    thread::sleep(Duration::from_millis(1));
                }
                stop.store(true, Ordering::Relaxed);
                let [_, second, _] = threads.map(|thread| thread.join().unwrap());
                // Two senders mix, one keeps its order.
                assert!(second.is_sorted());
            });
        }
    });
}

#[test]
fn rings_that_stop_and_start_under_traffic_lose_only_their_own() {
    in_time(|| {
        let make = Make::mergeable();
        let switch = Switch::new();
        let mut one = Station::running(&switch, 0, make);
        let mut two = Station::running(&switch, 1, make);
        let busy = Station::running(&switch, 2, make);
        let stop = AtomicBool::new(false);
        let counts = [0, 0].map(AtomicUsize::new);
        thread::scope(|scope| {
            let (stop, switch, counts) = (&stop, &switch, &counts);
            let [to_one, to_two] = counts;
            let first = scope.spawn(move || talk(&mut one, 1, stop, to_one));
            let second = scope.spawn(move || talk(&mut two, 0, stop, to_two));
            let flood = scope.spawn(move || {
                let mut busy = busy;
                let mut number = 0;
                let mut rounds = 0;
                while rounds < 50 || !reached(counts, 3000) {
                    rounds += 1;
                    // Its own rings stop and start, its cable is pulled, it sends to all.
                    let at = busy.dataplane.stop_ring(0).unwrap();
                    busy.rx.used();
                    busy.dataplane.start_ring(0, busy.rx.setup(at)).unwrap();
                    busy.offer(512);
                    busy.nic.set_link(rounds % 8 != 0);
                    busy.dataplane.link_changed();
                    while busy.tx.free() > 0 {
                        number += 1;
                        let body = payload(number, 300);
                        busy.tx.send(&frame([9; 6], mac(2), None, &body), &[]);
                    }
                    busy.tx.used();
                    busy.tx.driver.ask_interrupt();
                    // And ports come and go.
                    let guest = Station::running(switch, 7, make);
                    drop(guest);
                }
                stop.store(true, Ordering::Relaxed);
                busy.nic.counters[0].tx.packets.get()
            });
            assert!(flood.join().unwrap() > 0);
            first.join().unwrap();
            second.join().unwrap();
        });
        assert!(switch.ports().is_empty());
    });
}

#[test]
fn sixty_four_run_and_end() {
    in_time(|| {
        let switch = Switch::new();
        let make = Make::mergeable();
        let mut stations: Vec<Station> = (0..64)
            .map(|number| Station::running(&switch, number, make))
            .collect();
        for station in &mut stations {
            station.offer(1526);
            station.rx.interrupts();
        }
        for from in 0..64 {
            let to = mac((from + 1) % 64);
            let packet = frame(to, mac(from), None, &payload(1, 500));
            stations[usize::from(from)].tx.send(&packet, &[]);
        }
        let end = Instant::now() + TIME;
        let mut got = vec![false; 64];
        while got.contains(&false) {
            assert!(Instant::now() < end, "{got:?}");
            for (station, got) in stations.iter_mut().zip(&mut got) {
                let for_it = station.mac();
                let found = packets(station.rx.used());
                *got |= found.iter().any(|packet| packet[12..18] == for_it);
            }
            thread::sleep(Duration::from_millis(1));
        }
        drop(stations);
        assert!(switch.ports().is_empty());
    });
}
