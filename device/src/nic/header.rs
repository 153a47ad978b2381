// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtio-net header in front of every packet, and the checksum that it may leave to the device
//! (VIRTIO 1.3, 5.1.6, 5.1.6.2).
//!
//! What a driver writes here ends in offsets into its packet, so [`VirtioNetHdr::validate`] comes
//! before any use.

use std::fmt;

use super::flow_hash::{FlowHash, VIRTIO_NET_HASH_REPORT_NONE};
use super::offload::Offloads;

/// Octets of the longest header, that with a hash; the others are its first 10 or 12 octets.
pub const LONGEST_HEADER: usize = 20;
/// Octets of the header of VIRTIO 1 without a hash. Where it is longer, the hash begins here.
pub const HASHLESS_HEADER: usize = 12;

/// `flags`: the packet's checksum is to be completed.
pub const VIRTIO_NET_HDR_F_NEEDS_CSUM: u8 = 1;
/// `flags`: the packet's checksum has been validated. Only a device may say so.
pub const VIRTIO_NET_HDR_F_DATA_VALID: u8 = 2;
/// `flags`: the checksum fields tell of coalesced segments.
pub const VIRTIO_NET_HDR_F_RSC_INFO: u8 = 4;

/// `gso_type`: one frame, as it is.
pub const VIRTIO_NET_HDR_GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4.
pub const VIRTIO_NET_HDR_GSO_TCPV4: u8 = 1;
/// `gso_type`: UDP fragmentation.
pub const VIRTIO_NET_HDR_GSO_UDP: u8 = 3;
/// `gso_type`: TCP over IPv6.
pub const VIRTIO_NET_HDR_GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP segmentation, over either version of IP.
pub const VIRTIO_NET_HDR_GSO_UDP_L4: u8 = 5;
/// `gso_type`: beside TCP, the packet has the ECN bit set.
pub const VIRTIO_NET_HDR_GSO_ECN: u8 = 0x80;

/// Smallest TCP header, and where its checksum lies.
const TCP: (usize, u16) = (20, 16);
/// The UDP header, and where its checksum lies.
const UDP: (usize, u16) = (8, 6);

/// `struct virtio_net_hdr`. All zeros: a frame that needs nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`.
    pub gso_type: u8,
    /// Octets of all headers; a hint (5.1.6.2.2).
    pub hdr_len: u16,
    /// Octets of payload that each segment may have.
    pub gso_size: u16,
    /// Where in the frame the checksum begins.
    pub csum_start: u16,
    /// How far behind `csum_start` the checksum is stored.
    pub csum_offset: u16,
    /// Buffers that a received packet fills; not there in the short legacy form.
    pub num_buffers: u16,
    /// The hash of a received packet; there with `VIRTIO_NET_F_HASH_REPORT` only, as is the next.
    pub hash_value: u32,
    /// `VIRTIO_NET_HASH_REPORT_*`: what was hashed.
    pub hash_report: u16,
}

/// Why a header cannot be trusted. All of these count as `DropReason::BadHeader`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// A checksum is asked for without `VIRTIO_NET_F_CSUM`.
    ChecksumNotNegotiated,
    /// The checksum would lie outside the frame.
    ChecksumOutside,
    /// `gso_type` is none that the specification knows.
    UnknownGsoType,
    /// Segmentation is asked for without its `VIRTIO_NET_F_HOST_*`.
    GsoNotNegotiated,
    /// Segmentation is asked for without a checksum.
    GsoWithoutChecksum,
    /// The checksum is not where the transport protocol has it.
    GsoChecksumMisplaced,
    /// `gso_size` is zero.
    GsoSizeZero,
    /// The transport header or `hdr_len` reaches past the end of the frame.
    GsoHeadersOutside,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChecksumNotNegotiated => "checksum asked for without VIRTIO_NET_F_CSUM",
            Self::ChecksumOutside => "checksum outside the frame",
            Self::UnknownGsoType => "unknown gso_type",
            Self::GsoNotNegotiated => "segmentation asked for without its VIRTIO_NET_F_HOST_ bit",
            Self::GsoWithoutChecksum => "segmentation without VIRTIO_NET_HDR_F_NEEDS_CSUM",
            Self::GsoChecksumMisplaced => "csum_offset is not the transport protocol's",
            Self::GsoSizeZero => "gso_size is zero",
            Self::GsoHeadersOutside => "headers to copy reach past the end of the frame",
        })
    }
}

impl std::error::Error for HeaderError {}

