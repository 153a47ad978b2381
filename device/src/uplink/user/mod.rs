// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An uplink that needs no privilege: passt, which plays the network and does with plain sockets
//! what the guest does with packets.
//!
//! # Design
//! passt runs as a child and talks over a socket pair, in the framing of QEMU's stream sockets:
//! a length, a frame. There is no virtio-net header on that socket, so nothing can be left
//! unfinished in either direction, and there is one stream, so there is one queue pair.
//!
//! passt may end at any time. A thread (`keeper`) sleeps until it does and starts another; the
//! queue sees an empty slot (`slot`) meanwhile and drops what it is given. Frames gather in
//! buffers (`framing`), so that one system call moves many.
//!
//! # Limitations
//! * There is no option for more arguments to passt (forwarded ports, say): name a script with
//!   `--passt` that ends in `exec passt "$@" --tcp-ports 2222:22`.
//! * Frames that were on their way when passt ended are lost without being counted.
//! * passt sends a datagram from the outside as one frame however large it is, up to 64 KiB. One
//!   that does not fit the driver's buffers is dropped there, and counted.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::{ETHERNET_HEADER, Negotiated, OnCarrier, OpenOptions, Received, Sent};
use super::{Uplink, UplinkQueue};
use crate::nic::counters::DropReason;
use crate::nic::header::{HASHLESS_HEADER, VirtioNetHdr};
use crate::nic::offload::Offloads;
use crate::ring::pieces::{Pieces, PiecesMut};

mod child;
mod error;
mod framing;
mod keeper;
mod slot;

use child::Program;
pub use child::{Ending, MAX_MTU};
pub use error::UserError;
use framing::{FrameReader, FrameWriter, MAX_FRAME, PushError};
use keeper::Keeper;
use slot::{Complaint, Slot};

/// The header's size until a driver has been negotiated with, and as much of it as is looked at.
const HEADER: usize = HASHLESS_HEADER;
/// Octets that gather before they are written without waiting for the turn's end.
const WRITE_AT: usize = 32 * 1024;

/// A user-mode network.
#[derive(Debug)]
pub struct User {
    header_len: Arc<AtomicUsize>,
    queue: Option<UserQueue>,
    /// Ends passt when the uplink goes.
    _keeper: Keeper,
}

impl User {
    /// Starts passt.
    pub fn open(options: &OpenOptions, on_carrier: OnCarrier) -> Result<User, UserError> {
        if options.queue_pairs != 1 {
            return Err(UserError::QueuePairs(options.queue_pairs));
        }
        let program = Program {
            path: options
                .passt
                .clone()
                .unwrap_or_else(|| PathBuf::from("passt")),
            mtu: options.mtu,
        };
        let slot = Slot::new().map_err(|source| UserError::System {
            what: "cannot make an epoll descriptor",
            source,
        })?;
        let slot = Arc::new(slot);
        let header_len = Arc::new(AtomicUsize::new(HEADER));
        let keeper = Keeper::start(program, Arc::clone(&slot), on_carrier)?;
        Ok(User {
            header_len: Arc::clone(&header_len),
            queue: Some(UserQueue {
                header_len,
                slot,
                generation: 0,
                socket: None,
                waits_for_room: false,
                reader: FrameReader::new(),
                writer: FrameWriter::new(),
            }),
            _keeper: keeper,
        })
    }
}

impl Uplink for User {
    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    fn take_queues(&mut self) -> Vec<Box<dyn UplinkQueue>> {
        self.queue
            .take()
            .map(|queue| Box::new(queue) as Box<dyn UplinkQueue>)
            .into_iter()
            .collect()
    }

    fn negotiate(&self, negotiated: Negotiated) -> io::Result<()> {
        self.header_len
            .store(negotiated.header_len, Ordering::Relaxed);
        Ok(())
    }
}

/// The queue: both directions of the stream.
#[derive(Debug)]
struct UserQueue {
    header_len: Arc<AtomicUsize>,
    slot: Arc<Slot>,
    /// Of the socket below.
    generation: u64,
    socket: Option<Arc<OwnedFd>>,
    /// The socket was full, and is watched for room.
    waits_for_room: bool,
    reader: FrameReader,
    writer: FrameWriter,
}

impl UserQueue {
    /// Takes the new socket, if there is one.
    fn look(&mut self) {
        if self.slot.generation() != self.generation {
            (self.generation, self.socket) = self.slot.take_new();
            self.waits_for_room = false;
            self.reader.clear();
            self.writer.clear();
        }
    }

