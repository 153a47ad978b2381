// SPDX-License-Identifier: GPL-2.0

//! NAPI: polling of queues in softirq context, or in a thread of their own.
//!
//! # Design
//!
//! The state that polling works on moves into the instance when it is enabled and out when it is
//! disabled. In between only the poll function sees it: NAPI never runs one instance in two places
//! at once. So no lock is needed, and no state can be touched that is being polled.
//!
//! C header: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h)

use super::{
    page_pool::Binding,
    Device,
    Operations,
    PagePool, //
};
use crate::bindings;
use core::{
    cell::UnsafeCell,
    marker::PhantomPinned, //
};
use kernel::{
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    types::Opaque, //
};

/// What a poll function has done.
pub(crate) enum Progress {
    /// There is more to do: poll again. The number of packets.
    More(u32),
    /// All is done, and interrupts are asked for again. The number of packets, less than the
    /// budget.
    Done(u32),
}

/// What is polled.
///
/// All of it is called with softirqs disabled, never in two places at once for one instance.
pub(crate) trait Poll: Sync + Sized {
    /// What polling works on.
    type State: Send;

    /// The pool from which the state takes buffers where it is polled, if there is one.
    fn pool(state: &Self::State) -> Option<&PagePool> {
        let _ = state;
        None
    }

    /// Polls. `budget` is how many packets may be received; 0 means that only transmission may be
    /// looked after, and that [`Progress::Done`] must not be returned by a receiving instance.
    fn poll(&self, state: &mut Self::State, context: PollContext<'_>) -> Progress;

    /// Polling goes on though [`Progress::Done`] was returned, because someone polls on purpose:
    /// interrupts can be turned off again.
    fn resume(&self, state: &mut Self::State);
}

/// The context in which a poll function runs.
#[derive(Clone, Copy)]
pub(crate) struct PollContext<'a> {
    napi: &'a Opaque<bindings::napi_struct>,
    budget: i32,
}

impl PollContext<'_> {
    /// How many packets may be received.
    #[inline]
    pub(crate) fn budget(&self) -> u32 {
        self.budget.max(0).unsigned_abs()
    }

    pub(super) fn raw(&self) -> *mut bindings::napi_struct {
        self.napi.get()
    }
}

/// Nothing is polled; the state may be put in.
const OFF: u32 = 0;
/// The state is on its way in or out.
const CHANGING: u32 = 1;
/// The state belongs to the poll function.
const ON: u32 = 2;

/// An instance of NAPI.
///
/// # Invariants
///
/// - `napi` is registered with a net device, whose memory `dev` keeps alive.
/// - It is enabled while `phase` is [`ON`] and disabled while it is [`OFF`].
/// - While it is enabled `state` is only touched by the poll function; in [`OFF`] nobody touches it,
///   and in [`CHANGING`], while it is disabled, whoever set that. `pool` is only touched by the latter,
///   and bound to this instance; in [`OFF`] there is none.
#[pin_data(PinnedDrop)]
pub(crate) struct Napi<H: Poll> {
    #[pin]
    napi: Opaque<bindings::napi_struct>,
    handler: H,
    phase: Atomic<u32>,
    state: UnsafeCell<Option<H::State>>,
    /// The pool of the state, as long as that is here.
    pool: UnsafeCell<Option<Binding>>,
    dev: super::device::Reference,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: By the type invariants `state` is accessed by one context at a time, and it can be sent
// there. All else is `Sync`.
unsafe impl<H: Poll> Sync for Napi<H> {}
// SAFETY: As before; NAPI instances are not bound to a thread.
unsafe impl<H: Poll + Send> Send for Napi<H> {}

impl<H: Poll> Napi<H> {
    /// An instance for receiving, which may also do other things.
    ///
    /// `index` is that of the queue: it gets the same identifier each time that it is enabled.
    pub(crate) fn new<T: Operations>(
        dev: &Device<T>,
        index: u32,
        handler: H,
    ) -> Result<impl PinInit<Self, Error>> {
        if dev.tx_queue(index).is_none() {
            return Err(EINVAL);
        }
        Ok(Self::init(dev.reference(), handler, Some(index)))
    }

    /// An instance for transmission alone: busy polling of sockets leaves it alone.
    pub(crate) fn new_tx<T: Operations>(dev: &Device<T>, handler: H) -> impl PinInit<Self, Error> {
        Self::init(dev.reference(), handler, None)
    }

    fn init(
        dev: super::device::Reference,
        handler: H,
        rx: Option<u32>,
    ) -> impl PinInit<Self, Error> {
        // INVARIANT: Registered below, disabled, and there is no state yet.
        try_pin_init!(Self {
            napi <- Opaque::ffi_init(|napi: *mut bindings::napi_struct| {
                // SAFETY: The memory is writable; all of it is set to zero, as in the memory that
                // drivers in C have it in. `dev` is a net device, which has as many receive queues as
                // transmit queues, and of those one with the index.
                unsafe {
                    napi.write_bytes(0, 1);
                    let poll = Some(poll::<H> as unsafe extern "C" fn(_, _) -> _);
                    match rx {
                        // CAST: There are fewer queues.
                        Some(index) => {
                            bindings::ferronic_napi_add(dev.raw(), napi, poll, index as i32);
                        }
                        None => bindings::ferronic_napi_add_tx(dev.raw(), napi, poll),
                    }
                }
            }),
            handler,
            phase: Atomic::new(OFF),
            state: UnsafeCell::new(None),
            pool: UnsafeCell::new(None),
            dev,
            _pin: PhantomPinned,
        }? Error)
    }

