// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A frame that has come in at a port: what the switch has to know of it, and the forms in which it
//! goes out.
//!
//! # Design
//! Everything that is looked at is copied out first, once, and the copy is what goes out: a sender
//! that changes its buffers meanwhile changes payload only. What goes out is that copy, with or
//! without a VLAN tag, and behind it the payload where the sender has it.

use crate::datapath::Frame;
use crate::nic::counters::DropReason;
use crate::nic::flow_hash::HEADERS;
use crate::nic::header::{
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VirtioNetHdr,
    complete_checksum,
};
use crate::nic::offload::Offloads;
use crate::nic::segment::{is_ipv6, segment};
use crate::ring::pieces::Pieces;

use super::port::FrameStart;
use super::vlan::{Form, VlanId};

/// Octets of addresses and EtherType.
const ETHERNET: usize = 14;
/// Octets of an 802.1Q tag.
const TAG: usize = 4;
/// EtherType of an 802.1Q tag.
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0];
/// Bits of a tag that are not the VLAN's number: priority and drop eligibility.
const PRIORITY: u16 = 0xf000;
/// Octets of the virtio-net header that mean something here: all but `num_buffers`.
const HEADER: usize = 10;

/// A frame that has come in. Offsets in `header` are those that it has without a tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Incoming<'a> {
    header: VirtioNetHdr,
    /// Destination, source, EtherType behind the tag.
    ethernet: [u8; ETHERNET],
    /// The tag, if there is one.
    pub tag: Option<u16>,
    body: Pieces<'a>,
    /// Where in `body` that begins which is behind the EtherType.
    offset: usize,
}

/// What has to be done to a frame before a receiver can have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Nothing,
    Checksum,
    Segment,
}

/// Memory in which frames are finished for receivers that take none unfinished. Allotted when it is
/// first needed.
#[derive(Debug, Default)]
pub(super) struct Workshop {
    /// The frame without its tag, and whether it is this one's.
    frame: Vec<u8>,
    current: bool,
    segment: Vec<u8>,
}

impl Workshop {
    /// Another frame comes.
    pub fn clear(&mut self) {
        self.current = false;
    }
}

impl<'a> Incoming<'a> {
    /// Takes in a packet with a virtio-net header of `header_len` octets. `from_guest` says that
    /// the sender may vouch for no checksum (5.1.6.2.1).
    #[inline]
    pub fn new(
        packet: Pieces<'a>,
        header_len: usize,
        from_guest: bool,
    ) -> Result<Self, DropReason> {
        let frame_len = (packet.len().checked_sub(header_len)).ok_or(DropReason::TooShort)?;
        let mut octets = [0; HEADER];
        packet.copy_to(0, &mut octets);
        let mut header = VirtioNetHdr::decode(&octets).ok_or(DropReason::BadHeader)?;
        header
            .validate(frame_len, Offloads::ALL)
            .map_err(|_| DropReason::BadHeader)?;
        if frame_len < ETHERNET {
            return Err(DropReason::TooShort);
        }
        let mut ethernet = [0; ETHERNET];
        packet.copy_to(header_len, &mut ethernet);
        let mut tag = None;
        if ethernet.ends_with(&ETHERTYPE_VLAN) {
            if frame_len < ETHERNET + TAG {
                return Err(DropReason::TooShort);
            }
            let mut rest = [0; TAG];
            packet.copy_to(header_len + ETHERNET, &mut rest);
            let [a, b, c, d] = rest;
            tag = Some(u16::from_be_bytes([a, b]));
            if let Some(ethertype) = ethernet.last_chunk_mut() {
                *ethertype = [c, d];
            }
        }
        let removed = if tag.is_some() { TAG } else { 0 };
        header = clean(header, from_guest);
        if header.needs_csum() {
            let start = usize::from(header.csum_start).checked_sub(removed);
            let start = start.filter(|start| *start >= ETHERNET);
            // It was a u16 and has become smaller.
            header.csum_start = start.ok_or(DropReason::BadHeader)? as u16;
            header.hdr_len = header.hdr_len.saturating_sub(removed as u16);
        }
        Ok(Incoming {
            header,
            ethernet,
            tag,
            body: packet,
            offset: header_len + ETHERNET + removed,
        })
    }

