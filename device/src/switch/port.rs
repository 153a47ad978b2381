// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A port of the switch, as those see it who forward to it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::datapath::Inlet;
use crate::nic::Nic;
use crate::nic::flow_hash::{FlowHash, HEADERS};
use crate::nic::hashing::Hashing;

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
    /// How the guest wants packets hashed, and perhaps spread over them, if not as the switch likes.
    hashing: RwLock<Option<Arc<Hashing>>>,
    /// It does; without it there is no lock to take.
    hashes: AtomicBool,
}

/// What a guest wants done with a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish<'a> {
    /// The inlet that it is for, and that inlet's number; none if that is left to the switch.
    pub inlet: Option<(usize, &'a Arc<Inlet>)>,
    /// What is to be reported with it.
    pub hash: Option<FlowHash>,
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

    /// Notes how the guest wants packets hashed and spread.
    pub fn set_hashing(&self, hashing: Option<&Arc<Hashing>>) {
        let mut own = self.hashing.write();
        *own = hashing.cloned();
        self.hashes.store(own.is_some(), Ordering::Relaxed);
    }

    /// What the guest wants done with the frame that starts so.
    pub fn wish(&self, start: impl FnOnce() -> FrameStart) -> Wish<'_> {
        if !self.hashes.load(Ordering::Relaxed) {
            return Wish::default();
        }
        let (octets, len) = start();
        let (queue, hash) = match self.hashing.read().as_deref() {
            Some(hashing) => {
                let hash = hashing.hash(octets.get(..len).unwrap_or_default());
                (hashing.queue(hash), hash)
            }
            None => (None, None),
        };
        let inlet = queue.and_then(|queue| {
            // A queue that does not receive loses the packet, and counts it.
            self.inlets.get()?.get(queue).map(|inlet| (queue, inlet))
        });
        Wish { inlet, hash }
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
