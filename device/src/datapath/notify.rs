// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupts: telling the driver that buffers were used.

use std::os::fd::OwnedFd;

use crate::nic::counters::QueueCounters;
use crate::ring::split::SplitRing;

/// A queue's interrupt: an eventfd behind which the frontend has put an MSI-X vector.
#[derive(Debug, Default)]
pub(super) struct Interrupt {
    fd: Option<OwnedFd>,
}

impl Interrupt {
    /// The interrupt that `fd` raises; none for a driver that only polls.
    pub fn new(fd: Option<OwnedFd>) -> Self {
        Interrupt { fd }
    }

    /// Raises it, whatever the driver asked for.
    pub fn raise(&self, counters: &QueueCounters) {
        if let Some(fd) = &self.fd {
            // An eventfd refuses only when its counter is full, and then it is raised anyway.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
            counters.interrupts.add(1);
        }
    }

    /// Raises it if something was published that the driver wants to hear of.
    pub fn raise_if_wanted(&self, ring: &mut SplitRing, counters: &QueueCounters) {
        match ring.interrupt_wanted() {
            Some(true) => self.raise(counters),
            Some(false) => counters.interrupts_suppressed.add(1),
            None => {}
        }
    }
}
