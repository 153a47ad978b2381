// SPDX-License-Identifier: GPL-2.0

//! The PCI transport (VIRTIO 1.3, 4.1): a device's registers.

use super::{
    capability::{
        self,
        ConfigSpace, //
    },
    features::{
        self,
        Features,
        Requirement, //
    },
    registers::{
        common,
        Isr,
        Status,
        NO_VECTOR, //
    },
    window::{
        Bars,
        Doorbell,
        Window, //
    }, //
};
use crate::{
    dma,
    fault, //
};
use kernel::{
    device::Bound,
    io::{
        poll::read_poll_timeout,
        Io, //
    },
    new_mutex,
    pci,
    prelude::*,
    sync::Mutex,
    time::Delta, //
};

/// How long a reset may take. A device that is a process has to stop its workers.
const RESET_TIMEOUT: Delta = Delta::from_secs(5);
/// How often it is looked whether a reset is over.
const RESET_POLL: Delta = Delta::from_millis(1);

/// So often a read of the configuration is tried while the device keeps changing it.
const CONFIG_ATTEMPTS: usize = 100;

/// Device identifiers from here on are modern: 0x1040 plus the type (4.1.2).
const MODERN_ID_BASE: u16 = 0x1040;
/// Identifiers of transitional devices, whose type is the subsystem's identifier.
const TRANSITIONAL_IDS: core::ops::RangeInclusive<u16> = 0x1000..=0x103f;

/// The type of a virtio device (5), such as 1 for a network card.
///
/// `None` if the function is not a virtio device. A transitional one is driven through its modern
/// structures, like any other.
pub(crate) fn device_type(pdev: &pci::Device) -> Option<u16> {
    type_of(pdev.device_id(), pdev.subsystem_device_id())
}

fn type_of(device: u16, subsystem: u16) -> Option<u16> {
    if TRANSITIONAL_IDS.contains(&device) {
        return Some(subsystem);
    }
    // 0x1040 to 0x107f are virtio's.
    device
        .checked_sub(MODERN_ID_BASE)
        .filter(|kind| (1..0x40).contains(kind))
}

/// Where the parts of a queue are, for [`Transport::enable_queue`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueAddresses {
    /// Number of descriptors.
    pub(crate) size: u16,
    /// DMA address of the descriptor area.
    pub(crate) descriptor: u64,
    /// DMA address of the driver area.
    pub(crate) driver: u64,
    /// DMA address of the device area.
    pub(crate) device: u64,
}

/// The registers of a virtio PCI device.
///
/// Everything but [`Transport::isr`], [`Transport::status`] and what comes of them may sleep.
/// Methods may be called at the same time from several contexts.
pub(crate) struct Transport<'bound> {
    pdev: &'bound pci::Device<Bound>,
    common: Window<'bound>,
    notify: Window<'bound>,
    notify_off_multiplier: u32,
    isr: Window<'bound>,
    device: Option<Window<'bound>>,
    /// Held while a select register must keep its value.
    select: Pin<KBox<Mutex<()>>>,
}

/// The configuration space and BARs as [`capability::walk`] wants to see them.
struct Function<'a>(&'a pci::Device<Bound>);

impl ConfigSpace for Function<'_> {
    fn read8(&self, offset: u8) -> Option<u8> {
        self.0.config_space().try_read8(offset.into()).ok()
    }

    fn bar_length(&self, index: u8) -> u64 {
        /// PCI_BASE_ADDRESS_0.
        const BASE_ADDRESS: u8 = 0x10;
        /// PCI_BASE_ADDRESS_SPACE_IO.
        const SPACE_IO: u8 = 1;
        if index > 5 {
            return 0;
        }
        match self.read8(BASE_ADDRESS + 4 * index) {
            Some(low) if low & SPACE_IO == 0 => self.0.resource_len(index.into()).unwrap_or(0),
            _ => 0,
        }
    }
}

