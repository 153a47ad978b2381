// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control queue (VIRTIO 1.3, 5.1.6.5), on a thread of its own.
//!
//! Commands are rare, so the ring is virtio-queue's. Each is copied out whole before it is looked
//! at: the driver cannot change it under the device's eyes. The acknowledgement is the first
//! writable octet.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::nic::control::VIRTIO_NET_ERR;
use crate::ring::memory::MemoryMap;
use crate::ring::split::{MAX_SIZE, RingError};

use super::agreement::Agreement;
use super::{RingSetup, StartError};

/// The longest command that is looked at: a MAC table far larger than the filter's.
const MAX_COMMAND: u64 = 64 * 1024;

/// The control queue and its thread's handle.
#[derive(Debug)]
pub(super) struct ControlQueue {
    agreement: Arc<Agreement>,
    wake: OwnedFd,
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
    kick: Option<Arc<OwnedFd>>,
    call: Option<OwnedFd>,
}

impl ControlQueue {
    pub fn new(agreement: Arc<Agreement>) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(ControlQueue {
            agreement,
            wake,
            state: Mutex::default(),
        })
    }

    fn wake(&self) {
        // An eventfd refuses only when its counter is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Starts the ring, which has virtqueue index `index`.
    pub fn start(&self, index: usize, setup: RingSetup) -> Result<(), StartError> {
        let layout = setup.layout;
        let bad_area = |area, addr| move |_| StartError::Ring(RingError::BadArea(area, addr));
        let bad_size = |_| StartError::Ring(RingError::BadSize(layout.size));
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
            .used_idx(setup.map.guest(), std::sync::atomic::Ordering::Acquire)
            .map_err(bad_area("used ring", layout.used))?;
        queue.set_next_used(used.0);
        queue.set_ready(true);
        if !queue.is_valid(setup.map.guest()) {
            return Err(StartError::Ring(RingError::BadArea("ring", layout.desc)));
        }
        let active = Active {
            index,
            map: setup.map,
            queue,
            kick: setup.kick.map(Arc::new),
            call: setup.call,
        };
        self.state.lock().active = Some(active);
        self.wake();
        Ok(())
    }

    /// Stops the ring if it has virtqueue index `index`.
    pub fn stop(&self, index: usize) -> Option<u16> {
        let active = self
            .state
            .lock()
            .active
            .take_if(|active| active.index == index)?;
        self.wake();
        Some(active.queue.next_avail())
    }

    /// Gives the ring another interrupt and raises it; gives `call` back if `index` is not ours.
    pub fn set_interrupt(&self, index: usize, call: Option<OwnedFd>) -> Option<Option<OwnedFd>> {
        let mut state = self.state.lock();
        match state.active.as_mut().filter(|active| active.index == index) {
            Some(active) => {
                active.call = call;
                active.interrupt();
                None
            }
            None => Some(call),
        }
    }

    /// Makes the thread end.
    pub fn end(&self) {
        self.state.lock().end = true;
        self.wake();
    }

    /// The thread: serves the queue until told to end.
    pub fn run(&self) {
        loop {
            let kick = {
                let mut state = self.state.lock();
                if state.end {
                    return;
                }
                match &mut state.active {
                    Some(active) => {
                        active.serve(&self.agreement);
                        active.kick.clone()
                    }
                    None => None,
                }
            };
            // The lock is not held while we sleep; a ring that is stopped meanwhile wakes us.
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            if let Some(kick) = &kick {
                fds.push(PollFd::from_borrowed_fd(kick.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    log::error!("control queue: poll: {e}; it is not served any more");
                    return;
                }
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            let mut count = [0; 8];
            if ready.first() == Some(&true) {
                // Non-blocking and ours: nothing to read is no harm.
                let _ = rustix::io::read(&self.wake, &mut count);
            }
            if let Some(kick) = kick.filter(|_| ready.get(1) == Some(&true))
                && let Err(e) = rustix::io::read(&*kick, &mut count)
                && e != rustix::io::Errno::AGAIN
            {
                log::error!("control queue: its kick cannot be read: {e}; the ring stops");
                self.state.lock().active = None;
            }
        }
    }
}

impl Active {
    fn interrupt(&self) {
        if let Some(call) = &self.call {
            // An eventfd refuses only when its counter is full, and then it is raised anyway.
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Carries out all commands that wait.
    fn serve(&mut self, agreement: &Agreement) {
        let map = self.map.clone();
        let memory = map.guest();
        loop {
            while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
                let head = chain.head_index();
                let written = answer(memory, chain, agreement).unwrap_or_else(|e| {
                    log::warn!("control queue: command without room for an answer: {e}");
                    0
                });
                if let Err(e) = self.queue.add_used(memory, head, written) {
                    log::error!("control queue: {e}");
                    return;
                }
            }
            match self.queue.needs_notification(memory) {
                Ok(true) => self.interrupt(),
                Ok(false) => {}
                Err(e) => log::error!("control queue: {e}"),
            }
            match self.queue.enable_notification(memory) {
                Ok(true) => {}
                Ok(false) => return,
                Err(e) => {
                    log::error!("control queue: {e}");
                    return;
                }
            }
        }
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
