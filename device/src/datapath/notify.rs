// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts: telling the driver that buffers were used.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::nic::counters::QueueCounters;
use crate::ring::virtqueue::Ring;

/// A queue's interrupt: an eventfd behind which the frontend has put an MSI-X vector.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    fd: Option<OwnedFd>,
}

impl Interrupt {
    /// The interrupt that `fd` raises; none for a driver that only polls.
    ///
    /// It is made non-blocking, also for the frontend: a blocking eventfd whose counter is full, or
    /// whatever else a frontend has sent us, would stop its worker, and with it everything that
    /// waits for the worker's lock.
    pub fn new(fd: Option<OwnedFd>) -> Self {
        if let Some(fd) = &fd
            && let Err(e) = fcntl_getfl(fd).and_then(|flags| {
                if flags.contains(OFlags::NONBLOCK) {
                    return Ok(());
                }
                fcntl_setfl(fd, flags | OFlags::NONBLOCK)
            })
        {
            log::warn!("an interrupt's descriptor cannot be made non-blocking: {e}");
        }
        Interrupt { fd }
    }

    /// Raises it, whatever the driver asked for; whether there is one.
    pub fn signal(&self) -> bool {
        let Some(fd) = &self.fd else {
            return false;
        };
        // An eventfd refuses only when its counter is full, and then it is raised anyway.
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        true
    }

    /// Raises and counts it, whatever the driver asked for.
    pub fn raise(&self, counters: &QueueCounters) {
        if self.signal() {
            counters.interrupts.add(1);
        }
    }

    /// Raises it if something was published that the driver wants to hear of; whether it was.
    pub fn raise_if_wanted(&self, ring: &mut Ring, counters: &QueueCounters) -> bool {
        match ring.interrupt_wanted() {
            Some(true) => {
                self.raise(counters);
                return true;
            }
            Some(false) => counters.interrupts_suppressed.add(1),
            None => {}
        }
        false
    }
}
