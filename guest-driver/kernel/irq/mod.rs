// SPDX-License-Identifier: GPL-2.0

//! Interrupts of a PCI function: any number of vectors, each with a handler and a name.
//!
//! The kernel crate's [`kernel::irq::Registration`] borrows from the allocation of the vectors and
//! takes names that are known when the driver is built; here both belong to one value, so that a
//! driver can have as many as its device and the machine allow.
//!
//! C headers: [`include/linux/pci.h`](srctree/include/linux/pci.h),
//! [`include/linux/interrupt.h`](srctree/include/linux/interrupt.h)

use core::ptr::NonNull;
use kernel::{
    bindings,
    device::Bound,
    dma::{
        Device as _,
        DmaMask, //
    },
    error::to_result,
    fmt,
    irq::{
        Handler,
        IrqReturn, //
    },
    pci,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// A handler that is registered.
struct Line {
    irq: u32,
    cookie: NonNull<c_void>,
    /// Frees what the cookie is.
    free: unsafe fn(NonNull<c_void>),
    _name: CString,
}

/// Vectors of a PCI function, with their handlers. Dropping it removes all.
///
/// # Invariants
///
/// `count` vectors of `pdev` are allocated. Each of `lines` has a handler registered for `irq`
/// with `cookie`, which is a pointer that `Arc::into_raw` has returned.
pub(crate) struct Vectors<'bound> {
    pdev: &'bound pci::Device<Bound>,
    count: u32,
    msix: bool,
    lines: KVec<Line>,
}

// SAFETY: Handlers are `Send` and `Sync`, and removing them may be done by any thread.
unsafe impl Send for Vectors<'_> {}
// SAFETY: A shared reference only looks at numbers.
unsafe impl Sync for Vectors<'_> {}

/// The C side of `pdev`.
fn as_raw(pdev: &pci::Device<Bound>) -> *mut bindings::pci_dev {
    // `Device` is a transparent wrapper of `struct pci_dev`, which is only touched through C.
    core::ptr::from_ref(pdev).cast_mut().cast()
}

impl<'bound> Vectors<'bound> {
    /// Allocates up to `wanted` MSI-X vectors, or else the one that INTx has.
    pub(crate) fn new(pdev: &'bound pci::Device<Bound>, wanted: u32) -> Result<Self> {
        let msix = |min, max, types| {
            // SAFETY: `pdev` is a valid PCI device that is bound.
            unsafe { bindings::pci_alloc_irq_vectors(as_raw(pdev), min, max, types) }
        };
        let mut count = msix(1, wanted.max(1), bindings::PCI_IRQ_MSIX);
        let is_msix = count > 0;
        if !is_msix {
            count = msix(1, 1, bindings::PCI_IRQ_INTX);
        }
        to_result(count)?;
        // INVARIANT: So many were allocated, and there are no handlers.
        Ok(Self {
            pdev,
            count: count.unsigned_abs(),
            msix: is_msix,
            lines: KVec::new(),
        })
    }

    /// How many there are, at least one.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Whether they are MSI-X vectors: else there is INTx, which may be shared with others.
    pub(crate) fn is_msix(&self) -> bool {
        self.msix
    }

    /// The number by which the kernel knows a vector.
    pub(crate) fn number(&self, vector: u32) -> Result<u32> {
        if vector >= self.count {
            return Err(EINVAL);
        }
        // SAFETY: `pdev` is a valid PCI device, with that many vectors by the type invariant.
        let irq = unsafe { bindings::pci_irq_vector(as_raw(self.pdev), vector) };
        u32::try_from(irq).map_err(|_| EINVAL)
    }