    /// Lets go of a socket that is of no use any more, and says why.
    fn give_up(&mut self, complaint: Complaint) {
        self.socket = None;
        self.slot.complain(self.generation, complaint);
    }

    /// Writes what waits, as far as the socket takes it.
    fn write(&mut self) {
        let Some(socket) = &self.socket else {
            return;
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let result = self.writer.flush(|octets| {
            loop {
                match send(socket, octets, flags) {
                    Err(Errno::INTR) => {}
                    other => return Ok(other?),
                }
            }
        });
        match result {
            Ok(()) if self.waits_for_room => {
                self.waits_for_room = false;
                self.slot.watch_output(socket, false);
            }
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !self.waits_for_room {
                    self.waits_for_room = true;
                    self.slot.watch_output(socket, true);
                }
            }
            Err(_) => self.give_up(Complaint::Closed),
        }
    }

    /// Reads once from the socket; whether anything came.
    fn read(&mut self) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        let result = self.reader.fill(|room| {
            loop {
                match recv(socket, &mut *room, RecvFlags::DONTWAIT) {
                    Err(Errno::INTR) => {}
                    other => return Ok(other?.0),
                }
            }
        });
        match result {
            Ok(0) => self.give_up(Complaint::Closed),
            Ok(_) => return true,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.give_up(Complaint::Closed),
        }
        false
    }
}

impl UplinkQueue for UserQueue {
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.slot.poll_fd())
    }

    fn send(&mut self, packet: Pieces<'_>) -> Sent {
        self.look();
        let header_len = self.header_len.load(Ordering::Relaxed);
        let frame_len = match packet.len().checked_sub(header_len) {
            Some(len) if len < ETHERNET_HEADER => return Sent::Dropped(DropReason::TooShort),
            Some(len) if len <= MAX_FRAME => len,
            Some(_) => return Sent::Dropped(DropReason::TooLong),
            None => return Sent::Dropped(DropReason::TooShort),
        };
        let mut head = [0; HEADER];
        packet.copy_to(0, &mut head);
        match VirtioNetHdr::decode(&head) {
            Some(header) if header.validate(frame_len, Offloads::NONE).is_ok() => {}
            _ => return Sent::Dropped(DropReason::BadHeader),
        }
        loop {
            if self.socket.is_none() {
                return Sent::Dropped(DropReason::UplinkError);
            }
            let copy = |room: &mut [u8]| packet.copy_to(header_len, room);
            match self.writer.push(frame_len, copy) {
                Ok(()) => break,
                Err(PushError::Short) => return Sent::Dropped(DropReason::BadDescriptor),
                Err(PushError::Full) => {
                    let before = self.writer.waiting();
                    self.write();
                    if self.socket.is_some() && self.writer.waiting() == before {
                        return Sent::Busy;
                    }
                }
            }
        }
        if self.writer.waiting() >= WRITE_AT && !self.waits_for_room {
            self.write();
        }
        Sent::Done
    }

    fn flush(&mut self) -> Option<Instant> {
        self.look();
        if self.writer.waiting() > 0 {
            self.write();
        }
        None
    }

    fn receive(&mut self, room: &mut PiecesMut<'_>) -> Received {
        self.look();
        loop {
            let header_len = self.header_len.load(Ordering::Relaxed);
            match self.reader.next() {
                Ok(Some(frame)) => return hand_over(frame, header_len, room),
                Ok(None) => {
                    if !self.read() {
                        return Received::Empty;
                    }
                }
                Err(bad) => {
                    self.reader.clear();
                    self.give_up(Complaint::OutOfStep(bad));
                    return Received::Dropped(DropReason::UplinkError);
                }
            }
        }
    }
}

fn hand_over(frame: &[u8], header_len: usize, room: &mut PiecesMut<'_>) -> Received {
    let len = header_len + frame.len();
    if frame.len() < ETHERNET_HEADER {
        return Received::Dropped(DropReason::TooShort);
    }
    if len > room.len() {
        return Received::Dropped(DropReason::TooLong);
    }
    // Nothing is left to be done, and the worker knows the number of buffers, and the hash with which
    // a longer header ends.
    let header = &[0; HEADER];
    room.copy_from(0, header.get(..header_len).unwrap_or(header));
    if room.copy_from(header_len, frame) == frame.len() {
        Received::Packet(len)
    } else {
        Received::Dropped(DropReason::BadDescriptor)
    }
}
