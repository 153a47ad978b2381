// SPDX-License-Identifier: GPL-2.0

//! Which messages are printed: `ethtool -s DEV msglvl`.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// The message level of a card: bits of `enum netif_msg_class_bit`.
///
/// Errors are printed whatever it is; these are about ordinary events.
///
/// C header: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h)
pub(crate) struct Messages(Atomic<u32>);

impl Messages {
    /// NETIF_MSG_DRV.
    const DRV: u32 = 1;
    /// NETIF_MSG_PROBE.
    const PROBE: u32 = 1 << 1;
    /// NETIF_MSG_LINK.
    const LINK: u32 = 1 << 2;
    /// NETIF_MSG_IFDOWN.
    const IFDOWN: u32 = 1 << 4;
    /// NETIF_MSG_IFUP.
    const IFUP: u32 = 1 << 5;

    /// What drivers mostly print.
    pub(in super::super) const fn new() -> Self {
        Self(Atomic::new(Self::DRV | Self::PROBE | Self::LINK))
    }

    pub(super) fn level(&self) -> u32 {
        self.0.load(Relaxed)
    }

    pub(super) fn set_level(&self, level: u32) {
        self.0.store(level, Relaxed);
    }

    /// That the link has changed.
    pub(in super::super) fn link(&self) -> bool {
        self.level() & Self::LINK != 0
    }

    /// That the interface goes up.
    pub(in super::super) fn ifup(&self) -> bool {
        self.level() & Self::IFUP != 0
    }

    /// That the interface goes down.
    pub(in super::super) fn ifdown(&self) -> bool {
        self.level() & Self::IFDOWN != 0
    }
}