    /// Registers the handler of a vector, under a name such as `ferronic-0000:00:04.0-pair0`.
    pub(crate) fn handle<H: Handler + Send + 'bound>(
        &mut self,
        vector: u32,
        role: fmt::Arguments<'_>,
        handler: Arc<H>,
    ) -> Result {
        /// # Safety
        ///
        /// `cookie` must be an `Arc<H>` made raw, and alive.
        unsafe extern "C" fn call<H: Handler>(
            _irq: i32,
            cookie: *mut c_void,
        ) -> bindings::irqreturn_t {
            // SAFETY: By the safety requirement.
            let handler = unsafe { &*cookie.cast_const().cast::<H>() };
            match handler.handle() {
                IrqReturn::None => bindings::irqreturn::IRQ_NONE,
                IrqReturn::Handled => bindings::irqreturn::IRQ_HANDLED,
            }
        }

        /// # Safety
        ///
        /// `cookie` must be an `Arc<H>` made raw, and given away.
        unsafe fn free<H>(cookie: NonNull<c_void>) {
            // SAFETY: By the safety requirement.
            drop(unsafe { Arc::from_raw(cookie.as_ptr().cast_const().cast::<H>()) });
        }

        let irq = self.number(vector)?;
        let name = CString::try_from_fmt(fmt!("ferronic-{}-{}", DeviceName(self.pdev), role))?;
        self.lines.reserve(1, GFP_KERNEL)?;
        let flags = if self.msix { 0 } else { bindings::IRQF_SHARED };
        let cookie = Arc::into_raw(handler).cast_mut().cast::<c_void>();
        // SAFETY: `call` may be called with the cookie until the line is freed, for which the name
        // lives too.
        let done = to_result(unsafe {
            bindings::request_threaded_irq(
                irq,
                Some(call::<H>),
                None,
                flags as usize,
                name.as_char_ptr(),
                cookie,
            )
        });
        // An `Arc` is never null.
        let cookie = NonNull::new(cookie).ok_or(EINVAL)?;
        if let Err(error) = done {
            // SAFETY: It was made raw above, and nobody else has it.
            unsafe { free::<H>(cookie) };
            return Err(error);
        }
        // INVARIANT: It was just registered with this cookie. There is room.
        let line = Line {
            irq,
            cookie,
            free: free::<H>,
            _name: name,
        };
        if self.lines.push(line, GFP_KERNEL).is_err() {
            // Cannot be: room was reserved.
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// Has a vector's interrupts handled on the `index`-th CPU, as far as there are so many.
    pub(crate) fn spread(&self, vector: u32, index: u32) {
        if let Ok(irq) = self.number(vector) {
            // SAFETY: `irq` is one of this device.
            unsafe {
                crate::bindings::ferronic_irq_spread(as_raw(self.pdev).cast(), irq, index);
            }
        }
    }
}

impl Drop for Vectors<'_> {
    fn drop(&mut self) {
        for line in self.lines.drain_all() {
            // SAFETY: By the type invariant. When this returns the handler is no longer run.
            unsafe {
                crate::bindings::ferronic_irq_unspread(line.irq);
                bindings::free_irq(line.irq, line.cookie.as_ptr());
                (line.free)(line.cookie);
            }
        }
        // SAFETY: By the type invariant they are allocated, and no handler is left.
        unsafe { bindings::pci_free_irq_vectors(as_raw(self.pdev)) };
    }
}

/// The name of a device, as in sysfs.
struct DeviceName<'a>(&'a pci::Device<Bound>);

impl fmt::Display for DeviceName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dev: &kernel::device::Device<Bound> = self.0.as_ref();
        f.write_str(dev.name().to_str().unwrap_or("?"))
    }
}

/// A function whose memory and bus mastering are on, until this is dropped.
///
/// # Invariants
///
/// `pdev` was enabled.
pub(crate) struct Enabled<'bound> {
    pdev: &'bound pci::Device<Bound>,
}

impl<'bound> Enabled<'bound> {
    /// Turns both on.
    pub(crate) fn new(pdev: &'bound pci::Device<kernel::device::Core<'_>>) -> Result<Self> {
        pdev.enable_device_mem()?;
        // INVARIANT: Just done.
        let enabled = Self { pdev };
        // SAFETY: The device has no DMA memory yet.
        unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())? };
        pdev.set_master();
        Ok(enabled)
    }
}

impl Drop for Enabled<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; `pdev` is a valid PCI device.
        unsafe { crate::bindings::ferronic_pci_disable(as_raw(self.pdev).cast()) };
    }
}
