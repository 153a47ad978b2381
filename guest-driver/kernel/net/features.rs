// SPDX-License-Identifier: GPL-2.0

//! Features of net devices: what `ethtool -k` shows.
//!
//! C header: [`include/linux/netdev_features.h`](srctree/include/linux/netdev_features.h)

use crate::bindings;
use core::ops::{
    BitAnd,
    BitOr,
    BitXor,
    Not, //
};

/// A set of `NETIF_F_` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features(u64);

impl Features {
    /// The empty set.
    pub(crate) const NONE: Self = Self(0);

    /// The set of one bit, which the C side numbers.
    const fn bit(number: u32) -> Self {
        Self(1 << number)
    }

    /// A set as the C side has it.
    pub(super) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The set as the C side has it.
    pub(super) const fn into_raw(self) -> u64 {
        self.0
    }

    /// Whether all of `other` are in the set.
    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is in the set.
    pub(crate) const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Packets in several pieces.
pub(crate) const SG: Features = Features::bit(bindings::NETIF_F_SG_BIT);
/// Addresses beyond 4 GiB.
pub(crate) const HIGHDMA: Features = Features::bit(bindings::NETIF_F_HIGHDMA_BIT);
/// Checksums of any protocol are completed when sent.
pub(crate) const HW_CSUM: Features = Features::bit(bindings::NETIF_F_HW_CSUM_BIT);
/// Checksums are verified when received.
pub(crate) const RXCSUM: Features = Features::bit(bindings::NETIF_F_RXCSUM_BIT);
/// TCP over IPv4 is segmented when sent.
pub(crate) const TSO: Features = Features::bit(bindings::NETIF_F_TSO_BIT);
/// The same for TCP over IPv6.
pub(crate) const TSO6: Features = Features::bit(bindings::NETIF_F_TSO6_BIT);
/// The same for TCP with ECN.
pub(crate) const TSO_ECN: Features = Features::bit(bindings::NETIF_F_TSO_ECN_BIT);
/// UDP is segmented when sent.
pub(crate) const GSO_UDP_L4: Features = Features::bit(bindings::NETIF_F_GSO_UDP_L4_BIT);
/// Headers of packets to be segmented are checked by the device.
pub(crate) const GSO_ROBUST: Features = Features::bit(bindings::NETIF_F_GSO_ROBUST_BIT);
/// Segments of one stream are put together when received, such that they can be forwarded.
pub(crate) const GRO_HW: Features = Features::bit(bindings::NETIF_F_GRO_HW_BIT);
/// Frames of VLANs that nobody wants are dropped.
pub(crate) const VLAN_FILTER: Features = Features::bit(bindings::NETIF_F_HW_VLAN_CTAG_FILTER_BIT);
/// A hash of the flow comes with received packets.
pub(crate) const RXHASH: Features = Features::bit(bindings::NETIF_F_RXHASH_BIT);

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitXor for Features {
    type Output = Self;

    fn bitxor(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }
}

impl Not for Features {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}
