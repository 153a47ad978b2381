// SPDX-License-Identifier: GPL-2.0

//! Page pools: pages for received packets, which come back to be used again.
//!
//! # Design
//!
//! A pool has a cache without a lock. Pages get into it from those who use the pool, and, if it is
//! bound to an instance of NAPI, also from whoever frees a page where that is polled. So a bound pool
//! may be used only there, and not be bound any longer when the instance is no more. An instance binds
//! the pool of its state when it is enabled, and keeps it until it is disabled ([`Binding`]); users say
//! where they are ([`PoolUser`]), and a pool that is used elsewhere has no buffers.
//!
//! C header: [`include/net/page_pool/helpers.h`](srctree/include/net/page_pool/helpers.h)

use super::{
    Device,
    Operations,
    PollContext, //
};
use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    device,
    dma::DmaAddress,
    prelude::*, //
};

/// A page pool of one receive queue. Its pages are mapped for the device to write.
///
/// # Invariants
///
/// `raw` is a page pool, and nothing else allocates from it.
pub(crate) struct PagePool {
    raw: NonNull<bindings::page_pool>,
    /// Octets in a page of it.
    page: u32,
}

// SAFETY: It may be used wherever there is exclusive access.
unsafe impl Send for PagePool {}

/// Where a pool is used: where an instance of NAPI is polled, or where none is, with the pool of a
/// state that is not polled now.
pub(crate) type PoolUser<'a> = Option<PollContext<'a>>;

/// Who that is for the C side.
#[inline]
fn napi_of(user: PoolUser<'_>) -> *const bindings::napi_struct {
    user.map_or(core::ptr::null(), |context| context.raw().cast_const())
}

impl PagePool {
    /// A pool for receive queue `queue`, of pages of `2^order` times the ordinary size, that keeps up
    /// to `size` pages ready.
    pub(crate) fn new<T: Operations>(
        dma: &device::Device<device::Bound>,
        dev: &Device<T>,
        queue: u32,
        order: u32,
        size: u32,
    ) -> Result<Self> {
        let dma = core::ptr::from_ref(dma).cast_mut().cast();
        // SAFETY: `dma` is a device that is bound; `dev` is a net device.
        let raw = unsafe { bindings::ferronic_pool_create(dev.raw(), dma, queue, order, size) };
        let raw = kernel::error::from_err_ptr(raw)?;
        // INVARIANT: It is a new page pool.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            page: u32::try_from(kernel::page::PAGE_SIZE << order)?,
        })
    }

    /// Octets in a page: the largest buffer.
    pub(crate) fn page_size(&self) -> u32 {
        self.page
    }

    /// A buffer of `size` octets. `None` if there is no memory now, or this is not where the pool may
    /// be used.
    #[inline]
    pub(crate) fn alloc(&mut self, user: PoolUser<'_>, size: u32) -> Option<PoolBuffer> {
        if size == 0 || size > self.page {
            return None;
        }
        let mut addr = 0;
        let napi = napi_of(user);
        // SAFETY: By the type invariant it is a page pool; `self` is borrowed exclusively, and `napi`
        // is polled here, or null.
        let start =
            unsafe { bindings::ferronic_pool_alloc(self.raw.as_ptr(), napi, size, &raw mut addr) };
        // More than half a page is a page.
        let size = if size > self.page / 2 {
            self.page
        } else {
            size
        };
        // INVARIANT: The pool gave a buffer of that size away.
        NonNull::new(start.cast()).map(|start| PoolBuffer { start, addr, size })
    }

    /// Gives a buffer back, more cheaply than dropping it does where the pool may be used.
    #[inline]
    pub(crate) fn recycle(&mut self, user: PoolUser<'_>, buffer: PoolBuffer) {
        let start = buffer.start.as_ptr();
        core::mem::forget(buffer);
        let napi = napi_of(user);
        // SAFETY: By its type invariant the buffer is a pool's and ours to give back. For this pool
        // as in `alloc`.
        unsafe { bindings::ferronic_pool_recycle(self.raw.as_ptr(), napi, start.cast()) };
    }

    /// Lets the processor see what the device wrote to `len` octets at `offset`.
    #[inline]
    pub(crate) fn sync_for_cpu(&self, buffer: &PoolBuffer, offset: u32, len: u32) {
        let len = len.min(buffer.size.saturating_sub(offset));
        let start = buffer.start.as_ptr().cast();
        // SAFETY: By their type invariants; the octets are the buffer's.
        unsafe { bindings::ferronic_pool_sync_for_cpu(self.raw.as_ptr(), start, offset, len) };
    }

    /// Gives `len` octets at `offset` back to the device after [`Self::sync_for_cpu`].
    #[inline]
    pub(crate) fn sync_for_device(&self, buffer: &PoolBuffer, offset: u32, len: u32) {
        let len = len.min(buffer.size.saturating_sub(offset));
        // SAFETY: By their type invariants; the octets are the buffer's.
        unsafe {
            bindings::ferronic_pool_sync_for_device(
                self.raw.as_ptr(),
                buffer.addr.wrapping_add(offset.into()),
                len,
            )
        };
    }
}

