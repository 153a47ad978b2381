// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupt moderation: fewer interrupts for much data, none later for little.
//!
//! # Design
//! What was used is shown to the driver at once; only the interrupt may wait.
//!
//! As long as the driver has asked for nothing it waits while data is moved in bulk, until [`GAP`]
//! after the one before, for both directions of a pair together: the driver's receive poll also
//! takes back what was transmitted. A packet after a silence and a request with its answer are too
//! little to be held back.
//!
//! A driver that has asked for something (VIRTIO 1.3, 5.1.6.5.9) gets that, queue by queue: so many
//! packets at most, or so much time after the first of them. Both must be given, or else every
//! packet counts at once. Packets are counted when a turn has ended, so that many in one turn are
//! one interrupt still.

use std::time::{Duration, Instant};

use crate::nic::control::Coalescing;

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

/// What the driver has asked for one queue, and what waits there.
#[derive(Debug, Default)]
pub(super) struct Asked {
    wanted: Coalescing,
    /// When the first packet that waits was used.
    first: Option<Instant>,
    /// Packets that the queue had moved before that.
    before: u64,
}

impl Asked {
    /// Takes note of what the driver wants; whether that is something new.
    pub fn ask(&mut self, wanted: Coalescing) -> bool {
        std::mem::replace(&mut self.wanted, wanted) != wanted
    }

    /// Until when an interrupt is held back, if it is, for a queue that has moved so many packets,
    /// of which some wait: `otherwise` if the driver wants nothing.
    pub fn hold(
        &mut self,
        now: Instant,
        packets: u64,
        otherwise: Option<Instant>,
    ) -> Option<Instant> {
        let Coalescing {
            max_packets,
            max_usecs,
        } = self.wanted;
        let first = *self.first.get_or_insert(now);
        if self.wanted == Coalescing::NONE {
            return otherwise;
        }
        let due = first + Duration::from_micros(max_usecs.into());
        let waits = packets.wrapping_sub(self.before);
        (waits < max_packets.into() && now < due).then_some(due)
    }

    /// Takes note that nothing waits any more.
    pub fn decided(&mut self, packets: u64) {
        self.first = None;
        self.before = packets;
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

    fn asked(max_packets: u32, max_usecs: u32) -> Asked {
        let mut asked = Asked::default();
        let wanted = Coalescing {
            max_packets,
            max_usecs,
        };
        assert!(asked.ask(wanted));
        assert!(!asked.ask(wanted));
        asked
    }

    #[test]
    fn a_queue_waits_for_packets_or_time_whichever_comes_first() {
        let mut rx = asked(15, 10);
        let start = Instant::now();
        let due = start + Duration::from_micros(10);
        rx.decided(100);
        assert_eq!(rx.hold(start, 101, None), Some(due));
        // Time counts from the first packet on.
        let soon = start + Duration::from_micros(9);
        assert_eq!(rx.hold(soon, 114, None), Some(due));
        assert_eq!(rx.hold(soon, 115, Some(due)), None);
        assert_eq!(rx.hold(due, 102, Some(due)), None);
        rx.decided(115);
        let again = due + Duration::from_micros(10);
        assert_eq!(rx.hold(due, 116, None), Some(again));
    }

    #[test]
    fn without_packets_or_time_nothing_waits() {
        for (max_packets, max_usecs) in [(0, 10), (15, 0), (1, u32::MAX)] {
            let mut rx = asked(max_packets, max_usecs);
            let now = Instant::now();
            assert_eq!(rx.hold(now, 1, Some(now + GAP)), None);
        }
    }

    #[test]
    fn another_wish_counts_for_what_waits_already() {
        let mut rx = asked(15, 1000);
        let start = Instant::now();
        assert!(rx.hold(start, 10, None).is_some());
        assert!(rx.ask(Coalescing {
            max_packets: 8,
            max_usecs: 1000,
        }));
        assert_eq!(rx.hold(start, 10, None), None);
        assert!(rx.ask(Coalescing::NONE));
        assert_eq!(rx.hold(start, 10, Some(start + GAP)), Some(start + GAP));
    }
}
