// SPDX-License-Identifier: GPL-2.0

//! What is counted, per queue.

use crate::net::{
    Counter,
    DeviceStats,
    QueueStatsRx,
    QueueStatsTx, //
};

/// Of a receive queue. Written where it is polled.
#[derive(Default)]
pub(super) struct RxStats {
    /// Packets, and those dropped below.
    pub(super) packets: Counter,
    /// Their octets, without headers of ours.
    pub(super) bytes: Counter,
    /// Dropped for want of memory.
    pub(super) drops: Counter,
    /// A buffer could not be had.
    pub(super) alloc_fail: Counter,
    /// Packets whose length or number of buffers is impossible.
    pub(super) length_errors: Counter,
    /// Packets whose header contradicts what is in them.
    pub(super) header_errors: Counter,
    /// Checksums that the device says are right.
    pub(super) csum_unnecessary: Counter,
    /// Large packets.
    pub(super) large_packets: Counter,
    /// Their octets.
    pub(super) large_bytes: Counter,
    /// Notifications of the device.
    pub(super) kicks: Counter,
    /// Interrupts, which are those of the transmit queue, too. Written where they are handled.
    pub(super) interrupts: Counter,
    /// The device broke the rules of the queue.
    pub(super) broken: Counter,
}

/// Of a transmit queue. Written with its lock held.
#[derive(Default)]
pub(super) struct TxStats {
    /// Packets that the device has taken.
    pub(super) packets: Counter,
    /// Their octets.
    pub(super) bytes: Counter,
    /// Packets that could not be given to the device.
    pub(super) drops: Counter,
    /// Packets whose checksum the device completes.
    pub(super) needs_csum: Counter,
    /// Large packets.
    pub(super) large_packets: Counter,
    /// Their octets.
    pub(super) large_bytes: Counter,
    /// The queue was stopped, being full.
    pub(super) stops: Counter,
    /// It was woken.
    pub(super) wakes: Counter,
    /// Notifications of the device.
    pub(super) kicks: Counter,
    /// Packets waited for too long.
    pub(super) timeouts: Counter,
    /// The device broke the rules of the queue.
    pub(super) broken: Counter,
}

impl RxStats {
    /// All, with their names.
    pub(super) fn named(&self) -> [(&'static str, &Counter); 12] {
        [
            ("packets", &self.packets),
            ("bytes", &self.bytes),
            ("drops", &self.drops),
            ("alloc_fail", &self.alloc_fail),
            ("length_errors", &self.length_errors),
            ("header_errors", &self.header_errors),
            ("csum_unnecessary", &self.csum_unnecessary),
            ("hw_gro_packets", &self.large_packets),
            ("hw_gro_bytes", &self.large_bytes),
            ("kicks", &self.kicks),
            ("interrupts", &self.interrupts),
            ("broken", &self.broken),
        ]
    }

    /// Adds all to the device's.
    pub(super) fn add_to(&self, stats: &mut DeviceStats) {
        let lengths = self.length_errors.get();
        let headers = self.header_errors.get();
        stats.rx_packets += self.packets.get();
        stats.rx_bytes += self.bytes.get();
        stats.rx_dropped += self.drops.get();
        stats.rx_length_errors += lengths;
        stats.rx_frame_errors += headers;
        stats.rx_errors += lengths + headers;
    }

    /// As the netdev family of netlink wants it.
    pub(super) fn queue_stats(&self, stats: &mut QueueStatsRx) {
        stats.packets = self.packets.get();
        stats.bytes = self.bytes.get();
        stats.alloc_fail = self.alloc_fail.get();
        stats.csum_unnecessary = self.csum_unnecessary.get();
        stats.hw_gro_packets = self.large_packets.get();
        stats.hw_gro_bytes = self.large_bytes.get();
    }

    /// Which of them are counted at all: all others start from none.
    pub(super) fn base(stats: &mut QueueStatsRx) {
        RxStats::default().queue_stats(stats);
    }
}

impl TxStats {
    /// All, with their names.
    pub(super) fn named(&self) -> [(&'static str, &Counter); 11] {
        [
            ("packets", &self.packets),
            ("bytes", &self.bytes),
            ("drops", &self.drops),
            ("needs_csum", &self.needs_csum),
            ("hw_gso_packets", &self.large_packets),
            ("hw_gso_bytes", &self.large_bytes),
            ("stops", &self.stops),
            ("wakes", &self.wakes),
            ("kicks", &self.kicks),
            ("timeouts", &self.timeouts),
            ("broken", &self.broken),
        ]
    }

    /// Adds all to the device's.
    pub(super) fn add_to(&self, stats: &mut DeviceStats) {
        stats.tx_packets += self.packets.get();
        stats.tx_bytes += self.bytes.get();
        stats.tx_dropped += self.drops.get();
        stats.tx_errors += self.timeouts.get();
    }

    /// As the netdev family of netlink wants it.
    pub(super) fn queue_stats(&self, stats: &mut QueueStatsTx) {
        stats.packets = self.packets.get();
        stats.bytes = self.bytes.get();
        stats.needs_csum = self.needs_csum.get();
        stats.hw_gso_packets = self.large_packets.get();
        stats.hw_gso_bytes = self.large_bytes.get();
        stats.stop = self.stops.get();
        stats.wake = self.wakes.get();
    }

    /// Which of them are counted at all: all others start from none.
    pub(super) fn base(stats: &mut QueueStatsTx) {
        TxStats::default().queue_stats(stats);
    }
}
