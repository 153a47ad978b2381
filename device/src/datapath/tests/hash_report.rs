// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `VIRTIO_NET_F_HASH_REPORT`: the header is longer both ways, and received packets have the hash of
//! their flow in it, by whichever way they come.

use std::sync::Arc;

use crate::datapath::Dataplane;
use crate::datapath::workers::Workers;
use crate::nic::control::{VIRTIO_NET_ERR, VIRTIO_NET_OK};
use crate::nic::counters::DropReason;
use crate::nic::features::{
    Features, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_RSS,
};
use crate::nic::flow_hash::{
    FlowHasher, SUPPORTED_HASH_TYPES, VIRTIO_NET_HASH_TYPE_IPV4, VIRTIO_NET_HASH_TYPE_UDPV4,
};
use crate::ring::driver::memory;
use crate::uplink::loopback::Loopback;

use super::guest::{Guest, packet, packets};
use super::rig::{Make, Rig, drops};
use super::scaling::{hashes, of_flow, rss};

/// The numbers of types that 5.1.6.4.4 has.
const IPV4: u16 = 1;
const UDPV4: u16 = 3;

pub const KEY: [u8; 40] = *b"Forty octets, unlike those of other keys";
const OTHER_KEY: [u8; 40] = [0x5a; 40];

/// The packet behind a longer header, the end of which is filled with this.
pub fn lengthened(packet: &[u8], end: [u8; 8]) -> Vec<u8> {
    let (header, frame) = packet.split_at(12);
    [header, &end, frame].concat()
}

/// What says that there is no hash.
pub const NONE: [u8; 8] = [0; 8];
/// What nobody has put there for a reason.
const NONSENSE: [u8; 8] = [0xee; 8];

/// The end of the header with a hash of this number.
pub fn report(types: u32, key: &[u8], packet: &[u8], number: u16) -> [u8; 8] {
    let hash = FlowHasher::new(types, key).hash(&packet[12..]).unwrap();
    let [a, b, c, d] = hash.value.to_le_bytes();
    let [e, f] = number.to_le_bytes();
    [a, b, c, d, e, f, 0, 0]
}

/// As of a UDP packet's addresses and ports.
pub fn of_udp(key: &[u8], packet: &[u8]) -> [u8; 8] {
    report(VIRTIO_NET_HASH_TYPE_UDPV4, key, packet, UDPV4)
}

fn make() -> Make {
    Make::mergeable().with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_HASH_REPORT])
}

/// Carries out a command; how it ended.
fn command(rig: &Rig, command: &[u8]) -> u8 {
    rig.dataplane.agreement.command(command).ack
}

/// What comes of a packet to which the uplink has put nonsense into the end of the header.
fn comes_as(rig: &mut Rig, packet: &[u8]) -> Vec<u8> {
    for _ in 0..2 {
        rig.rx.offer_room(&[1526]);
    }
    rig.cable().arrive(lengthened(packet, NONSENSE));
    rig.settle();
    let [packet] = packets(rig.rx.on_interrupt()).try_into().unwrap();
    packet
}

#[test]
fn the_hash_is_that_which_the_driver_wants_and_never_what_the_uplink_left_there() {
    for make in [make(), make().without(&[VIRTIO_NET_F_MRG_RXBUF])] {
        for make in make.every_kind() {
            let mut rig = make.rig();
            let (udp, plain) = (of_flow(7, 1, 300), packet(2, 300));
            // At first all types are disabled (5.1.6.5.6.4).
            assert_eq!(comes_as(&mut rig, &udp), lengthened(&udp, NONE));
            for (types, key, expected) in [
                (SUPPORTED_HASH_TYPES, KEY, of_udp(&KEY, &udp)),
                (SUPPORTED_HASH_TYPES, OTHER_KEY, of_udp(&OTHER_KEY, &udp)),
                (
                    VIRTIO_NET_HASH_TYPE_IPV4,
                    KEY,
                    report(VIRTIO_NET_HASH_TYPE_IPV4, &KEY, &udp, IPV4),
                ),
                (
                    SUPPORTED_HASH_TYPES & !VIRTIO_NET_HASH_TYPE_IPV4,
                    KEY,
                    of_udp(&KEY, &udp),
                ),
                // Of IPv6, which this is not.
                (1 << 3, KEY, NONE),
                (0, KEY, NONE),
                (SUPPORTED_HASH_TYPES, KEY, of_udp(&KEY, &udp)),
            ] {
                assert_eq!(command(&rig, &hashes(types, &key)), VIRTIO_NET_OK);
                let here = comes_as(&mut rig, &udp);
                assert_eq!(here, lengthened(&udp, expected), "{types:x}");
                assert_eq!(comes_as(&mut rig, &plain), lengthened(&plain, NONE));
            }
            // Neither a command that is refused nor one for something else changes that.
            assert_eq!(command(&rig, &hashes(1 << 6, &OTHER_KEY)), VIRTIO_NET_ERR);
            assert_eq!(command(&rig, &rss(&[0], 0, 1)), VIRTIO_NET_ERR);
            let hashed = lengthened(&udp, of_udp(&KEY, &udp));
            assert_eq!(comes_as(&mut rig, &udp), hashed);
            assert_eq!(rig.counters().rx.bytes.get(), 16 * 288);
        }
    }
}

