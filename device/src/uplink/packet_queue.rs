// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Packets that wait, in order, in memory that is allotted once.
//!
//! Each packet lies in one piece. When there is no room for the next one behind the last, it goes
//! to the start of the memory, as soon as the packets there have been taken. An emptied queue
//! starts at the beginning again, so that packets taken as soon as they come stay in the cache.

use std::collections::VecDeque;
use std::ops::Range;

/// A bounded queue of packets.
///
/// # Invariants
/// The ranges in `packets` lie within `memory` and do not overlap. In order they ascend, but for
/// at most one place where they start over.
#[derive(Debug)]
pub(crate) struct PacketQueue {
    memory: Vec<u8>,
    packets: VecDeque<Range<usize>>,
    most: usize,
}

impl PacketQueue {
    /// A queue of at most `packets` packets and `octets` octets.
    pub fn new(packets: usize, octets: usize) -> Self {
        PacketQueue {
            memory: vec![0; octets],
            packets: VecDeque::with_capacity(packets),
            most: packets,
        }
    }

    /// Where a packet of `len` octets would go.
    fn place(&self, len: usize) -> Option<Range<usize>> {
        if self.packets.len() == self.most {
            return None;
        }
        let (Some(first), Some(last)) = (self.packets.front(), self.packets.back()) else {
            return (len <= self.memory.len()).then_some(0..len);
        };
        let behind = last.end..last.end.checked_add(len)?;
        let started_over = last.start < first.start;
        let limit = if started_over {
            first.start
        } else {
            self.memory.len()
        };
        if behind.end <= limit {
            Some(behind)
        } else if !started_over && len <= first.start {
            Some(0..len)
        } else {
            None
        }
    }

    /// Appends a packet of `len` octets that `fill` writes; `fill` may decline. `None` when there
    /// is no room now.
    pub fn push<E>(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        let place = self.place(len)?;
        let result = fill(self.memory.get_mut(place.clone())?);
        if result.is_ok() && len > 0 {
            self.packets.push_back(place);
        }
        Some(result)
    }

    /// Packets that wait.
    pub fn count(&self) -> usize {
        self.packets.len()
    }

    /// The packet that has waited longest.
    pub fn front_mut(&mut self) -> Option<&mut [u8]> {
        self.memory.get_mut(self.packets.front()?.clone())
    }

    /// Removes the packet that has waited longest.
    pub fn pop(&mut self) {
        self.packets.pop_front();
    }

    /// Removes all packets.
    pub fn clear(&mut self) {
        self.packets.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn front(queue: &mut PacketQueue) -> Option<Vec<u8>> {
        queue.front_mut().map(|packet| packet.to_vec())
    }

    fn push(queue: &mut PacketQueue, bytes: &[u8]) -> bool {
        let fill = |room: &mut [u8]| {
            room.copy_from_slice(bytes);
            Ok::<(), ()>(())
        };
        queue.push(bytes.len(), fill).is_some()
    }

    #[test]
    fn full_is_full_by_number_and_by_size() {
        let mut queue = PacketQueue::new(2, 100);
        assert!(!push(&mut queue, &[0; 101]));
        assert!(push(&mut queue, &[1; 1]));
        assert!(push(&mut queue, &[2; 1]));
        assert!(!push(&mut queue, &[3; 1]));
        queue.pop();
        assert!(push(&mut queue, &[4; 98]));
        queue.pop();
        assert!(!push(&mut queue, &[5; 3]));
        assert!(push(&mut queue, &[6; 2]));
        assert_eq!(front(&mut queue), Some(vec![4; 98]));
        queue.pop();
        queue.pop();
        assert_eq!(front(&mut queue), None);
        assert!(push(&mut queue, &[7; 100]));
    }

    #[test]
    fn a_declined_packet_leaves_no_trace() {
        let mut queue = PacketQueue::new(2, 100);
        assert_eq!(queue.push(10, |_| Err("no")), Some(Err("no")));
        assert_eq!(front(&mut queue), None);
    }

    proptest! {
        /// Against a queue of vectors: the same packets come out, in the same order.
        #[test]
        fn packets_come_out_as_they_went_in(
            steps in proptest::collection::vec(proptest::option::weighted(0.6, 1usize..60), 0..300),
        ) {
            let mut queue = PacketQueue::new(5, 100);
            let mut model = VecDeque::new();
            for (i, step) in steps.into_iter().enumerate() {
                match step {
                    Some(len) => {
                        let packet = vec![i as u8; len];
                        if push(&mut queue, &packet) {
                            model.push_back(packet);
                        } else {
                            prop_assert!(!model.is_empty());
                        }
                    }
                    None => {
                        prop_assert_eq!(front(&mut queue), model.pop_front());
                        queue.pop();
                    }
                }
                prop_assert_eq!(front(&mut queue), model.front().cloned());
            }
        }
    }
}
