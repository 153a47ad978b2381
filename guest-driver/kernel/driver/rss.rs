// SPDX-License-Identifier: GPL-2.0

//! Receive-side scaling (VIRTIO 1.3, 5.1.6.5.7): the device chooses the receive queue of a packet
//! by a hash of its flow and a table.

use super::config::RssLimits;
use crate::net::ethtool::{
    fill_rss_key,
    FlowHash,
    FlowType, //
};
use kernel::prelude::*;

/// More entries are not used: they would be many times the number of queues.
const MAX_TABLE: u16 = 512;

/// A set of types of hashes: VIRTIO_NET_HASH_TYPE_IPv4 and so on (5.1.6.4.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashTypes(u32);

impl HashTypes {
    const IPV4: u32 = 1;
    const TCP_V4: u32 = 1 << 1;
    const UDP_V4: u32 = 1 << 2;
    const IPV6: u32 = 1 << 3;
    const TCP_V6: u32 = 1 << 4;
    const UDP_V6: u32 = 1 << 5;
    /// Those with names here.
    const ALL: u32 = (1 << 6) - 1;

    /// What this driver can ask for of what a device can.
    pub(super) const fn from_device(bits: u32) -> Self {
        Self(bits & Self::ALL)
    }

    /// The hash of addresses, and the one of ports if there is one, for a type of flow.
    const fn of(flow: FlowType) -> (u32, u32) {
        match flow {
            FlowType::TcpV4 => (Self::IPV4, Self::TCP_V4),
            FlowType::UdpV4 => (Self::IPV4, Self::UDP_V4),
            FlowType::Ipv4 => (Self::IPV4, 0),
            FlowType::TcpV6 => (Self::IPV6, Self::TCP_V6),
            FlowType::UdpV6 => (Self::IPV6, Self::UDP_V6),
            FlowType::Ipv6 => (Self::IPV6, 0),
        }
    }

    /// What of a flow's packets is hashed.
    pub(super) const fn get(self, flow: FlowType) -> FlowHash {
        let (addresses, ports) = Self::of(flow);
        if self.0 & ports != 0 {
            FlowHash::AddressesAndPorts
        } else if self.0 & addresses != 0 {
            FlowHash::Addresses
        } else {
            FlowHash::Nothing
        }
    }

    /// The set with another choice for one type of flow, of the `possible` ones. `EINVAL` if that
    /// cannot be had, or not without another choice for other types.
    pub(super) fn with(self, possible: Self, flow: FlowType, hash: FlowHash) -> Result<Self> {
        let (addresses, ports) = Self::of(flow);
        let mut types = self.0 & !ports;
        match hash {
            FlowHash::AddressesAndPorts => types |= ports,
            FlowHash::Addresses if ports == 0 => types |= addresses,
            FlowHash::Nothing if ports == 0 => types &= !addresses,
            _ => {}
        }
        let types = Self(types);
        if types.0 & !possible.0 != 0 || types.get(flow) != hash {
            return Err(EINVAL);
        }
        Ok(types)
    }
}

/// How the device is to choose.
pub(super) struct Rss {
    pub(super) limits: RssLimits,
    /// Indices of receive queues. As many as a power of two.
    pub(super) table: KVec<u16>,
    pub(super) key: KVec<u8>,
    pub(super) types: HashTypes,
    /// The table is that of [`Self::spread`].
    even: bool,
}

impl Rss {
    /// All that the device can, evenly over `pairs` queues.
    pub(super) fn new(limits: RssLimits, pairs: u16) -> Result<Self> {
        let length = 1usize << limits.table.min(MAX_TABLE).checked_ilog2().ok_or(EINVAL)?;
        let mut key = KVec::from_elem(0, limits.key.into(), GFP_KERNEL)?;
        fill_rss_key(&mut key);
        let mut rss = Self {
            limits,
            table: KVec::from_elem(0, length, GFP_KERNEL)?,
            key,
            types: limits.types,
            even: true,
        };
        rss.spread(pairs);
        Ok(rss)
    }

    /// The same once more.
    pub(super) fn try_clone(&self) -> Result<Self> {
        let mut table = KVec::new();
        table.extend_from_slice(&self.table, GFP_KERNEL)?;
        let mut key = KVec::new();
        key.extend_from_slice(&self.key, GFP_KERNEL)?;
        Ok(Self {
            table,
            key,
            ..*self
        })
    }

    /// Makes the table one that uses `pairs` queues evenly.
    fn spread(&mut self, pairs: u16) {
        for (entry, queue) in self.table.iter_mut().zip((0..pairs).cycle()) {
            *entry = queue;
        }
    }

