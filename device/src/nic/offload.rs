// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which work on a packet may be left to the other side.

use std::ops::{BitAnd, BitOr};

/// A set of offloads, as a bit mask. The same set serves both directions: what a driver may hand
/// us unfinished, and what we may hand the driver unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    /// None at all.
    pub const NONE: Offloads = Offloads(0);
    /// Partial checksums (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub const CSUM: Offloads = Offloads(1 << 0);
    /// TCP segmentation over IPv4.
    pub const TSO4: Offloads = Offloads(1 << 1);
    /// TCP segmentation over IPv6.
    pub const TSO6: Offloads = Offloads(1 << 2);
    /// TCP segmentation of frames with ECN set.
    pub const ECN: Offloads = Offloads(1 << 3);
    /// UDP segmentation over IPv4.
    pub const USO4: Offloads = Offloads(1 << 4);
    /// UDP segmentation over IPv6.
    pub const USO6: Offloads = Offloads(1 << 5);
    /// All of them.
    pub const ALL: Offloads = Offloads(0x3f);

    /// Whether every offload of `other` is in this set.
    pub fn contains(self, other: Offloads) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether a frame may be larger than the MTU allows, to be segmented by whoever takes it.
    pub fn any_segmentation(self) -> bool {
        self.0 & !(Self::CSUM.0 | Self::ECN.0) != 0
    }
}

impl BitOr for Offloads {
    type Output = Offloads;
    fn bitor(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }
}

impl BitAnd for Offloads {
    type Output = Offloads;
    fn bitand(self, other: Offloads) -> Offloads {
        Offloads(self.0 & other.0)
    }
}