#[test]
fn a_reset_ends_it_and_without_the_feature_nothing_is_longer() {
    let make = make();
    let mut rig = make.rig();
    let udp = of_flow(7, 1, 300);
    let config = hashes(SUPPORTED_HASH_TYPES, &KEY);
    assert_eq!(command(&rig, &config), VIRTIO_NET_OK);
    assert_ne!(comes_as(&mut rig, &udp)[12..20], NONE);
    rig.dataplane.negotiate(Features(make.features));
    assert_eq!(comes_as(&mut rig, &udp)[12..20], NONE);

    let mut rig = make.without(&[VIRTIO_NET_F_HASH_REPORT]).rig();
    assert_eq!(command(&rig, &config), VIRTIO_NET_ERR);
    rig.rx.offer_room(&[1526]);
    rig.cable().arrive(udp.clone());
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [udp]);
}

#[test]
fn packets_of_any_size_have_it_in_buffers_of_any_size() {
    let mut rig = make().size(128).rig();
    let config = hashes(SUPPORTED_HASH_TYPES, &KEY);
    assert_eq!(command(&rig, &config), VIRTIO_NET_OK);
    // A buffer too small for the header goes back; one that has room for that and no more does not.
    let small = rig.rx.offer_room(&[19]);
    for _ in 0..20 {
        rig.rx.offer_room(&[13, 7]);
        rig.rx.offer_room(&[20, 80]);
    }
    let sent = [of_flow(1, 1, 60), of_flow(2, 2, 500), of_flow(3, 3, 200)];
    for packet in &sent {
        rig.cable().arrive(lengthened(packet, NONSENSE));
    }
    rig.settle();
    let used = rig.rx.on_interrupt();
    assert_eq!((used[0].head, used[0].written.len()), (small, 0));
    let hashed = sent.map(|packet| lengthened(&packet, of_udp(&KEY, &packet)));
    assert_eq!(packets(used), hashed);
    assert_eq!(drops(&rig.counters().rx), [(DropReason::BadDescriptor, 1)]);

    // One that waits for more buffers.
    let mut rig = make().rig();
    assert_eq!(command(&rig, &config), VIRTIO_NET_OK);
    let large = of_flow(1, 1, 3000);
    rig.rx.offer_room(&[1000]);
    rig.cable().arrive(lengthened(&large, NONSENSE));
    rig.settle();
    assert_eq!(rig.rx.on_interrupt(), []);
    for _ in 0..3 {
        rig.rx.offer_room(&[1000]);
    }
    rig.settle();
    let hashed = lengthened(&large, of_udp(&KEY, &large));
    assert_eq!(packets(rig.rx.on_interrupt()), [hashed]);
}

#[test]
fn what_is_sent_has_it_too_and_nobody_looks_at_the_end() {
    for make in make().every_kind() {
        let mut rig = make.rig();
        let sent = [
            lengthened(&packet(1, 100), NONSENSE),
            lengthened(&packet(2, 1526), [0; 8]),
        ];
        rig.tx.send(&sent[0], &[]);
        rig.tx.send(&sent[1], &[10, 3, 5, 400]);
        // No more than an Ethernet header, and less.
        let shortest = lengthened(&packet(3, 26), NONSENSE);
        rig.tx.send(&shortest, &[]);
        rig.tx.send(&shortest[..33], &[]);
        rig.settle();
        let [first, second] = sent;
        assert_eq!(rig.cable().take_sent(), [first, second, shortest]);
        assert_eq!(drops(&rig.counters().tx), [(DropReason::TooShort, 1)]);
        assert_eq!(rig.counters().tx.bytes.get(), 88 + 1514 + 14);
    }
}

