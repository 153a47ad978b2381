// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the NIC has counted. Nothing is dropped without a reason here.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// A counter with one writer at a time (the worker that owns the queue, or whoever has its lock) and
/// any number of readers, so that adding needs no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only one thread at a time may.
    pub fn add(&self, n: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
    }
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum DropReason {
    /// The cable is pulled.
    LinkDown,
    /// The descriptor chain breaks the rules (VIRTIO 1.3, 2.7).
    BadDescriptor,
    /// The virtio-net header asks for what was not negotiated or cannot be (5.1.6).
    BadHeader,
    /// Shorter than an Ethernet header.
    TooShort,
    /// Longer than any frame, or than the driver's buffers can ever hold.
    TooLong,
    /// The receive filter does not want it (5.1.6.5).
    Filtered,
    /// Its ring was stopped, or broke, while it waited for more of the driver's buffers.
    RingStopped,
    /// The uplink has no room.
    UplinkFull,
    /// The uplink refused it or is not there.
    UplinkError,
    /// It was for a queue that no driver has started.
    NoDriver,
    /// It was for a driver that leaves the device no buffers, and as much waits already as may.
    NoBuffers,
    /// The switch does not forward it: it is not of a VLAN of its port, or is for nobody beyond it.
    NotForwarded,
}

/// All reasons, with the names that `ferronic stats` prints.
pub const DROP_REASONS: [(DropReason, &str); 12] = [
    (DropReason::LinkDown, "link-down"),
    (DropReason::BadDescriptor, "bad-descriptor"),
    (DropReason::BadHeader, "bad-header"),
    (DropReason::TooShort, "too-short"),
    (DropReason::TooLong, "too-long"),
    (DropReason::Filtered, "filtered"),
    (DropReason::RingStopped, "ring-stopped"),
    (DropReason::UplinkFull, "uplink-full"),
    (DropReason::UplinkError, "uplink-error"),
    (DropReason::NoDriver, "no-driver"),
    (DropReason::NoBuffers, "no-buffers"),
    (DropReason::NotForwarded, "not-forwarded"),
];

/// Drops by reason. Serialises as a map of the reasons that occurred.
#[derive(Debug, Default)]
pub struct Drops([Counter; DROP_REASONS.len()]);

impl Drops {
    /// Counts one drop.
    pub fn add(&self, reason: DropReason) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.add(1);
        }
    }

    /// How many packets were dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).map_or(0, Counter::get)
    }

    /// How many packets were dropped for any reason; wraps.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).fold(0, u64::wrapping_add)
    }
}

impl Serialize for Drops {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (reason, name) in DROP_REASONS {
            let count = self.get(reason);
            if count != 0 {
                map.serialize_entry(name, &count)?;
            }
        }
        map.end()
    }
}

/// Counters of one queue. Receive and transmit are seen from the guest.
#[derive(Debug, Default, Serialize)]
#[repr(align(128))]
pub struct QueueCounters {
    /// Packets that went all the way.
    pub packets: Counter,
    /// Their octets, without the virtio-net header.
    pub bytes: Counter,
    /// Packets that did not, by reason.
    pub drops: Drops,
    /// Packets that the uplink gave to this queue and that are for another by receive-side scaling,
    /// which counts them as its own.
    pub steered: Counter,
    /// Used buffer notifications sent (interrupts).
    pub interrupts: Counter,
    /// Used buffer notifications that the driver had asked not to get.
    #[serde(rename = "interrupts-suppressed")]
    pub interrupts_suppressed: Counter,
    /// Available buffer notifications seen (kicks).
    pub kicks: Counter,
    /// Times the ring itself was found broken and was stopped.
    #[serde(rename = "ring-errors")]
    pub ring_errors: Counter,
}

impl QueueCounters {
    /// Packets that were taken, whatever became of them; wraps.
    pub fn taken(&self) -> u64 {
        let steered = self.steered.get();
        (self.packets.get().wrapping_add(steered)).wrapping_add(self.drops.total())
    }
}

/// Counters of a queue pair.
#[derive(Debug, Default, Serialize)]
pub struct PairCounters {
    /// Receive queue: uplink to guest.
    pub rx: QueueCounters,
    /// Transmit queue: guest to uplink.
    pub tx: QueueCounters,
}

/// Counters of the control queue, where the frontend leaves that to us.
#[derive(Debug, Default)]
pub struct ControlCounters {
    /// Commands received.
    pub commands: Counter,
    /// Commands carried out.
    pub carried_out: Counter,
}

impl PairCounters {
    /// Packets that were taken, of both directions; wraps.
    pub fn taken(&self) -> u64 {
        self.rx.taken().wrapping_add(self.tx.taken())
    }

    /// Octets of frames, of both directions; wraps.
    pub fn octets(&self) -> u64 {
        self.rx.bytes.get().wrapping_add(self.tx.bytes.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_serialise_by_name_and_the_table_matches_the_enum() {
        let drops = Drops::default();
        for (index, (reason, _)) in DROP_REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        drops.add(DropReason::Filtered);
        drops.add(DropReason::Filtered);
        assert_eq!(serde_json::to_string(&drops).unwrap(), r#"{"filtered":2}"#);
        assert_eq!(drops.total(), 2);
    }

    #[test]
    fn a_total_wraps_as_its_parts_do() {
        let drops = Drops::default();
        drops.add(DropReason::Filtered);
        drops.0[DropReason::LinkDown as usize].add(u64::MAX);
        assert_eq!(drops.total(), 0);
    }
}
