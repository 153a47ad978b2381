// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control queue (VIRTIO 1.3, 5.1.6.5), on a thread of its own.
//!
//! Each command is copied out whole before it is looked at: the driver cannot change it under the
//! device's eyes. The acknowledgement is the first writable octet. Locks are taken in the order
//! control queue, driver's state, pair.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::epoll::{Event, EventFlags};

use crate::nic::control::VIRTIO_NET_ERR;
use crate::ring::piece_list::PieceList;
use crate::ring::virtqueue::{Ring, RingError};

use super::agreement::Agreement;
use super::notify::Interrupt;
use super::wait_set::{Sleep, WaitSet};
use super::{RingSetup, StartError, Turn};

/// The longest command that is looked at: a MAC table far larger than the filter's.
const MAX_COMMAND: usize = 64 * 1024;
/// Commands carried out before others get the lock.
const BUDGET: usize = 64;
const KICK: u64 = 1;

/// The control queue and its thread's handle.
#[derive(Debug)]
pub(super) struct ControlQueue {
    agreement: Arc<Agreement>,
    wait: WaitSet,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    active: Option<Active>,
    end: bool,
}

#[derive(Debug)]
struct Active {
    index: usize,
    ring: Ring,
    /// The readable and the writable part of the command at hand.
    command: PieceList,
    answer: PieceList,
    kick: Option<OwnedFd>,
    interrupt: Interrupt,
}

impl ControlQueue {
    pub fn new(agreement: Arc<Agreement>) -> io::Result<Self> {
        Ok(ControlQueue {
            agreement,
            wait: WaitSet::new()?,
            state: Mutex::default(),
        })
    }

    /// Starts the ring, which has virtqueue index `index`.
    pub fn start(&self, index: usize, ring: Ring, setup: RingSetup) -> Result<(), StartError> {
        let mut state = self.state.lock();
        self.retire(&mut state);
        if let Some(kick) = &setup.kick {
            self.wait
                .watch(kick.as_fd(), KICK, EventFlags::IN)
                .map_err(StartError::Kick)?;
        }
        state.active = Some(Active {
            index,
            ring,
            command: PieceList::new(setup.map.clone()),
            answer: PieceList::new(setup.map),
            kick: setup.kick,
            interrupt: Interrupt::new(setup.call),
        });
        drop(state);
        // What the driver made available before the ring was ours is not notified again.
        self.wait.wake();
        Ok(())
    }

    /// Stops the ring if it has virtqueue index `index`.
    pub fn stop(&self, index: usize) -> Option<u16> {
        let mut state = self.state.lock();
        state
            .active
            .as_ref()
            .filter(|active| active.index == index)?;
        self.retire(&mut state)
    }

    /// Lets go of the ring; tells where it stands.
    fn retire(&self, state: &mut State) -> Option<u16> {
        let active = state.active.take()?;
        if let Some(kick) = &active.kick {
            self.wait.unwatch(kick.as_fd());
        }
        Some(active.ring.next_avail())
    }

    /// Gives the ring another interrupt and raises it; gives `call` back if `index` is not ours.
    pub fn set_interrupt(&self, index: usize, call: Option<OwnedFd>) -> Option<Option<OwnedFd>> {
        let mut state = self.state.lock();
        match state.active.as_mut().filter(|active| active.index == index) {
            Some(active) => {
                active.interrupt = Interrupt::new(call);
                active.interrupt.signal();
                None
            }
            None => Some(call),
        }
    }

    /// Makes the thread end.
    pub fn end(&self) {
        self.state.lock().end = true;
        self.wait.wake();
    }

    /// The thread: serves the queue until told to end.
    pub fn run(&self) {
        let mut events = Vec::with_capacity(2);
        let mut next = Some(Sleep::Forever);
        while let Some(sleep) = next {
            next = self.round(&mut events, sleep);
        }
    }

    /// Sleeps until something happens, or so long, and serves the queue. How long to sleep next;
    /// `None` when told to end.
    fn round(&self, events: &mut Vec<Event>, sleep: Sleep) -> Option<Sleep> {
        if let Err(e) = self.wait.wait(events, sleep) {
            log::error!("control queue: {e}; it is not served any more");
            return None;
        }
        let mut state = self.state.lock();
        if state.end {
            return None;
        }
        let Some(active) = &mut state.active else {
            return Some(Sleep::Forever);
        };
        match active.serve(&self.agreement) {
            Ok(Turn::More) => Some(Sleep::No),
            Ok(Turn::Waits) => Some(Sleep::Forever),
            Err(e) => {
                log::error!("control queue stops until the driver resets it: {e}");
                self.retire(&mut state);
                Some(Sleep::Forever)
            }
        }
    }

    /// Serves the queue on the caller's thread until its own would sleep.
    #[cfg(test)]
    pub fn settle(&self) {
        let mut events = Vec::with_capacity(2);
        let mut next = Sleep::Forever;
        for _ in 0..1000 {
            if next == Sleep::Forever && !self.wait.is_ready() {
                return;
            }
            next = self.round(&mut events, Sleep::No).unwrap();
        }
        panic!("the control queue spins");
    }
}

impl Active {
    /// Carries out the commands that wait. An error means that the ring makes no sense.
    fn serve(&mut self, agreement: &Agreement) -> Result<Turn, RingError> {
        let mut turn = Turn::More;
        let mut used = false;
        self.ring.disarm();
        for _ in 0..BUDGET {
            self.command.clear();
            self.answer.clear();
            let chain = self.ring.pop_both(&mut self.command, &mut self.answer)?;
            let Some(chain) = chain else {
                if self.ring.arm()? {
                    continue;
                }
                turn = Turn::Waits;
                break;
            };
            let written = match chain.len {
                Some(_) => self.answer(agreement),
                None => {
                    log::debug!("control queue: a command that breaks the rules");
                    0
                }
            };
            self.ring.push(chain.head, written);
            used = true;
        }
        self.ring.publish();
        if used && self.ring.interrupt_wanted() == Some(true) {
            self.interrupt.signal();
        }
        Ok(turn)
    }

    /// Carries out the command at hand and writes the answer; tells how much was written.
    fn answer(&mut self, agreement: &Agreement) -> u32 {
        if self.answer.is_empty() {
            log::debug!("control queue: a command without room for an answer");
            return 0;
        }
        let packet = self.command.packet();
        let mut answer = Vec::with_capacity(16);
        if packet.len() <= MAX_COMMAND {
            let mut command = vec![0; packet.len()];
            packet.copy_to(0, &mut command);
            let outcome = agreement.command(&command);
            answer.push(outcome.ack);
            answer.extend(outcome.result);
        } else {
            agreement.refuse_command();
            answer.push(VIRTIO_NET_ERR);
        }
        // A driver that has less room gets what fits.
        let written = self.answer.room().copy_from(0, &answer);
        // An answer is shorter than 4 GiB, as a command of bounded length asks for it.
        u32::try_from(written).unwrap_or(u32::MAX)
    }
}
