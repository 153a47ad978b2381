// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is sent, and whether it has arrived as it was.

use anyhow::{Result, ensure};
use vm_memory::{Bytes, VolatileSlice};

/// Octets of the virtio-net header (VIRTIO 1.3, 5.1.6).
pub const HEADER: usize = 12;
/// Where `num_buffers` is in it.
const NUM_BUFFERS: usize = 10;
/// Where a packet's number is in it: behind the Ethernet header.
const NUMBER: usize = HEADER + 14;
/// Where the rest begins, which is the same in all packets.
const REST: usize = NUMBER + 8;
/// For local experiments (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// The packets of a flow: all the same but for their number.
#[derive(Debug)]
pub struct Packets {
    /// Header and frame.
    octets: Vec<u8>,
    /// What has arrived is put together here.
    arrived: Vec<u8>,
}

impl Packets {
    /// Frames of so many octets from one station to another.
    pub fn new(frame: usize, from: [u8; 6], to: [u8; 6]) -> Self {
        let mut octets = [&[0; HEADER][..], &to, &from, &ETHERTYPE, &[0; 8]].concat();
        octets.extend((REST..HEADER + frame).map(|i| (i % 251) as u8));
        let arrived = Vec::with_capacity(octets.len());
        Packets { octets, arrived }
    }

    /// Octets of header and frame.
    pub fn len(&self) -> usize {
        self.octets.len()
    }

    /// Writes all that does not change.
    pub fn prepare(&self, buffer: &VolatileSlice<'_>) {
        buffer.copy_from(&self.octets);
    }

    /// Writes the number, as a driver writes headers: for every packet.
    #[inline]
    pub fn number(&self, buffer: &VolatileSlice<'_>, number: u64) {
        // Every buffer is large enough for the smallest packet.
        let _ = buffer.write_obj(number, NUMBER);
    }

    /// Checks a packet that has arrived in these buffers; its number.
    pub fn check(&mut self, parts: &[VolatileSlice<'_>]) -> Result<u64> {
        self.arrived.clear();
        for part in parts {
            let start = self.arrived.len();
            self.arrived.resize(start + part.len(), 0);
            part.copy_to(&mut self.arrived[start..]);
        }
        let Packets { octets, arrived } = self;
        ensure!(
            arrived.len() == octets.len(),
            "a packet of {} octets arrived, {} were sent",
            arrived.len(),
            octets.len()
        );
        let buffers = u16::from_le_bytes([arrived[NUM_BUFFERS], arrived[NUM_BUFFERS + 1]]);
        ensure!(
            usize::from(buffers) == parts.len(),
            "a packet lies in {} buffers, its header says {buffers}",
            parts.len()
        );
        let (head, rest) = arrived.split_at(REST);
        let same = head[HEADER..NUMBER] == octets[HEADER..NUMBER] && rest == &octets[REST..];
        let number = head[NUMBER..].try_into().map_or(0, u64::from_le_bytes);
        ensure!(same, "packet {number} did not arrive as it was sent");
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::memory::Memory;

    #[test]
    fn a_packet_is_known_again_and_damage_is_seen() {
        let memory = Memory::new(0x2000).unwrap();
        let mut packets = Packets::new(1514, [2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let part = |at, len| memory.slice(at, len).unwrap();
        let whole = part(0, packets.len());
        packets.prepare(&whole);
        packets.number(&whole, 77);
        let parts = [part(0, 1000), part(1000, packets.len() - 1000)];
        assert!(packets.check(&parts).is_err(), "num_buffers is 0");
        whole.write_obj(2u16, NUM_BUFFERS).unwrap();
        assert_eq!(packets.check(&parts).unwrap(), 77);
        assert!(packets.check(&parts[..1]).is_err(), "its end is missing");
        for at in [HEADER, REST, packets.len() - 1] {
            let was: u8 = whole.read_obj(at).unwrap();
            whole.write_obj(was ^ 1, at).unwrap();
            assert!(packets.check(&parts).is_err(), "octet {at} is damaged");
            whole.write_obj(was, at).unwrap();
        }
        assert_eq!(packets.check(&parts).unwrap(), 77);
    }
}
