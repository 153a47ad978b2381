// SPDX-License-Identifier: GPL-2.0

//! Statistics of each queue: `ethtool -S`.
//!
//! Those of the whole device are where they are for all devices: `ip -s -s link`.

use super::super::nic::Nic;
use crate::net::ethtool::Statistics;
use kernel::prelude::*;

impl Nic<'_> {
    /// Tells all, of queues in use or not: counters of a queue stay when it is not used any more.
    pub(super) fn tell_statistics(&self, list: &mut Statistics<'_>) {
        let control = self.control.lock();
        list.add(fmt!("resets"), control.recovery.total());
        drop(control);
        for (i, pair) in self.pairs.iter().enumerate() {
            for (name, counter) in pair.rx.handler().stats.named() {
                list.add(fmt!("rx_queue_{}_{}", i, name), counter.get());
            }
        }
        for (i, pair) in self.pairs.iter().enumerate() {
            for (name, counter) in pair.tx.handler().stats.named() {
                list.add(fmt!("tx_queue_{}_{}", i, name), counter.get());
            }
        }
    }
}