impl Drop for PagePool {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. Pages that are elsewhere keep it alive, and so does
        // whoever has it bound.
        unsafe { bindings::page_pool_destroy(self.raw.as_ptr()) };
    }
}

/// A pool that is bound to an instance of NAPI.
///
/// # Invariants
///
/// It is a page pool that is kept alive, and bound to an instance.
pub(super) struct Binding(NonNull<bindings::page_pool>);

impl Binding {
    /// Binds a pool.
    ///
    /// # Safety
    ///
    /// The instance must be registered and disabled. This must be dropped before that is not so any
    /// more, and while it is disabled.
    pub(super) unsafe fn new(pool: &PagePool, napi: *mut bindings::napi_struct) -> Option<Self> {
        // SAFETY: By the type invariant it is a page pool, and by the safety requirement `napi` is
        // an instance.
        let bound = unsafe { bindings::ferronic_pool_bind(pool.raw.as_ptr(), napi) };
        // INVARIANT: As it says.
        bound.then_some(Self(pool.raw))
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the instance is disabled.
        unsafe { bindings::ferronic_pool_unbind(self.0.as_ptr()) };
    }
}

/// A buffer of a page pool.
///
/// It must not be dropped while the device may write to it.
///
/// # Invariants
///
/// `start` is the start of `size` octets that some page pool gave away, and that are referred to
/// by this alone.
pub(crate) struct PoolBuffer {
    start: NonNull<u8>,
    addr: DmaAddress,
    size: u32,
}

// SAFETY: It may be given back anywhere but in hard interrupts, where nothing here is used.
unsafe impl Send for PoolBuffer {}

impl PoolBuffer {
    /// Its address for the device.
    #[inline]
    pub(crate) fn addr(&self) -> DmaAddress {
        self.addr
    }

    /// Its size in octets.
    #[inline]
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Copies `N` octets at `offset`. The rest are zero if the buffer ends before.
    #[inline]
    pub(crate) fn read<const N: usize>(&self, offset: u32) -> [u8; N] {
        let mut to = [0; N];
        if offset as usize + N <= self.size as usize {
            // SAFETY: By the type invariant these octets are ours; the device may change them
            // meanwhile, so they are copied as they are.
            unsafe {
                to = self
                    .start
                    .as_ptr()
                    .add(offset as usize)
                    .cast::<[u8; N]>()
                    .read_volatile();
            }
        }
        to
    }

    #[inline]
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Ends this without giving the buffer back.
    #[inline]
    pub(super) fn into_start(self) -> NonNull<u8> {
        let start = self.start;
        core::mem::forget(self);
        start
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        // SAFETY: By the type invariant it is a pool's and ours to give back.
        unsafe { bindings::ferronic_pool_put(self.start.as_ptr().cast()) };
    }
}
