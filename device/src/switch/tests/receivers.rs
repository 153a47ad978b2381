// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receivers that are slow, dead or hostile, and those beside them.

use super::station::{BROADCAST, Station, access, frame, mac, payload, trunk};
use crate::datapath::Frame;
use crate::datapath::inlet::{MOST_OCTETS, MOST_PACKETS};
use crate::datapath::tests::guest::packets;
use crate::datapath::tests::rig::Make;
use crate::datapath::wait_set::Sleep;
use crate::nic::counters::DropReason;
use crate::nic::features::VIRTIO_F_EVENT_IDX;
use crate::nic::header::VirtioNetHdr;
use crate::ring::pieces::Pieces;
use crate::switch::Switch;

fn three(make: Make) -> (std::sync::Arc<Switch>, [Station; 3]) {
    let switch = Switch::new();
    let stations = [0, 1, 2].map(|n| Station::new(&switch, n, make, trunk()));
    (switch, stations)
}

#[test]
fn without_buffers_some_wait_and_the_rest_is_lost_and_others_get_all() {
    for make in Make::mergeable().every_kind() {
        let (_switch, [mut sender, mut slow, mut quick]) = three(make);
        let mut sent = Vec::new();
        for number in 0..1200 {
            quick.offer(1526);
            sent.push(sender.send_to(BROADCAST, number, 200));
            if number % 16 == 15 {
                assert_eq!(quick.received(), sent[sent.len() - 16..]);
            }
        }
        let lost = 1200 - MOST_PACKETS as u64;
        assert_eq!(slow.rx_drops(), [(DropReason::NoBuffers, lost)]);
        assert_eq!(quick.rx_drops(), []);
        assert_eq!(sender.tx_drops(), []);
        assert_eq!(sender.nic.counters[0].tx.packets.get(), 1200);
        // The driver wakes up: it is asked to notify, gets what waited in order, and after that what
        // is sent anew.
        let mut got = Vec::new();
        while got.len() < MOST_PACKETS {
            slow.offer(1526);
            slow.dataplane.settle();
            let some = slow.received();
            assert!(!some.is_empty());
            got.extend(some);
        }
        assert_eq!(got, sent[..MOST_PACKETS]);
        slow.offer(1526);
        let next = sender.send_to(mac(1), 7, 100);
        assert_eq!(slow.received(), [next]);
        assert!(slow.nic.counters[0].rx.kicks.get() > 0);
    }
}

#[test]
fn what_waits_is_bounded_in_octets_too() {
    let (_switch, [mut sender, slow, _]) = three(Make::mergeable());
    let room = MOST_OCTETS / (12 + 14 + 9000);
    for number in 0..room as u32 + 50 {
        sender.send_to(mac(1), number, 9000);
    }
    assert_eq!(slow.rx_drops(), [(DropReason::NoBuffers, 50)]);
}

#[test]
fn the_next_sender_moves_what_waits_and_keeps_the_order() {
    let (_switch, [mut one, mut receiver, mut two]) = three(Make::mergeable());
    let mut sent = vec![one.send_to(mac(1), 1, 100), one.send_to(mac(1), 2, 100)];
    receiver.offer(1526);
    // Its own worker has not been there yet.
    sent.push(two.send_to(mac(1), 3, 100));
    assert_eq!(receiver.received(), sent);
    receiver.dataplane.settle();
    assert_eq!(receiver.received(), [] as [Vec<u8>; 0]);
}

#[test]
fn packets_are_seen_while_the_sender_goes_on() {
    for make in Make::mergeable().every_kind() {
        let switch = Switch::new();
        let mut receiver = Station::new(&switch, 1, make, trunk());
        receiver.offer(1526);
        let packet = frame(mac(1), mac(0), None, &payload(1, 100));
        let mut inlet = receiver.dataplane.inlets()[0].open();
        for number in 1..4 {
            Pieces::with_bytes(&packet, |body| {
                inlet.put(&Frame {
                    header: VirtioNetHdr::default(),
                    head: &packet[12..26],
                    body,
                    offset: 26,
                });
            });
            assert_eq!(receiver.rx.used(), [], "{number}");
            inlet.yield_now();
            assert_eq!(packets(receiver.rx.used()), [packet.as_slice()]);
        }
        // It is only told when the turn is over.
        assert_eq!(receiver.rx.interrupts(), 0);
        inlet.close_now();
        assert_eq!(receiver.rx.interrupts(), 1);
    }
}

