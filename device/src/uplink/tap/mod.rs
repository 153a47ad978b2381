// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An uplink into the host's network: a tap interface.
//!
//! # Design
//! The tun driver speaks the virtio-net header (`IFF_VNET_HDR`), so a packet crosses with one
//! `readv` or `writev` straight from and to guest memory, and whatever the driver left unfinished
//! (checksums, segmentation) the kernel finishes where it has to. The other way the kernel is told
//! what the driver accepts (`TUNSETOFFLOAD`) and finishes the rest itself.
//!
//! A tap made with `multi_queue` has a descriptor for each queue. Only attached queues get
//! packets; the kernel steers a flow to the queue on which it last saw the flow's other direction.
//!
//! An interface that is deleted and made again under the same name is taken again (`interface`);
//! what is sent meanwhile is dropped and counted as an error of the uplink.
//!
//! # Limitations
//! * One that was moved to another network namespace is served there, but not taken again.
//! * A packet that comes in the moment in which an interface is taken again may wait in it: a NIC
//!   looks when the uplink is back, the port of a switch when the next packet comes.
//! * Another process that attaches to the same multi-queue tap takes a share of its packets; the
//!   kernel tells neither.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{ETHERNET_HEADER, MAX_PACKET, Negotiated, OnCarrier, Received, Sent};
use super::{Uplink, UplinkQueue};
use crate::nic::counters::DropReason;
use crate::nic::offload::Offloads;
use crate::ring::pieces::{MAX_PIECES, Pieces, PiecesMut};

mod carrier;
mod error;
mod interface;
mod ioctl;
mod name;
mod open;

use carrier::CarrierWatch;
pub use error::{TapError, TapErrorKind};
use interface::Interface;
pub use name::{BadInterfaceName, InterfaceName};

/// A tap interface, opened.
#[derive(Debug)]
pub struct Tap {
    interface: Arc<Interface>,
    offloads: Offloads,
    queues: Vec<TapQueue>,
    /// Ends the watch when the tap goes.
    _watch: CarrierWatch,
}

impl Tap {
    /// Opens `queue_pairs` queues of the interface, which is made if it is missing and we may.
    pub fn open(
        name: &InterfaceName,
        queue_pairs: u16,
        on_carrier: OnCarrier,
    ) -> Result<Tap, TapError> {
        Tap::try_open(name, queue_pairs, on_carrier).map_err(|kind| TapError {
            name: name.clone(),
            queue_pairs,
            kind,
        })
    }

    fn try_open(
        name: &InterfaceName,
        queue_pairs: u16,
        on_carrier: OnCarrier,
    ) -> Result<Tap, TapErrorKind> {
        let opened = open::open(name, queue_pairs)?;
        if opened.created {
            log::warn!(
                "tap {name}: made just now, and gone when ferronic ends; it needs \
                 'ip link set {name} up' and an address or a bridge"
            );
        }
        let offloads = match opened.queues.first() {
            Some(first) => open::probe_offloads(first)?,
            None => return Err(TapErrorKind::QueueCount),
        };
        let interface = Arc::new(Interface::new(name.clone(), opened.queues)?);
        let queue = |(index, fd): (usize, &Arc<OwnedFd>)| TapQueue {
            interface: Arc::clone(&interface),
            index,
            fd: Arc::clone(fd),
            active: index == 0,
        };
        let queues = interface.fds().iter().enumerate().map(queue).collect();
        let watch = CarrierWatch::start(opened.index, Arc::clone(&interface), on_carrier).map_err(
            |source| TapErrorKind::System {
                what: "cannot watch the interface's state (rtnetlink)",
                source,
            },
        )?;
        Ok(Tap {
            interface,
            offloads,
            queues,
            _watch: watch,
        })
    }
}

impl Uplink for Tap {
    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        self.queues
            .drain(..)
            .map(|queue| Box::new(queue) as Box<dyn UplinkQueue>)
            .collect()
    }

    fn negotiate(&self, negotiated: Negotiated) -> io::Result<()> {
        let accepted = negotiated.receive & self.offloads;
        self.interface.negotiate(negotiated.header_len, accepted)
    }

    fn set_link(&self, up: bool) -> io::Result<()> {
        self.interface.set_link(up)
    }
}

/// One queue of a tap.
#[derive(Debug)]
struct TapQueue {
    interface: Arc<Interface>,
    index: usize,
    fd: Arc<OwnedFd>,
    active: bool,
}

impl UplinkQueue for TapQueue {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        if !self.interface.is_attached() {
            return Sent::Dropped(DropReason::UplinkError);
        }
        let shortest = self.interface.header_len() + ETHERNET_HEADER;
        if packet.len() < shortest {
            return Sent::Dropped(DropReason::TooShort);
        }
        if packet.count() > MAX_PIECES {
            return Sent::Dropped(DropReason::BadDescriptor);
        }
        let fd = if self.active {
            &self.fd
        } else {
            self.interface.first()
        };
        loop {
            let error = match packet.write_to(fd) {
                Ok(_) => return Sent::Done,
                Err(error) => error,
            };
            return match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) => Sent::Busy,
                Some(libc::EINVAL) => Sent::Dropped(DropReason::BadHeader),
                Some(libc::EMSGSIZE) => Sent::Dropped(DropReason::TooLong),
                Some(libc::ENOMEM | libc::ENOBUFS) => Sent::Dropped(DropReason::UplinkFull),
                // The guest took its memory away.
                Some(libc::EFAULT) => Sent::Dropped(DropReason::BadDescriptor),
                // EIO: the interface is down; EBADFD: it is no more. The carrier watch says so.
                _ => Sent::Dropped(DropReason::UplinkError),
            };
        }
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        // A detached queue reads as a deleted interface would.
        if !self.active || !self.interface.is_attached() {
            return Received::Empty;
        }
        loop {
            let error = match room.read_from(&self.fd) {
                // The kernel cuts a packet to the room and does not tell.
                Ok(len) if len == room.len() && len < MAX_PACKET => {
                    return Received::Dropped(DropReason::TooLong);
                }
                Ok(len) => {
                    if !self.interface.checksum_flags() {
                        // The kernel notes checksums that it has verified even so; the driver
                        // must find no flags (5.1.6.4.1).
                        room.copy_from(0, &[0]);
                    }
                    return Received::Packet(len);
                }
                Err(error) => error,
            };
            return match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN) => Received::Empty,
                // The guest took its memory away: the packet is lost, others may fare better.
                Some(libc::EFAULT) => Received::Dropped(DropReason::BadDescriptor),
                // Nothing was taken from the queue, and trying again at once would not help.
                _ => Received::Empty,
            };
        }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if self.index == 0 || active == self.active {
            return Ok(());
        }
        self.interface.set_active(self.index, active)?;
        self.active = active;
        Ok(())
    }
}
