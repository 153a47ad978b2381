// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the NIC is plugged in: a vhost-user socket.
//!
//! ```text
//!   frontend (QEMU)                      control plane                     data path
//!   ──── door ── port ── relay ── socket ── vhost-user-backend ── vring ── Dataplane
//! ```
//!
//! * [`door`]: listens, and finds out which of those who connect is a frontend.
//! * [`port`]: has one frontend at a time, drops it where that is how a link goes down.
//! * [`relay`]: passes messages on and puts right what the crate and today's QEMU disagree on.
//! * [`check`]: refuses the messages that would hurt.
//! * [`connection`]: the two sockets of one frontend, and the crate's daemon between them.
//! * [`endpoint`]: whole messages over one of the sockets.
//! * [`backend`]: what the crate asks the device.
//! * [`vring`]: what the crate tells a ring; starts and stops rings of the data path.
//! * [`host`]: what the rings of a connection share.
//! * [`lifeline`]: hangs up when the crate's thread has panicked.

pub mod backend;
pub mod check;
pub mod connection;
pub mod door;
pub mod endpoint;
pub mod host;
pub mod lifeline;
pub mod port;
pub mod relay;
pub mod vring;