impl<'bound> Transport<'bound> {
    /// Finds the device's structures and maps them.
    ///
    /// The device's memory must have been enabled. `ENODEV` if a structure is missing.
    pub(crate) fn new(pdev: &'bound pci::Device<Bound>) -> Result<Self> {
        fault::point()?;
        let found = capability::walk(&Function(pdev)).map_err(|missing| {
            dev_err!(pdev, "no usable {}: a legacy device?\n", missing.name());
            ENODEV
        })?;
        let mut bars = Bars::new(pdev);
        Ok(Self {
            pdev,
            common: bars.window(found.common)?,
            notify: bars.window(found.notify)?,
            notify_off_multiplier: found.notify_off_multiplier,
            isr: bars.window(found.isr)?,
            device: found.device.map(|range| bars.window(range)).transpose()?,
            select: KBox::pin_init(new_mutex!((), "ferronic::select"), GFP_KERNEL)?,
        })
    }

    /// The device status; [`Status::GONE`] if nothing answers.
    pub(crate) fn status(&self) -> Status {
        self.common
            .read(common::DEVICE_STATUS)
            .map_or(Status::GONE, Status::from_bits)
    }

    fn set_status(&self, status: Status) -> Result {
        self.common.write(common::DEVICE_STATUS, status.bits())
    }

    /// Sets further bits of the status. `ENODEV` if the device is gone.
    fn add_status(&self, more: Status) -> Result {
        let status = self.status();
        if status.is_gone() {
            return Err(ENODEV);
        }
        self.set_status(status.with(more))
    }

    /// Resets the device and waits until that is done (2.4, 4.1.4.3.2).
    ///
    /// Afterwards the device touches no memory. `ETIMEDOUT` if it does not come to rest in some
    /// seconds, `ENODEV` if it is gone.
    pub(crate) fn reset(&self) -> Result {
        self.set_status(Status::RESET)?;
        let status = read_poll_timeout(
            || Ok(self.status()),
            |status| *status == Status::RESET || status.is_gone(),
            RESET_POLL,
            RESET_TIMEOUT,
        )?;
        if status.is_gone() {
            return Err(ENODEV);
        }
        Ok(())
    }

    /// Resets the device and agrees with it on features (3.1.1, steps 1 to 6).
    ///
    /// What [`Features`] of the rings this driver cannot do are not accepted even if wanted, nor
    /// are those that need one of `requirements` that is not accepted. Returns what was accepted.
    ///
    /// `ENODEV` if the device is a legacy one, does not agree, or would go past an IOMMU.
    pub(crate) fn negotiate(
        &self,
        wanted: Features,
        requirements: &[Requirement],
    ) -> Result<Features> {
        self.reset()?;
        fault::point()?;
        self.add_status(Status::ACKNOWLEDGE)?;
        self.add_status(Status::DRIVER)?;
        if !self.status().contains(Status::DRIVER) {
            dev_err!(self.pdev, "does not answer\n");
            return Err(ENODEV);
        }
        let offered = self.offered()?;
        let Ok(accepted) = features::choose(offered, wanted, requirements) else {
            dev_err!(self.pdev, "legacy device: offers {:#x}\n", offered.bits());
            self.fail();
            return Err(ENODEV);
        };
        if !accepted.contains(Features::ACCESS_PLATFORM) && dma::is_translated(self.pdev.as_ref()) {
            // It would take what the IOMMU is to translate for addresses of memory, anyone's.
            dev_err!(
                self.pdev,
                "uses physical addresses, but is behind an IOMMU\n"
            );
            self.fail();
            return Err(ENODEV);
        }
        self.accept(accepted)?;
        self.add_status(Status::FEATURES_OK)?;
        if !self.status().contains(Status::FEATURES_OK) || self.status().is_gone() {
            dev_err!(
                self.pdev,
                "refuses features {:#x} of {:#x}\n",
                accepted.bits(),
                offered.bits()
            );
            self.fail();
            return Err(ENODEV);
        }
        Ok(accepted)
    }

    /// The features that the device offers.
    pub(crate) fn offered(&self) -> Result<Features> {
        let _selected = self.select.lock();
        let half = |select: u32| -> Result<u64> {
            self.common.write(common::DEVICE_FEATURE_SELECT, select)?;
            Ok(self.common.read::<u32>(common::DEVICE_FEATURE)?.into())
        };
        Ok(Features::from_bits(half(0)? | half(1)? << 32))
    }

