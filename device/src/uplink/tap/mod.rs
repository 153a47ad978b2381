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
//! # Limitations
//! * An interface that is deleted stays lost until the process is started again.
//! * Another process that attaches to the same multi-queue tap takes a share of its packets; the
//!   kernel tells neither.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::{ETHERNET_HEADER, MAX_PACKET, Negotiated, OnCarrier, Received, Sent};
use super::{Uplink, UplinkQueue};
use crate::nic::counters::DropReason;
use crate::nic::offload::Offloads;
use crate::ring::pieces::{MAX_PIECES, Pieces, PiecesMut};

mod carrier;
mod error;
mod ioctl;
mod name;
mod open;

use carrier::CarrierWatch;
pub use error::{TapError, TapErrorKind};
pub use name::{BadInterfaceName, InterfaceName};

/// The header until a driver has been negotiated with: that of VIRTIO 1 (5.1.6).
const DEFAULT_HEADER: usize = 12;

/// What the queues need to know of each other and of the driver.
#[derive(Debug)]
struct Shared {
    name: InterfaceName,
    /// [`Negotiated::header_len`].
    header_len: AtomicUsize,
    /// Whether the driver takes checksum flags in the header.
    checksum_flags: AtomicBool,
    /// The interface is no more.
    gone: AtomicBool,
}

impl Shared {
    fn note_gone(&self) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            log::error!("tap {}: the interface is gone under us", self.name);
        }
    }
}

/// A tap interface, opened.
#[derive(Debug)]
pub struct Tap {
    shared: Arc<Shared>,
    first: Arc<OwnedFd>,
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
        let system = |what| move |source| TapErrorKind::System { what, source };
        let opened = open::open(name, queue_pairs)?;
        if opened.created {
            log::warn!(
                "tap {name}: made just now, and gone when ferronic ends; it needs \
                 'ip link set {name} up' and an address or a bridge"
            );
        }
        let shared = Arc::new(Shared {
            name: name.clone(),
            header_len: AtomicUsize::new(DEFAULT_HEADER),
            checksum_flags: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        let mut fds = opened.queues.into_iter().map(Arc::new);
        let first = fds.next().ok_or(TapErrorKind::QueueCount)?;
        let offloads = open::probe_offloads(&first)?;
        ioctl::set_little_endian(first.as_fd()).map_err(system(
            "cannot make the header little-endian (TUNSETVNETLE)",
        ))?;
        ioctl::set_header_len(first.as_fd(), DEFAULT_HEADER as libc::c_int)
            .map_err(system("cannot set the header's size (TUNSETVNETHDRSZ)"))?;
        let mut queues = vec![TapQueue {
            shared: Arc::clone(&shared),
            fd: Arc::clone(&first),
            first: Arc::clone(&first),
            detachable: false,
            active: true,
        }];
        for fd in fds {
            // As after a reset, when only the first pair is in use (VIRTIO 1.3, 5.1.5).
            ioctl::set_attached(fd.as_fd(), false)
                .map_err(system("cannot detach a queue (TUNSETQUEUE)"))?;
            queues.push(TapQueue {
                shared: Arc::clone(&shared),
                fd,
                first: Arc::clone(&first),
                detachable: opened.multi_queue,
                active: false,
            });
        }
        let watch = CarrierWatch::start(name, opened.index, Arc::clone(&first), on_carrier)
            .map_err(system("cannot watch the interface's state (rtnetlink)"))?;
        Ok(Tap {
            shared,
            first,
            offloads,
            queues,
            _watch: watch,
        })
    }

    /// Adds the interface and what was tried to a failed control call.
    fn explain(&self, what: &str, error: io::Error) -> io::Error {
        io::Error::new(
            error.kind(),
            format!("tap {}: {what}: {error}", self.shared.name),
        )
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
        let header_len = libc::c_int::try_from(negotiated.header_len).map_err(io::Error::other)?;
        ioctl::set_header_len(self.first.as_fd(), header_len)
            .map_err(|e| self.explain("cannot set the header's size (TUNSETVNETHDRSZ)", e))?;
        let accepted = negotiated.receive & self.offloads;
        ioctl::set_offload(self.first.as_fd(), open::offload_flags(accepted))
            .map_err(|e| self.explain("cannot set the offloads (TUNSETOFFLOAD)", e))?;
        self.shared
            .header_len
            .store(negotiated.header_len, Ordering::Relaxed);
        self.shared
            .checksum_flags
            .store(accepted.contains(Offloads::CSUM), Ordering::Relaxed);
        Ok(())
    }

    fn set_link(&self, up: bool) -> io::Result<()> {
        ioctl::set_carrier(self.first.as_fd(), up)
            .map_err(|e| self.explain("cannot show the link's state (TUNSETCARRIER)", e))
    }
}

/// One queue of a tap.
#[derive(Debug)]
struct TapQueue {
    shared: Arc<Shared>,
    fd: Arc<OwnedFd>,
    /// The first queue, always attached: it sends for those that are not.
    first: Arc<OwnedFd>,
    detachable: bool,
    active: bool,
}

impl UplinkQueue for TapQueue {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        let shortest = self.shared.header_len.load(Ordering::Relaxed) + ETHERNET_HEADER;
        if packet.len() < shortest {
            return Sent::Dropped(DropReason::TooShort);
        }
        if packet.count() > MAX_PIECES {
            return Sent::Dropped(DropReason::BadDescriptor);
        }
        let fd = if self.active { &self.fd } else { &self.first };
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
                Some(libc::EBADFD) => {
                    self.shared.note_gone();
                    Sent::Dropped(DropReason::UplinkError)
                }
                // EIO: the interface is down; the carrier watch has said so.
                _ => Sent::Dropped(DropReason::UplinkError),
            };
        }
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        // A detached queue reads as a deleted interface would.
        if !self.active {
            return Received::Empty;
        }
        loop {
            let error = match room.read_from(&self.fd) {
                // The kernel cuts a packet to the room and does not tell.
                Ok(len) if len == room.len() && len < MAX_PACKET => {
                    return Received::Dropped(DropReason::TooLong);
                }
                Ok(len) => {
                    if !self.shared.checksum_flags.load(Ordering::Relaxed) {
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
                Some(libc::EBADFD) => {
                    self.shared.note_gone();
                    Received::Empty
                }
                // Nothing was taken from the queue, and trying again at once would not help.
                _ => Received::Empty,
            };
        }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if !self.detachable || active == self.active {
            return Ok(());
        }
        ioctl::set_attached(self.fd.as_fd(), active).map_err(|e| {
            let what = if active { "attach" } else { "detach" };
            io::Error::new(
                e.kind(),
                format!(
                    "tap {}: cannot {what} a queue (TUNSETQUEUE): {e}",
                    self.shared.name
                ),
            )
        })?;
        self.active = active;
        Ok(())
    }
}
