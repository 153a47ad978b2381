// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the cable goes.
//!
//! Every packet crosses this seam as the virtio-net header (`header_len` octets, VIRTIO 1.3, 5.1.6)
//! followed by the Ethernet frame, in pieces of guest memory, so that an uplink that understands
//! the header (tap) moves a packet with one system call and no copy of ours.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use crate::nic::counters::DropReason;
use crate::nic::offload::Offloads;
use crate::ring::pieces::{Pieces, PiecesMut};

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
    /// Octets of the virtio-net header: 10 or 12 (5.1.6.1).
    pub header_len: usize,
    /// Offloads that the driver accepts on packets it receives.
    pub receive: Offloads,
}

/// One queue of an uplink; used by one worker thread.
pub trait UplinkQueue: Send + Debug {
    /// The descriptor that tells readiness. The worker watches it edge-triggered, for input and
    /// output, from start to end: it must stay the same. `None`: nothing ever comes by itself.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Sends one packet. Never blocks.
    fn send(&mut self, packet: Pieces<'_>) -> Sent;

    /// Receives one packet. Never blocks. A packet larger than the room is
    /// `Dropped(DropReason::TooLong)`; the worker always gives room for the largest.
    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received;

    /// Whether the queue takes part in receiving; one that does not gets no packets steered to it.
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

    /// Shows the far side whether our cable is in.
    fn set_link(&self, up: bool) -> io::Result<()> {
        let _ = up;
        Ok(())
    }
}
