// SPDX-License-Identifier: GPL-2.0

//! Statistics of net devices and their queues.
//!
//! C headers: [`include/uapi/linux/if_link.h`](srctree/include/uapi/linux/if_link.h),
//! [`include/net/netdev_queues.h`](srctree/include/net/netdev_queues.h)

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

pub(crate) use crate::bindings::{
    netdev_queue_stats_rx as QueueStatsRx,
    netdev_queue_stats_tx as QueueStatsTx,
    rtnl_link_stats64 as DeviceStats, //
};

/// What is counted outside of queues that exist now.
pub(crate) struct BaseStats<'a> {
    /// Of receive queues.
    pub(crate) rx: &'a mut QueueStatsRx,
    /// Of transmit queues.
    pub(crate) tx: &'a mut QueueStatsTx,
}

/// A number that grows, written by one context at a time and read by any.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    /// Counts from 0.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Adds `n`. Not atomic as a whole: only for whoever is the one to write.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The number now.
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}
