// SPDX-License-Identifier: GPL-2.0

//! Receive-side scaling: how received packets are spread over queues.
//!
//! C header: [`include/uapi/linux/ethtool.h`](srctree/include/uapi/linux/ethtool.h)

use crate::bindings;
use kernel::prelude::*;

/// How flows are hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HashFunction {
    /// Toeplitz.
    Toeplitz,
    /// Something else.
    Other,
}

impl HashFunction {
    /// ETH_RSS_HASH_TOP.
    const TOP: u8 = 1;

    /// `None`: it is to stay as it is.
    pub(super) fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => None,
            Self::TOP => Some(Self::Toeplitz),
            _ => Some(Self::Other),
        }
    }

    pub(super) fn into_raw(self) -> u8 {
        match self {
            Self::Toeplitz => Self::TOP,
            Self::Other => 0,
        }
    }
}

/// Fills a key with random octets: the same for all devices that ask, and longer keys begin with
/// shorter ones. May sleep.
pub(crate) fn fill_rss_key(key: &mut [u8]) {
    /// NETDEV_RSS_KEY_LEN: so much there is.
    const MOST: usize = 256;
    let len = key.len().min(MOST);
    // SAFETY: There is room for so many octets, which are not too many.
    unsafe { bindings::netdev_rss_key_fill(key.as_mut_ptr().cast(), len) };
}

/// What to change; all else is to stay as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RxfhChange<'a> {
    /// From hashes to queues that are in use. As long as the device's.
    pub(crate) table: Option<&'a [u32]>,
    /// As long as the device's.
    pub(crate) key: Option<&'a [u8]>,
    /// The function.
    pub(crate) function: Option<HashFunction>,
}

/// Types of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowType {
    /// TCP over IPv4.
    TcpV4,
    /// UDP over IPv4.
    UdpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP over IPv6.
    UdpV6,
    /// All else over IPv4.
    Ipv4,
    /// All else over IPv6.
    Ipv6,
}

impl FlowType {
    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            bindings::TCP_V4_FLOW => Self::TcpV4,
            bindings::UDP_V4_FLOW => Self::UdpV4,
            bindings::TCP_V6_FLOW => Self::TcpV6,
            bindings::UDP_V6_FLOW => Self::UdpV6,
            bindings::IPV4_FLOW => Self::Ipv4,
            bindings::IPV6_FLOW => Self::Ipv6,
            _ => return None,
        })
    }
}

/// What of a flow's packets is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowHash {
    /// Nothing.
    Nothing,
    /// Both addresses.
    Addresses,
    /// Both addresses and both ports.
    AddressesAndPorts,
}

impl FlowHash {
    const ADDRESSES: u32 = bindings::RXH_IP_SRC | bindings::RXH_IP_DST;
    const PORTS: u32 = bindings::RXH_L4_B_0_1 | bindings::RXH_L4_B_2_3;
    /// RXH_DISCARD.
    const DISCARD: u32 = 1 << 31;

    /// `None` if it is some other choice.
    pub(super) fn from_raw(raw: u32) -> Option<Self> {
        const BOTH: u32 = FlowHash::ADDRESSES | FlowHash::PORTS;
        match raw {
            0 | Self::DISCARD => Some(Self::Nothing),
            Self::ADDRESSES => Some(Self::Addresses),
            BOTH => Some(Self::AddressesAndPorts),
            _ => None,
        }
    }

    pub(super) fn into_raw(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Addresses => Self::ADDRESSES,
            Self::AddressesAndPorts => Self::ADDRESSES | Self::PORTS,
        }
    }
}

#[kunit_tests(ferronic_net_flow_hash)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed() {
        for hash in [
            FlowHash::Nothing,
            FlowHash::Addresses,
            FlowHash::AddressesAndPorts,
        ] {
            assert_eq!(FlowHash::from_raw(hash.into_raw()), Some(hash));
        }
        // One address alone.
        assert_eq!(FlowHash::from_raw(bindings::RXH_IP_SRC), None);
        assert_eq!(
            FlowHash::from_raw(FlowHash::DISCARD),
            Some(FlowHash::Nothing)
        );
    }
}
