// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::*;
use crate::nic::flow_hash;
use proptest::prelude::*;

/// The checksum as RFC 1071 words it: 16-bit words in network order, carries added back at once.
fn simple_sum(data: &[u8]) -> u16 {
    data.chunks(2).fold(0u16, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}

/// An IPv4 packet in an Ethernet frame, its checksum field at `field` of the transport header
/// holding the sum of the pseudo-header, as a driver leaves it. Also gives the pseudo-header.
fn ipv4(protocol: u8, field: usize, mut transport: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let (source, destination) = ([10, 0, 2, 15], [10, 0, 2, 2]);
    let len = (transport.len() as u16).to_be_bytes();
    let pseudo = [&source[..], &destination, &[0, protocol], &len].concat();
    transport[field..field + 2].copy_from_slice(&simple_sum(&pseudo).to_be_bytes());
    let total = (20 + transport.len() as u16).to_be_bytes();
    let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, total[0], total[1], 0, 1, 0, 0, 64, protocol, 0, 0]);
    frame.extend([source, destination].concat());
    frame.extend(transport);
    (frame, pseudo)
}

fn tcp(payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x9c, 0x40, 0x14, 0x51, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18];
    header.extend([0xff, 0xff, 0, 0, 0, 0]);
    [header, payload.to_vec()].concat()
}

fn udp(payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    [&[0x9c, 0x40, 0, 53, len[0], len[1], 0, 0], payload].concat()
}

/// A receiver's check: pseudo-header and segment together sum to all ones.
fn verifies(frame: &[u8], pseudo: &[u8]) -> bool {
    simple_sum(&[pseudo, &frame[34..]].concat()) == 0xffff
}

#[test]
fn tcp_checksum_computed_by_hand() {
    let (mut frame, pseudo) = ipv4(6, 16, tcp(b"abc"));
    // Pseudo-header: 0a00 020f 0a00 0202 0006 0017 = 182e.
    assert_eq!(frame[50..52], [0x18, 0x2e]);
    // Segment: 9c40 1451 0001 0002 5018 ffff 182e 6162 6300 = 1dd3c, carries added dd3d.
    assert!(complete_checksum(&mut frame, 34, 16));
    assert_eq!(frame[50..52], (!0xdd3du16).to_be_bytes());
    assert!(verifies(&frame, &pseudo));
}

#[test]
fn a_udp_checksum_of_zero_becomes_all_ones() {
    let (mut frame, pseudo) = ipv4(17, 6, udp(&[0, 0]));
    // Choose the payload so that everything sums to all ones.
    let rest = !simple_sum(&frame[34..]);
    frame[42..44].copy_from_slice(&rest.to_be_bytes());
    assert!(complete_checksum(&mut frame, 34, 6));
    assert_eq!(frame[40..42], [0xff, 0xff]);
    assert!(verifies(&frame, &pseudo));
}

#[test]
fn a_checksum_outside_the_frame_is_left_alone() {
    let frame: Vec<u8> = (0..60).collect();
    for (start, offset) in [
        (60, 0),
        (59, 0),
        (34, 25),
        (61, 0),
        (u16::MAX, u16::MAX),
        (0, u16::MAX),
    ] {
        let mut copy = frame.clone();
        assert!(!complete_checksum(&mut copy, start, offset), "{start}");
        assert_eq!(copy, frame);
    }
    assert!(complete_checksum(&mut frame.clone(), 58, 0));
    assert!(!complete_checksum(&mut [], 0, 0));
}

#[test]
fn fields_lie_where_the_specification_puts_them() {
    let bytes = [
        1, 0x81, 54, 0, 0xb4, 5, 34, 0, 16, 0, 2, 1, 4, 3, 2, 1, 6, 5, 0, 0,
    ];
    let header = VirtioNetHdr {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type: VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN,
        hdr_len: 54,
        gso_size: 1460,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0x102,
        hash_value: 0x0102_0304,
        hash_report: 0x0506,
    };
    assert_eq!(VirtioNetHdr::decode(&bytes), Some(header));
    assert_eq!(header.encode(), bytes);
    let without_hash = VirtioNetHdr {
        hash_value: 0,
        hash_report: 0,
        ..header
    };
    // Of padding nobody takes notice, and half a hash is none.
    let mut padded = bytes;
    padded[18..].fill(0xff);
    assert_eq!(VirtioNetHdr::decode(&padded), Some(header));
    for len in 12..18 {
        assert_eq!(VirtioNetHdr::decode(&bytes[..len]), Some(without_hash));
    }
    let short = VirtioNetHdr {
        num_buffers: 0,
        ..without_hash
    };
    assert_eq!(VirtioNetHdr::decode(&bytes[..10]), Some(short));
    assert_eq!(VirtioNetHdr::decode(&bytes[..9]), None);
}

