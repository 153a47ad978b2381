// SPDX-License-Identifier: GPL-2.0

//! Bindings for what the kernel's own do not have, and shims.
//!
//! Only the wrappers in `net/` and `dma/` may use them.

#![allow(
    clippy::all,
    dead_code,
    improper_ctypes,
    improper_ctypes_definitions,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unused_imports
)]
#![allow(
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    unnecessary_transmutes
)]

use kernel::ffi;

// Types of the kernel's bindings, so that values can be passed between both.
pub(crate) use kernel::bindings::{
    bpf_prog, device, device_driver, module, page, pci_dev, scatterlist, sk_buff,
};

// As in rust/bindings/lib.rs.
type __kernel_size_t = usize;
type __kernel_ssize_t = isize;
type __kernel_ptrdiff_t = isize;

include!("bindings_generated.rs");
