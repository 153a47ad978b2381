// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hash of a packet's flow (VIRTIO 1.3, 5.1.6.4.3): which of its fields are hashed.
//!
//! # Design
//! Addresses and ports lie in a frame as the hash wants them, so they are only put side by side. The
//! first [`HEADERS`] octets of a frame are looked at: what has its ports behind that is hashed by
//! addresses. Up to two VLAN tags are passed over. Extension headers of IPv6 are passed over, too,
//! as 5.1.6.4.3.4 has it for a device without the `_EX` types, which is what this is.
//!
//! Fragments are hashed by addresses, the first one also, though it has the ports: they belong to
//! one flow.

use super::toeplitz::{INPUT_LEN, Toeplitz};

/// Addresses of IPv4.
pub const VIRTIO_NET_HASH_TYPE_IPV4: u32 = 1 << 0;
/// Addresses and ports of TCP over IPv4.
pub const VIRTIO_NET_HASH_TYPE_TCPV4: u32 = 1 << 1;
/// Addresses and ports of UDP over IPv4.
pub const VIRTIO_NET_HASH_TYPE_UDPV4: u32 = 1 << 2;
/// Addresses of IPv6.
pub const VIRTIO_NET_HASH_TYPE_IPV6: u32 = 1 << 3;
/// Addresses and ports of TCP over IPv6.
pub const VIRTIO_NET_HASH_TYPE_TCPV6: u32 = 1 << 4;
/// Addresses and ports of UDP over IPv6.
pub const VIRTIO_NET_HASH_TYPE_UDPV6: u32 = 1 << 5;

/// `hash_report`: there is no hash. A type's number is that of its bit, counted from one (5.1.6.4.4).
pub const VIRTIO_NET_HASH_REPORT_NONE: u16 = 0;

/// All that the NIC can (5.1.4, `supported_hash_types`).
pub const SUPPORTED_HASH_TYPES: u32 = VIRTIO_NET_HASH_TYPE_IPV4
    | VIRTIO_NET_HASH_TYPE_TCPV4
    | VIRTIO_NET_HASH_TYPE_UDPV4
    | VIRTIO_NET_HASH_TYPE_IPV6
    | VIRTIO_NET_HASH_TYPE_TCPV6
    | VIRTIO_NET_HASH_TYPE_UDPV6;

/// Octets of a frame that are looked at: all headers there may be up to the ports, but for extension
/// headers out of the ordinary.
pub const HEADERS: usize = 128;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// VLAN tags that are passed over.
const MOST_TAGS: usize = 2;
/// Extension headers that are passed over (RFC 8200, 4.1, has each at most once, but for one twice).
const MOST_EXTENSIONS: usize = 8;

/// Hashes flows as a driver wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowHasher {
    /// `VIRTIO_NET_HASH_TYPE_*`.
    types: u32,
    toeplitz: Toeplitz,
}

/// The hash of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowHash {
    /// The hash itself.
    pub value: u32,
    /// `VIRTIO_NET_HASH_TYPE_*`: what was hashed.
    pub hash_type: u32,
}

impl FlowHash {
    /// `VIRTIO_NET_HASH_REPORT_*`: how a received packet's header says what was hashed.
    pub fn report(self) -> u16 {
        match self.hash_type {
            0 => VIRTIO_NET_HASH_REPORT_NONE,
            // At most 32.
            one => one.trailing_zeros() as u16 + 1,
        }
    }
}

/// What of a frame can be hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow<'a> {
    /// Source and destination, of 4 or 16 octets each.
    addresses: &'a [u8],
    /// The type for these alone.
    hash_type: u32,
    /// Source and destination, and the type with them.
    ports: Option<(&'a [u8], u32)>,
}

impl FlowHasher {
    /// Hashes with this key, and only what is of these types.
    pub fn new(types: u32, key: &[u8]) -> Self {
        FlowHasher {
            types,
            toeplitz: Toeplitz::new(key),
        }
    }

    /// Whether there is any type that it hashes.
    pub fn is_of_use(&self) -> bool {
        self.types != 0
    }

