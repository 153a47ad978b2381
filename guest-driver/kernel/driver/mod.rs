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
    card::Card,
    irq::Interrupts,
    net::{
        self,
        Setup, //
    },
    virtio::{
        self,
        Broken,
        Transport, //
    }, //
};
use kernel::{
    device::Bound,
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
fn report_broken(pdev: &pci::Device<Bound>, kind: &str, index: u32, broken: Option<Broken>) {
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

/// The driver of our cards.
pub(crate) struct Ferronic;

kernel::pci_device_table!(
    PCI_TABLE,
    (),
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

impl Card for Ferronic {
    const ID_TABLE: pci::IdTable<()> = &PCI_TABLE;

    type Found<'bound> = Found<'bound>;
    type Net<'bound> = Nic<'bound>;

    fn accepts(pdev: &pci::Device<Bound>) -> bool {
        virtio::device_type(pdev) == Some(NETWORK_CARD)
    }

    fn find<'bound>(
        pdev: &'bound pci::Device<Bound>,
        interrupts: Arc<Interrupts<'bound>>,
    ) -> Result<(Found<'bound>, u32)> {
        let transport = Arc::new(Transport::new(pdev)?, GFP_KERNEL)?;
        let pairs = Nic::probe_pairs(&transport)?;
        let found = Found {
            pdev,
            interrupts,
            transport,
            pairs,
        };
        Ok((found, pairs.into()))
    }

    fn make<'bound>(
        found: Found<'bound>,
        setup: &Setup<'_, Nic<'bound>>,
    ) -> Result<impl PinInit<Nic<'bound>, Error> + use<'bound>>
    where
        'bound: 'bound,
    {
        Nic::new(found, setup)
    }

    fn ready<'bound>(setup: &Setup<'_, Nic<'bound>>, nic: &Nic<'bound>) -> Result {
        nic.start(setup)
    }
}

/// A device that was looked at.
pub(crate) struct Found<'bound> {
    pdev: &'bound pci::Device<Bound>,
    interrupts: Arc<Interrupts<'bound>>,
    transport: Arc<Transport<'bound>>,
    /// Pairs of queues, all that are worth to be had.
    pairs: u16,
}
