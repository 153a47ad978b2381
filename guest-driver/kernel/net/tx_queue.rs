// SPDX-License-Identifier: GPL-2.0

//! Transmit queues, and state that is guarded by their lock.
//!
//! C header: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h)

use super::{
    Device,
    Operations, //
};
use crate::bindings;
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};
use kernel::prelude::*;

/// A transmit queue whose lock is held by whoever has this.
///
/// # Invariants
///
/// `control` is of a transmit queue, and its lock is held by the current context for as long as this
/// exists. There is one value for it.
pub(crate) struct XmitQueue<'a> {
    control: TxControl<'a>,
    index: u32,
}

impl<'a> XmitQueue<'a> {
    /// # Safety
    ///
    /// The type invariants must hold, for a lifetime that ends while the lock is held.
    pub(super) unsafe fn new(raw: NonNull<bindings::netdev_queue>, index: u32) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            control: TxControl {
                raw,
                _lock: PhantomData,
            },
            index,
        }
    }

    /// The number of the queue.
    #[inline]
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// What can be done to the queue.
    #[inline]
    pub(crate) fn control(&self) -> TxControl<'_> {
        self.control
    }
}

/// What can be done to a transmit queue whose lock is held.
///
/// # Invariants
///
/// `raw` is a transmit queue whose lock is held by the current context throughout `'a`.
#[derive(Clone, Copy)]
pub(crate) struct TxControl<'a> {
    raw: NonNull<bindings::netdev_queue>,
    _lock: PhantomData<&'a mut ()>,
}

impl TxControl<'_> {
    /// Counts a packet of `bytes` as given to the device, and returns whether the device has to be
    /// told now: it need not be if more packets follow at once and there is room for them.
    ///
    /// For [`Operations::start_xmit`], at most once a packet.
    #[inline]
    pub(crate) fn sent(&self, bytes: u32) -> bool {
        // SAFETY: By the type invariant it is a transmit queue, locked.
        unsafe { bindings::ferronic_txq_sent(self.raw.as_ptr(), bytes) }
    }

    /// Whether the device has to be told of earlier packets now, when there is none to be counted.
    #[inline]
    pub(crate) fn must_kick(&self) -> bool {
        // SAFETY: As in `sent`.
        unsafe {
            !bindings::ferronic_xmit_more() || bindings::ferronic_xmit_stopped(self.raw.as_ptr())
        }
    }

    /// Counts `packets` of `bytes` as sent by the device.
    #[inline]
    pub(crate) fn completed(&self, packets: u32, bytes: u32) {
        // SAFETY: As in `sent`.
        unsafe { bindings::ferronic_txq_completed(self.raw.as_ptr(), packets, bytes) };
    }

    /// Forgets what was counted by [`Self::sent`].
    pub(crate) fn reset_counts(&self) {
        // SAFETY: As in `sent`.
        unsafe { bindings::ferronic_txq_reset(self.raw.as_ptr()) };
    }

    /// Has the networking core send no more packets on this queue.
    #[inline]
    pub(crate) fn stop(&self) {
        // SAFETY: As in `sent`.
        unsafe { bindings::ferronic_txq_stop(self.raw.as_ptr()) };
    }

    /// Undoes [`Self::stop`] before anybody has noticed, in [`Operations::start_xmit`].
    #[inline]
    pub(crate) fn start(&self) {
        // SAFETY: As in `sent`.
        unsafe { bindings::ferronic_txq_start(self.raw.as_ptr()) };
    }

    /// Undoes [`Self::stop`] and has waiting packets sent.
    #[inline]
    pub(crate) fn wake(&self) {
        // SAFETY: As in `sent`.
        unsafe { bindings::ferronic_txq_wake(self.raw.as_ptr()) };
    }

    /// Whether the driver has stopped it.
    #[inline]
    pub(crate) fn is_stopped(&self) -> bool {
        // SAFETY: As in `sent`.
        unsafe { bindings::ferronic_txq_stopped(self.raw.as_ptr()) }
    }
}

/// State that is guarded by the lock of a transmit queue.
///
/// [`Operations::start_xmit`] is called with that lock held; others take it.
///
/// # Invariants
///
/// `raw` is transmit queue `index` of a net device whose memory `dev` keeps alive. `state` is only
/// accessed with its lock held.
pub(crate) struct TxQueue<S> {
    raw: NonNull<bindings::netdev_queue>,
    index: u32,
    state: UnsafeCell<Option<S>>,
    _dev: super::device::Reference,
}

