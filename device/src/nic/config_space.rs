// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device configuration space: what a driver reads of the NIC (VIRTIO 1.3, 5.1.4).
//!
//! Every field is shown whatever has been negotiated: a driver may read them before it accepts
//! the features that they belong to (2.5.2).

use super::control::DriverState;
use super::features::{Features, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_RSS};
use super::flow_hash::SUPPORTED_HASH_TYPES;
use super::rss::MAX_TABLE;
use super::toeplitz::KEY_LEN;
use super::{MacAddress, NicConfig};

/// `status`: the link is up.
pub const VIRTIO_NET_S_LINK_UP: u16 = 1;
/// `status`: the driver is asked to announce itself (5.1.6.5.4).
pub const VIRTIO_NET_S_ANNOUNCE: u16 = 2;

/// Octets of `struct virtio_net_config`.
pub const CONFIG_LEN: usize = 28;

/// A read never gives more than this: it is all that a vhost-user message can carry.
pub const MAX_READ: usize = 4096;

/// `speed`: not known.
const SPEED_UNKNOWN: u32 = 0xffff_ffff;
/// The largest `speed` that is a speed.
const SPEED_MAX: u32 = 0x7fff_ffff;

/// `duplex`: full. So says 5.1.4, and every driver; 5.1.4.1 has full and half the wrong way round.
const DUPLEX_FULL: u8 = 1;

/// The configuration space at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    mac: MacAddress,
    status: u16,
    max_virtqueue_pairs: u16,
    mtu: u16,
    speed: u32,
    /// Receive-side scaling is offered.
    rss: bool,
    /// To report hashes is offered.
    hash_report: bool,
}

impl ConfigSpace {
    /// What a driver that has brought the NIC into `state` reads now.
    ///
    /// `speed` and `duplex` stay as they are when the link is down: they may change only then
    /// (5.1.4.1), and a driver reads them anew when the link comes up.
    pub fn new(config: &NicConfig, state: &DriverState, link_up: bool) -> Self {
        let mut status = 0;
        if link_up {
            status |= VIRTIO_NET_S_LINK_UP;
        }
        if state.announce_pending() {
            status |= VIRTIO_NET_S_ANNOUNCE;
        }
        let offered = Features::offered(config);
        ConfigSpace {
            mac: state.mac(),
            status,
            max_virtqueue_pairs: config.queue_pairs,
            mtu: config.mtu,
            speed: if config.speed > SPEED_MAX {
                SPEED_UNKNOWN
            } else {
                config.speed
            },
            rss: offered.has(VIRTIO_NET_F_RSS),
            hash_report: offered.has(VIRTIO_NET_F_HASH_REPORT),
        }
    }

    /// All of it. What belongs to hashing is zero where there is none.
    pub fn bytes(&self) -> [u8; CONFIG_LEN] {
        let [m0, m1, m2, m3, m4, m5] = self.mac.0;
        let [status0, status1] = self.status.to_le_bytes();
        let [pairs0, pairs1] = self.max_virtqueue_pairs.to_le_bytes();
        let [mtu0, mtu1] = self.mtu.to_le_bytes();
        let [speed0, speed1, speed2, speed3] = self.speed.to_le_bytes();
        let (key, types) = match self.rss || self.hash_report {
            // Less than 256.
            true => (KEY_LEN as u8, SUPPORTED_HASH_TYPES),
            false => (0, 0),
        };
        let table = if self.rss { MAX_TABLE } else { 0 };
        let [table0, table1] = table.to_le_bytes();
        let [types0, types1, types2, types3] = types.to_le_bytes();
        #[rustfmt::skip]
        let bytes = [
            m0, m1, m2, m3, m4, m5,
            status0, status1,
            pairs0, pairs1,
            mtu0, mtu1,
            speed0, speed1, speed2, speed3,
            DUPLEX_FULL,
            key,
            table0, table1,
            types0, types1, types2, types3,
            0, 0, 0, 0, // supported_tunnel_types
        ];
        bytes
    }

    /// `size` octets from `offset` on, with zeros for what lies past the end; at most [`MAX_READ`].
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let size = usize::try_from(size).map_or(MAX_READ, |size| size.min(MAX_READ));
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut read: Vec<u8> = self.bytes().into_iter().skip(offset).take(size).collect();
        read.resize(size, 0);
        read
    }
}

/// A MAC address being written octet by octet into the configuration space, the way of legacy
/// drivers. They write from the first octet to the last, so it counts when the last one is there
/// (5.1.6.5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MacWrite([u8; 6]);

impl MacWrite {
    /// Nothing is written yet over `mac`.
    pub(super) fn over(mac: MacAddress) -> Self {
        MacWrite(mac.0)
    }

