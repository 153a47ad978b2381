// SPDX-License-Identifier: GPL-2.0

//! Virtio devices on the PCI bus (VIRTIO 1.3), of whatever type.
//!
//! # Design
//!
//! [`Transport`] is the device's registers, [`Virtqueue`] a queue in memory that the device can
//! reach. They know nothing of each other: [`Virtqueue::addresses`] is what
//! [`Transport::enable_queue`] needs, and [`Doorbell`] is what a queue's [`Virtqueue::publish`]
//! asks to be rung.
//!
//! Without [`Features::ACCESS_PLATFORM`] a device uses physical addresses, and buffers are mapped
//! with [`crate::dma::Mapper::physical`]; with it, with [`crate::dma::Mapper::new`].
//!
//! The device is not trusted. What it says of its registers is checked against its BARs, what it
//! says of buffers against what it was given. Nothing that it can do leads to a panic or to memory
//! being touched that is not its.
//!
//! # Limitations
//!
//! No notification data, no in-order use, no administration queue.

mod capability;
mod features;
mod memory;
mod packed;
mod queue;
mod registers;
mod ring;
mod split;
#[cfg(CONFIG_KUNIT = "y")]
mod testing;
mod transport;
mod window;

pub(crate) use crate::dma::Segment;
pub(crate) use features::{
    Features,
    Requirement, //
};
pub(crate) use queue::{
    best_size,
    Virtqueue, //
};
pub(crate) use registers::{
    Isr,
    Status, //
};
pub(crate) use ring::{
    Broken,
    Full,
    Refused,
    Used, //
};
pub(crate) use transport::{
    device_type,
    Config,
    ConfigField,
    QueueAddresses,
    Transport, //
};
pub(crate) use window::Doorbell;
