// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control queue (VIRTIO 1.3, 5.1.6.5), on a thread of its own.
//!
//! Commands are rare, so the ring is virtio-queue's. Each is copied out whole before it is looked
//! at: the driver cannot change it under the device's eyes. The acknowledgement is the first
//! writable octet. Locks are taken in the order control queue, driver's state, pair.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use rustix::event::epoll::{Event, EventFlags};
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::nic::control::VIRTIO_NET_ERR;
use crate::ring::memory::MemoryMap;
use crate::ring::split::{MAX_SIZE, RingError};

use super::agreement::Agreement;
use super::notify::Interrupt;
use super::wait_set::{Sleep, WaitSet};
use super::{RingSetup, StartError, Turn};

/// The longest command that is looked at: a MAC table far larger than the filter's.
const MAX_COMMAND: u64 = 64 * 1024;
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
    map: Arc<MemoryMap>,
    queue: Queue,
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
    pub fn start(&self, index: usize, setup: RingSetup) -> Result<(), StartError> {
        let queue = queue(&setup).map_err(StartError::Ring)?;
        let mut state = self.state.lock();
        self.retire(&mut state);
        if let Some(kick) = &setup.kick {
            self.wait
                .watch(kick.as_fd(), KICK, EventFlags::IN)
                .map_err(StartError::Kick)?;
        }
        state.active = Some(Active {
            index,
            map: setup.map,
            queue,
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

    /// Lets go of the ring; the available index to go on from.
    fn retire(&self, state: &mut State) -> Option<u16> {
        let active = state.active.take()?;
        if let Some(kick) = &active.kick {
            self.wait.unwatch(kick.as_fd());
        }
        Some(active.queue.next_avail())
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

/// The ring as virtio-queue sees it.
fn queue(setup: &RingSetup) -> Result<Queue, RingError> {
    let layout = setup.layout;
    let memory = setup.map.guest();
    let bad_area = |area, addr| move |_| RingError::BadArea(area, addr);
    let bad_size = |_| RingError::BadSize(layout.size);
    let mut queue = Queue::new(MAX_SIZE).map_err(bad_size)?;
    queue.try_set_size(layout.size).map_err(bad_size)?;
    queue
        .try_set_desc_table_address(GuestAddress(layout.desc))
        .map_err(bad_area("descriptor table", layout.desc))?;
    queue
        .try_set_avail_ring_address(GuestAddress(layout.avail))
        .map_err(bad_area("available ring", layout.avail))?;
    queue
        .try_set_used_ring_address(GuestAddress(layout.used))
        .map_err(bad_area("used ring", layout.used))?;
    queue.set_event_idx(layout.event_idx);
    queue.set_next_avail(setup.next_avail);
    let used = queue
        .used_idx(memory, Ordering::Acquire)
        .map_err(bad_area("used ring", layout.used))?;
    queue.set_next_used(used.0);
    queue.set_ready(true);
    if queue.is_valid(memory) {
        Ok(queue)
    } else {
        Err(RingError::BadArea("ring", layout.desc))
    }
}

impl Active {
    /// Carries out the commands that wait. An error means that the ring makes no sense: virtio-queue
    /// would report chains that it cannot give out, for ever.
    fn serve(&mut self, agreement: &Agreement) -> Result<Turn, QueueError> {
        let map = self.map.clone();
        let memory = map.guest();
        let mut turn = Turn::More;
        let mut used = false;
        for _ in 0..BUDGET {
            let Some(chain) = self.queue.iter(memory)?.next() else {
                if self.queue.enable_notification(memory)? {
                    continue;
                }
                turn = Turn::Waits;
                break;
            };
            let head = chain.head_index();
            let written = answer(memory, chain, agreement).unwrap_or_else(|e| {
                log::debug!("control queue: command without room for an answer: {e}");
                0
            });
            self.queue.add_used(memory, head, written)?;
            used = true;
        }
        if used && self.queue.needs_notification(memory)? {
            self.interrupt.signal();
        }
        Ok(turn)
    }
}

/// Reads one command, carries it out and writes the answer; tells how much was written.
fn answer(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    agreement: &Agreement,
) -> io::Result<u32> {
    let mut writer = chain.clone().writer(memory).map_err(io::Error::other)?;
    let mut command = Vec::new();
    let ack = match chain.reader(memory) {
        Ok(reader) => match reader.take(MAX_COMMAND).read_to_end(&mut command) {
            Ok(_) => agreement.command(&command),
            Err(_) => VIRTIO_NET_ERR,
        },
        Err(_) => VIRTIO_NET_ERR,
    };
    writer.write_all(&[ack])?;
    Ok(1)
}
