// SPDX-License-Identifier: GPL-2.0

//! Networking: safe wrappers for net devices and what they work with.
//!
//! The kernel crate has none of this. What is here is written as it could be there: a driver
//! implements [`Operations`] and registers with [`Registration`]; queues of packets have their
//! state in the keeping of the lock that guards it, [`Napi`] for polling and [`TxQueue`] for
//! transmission.
//!
//! C header: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h)

mod device;
mod dim;
pub(crate) mod ethtool;
pub(crate) mod features;
mod napi;
mod operations;
mod page_pool;
mod skb;
mod stats;
mod tx_queue;

pub(crate) use device::{
    Address,
    Device,
    Registration,
    Setup,
    WeakDevice, //
};
pub(crate) use dim::{
    new as dim,
    Decisions,
    Moderation,
    Sampler, //
};
pub(crate) use features::Features;
pub(crate) use napi::{
    Napi,
    Poll,
    PollContext,
    Progress, //
};
pub(crate) use operations::{
    Addresses,
    Busy,
    Operations, //
};
pub(crate) use page_pool::{
    PagePool,
    PoolBuffer,
    PoolUser, //
};
pub(crate) use skb::{
    Growing,
    Offload,
    SkBuff,
    TxBuffer,
    TxMaps,
    MAX_SEGMENTS,
    SKB_TAIL, //
};
pub(crate) use stats::{
    BaseStats,
    Counter,
    DeviceStats,
    QueueStatsRx,
    QueueStatsTx, //
};
pub(crate) use tx_queue::{
    TxControl,
    TxQueue,
    XmitQueue, //
};

/// Whether a message about something that a peer can repeat as it likes may be printed now.
pub(crate) fn ratelimit() -> bool {
    // SAFETY: May be called in any context.
    unsafe { crate::bindings::ferronic_ratelimit() }
}
