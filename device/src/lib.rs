// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The NIC as a process: a virtio-net device (VIRTIO 1.3, section 5.1) that a virtual machine
//! monitor attaches over a vhost-user socket.
//!
//! A folder is a layer, and each knows only the ones below it:
//!
//! | layer | what it is |
//! |---|---|
//! | [`cli`] | the command line, one file a subcommand |
//! | [`control`] | the control socket: server and client |
//! | [`frontend`] | where the NIC is plugged in: vhost-user, guest memory |
//! | [`switch`] | several NICs in one process, and what goes on between them |
//! | [`datapath`] | the workers: ring <-> uplink |
//! | [`uplink`] | where the cable goes: loopback, tap, passt |
//! | [`ring`] | descriptor rings over guest memory |
//! | [`nic`] | the NIC itself; knows no socket and no guest memory |
//!
//! [`socket`] makes listening sockets for `control` and `frontend`.
//!
//! A packet's way is a straight line: guest ring -> datapath worker -> uplink, and back.

pub mod cli;
pub mod control;
pub mod datapath;
pub mod frontend;
pub mod nic;
pub mod ring;
pub mod socket;
pub mod switch;
pub mod uplink;
