// SPDX-License-Identifier: GPL-2.0

//! Dynamic interrupt moderation: chooses how interrupts are held back by what arrives.
//!
//! # Design
//!
//! Who polls a queue gives samples to a [`Sampler`]. When the library has decided on another
//! choice it takes no more samples into account, and the device's [`Operations::work`] is called
//! some time. There the choice is taken from the [`Decisions`] that go with the sampler, told to
//! the device, and acknowledged, from when on samples count again.
//!
//! C header: [`include/linux/dim.h`](srctree/include/linux/dim.h)

use super::{
    device::Reference,
    Device,
    Operations, //
};
use crate::bindings;
use kernel::{
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// How interrupts are to be held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moderation {
    /// Microseconds until an interrupt.
    pub(crate) usecs: u32,
    /// Packets until an interrupt.
    pub(crate) frames: u32,
}

/// What both ends share.
///
/// # Invariants
///
/// `dim` is initialised, for the net device of `dev`. Its state says whose it is: in
/// `DIM_APPLY_NEW_PROFILE` that of the [`Decisions`], else that of the [`Sampler`], of which there
/// is one each.
#[pin_data(PinnedDrop)]
struct Shared {
    #[pin]
    dim: Opaque<bindings::ferronic_dim>,
    dev: Reference,
}

// SAFETY: By the type invariant one end at a time accesses it.
unsafe impl Send for Shared {}
// SAFETY: As before.
unsafe impl Sync for Shared {}

#[pinned_drop]
impl PinnedDrop for Shared {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant.
        unsafe { bindings::ferronic_dim_cancel(self.dim.get()) };
    }
}

/// Takes samples. Not to be dropped where one must not sleep.
pub(crate) struct Sampler(Arc<Shared>);

/// Tells what was decided. Not to be dropped where one must not sleep.
pub(crate) struct Decisions(Arc<Shared>);

/// Both ends for one queue of a device, whose [`Operations::work`] is called with `events`.
pub(crate) fn new<T: Operations>(dev: &Device<T>, events: usize) -> Result<(Sampler, Decisions)> {
    let dev = dev.reference();
    let shared = Arc::pin_init(
        try_pin_init!(Shared {
            // INVARIANT: Initialised, and it is the sampler's.
            dim <- Opaque::ffi_init(|dim: *mut bindings::ferronic_dim| {
                // SAFETY: The memory is writable; `dev` keeps that of the net device.
                unsafe { bindings::ferronic_dim_init(dim, dev.raw(), events) };
            }),
            dev,
        }? Error),
        GFP_KERNEL,
    )?;
    Ok((Sampler(shared.clone()), Decisions(shared)))
}

impl Sampler {
    /// Notes how many interrupts, packets and octets there have been in all. In softirqs.
    #[inline]
    pub(crate) fn sample(&mut self, interrupts: u64, packets: u64, octets: u64) {
        // CAST: The library only looks at differences of so many bits.
        let interrupts = interrupts as u16;
        // SAFETY: By the type invariant; this is the only sampler, borrowed exclusively.
        unsafe { bindings::ferronic_dim_sample(self.0.dim.get(), interrupts, packets, octets) };
    }
}

impl Decisions {
    /// What was decided, if something was. Then [`Self::acknowledge`] has to be called.
    pub(crate) fn get(&mut self) -> Option<Moderation> {
        let (mut usecs, mut frames) = (0, 0);
        // SAFETY: By the type invariant.
        unsafe {
            bindings::ferronic_dim_decision(self.0.dim.get(), &raw mut usecs, &raw mut frames)
        }
        .then_some(Moderation { usecs, frames })
    }

    /// Has samples count again.
    pub(crate) fn acknowledge(&mut self) {
        // SAFETY: By the type invariant; this is the only end of its kind, borrowed exclusively.
        unsafe { bindings::ferronic_dim_go_on(self.0.dim.get()) };
    }
}