    /// The destination.
    pub fn destination(&self) -> [u8; 6] {
        self.ethernet.first_chunk().copied().unwrap_or_default()
    }

    /// The source.
    pub fn source(&self) -> [u8; 6] {
        let octets = self.ethernet.get(6..).and_then(|rest| rest.first_chunk());
        octets.copied().unwrap_or_default()
    }

    /// A number that is the same for all frames of a flow: of addresses and ports, where there are
    /// some, else of the stations' addresses.
    pub fn flow(&self) -> usize {
        let mut octets = [0; 44];
        self.body.copy_to(self.offset, &mut octets);
        let [.., t0, t1] = self.ethernet;
        let (addresses, protocol, ports) = match [t0, t1] {
            [0x08, 0x00] => {
                let [first, _, _, _, _, _, fragment, rest, _, protocol, ..] = octets;
                // Only the first fragment has ports, so none of them counts as having some.
                let whole = fragment & 0x3f == 0 && rest == 0;
                let ports = 4 * usize::from(first & 0xf);
                (12..20, protocol, whole.then_some(ports))
            }
            [0x86, 0xdd] => (8..40, octets[6], Some(40)),
            _ => (0..0, 0, None),
        };
        let ports = ports.filter(|_| [6, 17].contains(&protocol));
        let ports = ports.and_then(|at| octets.get(at..at + 4)).unwrap_or(&[]);
        let addresses = octets.get(addresses).unwrap_or(&[]);
        let stations = self.ethernet.get(..12).unwrap_or(&[]);
        // FNV-1a: nobody gains much by having two flows of his on the same queue.
        let hashed = stations.iter().chain(addresses).chain(ports);
        let hash = hashed.fold(0x811c_9dc5u32, |hash, octet| {
            (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193)
        });
        (hash ^ (hash >> 16)) as usize
    }

    /// The first octets of the frame without its tag, and how many there are.
    pub fn start(&self) -> FrameStart {
        let mut octets = [0; HEADERS];
        let mut len = 0;
        if let Some((ethernet, rest)) = octets.split_first_chunk_mut() {
            *ethernet = self.ethernet;
            len = ethernet.len() + self.body.copy_to(self.offset, rest);
        }
        (octets, len)
    }

    /// What a receiver that takes `offloads` unfinished must not be left to do.
    fn work(&self, offloads: Offloads) -> Work {
        if self.header.is_gso() {
            let kind = match self.header.gso_type & !VIRTIO_NET_HDR_GSO_ECN {
                VIRTIO_NET_HDR_GSO_TCPV4 => Offloads::TSO4,
                VIRTIO_NET_HDR_GSO_TCPV6 => Offloads::TSO6,
                // Of two tags the second is looked through when the frame is segmented; which
                // version of IP is behind it is not known here, and need not be.
                _ if is_ipv6(&self.ethernet) => Offloads::USO6,
                _ => Offloads::USO4,
            };
            let ecn = match self.header.gso_type & VIRTIO_NET_HDR_GSO_ECN {
                0 => Offloads::NONE,
                _ => Offloads::ECN,
            };
            return match offloads.contains(kind | ecn | Offloads::CSUM) {
                true => Work::Nothing,
                false => Work::Segment,
            };
        }
        match self.header.needs_csum() && !offloads.contains(Offloads::CSUM) {
            true => Work::Checksum,
            false => Work::Nothing,
        }
    }

