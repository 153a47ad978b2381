// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the lab's programs run.
//!
//! - [`tool`]: a program from the tool root (QEMU, passt, iperf3, the kernel's
//!   compilers), in a mount namespace of its own.
//! - [`net`]: the run as a whole, in network, PID and mount namespaces of its own,
//!   so that it can make interfaces as it likes and leaves nothing behind.
//!
//! Neither needs root: without it a user namespace is added.

pub mod net;
pub mod tool;
pub mod users;