    fn accept(&self, features: Features) -> Result {
        let _selected = self.select.lock();
        for select in 0..2u32 {
            self.common.write(common::DRIVER_FEATURE_SELECT, select)?;
            // CAST: One half at a time.
            let half = (features.bits() >> (32 * select)) as u32;
            self.common.write(common::DRIVER_FEATURE, half)?;
        }
        Ok(())
    }

    /// Tells the device that the driver is ready (3.1.1, step 8).
    pub(crate) fn driver_ok(&self) -> Result {
        fault::point()?;
        self.add_status(Status::DRIVER_OK)
    }

    /// Tells the device that the driver has given up.
    pub(crate) fn fail(&self) {
        // Nothing is left to be done about a device that is gone.
        let _ = self.add_status(Status::FAILED);
    }

    /// Reads the interrupt status, which clears it. For INTx only.
    pub(crate) fn isr(&self) -> Isr {
        match self.isr.read(0) {
            // All ones: the device is gone, and the interrupt not its.
            Ok(u8::MAX) | Err(_) => Isr::from_bits(0),
            Ok(bits) => Isr::from_bits(bits),
        }
    }

    /// Sets the MSI-X vector of configuration changes. `EBUSY` if the device has no room for it.
    pub(crate) fn set_config_vector(&self, vector: Option<u16>) -> Result {
        fault::point()?;
        let value = vector.unwrap_or(NO_VECTOR);
        self.common.write(common::CONFIG_MSIX_VECTOR, value)?;
        // 4.1.5.1.2.2: the driver must verify that it was taken.
        if self.common.read::<u16>(common::CONFIG_MSIX_VECTOR)? != value {
            return Err(EBUSY);
        }
        Ok(())
    }

    /// How many queues the device can have.
    pub(crate) fn queue_count(&self) -> Result<u16> {
        self.common.read(common::NUM_QUEUES)
    }

    /// Calls `f` with queue `index` selected. `ENOENT` if there is no such queue.
    fn with_queue<R>(&self, index: u16, f: impl FnOnce(&Window<'bound>) -> Result<R>) -> Result<R> {
        fault::point()?;
        if index >= self.queue_count()? {
            return Err(ENOENT);
        }
        let _selected = self.select.lock();
        self.common.write(common::QUEUE_SELECT, index)?;
        f(&self.common)
    }

    /// The largest size that queue `index` can have; meaningful while it is not enabled.
    ///
    /// `ENOENT` if there is no such queue.
    pub(crate) fn queue_max_size(&self, index: u16) -> Result<u16> {
        match self.with_queue(index, |common| common.read(common::QUEUE_SIZE))? {
            0 => Err(ENOENT),
            size => Ok(size),
        }
    }

    /// Gives the device a queue and enables it (4.1.5.1.3).
    ///
    /// The memory of the queue must live until the device, or the queue, has been reset.
    ///
    /// `ENOENT` if there is no such queue, `EBUSY` if it is enabled already or has no room for the
    /// vector, `EINVAL` if it cannot be that large.
    pub(crate) fn enable_queue(
        &self,
        index: u16,
        queue: &QueueAddresses,
        vector: Option<u16>,
    ) -> Result {
        self.with_queue(index, |common| {
            let max: u16 = common.read(common::QUEUE_SIZE)?;
            if max == 0 {
                return Err(ENOENT);
            }
            if common.read::<u16>(common::QUEUE_ENABLE)? != 0 {
                return Err(EBUSY);
            }
            if queue.size == 0 || queue.size > max {
                return Err(EINVAL);
            }
            common.write(common::QUEUE_SIZE, queue.size)?;
            common.write_halves(common::QUEUE_DESC, queue.descriptor)?;
            common.write_halves(common::QUEUE_DRIVER, queue.driver)?;
            common.write_halves(common::QUEUE_DEVICE, queue.device)?;
            let vector = vector.unwrap_or(NO_VECTOR);
            common.write(common::QUEUE_MSIX_VECTOR, vector)?;
            if common.read::<u16>(common::QUEUE_MSIX_VECTOR)? != vector {
                return Err(EBUSY);
            }
            common.write(common::QUEUE_ENABLE, 1u16)
        })
    }

    /// Resets one queue and waits until that is done (2.6.1, 4.1.5.1.4). Afterwards the device
    /// touches none of its memory and it can be enabled anew.
    ///
    /// Only with [`Features::RING_RESET`]. Errors as in [`Self::reset`].
    pub(crate) fn reset_queue(&self, index: u16) -> Result {
        self.with_queue(index, |common| {
            common.write(common::QUEUE_RESET, 1u16)?;
            let read = || {
                let reset: u16 = common.read(common::QUEUE_RESET)?;
                let enable: u16 = common.read(common::QUEUE_ENABLE)?;
                Ok((reset, enable))
            };
            let over = |state: &(u16, u16)| *state == (0, 0) || *state == (u16::MAX, u16::MAX);
            match read_poll_timeout(read, over, RESET_POLL, RESET_TIMEOUT)? {
                (0, 0) => Ok(()),
                _ => Err(ENODEV),
            }
        })
    }

    /// What notifies the device of new buffers in queue `index` (4.1.4.4).
    ///
    /// `EINVAL` if the device says that the place is outside its notification structure.
    pub(crate) fn doorbell(&self, index: u16) -> Result<Doorbell<'bound>> {
        let off: u16 = self.with_queue(index, |common| common.read(common::QUEUE_NOTIFY_OFF))?;
        // The product of 16 and 32 bits fits in 64.
        let offset = u64::from(off) * u64::from(self.notify_off_multiplier);
        self.notify.doorbell(usize::try_from(offset)?, index)
    }

