// SPDX-License-Identifier: Apache-2.0 OR MIT

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::toeplitz::tests::EXAMPLE_KEY;
use super::*;

const ETHERNET: [u8; 12] = [0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, 1];

fn ipv4(source: &str, destination: &str, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    for address in [source, destination] {
        packet.extend(address.parse::<Ipv4Addr>().unwrap().octets());
    }
    [&ETHERNET[..], &[8, 0], &packet, rest].concat()
}

fn ipv6(source: &str, destination: &str, next: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
    for address in [source, destination] {
        packet.extend(address.parse::<Ipv6Addr>().unwrap().octets());
    }
    [&ETHERNET[..], &[0x86, 0xdd], &packet, rest].concat()
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    let mut octets = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    octets.extend([0; 16]);
    octets
}

fn all() -> FlowHasher {
    FlowHasher::new(SUPPORTED_HASH_TYPES, &EXAMPLE_KEY)
}

fn hash(hasher: &FlowHasher, frame: &[u8]) -> Option<(u32, u32)> {
    hasher.hash(frame).map(|hash| (hash.value, hash.hash_type))
}

/// The examples that Microsoft gives with its specification of RSS: source and destination with
/// ports, the hash of addresses alone, and the one with ports.
const IPV4: [(&str, u16, &str, u16, u32, u32); 5] = [
    (
        "66.9.149.187",
        2794,
        "161.142.100.80",
        1766,
        0x323e_8fc2,
        0x51cc_c178,
    ),
    (
        "199.92.111.2",
        14230,
        "65.69.140.83",
        4739,
        0xd718_262a,
        0xc626_b0ea,
    ),
    (
        "24.19.198.95",
        12898,
        "12.22.207.184",
        38024,
        0xd2d0_a5de,
        0x5c2b_394a,
    ),
    (
        "38.27.205.30",
        48228,
        "209.142.163.6",
        2217,
        0x8298_9176,
        0xafc7_327f,
    ),
    (
        "153.39.163.191",
        44251,
        "202.188.127.2",
        1303,
        0x5d18_09c5,
        0x10e8_28a2,
    ),
];
const IPV6: [(&str, u16, &str, u16, u32, u32); 3] = [
    (
        "3ffe:2501:200:1fff::7",
        2794,
        "3ffe:2501:200:3::1",
        1766,
        0x2cc1_8cd5,
        0x4020_7d3d,
    ),
    (
        "3ffe:501:8::260:97ff:fe40:efab",
        14230,
        "ff02::1",
        4739,
        0x0f0c_461c,
        0xdde5_1bbf,
    ),
    (
        "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
        44251,
        "fe80::200:f8ff:fe21:67cf",
        38024,
        0x4b61_e985,
        0x02d1_feef,
    ),
];

#[test]
fn the_examples_of_the_specification_of_rss() {
    for (source, source_port, destination, destination_port, addresses, with_ports) in IPV4 {
        let ports = ports(source_port, destination_port);
        for (protocol, expected) in [
            (TCP, (with_ports, VIRTIO_NET_HASH_TYPE_TCPV4)),
            (UDP, (with_ports, VIRTIO_NET_HASH_TYPE_UDPV4)),
            (1, (addresses, VIRTIO_NET_HASH_TYPE_IPV4)),
        ] {
            let frame = ipv4(source, destination, protocol, &ports);
            assert_eq!(hash(&all(), &frame), Some(expected), "{source}");
        }
    }
    for (source, source_port, destination, destination_port, addresses, with_ports) in IPV6 {
        let ports = ports(source_port, destination_port);
        for (next, expected) in [
            (TCP, (with_ports, VIRTIO_NET_HASH_TYPE_TCPV6)),
            (UDP, (with_ports, VIRTIO_NET_HASH_TYPE_UDPV6)),
            (58, (addresses, VIRTIO_NET_HASH_TYPE_IPV6)),
        ] {
            let frame = ipv6(source, destination, next, &ports);
            assert_eq!(hash(&all(), &frame), Some(expected), "{source}");
        }
    }
}

#[test]
fn a_type_that_is_not_wanted_falls_back_to_addresses_or_to_nothing() {
    let tcp4 = ipv4("1.2.3.4", "5.6.7.8", TCP, &ports(1, 2));
    let tcp6 = ipv6("::1", "::2", TCP, &ports(1, 2));
    for (frame, addresses, with_ports) in [
        (&tcp4, VIRTIO_NET_HASH_TYPE_IPV4, VIRTIO_NET_HASH_TYPE_TCPV4),
        (&tcp6, VIRTIO_NET_HASH_TYPE_IPV6, VIRTIO_NET_HASH_TYPE_TCPV6),
    ] {
        let of = |types| {
            let hashed = FlowHasher::new(types, &EXAMPLE_KEY).hash(frame);
            hashed.map(|hash| hash.hash_type)
        };
        assert_eq!(of(addresses | with_ports), Some(with_ports));
        assert_eq!(of(addresses), Some(addresses));
        assert_eq!(of(with_ports), Some(with_ports));
        assert_eq!(of(SUPPORTED_HASH_TYPES & !addresses & !with_ports), None);
        assert_eq!(of(0), None);
    }
}

