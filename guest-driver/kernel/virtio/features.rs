// SPDX-License-Identifier: GPL-2.0

//! Feature bits and their negotiation (VIRTIO 1.3, 2.2 and 6).
//!
//! What to accept is decided by [`choose`], which touches no device.

use core::ops::{
    BitAnd,
    BitOr,
    Not, //
};
use kernel::prelude::*;

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features(u64);

impl Features {
    /// The empty set.
    pub(crate) const NONE: Self = Self(0);

    /// Chains may be described by a table elsewhere in memory (2.7.5.3).
    pub(crate) const INDIRECT_DESC: Self = Self::bit::<28>();
    /// Notifications are asked for by index rather than by flag (2.7.10).
    pub(crate) const EVENT_IDX: Self = Self::bit::<29>();
    /// The device is not a legacy one.
    pub(crate) const VERSION_1: Self = Self::bit::<32>();
    /// Addresses are those of the DMA API, not necessarily physical ones.
    pub(crate) const ACCESS_PLATFORM: Self = Self::bit::<33>();
    /// Rings in the packed layout (2.8).
    pub(crate) const RING_PACKED: Self = Self::bit::<34>();
    /// Memory must be ordered as for real hardware, not as between processors.
    pub(crate) const ORDER_PLATFORM: Self = Self::bit::<36>();
    /// One queue can be reset by itself (2.6.1).
    pub(crate) const RING_RESET: Self = Self::bit::<40>();

    /// The bits that belong to the transport and the rings, not to the type of device:
    /// 24 to 41 and 42 to 49, which are reserved for them (2.2).
    const TRANSPORT: Self = Self(((1 << 50) - 1) & !((1 << 24) - 1));

    /// What of [`Self::TRANSPORT`] this driver can speak.
    const SUPPORTED_TRANSPORT: Self = Self(
        Self::INDIRECT_DESC.0
            | Self::EVENT_IDX.0
            | Self::VERSION_1.0
            | Self::ACCESS_PLATFORM.0
            | Self::ORDER_PLATFORM.0
            | Self::RING_RESET.0
            // The second word of a descriptor must be written in one store.
            | if cfg!(CONFIG_64BIT) { Self::RING_PACKED.0 } else { 0 },
    );

    /// The set of the one bit `N`.
    pub(crate) const fn bit<const N: u32>() -> Self {
        const { assert!(N < 64) };
        Self(1 << N)
    }

    /// The set whose members are the ones of `bits`.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The members as the ones of a number.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// The union, for constants.
    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are members.
    pub(crate) const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is a member.
    pub(crate) const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

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

impl Not for Features {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// A feature that must not be accepted without another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requirement {
    /// The feature.
    pub(crate) feature: Features,
    /// It needs at least one of these.
    pub(crate) any_of: Features,
}

impl Requirement {
    /// States that `feature` needs one of `any_of`.
    pub(crate) const fn new(feature: Features, any_of: Features) -> Self {
        Self { feature, any_of }
    }
}

/// The device offers no [`Features::VERSION_1`], without which nothing here can drive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotModern;

/// Chooses what to accept of what a device offers.
///
/// Accepted is what is both offered and wanted, and unasked what concerns the safety of memory:
/// `ACCESS_PLATFORM` and `ORDER_PLATFORM`. A wanted feature of the rings or the transport that is
/// not implemented here is not accepted. A feature whose requirement is not accepted is dropped,
/// and what needs that one, and so on (2.2.1: a driver must not accept a feature whose requirement
/// it does not accept; a device should not offer such, but may be wrong).
pub(super) fn choose(
    offered: Features,
    wanted: Features,
    requirements: &[Requirement],
) -> Result<Features, NotModern> {
    if !offered.contains(Features::VERSION_1) {
        return Err(NotModern);
    }
    let always = Features::VERSION_1 | Features::ACCESS_PLATFORM | Features::ORDER_PLATFORM;
    let understood = !Features::TRANSPORT | Features::SUPPORTED_TRANSPORT;
    let mut accepted = offered & (wanted | always) & understood;
    loop {
        let before = accepted;
        for requirement in requirements {
            if !accepted.intersects(requirement.any_of) {
                accepted = accepted & !requirement.feature;
            }
        }
        // Each round takes at least one of 64 bits away.
        if accepted == before {
            return Ok(accepted);
        }
    }
}

#[kunit_tests(ferronic_features)]
mod tests {
    use super::*;

    const A: Features = Features::bit::<0>();
    const B: Features = Features::bit::<1>();
    const C: Features = Features::bit::<2>();
    const D: Features = Features::bit::<3>();
    const MODERN: Features = Features::VERSION_1;

    #[test]
    fn accepts_only_what_is_offered_and_wanted() {
        assert_eq!(choose(MODERN | A | B, B | C, &[]), Ok(MODERN | B));
    }

    #[test]
    fn refuses_a_legacy_device() {
        assert_eq!(choose(A | B, MODERN | A, &[]), Err(NotModern));
        assert_eq!(choose(Features::NONE, A, &[]), Err(NotModern));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let all = Features::from_bits(u64::MAX);
        assert_eq!(
            choose(all, Features::NONE, &[]),
            Ok(MODERN | Features::ACCESS_PLATFORM | Features::ORDER_PLATFORM)
        );
    }

    #[test]
    fn wanting_everything_accepts_no_ring_that_is_not_implemented() {
        let all = Features::from_bits(u64::MAX);
        let Ok(accepted) = choose(all, all, &[]) else {
            assert!(false);
            return;
        };
        for bit in 24..50 {
            let one = Features::from_bits(1 << bit);
            assert_eq!(
                accepted.contains(one),
                Features::SUPPORTED_TRANSPORT.contains(one)
            );
        }
        // NOTIFICATION_DATA changes what a doorbell must be given.
        assert!(!accepted.contains(Features::bit::<38>()));
        assert!(accepted.contains(A | Features::bit::<63>()));
    }

    #[test]
    fn access_platform_is_accepted_unasked_when_offered_only() {
        let platform = Features::ACCESS_PLATFORM;
        assert_eq!(
            choose(MODERN | platform, Features::NONE, &[]),
            Ok(MODERN | platform)
        );
        assert_eq!(choose(MODERN, platform, &[]), Ok(MODERN));
    }

    #[test]
    fn drops_dependents_of_dependents_in_any_order() {
        let chain = [
            Requirement::new(A, B),
            Requirement::new(B, C),
            Requirement::new(C, D),
        ];
        let reversed = [chain[2], chain[1], chain[0]];
        let all = A | B | C | D;
        for table in [&chain, &reversed] {
            assert_eq!(choose(MODERN | A | B | C, all, table), Ok(MODERN));
            assert_eq!(choose(MODERN | all, A | B | D, table), Ok(MODERN | D));
            assert_eq!(choose(MODERN | all, all, table), Ok(MODERN | all));
        }
    }

    #[test]
    fn one_of_several_requirements_is_enough() {
        let table = [Requirement::new(A, B | C)];
        assert_eq!(
            choose(MODERN | A | C, A | B | C, &table),
            Ok(MODERN | A | C)
        );
        assert_eq!(choose(MODERN | A, A | B | C, &table), Ok(MODERN));
    }
}
