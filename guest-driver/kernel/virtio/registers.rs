// SPDX-License-Identifier: GPL-2.0

//! Registers of a virtio device on the PCI bus.

/// Offsets in the common configuration structure (VIRTIO 1.3, 4.1.4.3).
pub(super) mod common {
    /// u32: which half of the offered features [`DEVICE_FEATURE`] shows.
    pub(in super::super) const DEVICE_FEATURE_SELECT: usize = 0;
    /// u32: features offered.
    pub(in super::super) const DEVICE_FEATURE: usize = 4;
    /// u32: which half of the accepted features [`DRIVER_FEATURE`] is.
    pub(in super::super) const DRIVER_FEATURE_SELECT: usize = 8;
    /// u32: features accepted.
    pub(in super::super) const DRIVER_FEATURE: usize = 12;
    /// u16: MSI-X vector of changes of the configuration.
    pub(in super::super) const CONFIG_MSIX_VECTOR: usize = 16;
    /// u16: how many queues there can be.
    pub(in super::super) const NUM_QUEUES: usize = 18;
    /// u8: [`Status`](super::Status).
    pub(in super::super) const DEVICE_STATUS: usize = 20;
    /// u8: changes when the device's configuration does.
    pub(in super::super) const CONFIG_GENERATION: usize = 21;
    /// u16: which queue the following are about.
    pub(in super::super) const QUEUE_SELECT: usize = 22;
    /// u16: size; after a reset the largest that the device can do, 0 for no such queue.
    pub(in super::super) const QUEUE_SIZE: usize = 24;
    /// u16: MSI-X vector of the queue.
    pub(in super::super) const QUEUE_MSIX_VECTOR: usize = 26;
    /// u16: 1 while the queue is enabled.
    pub(in super::super) const QUEUE_ENABLE: usize = 28;
    /// u16: where the queue is notified.
    pub(in super::super) const QUEUE_NOTIFY_OFF: usize = 30;
    /// u64: descriptor area.
    pub(in super::super) const QUEUE_DESC: usize = 32;
    /// u64: driver area.
    pub(in super::super) const QUEUE_DRIVER: usize = 40;
    /// u64: device area.
    pub(in super::super) const QUEUE_DEVICE: usize = 48;
    /// So many u32 hold the registers that every device has.
    pub(crate) const DUMP_WORDS: usize = 14;
    /// u16: 1 resets the queue (with RING_RESET).
    pub(in super::super) const QUEUE_RESET: usize = 58;
}

/// "No vector": the value that stands for it in the registers of MSI-X vectors (4.1.4.3.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// The device status field (2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(u8);

impl Status {
    /// The state after a reset.
    pub(super) const RESET: Self = Self(0);
    /// The guest has seen the device.
    pub(super) const ACKNOWLEDGE: Self = Self(1);
    /// The guest can drive it.
    pub(super) const DRIVER: Self = Self(2);
    /// The driver is ready: queues are served.
    pub(crate) const DRIVER_OK: Self = Self(4);
    /// Both sides agree on features.
    pub(super) const FEATURES_OK: Self = Self(8);
    /// The device can only go on after a reset.
    pub(crate) const NEEDS_RESET: Self = Self(64);
    /// The driver has given up.
    pub(crate) const FAILED: Self = Self(128);
    /// What is read when no device answers, as after it was pulled out.
    pub(crate) const GONE: Self = Self(0xff);

    pub(super) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The register's value.
    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all bits of `other` are set.
    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no device answers. (A device never has all bits set: two are reserved.)
    pub(crate) const fn is_gone(self) -> bool {
        self.0 == Self::GONE.0
    }

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The interrupt status (4.1.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Isr(u8);

impl Isr {
    pub(super) const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Some queue has something for the driver.
    pub(crate) const fn queue(self) -> bool {
        self.0 & 1 != 0
    }

    /// The configuration has changed.
    pub(crate) const fn config(self) -> bool {
        self.0 & 2 != 0
    }

    /// The interrupt was not this device's, or the device is gone.
    pub(crate) const fn is_none(self) -> bool {
        !self.queue() && !self.config()
    }
}
