// SPDX-License-Identifier: GPL-2.0

//! Settings as a driver sees them, and as the C side does.
//!
//! C header: [`include/uapi/linux/ethtool.h`](srctree/include/uapi/linux/ethtool.h)

use crate::bindings;
use core::ops::BitOr;

/// The link of a device that is not a transceiver's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkSettings {
    /// In Mbit/s. `None`: not known.
    pub(crate) speed: Option<u32>,
    /// Both directions at once. `None`: not known.
    pub(crate) full_duplex: Option<bool>,
}

impl LinkSettings {
    /// SPEED_UNKNOWN.
    const SPEED_UNKNOWN: u32 = u32::MAX;
    /// DUPLEX_HALF.
    const HALF: u8 = 0;
    /// DUPLEX_FULL.
    const FULL: u8 = 1;
    /// DUPLEX_UNKNOWN.
    const DUPLEX_UNKNOWN: u8 = 0xff;
    /// PORT_OTHER.
    const PORT_OTHER: u8 = 0xff;

    pub(super) fn from_raw(speed: u32, duplex: u8) -> Self {
        Self {
            speed: (speed != Self::SPEED_UNKNOWN).then_some(speed),
            full_duplex: match duplex {
                Self::HALF => Some(false),
                Self::FULL => Some(true),
                _ => None,
            },
        }
    }

    pub(super) fn write(self, raw: &mut bindings::ethtool_link_settings) {
        raw.speed = self.speed.unwrap_or(Self::SPEED_UNKNOWN);
        raw.duplex = match self.full_duplex {
            Some(true) => Self::FULL,
            Some(false) => Self::HALF,
            None => Self::DUPLEX_UNKNOWN,
        };
        raw.port = Self::PORT_OTHER;
    }
}

/// Sizes of rings, in descriptors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rings {
    /// Of receive queues.
    pub(crate) rx: u32,
    /// The largest of them.
    pub(crate) rx_max: u32,
    /// Of transmit queues.
    pub(crate) tx: u32,
    /// The largest of them.
    pub(crate) tx_max: u32,
}

/// Numbers of pairs of queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Channels {
    /// Pairs in use.
    pub(crate) combined: u32,
    /// The most that there can be.
    pub(crate) combined_max: u32,
}

/// How interrupts are held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coalesce {
    /// Microseconds until an interrupt for a received packet.
    pub(crate) rx_usecs: u32,
    /// Received packets until an interrupt.
    pub(crate) rx_frames: u32,
    /// Microseconds until an interrupt for a packet that was sent.
    pub(crate) tx_usecs: u32,
    /// Sent packets until an interrupt.
    pub(crate) tx_frames: u32,
    /// The driver chooses for receiving by what arrives.
    pub(crate) adaptive_rx: bool,
}

impl Coalesce {
    pub(super) fn from_raw(raw: &bindings::ethtool_coalesce) -> Self {
        Self {
            rx_usecs: raw.rx_coalesce_usecs,
            rx_frames: raw.rx_max_coalesced_frames,
            tx_usecs: raw.tx_coalesce_usecs,
            tx_frames: raw.tx_max_coalesced_frames,
            adaptive_rx: raw.use_adaptive_rx_coalesce != 0,
        }
    }

    pub(super) fn write(self, raw: &mut bindings::ethtool_coalesce) {
        raw.rx_coalesce_usecs = self.rx_usecs;
        raw.rx_max_coalesced_frames = self.rx_frames;
        raw.tx_coalesce_usecs = self.tx_usecs;
        raw.tx_max_coalesced_frames = self.tx_frames;
        raw.use_adaptive_rx_coalesce = self.adaptive_rx.into();
    }
}

/// A set of the fields of [`Coalesce`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CoalesceParameters(pub(super) u32);

impl CoalesceParameters {
    /// The empty set.
    pub(crate) const NONE: Self = Self(0);
    /// Microseconds, in both directions.
    pub(crate) const USECS: Self = Self(bindings::FERRONIC_COALESCE_USECS);
    /// Packets, in both directions.
    pub(crate) const FRAMES: Self = Self(bindings::FERRONIC_COALESCE_MAX_FRAMES);
    /// The choice of the driver for receiving.
    pub(crate) const ADAPTIVE_RX: Self = Self(bindings::FERRONIC_COALESCE_USE_ADAPTIVE_RX);

    /// The union, for constants.
    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for CoalesceParameters {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.with(other)
    }
}
