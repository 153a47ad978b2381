// SPDX-License-Identifier: GPL-2.0

//! The header before each packet (VIRTIO 1.3, 5.1.6): `struct virtio_net_hdr` with `num_buffers`,
//! which modern devices always have.

use crate::net::Offload;
use kernel::prelude::*;

/// Length in octets.
pub(super) const LENGTH: usize = 12;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: a checksum is to be completed.
pub(super) const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: checksums are right.
pub(super) const DATA_VALID: u8 = 2;

/// What was read from a received packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// What the sender has left to be done.
    pub(super) offload: Offload,
    /// The number of buffers that the packet is in.
    pub(super) num_buffers: u16,
}

/// The header of a packet to be sent, whose linear part has `head_len` octets.
#[inline]
pub(super) fn encode(offload: Offload, head_len: u32) -> [u8; LENGTH] {
    // `hdr_len` is a hint, and means something for large packets only (5.1.6.2).
    let hdr_len = if offload.gso_type == 0 {
        0
    } else {
        u16::try_from(head_len).unwrap_or(u16::MAX)
    };
    let [l0, l1] = hdr_len.to_le_bytes();
    let [g0, g1] = offload.gso_size.to_le_bytes();
    let [s0, s1] = offload.csum_start.to_le_bytes();
    let [o0, o1] = offload.csum_offset.to_le_bytes();
    [
        offload.flags,
        offload.gso_type,
        l0,
        l1,
        g0,
        g1,
        s0,
        s1,
        o0,
        o1,
        0,
        0,
    ]
}

/// The header of a packet that was received.
#[inline]
pub(super) fn decode(octets: [u8; LENGTH]) -> Received {
    let [flags, gso_type, _, _, g0, g1, s0, s1, o0, o1, n0, n1] = octets;
    Received {
        offload: Offload {
            flags,
            gso_type,
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        },
        num_buffers: u16::from_le_bytes([n0, n1]),
    }
}

#[kunit_tests(ferronic_header)]
mod tests {
    use super::*;

    const LARGE: Offload = Offload {
        flags: NEEDS_CSUM,
        gso_type: 1,
        gso_size: 0x05a8,
        csum_start: 0x0022,
        csum_offset: 0x0010,
    };

    #[test]
    fn layout_is_that_of_the_specification() {
        assert_eq!(
            encode(LARGE, 0x42),
            [1, 1, 0x42, 0, 0xa8, 5, 0x22, 0, 0x10, 0, 0, 0]
        );
        assert_eq!(encode(Offload::default(), 1500), [0; LENGTH]);
    }

    #[test]
    fn header_length_saturates() {
        assert_eq!(encode(LARGE, 70_000)[2..4], [0xff, 0xff]);
    }

    #[test]
    fn decoding_undoes_encoding() {
        let mut octets = encode(LARGE, 66);
        octets[10] = 3;
        octets[11] = 1;
        assert_eq!(
            decode(octets),
            Received {
                offload: LARGE,
                num_buffers: 0x103,
            }
        );
    }
}