impl VirtioNetHdr {
    /// Reads a header of 10, 12 or 20 octets ([`super::features::Features::header_len`]), for which
    /// `bytes` is cut to length; `None` if it is too short for any.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk::<10>()?;
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *head;
        let hash = bytes.get(HASHLESS_HEADER..).unwrap_or_default();
        let [v0, v1, v2, v3, r0, r1] = hash.first_chunk().copied().unwrap_or_default();
        Some(VirtioNetHdr {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: rest
                .first_chunk()
                .map_or(0, |bytes| u16::from_le_bytes(*bytes)),
            hash_value: u32::from_le_bytes([v0, v1, v2, v3]),
            hash_report: u16::from_le_bytes([r0, r1]),
        })
    }

    /// The header as it lies in memory. Those without a hash are its first 12 octets, or 10 in the
    /// short legacy form.
    pub fn encode(&self) -> [u8; LONGEST_HEADER] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        let [v0, v1, v2, v3] = self.hash_value.to_le_bytes();
        let [r0, r1] = self.hash_report.to_le_bytes();
        #[rustfmt::skip]
        let octets = [
            self.flags,
            self.gso_type,
            h0, h1,
            g0, g1,
            s0, s1,
            o0, o1,
            n0, n1,
            v0, v1, v2, v3,
            r0, r1,
            0, 0, // padding_reserved
        ];
        octets
    }

    /// The same with this hash, or with the word that there is none (5.1.6.4.4).
    pub fn with_hash(self, hash: Option<FlowHash>) -> Self {
        let (hash_value, hash_report) = match hash {
            Some(hash) => (hash.value, hash.report()),
            None => (0, VIRTIO_NET_HASH_REPORT_NONE),
        };
        VirtioNetHdr {
            hash_value,
            hash_report,
            ..self
        }
    }

    /// Whether the checksum is to be completed.
    pub fn needs_csum(&self) -> bool {
        self.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
    }

    /// Whether the frame is to be segmented.
    pub fn is_gso(&self) -> bool {
        self.gso_type != VIRTIO_NET_HDR_GSO_NONE
    }

    /// Checks what a driver has put before a frame of `frame_len` octets, with `allowed`
    /// negotiated ([`super::features::Features::transmit_offloads`]).
    ///
    /// Flags that we do not know are ignored, and so are the checksum fields without
    /// `NEEDS_CSUM` and `hdr_len` without segmentation (5.1.6.2.2).
    pub fn validate(&self, frame_len: usize, allowed: Offloads) -> Result<(), HeaderError> {
        if self.needs_csum() {
            if !allowed.contains(Offloads::CSUM) {
                return Err(HeaderError::ChecksumNotNegotiated);
            }
            if checksum_end(self.csum_start, self.csum_offset) > frame_len {
                return Err(HeaderError::ChecksumOutside);
            }
        }
        if self.is_gso() {
            self.validate_gso(frame_len, allowed)
        } else {
            Ok(())
        }
    }

    fn validate_gso(&self, frame_len: usize, allowed: Offloads) -> Result<(), HeaderError> {
        let ecn = self.gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
        let (offload, (transport_len, csum_offset)) = match self.gso_type & !VIRTIO_NET_HDR_GSO_ECN
        {
            VIRTIO_NET_HDR_GSO_TCPV4 => (Offloads::TSO4, TCP),
            VIRTIO_NET_HDR_GSO_TCPV6 => (Offloads::TSO6, TCP),
            // ECN is TCP's.
            VIRTIO_NET_HDR_GSO_UDP_L4 if !ecn => (Offloads::USO4 | Offloads::USO6, UDP),
            VIRTIO_NET_HDR_GSO_UDP if !ecn => return Err(HeaderError::GsoNotNegotiated),
            _ => return Err(HeaderError::UnknownGsoType),
        };
        if !allowed.contains(offload) || (ecn && !allowed.contains(Offloads::ECN)) {
            return Err(HeaderError::GsoNotNegotiated);
        }
        if !self.needs_csum() {
            return Err(HeaderError::GsoWithoutChecksum);
        }
        if self.csum_offset != csum_offset {
            return Err(HeaderError::GsoChecksumMisplaced);
        }
        if self.gso_size == 0 {
            return Err(HeaderError::GsoSizeZero);
        }
        let transport_end = usize::from(self.csum_start) + transport_len;
        if transport_end > frame_len || usize::from(self.hdr_len) > frame_len {
            return Err(HeaderError::GsoHeadersOutside);
        }
        Ok(())
    }
}

/// Where the checksum field ends. Cannot overflow: the sum of two u16 and 2.
fn checksum_end(csum_start: u16, csum_offset: u16) -> usize {
    usize::from(csum_start) + usize::from(csum_offset) + 2
}

/// Completes a partial checksum (5.1.6.2): sums the frame from `csum_start` to its end, the sum of
/// the pseudo-header that lies in the checksum field included, and puts the complement there.
/// False, and the frame untouched, if the field is not within it.
///
/// A result of 0 is stored as 0xffff, its other form in ones' complement arithmetic, because in
/// UDP 0 means that there is no checksum (RFC 768).
pub fn complete_checksum(frame: &mut [u8], csum_start: u16, csum_offset: u16) -> bool {
    let sum = match frame.get(usize::from(csum_start)..) {
        Some(summed) => ones_complement_sum(summed),
        None => return false,
    };
    let end = checksum_end(csum_start, csum_offset);
    let Some(field) = frame.get_mut(end - 2..end) else {
        return false;
    };
    let checksum = match !sum {
        0 => 0xffff,
        checksum => checksum,
    };
    field.copy_from_slice(&checksum.to_ne_bytes());
    true
}

/// The ones' complement sum of 16-bit words (RFC 1071), in the machine's own byte order: the sum
/// comes out the same but for the order of its octets.
///
/// Takes eight octets at a time, as two halves with an accumulator each, so that no carry has to
/// be looked at before the end; 2^32 rounds would fit.
pub(super) fn ones_complement_sum(data: &[u8]) -> u16 {
    let (words, tail) = data.as_chunks::<8>();
    let (mut low, mut high) = (0u64, 0u64);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        low += word & 0xffff_ffff;
        high += word >> 32;
    }
    // An odd octet at the end counts as if a zero followed.
    let mut last = [0u8; 8];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    let last = u64::from_ne_bytes(last);
    low += last & 0xffff_ffff;
    high += last >> 32;

    let mut sum = (low & 0xffff_ffff) + (low >> 32) + (high & 0xffff_ffff) + (high >> 32);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Never truncates: the loop has left 16 bits.
    sum as u16
}

#[cfg(test)]
mod tests;
