// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Descriptor rings over guest memory (VIRTIO 1.3, 2.7).

pub mod pieces;
