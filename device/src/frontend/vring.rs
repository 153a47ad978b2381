// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What vhost-user-backend tells a ring.
//!
//! The crate's own threads serve no ring of ours. Instead its vring type is this one, which sees
//! every change and starts, stops or changes the ring of the data path accordingly. A ring runs
//! while it is started (has a kick and was not stopped by `GET_VRING_BASE`), enabled, laid out, and
//! has been given an interrupt: QEMU sends the kick before the interrupt, and a packet that was
//! delivered between the two would be signalled to nobody.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use vhost_user_backend::{VringMutex, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error as QueueError;

use crate::datapath::RingSetup;
use crate::ring::virtqueue::{Layout, Start};

use super::host::{GuestMemory, RingHost, making};

/// One ring, as the control plane sees it.
#[derive(Clone)]
pub struct NicVring {
    /// The crate's own state: it looks into it to decide what to do.
    inner: VringMutex<GuestMemory>,
    host: Option<Arc<RingHost>>,
    index: usize,
    pub(super) state: Arc<Mutex<RingState>>,
}

impl std::fmt::Debug for NicVring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NicVring")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// What the frontend has said of a ring.
#[derive(Debug, Default)]
pub(super) struct RingState {
    size: u16,
    areas: Option<(u64, u64, u64)>,
    event_idx: bool,
    pub next_avail: u16,
    /// We have said ourselves where the ring stands, since this frontend came. One that comes back
    /// after we were gone may know only where the ring was when it was started: of a packed ring
    /// QEMU has nothing better.
    known: bool,
    ready: bool,
    enabled: bool,
    kick: Option<OwnedFd>,
    /// The interrupt, once `SET_VRING_CALL` has come; inside, none for a driver that polls.
    call: Option<Option<OwnedFd>>,
    /// Stopped by `GET_VRING_BASE`, which is when the crate itself takes the interrupt away.
    released: bool,
    pub running: bool,
}

impl NicVring {
    fn copy(&self, file: Option<&File>) -> Option<OwnedFd> {
        match file?.try_clone() {
            Ok(copy) => Some(copy.into()),
            Err(e) => {
                log::error!("virtqueue {} does without a descriptor: {e}", self.index);
                None
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut RingState)) {
        let mut state = self.state.lock();
        change(&mut state);
        self.sync(&mut state);
    }

    /// As `update`, for what the data path is told only when a ring starts.
    fn replace(&self, change: impl FnOnce(&mut RingState)) {
        let mut state = self.state.lock();
        self.stop(&mut state);
        change(&mut state);
        self.sync(&mut state);
    }

    /// Makes the data path agree with the state.
    pub(super) fn sync(&self, state: &mut RingState) {
        let wanted = state.ready && state.enabled && state.areas.is_some() && state.call.is_some();
        if wanted && !state.running {
            self.start(state);
        } else if !wanted && state.running {
            self.stop(state);
        }
    }

    fn start(&self, state: &mut RingState) {
        let Some(host) = &self.host else { return };
        let (Some((desc, avail, used)), Some(map)) = (state.areas, host.map()) else {
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
            start: if state.known {
                Start::At(state.next_avail)
            } else {
                Start::Perhaps(state.next_avail)
            },
            kick,
            call,
        };
        match host.dataplane.start_ring(self.index, setup) {
            Ok(()) => {
                log::debug!(
                    "virtqueue {} starts at {:#x}: {layout:x?}",
                    self.index,
                    state.next_avail
                );
                state.running = true;
                host.note_started();
            }
            Err(e) => log::error!("virtqueue {} is not started: {e}", self.index),
        }
    }

    pub(super) fn stop(&self, state: &mut RingState) {
        if let Some(position) = self.halt(state) {
            self.inner.set_queue_next_avail(position);
        }
    }

    /// Makes the ring as it was before the frontend set it up.
    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        self.halt(&mut state);
        self.inner.set_queue_ready(false);
        self.inner.set_kick(None);
        // An interrupt outlives a reset: QEMU need not give it again.
        let call = state.call.take();
        *state = RingState {
            call,
            ..RingState::default()
        };
    }

    /// Takes the ring from the data path, if it runs; tells where it stands.
    pub(super) fn halt(&self, state: &mut RingState) -> Option<u16> {
        let host = self.host.as_ref().filter(|_| state.running)?;
        state.running = false;
        host.note_stopped();
        let position = host.dataplane.stop_ring(self.index);
        state.known = position.is_some();
        match position {
            Some(position) => {
                log::debug!("virtqueue {} stops at {position:#x}", self.index);
                state.next_avail = position;
            }
            None => log::debug!("virtqueue {} had stopped by itself", self.index),
        }
        position
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
        let (host, index) = making();
        let ring = NicVring {
            inner,
            host,
            index,
            state: Arc::default(),
        };
        if let Some(host) = &ring.host {
            host.add(ring.clone());
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
        if enabled && let Some(host) = &self.host {
            host.settle();
        }
        self.update(|state| state.enabled = enabled);
    }

    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.inner.set_queue_info(desc, avail, used)?;
        let areas = Some((desc, avail, used));
        if self.state.lock().areas != areas {
            self.replace(|state| state.areas = areas);
        }
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
        if self.state.lock().event_idx != enabled {
            self.replace(|state| state.event_idx = enabled);
        }
    }

    fn set_queue_ready(&self, ready: bool) {
        self.inner.set_queue_ready(ready);
        self.update(|state| {
            state.ready = ready;
            state.released = !ready;
        });
    }

    fn set_kick(&self, file: Option<File>) {
        let kick = self.copy(file.as_ref());
        self.inner.set_kick(file);
        self.replace(|state| state.kick = kick);
    }

    fn read_kick(&self) -> io::Result<bool> {
        self.inner.read_kick()
    }

    fn set_call(&self, file: Option<File>) {
        let call = self.copy(file.as_ref());
        let mut state = self.state.lock();
        if state.running
            && let Some(host) = &self.host
        {
            host.dataplane
                .set_interrupt(self.index, self.copy(file.as_ref()));
        }
        self.inner.set_call(file);
        let by_crate = call.is_none() && std::mem::take(&mut state.released);
        // A frontend that gives none polls.
        state.call = (!by_crate).then_some(call);
        self.sync(&mut state);
    }

    fn set_err(&self, file: Option<File>) {
        self.inner.set_err(file);
    }
}
