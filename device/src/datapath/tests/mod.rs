// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the data path between a driver (`guest`) and an uplink (`cable`) that are made for it.
//!
//! Most run without threads: `rig` takes the workers' turns on the test's thread, as long as a
//! worker would not sleep, so that a lost wake-up is a test that fails and not one that hangs.

pub(crate) mod cable;
mod coalescing;
mod control;
pub(crate) mod guest;
pub(crate) mod hash_report;
mod interrupts;
mod polling;
mod program;
mod receive;
mod restart;
pub(crate) mod rig;
pub(crate) mod scaling;
mod threads;
mod transmit;
