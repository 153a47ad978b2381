// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests with and without `VIRTIO_NET_F_HASH_REPORT` on one switch: their headers have 20 and 12
//! octets.

use super::offloads::{sender, tcp};
use super::station::{BROADCAST, Station, access, mac, trunk};
use crate::datapath::tests::guest::{Guest, packets};
use crate::datapath::tests::hash_report::{KEY, NONE, lengthened, of_udp, report};
use crate::datapath::tests::rig::Make;
use crate::datapath::tests::scaling::{hashes, of_flow, rss};
use crate::nic::counters::DropReason;
use crate::nic::features::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_RSS};
use crate::nic::flow_hash::{SUPPORTED_HASH_TYPES, VIRTIO_NET_HASH_TYPE_TCPV4};
use crate::switch::Switch;

const REPORTS: &[u32] = &[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT];
const OTHER_KEY: [u8; 40] = [0x77; 40];
/// What a sender that lies has in its header.
const LIE: [u8; 8] = [1, 2, 3, 4, 3, 0, 0, 0];

fn reporting() -> Make {
    Make::mergeable().with(REPORTS)
}

/// Its control queue, started.
fn control(station: &Station, make: Make) -> Guest {
    let index = 2 * usize::from(make.pairs);
    let guest = make.guest(&station.rx.driver.map, index);
    (station.dataplane.start_ring(index, guest.setup(0))).unwrap();
    station.dataplane.settle();
    guest
}

fn command(station: &Station, control: &mut Guest, command: &[u8]) {
    control.command(command, &[]);
    station.dataplane.settle();
    assert_eq!(control.on_interrupt()[0].written, [0]);
}

/// Has hashes reported by this key.
fn report_by(station: &Station, make: Make, key: &[u8]) {
    let config = hashes(SUPPORTED_HASH_TYPES, key);
    command(station, &mut control(station, make), &config);
}

/// A UDP packet from one guest to another.
fn udp(from: u8, to: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut packet = of_flow(number as u16, number, len);
    packet[12..18].copy_from_slice(&to);
    packet[18..24].copy_from_slice(&mac(from));
    packet
}

#[test]
fn each_has_frames_behind_a_header_of_its_own_length() {
    for make in reporting().every_kind() {
        let switch = Switch::new();
        let mut with = Station::new(&switch, 0, make, trunk());
        let mut without = Station::new(&switch, 1, Make::mergeable(), trunk());
        let mut also = Station::new(&switch, 2, make, trunk());
        report_by(&with, make, &KEY);
        for station in [&mut with, &mut without, &mut also] {
            station.offer(700);
        }
        // To all, from the one and from the other: by its own key, by none, and not at all.
        for len in [60, 1500] {
            let packet = udp(1, BROADCAST, 1, len);
            without.send(&packet);
            let hash = of_udp(&KEY, &packet);
            assert_eq!(with.received(), [lengthened(&packet, hash)]);
            assert_eq!(also.received(), [lengthened(&packet, NONE)]);
            let packet = udp(2, BROADCAST, 2, len);
            also.send(&lengthened(&packet, LIE));
            let hash = of_udp(&KEY, &packet);
            assert_eq!(with.received(), [lengthened(&packet, hash)]);
            assert_eq!(without.received(), [packet]);
        }
        // To one.
        let packet = udp(0, mac(1), 3, 900);
        with.send(&lengthened(&packet, LIE));
        assert_eq!(without.received(), [packet]);
        let packet = udp(0, mac(2), 3, 900);
        with.send(&lengthened(&packet, LIE));
        assert_eq!(also.received(), [lengthened(&packet, NONE)]);
        // What is no longer than a header.
        let short = lengthened(&udp(0, mac(2), 3, 60), LIE);
        for len in [0, 12, 19, 20, 33] {
            with.send(&short[..len.max(1)]);
        }
        assert_eq!(with.tx_drops(), [(DropReason::TooShort, 5)]);
        assert_eq!(also.received(), [] as [Vec<u8>; 0]);
    }
}

