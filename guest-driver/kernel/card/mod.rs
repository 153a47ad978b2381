// SPDX-License-Identifier: GPL-2.0

//! Cards: PCI functions that are a net device.
//!
//! # Design
//!
//! A net device and handlers of interrupts must be gone before the function is unbound, so what
//! removes them must not be leaked. No type can demand that of whoever has it. So a driver never has
//! it: it implements [`Card`], and what is registered belongs to the driver core, through
//! [`Adapter`], from the moment it is made.

use crate::{
    irq::{
        Enabled,
        Interrupts, //
    },
    net::{
        Operations,
        Registration,
        Setup, //
    },
};
use core::marker::PhantomData;
use kernel::{
    device::{
        Bound,
        Core, //
    },
    pci,
    prelude::*,
    sync::Arc, //
};

/// A driver of cards.
pub(crate) trait Card: Sized + 'static {
    /// The identifiers of functions.
    const ID_TABLE: pci::IdTable<()>;

    /// What is known of a card before there is a net device.
    type Found<'bound>: 'bound;

    /// The net device's data.
    type Net<'bound>: Operations + Send + 'bound;

    /// Whether a function is a card of this kind, as far as identifiers tell.
    fn accepts(pdev: &pci::Device<Bound>) -> bool;

    /// Looks at a card whose memory and bus mastering are on. Also returns how many queues there are
    /// in each direction.
    fn find<'bound>(
        pdev: &'bound pci::Device<Bound>,
        interrupts: Arc<Interrupts<'bound>>,
    ) -> Result<(Self::Found<'bound>, u32)>;

    /// Makes the net device's data.
    // The bound says nothing: it makes the lifetime one that the result can name.
    fn make<'bound>(
        found: Self::Found<'bound>,
        setup: &Setup<'_, Self::Net<'bound>>,
    ) -> Result<impl PinInit<Self::Net<'bound>, Error> + use<'bound, Self>>
    where
        'bound: 'bound;

    /// Called last before the net device is registered.
    fn ready<'bound>(setup: &Setup<'_, Self::Net<'bound>>, net: &Self::Net<'bound>) -> Result;
}

/// Makes a PCI driver of a driver of cards.
pub(crate) struct Adapter<T: Card>(PhantomData<T>);

/// What belongs to a card that is bound. Dropped from the first to the last.
pub(crate) struct Parts<'bound, T: Card> {
    _registration: Registration<'bound, T::Net<'bound>>,
    _enabled: Enabled<'bound>,
}

impl<T: Card> pci::Driver for Adapter<T> {
    type IdInfo = ();
    type Data<'bound> = Parts<'bound, T>;
    const ID_TABLE: pci::IdTable<()> = T::ID_TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: Option<&'bound ()>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        if !T::accepts(pdev) {
            return Err(ENODEV);
        }
        // SAFETY: It is dropped when probing fails, or else when the function is unbound.
        let enabled = unsafe { Enabled::new(pdev)? };
        let (found, queues) = T::find(pdev, enabled.interrupts())?;
        // SAFETY: As before.
        let registration = unsafe {
            Registration::new(
                pdev.as_ref(),
                queues,
                |setup| T::make(found, setup),
                |setup, net| T::ready(setup, net),
            )?
        };
        Ok(Parts {
            _registration: registration,
            _enabled: enabled,
        })
    }
}
