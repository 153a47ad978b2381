// SPDX-License-Identifier: GPL-2.0

//! The driver proper.
//!
//! A packet's way out is [`nic`] (`start_xmit`), [`tx`], the device; its way in the device,
//! [`interrupts`], [`rx`]. What else there is: [`features`] and [`config`] say what the device
//! can, [`control`] tells it what to do, [`header`] is what goes before each packet.

#![deny(unsafe_code)]

mod coalesce;
mod config;
mod control;
mod device_stats;
mod ethtool;
mod features;
mod header;
mod interrupts;
mod lifecycle;
mod nic;
mod queues;
mod rss;
mod rx;
mod stats;
mod tx;

use crate::{
    irq::Enabled,
    net::{
        self,
        Registration, //
    },
    virtio::{
        self,
        Broken,
        Transport, //
    }, //
};
use kernel::{
    device::Core,
    pci,
    prelude::*,
    sync::Arc, //
};
use nic::Nic;

/// The type of a virtio device that is a network card (5).
const NETWORK_CARD: u16 = 1;

/// Events for [`net::Operations::work`].
struct Work;

impl Work {
    /// The configuration may have changed.
    const CONFIG: usize = 1;
    /// The device has to be reset.
    const RESET: usize = 2;
    /// It was decided how to hold interrupts back.
    const MODERATE: usize = 4;
    /// There was no memory for buffers: try again.
    const REFILL: usize = 8;
}

/// Says what a device did to a queue, if that was not said too often.
#[cold]
fn report_broken(
    pdev: &pci::Device<kernel::device::Bound>,
    kind: &str,
    index: u32,
    broken: Option<Broken>,
) {
    if !net::ratelimit() {
        return;
    }
    match broken {
        Some(broken) => {
            let (said, limit) = broken.values();
            dev_err!(
                pdev,
                "{} queue {}: device {} ({:#x}, limit {:#x})\n",
                kind,
                index,
                broken.name(),
                said,
                limit
            );
        }
        None => dev_err!(
            pdev,
            "{} queue {}: device does not give all of a packet\n",
            kind,
            index
        ),
    }
}

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

/// What belongs to a device that is bound. Dropped from the first to the last.
pub(crate) struct Card<'bound> {
    _registration: Registration<'bound, Nic<'bound>>,
    _enabled: Enabled<'bound>,
}

impl pci::Driver for Ferronic {
    type IdInfo = ();
    type Data<'bound> = Card<'bound>;
    const ID_TABLE: pci::IdTable<Self::IdInfo> = &PCI_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound Self::IdInfo>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        if virtio::device_type(pdev) != Some(NETWORK_CARD) {
            return Err(ENODEV);
        }
        let enabled = Enabled::new(pdev)?;
        let transport = Arc::new(Transport::new(pdev)?, GFP_KERNEL)?;
        let pairs = Nic::probe_pairs(&transport)?;
        let registration = Registration::new(
            pdev.as_ref(),
            pairs.into(),
            |setup| Nic::new(pdev, transport, pairs, setup),
            |setup, nic: &Nic<'_>| nic.start(setup),
        )?;
        Ok(Card {
            _registration: registration,
            _enabled: enabled,
        })
    }
}