#[test]
fn fragments_have_no_ports() {
    let whole = ipv4("1.2.3.4", "5.6.7.8", UDP, &ports(1, 2));
    // The bit that forbids fragments makes none.
    for (flags, fragment) in [
        ([0x40, 0], false),
        ([0x20, 0], true),
        ([0, 1], true),
        ([1, 0], true),
    ] {
        let mut frame = whole.clone();
        frame[14 + 6..14 + 8].copy_from_slice(&flags);
        let expected = match fragment {
            false => VIRTIO_NET_HASH_TYPE_UDPV4,
            true => VIRTIO_NET_HASH_TYPE_IPV4,
        };
        assert_eq!(all().hash(&frame).unwrap().hash_type, expected, "{flags:?}");
    }
    let header = |offset: [u8; 2]| [&[UDP, 0], &offset[..], &[0; 4], &ports(1, 2)].concat();
    for (offset, expected) in [
        ([0, 0], VIRTIO_NET_HASH_TYPE_UDPV6),
        ([0, 6], VIRTIO_NET_HASH_TYPE_UDPV6),
        ([0, 1], VIRTIO_NET_HASH_TYPE_IPV6),
        ([0, 8], VIRTIO_NET_HASH_TYPE_IPV6),
        ([1, 0], VIRTIO_NET_HASH_TYPE_IPV6),
    ] {
        let frame = ipv6("::1", "::2", 44, &header(offset));
        assert_eq!(
            all().hash(&frame).unwrap().hash_type,
            expected,
            "{offset:?}"
        );
    }
}

#[test]
fn what_lies_before_the_ports_is_passed_over() {
    let plain = ipv4("1.2.3.4", "5.6.7.8", TCP, &ports(1, 2));
    let expected = all().hash(&plain);
    for tags in [&[0x81, 0, 0, 5][..], &[0x88, 0xa8, 0, 7, 0x81, 0, 0, 5]] {
        let tagged = [&plain[..12], tags, &plain[12..]].concat();
        assert_eq!(all().hash(&tagged), expected);
    }
    let thrice = [&plain[..12], &[0x81, 0, 0, 5].repeat(3), &plain[12..]].concat();
    assert_eq!(all().hash(&thrice), None);

    let mut options = [&plain[..34], &[1; 8], &plain[34..]].concat();
    options[14] = 0x47;
    assert_eq!(all().hash(&options), expected);

    let plain = ipv6("::1", "::2", UDP, &ports(3, 4));
    // Hop-by-hop options of 16 octets, a routing header and destination options of 8.
    let extensions = [
        &[43, 1][..],
        &[0; 14],
        &[60, 0],
        &[0; 6],
        &[UDP, 0],
        &[0; 6],
        &ports(3, 4),
    ];
    let extended = ipv6("::1", "::2", 0, &extensions.concat());
    assert_eq!(all().hash(&extended), all().hash(&plain));
    // A chain that does not end is no flow with ports.
    let endless = ipv6("::1", "::2", 0, &[0; 400]);
    assert_eq!(
        all().hash(&endless).unwrap().hash_type,
        VIRTIO_NET_HASH_TYPE_IPV6
    );
}

#[test]
fn what_is_no_ip_or_cut_short_has_no_hash() {
    let frame = ipv4("1.2.3.4", "5.6.7.8", TCP, &ports(1, 2));
    for len in 0..14 + 20 {
        assert_eq!(all().hash(&frame[..len]), None);
    }
    // Without ports that are there, addresses.
    for len in 14 + 20..14 + 24 {
        let hashed = all().hash(&frame[..len]).unwrap();
        assert_eq!(hashed.hash_type, VIRTIO_NET_HASH_TYPE_IPV4);
    }
    let broken = |at: usize, octet: u8| {
        let mut frame = frame.clone();
        frame[at] = octet;
        all().hash(&frame)
    };
    assert_eq!(broken(13, 6), None, "ARP");
    assert_eq!(broken(14, 0x65), None, "the other version");
    assert_eq!(broken(14, 0x44), None, "a header too short");
    let mut frame = ipv6("::1", "::2", TCP, &ports(1, 2));
    assert_eq!(all().hash(&frame[..14 + 39]), None);
    frame[14] = 0x45;
    assert_eq!(all().hash(&frame), None);
}

proptest! {
    #[test]
    fn any_octets_at_all(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0..4usize,
        types in 0..=SUPPORTED_HASH_TYPES,
    ) {
        let ethertype = [[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]][kind];
        if let Some(place) = frame.get_mut(12..14) {
            place.copy_from_slice(&ethertype);
        }
        if let Some(first) = frame.get_mut(14) {
            *first = if kind == 0 { 0x40 } else { 0x60 } | *first & 15;
        }
        let hashed = FlowHasher::new(types, &EXAMPLE_KEY).hash(&frame);
        if let Some(hash) = hashed {
            prop_assert_eq!(hash.hash_type.count_ones(), 1);
            prop_assert_eq!(hash.hash_type & !types, 0);
        }
    }

    #[test]
    fn only_the_first_octets_are_of_interest(
        source: [u8; 4], destination: [u8; 4], from: u16, to: u16,
        tail in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let [source, destination] = [source, destination].map(|a| Ipv4Addr::from(a).to_string());
        let frame = ipv4(&source, &destination, TCP, &ports(from, to));
        let longer = [&frame[..], &tail].concat();
        prop_assert_eq!(all().hash(&frame), all().hash(&longer));
    }
}
