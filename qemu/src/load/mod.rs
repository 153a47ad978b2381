// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The load generator: a vhost-user frontend of its own, with the driver's side of its rings, and no
//! guest.
//!
//! - [`memory`]: what a guest's memory would be, shared with the backend.
//! - [`ring`], [`split`], [`packed`]: the driver's side of a virtqueue.
//! - [`queue`]: a virtqueue with its buffers.
//! - [`port`]: the frontend: connects to a backend and starts a queue pair there.
//! - [`frame`]: what is sent, and whether it has arrived as it was.
//! - [`flow`]: packets moved from one port into the same or another, as fast as they go.
//! - [`tsc`]: the processor's clock.
//!
//! # Design
//! One thread does everything, with the same bursts of 32 that other drivers of this kind use, and
//! never sleeps. What it does for a packet is what a driver has to do: write a descriptor and the first
//! octets of the packet, read a used element. It does not look at what it receives but for a sample,
//! which it compares whole. So it is quicker than any backend, and says how often it had nothing to do.
//!
//! All of the shared memory is reached through vm-memory's bounds-checked volatile slices, made once for
//! each ring and each ring's buffers. That costs a comparison, and no `unsafe`.
//!
//! # Limitations
//! A packet is sent in one descriptor; `VIRTIO_F_EVENT_IDX` and `VIRTIO_F_IN_ORDER` are not asked for.
//! Numbers in shared memory are little-endian, as the processors are that the lab runs on.

pub mod flow;
pub mod frame;
pub mod memory;
pub mod packed;
pub mod port;
pub mod queue;
pub mod ring;
pub mod split;
pub mod tsc;
