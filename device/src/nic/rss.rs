// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receive-side scaling (VIRTIO 1.3, 5.1.6.5.7): the driver says which receive queue gets which
//! flows.

use super::flow_hash::FlowHasher;

/// Entries of the longest indirection table (5.1.4, `rss_max_indirection_table_length`): the least
/// that a device must take, four for each of the most queues there can be.
pub const MAX_TABLE: u16 = 128;

/// How the driver wants packets spread.
///
/// # Invariants
/// The table has a power of two of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    hasher: FlowHasher,
    /// Numbers of receive queues.
    table: Box<[u16]>,
    /// Where packets go that have no hash.
    unclassified: u16,
}

impl Rss {
    /// Packets go where the table says, by their hash. `None` if the number of its entries is not a
    /// power of two, or more than [`MAX_TABLE`].
    pub fn new(hasher: FlowHasher, table: Box<[u16]>, unclassified: u16) -> Option<Self> {
        let good = table.len().is_power_of_two() && table.len() <= usize::from(MAX_TABLE);
        good.then_some(Rss {
            hasher,
            table,
            unclassified,
        })
    }

    /// The number of the receive queue for the frame that starts so; of it
    /// [`HEADERS`](super::flow_hash::HEADERS) octets tell all.
    pub fn queue(&self, frame_start: &[u8]) -> usize {
        let queue = match self.hasher.hash(frame_start) {
            Some(hash) => {
                let mask = self.table.len().wrapping_sub(1);
                // Only low bits are used: it does not matter what is cut.
                self.table.get(hash.value as usize & mask).copied()
            }
            None => Some(self.unclassified),
        };
        usize::from(queue.unwrap_or(self.unclassified))
    }

    /// How many receive queues must be there: one more than the highest number.
    pub fn queues(&self) -> u16 {
        let highest = self.table.iter().max().copied().unwrap_or(0);
        highest.max(self.unclassified).saturating_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::flow_hash::SUPPORTED_HASH_TYPES;
    use super::*;
    use proptest::prelude::*;

    fn hasher() -> FlowHasher {
        FlowHasher::new(SUPPORTED_HASH_TYPES, &[0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b])
    }

    #[test]
    fn a_table_is_as_long_as_a_power_of_two() {
        for (len, good) in [
            (0, false),
            (1, true),
            (3, false),
            (4, true),
            (128, true),
            (256, false),
        ] {
            let table = vec![0; len].into_boxed_slice();
            assert_eq!(Rss::new(hasher(), table, 0).is_some(), good, "{len}");
        }
    }

    #[test]
    fn packets_without_a_hash_have_their_own_queue() {
        let rss = Rss::new(hasher(), Box::new([1, 2]), 5).unwrap();
        let arp = [&[0xff; 12][..], &[8, 6], &[0; 46]].concat();
        assert_eq!(rss.queue(&arp), 5);
        assert_eq!(rss.queue(&[]), 5);
        assert_eq!(rss.queues(), 6);
    }

    proptest! {
        #[test]
        fn the_low_bits_of_the_hash_choose(
            address: [u8; 4],
            table in prop::collection::vec(0u16..31, 8),
        ) {
            let start = [&[0; 12][..], &[8, 0, 0x45], &[0; 8], &[1, 0, 0], &address, &[1, 2, 3, 4]];
            let frame = start.concat();
            let rss = Rss::new(hasher(), table.clone().into(), 31).unwrap();
            let hash = hasher().hash(&frame).unwrap().value;
            prop_assert_eq!(rss.queue(&frame), usize::from(table[hash as usize % 8]));
            prop_assert_eq!(rss.queues(), 32);
        }
    }
}
