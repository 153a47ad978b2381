// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cutting up a frame that its sender has left to be segmented (VIRTIO 1.3, 5.1.6.2), for a receiver
//! that takes no such frames.
//!
//! The segments are what the sender would have sent without the offload: headers as the frame's,
//! with lengths, sequence numbers, IPv4 identification, flags and checksums of their own (RFC 9293,
//! RFC 768; flags as RFC 3168 wants them). Checksums are complete, whatever the receiver takes: the
//! payload is being copied anyway.

use super::header::{
    VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4, VirtioNetHdr, complete_checksum, ones_complement_sum,
};

/// The most segments of one frame: 64 KiB in pieces of 48 octets, which no TCP goes below. One that
/// would become more is an attempt to make us work.
pub const MAX_SEGMENTS: usize = 1400;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// The frame is not what its virtio-net header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSegmentable;

/// Version of IP, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    V4,
    V6,
}

/// Where the headers of a frame are.
#[derive(Clone, Copy, Debug)]
struct Headers {
    version: Network,
    /// Offset of the IP header.
    network: usize,
    /// Offset of the TCP or UDP header.
    transport: usize,
    /// Offset of the payload.
    payload: usize,
    protocol: u8,
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets
        .get(at..)?
        .first_chunk()
        .map(|x| u16::from_be_bytes(*x))
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets
        .get(at..)?
        .first_chunk()
        .map(|x| u32::from_be_bytes(*x))
}

fn put<const N: usize>(octets: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *octets.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}

/// EtherType of a frame behind any VLAN tags, and the offset of what follows it.
fn ethertype(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    loop {
        let found = u16_at(frame, at)?;
        if !ETHERTYPE_VLAN.contains(&found) {
            return Some((found, at + 2));
        }
        at += 4;
    }
}

/// Whether the frame, of which these are the first octets, is IPv6.
pub fn is_ipv6(start: &[u8]) -> bool {
    ethertype(start).is_some_and(|(found, _)| found == ETHERTYPE_IPV6)
}

impl Headers {
    fn find(frame: &[u8], header: &VirtioNetHdr) -> Option<Headers> {
        let (ethertype, network) = ethertype(frame)?;
        let transport = usize::from(header.csum_start);
        let (version, protocol) = match (header.gso_type & !VIRTIO_NET_HDR_GSO_ECN, ethertype) {
            (VIRTIO_NET_HDR_GSO_TCPV4, ETHERTYPE_IPV4) => (Network::V4, TCP),
            (VIRTIO_NET_HDR_GSO_TCPV6, ETHERTYPE_IPV6) => (Network::V6, TCP),
            (VIRTIO_NET_HDR_GSO_UDP_L4, ETHERTYPE_IPV4) => (Network::V4, UDP),
            (VIRTIO_NET_HDR_GSO_UDP_L4, ETHERTYPE_IPV6) => (Network::V6, UDP),
            _ => return None,
        };
        let consistent = match version {
            Network::V4 => {
                let first = *frame.get(network)?;
                let len = usize::from(first & 0xf) * 4;
                let fits = len >= 20 && network + len == transport;
                fits && first >> 4 == 4 && *frame.get(network + 9)? == protocol
            }
            // Extension headers may lie between.
            Network::V6 => *frame.get(network)? >> 4 == 6 && network + 40 <= transport,
        };
        let len = match protocol {
            TCP => usize::from(*frame.get(transport + 12)? >> 4) * 4,
            _ => 8,
        };
        let payload = transport + len;
        let whole = payload <= frame.len() && (protocol == UDP || len >= 20);
        (consistent && whole).then_some(Headers {
            version,
            network,
            transport,
            payload,
            protocol,
        })
    }

