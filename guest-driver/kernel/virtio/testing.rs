// SPDX-License-Identifier: GPL-2.0

//! What the KUnit suites share.

/// A small generator of numbers that are random enough to choose what a test does
/// (a linear congruential one, of which the high half is used).
pub(super) struct Random(u64);

impl Random {
    /// The same `seed` yields the same numbers.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(super) fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// A number less than `limit`, which must not be 0.
    pub(super) fn below(&mut self, limit: u32) -> u32 {
        ((u64::from(self.next()) * u64::from(limit)) >> 32) as u32
    }
}