#[test]
fn receivers_have_keys_of_their_own() {
    let switch = Switch::new();
    let mut sender = Station::new(&switch, 0, Make::mergeable(), trunk());
    let mut receivers = [(1, KEY), (2, OTHER_KEY)].map(|(number, key)| {
        let station = Station::new(&switch, number, reporting(), trunk());
        report_by(&station, reporting(), &key);
        (station, key)
    });
    let packet = udp(0, BROADCAST, 5, 300);
    for (station, _) in &mut receivers {
        station.offer(1534);
    }
    sender.send(&packet);
    for (station, key) in &mut receivers {
        let hash = of_udp(&*key, &packet);
        assert_eq!(station.received(), [lengthened(&packet, hash)]);
    }
}

#[test]
fn segments_have_the_hash_of_their_flow_with_a_tag_or_without() {
    let switch = Switch::new();
    let mut from = Station::new(&switch, 0, sender(), access(10));
    let make = reporting().size(128);
    let mut plain = Station::new(&switch, 1, make, access(10));
    let mut tagged = Station::new(&switch, 2, make, trunk());
    for station in [&plain, &tagged] {
        report_by(station, make, &KEY);
    }
    for len in [100, 20_000] {
        plain.offer(1600);
        tagged.offer(1600);
        let sent = tcp(None, 1, len);
        let hash = report(VIRTIO_NET_HASH_TYPE_TCPV4, &KEY, &sent, 2);
        from.send(&sent);
        for (station, at) in [(&mut plain, 32), (&mut tagged, 36)] {
            let got = station.received();
            assert_eq!(got.len(), len.div_ceil(1448));
            for packet in got {
                assert_eq!(
                    (&packet[12..20], &packet[at..at + 2]),
                    (&hash[..], &[8, 0][..])
                );
            }
        }
    }
}

#[test]
fn what_waits_for_buffers_keeps_its_hash() {
    let switch = Switch::new();
    let mut sender = Station::new(&switch, 0, Make::mergeable(), trunk());
    let mut receiver = Station::new(&switch, 1, reporting(), trunk());
    report_by(&receiver, reporting(), &KEY);
    receiver.show_up();
    let sent = [udp(0, mac(1), 1, 1500), udp(0, mac(1), 2, 60)];
    for packet in &sent {
        sender.send(packet);
    }
    assert_eq!(receiver.received(), [] as [Vec<u8>; 0]);
    receiver.offer(1000);
    receiver.dataplane.settle();
    let hashed = sent.map(|packet| lengthened(&packet, of_udp(&KEY, &packet)));
    assert_eq!(receiver.received(), hashed);
}

#[test]
fn with_scaling_it_is_the_hash_that_has_chosen_the_queue() {
    let switch = Switch::new();
    let mut sender = Station::new(&switch, 0, Make::mergeable(), trunk());
    let make = reporting().with(&[VIRTIO_NET_F_RSS]);
    let make = Make { pairs: 2, ..make };
    let mut receiver = Station::new(&switch, 1, make, trunk());
    let mut second = make.guest(&receiver.rx.driver.map, 2);
    (receiver.dataplane.start_ring(2, second.setup(0))).unwrap();
    receiver.dataplane.settle();
    second.interrupts();
    let mut control = control(&receiver, make);
    command(&receiver, &mut control, &rss(&[0, 1], 0, 1));
    receiver.offer(1534);
    while second.free() > 0 {
        second.offer_room(&[1534]);
    }
    for number in 0..20 {
        let packet = udp(0, mac(1), number, 100);
        sender.send(&packet);
        // `rss` has this key.
        let hash = of_udp(&[0x5a; 40], &packet);
        let hashed = vec![lengthened(&packet, hash)];
        let mut expected = [Vec::new(), Vec::new()];
        expected[usize::from(hash[0] & 1)] = hashed;
        let got = [&mut receiver.rx, &mut second].map(|guest| packets(guest.on_interrupt()));
        assert_eq!(got, expected);
    }
}