#[test]
fn a_guest_with_no_driver_loses_everything() {
    let switch = Switch::new();
    let mut sender = Station::new(&switch, 0, Make::mergeable(), trunk());
    let mut late = Station::plugged_in(&switch, 1, Make::mergeable(), trunk(), false);
    sender.send_to(mac(1), 1, 100);
    assert_eq!(late.rx_drops(), [(DropReason::NoDriver, 1)]);
    late.start(Make::mergeable());
    late.offer(1526);
    let sent = sender.send_to(mac(1), 2, 100);
    assert_eq!(late.received(), [sent]);
    // A driver that goes leaves nothing behind for the next.
    while late.rx.free() < 64 {
        sender.send_to(mac(1), 3, 100);
        late.received();
    }
    sender.send_to(mac(1), 4, 100);
    late.dataplane.stop_ring(0).unwrap();
    sender.send_to(mac(1), 5, 100);
    let expected = [(DropReason::RingStopped, 1), (DropReason::NoDriver, 2)];
    assert_eq!(late.rx_drops(), expected);
    late.dataplane.start_ring(0, late.rx.setup(64)).unwrap();
    late.offer(1526);
    late.dataplane.settle();
    let sent = sender.send_to(mac(1), 6, 100);
    assert_eq!(late.received(), [sent]);
}

#[test]
fn a_cable_pulled_while_packets_wait_loses_them() {
    let (_switch, [mut sender, mut slow, _]) = three(Make::mergeable());
    sender.send_to(mac(1), 1, 100);
    slow.set_link(false);
    assert_eq!(slow.rx_drops(), [(DropReason::LinkDown, 1)]);
    slow.set_link(true);
    slow.offer(1526);
    slow.dataplane.settle();
    assert_eq!(slow.received(), [] as [Vec<u8>; 0]);
}

#[test]
fn chains_that_break_the_rules_cost_only_themselves() {
    for make in [
        Make::mergeable(),
        Make::default(),
        Make::mergeable().packed(),
    ] {
        let (_switch, [mut sender, mut hostile, mut other]) = three(make);
        other.offer(1526);
        for _ in 0..5 {
            hostile.rx.offer_bad(true);
        }
        hostile.rx.offer_room(&[1526]);
        let sent = sender.send_to(BROADCAST, 1, 100);
        assert_eq!(hostile.received(), std::slice::from_ref(&sent));
        assert_eq!(other.received(), [sent]);
        assert_eq!(hostile.rx_drops(), [(DropReason::BadDescriptor, 5)]);
    }
}

#[test]
fn a_ring_that_makes_no_sense_is_stopped_and_others_go_on() {
    let (_switch, [mut sender, mut hostile, mut other]) = three(Make::mergeable());
    other.offer(1526);
    hostile.rx.offer_room(&[1526]);
    hostile.rx.driver.set_avail_idx(500);
    for number in 0..3 {
        let sent = sender.send_to(BROADCAST, number, 100);
        assert_eq!(other.received(), [sent]);
    }
    assert_eq!(hostile.nic.counters[0].rx.ring_errors.get(), 1);
    let expected = [(DropReason::RingStopped, 1), (DropReason::NoDriver, 2)];
    assert_eq!(hostile.rx_drops(), expected);
}

#[test]
fn buffers_too_small_for_a_packet_lose_only_that() {
    let (_switch, [mut sender, mut small, _]) = three(Make::default());
    small.offer(200);
    sender.send_to(mac(1), 1, 500);
    let sent = sender.send_to(mac(1), 2, 100);
    assert_eq!(small.received(), [sent]);
    assert_eq!(small.rx_drops(), [(DropReason::TooLong, 1)]);
}

#[test]
fn one_interrupt_tells_of_all_that_came_in_a_turn() {
    let (_switch, [mut sender, mut receiver, _]) = three(Make::mergeable().size(256));
    receiver.offer(1000);
    for number in 0..32 {
        let packet = frame(mac(1), mac(0), None, &payload(number, 60));
        sender.tx.send(&packet, &[]);
    }
    sender.dataplane.work(Sleep::Forever);
    assert_eq!(receiver.rx.interrupts(), 1);
    assert_eq!(receiver.rx.used().len(), 32);
}

