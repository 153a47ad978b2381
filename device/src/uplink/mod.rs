// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the cable goes.
//!
//! Every packet crosses this seam as the virtio-net header (`header_len` octets, VIRTIO 1.3, 5.1.6)
//! followed by the Ethernet frame, in pieces of guest memory, so that an uplink that understands
//! the header (tap) moves a packet with one system call and no copy of ours.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::nic::counters::DropReason;
use crate::nic::hashing::Hashing;
use crate::nic::header::LONGEST_HEADER;
use crate::nic::offload::Offloads;
use crate::ring::pieces::{Pieces, PiecesMut};

pub mod loopback;
pub(crate) mod packet_queue;
mod spec;
pub mod tap;
pub mod user;

pub use spec::{BadUplinkSpec, OnCarrier, OpenOptions, UplinkError, UplinkSpec, open};

/// Octets of the largest packet an uplink hands over: the longest virtio-net header, Ethernet header with one
/// VLAN tag, 65536 octets that the kernel may put together, and one to spare, so that a packet
/// never fills the room to the last octet and one that was cut is told from one that fits.
pub const MAX_PACKET: usize = LONGEST_HEADER + 18 + 65536 + 1;

/// Octets of an Ethernet header: nothing shorter is a frame.
const ETHERNET_HEADER: usize = 14;

/// How a packet fared on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The uplink has it.
    Done,
    /// No room now; offer it again when the queue's descriptor says so.
    Busy,
    /// It was thrown away, for this reason.
    Dropped(DropReason),
}

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet of so many octets, header included, lies at the start of the room.
    Packet(usize),
    /// Nothing waits; the queue's descriptor will say when something does.
    Empty,
    /// A packet was lost in the uplink, for this reason; there may be more.
    Dropped(DropReason),
}

/// What driver and device have agreed on, as far as it concerns the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Octets of the virtio-net header: 10, 12 or 20 (5.1.6.1). The hash that the longest ends with is
    /// not the uplink's business: it takes no notice of what the driver has there, and what it puts there
    /// itself is written over.
    pub header_len: usize,
    /// Offloads that the driver accepts on packets it receives.
    pub receive: Offloads,
}

/// One queue of an uplink; used by one worker thread.
pub trait UplinkQueue: Send + Debug {
    /// The descriptor that tells readiness. The worker watches it edge-triggered, for input and
    /// output, from start to end: it must stay the same. `None`: nothing ever comes by itself, but
    /// what was sent may come back; the worker asks after it has sent, and offers again what found
    /// the queue busy after it has received.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Sends one packet. Never blocks.
    fn send(&mut self, packet: Pieces<'_>) -> Sent;

    /// Sends on its way what was gathered. The worker calls this in each turn when it has sent all
    /// that it will, be it nothing; until then a sent packet may wait in the queue. `Some` is when
    /// the queue wants to be called again at the latest, whether there is anything to send or not.
    fn flush(&mut self) -> Option<Instant> {
        None
    }

    /// Whether what comes is put into the driver's ring by others
    /// ([`Inlet`](crate::datapath::Inlet)). The worker never calls `receive` then.
    fn pushes(&self) -> bool {
        false
    }

    /// Receives one packet. Never blocks. The worker always gives [`MAX_PACKET`] octets of room,
    /// its own memory behind the guest's if need be; a packet that fills less room than that to
    /// the last octet may have been cut, and is `Dropped(DropReason::TooLong)`.
    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received;

    /// Whether the queue takes part in receiving; one that does not gets no packets steered to it
    /// and loses those that wait in it. The first queue always takes part, the others not until
    /// they are told to. Sending goes on either way.
    fn set_active(&mut self, active: bool) -> io::Result<()> {
        let _ = active;
        Ok(())
    }
}

/// An uplink, opened.
pub trait Uplink: Send + Sync + Debug {
    /// The offloads it can honour, both ways.
    fn offloads(&self) -> Offloads;

    /// Takes the queues, one a worker; a second call finds none.
    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>>;

    /// Makes the uplink's packets what the driver accepts. Called when the driver has negotiated
    /// and whenever it changes its mind.
    fn negotiate(&self, negotiated: Negotiated) -> io::Result<()>;

    /// Takes note of how the driver wants packets hashed, and perhaps spread over its queues. It is of
    /// concern only to an uplink that puts packets in itself ([`UplinkQueue::pushes`]); for others the
    /// data path hashes each packet and takes it where it belongs.
    fn set_hashing(&self, hashing: Option<&Arc<Hashing>>) {
        let _ = hashing;
    }

    /// Shows the far side whether our cable is in.
    fn set_link(&self, up: bool) -> io::Result<()> {
        let _ = up;
        Ok(())
    }
}