#[test]
fn a_hash_is_reported_by_the_number_of_its_type_and_takes_the_place_of_another() {
    // 5.1.6.4.4: IPv4, TCPv4, UDPv4, IPv6, TCPv6, UDPv6.
    let types = [
        flow_hash::VIRTIO_NET_HASH_TYPE_IPV4,
        flow_hash::VIRTIO_NET_HASH_TYPE_TCPV4,
        flow_hash::VIRTIO_NET_HASH_TYPE_UDPV4,
        flow_hash::VIRTIO_NET_HASH_TYPE_IPV6,
        flow_hash::VIRTIO_NET_HASH_TYPE_TCPV6,
        flow_hash::VIRTIO_NET_HASH_TYPE_UDPV6,
    ];
    for (report, hash_type) in (1..).zip(types) {
        let hash = FlowHash {
            value: 0xabcd_ef01,
            hash_type,
        };
        let header = TSO4.with_hash(Some(hash));
        assert_eq!(header.encode()[..12], TSO4.encode()[..12]);
        assert_eq!(
            header.encode()[12..],
            [1, 0xef, 0xcd, 0xab, report, 0, 0, 0]
        );
        assert_eq!(header.with_hash(None), TSO4);
    }
}

/// A TCP segment over IPv4 to be cut up, 3000 octets of it.
const TSO4: VirtioNetHdr = VirtioNetHdr {
    flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
    gso_type: VIRTIO_NET_HDR_GSO_TCPV4,
    hdr_len: 54,
    gso_size: 1460,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
    hash_value: 0,
    hash_report: 0,
};

#[test]
fn segmentation_needs_all_of_its_fields() {
    use HeaderError::*;
    let check = |change: fn(&mut VirtioNetHdr)| {
        let mut header = TSO4;
        change(&mut header);
        header.validate(3000, Offloads::ALL)
    };
    assert_eq!(check(|_| ()), Ok(()));
    assert_eq!(check(|h| h.gso_type |= VIRTIO_NET_HDR_GSO_ECN), Ok(()));
    assert_eq!(check(|h| h.flags = 0), Err(GsoWithoutChecksum));
    assert_eq!(check(|h| h.gso_size = 0), Err(GsoSizeZero));
    assert_eq!(check(|h| h.hdr_len = 3001), Err(GsoHeadersOutside));
    assert_eq!(check(|h| h.csum_offset = 6), Err(GsoChecksumMisplaced));
    assert_eq!(check(|h| h.csum_start = 2981), Err(GsoHeadersOutside));
    assert_eq!(check(|h| h.csum_start = 2983), Err(ChecksumOutside));
    for unknown in [2, 6, 0x7f, 0x80, 0x83, 0x85, 0xff] {
        let header = VirtioNetHdr {
            gso_type: unknown,
            ..TSO4
        };
        assert_eq!(
            header.validate(3000, Offloads::ALL),
            Err(UnknownGsoType),
            "{unknown}"
        );
    }
    let fragments = |h: &mut VirtioNetHdr| h.gso_type = VIRTIO_NET_HDR_GSO_UDP;
    assert_eq!(check(fragments), Err(GsoNotNegotiated));
}

#[test]
fn each_kind_of_segmentation_takes_its_own_offload() {
    let csum = Offloads::CSUM;
    let uso = Offloads::USO4 | Offloads::USO6;
    let header = |gso_type| VirtioNetHdr {
        gso_type,
        csum_offset: if gso_type == VIRTIO_NET_HDR_GSO_UDP_L4 {
            6
        } else {
            16
        },
        ..TSO4
    };
    for (gso_type, offload) in [
        (VIRTIO_NET_HDR_GSO_TCPV4, Offloads::TSO4),
        (VIRTIO_NET_HDR_GSO_TCPV6, Offloads::TSO6),
        (VIRTIO_NET_HDR_GSO_UDP_L4, uso),
        (0x81, Offloads::TSO4 | Offloads::ECN),
        (0x84, Offloads::TSO6 | Offloads::ECN),
    ] {
        let header = header(gso_type);
        assert_eq!(header.validate(3000, csum | offload), Ok(()), "{gso_type}");
        assert_eq!(
            header.validate(3000, csum),
            Err(HeaderError::GsoNotNegotiated)
        );
    }
    let ecn = header(0x81).validate(3000, csum | Offloads::TSO4);
    assert_eq!(ecn, Err(HeaderError::GsoNotNegotiated));
}

