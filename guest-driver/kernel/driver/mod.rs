// SPDX-License-Identifier: GPL-2.0

//! The driver proper.

#![deny(unsafe_code)]

use kernel::{
    device::Core,
    pci,
    prelude::*, //
};

/// The PCI driver.
pub(crate) struct Ferronic;

kernel::pci_device_table!(
    PCI_TABLE,
    <Ferronic as pci::Driver>::IdInfo,
    [
        // A network card, and a transitional one (VIRTIO 1.3, 4.1.2).
        (
            pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, 0x1041),
            ()
        ),
        (
            pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, 0x1000),
            ()
        ),
    ]
);

impl pci::Driver for Ferronic {
    type IdInfo = ();
    type Data<'bound> = ();
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        dev_info!(pdev, "not driven yet\n");
        Err(ENODEV)
    }
}
