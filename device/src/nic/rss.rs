// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receive-side scaling (VIRTIO 1.3, 5.1.6.5.7): the driver says which receive queue gets which
//! flows.

use super::flow_hash::FlowHash;

/// Entries of the longest indirection table (5.1.4, `rss_max_indirection_table_length`): the least
/// that a device must take, four for each of the most queues there can be.
pub const MAX_TABLE: u16 = 128;

/// How the driver wants packets spread.
///
/// # Invariants
/// The table has a power of two of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rss {
    /// Numbers of receive queues.
    table: Box<[u16]>,
    /// Where packets go that have no hash.
    unclassified: u16,
}

impl Rss {
    /// Packets go where the table says, by their hash. `None` if the number of its entries is not a
    /// power of two, or more than [`MAX_TABLE`].
    pub fn new(table: Box<[u16]>, unclassified: u16) -> Option<Self> {
        let good = table.len().is_power_of_two() && table.len() <= usize::from(MAX_TABLE);
        good.then_some(Rss {
            table,
            unclassified,
        })
    }

    /// The number of the receive queue for packets with this hash, or with none.
    pub fn queue(&self, hash: Option<FlowHash>) -> usize {
        let queue = match hash {
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
    use super::*;
    use proptest::prelude::*;

    fn hash(value: u32) -> Option<FlowHash> {
        Some(FlowHash {
            value,
            hash_type: 1,
        })
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
            assert_eq!(Rss::new(table, 0).is_some(), good, "{len}");
        }
    }

    #[test]
    fn packets_without_a_hash_have_their_own_queue() {
        let rss = Rss::new(Box::new([1, 2]), 5).unwrap();
        assert_eq!(rss.queue(None), 5);
        assert_eq!(rss.queue(hash(0)), 1);
        assert_eq!(rss.queues(), 6);
    }

    proptest! {
        #[test]
        fn the_low_bits_of_the_hash_choose(
            value: u32,
            table in prop::collection::vec(0u16..31, 8),
        ) {
            let rss = Rss::new(table.clone().into(), 31).unwrap();
            prop_assert_eq!(rss.queue(hash(value)), usize::from(table[value as usize % 8]));
            prop_assert_eq!(rss.queues(), 32);
        }
    }
}