    /// Takes a write of `data` at `offset`; gives the address when it is complete. One that no
    /// station can have is dropped, and so is all that lies outside `mac`: it is read-only (5.1.4).
    pub(super) fn write(&mut self, offset: u32, data: &[u8]) -> Option<MacAddress> {
        let offset = usize::try_from(offset).ok()?;
        let room = self.0.get_mut(offset..)?;
        for (to, from) in room.iter_mut().zip(data) {
            *to = *from;
        }
        let complete = !data.is_empty() && data.len() >= room.len() && !room.is_empty();
        Some(MacAddress(self.0)).filter(|mac| complete && mac.is_station())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::features::Features;
    use crate::nic::offload::Offloads;
    use proptest::prelude::*;

    fn config() -> NicConfig {
        NicConfig {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            mtu: 9000,
            speed: 25_000,
            queue_pairs: 3,
            packed: true,
            rss: true,
            hash_report: false,
            offloads: Offloads::NONE,
            uplink: "loopback".into(),
        }
    }

    fn space(link_up: bool) -> ConfigSpace {
        let config = config();
        let mut state = DriverState::new(&config);
        state.reset(Features::offered(&config));
        assert!(state.request_announce());
        ConfigSpace::new(&config, &state, link_up)
    }

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let mut expected = [0u8; CONFIG_LEN];
        expected[0..6].copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        expected[6] = 3; // link up, announce
        expected[8] = 3; // pairs
        expected[10..12].copy_from_slice(&9000u16.to_le_bytes());
        expected[12..16].copy_from_slice(&25_000u32.to_le_bytes());
        expected[16] = 1; // full duplex
        expected[17] = 40; // octets of a key
        expected[18] = 128; // entries of a table
        expected[20] = 0x3f; // hash types
        assert_eq!(space(true).bytes(), expected);
        // With one pair there is nothing to choose from.
        let config = NicConfig {
            queue_pairs: 1,
            ..config()
        };
        let space = ConfigSpace::new(&config, &DriverState::new(&config), true);
        assert_eq!(space.read(17, 7), [0; 7]);
        // But a hash to be reported.
        let config = NicConfig {
            hash_report: true,
            ..config
        };
        let space = ConfigSpace::new(&config, &DriverState::new(&config), true);
        assert_eq!(space.read(17, 7), [40, 0, 0, 0x3f, 0, 0, 0]);
    }

    #[test]
    fn a_pulled_cable_clears_one_bit_and_nothing_else() {
        let (up, down) = (space(true).bytes(), space(false).bytes());
        assert_eq!((up[6], down[6]), (3, 2));
        assert_eq!(up[..6], down[..6]);
        assert_eq!(up[7..], down[7..]);
    }

    #[test]
    fn a_speed_out_of_range_is_unknown() {
        let mut config = config();
        config.speed = SPEED_MAX + 1;
        let space = ConfigSpace::new(&config, &DriverState::new(&config), true);
        assert_eq!(space.read(12, 4), [0xff; 4]);
    }

    #[test]
    fn a_legacy_mac_counts_when_its_last_octet_is_written() {
        let mut write = MacWrite::over(config().mac);
        let new = MacAddress([2, 1, 2, 3, 4, 5]);
        for (offset, octet) in (0..5).zip(new.0) {
            assert_eq!(write.write(offset, &[octet]), None);
        }
        assert_eq!(write.write(5, &[5]), Some(new));
        assert_eq!(write.write(0, &new.0), Some(new));
        // More than the MAC at once: the rest is read-only.
        assert_eq!(write.write(4, &[4, 5, 9, 9]), Some(new));
        assert_eq!(write.write(6, &[1]), None);
        assert_eq!(write.write(5, &[]), None);
        assert_eq!(write.write(0, &[0xff; 6]), None, "group address");
        assert_eq!(write.write(0, &[0; 6]), None, "null address");
    }

    proptest! {
        #[test]
        fn reads_agree_with_bytes_and_are_zero_past_the_end(offset: u32, size: u32, near in 0u32..40) {
            let space = space(true);
            let bytes = space.bytes();
            for offset in [offset, near] {
                for size in [size, near] {
                    let read = space.read(offset, size);
                    prop_assert_eq!(read.len(), (size as usize).min(MAX_READ));
                    for (i, octet) in read.into_iter().enumerate() {
                        let at = offset as usize + i;
                        prop_assert_eq!(octet, bytes.get(at).copied().unwrap_or(0));
                    }
                }
            }
        }

        #[test]
        fn any_write_leaves_a_station_address(writes: Vec<(u32, Vec<u8>)>, near in 0u32..8) {
            let mut write = MacWrite::over(config().mac);
            for (offset, data) in &writes {
                for offset in [*offset, near] {
                    if let Some(mac) = write.write(offset, data) {
                        prop_assert!(mac.is_station());
                    }
                }
            }
        }
    }
}
