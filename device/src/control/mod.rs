// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control socket: how people and programs see into the running NIC and pull its cable.
//!
//! # Design
//! The wire format is QMP's (QEMU's docs/interop/qmp-spec.rst), so that the clients which exist for
//! QEMU work here as they are. A file is about one thing:
//!
//! | file | what it is |
//! |---|---|
//! | [`server`] | accepts clients on the control thread; hands events to them |
//! | [`connection`] | one client's socket: reads and writes what is possible without waiting |
//! | [`protocol`] | bytes in, bytes out; knows no socket |
//! | [`commands`] | what each command does to the NIC |
//! | `port_commands` | the same for those that a switch has beside |
//! | [`ports`] | the ports of a switch: their making and their end |
//! | [`replies`] | the shapes of the answers, shared with the client |
//! | [`client`] | the other end, for the subcommands |
//! | [`stop`] | how a command or a signal ends the process |
//!
//! A client can hold up nobody but itself: nothing here blocks, and what it can make us keep is
//! bounded (see [`protocol::MAX_REQUEST`], [`protocol::MAX_OUTPUT`], [`server::MAX_CLIENTS`]).
//!
//! # Limitations
//! One request is answered before the next is read (no out-of-band execution). Two servers that
//! start in the same instant on the same path may both find it stale, and the later one wins.

pub mod client;
pub mod commands;
pub mod connection;
mod port_commands;
pub mod ports;
pub mod protocol;
pub mod replies;
pub mod server;
pub mod stop;
#[cfg(test)]
pub(crate) mod test_support;
