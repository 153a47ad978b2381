// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's driver of the NIC: Linux's own, or ours.
//!
//! Both are modules. In the guest, the script `driver` loads and unloads either; see
//! `qemu/guest/driver`.

/// A driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// Linux's own, virtio_net
    C,
    /// Ours, ferronic.ko
    Ferronic,
}

impl Driver {
    /// The one that is used where none is named.
    pub const DEFAULT: Driver = Driver::Ferronic;

    /// All of them.
    pub const ALL: &[Driver] = &[Driver::C, Driver::Ferronic];

    /// Its name on command lines, in the guest and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Driver::C => "c",
            Driver::Ferronic => "ferronic",
        }
    }

    /// What it is, for people.
    pub fn description(self) -> &'static str {
        match self {
            Driver::C => "Linux's own driver",
            Driver::Ferronic => "our driver",
        }
    }

    /// Its name in `/sys/bus/pci/drivers`.
    pub fn on_pci(self) -> &'static str {
        match self {
            Driver::C => "virtio-pci",
            Driver::Ferronic => "ferronic",
        }
    }
}
