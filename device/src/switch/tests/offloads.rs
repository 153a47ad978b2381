// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the sender leaves to be done, for receivers that take it and for those that do not.

use proptest::prelude::*;

use super::station::{Station, access, frame, mac, payload, trunk};
use crate::datapath::tests::rig::Make;
use crate::nic::counters::DropReason;
use crate::nic::features::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
};
use crate::nic::header::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4,
    VirtioNetHdr, complete_checksum,
};
use crate::switch::Switch;
use crate::switch::vlan::VlanMode;

pub fn sender() -> Make {
    Make::mergeable().with(&[
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_ECN,
    ])
}

fn takes_all() -> Make {
    Make::mergeable().size(256).with(&[
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_ECN,
    ])
}

/// A TCP segment over IPv4 of `len` octets of payload, to be segmented if that is more than 1448,
/// and with its checksum to be completed.
pub fn tcp(tag: Option<u16>, number: u32, len: usize) -> Vec<u8> {
    let mut ip = vec![0x45, 0];
    ip.extend(((40 + len) as u16).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    complete_checksum(&mut ip, 0, 10);
    ip.extend([0x10, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 1, 0]);
    // The sum of the pseudo-header.
    let sum = 2 * 0x0a00u32 + 3 + 6 + 20 + len as u32;
    ip.extend((((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    ip.extend([0, 0]);
    ip.extend(payload(number, len));
    let mut packet = frame(mac(1), mac(0), tag, &ip);
    let tagged = if tag.is_some() { 4 } else { 0 };
    packet[24 + tagged..26 + tagged].copy_from_slice(&[8, 0]);
    let gso = len > 1448;
    let header = VirtioNetHdr {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type: if gso { VIRTIO_NET_HDR_GSO_TCPV4 } else { 0 },
        hdr_len: if gso { 54 + tagged as u16 } else { 0 },
        gso_size: if gso { 1448 } else { 0 },
        csum_start: 34 + tagged as u16,
        csum_offset: 16,
        ..VirtioNetHdr::default()
    };
    packet[..12].copy_from_slice(&header.encode()[..12]);
    packet
}

/// Whether a frame without tag, behind a header that asks for nothing, has the right checksums;
/// gives its payload.
pub fn finished(packet: &[u8]) -> &[u8] {
    assert_eq!(packet[..12], [0; 12]);
    let ip = &packet[26..];
    assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
    let mut again = ip[..20].to_vec();
    again[10..12].fill(0);
    complete_checksum(&mut again, 0, 10);
    assert_eq!(&again, &ip[..20], "IPv4 header checksum");
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 6]);
    pseudo.extend(((ip.len() - 20) as u16).to_be_bytes());
    pseudo.extend(&ip[20..]);
    let expected = pseudo.clone();
    pseudo[28..30].fill(0);
    complete_checksum(&mut pseudo, 0, 28);
    assert_eq!(pseudo, expected, "TCP checksum");
    &ip[40..]
}

#[test]
fn who_takes_large_frames_gets_them_whole() {
    for make in takes_all().every_kind() {
        let switch = Switch::new();
        let mut from = Station::new(&switch, 0, sender(), trunk());
        let mut to = Station::new(&switch, 1, make, trunk());
        for (number, len) in [100, 1448, 9000, 60_000].into_iter().enumerate() {
            to.offer(1000);
            let packet = tcp(None, number as u32, len);
            from.send(&packet);
            assert_eq!(to.received(), [packet], "{len}");
        }
    }
}

#[test]
fn who_does_not_gets_segments_with_checksums() {
    for (make, buffer) in [(Make::mergeable(), 1000), (Make::default(), 1600)] {
        let switch = Switch::new();
        let mut from = Station::new(&switch, 0, sender(), trunk());
        let mut to = Station::new(&switch, 1, make.size(128), trunk());
        for (number, len) in [100, 1448, 1449, 60_000].into_iter().enumerate() {
            to.offer(buffer);
            from.send(&tcp(None, number as u32, len));
            let got = to.received();
            assert_eq!(got.len(), len.div_ceil(1448));
            let parts: Vec<&[u8]> = got.iter().map(|packet| finished(packet)).collect();
            assert_eq!(parts.concat(), payload(number as u32, len));
        }
        assert_eq!(to.rx_drops(), []);
        assert_eq!(from.nic.counters[0].tx.packets.get(), 4);
    }
}

#[test]
fn a_tag_moves_what_the_header_points_at() {
    let switch = Switch::new();
    let mut trunked = Station::new(&switch, 0, sender(), trunk());
    let mut plain = Station::new(&switch, 1, takes_all(), access(10));
    let mut simple = Station::new(&switch, 2, Make::mergeable().size(128), access(10));
    let mut tagged = Station::new(&switch, 3, takes_all(), VlanMode::default());
    for len in [1000, 20_000] {
        for station in [&mut plain, &mut simple, &mut tagged] {
            station.offer(1000);
        }
        trunked.send(&tcp(Some(10), 1, len));
        assert_eq!(plain.received(), [tcp(None, 1, len)]);
        assert_eq!(tagged.received(), [tcp(Some(10), 1, len)]);
        let got = simple.received();
        let parts: Vec<&[u8]> = got.iter().map(|packet| finished(packet)).collect();
        assert_eq!(parts.concat(), payload(1, len));
    }
    // And the other way: one from a port without tags is given one.
    let mut other = Station::new(&switch, 4, sender(), access(10));
    tagged.offer(1000);
    other.send(&tcp(None, 2, 20_000));
    assert_eq!(tagged.received(), [tcp(Some(10), 2, 20_000)]);
}

#[test]
fn an_offload_that_the_driver_gives_up_is_not_used_for_what_waits() {
    let switch = Switch::new();
    let mut from = Station::new(&switch, 0, sender(), trunk());
    let mut to = Station::new(&switch, 1, takes_all(), trunk());
    from.send(&tcp(None, 1, 9000));
    to.dataplane
        .negotiate(crate::nic::features::Features(Make::mergeable().features));
    to.offer(1000);
    to.dataplane.settle();
    assert_eq!(to.received(), [] as [Vec<u8>; 0]);
    assert_eq!(to.rx_drops(), [(DropReason::RingStopped, 1)]);
    from.send(&tcp(None, 1, 9000));
    assert_eq!(to.received().len(), 7);
}

#[test]
fn nobody_vouches_for_a_guests_checksum() {
    let switch = Switch::new();
    let mut from = Station::new(&switch, 0, sender(), trunk());
    let mut to = Station::new(&switch, 1, takes_all(), trunk());
    to.offer(1000);
    let packet = frame(mac(1), mac(0), None, &payload(1, 100));
    let mut claims = packet.clone();
    claims[0] = VIRTIO_NET_HDR_F_DATA_VALID;
    from.send(&claims);
    assert_eq!(to.received(), [packet]);
}

#[test]
fn one_that_cannot_be_segmented_is_lost_by_those_who_need_it_to_be() {
    let switch = Switch::new();
    let mut from = Station::new(&switch, 0, sender(), trunk());
    let mut able = Station::new(&switch, 1, takes_all(), trunk());
    let mut plain = Station::new(&switch, 2, Make::mergeable(), trunk());
    able.offer(1000);
    plain.offer(1000);
    let mut packet = tcp(None, 1, 5000);
    // Says TCP over IPv4 and is not.
    packet[26] = 0x60;
    from.send(&packet);
    assert_eq!(able.received(), [packet]);
    assert_eq!(plain.rx_drops(), [(DropReason::BadHeader, 1)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any header before any frame: nothing breaks, no reader of either kind gets more or other
    /// than a frame that can be, and who takes everything gets the payload that was sent.
    #[test]
    fn any_packet_does_no_harm(
        header in proptest::array::uniform12(any::<u8>()),
        gso in prop_oneof![Just(0u8), Just(1), Just(4), Just(5), any::<u8>()],
        start in proptest::collection::vec(any::<u8>(), 0..80),
        tagged: bool,
        len in 0..4000usize,
    ) {
        let switch = Switch::new();
        let mut from = Station::new(&switch, 0, sender(), trunk());
        let mut able = Station::new(&switch, 1, takes_all(), trunk());
        let mut plain = Station::new(&switch, 2, Make::mergeable().size(128), trunk());
        able.offer(1000);
        plain.offer(1000);
        let tag = tagged.then_some(0x4005);
        let mut packet = frame([0xff; 6], mac(0), tag, &payload(1, len));
        packet[..12].copy_from_slice(&header);
        packet[1] = gso;
        let at = if tagged { 28 } else { 24 };
        for (to, with) in packet[at..].iter_mut().zip(start) {
            *to = with;
        }
        from.send(&packet);
        let got = able.received();
        prop_assert!(got.len() <= 1);
        for got in got {
            prop_assert_eq!(&got[12..], &packet[12..]);
        }
        for got in plain.received() {
            prop_assert!(got.len() <= packet.len());
            prop_assert_eq!(&got[..12], &[0; 12]);
        }
        let next = from.send_to([0xff; 6], 2, 60);
        prop_assert_eq!(able.received(), [next.clone()]);
        plain.offer(1000);
        plain.dataplane.settle();
        prop_assert!(plain.received().contains(&next));
    }
}