    /// The common configuration structure as it is (4.1.4.3), with queue `index` selected: for
    /// whoever wants to look at the device. Errors as in [`Self::queue_max_size`].
    pub(crate) fn dump(&self, index: u16) -> Result<[u32; common::DUMP_WORDS]> {
        self.with_queue(index, |common| {
            let mut words = [0; common::DUMP_WORDS];
            for (i, word) in words.iter_mut().enumerate() {
                let offset = 4 * i;
                // Each register in its own width (4.1.3.1).
                let half = |offset: usize| common.read::<u16>(offset).map(u32::from);
                *word = match offset {
                    common::DEVICE_STATUS => {
                        let status: u8 = common.read(common::DEVICE_STATUS)?;
                        let generation: u8 = common.read(common::CONFIG_GENERATION)?;
                        let queue = half(common::QUEUE_SELECT)?;
                        u32::from(status) | u32::from(generation) << 8 | queue << 16
                    }
                    common::CONFIG_MSIX_VECTOR | common::QUEUE_SIZE..common::QUEUE_DESC => {
                        half(offset)? | half(offset + 2)? << 16
                    }
                    _ => common.read(offset)?,
                };
            }
            Ok(words)
        })
    }

    /// Length of the device's configuration in octets.
    pub(crate) fn config_length(&self) -> usize {
        self.device.as_ref().map_or(0, Window::length)
    }

    /// Reads a field of the device's configuration. `EINVAL` if the device has none there, `EBUSY`
    /// if it kept changing, `ENODEV` if the device is gone.
    pub(crate) fn read_config<F: ConfigField>(&self, offset: usize) -> Result<F> {
        self.read_config_with(|config| config.read(offset))
    }

    /// Calls `f` to read several fields of the device's configuration, again and again until all
    /// are of one state of it (2.5.3, 4.1.4.3.1). Errors as in [`Self::read_config`].
    pub(crate) fn read_config_with<R>(
        &self,
        f: impl Fn(Config<'_, 'bound>) -> Result<R>,
    ) -> Result<R> {
        fault::point()?;
        let config = Config(self.device.as_ref().ok_or(EINVAL)?);
        let mut before: u8 = self.common.read(common::CONFIG_GENERATION)?;
        for _ in 0..CONFIG_ATTEMPTS {
            let value = f(config)?;
            let after = self.common.read(common::CONFIG_GENERATION)?;
            if after == before {
                // All that is read from a device that is gone is ones.
                if self.status().is_gone() {
                    return Err(ENODEV);
                }
                return Ok(value);
            }
            before = after;
        }
        Err(EBUSY)
    }

