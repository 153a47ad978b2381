// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What vhost-user-backend tells a ring.
//!
//! The crate's own threads serve no ring of ours. Instead its vring type is this one, which sees
//! every change and starts, stops or changes the ring of the data path accordingly. A ring runs
//! while it is started (has a kick and was not stopped by `GET_VRING_BASE`), enabled, laid out, and
//! has been given an interrupt: QEMU sends the kick before the interrupt, and a packet that was
//! delivered between the two would be signalled to nobody.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::datapath::{Dataplane, RingSetup};
use crate::nic::Nic;
use crate::ring::memory::MemoryMap;
use crate::ring::split::Layout;

/// Guest memory as the crate hands it around.
pub type GuestMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What the rings of one connection share.
#[derive(Debug)]
pub struct RingHost {
    /// Where rings run.
    pub dataplane: Arc<Dataplane>,
    /// Whose rings they are.
    pub nic: Arc<Nic>,
    rings: Mutex<Vec<NicVring>>,
    map: Mutex<Option<Arc<MemoryMap>>>,
}

thread_local! {
    /// The host of the rings being made. The crate makes rings inside `VhostUserDaemon::new`,
    /// through `VringT::new`, which has no argument by which a ring could learn whose it is and
    /// which; but it makes them there and then, on the caller's thread, in order.
    static MAKING: RefCell<Option<Arc<RingHost>>> = const { RefCell::new(None) };
}

impl RingHost {
    /// A host without rings.
    pub fn new(dataplane: Arc<Dataplane>, nic: Arc<Nic>) -> Arc<Self> {
        Arc::new(RingHost {
            dataplane,
            nic,
            rings: Mutex::default(),
            map: Mutex::default(),
        })
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

    /// Stops every ring, and lets go of rings and guest memory.
    pub fn close(&self) {
        for ring in self.rings.lock().drain(..) {
            ring.stop(&mut ring.state.lock());
        }
        *self.map.lock() = None;
    }

    fn note_active(&self, delta: i32) {
        self.nic.update_frontend(|info| {
            info.rings_active = info.rings_active.saturating_add_signed(delta);
        });
    }
}

/// One ring, as the control plane sees it.
#[derive(Clone)]
pub struct NicVring {
    /// The crate's own state: it looks into it to decide what to do.
    inner: VringMutex<GuestMemory>,
    host: Option<Arc<RingHost>>,
    index: usize,
    state: Arc<Mutex<RingState>>,
}

impl std::fmt::Debug for NicVring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NicVring")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct RingState {
    size: u16,
    areas: Option<(u64, u64, u64)>,
    event_idx: bool,
    next_avail: u16,
    ready: bool,
    enabled: bool,
    kick: Option<OwnedFd>,
    /// The interrupt, once `SET_VRING_CALL` has come; inside, none for a driver that polls.
    call: Option<Option<OwnedFd>>,
    running: bool,
}

impl NicVring {
    fn update(&self, change: impl FnOnce(&mut RingState)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.sync(&mut state);
    }

    /// Makes the data path agree with the state.
    fn sync(&self, state: &mut RingState) {
        let wanted = state.ready && state.enabled && state.areas.is_some() && state.call.is_some();
        if wanted && !state.running {
            self.start(state);
        } else if !wanted && state.running {
            self.stop(state);
        }
    }

    fn start(&self, state: &mut RingState) {
        let Some(host) = &self.host else { return };
        let (Some((desc, avail, used)), Some(map)) = (state.areas, host.map.lock().clone()) else {
            return;
        };
        let clone = |fd: &OwnedFd| fd.try_clone();
        let fds = state.kick.as_ref().map(clone).transpose().and_then(|kick| {
            let call = state
                .call
                .as_ref()
                .and_then(Option::as_ref)
                .map(clone)
                .transpose()?;
            Ok((kick, call))
        });
        let (kick, call) = match fds {
            Ok(fds) => fds,
            Err(e) => {
                log::error!(
                    "virtqueue {}: cannot duplicate its descriptors: {e}",
                    self.index
                );
                return;
            }
        };
        let layout = Layout {
            size: state.size,
            desc,
            avail,
            used,
            event_idx: state.event_idx,
        };
        let setup = RingSetup {
            map,
            layout,
            next_avail: state.next_avail,
            kick,
            call,
        };
        match host.dataplane.start_ring(self.index, setup) {
            Ok(()) => {
                log::debug!(
                    "virtqueue {} starts at {}: {layout:x?}",
                    self.index,
                    state.next_avail
                );
                state.running = true;
                host.note_active(1);
            }
            Err(e) => log::error!("virtqueue {} is not started: {e}", self.index),
        }
    }

    fn stop(&self, state: &mut RingState) {
        let Some(host) = self.host.as_ref().filter(|_| state.running) else {
            return;
        };
        state.running = false;
        host.note_active(-1);
        match host.dataplane.stop_ring(self.index) {
            Some(position) => {
                log::debug!("virtqueue {} stops at {position}", self.index);
                state.next_avail = position;
                self.inner.set_queue_next_avail(position);
            }
            None => log::debug!("virtqueue {} had stopped by itself", self.index),
        }
    }
}

impl<'a> VringStateGuard<'a, GuestMemory> for NicVring {
    type G = <VringMutex<GuestMemory> as VringStateGuard<'a, GuestMemory>>::G;
}

impl<'a> VringStateMutGuard<'a, GuestMemory> for NicVring {
    type G = <VringMutex<GuestMemory> as VringStateMutGuard<'a, GuestMemory>>::G;
}

impl VringT<GuestMemory> for NicVring {
    fn new(mem: GuestMemory, max_queue_size: u16) -> Result<Self, QueueError> {
        let inner = VringMutex::new(mem, max_queue_size)?;
        let host = MAKING.with_borrow(Clone::clone);
        let index = host.as_ref().map_or(0, |host| host.rings.lock().len());
        let ring = NicVring {
            inner,
            host,
            index,
            state: Arc::default(),
        };
        if let Some(host) = &ring.host {
            host.rings.lock().push(ring.clone());
        }
        Ok(ring)
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, GuestMemory>>::G {
        self.inner.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, GuestMemory>>::G {
        self.inner.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.inner.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.inner.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.inner.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.inner.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.inner.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
        self.update(|state| state.enabled = enabled);
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.inner.set_queue_info(desc, avail, used)?;
        self.update(|state| state.areas = Some((desc, avail, used)));
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.inner.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.inner.set_queue_next_avail(base);
        self.update(|state| state.next_avail = base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        // The data path reads the used index from the ring when it starts it.
        self.inner.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        self.inner.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.inner.set_queue_size(num);
        self.update(|state| state.size = num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.inner.set_queue_event_idx(enabled);
        self.update(|state| state.event_idx = enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        self.update(|state| state.ready = ready);
    }

    fn set_kick(&self, file: Option<File>) {
        let kick = file
            .as_ref()
            .and_then(|file| file.try_clone().ok())
            .map(OwnedFd::from);
        self.inner.set_kick(file);
        self.update(|state| state.kick = kick);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        let call = file
            .as_ref()
            .and_then(|file| file.try_clone().ok())
            .map(OwnedFd::from);
        self.inner.set_call(file);
        let mut state: MutexGuard<'_, RingState> = self.state.lock();
        if state.running
            && let Some(host) = &self.host
        {
            let copy = call.as_ref().and_then(|fd| fd.try_clone().ok());
            host.dataplane.set_interrupt(self.index, copy);
        }
        // The crate also passes none when a ring stops. A started ring without one is polled.
        state.call = (call.is_some() || state.ready).then_some(call);
        self.sync(&mut state);
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}