// SAFETY: By the type invariant `state` is accessed under a lock; it can be sent.
unsafe impl<S: Send> Sync for TxQueue<S> {}
// SAFETY: As before.
unsafe impl<S: Send> Send for TxQueue<S> {}

impl<S> TxQueue<S> {
    /// For transmit queue `index`, without state. `EINVAL` if there is no such queue.
    pub(crate) fn new<T: Operations>(dev: &Device<T>, index: u32) -> Result<Self> {
        let raw = dev.tx_queue(index).ok_or(EINVAL)?;
        // INVARIANT: It is a queue of `dev`.
        Ok(Self {
            raw,
            index,
            state: UnsafeCell::new(None),
            _dev: dev.reference(),
        })
    }

    /// The state, for whoever has the lock of the queue. `None` if it is another queue's lock.
    #[inline]
    pub(crate) fn get<'a>(&'a self, queue: &'a mut XmitQueue<'_>) -> Option<&'a mut Option<S>> {
        if queue.control.raw != self.raw {
            return None;
        }
        // SAFETY: `queue` is the proof that the lock is held, by its type invariant; as it is
        // borrowed, and there is but one, so is the state.
        Some(unsafe { &mut *self.state.get() })
    }

    /// As [`Self::get`], and what can be done to the queue. `None` also if there is no state.
    #[inline]
    pub(crate) fn with<'a>(
        &'a self,
        queue: &'a mut XmitQueue<'_>,
    ) -> Option<(&'a mut S, TxControl<'a>)> {
        if queue.control.raw != self.raw {
            return None;
        }
        let control = queue.control;
        // SAFETY: As in `get`. `TxControl` does not lead to the state.
        let state = unsafe { &mut *self.state.get() };
        state.as_mut().map(|state| (state, control))
    }

    /// Takes the lock. With softirqs disabled only.
    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, S> {
        // SAFETY: By the type invariant it is a transmit queue.
        unsafe { bindings::ferronic_txq_lock(self.raw.as_ptr()) };
        self.guard(false)
    }

    /// Takes the lock if nobody has it. With softirqs disabled only.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, S>> {
        // SAFETY: As in `lock`.
        unsafe { bindings::ferronic_txq_trylock(self.raw.as_ptr()) }.then(|| self.guard(false))
    }

    /// Takes the lock, in process context.
    pub(crate) fn lock_bh(&self) -> Guard<'_, S> {
        // SAFETY: As in `lock`.
        unsafe { bindings::ferronic_txq_lock_bh(self.raw.as_ptr()) };
        self.guard(true)
    }

    #[inline]
    fn guard(&self, bh: bool) -> Guard<'_, S> {
        Guard {
            // SAFETY: The lock was just taken, and is released when the guard is dropped.
            queue: unsafe { XmitQueue::new(self.raw, self.index) },
            of: self,
            bh,
        }
    }
}

/// The lock of a transmit queue, held until this is dropped.
pub(crate) struct Guard<'a, S> {
    queue: XmitQueue<'a>,
    of: &'a TxQueue<S>,
    bh: bool,
}

impl<S> Guard<'_, S> {
    /// The state and what can be done to the queue. `None` if there is no state.
    #[inline]
    pub(crate) fn split(&mut self) -> Option<(&mut S, TxControl<'_>)> {
        self.of.with(&mut self.queue)
    }

    /// What can be done to the queue.
    pub(crate) fn control(&self) -> TxControl<'_> {
        self.queue.control
    }
}

impl<S> Deref for Guard<'_, S> {
    type Target = Option<S>;

    fn deref(&self) -> &Option<S> {
        // SAFETY: By the type invariant of `TxQueue`, the lock being held.
        unsafe { &*self.of.state.get() }
    }
}

impl<S> DerefMut for Guard<'_, S> {
    fn deref_mut(&mut self) -> &mut Option<S> {
        // SAFETY: By the type invariant of `TxQueue`, the lock being held.
        unsafe { &mut *self.of.state.get() }
    }
}

impl<S> Drop for Guard<'_, S> {
    #[inline]
    fn drop(&mut self) {
        let raw = self.of.raw.as_ptr();
        // SAFETY: The lock was taken when the guard was made, in this way.
        unsafe {
            if self.bh {
                bindings::ferronic_txq_unlock_bh(raw);
            } else {
                bindings::ferronic_txq_unlock(raw);
            }
        }
    }
}
