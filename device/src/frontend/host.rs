// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the rings of one connection share: guest memory, and what driver and device have agreed on.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::datapath::Dataplane;
use crate::nic::Nic;
use crate::nic::features::{Features, VIRTIO_F_RING_PACKED};
use crate::ring::memory::MemoryMap;
use crate::ring::packed;

use super::lifeline::Lifeline;
use super::vring::NicVring;

/// Guest memory as the crate hands it around.
pub type GuestMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What the rings of one connection share.
#[derive(Debug)]
pub struct RingHost {
    /// Where rings run.
    pub dataplane: Arc<Dataplane>,
    /// Whose rings they are.
    pub nic: Arc<Nic>,
    /// Readable when a ring has started.
    pub started: OwnedFd,
    /// Held by the crate's thread.
    pub lifeline: Lifeline,
    rings: Mutex<Vec<NicVring>>,
    map: Mutex<Option<Arc<MemoryMap>>>,
    agreed: Mutex<Agreed>,
}

/// What driver and device have agreed on.
#[derive(Debug, Default)]
struct Agreed {
    features: Option<Features>,
    /// The same was said again while no ring ran, by a driver that starts afresh or for one that
    /// goes on.
    again: bool,
}

thread_local! {
    /// The host of the rings being made. The crate makes rings inside `VhostUserDaemon::new`,
    /// through `VringT::new`, which has no argument by which a ring could learn whose it is and
    /// which; but it makes them there and then, on the caller's thread, in order.
    static MAKING: RefCell<Option<Arc<RingHost>>> = const { RefCell::new(None) };
}

impl RingHost {
    /// A host without rings.
    pub fn new(dataplane: Arc<Dataplane>, nic: Arc<Nic>) -> io::Result<Arc<Self>> {
        let started = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(RingHost {
            dataplane,
            nic,
            started,
            lifeline: Lifeline::default(),
            rings: Mutex::default(),
            map: Mutex::default(),
            agreed: Mutex::default(),
        }))
    }

    /// Runs `make`; rings that are made in it are this host's.
    pub fn make_rings<R>(self: &Arc<Self>, make: impl FnOnce() -> R) -> R {
        MAKING.set(Some(self.clone()));
        let result = make();
        MAKING.set(None);
        result
    }

    /// Takes note of another memory table. Rings that run go on in the new one.
    pub fn set_memory(&self, memory: &GuestMemory) -> io::Result<()> {
        let map = MemoryMap::new(memory.memory().into_inner())?;
        *self.map.lock() = Some(Arc::new(map));
        for ring in self.rings.lock().iter() {
            let mut state = ring.state.lock();
            ring.stop(&mut state);
            ring.sync(&mut state);
        }
        Ok(())
    }

    /// Takes note of what driver and device have agreed on. If that is something new, rings that
    /// run go on with it. QEMU also says the same again: for each queue pair of a netdev while the
    /// rings of those before run, and when a guest that was paused goes on.
    pub fn negotiate(&self, features: Features) {
        let rings = self.rings.lock();
        let mut agreed = self.agreed.lock();
        if agreed.features == Some(features) {
            agreed.again = !rings.iter().any(|ring| ring.state.lock().running);
            return;
        }
        *agreed = Agreed {
            features: Some(features),
            again: false,
        };
        for ring in rings.iter() {
            ring.stop(&mut ring.state.lock());
        }
        self.dataplane.negotiate(features);
        for ring in rings.iter() {
            ring.sync(&mut ring.state.lock());
        }
    }

    /// Before rings start: finds out whether a driver starts afresh. One that goes on still counts
    /// on the filters and queue pairs that it has set; nothing in the protocol says which it is, but
    /// the rings of one that starts afresh are at their beginning. (So are those of one that has not used any
    /// yet, which has not set anything either.)
    pub(super) fn settle(&self) {
        let mut agreed = self.agreed.lock();
        if !std::mem::take(&mut agreed.again) {
            return;
        }
        let Some(features) = agreed.features else {
            return;
        };
        let packed = features.has(VIRTIO_F_RING_PACKED);
        let begins = |at: u16| at == 0 || packed && at == packed::BEGINNING;
        if (self.rings.lock().iter()).all(|ring| begins(ring.state.lock().next_avail)) {
            self.dataplane.negotiate(features);
        }
    }

    /// Makes every ring as it was before the frontend set it up. The crate only disables them, so
    /// that they would start with their old addresses as soon as they are enabled again.
    pub fn reset(&self) {
        for ring in self.rings.lock().iter() {
            ring.reset();
        }
        self.negotiate(Features(0));
    }

    /// Stops every ring, and lets go of rings and guest memory.
    pub fn close(&self) {
        for ring in self.rings.lock().drain(..) {
            // Nothing of the crate's is touched: if its thread has panicked, locks are poisoned.
            ring.halt(&mut ring.state.lock());
        }
        *self.map.lock() = None;
    }

    /// Makes `started` quiet.
    pub fn clear_started(&self) {
        // Non-blocking: nothing to read is no harm.
        let _ = rustix::io::read(&self.started, &mut [0; 8]);
    }

    /// Adds a ring; they come in the order of their indices.
    pub(super) fn add(&self, ring: NicVring) {
        self.rings.lock().push(ring);
    }

    /// Guest memory, once the frontend has shared it.
    pub(super) fn map(&self) -> Option<Arc<MemoryMap>> {
        self.map.lock().clone()
    }

    /// A ring has started.
    pub(super) fn note_started(&self) {
        self.nic.update_frontend(|info| info.rings_active += 1);
        // An eventfd refuses only when it is full, and then it is readable anyway.
        let _ = rustix::io::write(&self.started, &1u64.to_ne_bytes());
    }

    /// A ring has stopped.
    pub(super) fn note_stopped(&self) {
        self.nic.update_frontend(|info| {
            info.rings_active = info.rings_active.saturating_sub(1);
        });
    }
}

/// Whose ring is being made, and which.
pub(super) fn making() -> (Option<Arc<RingHost>>, usize) {
    let host = MAKING.with_borrow(Clone::clone);
    let index = host.as_ref().map_or(0, |host| host.rings.lock().len());
    (host, index)
}
