// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The interface behind the queues: what it was told, and how it is got hold of again.
//!
//! # Design
//! When an interface is deleted, the kernel lets go of the descriptors that were its queues, and they
//! can become queues of another. So one that is made again under the same name is taken with the
//! descriptors that are there: workers go on watching what they watch. It knows nothing of what the
//! one before was told, so that is kept here, and told again before a packet passes: until then
//! [`Interface::is_attached`] is false, and queues leave their descriptors alone. A packet behind a
//! header of another size would be garbled.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::error::{TapError, TapErrorKind};
use super::ioctl;
use super::name::InterfaceName;
use super::open::{self, Taken};
use crate::nic::header::HASHLESS_HEADER;
use crate::nic::offload::Offloads;

/// A tap interface and its queues' descriptors.
#[derive(Debug)]
pub(super) struct Interface {
    name: InterfaceName,
    fds: Vec<Arc<OwnedFd>>,
    /// The first queue, always attached: it sends for those that are not.
    first: Arc<OwnedFd>,
    settings: Mutex<Settings>,
    /// The interface is there and knows the settings.
    attached: AtomicBool,
    /// As in the settings, for the queues.
    header_len: AtomicUsize,
    /// Whether the driver takes checksum flags in the header, for the queues.
    checksum_flags: AtomicBool,
}

/// What the interface was told.
#[derive(Debug)]
struct Settings {
    header_len: usize,
    offloads: Offloads,
    link: bool,
    /// Which queues get packets.
    active: Vec<bool>,
}

/// How an attempt to get hold of an interface again has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It is there, and has this number.
    Attached(u32),
    /// There is none of that name.
    Missing,
    /// Another process has it, perhaps the one that makes it.
    Busy,
}

impl Interface {
    /// An interface whose queues these are, in order, all attached. Only the first gets packets, as
    /// after a reset, when only the first pair is in use (VIRTIO 1.3, 5.1.5).
    pub fn new(name: InterfaceName, fds: Vec<OwnedFd>) -> Result<Self, TapErrorKind> {
        let fds: Vec<_> = fds.into_iter().map(Arc::new).collect();
        let first = fds.first().ok_or(TapErrorKind::QueueCount)?;
        let interface = Interface {
            name,
            first: Arc::clone(first),
            settings: Mutex::new(Settings {
                header_len: HASHLESS_HEADER,
                offloads: Offloads::NONE,
                link: true,
                active: (0..fds.len()).map(|queue| queue == 0).collect(),
            }),
            attached: AtomicBool::new(true),
            header_len: AtomicUsize::new(HASHLESS_HEADER),
            checksum_flags: AtomicBool::new(false),
            fds,
        };
        interface.tell(&interface.settings.lock())?;
        Ok(interface)
    }

    pub fn name(&self) -> &InterfaceName {
        &self.name
    }

    /// The queues' descriptors.
    pub fn fds(&self) -> &[Arc<OwnedFd>] {
        &self.fds
    }

    pub fn first(&self) -> &Arc<OwnedFd> {
        &self.first
    }

    /// Octets of the virtio-net header.
    pub fn header_len(&self) -> usize {
        self.header_len.load(Ordering::Relaxed)
    }

    /// Whether the driver takes checksum flags in the header.
    pub fn checksum_flags(&self) -> bool {
        self.checksum_flags.load(Ordering::Relaxed)
    }

    /// Whether packets may pass.
    pub fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// Whether the descriptors belong to an interface.
    pub fn is_there(&self) -> bool {
        ioctl::has_interface(self.first.as_fd())
    }

    /// What is wrong, with the interface's name and what helps.
    pub fn error(&self, kind: TapErrorKind) -> TapError {
        TapError {
            name: self.name.clone(),
            // As many as were asked for, which is no more.
            queue_pairs: u16::try_from(self.fds.len()).unwrap_or(u16::MAX),
            kind,
        }
    }

