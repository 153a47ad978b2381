// SPDX-License-Identifier: GPL-2.0

//! A dump of the device's registers: `ethtool -d`.
//!
//! All are little-endian words of 32 bits:
//!
//! | words | what |
//! |---|---|
//! | 0, 1 | features that the device offers |
//! | 2, 3 | features that were accepted |
//! | 4 | number of queues dumped, in the upper half: of those that the device has |
//! | 5 | octets of the device's configuration |
//! | 14 for each queue | the common configuration with that queue selected (4.1.4.3) |
//! | the rest | the device's configuration (5.1.4), filled up with zeros |
//!
//! The queues are those of all pairs that the driver may use, and after them the control queue if
//! there is one. What cannot be read is all ones. The interrupt status is not read, for that would
//! clear it.

use super::super::nic::Nic;
use crate::virtio::Transport;
use kernel::prelude::*;

/// Changes when the table above does.
pub(super) const VERSION: u32 = 1;

/// Words before those of queues.
const HEAD: usize = 6;
/// Words for each queue.
const QUEUE: usize = 14;
/// The size of the structure (5.1.4). What some devices have behind it means nothing.
const MAX_CONFIG: usize = 28;

/// Writes words as long as there is room.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn word(&mut self, word: u32) {
        let room = core::mem::take(&mut self.0);
        if let Some((to, rest)) = room.split_first_chunk_mut() {
            *to = word.to_le_bytes();
            self.0 = rest;
        }
    }

    fn double(&mut self, double: u64) {
        // CAST: One half at a time.
        self.word(double as u32);
        self.word((double >> 32) as u32);
    }
}

impl Nic<'_> {
    /// Numbers of the queues to be dumped.
    fn dumped_queues(&self) -> impl Iterator<Item = u16> {
        // CAST: There are at most 0x3fff pairs.
        let pairs = self.pairs.len() as u16;
        let control = self.control.lock();
        let after = control.driven.as_ref().and_then(|d| d.control_index());
        Iterator::chain(0..pairs * 2, after)
    }

    pub(super) fn registers_len(&self) -> u32 {
        let words = HEAD + QUEUE * self.dumped_queues().count();
        let config = config_length(&self.transport).next_multiple_of(4);
        u32::try_from(4 * words + config).unwrap_or(0)
    }

    pub(super) fn dump_registers(&self, dump: &mut [u8]) {
        let transport = &self.transport;
        let mut writer = Writer(dump);
        writer.double(transport.offered().map_or(u64::MAX, |f| f.bits()));
        let accepted = self.control.lock().driven.as_ref().map(|d| d.features);
        writer.double(accepted.map_or(u64::MAX, |features| features.bits()));
        // CAST: As in `dumped_queues`.
        let queues = self.dumped_queues().count() as u16;
        let all = transport.queue_count().unwrap_or(u16::MAX);
        writer.word(u32::from(queues) | u32::from(all) << 16);
        let config = config_length(transport);
        // CAST: At most `MAX_CONFIG`.
        writer.word(config as u32);
        for index in self.dumped_queues() {
            for word in transport.dump(index).unwrap_or([u32::MAX; QUEUE]) {
                writer.word(word);
            }
        }
        for (offset, to) in writer.0.iter_mut().take(config).enumerate() {
            *to = transport.read_config::<u8>(offset).unwrap_or(u8::MAX);
        }
    }
}

fn config_length(transport: &Transport<'_>) -> usize {
    transport.config_length().min(MAX_CONFIG)
}

#[kunit_tests(ferronic_registers)]
mod tests {
    use super::*;

    #[test]
    fn words_end_with_the_room() {
        let mut dump = [0xee; 10];
        let mut writer = Writer(&mut dump);
        writer.double(0x0123_4567_89ab_cdef);
        writer.word(1);
        writer.word(2);
        assert_eq!(
            dump,
            [0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01, 0xee, 0xee]
        );
    }
}
