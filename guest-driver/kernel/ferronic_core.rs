// SPDX-License-Identifier: GPL-2.0

//! A driver for virtio network cards on the PCI bus (VIRTIO 1.3, 5.1).
//!
//! Each folder is a layer that knows only those named before it:
//!
//! - `bindings`: what the kernel's own bindings lack, and C shims
//! - `fault`: where things are made to fail by tests
//! - `dma`: memory that a device may touch
//! - `virtio`: the device's registers and its queues
//! - `irq`: interrupts of a PCI function
//! - `net`: safe wrappers for the networking core
//! - `card`: a PCI function that is a net device
//! - `driver`: the driver proper

mod bindings;
mod card;
#[allow(dead_code, reason = "a wrapper, whole whatever is used of it")]
mod dma;
mod driver;
mod fault;
mod irq;
#[allow(dead_code, unused_imports, reason = "a wrapper, as `dma`")]
mod net;
#[allow(dead_code, unused_imports, reason = "a wrapper, as `dma`")]
mod virtio;

type Driver = card::Adapter<driver::Ferronic>;

kernel::module_pci_driver! {
    type: Driver,
    name: "ferronic",
    authors: ["The Ferronic authors"],
    description: "virtio network card",
    license: "GPL v2",
}
