// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The same with the workers' own threads.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::datapath::Dataplane;
use crate::datapath::workers::Workers;
use crate::nic::control::VIRTIO_NET_OK;
use crate::nic::features::{Features, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ};
use crate::ring::driver::memory;

use super::cable::CableUplink;
use super::guest::{packet, packets};
use super::rig::Make;

/// Waits until `done` says so.
pub fn eventually<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(result) = done() {
            return result;
        }
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

pub fn drop_in_time(dataplane: Dataplane) {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        drop(dataplane);
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(20))
        .expect("dropping the data path ends its threads");
}

#[test]
fn packets_and_commands_pass_and_all_threads_end() {
    let make = Make::mergeable().with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX]);
    let nic = make.nic();
    let (uplink, cables, _) = CableUplink::new(1, false);
    let dataplane = Dataplane::start(nic.clone(), Box::new(uplink), &Workers::default()).unwrap();
    assert_eq!((dataplane.queue_count(), dataplane.threads.len()), (3, 2));
    dataplane.negotiate(Features(make.features));
    let map = memory();
    let [mut rx, mut tx, mut control] = [0, 1, 2].map(|index| make.guest(&map, index));
    for (index, guest) in [&rx, &tx, &control].into_iter().enumerate() {
        dataplane.start_ring(index, guest.setup(0)).unwrap();
    }
    rx.offer_room(&[1526]);
    cables[0].arrive(packet(0, 100));
    tx.send(&packet(1, 100), &[]);
    control.command(&[0, 0, 0], &[]);
    let received = eventually("receive", || {
        Some(rx.on_interrupt()).filter(|u| !u.is_empty())
    });
    assert_eq!(packets(received), [packet(0, 100)]);
    eventually("transmit", || {
        (cables[0].take_sent() == [packet(1, 100)]).then_some(())
    });
    let answer = eventually("control", || {
        Some(control.on_interrupt()).filter(|used| !used.is_empty())
    });
    assert_eq!(answer[0].written, [VIRTIO_NET_OK]);
    drop_in_time(dataplane);
    // The workers held all of these.
    assert_eq!(std::sync::Arc::strong_count(&nic), 1);
}

#[test]
fn threads_end_also_when_nothing_was_ever_started() {
    let (uplink, ..) = CableUplink::new(1, true);
    drop_in_time(
        Dataplane::start(Make::default().nic(), Box::new(uplink), &Workers::default()).unwrap(),
    );
}

#[test]
fn a_stream_survives_stops_and_starts_at_any_moment() {
    const PACKETS: u32 = 2000;
    let make = Make::mergeable();
    let (uplink, cables, _) = CableUplink::new(1, false);
    let nic = make.nic();
    let dataplane = Dataplane::start(nic.clone(), Box::new(uplink), &Workers::default()).unwrap();
    dataplane.negotiate(Features(make.features));
    let map = memory();
    let (mut rx, mut tx) = (make.guest(&map, 0), make.guest(&map, 1));
    dataplane.start_ring(0, rx.setup(0)).unwrap();
    dataplane.start_ring(1, tx.setup(0)).unwrap();
    let (mut next_sent, mut next_received, mut arrived, mut seen) = (0, 0, 0, 0);
    let (mut rounds, mut delivered) = (0u32, 0);
    eventually("the stream", || {
        rounds += 1;
        tx.on_interrupt();
        while next_sent < PACKETS && tx.free() >= 2 {
            tx.send(&packet(next_sent, 200), &[12]);
            next_sent += 1;
        }
        while rx.free() > 0 {
            rx.offer_room(&[150]);
        }
        while arrived < PACKETS && cables[0].waiting() < 40 {
            cables[0].arrive(packet(arrived, 200));
            arrived += 1;
        }
        for sent in cables[0].take_sent() {
            assert_eq!(sent, packet(seen, 200));
            seen += 1;
        }
        let used = rx.on_interrupt();
        for received in packets(used) {
            // What was held for a second buffer when its ring stopped is lost.
            let number = (next_received..arrived).find(|&n| received == packet(n, 200));
            next_received = number.expect("a packet that arrived, in order") + 1;
            delivered += 1;
        }
        if rounds % 3 == 0 {
            for (index, guest) in [(0, &rx), (1, &tx)] {
                let position = dataplane.stop_ring(index).unwrap();
                dataplane.start_ring(index, guest.setup(position)).unwrap();
            }
        }
        let lost = nic.counters[0].rx.drops.total();
        (seen == PACKETS && delivered + lost == u64::from(PACKETS)).then_some(())
    });
    drop_in_time(dataplane);
}
