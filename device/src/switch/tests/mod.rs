// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the switch with guests that are drivers in memory (`station`), most of them without
//! threads.

mod forwarding;
mod hash_report;
mod offloads;
mod receivers;
mod scaling;
mod station;
mod threads;
mod uplink;