    /// Sets what the driver accepts.
    pub fn negotiate(&self, header_len: usize, offloads: Offloads) -> io::Result<()> {
        let mut settings = self.settings.lock();
        let octets = libc::c_int::try_from(header_len).map_err(io::Error::other)?;
        self.call("cannot set the header's size (TUNSETVNETHDRSZ)", |fd| {
            ioctl::set_header_len(fd, octets)
        })?;
        self.call("cannot set the offloads (TUNSETOFFLOAD)", |fd| {
            ioctl::set_offload(fd, open::offload_flags(offloads))
        })?;
        (settings.header_len, settings.offloads) = (header_len, offloads);
        self.header_len.store(header_len, Ordering::Relaxed);
        let checksums = offloads.contains(Offloads::CSUM);
        self.checksum_flags.store(checksums, Ordering::Relaxed);
        Ok(())
    }

    /// Shows the host whether the cable is in.
    pub fn set_link(&self, up: bool) -> io::Result<()> {
        let mut settings = self.settings.lock();
        settings.link = up;
        self.call("cannot show the link's state (TUNSETCARRIER)", |fd| {
            ioctl::set_carrier(fd, up)
        })
    }

    /// Has a queue, other than the first, get packets or not.
    pub fn set_active(&self, queue: usize, active: bool) -> io::Result<()> {
        let mut settings = self.settings.lock();
        let (Some(fd), Some(is)) = (self.fds.get(queue), settings.active.get_mut(queue)) else {
            return Ok(());
        };
        let what = if active {
            "cannot attach a queue (TUNSETQUEUE)"
        } else {
            "cannot detach a queue (TUNSETQUEUE)"
        };
        self.call(what, |_| ioctl::set_attached(fd.as_fd(), active))?;
        *is = active;
        Ok(())
    }

    /// A control call, if there is an interface; the next one is told what the settings say.
    fn call(
        &self,
        what: &str,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.is_attached() {
            return Ok(());
        }
        match call(self.first.as_fd()) {
            Err(e) if self.is_there() => Err(io::Error::new(
                e.kind(),
                format!("tap {}: {what}: {e}", self.name),
            )),
            // It was deleted just now.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Takes note that the interface is no more.
    pub fn lose(&self) {
        self.attached.store(false, Ordering::Release);
    }

    /// Gets hold of the interface that has the name now, after the one before was lost.
    pub fn attach_again(&self) -> Result<Again, TapErrorKind> {
        // So that what is said meanwhile is told to the one or the other.
        let settings = self.settings.lock();
        match open::attach_again(&self.name, &self.fds)? {
            Taken::Missing => return Ok(Again::Missing),
            Taken::Busy => return Ok(Again::Busy),
            Taken::All => {}
        }
        let index = open::index_of(&self.name)?;
        match (self.tell(&settings), index) {
            (Ok(()), Some(index)) => {
                self.attached.store(true, Ordering::Release);
                Ok(Again::Attached(index))
            }
            (Err(e), Some(_)) if self.is_there() => Err(e),
            // Deleted again, which will be heard of.
            _ => Ok(Again::Missing),
        }
    }

    /// Tells the interface, all of whose queues are attached, what the settings say.
    fn tell(&self, settings: &Settings) -> Result<(), TapErrorKind> {
        let system = |what| move |source| TapErrorKind::System { what, source };
        let first = self.first.as_fd();
        let octets = libc::c_int::try_from(settings.header_len)
            .map_err(io::Error::other)
            .map_err(system("cannot set the header's size"))?;
        ioctl::set_little_endian(first).map_err(system(
            "cannot make the header little-endian (TUNSETVNETLE)",
        ))?;
        ioctl::set_header_len(first, octets)
            .map_err(system("cannot set the header's size (TUNSETVNETHDRSZ)"))?;
        ioctl::set_offload(first, open::offload_flags(settings.offloads))
            .map_err(system("cannot set the offloads (TUNSETOFFLOAD)"))?;
        if !settings.link {
            ioctl::set_carrier(first, false)
                .map_err(system("cannot show the link's state (TUNSETCARRIER)"))?;
        }
        for (fd, active) in self.fds.iter().zip(&settings.active) {
            if !active {
                ioctl::set_attached(fd.as_fd(), false)
                    .map_err(system("cannot detach a queue (TUNSETQUEUE)"))?;
            }
        }
        Ok(())
    }
}
