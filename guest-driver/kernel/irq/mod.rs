// SPDX-License-Identifier: GPL-2.0

//! Interrupts of a PCI function: any number of vectors, each with a handler and a name.
//!
//! The kernel crate's [`kernel::irq::Registration`] borrows from the allocation of the vectors and
//! takes names that are known when the driver is built; here both belong to one value, so that a
//! driver can have as many as its device and the machine allow. What a driver has is a handle: were it
//! leaked, [`Enabled`] would remove handlers and vectors none the less before the function is unbound.
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
    new_mutex,
    pci,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// A handler that is registered.
struct Line {
    irq: u32,
    cookie: NonNull<c_void>,
    /// Frees what the cookie is.
    free: unsafe fn(NonNull<c_void>),
    _name: CString,
}

// SAFETY: Handlers are `Send` and `Sync`, and removing them may be done by any thread.
unsafe impl Send for Line {}

/// The interrupts of a PCI function.
///
/// # Invariants
///
/// Vectors of `pdev` are allocated while `lines` is not `None`. Each line has a handler registered
/// for `irq` with `cookie`, which is a pointer that `Arc::into_raw` has returned.
#[pin_data]
pub(crate) struct Interrupts<'bound> {
    pdev: &'bound pci::Device<Bound>,
    #[pin]
    lines: Mutex<Option<KVec<Line>>>,
}

impl Interrupts<'_> {
    /// Removes all handlers and vectors, if there are any. May sleep.
    fn free(&self) {
        let lines = self.lines.lock().take();
        let Some(mut lines) = lines else { return };
        for line in lines.drain_all() {
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

/// Vectors of a PCI function, with their handlers. Dropping it removes all.
///
/// # Invariants
///
/// `count` vectors were allocated.
pub(crate) struct Vectors<'bound> {
    interrupts: Arc<Interrupts<'bound>>,
    count: u32,
    msix: bool,
}

/// The C side of `pdev`.
fn as_raw(pdev: &pci::Device<Bound>) -> *mut bindings::pci_dev {
    // `Device` is a transparent wrapper of `struct pci_dev`, which is only touched through C.
    core::ptr::from_ref(pdev).cast_mut().cast()
}

impl<'bound> Vectors<'bound> {
    /// Allocates up to `wanted` MSI-X vectors, or else the one that INTx has. `EBUSY` if there are
    /// some already.
    pub(crate) fn new(interrupts: &Arc<Interrupts<'bound>>, wanted: u32) -> Result<Self> {
        let pdev = interrupts.pdev;
        let mut lines = interrupts.lines.lock();
        if lines.is_some() {
            return Err(EBUSY);
        }
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
        *lines = Some(KVec::new());
        drop(lines);
        Ok(Self {
            interrupts: interrupts.clone(),
            count: count.unsigned_abs(),
            msix: is_msix,
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
        // SAFETY: `pdev` is a valid PCI device; what is no vector of it is noticed.
        let irq = unsafe { bindings::pci_irq_vector(as_raw(self.interrupts.pdev), vector) };
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
        let pdev = self.interrupts.pdev;
        let name = CString::try_from_fmt(fmt!("ferronic-{}-{}", DeviceName(pdev), role))?;
        let mut guard = self.interrupts.lines.lock();
        let lines = Option::as_mut(&mut guard).ok_or(ENODEV)?;
        lines.reserve(1, GFP_KERNEL)?;
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
        if lines.push(line, GFP_KERNEL).is_err() {
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
                crate::bindings::ferronic_irq_spread(
                    as_raw(self.interrupts.pdev).cast(),
                    irq,
                    index,
                );
            }
        }
    }
}

impl Drop for Vectors<'_> {
    fn drop(&mut self) {
        self.interrupts.free();
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

/// A function whose memory and bus mastering are on, and that may have handlers of interrupts, until
/// this is dropped.
///
/// # Invariants
///
/// The function was enabled.
pub(crate) struct Enabled<'bound> {
    interrupts: Arc<Interrupts<'bound>>,
}

impl<'bound> Enabled<'bound> {
    /// Turns both on.
    ///
    /// # Safety
    ///
    /// The result must be dropped before `'bound` ends: handlers of interrupts may run until then.
    pub(crate) unsafe fn new(pdev: &'bound pci::Device<kernel::device::Core<'_>>) -> Result<Self> {
        let bound: &'bound pci::Device<Bound> = pdev;
        // INVARIANT: There are no vectors yet.
        let interrupts = Arc::pin_init(
            pin_init!(Interrupts {
                pdev: bound,
                lines <- new_mutex!(None, "ferronic::interrupts"),
            }),
            GFP_KERNEL,
        )?;
        pdev.enable_device_mem()?;
        // INVARIANT: Just done.
        let enabled = Self { interrupts };
        // SAFETY: The device has no DMA memory yet.
        unsafe { pdev.dma_set_mask_and_coherent(DmaMask::new::<64>())? };
        pdev.set_master();
        Ok(enabled)
    }

    /// The function's interrupts.
    pub(crate) fn interrupts(&self) -> Arc<Interrupts<'bound>> {
        self.interrupts.clone()
    }
}

impl Drop for Enabled<'_> {
    fn drop(&mut self) {
        self.interrupts.free();
        // SAFETY: By the type invariant; `pdev` is a valid PCI device.
        unsafe { crate::bindings::ferronic_pci_disable(as_raw(self.interrupts.pdev).cast()) };
    }
}
