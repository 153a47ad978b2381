// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The socket to the passt that runs now, which is another one after each restart.
//!
//! The worker must watch the same descriptor from start to end. It watches an epoll descriptor,
//! in which the slot keeps the current socket. The worker looks for a new socket with one load of
//! an atomic number a packet; the lock is taken only when there is one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::event::epoll;
use rustix::event::{EventfdFlags, eventfd};

use super::framing::BadLength;

/// Why the worker wants the passt that runs now to be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// It has closed its socket, and should be about to end.
    Closed,
    /// What it sends makes no sense.
    OutOfStep(BadLength),
}

/// The slot: the worker's queue on one side, the keeper of passt on the other.
#[derive(Debug)]
pub(super) struct Slot {
    poll: OwnedFd,
    /// In `poll`: readable when the worker has to look at the slot.
    wake: OwnedFd,
    /// Readable when the worker has complained.
    alarm: OwnedFd,
    /// Changes with the socket. Changed under the lock only.
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    socket: Option<Arc<OwnedFd>>,
    complaint: Option<Complaint>,
}

fn input() -> epoll::EventFlags {
    epoll::EventFlags::IN
}

fn ring(bell: &OwnedFd) {
    // Fails only when the counter is full, and then the descriptor is readable already.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

fn hear(bell: &OwnedFd) {
    // Fails only when nobody has rung.
    let _ = rustix::io::read(bell, &mut [0; 8]);
}

impl Slot {
    /// An empty slot.
    pub fn new() -> io::Result<Slot> {
        let bell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (poll, wake) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, bell()?);
        epoll::add(&poll, &wake, epoll::EventData::new_u64(0), input())?;
        Ok(Slot {
            poll,
            wake,
            alarm: bell()?,
            generation: AtomicU64::new(0),
            state: Mutex::new(State {
                socket: None,
                complaint: None,
            }),
        })
    }

    /// Puts a socket in, in place of any that is there, or takes that out.
    pub fn put(&self, socket: Option<OwnedFd>) -> io::Result<()> {
        let mut state = self.state.lock();
        if let Some(old) = state.socket.take() {
            // Fails only when it is not there.
            let _ = epoll::delete(&self.poll, &old);
        }
        state.complaint = None;
        hear(&self.alarm);
        let added = match socket {
            None => Ok(()),
            Some(socket) => {
                let data = epoll::EventData::new_u64(1);
                let added = epoll::add(&self.poll, &socket, data, input());
                state.socket = added.is_ok().then(|| Arc::new(socket));
                added
            }
        };
        self.generation.fetch_add(1, Ordering::Release);
        ring(&self.wake);
        Ok(added?)
    }

    /// What the worker watches.
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }

    /// The number of the socket that is in now.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The socket that is in now, with its number.
    pub fn take_new(&self) -> (u64, Option<Arc<OwnedFd>>) {
        let state = self.state.lock();
        hear(&self.wake);
        (self.generation(), state.socket.clone())
    }

    /// Has the worker woken when the socket takes output again, or no more.
    pub fn watch_output(&self, socket: &OwnedFd, watch: bool) {
        let flags = if watch {
            input() | epoll::EventFlags::OUT
        } else {
            input()
        };
        // Fails when the socket has just been taken out, and then there is a new one to look for.
        let _ = epoll::modify(&self.poll, socket, epoll::EventData::new_u64(1), flags);
    }

    /// The worker finds no sense in socket number `generation` any more.
    pub fn complain(&self, generation: u64, complaint: Complaint) {
        let mut state = self.state.lock();
        if generation == self.generation() {
            state.complaint = Some(complaint);
            ring(&self.alarm);
        }
    }

    /// Readable when there is a complaint.
    pub fn alarm(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// The complaint about the socket that is in now.
    pub fn take_complaint(&self) -> Option<Complaint> {
        hear(&self.alarm);
        self.state.lock().complaint.take()
    }
}
