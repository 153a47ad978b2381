// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A port of the switch, as those see it who forward to it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::datapath::Inlet;
use crate::nic::Nic;
use crate::nic::flow_hash::HEADERS;
use crate::nic::rss::Rss;

use super::table::PortIndex;
use super::uplink_port::Egress;
use super::vlan::VlanMode;

/// A port.
#[derive(Debug)]
pub struct Port {
    /// Its number; another port has it when this one is gone.
    pub index: PortIndex,
    /// Its name, of which there is one at a time.
    pub name: String,
    /// What is plugged in: link and counters are its.
    pub nic: Arc<Nic>,
    /// Its VLANs.
    pub vlans: VlanMode,
    pub(super) end: End,
}

/// What is at a port.
#[derive(Debug)]
pub(super) enum End {
    /// A guest.
    Guest(Guest),
    /// The rest of the world.
    Uplink(Mutex<Egress>),
}

/// The first octets of a frame, and how many there are.
pub(super) type FrameStart = ([u8; HEADERS], usize);

/// The receive queues of a guest.
#[derive(Debug, Default)]
pub(super) struct Guest {
    /// Set once, when the workers that own them have been made.
    pub inlets: OnceLock<Vec<Arc<Inlet>>>,
    /// Those that receive, a bit each.
    active: AtomicU32,
    /// How the guest wants packets spread over them, if not as the switch likes.
    rss: RwLock<Option<Arc<Rss>>>,
    /// It does; without it there is no lock to take.
    scaled: AtomicBool,
}

impl Guest {
    /// Notes whether a queue receives.
    pub fn set_active(&self, queue: usize, active: bool) {
        let bit = 1u32.checked_shl(queue as u32).unwrap_or(0);
        if active {
            self.active.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.active.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Notes how the guest wants packets spread.
    pub fn scale(&self, rss: Option<&Arc<Rss>>) {
        let mut own = self.rss.write();
        *own = rss.cloned();
        self.scaled.store(own.is_some(), Ordering::Relaxed);
    }

    /// The inlet at which the guest wants the frame that starts so, and that inlet's number; none if
    /// it leaves that to the switch.
    pub fn wanted_at(&self, start: impl FnOnce() -> FrameStart) -> Option<(usize, &Arc<Inlet>)> {
        if !self.scaled.load(Ordering::Relaxed) {
            return None;
        }
        let (octets, len) = start();
        let queue = self.rss.read().as_ref()?.queue(octets.get(..len)?);
        // A queue that does not receive loses the packet, and counts it.
        self.inlets.get()?.get(queue).map(|inlet| (queue, inlet))
    }

    /// The inlet for a packet of the flow, or from the queue, of this number, and that inlet's
    /// number. Not asked for it where there is no choice. If none receives it is the first, where
    /// packets are counted as lost.
    pub fn inlet(&self, queue: impl FnOnce() -> usize) -> Option<(usize, &Arc<Inlet>)> {
        let active = self.active.load(Ordering::Relaxed);
        let queues = self.inlets.get()?;
        let queue = match queues.len() {
            0 | 1 => 0,
            _ => queue(),
        };
        let receives = |queue: &usize| active >> queue & 1 == 1;
        let chosen = if queue < queues.len() && receives(&queue) {
            queue
        } else {
            let count = active.count_ones() as usize;
            let skip = queue.checked_rem(count).unwrap_or(0);
            (0..queues.len()).filter(receives).nth(skip).unwrap_or(0)
        };
        queues.get(chosen).map(|inlet| (chosen, inlet))
    }
}
