// SPDX-License-Identifier: Apache-2.0 OR MIT

use proptest::prelude::*;

use super::*;
use crate::nic::header::VIRTIO_NET_HDR_F_NEEDS_CSUM;

#[derive(Clone, Copy, Debug)]
struct Kind {
    v6: bool,
    tcp: bool,
    tagged: bool,
    /// Octets of options behind the fixed IPv4 and TCP headers.
    options: usize,
}

/// A frame of this kind, and the header with which it would be sent.
fn frame(kind: Kind, payload: &[u8], gso_size: u16) -> (Vec<u8>, VirtioNetHdr) {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if kind.tagged {
        frame.extend([0x81, 0, 0, 7]);
    }
    let transport = if kind.tcp { 20 + kind.options } else { 8 } + payload.len();
    if kind.v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((transport as u16).to_be_bytes());
        frame.extend([if kind.tcp { TCP } else { UDP }, 64]);
        frame.extend((0..32).map(|i| 0x20 + i));
    } else {
        let len = 20 + kind.options;
        frame.extend([8, 0, 0x40 | (len / 4) as u8, 0]);
        frame.extend(((len + transport) as u16).to_be_bytes());
        frame.extend([
            0xff,
            0xfe,
            0x40,
            0,
            64,
            if kind.tcp { TCP } else { UDP },
            9,
            9,
        ]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(vec![1; kind.options]);
    }
    let csum_start = frame.len() as u16;
    frame.extend([0x12, 0x34, 0x56, 0x78]);
    if kind.tcp {
        frame.extend(0xffff_ff00u32.to_be_bytes());
        frame.extend([0, 0, 0, 1, ((20 + kind.options) / 4 * 16) as u8]);
        frame.extend([TCP_FIN | TCP_PSH | TCP_CWR | 0x10, 1, 1, 0xab, 0xcd, 0, 0]);
        frame.extend(vec![1; kind.options]);
    } else {
        frame.extend((transport as u16).to_be_bytes());
        frame.extend([0xab, 0xcd]);
    }
    frame.extend(payload);
    let gso_type = match (kind.tcp, kind.v6) {
        (true, false) => VIRTIO_NET_HDR_GSO_TCPV4,
        (true, true) => VIRTIO_NET_HDR_GSO_TCPV6,
        (false, _) => VIRTIO_NET_HDR_GSO_UDP_L4,
    };
    let header = VirtioNetHdr {
        flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
        gso_type,
        gso_size,
        csum_start,
        csum_offset: if kind.tcp { 16 } else { 6 },
        ..VirtioNetHdr::default()
    };
    (frame, header)
}

/// The ones' complement sum, the plain way.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            total += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Checks a segment as a receiver would; gives its sequence number (TCP) and payload.
fn receive(kind: Kind, segment: &[u8]) -> (u32, u8, u16, Vec<u8>) {
    let ip = &segment[if kind.tagged { 18 } else { 14 }..];
    let (addresses, id, transport) = if kind.v6 {
        assert_eq!(usize::from(u16_at(ip, 4).unwrap()), ip.len() - 40);
        (&ip[8..40], 0, &ip[40..])
    } else {
        let len = usize::from(ip[0] & 15) * 4;
        assert_eq!(usize::from(u16_at(ip, 2).unwrap()), ip.len());
        assert_eq!(sum(&[&ip[..len]]), 0xffff, "IPv4 header checksum");
        (&ip[12..20], u16_at(ip, 4).unwrap(), &ip[len..])
    };
    let protocol = if kind.tcp { TCP } else { UDP };
    let len = (transport.len() as u16).to_be_bytes();
    let parts: [&[u8]; 4] = [addresses, &[0, protocol], &len, transport];
    assert_eq!(sum(&parts), 0xffff, "checksum");
    if kind.tcp {
        let header = usize::from(transport[12] >> 4) * 4;
        let sequence = u32_at(transport, 4).unwrap();
        (sequence, transport[13], id, transport[header..].to_vec())
    } else {
        assert_eq!(usize::from(u16_at(transport, 4).unwrap()), transport.len());
        assert_ne!(u16_at(transport, 6), Some(0));
        (0, 0, id, transport[8..].to_vec())
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    (any::<bool>(), any::<bool>(), any::<bool>(), 0..5usize).prop_map(
        |(v6, tcp, tagged, options)| Kind {
            v6,
            tcp,
            tagged,
            options: 4 * options,
        },
    )
}

proptest! {
    #[test]
    fn segments_are_frames_and_together_they_are_the_payload(
        kind in kind(),
        payload in proptest::collection::vec(any::<u8>(), 0..9000),
        gso_size in 48..3000u16,
    ) {
        let (frame, header) = frame(kind, &payload, gso_size);
        let mut segments = Vec::new();
        segment(&frame, &header, &mut Vec::new(), |s| segments.push(s.to_vec())).unwrap();
        prop_assert_eq!(segments.len(), payload.len().div_ceil(usize::from(gso_size)).max(1));
        let mut together = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            prop_assert_eq!(&segment[..12], &frame[..12]);
            let (sequence, flags, id, part) = receive(kind, segment);
            let (first, last) = (index == 0, index + 1 == segments.len());
            prop_assert!(last || part.len() == usize::from(gso_size));
            if kind.tcp {
                prop_assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(together.len() as u32));
                let end = if last { TCP_FIN | TCP_PSH } else { 0 };
                prop_assert_eq!(flags, 0x10 | end | if first { TCP_CWR } else { 0 });
            }
            if !kind.v6 {
                prop_assert_eq!(id, 0xfffe_u16.wrapping_add(index as u16));
            }
            together.extend(part);
        }
        prop_assert_eq!(together, payload);
    }

    /// Whatever the frame is: no panic, and nothing larger than the frame comes out.
    #[test]
    fn any_frame_does_no_harm(
        kind in kind(),
        mut damage in proptest::collection::vec((0..120usize, any::<u8>()), 0..6),
        len in 0..200usize,
        gso_type in prop_oneof![Just(1u8), Just(4), Just(5), Just(0x81), any::<u8>()],
        gso_size: u16,
        csum_start in 0..120u16,
    ) {
        let (mut frame, mut header) = frame(kind, &[7; 60], gso_size);
        for (at, octet) in damage.drain(..) {
            if let Some(place) = frame.get_mut(at) {
                *place = octet;
            }
        }
        frame.truncate(len);
        if gso_size % 2 == 0 {
            header.csum_start = csum_start;
            header.gso_type = gso_type;
        }
        let most = frame.len();
        let _ = segment(&frame, &header, &mut Vec::new(), |s| assert!(s.len() <= most));
    }
}

#[test]
fn a_frame_that_would_become_too_many_is_refused() {
    let kind = Kind {
        v6: false,
        tcp: true,
        tagged: false,
        options: 0,
    };
    let (frame, header) = frame(kind, &vec![0; MAX_SEGMENTS + 1], 1);
    assert_eq!(
        segment(&frame, &header, &mut Vec::new(), |_| {}),
        Err(NotSegmentable)
    );
}
