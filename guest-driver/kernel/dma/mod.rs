// SPDX-License-Identifier: GPL-2.0

//! Streaming DMA: memory that the device may touch for the time of one transfer.
//!
//! The kernel crate maps scatter-gather tables only ([`kernel::scatterlist`]); here are single
//! areas, as network drivers map packets.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use crate::bindings;
use core::ptr::NonNull;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma::{
        DataDirection,
        DmaAddress, //
    },
    prelude::*, //
};

/// A piece of a buffer, as the device sees it; `struct ferronic_segment` in bindings/shim.h.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Segment {
    /// Where it is, for the device.
    pub(crate) addr: DmaAddress,
    /// Its length in octets, not 0.
    pub(crate) len: u32,
}

/// The C side of `dev`.
fn as_raw(dev: &Device<Bound>) -> *mut bindings::device {
    // `Device` is a transparent wrapper of `struct device`, which is only touched through C.
    core::ptr::from_ref(dev).cast_mut().cast()
}

/// DMA_MAPPING_ERROR.
const MAPPING_ERROR: DmaAddress = !0;

/// Whether something, such as an IOMMU, translates the addresses that `dev` is given by the DMA API.
pub(crate) fn is_translated(dev: &Device<Bound>) -> bool {
    // SAFETY: `dev` is a valid device.
    unsafe { bindings::ferronic_dma_is_translated(as_raw(dev)) }
}

/// How memory is made known to one device.
///
/// # Invariants
///
/// `dev` is a device with a DMA mask.
#[derive(Clone, Copy)]
pub(crate) struct Mapper<'a> {
    /// `None`: the device uses physical addresses, and nothing has to be done before and after.
    dev: Option<&'a Device<Bound>>,
}

impl<'a> Mapper<'a> {
    /// By the DMA API: for every ordinary device.
    pub(crate) fn new(dev: &'a Device<Bound>) -> Self {
        Self { dev: Some(dev) }
    }

    /// By physical address: for a device that shares the processor's view of memory, as a virtual
    /// one may, and no others. Mapping costs next to nothing then.
    pub(crate) fn physical() -> Self {
        Self { dev: None }
    }

    fn raw(&self) -> *mut bindings::device {
        self.dev.map_or(core::ptr::null_mut(), as_raw)
    }

    /// Maps `len` octets from `start` on. `ENOMEM` if that cannot be done now.
    ///
    /// May be called in any context.
    ///
    /// # Safety
    ///
    /// The octets must lie in the kernel's linear mapping, and until the mapping is dropped they
    /// must neither be freed nor, but for [`Mapping::sync_for_cpu`], touched in a way that the
    /// direction does not allow.
    #[inline]
    pub(crate) unsafe fn map_single(
        self,
        start: NonNull<u8>,
        len: u32,
        direction: DataDirection,
    ) -> Result<Mapping<'a>> {
        // SAFETY: By the type invariant the device can be mapped for, and by the safety
        // requirements the memory can be mapped.
        let addr = unsafe {
            bindings::ferronic_dma_map_single(
                self.raw(),
                start.as_ptr().cast(),
                len as usize,
                direction as u32,
            )
        };
        self.mapping(addr, len, direction)
    }

    /// Maps `len` octets that begin `offset` octets into `page` and may go on in the pages that
    /// follow it in memory. `ENOMEM` if that cannot be done now.
    ///
    /// May be called in any context.
    ///
    /// # Safety
    ///
    /// As for [`Self::map_single`].
    #[inline]
    pub(crate) unsafe fn map_page(
        self,
        page: NonNull<bindings::page>,
        offset: u32,
        len: u32,
        direction: DataDirection,
    ) -> Result<Mapping<'a>> {
        // SAFETY: As in `map_single`.
        let addr = unsafe {
            bindings::ferronic_dma_map_page(
                self.raw(),
                page.as_ptr(),
                offset as usize,
                len as usize,
                direction as u32,
            )
        };
        self.mapping(addr, len, direction)
    }

    #[inline]
    fn mapping(self, addr: DmaAddress, len: u32, direction: DataDirection) -> Result<Mapping<'a>> {
        if addr == MAPPING_ERROR {
            return Err(ENOMEM);
        }
        // INVARIANT: The area was just mapped, and nothing else has its address.
        Ok(Mapping {
            mapper: self,
            addr,
            len,
            direction,
        })
    }
}

/// An area of memory that a device may touch. Dropping it ends that.
///
/// It must not be dropped while the device may still touch the memory.
///
/// # Invariants
///
/// `addr` is what `mapper` mapped for `len` octets and `direction`, and is not unmapped.
pub(crate) struct Mapping<'a> {
    mapper: Mapper<'a>,
    addr: DmaAddress,
    len: u32,
    direction: DataDirection,
}

impl Mapping<'_> {
    /// Where the area is, for the device.
    #[inline]
    pub(crate) fn addr(&self) -> DmaAddress {
        self.addr
    }

    /// Its length in octets.
    #[inline]
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Lets the processor see what the device wrote to the first `len` octets.
    #[inline]
    pub(crate) fn sync_for_cpu(&self, len: u32) {
        if let Some(dev) = self.mapper.dev {
            let len = len.min(self.len) as usize;
            // SAFETY: By the type invariant the area is mapped for this device and direction.
            unsafe {
                bindings::ferronic_dma_sync_for_cpu(
                    as_raw(dev),
                    self.addr,
                    len,
                    self.direction as u32,
                )
            }
        }
    }

    /// Gives the first `len` octets back to the device after [`Self::sync_for_cpu`].
    #[inline]
    pub(crate) fn sync_for_device(&self, len: u32) {
        if let Some(dev) = self.mapper.dev {
            let len = len.min(self.len) as usize;
            // SAFETY: As in `sync_for_cpu`.
            unsafe {
                bindings::ferronic_dma_sync_for_device(
                    as_raw(dev),
                    self.addr,
                    len,
                    self.direction as u32,
                )
            }
        }
    }
}

impl Drop for Mapping<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(dev) = self.mapper.dev {
            // SAFETY: By the type invariant the area is mapped for this device and direction, and
            // it is not used again.
            unsafe {
                bindings::ferronic_dma_unmap(
                    as_raw(dev),
                    self.addr,
                    self.len as usize,
                    self.direction as u32,
                )
            }
        }
    }
}
