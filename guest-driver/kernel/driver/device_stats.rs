// SPDX-License-Identifier: GPL-2.0

//! Statistics that the device counts itself (VIRTIO 1.3, 5.1.6.5.10).
//!
//! There are kinds of them, of which a device has some. It is asked queue by queue, and answers
//! with a record of each kind: a header, and numbers in an order that never changes.

use kernel::prelude::*;

/// A kind of statistics.
pub(super) struct Kind {
    /// Its bit in sets of them.
    bit: u32,
    /// Its number in the header of a record.
    reply: u8,
    /// What the numbers are.
    pub(super) names: &'static [&'static str],
}

/// The most octets that the device answers for one queue.
pub(super) const MAX_REPLY: usize = 256;

/// `struct virtio_net_stats_reply_hdr`.
const HEADER: usize = 8;

/// Of the control queue.
pub(super) const CONTROL: [Kind; 1] = [Kind {
    bit: 32,
    reply: 32,
    names: &["commands", "commands_ok"],
}];

/// Of a receive queue.
pub(super) const RX: [Kind; 4] = [
    Kind {
        bit: 0,
        reply: 0,
        names: &[
            "notifications",
            "packets",
            "bytes",
            "interrupts",
            "drops",
            "drop_overruns",
        ],
    },
    Kind {
        bit: 1,
        reply: 1,
        names: &["csum_valid", "needs_csum", "csum_none", "csum_bad"],
    },
    Kind {
        bit: 2,
        reply: 2,
        names: &[
            "gso_packets",
            "gso_bytes",
            "gso_packets_coalesced",
            "gso_bytes_coalesced",
        ],
    },
    Kind {
        bit: 3,
        reply: 3,
        names: &["ratelimit_packets", "ratelimit_bytes"],
    },
];

/// Of a transmit queue.
pub(super) const TX: [Kind; 4] = [
    Kind {
        bit: 16,
        reply: 16,
        names: &[
            "notifications",
            "packets",
            "bytes",
            "interrupts",
            "drops",
            "drop_malformed",
        ],
    },
    Kind {
        bit: 17,
        reply: 17,
        names: &["csum_none", "needs_csum"],
    },
    Kind {
        bit: 18,
        reply: 18,
        names: &[
            "gso_packets",
            "gso_bytes",
            "gso_segments",
            "gso_segments_bytes",
            "gso_packets_noseg",
            "gso_bytes_noseg",
        ],
    },
    Kind {
        bit: 19,
        reply: 19,
        names: &["ratelimit_packets", "ratelimit_bytes"],
    },
];

impl Kind {
    /// Whether it is in a set.
    pub(super) fn is_in(&self, types: u64) -> bool {
        types >> self.bit & 1 != 0
    }

    /// The numbers of this kind for `queue` in an answer; short if there are not so many.
    pub(super) fn values<'a>(
        &self,
        answer: &'a [u8],
        queue: u16,
    ) -> impl Iterator<Item = u64> + use<'a> {
        let record = Records(answer)
            .find(|record| record.reply == self.reply && record.queue == queue)
            .map_or(&[][..], |record| record.values);
        record
            .chunks_exact(8)
            .map(|octets| u64::from_le_bytes(octets.try_into().unwrap_or_default()))
    }
}

/// Those of `kinds` that are in the set of `types`, as a set.
pub(super) fn types_of(kinds: &[Kind], types: u64) -> u64 {
    kinds
        .iter()
        .filter(|kind| kind.is_in(types))
        .fold(0, |set, kind| set | 1 << kind.bit)
}

/// The argument of VIRTIO_NET_CTRL_STATS_GET for one queue: `struct virtio_net_ctrl_queue_stats`.
pub(super) fn request(queue: u16, types: u64) -> [u8; 16] {
    let mut octets = [0; 16];
    let (head, tail) = octets.split_at_mut(8);
    let (number, _reserved) = head.split_at_mut(2);
    number.copy_from_slice(&queue.to_le_bytes());
    tail.copy_from_slice(&types.to_le_bytes());
    octets
}

struct Record<'a> {
    reply: u8,
    queue: u16,
    values: &'a [u8],
}

/// The records of an answer, as far as it makes sense.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let [reply, _, queue @ .., _, _, size_low, size_high] = *header;
        let size = usize::from(u16::from_le_bytes([size_low, size_high]));
        let record = self.0.get(..size)?;
        let values = record.get(HEADER..)?;
        self.0 = self.0.get(size..)?;
        Some(Record {
            reply,
            queue: u16::from_le_bytes(queue),
            values,
        })
    }
}

#[kunit_tests(ferronic_device_stats)]
mod tests {
    use super::*;

    fn value(kind: &Kind, answer: &[u8], queue: u16, index: usize) -> Option<u64> {
        kind.values(answer, queue).nth(index)
    }

    #[test]
    fn finds_the_record_of_a_kind() {
        let mut answer = [0; 24 + 16];
        // Control queue, queue 4, two numbers.
        answer[..8].copy_from_slice(&[32, 0, 4, 0, 0, 0, 24, 0]);
        answer[8] = 7;
        answer[16] = 5;
        // Receive csum, queue 4, one number.
        answer[24..32].copy_from_slice(&[1, 0, 4, 0, 0, 0, 16, 0]);
        answer[33] = 1;
        assert_eq!(value(&CONTROL[0], &answer, 4, 0), Some(7));
        assert_eq!(value(&CONTROL[0], &answer, 4, 1), Some(5));
        assert_eq!(value(&CONTROL[0], &answer, 3, 0), None);
        assert_eq!(value(&RX[1], &answer, 4, 0), Some(256));
        assert_eq!(value(&RX[1], &answer, 4, 1), None);
        assert_eq!(value(&RX[0], &answer, 4, 0), None);
    }

    #[test]
    fn an_answer_that_makes_no_sense_ends() {
        for size in [0, 7, 8, 200] {
            let answer = [0, 0, 0, 0, 0, 0, size, 0, 1, 2, 3];
            assert_eq!(value(&RX[0], &answer, 0, 0), None);
            assert!(Records(&answer).count() <= 1);
        }
        assert_eq!(value(&RX[0], &[], 0, 0), None);
    }

    #[test]
    fn asks_for_what_there_is() {
        assert_eq!(types_of(&RX, 0xf_000d), 0xd);
        assert_eq!(types_of(&TX, 0xf_000d), 0xf_0000);
        assert_eq!(
            request(0x102, 0x1_0000),
            [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
        );
    }
}