    /// Makes the frame one of `vlan` in this form, as a receiver can have it that takes `offloads`
    /// unfinished, and hands it to `put`; more than once if it had to be segmented. An error when
    /// it cannot be.
    pub fn emit(
        &self,
        vlan: VlanId,
        form: Form,
        offloads: Offloads,
        workshop: &mut Workshop,
        mut put: impl FnMut(&Frame<'_>),
    ) -> Result<(), DropReason> {
        let tag = match form {
            Form::Untagged => None,
            Form::Tagged => Some(self.tag.unwrap_or(0) & PRIORITY | vlan.get()),
        };
        match self.work(offloads) {
            Work::Nothing => {
                let mut header = self.header;
                if !offloads.contains(Offloads::CSUM) {
                    header.flags = 0;
                }
                hand_over(
                    &self.ethernet,
                    tag,
                    header,
                    self.body,
                    self.offset,
                    &mut put,
                );
            }
            Work::Checksum => {
                self.copy_into(workshop, true);
                finished(&workshop.frame, tag, &mut put);
            }
            Work::Segment => {
                self.copy_into(workshop, false);
                segment(
                    &workshop.frame,
                    &self.header,
                    &mut workshop.segment,
                    |octets| finished(octets, tag, &mut put),
                )
                .map_err(|_| DropReason::BadHeader)?;
            }
        }
        Ok(())
    }

    /// Copies the frame, without tag, into our own memory, and completes its checksum there if it is
    /// not to be segmented; once for all receivers, since a frame is either or.
    fn copy_into(&self, workshop: &mut Workshop, checksum: bool) {
        if workshop.current {
            return;
        }
        let frame = &mut workshop.frame;
        frame.clear();
        frame.extend_from_slice(&self.ethernet);
        frame.resize(ETHERNET + self.body.len().saturating_sub(self.offset), 0);
        if let Some(rest) = frame.get_mut(ETHERNET..) {
            self.body.copy_to(self.offset, rest);
        }
        if checksum {
            // Validated when it came in: the field lies within the frame.
            complete_checksum(frame, self.header.csum_start, self.header.csum_offset);
        }
        workshop.current = true;
    }
}

/// What of a header may go to a receiver.
fn clean(header: VirtioNetHdr, from_guest: bool) -> VirtioNetHdr {
    let mut clean = VirtioNetHdr::default();
    if header.needs_csum() {
        clean.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        clean.csum_start = header.csum_start;
        clean.csum_offset = header.csum_offset;
    } else if !from_guest {
        clean.flags = header.flags & VIRTIO_NET_HDR_F_DATA_VALID;
    }
    if header.gso_type != VIRTIO_NET_HDR_GSO_NONE {
        clean.gso_type = header.gso_type;
        clean.gso_size = header.gso_size;
        clean.hdr_len = header.hdr_len;
    }
    clean
}

/// Hands over the frame that has these addresses and EtherType, this tag or none, and behind that
/// what is in `body` from `offset` on. `header` is for one without a tag.
#[inline(always)]
fn hand_over(
    ethernet: &[u8; ETHERNET],
    tag: Option<u16>,
    mut header: VirtioNetHdr,
    body: Pieces<'_>,
    offset: usize,
    put: &mut impl FnMut(&Frame<'_>),
) {
    let tagged;
    let head: &[u8] = match tag {
        None => ethernet,
        Some(tag) => {
            if header.needs_csum() {
                // Cannot wrap in a frame that is valid: the offset lies within 64 KiB of headers.
                header.csum_start = header.csum_start.saturating_add(TAG as u16);
                if header.hdr_len > 0 {
                    header.hdr_len = header.hdr_len.saturating_add(TAG as u16);
                }
            }
            tagged = with_tag(ethernet, tag);
            &tagged
        }
    };
    put(&Frame {
        header,
        head,
        body,
        offset,
    });
}

fn with_tag(ethernet: &[u8; ETHERNET], tag: u16) -> [u8; ETHERNET + TAG] {
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *ethernet;
    let [v0, v1] = ETHERTYPE_VLAN;
    let [g0, g1] = tag.to_be_bytes();
    [
        d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, v0, v1, g0, g1, t0, t1,
    ]
}

/// Hands over a frame that lies in our own memory, without a tag, and needs nothing any more.
fn finished(frame: &[u8], tag: Option<u16>, put: &mut impl FnMut(&Frame<'_>)) {
    let Some(ethernet) = frame.first_chunk() else {
        return;
    };
    Pieces::with_bytes(frame, |body| {
        hand_over(ethernet, tag, VirtioNetHdr::default(), body, ETHERNET, put);
    });
}
