// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Descriptor rings over guest memory (VIRTIO 1.3, 2.7 and 2.8).
//!
//! * [`memory`]: guest physical addresses to host memory. All of this layer's raw pointers are
//!   there, in [`pieces`] and in [`piece_list`].
//! * [`pieces`]: a packet as it lies in guest memory; [`piece_list`]: where its pieces are collected.
//! * [`virtqueue`]: a ring of either kind, which is all that the layer above needs to know.
//! * [`split`]: the split virtqueue, seen from the device; [`packed`]: the packed one.

#[cfg(test)]
#[allow(missing_docs)]
pub mod driver;
pub mod memory;
pub mod packed;
#[cfg(test)]
mod packed_batch_tests;
#[cfg(test)]
#[allow(missing_docs)]
pub mod packed_driver;
#[cfg(test)]
mod packed_tests;
pub mod piece_list;
pub mod pieces;
pub mod split;
#[cfg(test)]
mod split_tests;
pub mod virtqueue;