    /// The hash of the frame that starts so, of which [`HEADERS`] octets tell all; none if it is of no
    /// type that is wanted.
    pub fn hash(&self, frame_start: &[u8]) -> Option<FlowHash> {
        if self.types == 0 {
            return None;
        }
        let flow = Flow::of(frame_start)?;
        let wanted = |hash_type: u32| self.types & hash_type != 0;
        let ports = flow.ports.filter(|(_, hash_type)| wanted(*hash_type));
        let (ports, hash_type) = ports.unwrap_or((&[], flow.hash_type));
        if !wanted(hash_type) {
            return None;
        }
        let mut input = [0; INPUT_LEN];
        let octets = flow.addresses.iter().chain(ports);
        let mut len = 0;
        for (to, from) in input.iter_mut().zip(octets) {
            *to = *from;
            len += 1;
        }
        let input = input.get(..len)?;
        Some(FlowHash {
            value: self.toeplitz.hash(input),
            hash_type,
        })
    }
}

impl<'a> Flow<'a> {
    fn of(frame_start: &'a [u8]) -> Option<Self> {
        let mut rest = frame_start.get(12..)?;
        for _ in 0..=MOST_TAGS {
            let (ethertype, behind) = rest.split_first_chunk()?;
            match *ethertype {
                [0x08, 0x00] => return Flow::of_ipv4(behind),
                [0x86, 0xdd] => return Flow::of_ipv6(behind),
                [0x81, 0x00] | [0x88, 0xa8] => rest = behind.get(2..)?,
                _ => return None,
            }
        }
        None
    }

    fn of_ipv4(packet: &'a [u8]) -> Option<Self> {
        let [first, _, _, _, _, _, fragment, rest, _, protocol, ..] =
            *packet.first_chunk::<20>()?;
        let len = 4 * usize::from(first & 15);
        if first >> 4 != 4 || len < 20 {
            return None;
        }
        // More fragments to come, or an offset.
        let whole = fragment & 0x3f == 0 && rest == 0;
        let with_ports = match protocol {
            TCP => Some(VIRTIO_NET_HASH_TYPE_TCPV4),
            UDP => Some(VIRTIO_NET_HASH_TYPE_UDPV4),
            _ => None,
        };
        let ports = packet.get(len..len + 4).filter(|_| whole);
        Some(Flow {
            addresses: packet.get(12..20)?,
            hash_type: VIRTIO_NET_HASH_TYPE_IPV4,
            ports: ports.zip(with_ports),
        })
    }

    fn of_ipv6(packet: &'a [u8]) -> Option<Self> {
        let [first, _, _, _, _, _, next, ..] = *packet.first_chunk::<40>()?;
        if first >> 4 != 6 {
            return None;
        }
        Some(Flow {
            addresses: packet.get(8..40)?,
            hash_type: VIRTIO_NET_HASH_TYPE_IPV6,
            ports: ports_behind(packet, next),
        })
    }
}

/// The ports of an IPv6 packet, behind its extension headers, of which `next` is the first. None if
/// it is a fragment, or they cannot be found.
fn ports_behind(packet: &[u8], mut next: u8) -> Option<(&[u8], u32)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let mut at = 40;
    for _ in 0..=MOST_EXTENSIONS {
        let header = packet.get(at..)?;
        let hash_type = match next {
            TCP => VIRTIO_NET_HASH_TYPE_TCPV6,
            UDP => VIRTIO_NET_HASH_TYPE_UDPV6,
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [behind, len] = *header.first_chunk()?;
                next = behind;
                at += 8 + 8 * usize::from(len);
                continue;
            }
            FRAGMENT => {
                let [behind, _, high, low] = *header.first_chunk()?;
                // An offset, or more fragments to come: two reserved bits lie between.
                if high != 0 || low & 0xf9 != 0 {
                    return None;
                }
                next = behind;
                at += 8;
                continue;
            }
            _ => return None,
        };
        return Some((header.get(..4)?, hash_type));
    }
    None
}

#[cfg(test)]
mod tests;
