// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The tutorial's cable: what goes out comes back, on the same queue.
//!
//! # Design
//! Packets wait in memory that is allotted once, as much as is used of it, so that a guest cannot
//! make us grow. The driver may leave a packet's checksum to us. It gets the packet back as it
//! left it where it accepts that, and with the checksum completed where it does not.
//!
//! There is nothing to wait for: a packet comes only after one went, and room comes only when
//! packets are taken. So the queue has no descriptor, and its worker asks after each send.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::packet_queue::PacketQueue;
use super::{ETHERNET_HEADER, MAX_PACKET, Negotiated, OnCarrier, Received, Sent};
use super::{Uplink, UplinkQueue};
use crate::nic::counters::DropReason;
use crate::nic::header::{
    HASHLESS_HEADER, VIRTIO_NET_HDR_F_NEEDS_CSUM, VirtioNetHdr, complete_checksum,
};
use crate::nic::offload::Offloads;
use crate::ring::pieces::{Pieces, PiecesMut};

/// The most packets that wait in a queue.
const MOST_PACKETS: usize = 256;
/// The most octets that wait in a queue: [`MOST_PACKETS`] of the usual size, a few of the largest.
const MOST_OCTETS: usize = 512 * 1024;
/// Octets of the header that packets wait with.
const KEPT_HEADER: usize = HASHLESS_HEADER;
const OFFERED: Offloads = Offloads::CSUM;

/// What was negotiated, for all queues.
#[derive(Debug)]
struct Shared {
    header_len: AtomicUsize,
    /// Whether the driver takes packets whose checksum is not complete.
    accepts_partial: AtomicBool,
}

/// A cable from the NIC to itself.
#[derive(Debug)]
pub struct Loopback {
    shared: Arc<Shared>,
    queues: Vec<LoopbackQueue>,
}

impl Loopback {
    /// A cable of so many queues; its carrier is always there.
    pub fn open(queue_pairs: u16, on_carrier: &OnCarrier) -> Loopback {
        let shared = Arc::new(Shared {
            header_len: AtomicUsize::new(KEPT_HEADER),
            accepts_partial: AtomicBool::new(false),
        });
        let queue = |_| LoopbackQueue {
            shared: Arc::clone(&shared),
            waiting: PacketQueue::new(MOST_PACKETS, MOST_OCTETS),
        };
        let queues = (0..queue_pairs).map(queue).collect();
        on_carrier(true);
        Loopback { shared, queues }
    }
}

impl Uplink for Loopback {
    fn offloads(&self) -> Offloads {
        OFFERED
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        self.queues
            .drain(..)
            .map(|queue| Box::new(queue) as Box<dyn UplinkQueue>)
            .collect()
    }

    fn negotiate(&self, negotiated: Negotiated) -> io::Result<()> {
        self.shared
            .header_len
            .store(negotiated.header_len, Ordering::Relaxed);
        let partial = negotiated.receive.contains(Offloads::CSUM);
        self.shared
            .accepts_partial
            .store(partial, Ordering::Relaxed);
        Ok(())
    }
}

/// One queue of the cable.
#[derive(Debug)]
struct LoopbackQueue {
    shared: Arc<Shared>,
    waiting: PacketQueue,
}

/// The header that a packet keeps while it waits: only what the driver left to be done.
fn kept_header(sent: VirtioNetHdr) -> VirtioNetHdr {
    if sent.needs_csum() {
        VirtioNetHdr {
            flags: VIRTIO_NET_HDR_F_NEEDS_CSUM,
            csum_start: sent.csum_start,
            csum_offset: sent.csum_offset,
            ..VirtioNetHdr::default()
        }
    } else {
        VirtioNetHdr::default()
    }
}

/// The header as it is kept: without a hash.
fn encoded(header: VirtioNetHdr) -> [u8; KEPT_HEADER] {
    let octets = header.encode();
    octets.first_chunk().copied().unwrap_or_default()
}

/// Makes a packet that waits ready for a driver that takes no unfinished checksums.
fn finish(packet: &mut [u8]) {
    let Some((head, frame)) = packet.split_first_chunk_mut::<KEPT_HEADER>() else {
        return;
    };
    let Some(header) = VirtioNetHdr::decode(head) else {
        return;
    };
    if header.needs_csum() {
        // Validated when it was sent: the checksum lies within the frame.
        complete_checksum(frame, header.csum_start, header.csum_offset);
        *head = encoded(VirtioNetHdr::default());
    }
}

impl UplinkQueue for LoopbackQueue {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        let header_len = self.shared.header_len.load(Ordering::Relaxed);
        let frame_len = match packet.len().checked_sub(header_len) {
            Some(len) if len >= ETHERNET_HEADER => len,
            _ => return Sent::Dropped(DropReason::TooShort),
        };
        if packet.len() > MAX_PACKET {
            return Sent::Dropped(DropReason::TooLong);
        }
        let mut head = [0; KEPT_HEADER];
        packet.copy_to(0, &mut head);
        let header = match VirtioNetHdr::decode(&head) {
            Some(header) if header.validate(frame_len, OFFERED).is_ok() => kept_header(header),
            _ => return Sent::Dropped(DropReason::BadHeader),
        };
        let pushed = self.waiting.push(KEPT_HEADER + frame_len, |room| {
            let Some((head, frame)) = room.split_first_chunk_mut::<KEPT_HEADER>() else {
                return Err(DropReason::UplinkError);
            };
            *head = encoded(header);
            if packet.copy_to(header_len, frame) == frame_len {
                Ok(())
            } else {
                Err(DropReason::BadDescriptor)
            }
        });
        match pushed {
            None => Sent::Busy,
            Some(Ok(())) => Sent::Done,
            Some(Err(reason)) => Sent::Dropped(reason),
        }
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        let header_len = self.shared.header_len.load(Ordering::Relaxed);
        let finished = !self.shared.accepts_partial.load(Ordering::Relaxed);
        let Some(packet) = self.waiting.front_mut() else {
            return Received::Empty;
        };
        if finished {
            finish(packet);
        }
        let received = match packet.split_first_chunk::<KEPT_HEADER>() {
            Some((head, frame)) => hand_over(head, frame, header_len, room),
            None => Received::Dropped(DropReason::UplinkError),
        };
        self.waiting.pop();
        received
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if !active {
            self.waiting.clear();
        }
        Ok(())
    }
}

fn hand_over(
    head: &[u8; KEPT_HEADER],
    frame: &[u8],
    header_len: usize,
    room: &mut PiecesMut<'_>,
) -> Received {
    let len = header_len + frame.len();
    if len > room.len() {
        return Received::Dropped(DropReason::TooLong);
    }
    // A longer one ends with a hash, which others put there.
    room.copy_from(0, head.get(..header_len).unwrap_or(head));
    if room.copy_from(header_len, frame) == frame.len() {
        Received::Packet(len)
    } else {
        Received::Dropped(DropReason::BadDescriptor)
    }
}

#[cfg(test)]
mod tests;