    /// Sets the table. `EINVAL` if that uses other queues than those of `pairs`.
    pub(super) fn set_table(&mut self, table: &[u32], pairs: u16) -> Result {
        if table.len() != self.table.len() || table.iter().any(|q| *q >= pairs.into()) {
            return Err(EINVAL);
        }
        let mut even = true;
        for ((entry, queue), spread) in self.table.iter_mut().zip(table).zip((0..pairs).cycle()) {
            // CAST: Less than `pairs`.
            *entry = *queue as u16;
            even &= *entry == spread;
        }
        self.even = even;
        Ok(())
    }

    /// Adapts the table to another number of queues: one that was even is, one that was set stays
    /// as long as it uses no others.
    pub(super) fn set_pairs(&mut self, pairs: u16) {
        if self.even || self.table.iter().any(|queue| *queue >= pairs) {
            self.spread(pairs);
            self.even = true;
        }
    }

    /// The argument of VIRTIO_NET_CTRL_MQ_RSS_CONFIG: `struct virtio_net_rss_config`.
    pub(super) fn encode(&self, pairs: u16) -> Result<KVec<u8>> {
        let mask = u16::try_from(self.table.len().wrapping_sub(1))?;
        let mut octets = KVec::new();
        let mut put = |part: &[u8]| octets.extend_from_slice(part, GFP_KERNEL);
        put(&self.types.0.to_le_bytes())?;
        put(&mask.to_le_bytes())?;
        // Packets without a hash.
        put(&0u16.to_le_bytes())?;
        for queue in &self.table {
            put(&queue.to_le_bytes())?;
        }
        put(&pairs.to_le_bytes())?;
        put(&[u8::try_from(self.key.len())?])?;
        put(&self.key)?;
        Ok(octets)
    }
}

#[kunit_tests(ferronic_rss)]
mod tests {
    use super::*;

    const LIMITS: RssLimits = RssLimits {
        key: 40,
        // Not a power of two.
        table: 7,
        types: HashTypes(HashTypes::ALL),
    };

    #[test]
    fn table_follows_pairs_unless_it_was_set() -> Result {
        let mut rss = Rss::new(LIMITS, 3)?;
        assert_eq!(rss.table[..], [0, 1, 2, 0]);
        rss.set_pairs(2);
        assert_eq!(rss.table[..], [0, 1, 0, 1]);
        rss.set_table(&[1, 1, 1, 0], 2)?;
        rss.set_pairs(4);
        assert_eq!(rss.table[..], [1, 1, 1, 0]);
        rss.set_pairs(1);
        assert_eq!(rss.table[..], [0, 0, 0, 0]);
        rss.set_pairs(2);
        assert_eq!(rss.table[..], [0, 1, 0, 1]);
        assert!(rss.set_table(&[0, 1, 2, 0], 2).is_err());
        assert!(rss.set_table(&[0, 1], 2).is_err());
        Ok(())
    }

    #[test]
    fn configuration_as_the_device_wants_it() -> Result {
        let mut rss = Rss::new(LIMITS, 2)?;
        rss.key[0] = 0xaa;
        rss.types = HashTypes(0x12);
        let octets = rss.encode(2)?;
        let head = [
            0x12, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 2, 0, 40, 0xaa,
        ];
        assert_eq!(octets[..head.len()], head);
        assert_eq!(octets.len(), head.len() + 39);
        Ok(())
    }

    #[test]
    fn a_choice_for_one_flow_leaves_others() -> Result {
        let all = HashTypes(HashTypes::ALL);
        let less = all.with(all, FlowType::UdpV4, FlowHash::Addresses)?;
        assert_eq!(less.get(FlowType::UdpV4), FlowHash::Addresses);
        assert_eq!(less.get(FlowType::TcpV4), FlowHash::AddressesAndPorts);
        // Addresses of all flows over IPv4 are hashed, or none.
        assert!(all.with(all, FlowType::UdpV4, FlowHash::Nothing).is_err());
        let none = less.with(all, FlowType::Ipv4, FlowHash::Nothing)?;
        assert_eq!(none.get(FlowType::UdpV4), FlowHash::Nothing);
        assert_eq!(none.get(FlowType::TcpV4), FlowHash::AddressesAndPorts);
        assert!(none
            .with(all, FlowType::UdpV4, FlowHash::Addresses)
            .is_err());
        assert!(all
            .with(all, FlowType::Ipv6, FlowHash::AddressesAndPorts)
            .is_err());
        let poor = HashTypes(HashTypes::IPV4);
        assert!(poor
            .with(poor, FlowType::TcpV4, FlowHash::AddressesAndPorts)
            .is_err());
        Ok(())
    }
}