    /// Makes `segment`, which begins with the frame's own headers, number `index` of the segments;
    /// `before` octets of payload are in those before it.
    fn fill_in(&self, segment: &mut [u8], index: u16, before: u32, last: bool) -> Option<()> {
        // No frame is longer than 64 KiB and its headers; one that says so is dropped.
        let network_len = segment.len().checked_sub(self.network)?;
        let transport_len = u16::try_from(segment.len().checked_sub(self.transport)?).ok()?;
        match self.version {
            Network::V4 => {
                let len = u16::try_from(network_len).ok()?;
                let id = u16_at(segment, self.network + 4)?.wrapping_add(index);
                put(segment, self.network + 2, len.to_be_bytes())?;
                put(segment, self.network + 4, id.to_be_bytes())?;
                put(segment, self.network + 10, [0, 0])?;
                let sum = ones_complement_sum(segment.get(self.network..self.transport)?);
                put(segment, self.network + 10, (!sum).to_ne_bytes())?;
            }
            Network::V6 => {
                let len = u16::try_from(network_len.checked_sub(40)?).ok()?;
                put(segment, self.network + 4, len.to_be_bytes())?;
            }
        }
        let checksum = if self.protocol == TCP {
            let sequence = u32_at(segment, self.transport + 4)?.wrapping_add(before);
            put(segment, self.transport + 4, sequence.to_be_bytes())?;
            let flags = segment.get_mut(self.transport + 13)?;
            if index > 0 {
                *flags &= !TCP_CWR;
            }
            if !last {
                *flags &= !(TCP_FIN | TCP_PSH);
            }
            16
        } else {
            put(segment, self.transport + 4, transport_len.to_be_bytes())?;
            6
        };
        let sum = self.pseudo_header(segment, transport_len)?;
        put(
            segment,
            self.transport + usize::from(checksum),
            sum.to_ne_bytes(),
        )?;
        // Offsets of a virtio-net header, so they fit.
        let start = u16::try_from(self.transport).ok()?;
        complete_checksum(segment, start, checksum).then_some(())
    }

    /// The sum of the pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
    fn pseudo_header(&self, segment: &[u8], transport_len: u16) -> Option<u16> {
        let [high, low] = transport_len.to_be_bytes();
        let tail = [0, self.protocol, high, low];
        let mut pseudo = [0; 36];
        let (addresses, at) = match self.version {
            Network::V4 => (8, self.network + 12),
            Network::V6 => (32, self.network + 8),
        };
        let octets = segment.get(at..at + addresses)?;
        pseudo.get_mut(..addresses)?.copy_from_slice(octets);
        put(&mut pseudo, addresses, tail)?;
        Some(ones_complement_sum(&pseudo))
    }
}

/// Cuts `frame`, which has no virtio-net header but the one given, into segments. Each is made in
/// `segment` and handed to `each`.
///
/// The header must have passed [`VirtioNetHdr::validate`] for this frame.
pub fn segment(
    frame: &[u8],
    header: &VirtioNetHdr,
    segment: &mut Vec<u8>,
    mut each: impl FnMut(&[u8]),
) -> Result<(), NotSegmentable> {
    let headers = Headers::find(frame, header).ok_or(NotSegmentable)?;
    let (start, payload) = frame
        .split_at_checked(headers.payload)
        .ok_or(NotSegmentable)?;
    let size = usize::from(header.gso_size).max(1);
    let count = payload.len().div_ceil(size).max(1);
    if count > MAX_SEGMENTS {
        return Err(NotSegmentable);
    }
    let mut rest = payload;
    for index in 0..count {
        let (part, after) = rest.split_at(rest.len().min(size));
        rest = after;
        segment.clear();
        segment.extend_from_slice(start);
        segment.extend_from_slice(part);
        // At most MAX_SEGMENTS, and at most as much payload as frame: neither is cut short.
        let before = (index * size) as u32;
        headers
            .fill_in(segment, index as u16, before, index + 1 == count)
            .ok_or(NotSegmentable)?;
        each(segment);
    }
    Ok(())
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
