// SPDX-License-Identifier: GPL-2.0

//! The device's configuration (VIRTIO 1.3, 5.1.4): `struct virtio_net_config`.

use super::{
    features,
    rss::HashTypes, //
};
use crate::{
    net::Address,
    virtio::{
        Features,
        Transport, //
    }, //
};
use kernel::prelude::*;

/// Offsets of the fields.
mod field {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MAX_VIRTQUEUE_PAIRS: usize = 8;
    pub(super) const MTU: usize = 10;
    pub(super) const SPEED: usize = 12;
    pub(super) const DUPLEX: usize = 16;
    pub(super) const RSS_MAX_KEY_SIZE: usize = 17;
    pub(super) const RSS_MAX_INDIRECTION_TABLE_LENGTH: usize = 18;
    pub(super) const SUPPORTED_HASH_TYPES: usize = 20;
}

/// VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// VIRTIO_NET_S_ANNOUNCE.
const ANNOUNCE: u16 = 2;

/// The smallest MTU of an Ethernet interface that can carry IPv4 (RFC 791).
pub(super) const MIN_MTU: u32 = 68;
/// The largest that there is.
pub(super) const MAX_MTU: u32 = 65535;
/// That of Ethernet.
pub(super) const ETHERNET_MTU: u32 = 1500;

/// The largest number of pairs that MQ can have (5.1.6.5.5).
const MAX_PAIRS: u16 = 0x8000;

/// The smallest key that a device has to take for hashes (5.1.4.2).
const MIN_RSS_KEY: u8 = 40;

/// What a device can that spreads packets by hashes of their flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RssLimits {
    /// Octets of the longest key.
    pub(super) key: u8,
    /// Entries in the longest table.
    pub(super) table: u16,
    /// Types of hashes.
    pub(super) types: HashTypes,
}

impl RssLimits {
    /// Reads it. `EINVAL` if it makes no sense.
    fn read(transport: &Transport<'_>) -> Result<Self> {
        let limits = Self {
            key: transport.read_config(field::RSS_MAX_KEY_SIZE)?,
            table: transport.read_config(field::RSS_MAX_INDIRECTION_TABLE_LENGTH)?,
            types: HashTypes::from_device(transport.read_config(field::SUPPORTED_HASH_TYPES)?),
        };
        if limits.key < MIN_RSS_KEY || limits.table == 0 {
            return Err(EINVAL);
        }
        Ok(limits)
    }
}

/// What does not change while the device is driven.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fixed {
    /// The address that the device came with.
    pub(super) address: Option<Address>,
    /// How many pairs of queues there can be.
    pub(super) max_pairs: u16,
    /// The largest MTU.
    pub(super) max_mtu: u32,
    /// What it can do by hashes of flows.
    pub(super) rss: Option<RssLimits>,
}

impl Fixed {
    /// Reads it, as far as `accepted` says that it is there. `EINVAL` if it makes no sense.
    pub(super) fn read(transport: &Transport<'_>, accepted: Features) -> Result<Self> {
        let max_pairs = if accepted.intersects(features::MQ | features::RSS) {
            transport.read_config::<u16>(field::MAX_VIRTQUEUE_PAIRS)?
        } else {
            1
        };
        if max_pairs == 0 || max_pairs > MAX_PAIRS {
            return Err(EINVAL);
        }
        let max_mtu = if accepted.contains(features::MTU) {
            transport.read_config::<u16>(field::MTU)?.into()
        } else {
            MAX_MTU
        };
        if max_mtu < MIN_MTU {
            return Err(EINVAL);
        }
        let address = if accepted.contains(features::MAC) {
            Some(transport.read_config::<Address>(field::MAC)?)
        } else {
            None
        };
        let rss = if accepted.contains(features::RSS) {
            Some(RssLimits::read(transport)?)
        } else {
            None
        };
        Ok(Self {
            // Multicast, or none: not an address of a device.
            address: address.filter(|address| address[0] & 1 == 0 && *address != [0; 6]),
            max_pairs,
            max_mtu,
            rss,
        })
    }
}

/// The state of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// There is a carrier.
    pub(super) up: bool,
    /// The driver is to tell the network that it is there, and the device that it has.
    pub(super) announce: bool,
    /// In Mbit/s. `None`: not known.
    pub(super) speed: Option<u32>,
    /// Both directions at once. `None`: not known.
    pub(super) full_duplex: Option<bool>,
}

impl Link {
    /// Reads it.
    pub(super) fn read(transport: &Transport<'_>, accepted: Features) -> Result<Self> {
        let status = if accepted.contains(features::STATUS) {
            transport.read_config::<u16>(field::STATUS)?
        } else {
            // 5.1.4.2: without the field the link is assumed to be up.
            LINK_UP
        };
        let (speed, duplex) = if accepted.contains(features::SPEED_DUPLEX) {
            transport.read_config_with(|config| {
                Ok((config.read(field::SPEED)?, config.read(field::DUPLEX)?))
            })?
        } else {
            (u32::MAX, u8::MAX)
        };
        Ok(Self::from_fields(status, speed, duplex))
    }

    fn from_fields(status: u16, speed: u32, duplex: u8) -> Self {
        Self {
            up: status & LINK_UP != 0,
            announce: status & ANNOUNCE != 0,
            speed: i32::try_from(speed).is_ok().then_some(speed),
            full_duplex: match duplex {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            },
        }
    }
}

/// Sets the address, where there is no command for that (5.1.4.2).
pub(super) fn write_address(transport: &Transport<'_>, address: Address) -> Result {
    transport.write_config(field::MAC, address)
}

#[kunit_tests(ferronic_config)]
mod tests {
    use super::*;

    #[test]
    fn link_fields() {
        let link = Link::from_fields(1, 10_000, 1);
        assert!(link.up && !link.announce);
        assert_eq!((link.speed, link.full_duplex), (Some(10_000), Some(true)));
        let unknown = Link::from_fields(2, u32::MAX, 0xff);
        assert!(!unknown.up && unknown.announce);
        assert_eq!((unknown.speed, unknown.full_duplex), (None, None));
        // 5.1.4: speeds are 0 to INT_MAX.
        assert_eq!(Link::from_fields(0, 0x8000_0000, 2).speed, None);
        assert_eq!(
            Link::from_fields(0, 0x7fff_ffff, 0).speed,
            Some(0x7fff_ffff)
        );
    }
}