/// Two pairs, with both receive queues started.
fn two_pairs(features: &[u32]) -> (Rig, Guest) {
    let make = Make { pairs: 2, ..make() }.with(features);
    let rig = make.rig();
    let second = make.guest(&rig.map, 2);
    rig.start(2, &second, 0);
    rig.settle();
    second.interrupts();
    (rig, second)
}

#[test]
fn with_scaling_the_hash_is_the_same_here_and_there() {
    let (mut rig, mut second) = two_pairs(&[VIRTIO_NET_F_RSS]);
    // `rss` has a key of its own.
    assert_eq!(command(&rig, &rss(&[1], 0, 1)), VIRTIO_NET_OK);
    let sent = [of_flow(1, 1, 300), of_flow(2, 2, 900), of_flow(3, 3, 60)];
    let hashed = sent
        .clone()
        .map(|packet| lengthened(&packet, of_udp(&OTHER_KEY, &packet)));
    // From the other pair, into buffers that are there and into some that come later.
    rig.rx.offer_room(&[1526]);
    second.offer_room(&[1526]);
    for packet in &sent {
        rig.cables[0].arrive(lengthened(packet, NONSENSE));
    }
    rig.settle();
    assert_eq!(packets(second.on_interrupt()), hashed[..1]);
    for _ in 0..3 {
        second.offer_room(&[500]);
    }
    rig.settle();
    assert_eq!(packets(second.on_interrupt()), hashed[1..]);
    // From its own, and without a hash.
    let plain = packet(1, 100);
    for _ in 0..2 {
        second.offer_room(&[1526]);
    }
    rig.cables[1].arrive(lengthened(&sent[0], NONSENSE));
    rig.cables[1].arrive(lengthened(&plain, NONSENSE));
    rig.settle();
    assert_eq!(packets(second.on_interrupt()), hashed[..1]);
    assert_eq!(packets(rig.rx.on_interrupt()), [lengthened(&plain, NONE)]);
}

#[test]
fn when_scaling_ends_reports_do_not() {
    let (mut rig, _second) = two_pairs(&[VIRTIO_NET_F_RSS, VIRTIO_NET_F_MQ]);
    let udp = of_flow(1, 1, 300);
    for (last, key) in [
        (vec![4, 0, 1, 0], OTHER_KEY),
        (hashes(SUPPORTED_HASH_TYPES, &KEY), KEY),
    ] {
        assert_eq!(command(&rig, &rss(&[1], 0, 1)), VIRTIO_NET_OK);
        assert_eq!(command(&rig, &last), VIRTIO_NET_OK);
        let hashed = lengthened(&udp, of_udp(&key, &udp));
        assert_eq!(comes_as(&mut rig, &udp), hashed);
    }
}

#[test]
fn what_a_loopback_brings_back_has_the_hash_and_not_what_was_sent_in_its_place() {
    let make = make();
    let nic = make.nic();
    let cable = Loopback::open(1, &(Arc::new(|_| ()) as _));
    let dataplane = Dataplane::new(nic, Box::new(cable), &Workers::default()).unwrap();
    dataplane.negotiate(Features(make.features));
    let map = memory();
    let [mut rx, mut tx] = [0, 1].map(|index| make.guest(&map, index));
    for (index, guest) in [&rx, &tx].into_iter().enumerate() {
        dataplane.start_ring(index, guest.setup(0)).unwrap();
    }
    let config = hashes(SUPPORTED_HASH_TYPES, &KEY);
    assert_eq!(dataplane.agreement.command(&config).ack, VIRTIO_NET_OK);
    let sent = [of_flow(1, 1, 300), packet(2, 100)];
    for packet in &sent {
        rx.offer_room(&[1526]);
        tx.send(&lengthened(packet, NONSENSE), &[]);
    }
    dataplane.settle();
    let [udp, plain] = sent;
    let expected = [
        lengthened(&udp, of_udp(&KEY, &udp)),
        lengthened(&plain, NONE),
    ];
    assert_eq!(packets(rx.on_interrupt()), expected);
}
