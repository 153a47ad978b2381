// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Device statistics: what the NIC has counted, told to the driver (VIRTIO 1.3, 5.1.6.5.10).
//!
//! The kinds are those that are really counted: the basic ones of receive and transmit queues, and
//! those of the control queue. They start with the process, not with the driver.

use super::super::counters::{DropReason, QueueCounters};
use super::super::features::VIRTIO_NET_F_DEVICE_STATS;
use super::{DriverState, Queues, Refused, exactly};

pub(super) const VIRTIO_NET_CTRL_STATS: u8 = 8;
pub(super) const VIRTIO_NET_CTRL_STATS_QUERY: u8 = 0;
pub(super) const VIRTIO_NET_CTRL_STATS_GET: u8 = 1;

/// A kind of statistics is a bit in sets of kinds, and the number of that bit in replies.
const VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC: u8 = 0;
const VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC: u8 = 16;
const VIRTIO_NET_STATS_TYPE_REPLY_CVQ: u8 = 32;

/// Octets of one `stats` in `struct virtio_net_ctrl_queue_stats`.
const REQUEST: usize = 16;
/// Octets of `struct virtio_net_stats_reply_hdr`.
const HEADER: u16 = 8;

/// Why a packet that the driver wants to send is malformed.
const MALFORMED: [DropReason; 4] = [
    DropReason::BadDescriptor,
    DropReason::BadHeader,
    DropReason::TooShort,
    DropReason::TooLong,
];

impl DriverState {
    /// `struct virtio_net_stats_capabilities`.
    pub(super) fn query_statistics(&self, data: &[u8]) -> Result<Vec<u8>, Refused> {
        self.require(VIRTIO_NET_F_DEVICE_STATS)?;
        let [] = exactly(data)?;
        let all = [
            VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC,
            VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC,
            VIRTIO_NET_STATS_TYPE_REPLY_CVQ,
        ];
        let set = all.into_iter().fold(0u64, |set, kind| set | 1 << kind);
        Ok(set.to_le_bytes().to_vec())
    }

    /// Replies to a `struct virtio_net_ctrl_queue_stats`. One error in it fails all of it.
    pub(super) fn get_statistics(
        &self,
        data: &[u8],
        queues: &dyn Queues,
    ) -> Result<Vec<u8>, Refused> {
        self.require(VIRTIO_NET_F_DEVICE_STATS)?;
        let (requests, []) = data.as_chunks::<REQUEST>() else {
            return Err(Refused);
        };
        if requests.is_empty() {
            return Err(Refused);
        }
        let mut reply = Vec::new();
        for request in requests {
            let [i0, i1, _, _, _, _, _, _, kinds @ ..] = *request;
            let index = u16::from_le_bytes([i0, i1]);
            let kinds = u64::from_le_bytes(kinds);
            let (kind, values) = self.statistics(index, queues).ok_or(Refused)?;
            if kinds & !(1 << kind) != 0 {
                return Err(Refused);
            }
            if kinds != 0 {
                append(&mut reply, kind, index, &values);
            }
        }
        Ok(reply)
    }

    /// The one kind that the queue with virtqueue index `index` has; none if there is no such queue.
    fn statistics(&self, index: u16, queues: &dyn Queues) -> Option<(u8, Vec<u64>)> {
        let pairs = if self.features.has_pairs() {
            self.max_queue_pairs
        } else {
            1
        };
        let pair = index / 2;
        if pair < pairs {
            let counters = queues.counters(pair.into())?;
            return Some(if index.is_multiple_of(2) {
                let rx = &counters.rx;
                // What finds no buffer stays where it came from, or is dropped there.
                let overruns = rx.drops.get(DropReason::NoBuffers);
                (VIRTIO_NET_STATS_TYPE_REPLY_RX_BASIC, basic(rx, overruns))
            } else {
                let tx = &counters.tx;
                let malformed = MALFORMED.into_iter().map(|reason| tx.drops.get(reason));
                (
                    VIRTIO_NET_STATS_TYPE_REPLY_TX_BASIC,
                    basic(tx, malformed.fold(0, u64::wrapping_add)),
                )
            });
        }
        let control = queues.control_counters();
        let values = vec![
            control.commands.get(),
            // This one, too, which is carried out when it is answered.
            control.carried_out.get().wrapping_add(1),
        ];
        (index == 2 * pairs).then_some((VIRTIO_NET_STATS_TYPE_REPLY_CVQ, values))
    }
}

/// `struct virtio_net_stats_rx_basic` or `_tx_basic`, of which only the last field is another.
fn basic(counters: &QueueCounters, last: u64) -> Vec<u64> {
    vec![
        counters.kicks.get(),
        counters.packets.get(),
        counters.bytes.get(),
        counters.interrupts.get(),
        counters.drops.total(),
        last,
    ]
}

/// Appends a header and the values.
fn append(reply: &mut Vec<u8>, kind: u8, index: u16, values: &[u64]) {
    // Six values at most.
    let size = HEADER + 8 * values.len() as u16;
    let [i0, i1] = index.to_le_bytes();
    let [s0, s1] = size.to_le_bytes();
    reply.extend([kind, 0, i0, i1, 0, 0, s0, s1]);
    reply.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}