#[test]
fn one_interrupt_each_also_when_packets_alternate() {
    // Without an event index each decision is an interrupt.
    let make = Make::mergeable().size(256).without(&[VIRTIO_F_EVENT_IDX]);
    let (_switch, [mut sender, mut one, mut two]) = three(make);
    for station in [&mut one, &mut two] {
        station.offer(1000);
        station.show_up();
        station.dataplane.settle();
        station.received();
    }
    for number in 0..40 {
        let to = [mac(1), mac(2), BROADCAST][number as usize % 3];
        let packet = frame(to, mac(0), None, &payload(number, 60));
        sender.tx.send(&packet, &[]);
    }
    sender.dataplane.work(Sleep::Forever);
    for (station, count) in [(&mut one, 14 + 13), (&mut two, 13 + 13)] {
        assert_eq!(station.rx.interrupts(), 1);
        assert_eq!(station.rx.used().len(), count);
    }
}

#[test]
fn a_driver_that_runs_out_of_buffers_is_told_before_the_turn_ends() {
    let switch = Switch::new();
    let make = Make::mergeable().size(16).without(&[VIRTIO_F_EVENT_IDX]);
    let mut small = Station::new(&switch, 1, make, trunk());
    let mut other = Station::new(&switch, 2, Make::mergeable(), trunk());
    let mut sender = Station::new(&switch, 0, Make::mergeable(), trunk());
    small.offer(1000);
    other.offer(1000);
    small.rx.interrupts();
    for number in 0..16 {
        let packet = frame(BROADCAST, mac(0), None, &payload(number, 60));
        sender.tx.send(&packet, &[]);
    }
    sender.dataplane.work(Sleep::Forever);
    // After 5, 10 and 15 of 16: more than a quarter.
    assert!(small.rx.interrupts() >= 3);
    assert_eq!(small.rx.used().len(), 16);
}

/// A receiver that has just been interrupted, and is then sent much in one turn.
/// Gives how long the sender's worker sleeps then.
fn in_bulk() -> (Station, Station, Sleep) {
    let (_switch, [mut sender, mut receiver, _]) = three(Make::mergeable().size(256));
    receiver.offer(1000);
    receiver.dataplane.settle();
    for number in 0..2 {
        let packet = frame(mac(1), mac(0), None, &payload(number, 9000));
        sender.tx.send(&packet, &[900; 10]);
    }
    receiver.dataplane.inlets()[0].just_interrupted();
    let sleep = sender.dataplane.work(Sleep::Forever);
    assert!(receiver.rx.driver.has_used(), "it is shown at once");
    (sender, receiver, sleep)
}

/// Something that is held back must be seen once; each time it may be that this thread is stopped
/// for so long that nothing is held back.
fn until_held(attempt: impl Fn() -> bool) {
    assert!((0..100).any(|_| attempt()), "no interrupt was held back");
}

#[test]
fn in_bulk_interrupts_wait_and_who_has_sent_raises_them() {
    until_held(|| {
        let (sender, receiver, sleep) = in_bulk();
        let held = receiver.rx.interrupts() == 0;
        assert_eq!(matches!(sleep, Sleep::Until(_)), held);
        if held {
            // The receiver's own worker does not know of it; the sender's comes back by itself.
            assert_eq!(receiver.dataplane.work(Sleep::Forever), Sleep::Forever);
            assert_eq!(sender.dataplane.work(sleep), Sleep::Forever);
        }
        assert_eq!(receiver.rx.interrupts(), u64::from(held));
        held
    });
}

#[test]
fn who_is_unplugged_raises_what_it_held_back() {
    until_held(|| {
        let (sender, receiver, _) = in_bulk();
        let held = receiver.rx.interrupts() == 0;
        drop(sender);
        assert_eq!(receiver.rx.interrupts(), u64::from(held));
        held
    });
}

#[test]
fn a_flood_of_addresses_does_not_take_those_of_others() {
    let switch = Switch::new();
    let make = Make::mergeable();
    let mut stations = [0, 1, 2].map(|n| Station::new(&switch, n, make, access(7)));
    stations[1].show_up();
    for number in 0..20_000u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let packet = frame(mac(0), [6, 6, 6, a, b, c], None, &[0; 46]);
        stations[0].tx.send(&packet, &[]);
        stations[0].dataplane.work(Sleep::Forever);
        stations[0].tx.used();
    }
    for station in &mut stations {
        station.offer(1526);
        station.dataplane.settle();
        station.received();
    }
    while !stations[2].received().is_empty() {
        stations[2].offer(1526);
        stations[2].dataplane.settle();
    }
    let before = stations[2].nic.counters[0].rx.packets.get();
    stations[0].send_to(mac(1), 1, 60);
    assert_eq!(stations[2].nic.counters[0].rx.packets.get(), before);
}