    /// What is polled.
    #[inline]
    pub(crate) fn handler(&self) -> &H {
        &self.handler
    }

    /// Starts polling with `state`. Gives it back if that has happened already. May sleep.
    pub(crate) fn enable(&self, state: H::State) -> Result<(), H::State> {
        if self.phase.cmpxchg(OFF, CHANGING, Acquire).is_err() {
            return Err(state);
        }
        // SAFETY: By the type invariant it is registered, and disabled until the end of this.
        // `disable` drops it before this ceases to be registered, and while it is disabled.
        let pool = H::pool(&state).and_then(|pool| unsafe { Binding::new(pool, self.napi.get()) });
        // SAFETY: By the type invariant, `phase` being `CHANGING` and set by us, nobody else
        // accesses them.
        unsafe {
            *self.pool.get() = pool;
            *self.state.get() = Some(state);
        }
        // SAFETY: By the type invariants it is registered and disabled, `phase` keeping others off.
        unsafe { bindings::napi_enable(self.napi.get()) };
        // INVARIANT: It is enabled now. Not before: whoever sees this may disable it.
        self.phase.store(ON, Release);
        Ok(())
    }

    /// Ends polling and returns the state. `None` if it is not enabled. May sleep.
    pub(crate) fn disable(&self) -> Option<H::State> {
        if self.phase.cmpxchg(ON, CHANGING, Acquire).is_err() {
            return None;
        }
        // SAFETY: By the type invariant it is registered and enabled.
        unsafe { bindings::napi_disable(self.napi.get()) };
        // SAFETY: The poll function has returned and is not called again; `phase` keeps others off.
        let (state, pool) = unsafe { ((*self.state.get()).take(), (*self.pool.get()).take()) };
        drop(pool);
        self.phase.store(OFF, Release);
        state
    }

    /// Has it polled soon. In hard interrupts only.
    #[inline]
    pub(crate) fn schedule_irq(&self) {
        // SAFETY: By the type invariant it is registered; if it is disabled this does nothing.
        unsafe { bindings::ferronic_napi_schedule_irqoff(self.napi.get()) };
    }

    /// Has it polled soon. With softirqs or interrupts disabled.
    #[inline]
    pub(crate) fn schedule(&self) {
        // SAFETY: As in `schedule_irq`.
        unsafe { bindings::ferronic_napi_schedule(self.napi.get()) };
    }

    /// Has it polled soon. In process context.
    pub(crate) fn schedule_process(&self) {
        // SAFETY: As in `schedule_irq`.
        unsafe { bindings::ferronic_napi_schedule_process(self.napi.get()) };
    }

    /// Says which interrupt leads to polling, for userspace to know.
    pub(crate) fn set_irq(&self, irq: u32) {
        let irq = i32::try_from(irq).unwrap_or(-1);
        // SAFETY: By the type invariant it is registered.
        unsafe { bindings::ferronic_napi_set_irq(self.napi.get(), irq) };
    }

    /// Makes known that queue `index` is polled by this instance. RTNL must be held.
    pub(crate) fn link_queue(&self, index: u32, tx: bool) {
        // SAFETY: By the type invariant it is registered with this device.
        unsafe { bindings::ferronic_queue_set_napi(self.dev.raw(), index, tx, self.napi.get()) };
    }

    /// Undoes [`Self::link_queue`].
    pub(crate) fn unlink_queue(&self, index: u32, tx: bool) {
        // SAFETY: A null pointer stands for none.
        unsafe {
            bindings::ferronic_queue_set_napi(self.dev.raw(), index, tx, core::ptr::null_mut())
        };
    }
}

#[pinned_drop]
impl<H: Poll> PinnedDrop for Napi<H> {
    fn drop(self: Pin<&mut Self>) {
        drop(self.disable());
        // SAFETY: By the type invariant it is registered, or was and the net device has removed it
        // already, which is noticed. It is disabled.
        unsafe { bindings::ferronic_napi_del(self.napi.get()) };
    }
}

/// The poll function for the C side.
///
/// # Safety
///
/// `raw` must be the `napi` of an enabled [`Napi<H>`], and the caller the one that polls it.
unsafe extern "C" fn poll<H: Poll>(raw: *mut bindings::napi_struct, budget: i32) -> i32 {
    // SAFETY: By the safety requirement it is the field of such a structure, which is alive.
    let this = unsafe { &*kernel::container_of!(Opaque::cast_from(raw), Napi<H>, napi) };
    if this.phase.load(Relaxed) == OFF {
        // Cannot be: only what is enabled is polled.
        return 0;
    }
    // SAFETY: By the type invariant the state is the poll function's, which is not run twice.
    let Some(state) = (unsafe { &mut *this.state.get() }) else {
        return 0;
    };
    let context = PollContext {
        napi: &this.napi,
        budget,
    };
    match this.handler.poll(state, context) {
        // CAST: Not more than the budget, as is ensured here.
        Progress::More(work) => {
            let work = work as i32;
            if budget == 0 {
                0
            } else if work >= budget {
                budget
            } else {
                // Whoever returns less has to be done: so say that all of it is used up.
                budget
            }
        }
        Progress::Done(work) => {
            let work = (work as i32).min(budget.saturating_sub(1)).max(0);
            // SAFETY: The instance is being polled by us. From here on someone else may do so, unless
            // this says otherwise: `state` is not touched.
            let polling = unsafe { bindings::ferronic_napi_complete(raw, work) };
            if polling == bindings::ferronic_polling_FERRONIC_POLLING_OURS {
                this.handler.resume(state);
            }
            work
        }
    }
}
