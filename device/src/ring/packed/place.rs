// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Places in a packed ring, and what the flags of a descriptor are there (VIRTIO 1.3, 2.8.1).

use super::{DESC_F_AVAIL, DESC_F_USED, WRAP};

/// A place in the ring: a descriptor and the wrap counter that goes with it (2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub slot: u16,
    pub wrap: bool,
}

impl Place {
    /// From 15 bits of descriptor and one of wrap counter, as event suppression structures and
    /// vhost-user have it.
    pub fn from_bits(bits: u16) -> Self {
        Place {
            slot: bits & !WRAP,
            wrap: bits & WRAP != 0,
        }
    }

    pub fn bits(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }

    /// The place `count` descriptors on, at most once around a ring of `size`.
    #[inline]
    pub fn after(self, count: u16, size: u16) -> Self {
        let left = size - self.slot;
        if count < left {
            Place {
                slot: self.slot + count,
                ..self
            }
        } else {
            Place {
                slot: count - left,
                wrap: !self.wrap,
            }
        }
    }

    /// The place `count` descriptors back, at most once around a ring of `size`.
    pub fn before(self, count: u16, size: u16) -> Self {
        let back = Place {
            wrap: !self.wrap,
            ..self
        };
        back.after(size - count, size)
    }

    /// Number of the place among the two laps that can be told apart.
    pub fn number(self, size: u16) -> u32 {
        u32::from(self.slot) + if self.wrap { 0 } else { u32::from(size) }
    }

    /// `VIRTQ_DESC_F_AVAIL` and `VIRTQ_DESC_F_USED` of a descriptor that is available here.
    #[inline]
    pub fn available(self) -> u16 {
        if self.wrap { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// The same of one that was used here.
    #[inline]
    pub fn used(self) -> u16 {
        if self.wrap {
            DESC_F_AVAIL | DESC_F_USED
        } else {
            0
        }
    }

    #[inline]
    pub fn is_available(self, flags: u16) -> bool {
        flags & (DESC_F_AVAIL | DESC_F_USED) == self.available()
    }
}
