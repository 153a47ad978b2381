// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who gets what.

use std::sync::Arc;

use super::station::{BROADCAST, Station, access, frame, mac, payload, trunk};
use crate::datapath::tests::rig::Make;
use crate::nic::counters::DropReason;
use crate::nic::features::VIRTIO_NET_F_MRG_RXBUF;
use crate::switch::vlan::{VlanMode, VlanSet};
use crate::switch::{MAX_PORTS, PortError, Switch};

fn stations(count: u8, make: Make) -> (Arc<Switch>, Vec<Station>) {
    let switch = Switch::new();
    let stations = (0..count)
        .map(|number| {
            let mut station = Station::new(&switch, number, make, trunk());
            station.offer(1526);
            station
        })
        .collect();
    (switch, stations)
}

/// How many packets each has received.
fn counts(stations: &mut [Station]) -> Vec<usize> {
    stations.iter_mut().map(|s| s.received().len()).collect()
}

#[test]
fn what_nobody_is_known_for_goes_to_all_and_then_to_one() {
    let (switch, mut stations) = stations(4, Make::mergeable());
    let sent = stations[0].send_to(mac(2), 1, 300);
    for station in &mut stations[1..] {
        assert_eq!(station.received(), std::slice::from_ref(&sent));
    }
    assert_eq!(counts(&mut stations), [0, 0, 0, 0]);
    // The answer goes to the one who asked, and so does what follows.
    let answer = stations[2].send_to(mac(0), 2, 300);
    assert_eq!(stations[0].received(), [answer]);
    stations[0].send_to(mac(2), 3, 300);
    assert_eq!(counts(&mut stations), [0, 0, 1, 0]);
    let known = switch.addresses();
    let known: Vec<_> = known.iter().map(|(a, port)| (a.mac.0, &port[..])).collect();
    assert_eq!(known, [(mac(0), "p0"), (mac(2), "p2")]);
    assert_eq!(stations[0].nic.counters[0].tx.packets.get(), 2);
    assert_eq!(stations[2].nic.counters[0].rx.bytes.get(), 2 * 314);
}

#[test]
fn groups_and_everybody_are_for_all_others() {
    let (_switch, mut stations) = stations(3, Make::mergeable());
    stations[1].send_to(BROADCAST, 1, 100);
    stations[1].send_to([0x33, 0x33, 0, 0, 0, 1], 2, 100);
    assert_eq!(counts(&mut stations), [2, 0, 2]);
}

#[test]
fn nothing_comes_back_and_some_is_for_nobody() {
    let (_switch, mut stations) = stations(2, Make::mergeable());
    stations[0].show_up();
    // To itself, from a group, to an address that no bridge forwards.
    stations[0].send_to(mac(0), 1, 100);
    stations[0].send(&frame(mac(1), BROADCAST, None, &payload(2, 100)));
    stations[0].send_to([1, 0x80, 0xc2, 0, 0, 0xf], 3, 100);
    assert_eq!(counts(&mut stations), [0, 0]);
    assert_eq!(stations[0].tx_drops(), [(DropReason::NotForwarded, 4)]);
    stations[0].send_to([1, 0x80, 0xc2, 0, 0, 0x10], 4, 100);
    assert_eq!(counts(&mut stations), [0, 1]);
}

#[test]
fn a_guest_that_moves_is_found_at_its_new_port() {
    let (_switch, mut stations) = stations(3, Make::mergeable());
    stations[0].show_up();
    stations[2].send_to(mac(0), 1, 100);
    assert_eq!(counts(&mut stations), [1, 0, 0]);
    // The same address speaks elsewhere.
    stations[1].send(&frame(mac(9), mac(0), None, &[0; 50]));
    counts(&mut stations);
    stations[2].send_to(mac(0), 2, 100);
    assert_eq!(counts(&mut stations), [0, 1, 0]);
}

#[test]
fn contents_pass_whatever_the_rings_are() {
    let makes = [
        Make::default(),
        Make::mergeable(),
        Make::mergeable().packed(),
    ];
    for from in makes {
        for to in makes {
            let switch = Switch::new();
            let mut sender = Station::new(&switch, 0, from, trunk());
            let mut receiver = Station::new(&switch, 1, to, trunk());
            for (number, len) in [0, 1, 46, 700, 1486, 1500].into_iter().enumerate() {
                receiver.offer(1600);
                let sent = sender.send_to(mac(1), number as u32, len);
                assert_eq!(receiver.received(), [sent], "{from:?} {to:?}");
            }
            // 9000 octets: in six of the buffers above, or in one that is large enough.
            if to.features >> VIRTIO_NET_F_MRG_RXBUF & 1 == 1 {
                let sent = sender.send_to(mac(1), 7, 9000);
                assert_eq!(receiver.received(), [sent]);
            } else {
                sender.send_to(mac(1), 7, 9000);
                assert_eq!(receiver.rx_drops(), [(DropReason::TooLong, 1)]);
            }
        }
    }
}

