// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the lab makes once and keeps in the cache.
//!
//! - [`tools`]: QEMU, passt, iperf3 and the kernel's compilers, as a Debian system in a directory.
//! - [`kernel`]: the guest kernel and its modules, from Debian's source package.
//! - [`guest`]: the guest's root file system.
//! - [`module`]: our driver.
//! - [`dpdk`]: DPDK, which only a bench needs.
//! - [`valgrind`]: Valgrind, which only a test needs.
//!
//! All but our driver come from Debian's own archive, at versions the host's Debian need not have.

mod debian;
pub mod dpdk;
pub mod guest;
pub mod kernel;
pub mod module;
pub mod tools;
pub mod valgrind;