    /// Writes a field of the device's configuration. `EINVAL` if the device has none there.
    pub(crate) fn write_config<F: ConfigField>(&self, offset: usize, value: F) -> Result {
        value.write(self.device.as_ref().ok_or(EINVAL)?, offset)
    }
}

/// The device's configuration while it is being read by [`Transport::read_config_with`].
#[derive(Clone, Copy)]
pub(crate) struct Config<'a, 'bound>(&'a Window<'bound>);

impl Config<'_, '_> {
    /// Reads the field at `offset`. `EINVAL` if the device has none there.
    pub(crate) fn read<F: ConfigField>(self, offset: usize) -> Result<F> {
        F::read(self.0, offset)
    }
}

mod sealed {
    pub(crate) trait Sealed {}
}

/// Types of fields of the device's configuration.
///
/// Each is accessed in the width that 4.1.3.1 wants for it: octets one by one, 16 and 32 bits at
/// once, 64 bits by halves. Integers are in the processor's byte order here.
#[expect(private_interfaces, reason = "sealed")]
pub(crate) trait ConfigField: Sized + sealed::Sealed {
    #[doc(hidden)]
    fn read(window: &Window<'_>, offset: usize) -> Result<Self>;
    #[doc(hidden)]
    fn write(self, window: &Window<'_>, offset: usize) -> Result;
}

macro_rules! impl_config_field {
    ($($type:ty),*) => {$(
        impl sealed::Sealed for $type {}

        #[expect(private_interfaces, reason = "sealed")]
        impl ConfigField for $type {
            fn read(window: &Window<'_>, offset: usize) -> Result<Self> {
                window.read(offset)
            }

            fn write(self, window: &Window<'_>, offset: usize) -> Result {
                window.write(offset, self)
            }
        }
    )*};
}

impl_config_field!(u8, u16, u32);

impl sealed::Sealed for u64 {}

#[expect(private_interfaces, reason = "sealed")]
impl ConfigField for u64 {
    fn read(window: &Window<'_>, offset: usize) -> Result<Self> {
        let low: u32 = window.read(offset)?;
        let high: u32 = window.read(offset.checked_add(4).ok_or(EINVAL)?)?;
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn write(self, window: &Window<'_>, offset: usize) -> Result {
        window.write_halves(offset, self)
    }
}

impl<const N: usize> sealed::Sealed for [u8; N] {}

#[expect(private_interfaces, reason = "sealed")]
impl<const N: usize> ConfigField for [u8; N] {
    fn read(window: &Window<'_>, offset: usize) -> Result<Self> {
        let mut octets = [0; N];
        for (i, octet) in octets.iter_mut().enumerate() {
            *octet = window.read(offset.checked_add(i).ok_or(EINVAL)?)?;
        }
        Ok(octets)
    }

    fn write(self, window: &Window<'_>, offset: usize) -> Result {
        for (i, octet) in self.into_iter().enumerate() {
            window.write(offset.checked_add(i).ok_or(EINVAL)?, octet)?;
        }
        Ok(())
    }
}

#[kunit_tests(ferronic_device_type)]
mod tests {
    use super::*;

    #[test]
    fn types_of_devices() {
        assert_eq!(type_of(0x1041, 0x1100), Some(1));
        assert_eq!(type_of(0x1000, 1), Some(1));
        assert_eq!(type_of(0x1001, 2), Some(2));
        // A block device on the identifier that network cards use.
        assert_eq!(type_of(0x1000, 2), Some(2));
        for not_virtio in [0, 0x0fff, 0x1040, 0x1080, 0xffff] {
            assert_eq!(type_of(not_virtio, 1), None);
        }
    }
}