#[test]
fn what_is_not_asked_for_is_not_looked_at() {
    let header = VirtioNetHdr {
        flags: !VIRTIO_NET_HDR_F_NEEDS_CSUM,
        hdr_len: u16::MAX,
        csum_start: u16::MAX,
        csum_offset: u16::MAX,
        gso_size: 7,
        ..VirtioNetHdr::default()
    };
    assert_eq!(header.validate(60, Offloads::NONE), Ok(()));
}

#[test]
fn a_checksum_must_be_negotiated_and_inside() {
    let header = VirtioNetHdr {
        gso_type: VIRTIO_NET_HDR_GSO_NONE,
        ..TSO4
    };
    assert_eq!(header.validate(52, Offloads::CSUM), Ok(()));
    assert_eq!(
        header.validate(51, Offloads::CSUM),
        Err(HeaderError::ChecksumOutside)
    );
    assert_eq!(
        header.validate(52, Offloads::NONE),
        Err(HeaderError::ChecksumNotNegotiated)
    );
}

proptest! {
    #[test]
    fn decode_and_encode_agree(bytes: [u8; LONGEST_HEADER], len in prop::sample::select(vec![10, 12, 20])) {
        let header = VirtioNetHdr::decode(&bytes[..len]).unwrap();
        let encoded = header.encode();
        // Of the padding nothing is kept.
        let same = len.min(18);
        prop_assert_eq!(&encoded[..same], &bytes[..same]);
        prop_assert!(encoded[same..].iter().all(|octet| *octet == 0));
    }

    #[test]
    fn a_header_that_is_trusted_keeps_its_checksum_inside(
        bytes: [u8; LONGEST_HEADER],
        gso_type in prop::sample::select(vec![0u8, 1, 3, 4, 5, 0x80, 0x81, 0x84, 0x85]),
        csum_offset in prop::sample::select(vec![6u16, 16, 0xfffe]),
        start in 0u16..200,
        frame_len in 0usize..300,
    ) {
        let header = VirtioNetHdr {
            gso_type,
            csum_offset,
            csum_start: start,
            ..VirtioNetHdr::decode(&bytes).unwrap()
        };
        let verdict = header.validate(frame_len, Offloads::ALL);
        if verdict.is_ok() && header.needs_csum() {
            prop_assert!(complete_checksum(&mut vec![0; frame_len], start, csum_offset));
        }
        if verdict.is_ok() && header.is_gso() {
            prop_assert!(header.needs_csum() && header.gso_size > 0);
        }
    }

    #[test]
    fn sums_agree_with_the_simple_ones(
        data in prop::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..200),
        offset in 0usize..9,
    ) {
        // Slices that start anywhere: no alignment is counted on.
        let data = data.get(offset..).unwrap_or_default();
        let sum = u16::from_be_bytes(ones_complement_sum(data).to_ne_bytes());
        prop_assert_eq!(sum, simple_sum(data));
    }

    #[test]
    fn completed_packets_verify(payload in prop::collection::vec(any::<u8>(), 0..3000), over_tcp: bool) {
        let (protocol, field, segment) = if over_tcp {
            (6, 16, tcp(&payload))
        } else {
            (17, 6, udp(&payload))
        };
        let (mut frame, pseudo) = ipv4(protocol, field as usize, segment);
        let before = frame.clone();
        prop_assert!(complete_checksum(&mut frame, 34, field));
        prop_assert!(verifies(&frame, &pseudo));
        let at = 34 + field as usize;
        prop_assert_eq!(&frame[..at], &before[..at]);
        prop_assert_eq!(&frame[at + 2..], &before[at + 2..]);
    }

    #[test]
    fn any_offsets_into_any_frame(
        mut frame in prop::collection::vec(any::<u8>(), 0..100),
        start: u16, offset: u16, near in (0u16..110, 0u16..110),
    ) {
        for (start, offset) in [(start, offset), near] {
            let inside = usize::from(start) + usize::from(offset) + 2 <= frame.len();
            prop_assert_eq!(complete_checksum(&mut frame, start, offset), inside);
        }
    }
}
