// SPDX-License-Identifier: GPL-2.0

//! Windows of BARs: register access that cannot leave a structure.

use super::capability::Range;
use kernel::{
    io::{
        Io,
        IoCapable,
        IoLoc,
        MmioBackend,
        Region, //
    },
    pci,
    prelude::*,
    sync::Arc, //
};

/// The BARs of a device, each mapped once however many structures lie in it.
pub(super) struct Bars<'bound> {
    pdev: &'bound pci::Device<kernel::device::Bound>,
    mapped: [Option<Arc<pci::Bar<'bound>>>; 6],
}

impl<'bound> Bars<'bound> {
    pub(super) fn new(pdev: &'bound pci::Device<kernel::device::Bound>) -> Self {
        Self {
            pdev,
            mapped: Default::default(),
        }
    }

    /// Returns the window `range`, and maps its BAR if that is not yet done.
    pub(super) fn window(&mut self, range: Range) -> Result<Window<'bound>> {
        let slot = self.mapped.get_mut(usize::from(range.bar)).ok_or(EINVAL)?;
        let bar = match slot {
            Some(bar) => bar.clone(),
            None => {
                let bar = self.pdev.iomap_region(range.bar.into(), c"ferronic")?;
                slot.insert(Arc::new(bar, GFP_KERNEL)?).clone()
            }
        };
        let window = Window {
            bar,
            offset: usize::try_from(range.offset)?,
            length: usize::try_from(range.length)?,
        };
        let end = window.offset.checked_add(window.length).ok_or(EINVAL)?;
        if end > window.bar().size() {
            return Err(EINVAL);
        }
        Ok(window)
    }
}

/// A range of a BAR that holds one structure.
///
/// # Invariants
///
/// `offset + length` does not overflow and is at most the size of the BAR.
pub(super) struct Window<'bound> {
    bar: Arc<pci::Bar<'bound>>,
    offset: usize,
    length: usize,
}

impl<'bound> Window<'bound> {
    fn bar(&self) -> &pci::Bar<'bound> {
        &self.bar
    }

    /// Length in octets.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Reads the register at `offset`. `EINVAL` if it is not in the window or misaligned.
    pub(super) fn read<V>(&self, offset: usize) -> Result<V>
    where
        usize: IoLoc<Region, V, IoType = V>,
        MmioBackend: IoCapable<V>,
    {
        self.bar().try_read(self.locate::<V>(offset)?)
    }

    /// Writes the register at `offset`. `EINVAL` if it is not in the window or misaligned.
    pub(super) fn write<V>(&self, offset: usize, value: V) -> Result
    where
        usize: IoLoc<Region, V, IoType = V>,
        MmioBackend: IoCapable<V>,
    {
        self.bar().try_write(self.locate::<V>(offset)?, value)
    }

    /// Writes the two halves of a 64-bit register, as 4.1.3.1 wants it.
    pub(super) fn write_halves(&self, offset: usize, value: u64) -> Result {
        // CAST: The halves are taken apart.
        self.write(offset, value as u32)?;
        self.write(offset.checked_add(4).ok_or(EINVAL)?, (value >> 32) as u32)
    }

    /// The offset in the BAR of a `V` at `offset` of the window.
    fn locate<V>(&self, offset: usize) -> Result<usize> {
        match offset.checked_add(size_of::<V>()) {
            // By the type invariant the sum does not overflow.
            Some(end) if end <= self.length => Ok(self.offset.wrapping_add(offset)),
            _ => Err(EINVAL),
        }
    }

    /// A doorbell for the 16-bit register at `offset`.
    pub(super) fn doorbell(&self, offset: usize, queue: u16) -> Result<Doorbell<'bound>> {
        let offset = self.locate::<u16>(offset)?;
        if !offset.is_multiple_of(align_of::<u16>()) {
            return Err(EINVAL);
        }
        Ok(Doorbell {
            bar: self.bar.clone(),
            offset,
            queue,
        })
    }
}

/// Where one queue is notified that buffers are available (4.1.5.2).
///
/// # Invariants
///
/// A `u16` at `offset` lies in the BAR and is aligned.
pub(crate) struct Doorbell<'bound> {
    bar: Arc<pci::Bar<'bound>>,
    offset: usize,
    queue: u16,
}

impl Doorbell<'_> {
    /// Notifies the device.
    ///
    /// All memory written before is visible to the device before it is notified: the write is an
    /// ordered one. May be called in any context.
    #[inline]
    pub(crate) fn ring(&self) {
        let bar: &pci::Bar<'_> = &self.bar;
        // By the type invariant this does not fail.
        let _ = bar.try_write16(self.queue, self.offset);
    }
}
