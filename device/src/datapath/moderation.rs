// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupt moderation: fewer interrupts for much data, none later for little.
//!
//! # Design
//! What was used is shown to the driver at once; only the interrupt may wait. It does while data is
//! moved in bulk, until [`GAP`] after the one before, for both directions of a pair together: the
//! driver's receive poll also takes back what was transmitted. A packet after a silence and a
//! request with its answer are too little to be held back.

use std::time::{Duration, Instant};

/// Time between interrupts while data is moved in bulk.
const GAP: Duration = Duration::from_micros(200);
/// Octets since the last interrupt, of both directions, that make it bulk.
const BULK: u64 = 16 << 10;

/// When a pair last raised an interrupt.
#[derive(Debug, Default)]
pub(super) struct Moderation {
    last: Option<Instant>,
    /// Octets that the pair had moved by then.
    octets: u64,
}

impl Moderation {
    /// Until when an interrupt is held back, if it is, by a pair that has moved so many octets.
    pub fn hold(&self, now: Instant, octets: u64) -> Option<Instant> {
        let due = self.last? + GAP;
        (octets.wrapping_sub(self.octets) >= BULK && now < due).then_some(due)
    }

    /// Takes note of an interrupt.
    pub fn raised(&mut self, now: Instant, octets: u64) {
        self.last = Some(now);
        self.octets = octets;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bulk_soon_after_an_interrupt_is_held_back() {
        let start = Instant::now();
        let mut moderation = Moderation::default();
        assert_eq!(moderation.hold(start, 1 << 30), None);
        moderation.raised(start, 1000);
        let due = start + GAP;
        let soon = start + GAP / 2;
        for (now, moved, held) in [
            (soon, BULK - 1, None),
            (soon, BULK, Some(due)),
            (due, BULK, None),
            (due + GAP, 10 * BULK, None),
        ] {
            assert_eq!(moderation.hold(now, 1000 + moved), held);
        }
    }

    #[test]
    fn counters_may_wrap() {
        let start = Instant::now();
        let mut moderation = Moderation::default();
        moderation.raised(start, u64::MAX);
        assert_eq!(moderation.hold(start, 99), None);
        assert_eq!(moderation.hold(start, BULK), Some(start + GAP));
    }
}