#[test]
fn large_frames_pass_without_mergeable_buffers() {
    for make in Make::default().size(16).every_kind() {
        let switch = Switch::new();
        let mut sender = Station::new(&switch, 0, Make::mergeable(), trunk());
        let mut receiver = Station::new(&switch, 1, make, trunk());
        receiver.offer(12 + 14 + 9000);
        for number in 0..16 {
            let sent = sender.send_to(mac(1), number, 9000);
            assert_eq!(receiver.received(), [sent]);
        }
        receiver.offer(12 + 14 + 9000);
        sender.send_to(mac(1), 17, 9001);
        assert_eq!(receiver.rx_drops(), [(DropReason::TooLong, 1)]);
    }
}

#[test]
fn a_legacy_guest_has_a_short_header() {
    let switch = Switch::new();
    let legacy = Make {
        features: 0,
        ..Make::default()
    };
    let mut old = Station::new(&switch, 0, legacy, trunk());
    let mut new = Station::new(&switch, 1, Make::default(), trunk());
    old.offer(1600);
    new.offer(1600);
    let packet = frame(mac(1), mac(0), None, &payload(1, 99));
    old.send(&packet[2..]);
    assert_eq!(new.received(), [packet]);
    let packet = new.send_to(mac(0), 2, 99);
    let used = old.rx.on_interrupt();
    assert_eq!(used.len(), 1);
    assert_eq!(used[0].written, packet[2..]);
}

#[test]
fn vlans_are_apart_and_tags_are_put_on_and_taken_off() {
    let switch = Switch::new();
    let only_20: VlanSet = "20".parse().unwrap();
    let modes = [
        access(10),
        access(10),
        access(20),
        trunk(),
        VlanMode::new(None, Some(only_20), None).unwrap(),
    ];
    let mut stations: Vec<Station> = (0..)
        .zip(modes)
        .map(|(number, mode)| Station::new(&switch, number, Make::mergeable(), mode))
        .collect();
    let mut sends = |from: usize, tag: Option<u16>, expected: [Option<Option<u16>>; 5]| {
        for station in &mut stations {
            station.offer(1526);
        }
        let body = payload(1, 200);
        let source = mac(from as u8);
        stations[from].send(&frame(BROADCAST, source, tag, &body));
        for (station, expected) in stations.iter_mut().zip(expected) {
            let expected: Vec<_> = expected
                .map(|tag| frame(BROADCAST, source, tag, &body))
                .into_iter()
                .collect();
            assert_eq!(station.received(), expected, "{from} {}", station.number);
        }
    };
    let (none, plain) = (None, Some(None));
    let tagged = |vlan| Some(Some(vlan));
    sends(0, None, [none, plain, none, tagged(10), none]);
    sends(2, None, [none, none, none, tagged(20), tagged(20)]);
    // Priority is kept, where there is a tag to keep it in.
    sends(3, Some(0x6014), [none, none, plain, none, tagged(0x6014)]);
    sends(4, Some(20), [none, none, plain, tagged(20), none]);
    sends(3, None, [none; 5]);
    sends(3, Some(10), [plain, plain, none, none, none]);
    // A priority alone names no VLAN.
    sends(0, Some(0x2000), [none, plain, none, tagged(0x200a), none]);
    // Not of a VLAN of the port.
    sends(0, Some(10), [none; 5]);
    sends(0, Some(20), [none; 5]);
    sends(4, None, [none; 5]);
    sends(4, Some(10), [none; 5]);
    assert_eq!(stations[0].tx_drops(), [(DropReason::NotForwarded, 2)]);
    assert_eq!(stations[4].tx_drops(), [(DropReason::NotForwarded, 2)]);
}

#[test]
fn an_address_of_another_vlan_is_another_address() {
    let switch = Switch::new();
    let mut stations: Vec<Station> = (0..4)
        .map(|number| {
            let vlan = access(10 + 10 * u16::from(number % 2));
            let mut station = Station::new(&switch, number, Make::mergeable(), vlan);
            station.offer(1526);
            station
        })
        .collect();
    // The same address in both VLANs, at different ports.
    stations[0].send(&frame(mac(9), mac(8), None, &[0; 50]));
    stations[1].send(&frame(mac(9), mac(8), None, &[0; 50]));
    assert_eq!(counts(&mut stations), [0, 0, 1, 1]);
    stations[2].send_to(mac(8), 1, 50);
    assert_eq!(counts(&mut stations), [1, 0, 0, 0]);
    stations[3].send_to(mac(8), 1, 50);
    assert_eq!(counts(&mut stations), [0, 1, 0, 0]);
}

#[test]
fn a_cable_that_is_out_carries_nothing_and_its_guest_is_forgotten() {
    let (switch, mut stations) = stations(3, Make::mergeable());
    stations[1].show_up();
    stations[0].send_to(mac(1), 1, 100);
    stations[1].set_link(false);
    assert!(switch.addresses().iter().all(|(_, port)| port != "p1"));
    counts(&mut stations);
    stations[0].send_to(mac(1), 2, 100);
    assert_eq!(counts(&mut stations), [0, 0, 1]);
    assert_eq!(stations[1].rx_drops(), [(DropReason::LinkDown, 1)]);
    stations[1].send_to(mac(0), 3, 100);
    let expected = [(DropReason::LinkDown, 1), (DropReason::NotForwarded, 1)];
    assert_eq!(stations[1].tx_drops(), expected);
    stations[1].set_link(true);
    stations[0].send_to(mac(1), 4, 100);
    assert_eq!(counts(&mut stations), [0, 1, 1]);
}

#[test]
fn ports_come_and_go_and_the_others_do_not_notice() {
    let (switch, mut stations) = stations(3, Make::mergeable());
    stations[1].show_up();
    let gone = stations.remove(1);
    drop(gone);
    assert_eq!(switch.ports().len(), 2);
    assert!(switch.addresses().is_empty());
    stations[0].send_to(mac(1), 1, 100);
    assert_eq!(counts(&mut stations), [0, 1]);
    // Its number is free for another, who gets nothing that was the first one's.
    let mut other = Station::new(&switch, 5, Make::mergeable(), trunk());
    other.offer(1526);
    stations.push(other);
    assert_eq!(switch.ports()[1].name, "p5");
    stations[0].send_to(mac(5), 2, 100);
    assert_eq!(counts(&mut stations), [0, 1, 1]);
    let error = switch.add("p5", stations[0].nic.clone(), trunk());
    assert_eq!(error.unwrap_err(), PortError::NameTaken("p5".into()));
}

#[test]
fn there_is_room_for_sixty_four() {
    let (switch, mut stations) = stations(MAX_PORTS as u8, Make::mergeable());
    let nic = stations[0].nic.clone();
    assert_eq!(switch.add("x", nic, trunk()).unwrap_err(), PortError::Full);
    stations[63].send_to(BROADCAST, 1, 1000);
    let mut expected = vec![1; MAX_PORTS];
    expected[63] = 0;
    assert_eq!(counts(&mut stations), expected);
    for number in 0..63 {
        let to = usize::from(number) + 1;
        stations[to].show_up();
        let sent = stations[usize::from(number)].send_to(mac(number + 1), 2, 200);
        assert_eq!(stations[to].received(), [sent]);
    }
    assert!(counts(&mut stations).iter().all(|count| *count == 0));
    assert_eq!(switch.addresses().len(), MAX_PORTS);
}

#[test]
fn several_queues_keep_flows_apart_and_serve_the_ones_in_use() {
    let make = Make {
        pairs: 2,
        ..Make::mergeable()
    };
    let switch = Switch::new();
    let mut one = Station::plugged_in(&switch, 0, make, trunk(), false);
    let mut two = Station::plugged_in(&switch, 1, make, trunk(), false);
    let map = crate::ring::driver::memory();
    let mut second_rx = make.guest(&map, 2);
    let mut second_tx = make.guest(&map, 3);
    one.start(make);
    two.start(make);
    two.offer(1526);
    // Only the first of two receives: it gets what either queue sends.
    one.dataplane.start_ring(3, second_tx.setup(0)).unwrap();
    let packet = frame(mac(1), mac(0), None, &payload(1, 80));
    second_tx.send(&packet, &[]);
    one.dataplane.settle();
    assert_eq!(two.received(), std::slice::from_ref(&packet));
    // When the second does, it gets what is sent from the second.
    two.dataplane.start_ring(2, second_rx.setup(0)).unwrap();
    second_rx.interrupts();
    second_rx.offer_room(&[1526]);
    second_tx.send(&packet, &[]);
    one.dataplane.settle();
    assert_eq!(two.received(), [] as [Vec<u8>; 0]);
    let got = crate::datapath::tests::guest::packets(second_rx.on_interrupt());
    assert_eq!(got, [packet]);
    let sent = one.send_to(mac(1), 2, 80);
    assert_eq!(two.received(), [sent]);
}
