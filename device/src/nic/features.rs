// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Feature bits: what the NIC offers, and what a driver's choice means (VIRTIO 1.3, 2.2, 5.1.3, 6).

use super::NicConfig;
use super::header::{HASHLESS_HEADER, LONGEST_HEADER};
use super::offload::Offloads;

/// Defines each bit as a constant and all of them as a table of names.
macro_rules! feature_bits {
    ($($(#[$doc:meta])+ $name:ident = $bit:literal;)+) => {
        $($(#[$doc])+ pub const $name: u32 = $bit;)+

        /// Every bit with its name in the specification.
        const NAMES: &[(u32, &str)] = &[$(($bit, stringify!($name))),+];
    };
}

feature_bits! {
    /// The device handles packets with a partial checksum.
    VIRTIO_NET_F_CSUM = 0;
    /// The driver handles packets with a partial checksum.
    VIRTIO_NET_F_GUEST_CSUM = 1;
    /// The driver may change its offloads through the control queue.
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS = 2;
    /// `mtu` in the configuration is valid.
    VIRTIO_NET_F_MTU = 3;
    /// `mac` in the configuration is valid.
    VIRTIO_NET_F_MAC = 5;
    /// Legacy: the device handles any GSO type. Never offered (5.1.3.2).
    VIRTIO_NET_F_GSO = 6;
    /// The driver can receive TCP segmentation over IPv4.
    VIRTIO_NET_F_GUEST_TSO4 = 7;
    /// The driver can receive TCP segmentation over IPv6.
    VIRTIO_NET_F_GUEST_TSO6 = 8;
    /// The driver can receive TCP segmentation with ECN.
    VIRTIO_NET_F_GUEST_ECN = 9;
    /// The driver can receive UDP fragmentation.
    VIRTIO_NET_F_GUEST_UFO = 10;
    /// The device can receive TCP segmentation over IPv4.
    VIRTIO_NET_F_HOST_TSO4 = 11;
    /// The device can receive TCP segmentation over IPv6.
    VIRTIO_NET_F_HOST_TSO6 = 12;
    /// The device can receive TCP segmentation with ECN.
    VIRTIO_NET_F_HOST_ECN = 13;
    /// The device can receive UDP fragmentation.
    VIRTIO_NET_F_HOST_UFO = 14;
    /// The driver can merge receive buffers.
    VIRTIO_NET_F_MRG_RXBUF = 15;
    /// `status` in the configuration is valid.
    VIRTIO_NET_F_STATUS = 16;
    /// There is a control queue.
    VIRTIO_NET_F_CTRL_VQ = 17;
    /// The control queue sets receive modes.
    VIRTIO_NET_F_CTRL_RX = 18;
    /// The control queue sets the VLAN filter.
    VIRTIO_NET_F_CTRL_VLAN = 19;
    /// The control queue sets further receive modes.
    VIRTIO_NET_F_CTRL_RX_EXTRA = 20;
    /// The driver can send gratuitous packets.
    VIRTIO_NET_F_GUEST_ANNOUNCE = 21;
    /// Several queue pairs with automatic receive steering.
    VIRTIO_NET_F_MQ = 22;
    /// The control queue sets the MAC address.
    VIRTIO_NET_F_CTRL_MAC_ADDR = 23;
    /// Legacy: notify when the available ring has run empty (6.3).
    VIRTIO_F_NOTIFY_ON_EMPTY = 24;
    /// Legacy: any arrangement of descriptors is taken (6.3).
    VIRTIO_F_ANY_LAYOUT = 27;
    /// Descriptors with `VIRTQ_DESC_F_INDIRECT` (2.7.5.3).
    VIRTIO_F_INDIRECT_DESC = 28;
    /// `used_event` and `avail_event` (2.7.7, 2.7.10).
    VIRTIO_F_EVENT_IDX = 29;
    /// Complies with VIRTIO 1.0 or later; without it the driver is a legacy one.
    VIRTIO_F_VERSION_1 = 32;
    /// Memory is reached through the platform's translation.
    VIRTIO_F_ACCESS_PLATFORM = 33;
    /// Packed virtqueues (2.8).
    VIRTIO_F_RING_PACKED = 34;
    /// Buffers are used in the order in which they were made available (2.7.9, 2.8.6).
    VIRTIO_F_IN_ORDER = 35;
    /// Memory is ordered as the platform says.
    VIRTIO_F_ORDER_PLATFORM = 36;
    /// Single root I/O virtualisation.
    VIRTIO_F_SR_IOV = 37;
    /// Notifications carry data (2.9).
    VIRTIO_F_NOTIFICATION_DATA = 38;
    /// Notifications carry data that the device has given.
    VIRTIO_F_NOTIF_CONFIG_DATA = 39;
    /// A queue can be reset on its own (2.6.1).
    VIRTIO_F_RING_RESET = 40;
    /// There is an administration virtqueue.
    VIRTIO_F_ADMIN_VQ = 41;
    /// The control queue gives device statistics.
    VIRTIO_NET_F_DEVICE_STATS = 50;
    /// Hashes over the inner header of tunnelled packets.
    VIRTIO_NET_F_HASH_TUNNEL = 51;
    /// Notification coalescing, queue by queue.
    VIRTIO_NET_F_VQ_NOTF_COAL = 52;
    /// Notification coalescing.
    VIRTIO_NET_F_NOTF_COAL = 53;
    /// The driver can receive UDP segmentation over IPv4.
    VIRTIO_NET_F_GUEST_USO4 = 54;
    /// The driver can receive UDP segmentation over IPv6.
    VIRTIO_NET_F_GUEST_USO6 = 55;
    /// The device can receive UDP segmentation, over both versions of IP.
    VIRTIO_NET_F_HOST_USO = 56;
    /// The device reports a hash with every packet.
    VIRTIO_NET_F_HASH_REPORT = 57;
    /// The driver's `hdr_len` is exact.
    VIRTIO_NET_F_GUEST_HDRLEN = 59;
    /// Receive-side scaling.
    VIRTIO_NET_F_RSS = 60;
    /// The device reports coalesced segments and duplicated acknowledgements.
    VIRTIO_NET_F_RSC_EXT = 61;
    /// The device may stand by for a primary one with the same MAC address.
    VIRTIO_NET_F_STANDBY = 62;
    /// `speed` and `duplex` in the configuration are valid.
    VIRTIO_NET_F_SPEED_DUPLEX = 63;
}

const fn bits<const N: usize>(list: [u32; N]) -> u64 {
    let mut set = 0;
    let mut i = 0;
    while i < N {
        set |= 1 << list[i];
        i += 1;
    }
    set
}

/// A bit, and the bits of which it requires at least one (5.1.3.1). A bit on several lines
/// requires them all. What others depend on comes before them, so that one walk settles all.
///
/// The last two lines are not in 5.1.3.1, but what these bits promise are control queue commands.
const REQUIREMENTS: &[(u32, u64)] = &[
    (VIRTIO_NET_F_GUEST_TSO4, bits([VIRTIO_NET_F_GUEST_CSUM])),
    (VIRTIO_NET_F_GUEST_TSO6, bits([VIRTIO_NET_F_GUEST_CSUM])),
    (
        VIRTIO_NET_F_GUEST_ECN,
        bits([VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]),
    ),
    (VIRTIO_NET_F_GUEST_UFO, bits([VIRTIO_NET_F_GUEST_CSUM])),
    (VIRTIO_NET_F_GUEST_USO4, bits([VIRTIO_NET_F_GUEST_CSUM])),
    (VIRTIO_NET_F_GUEST_USO6, bits([VIRTIO_NET_F_GUEST_CSUM])),
    (VIRTIO_NET_F_HOST_TSO4, bits([VIRTIO_NET_F_CSUM])),
    (VIRTIO_NET_F_HOST_TSO6, bits([VIRTIO_NET_F_CSUM])),
    (
        VIRTIO_NET_F_HOST_ECN,
        bits([VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]),
    ),
    (VIRTIO_NET_F_HOST_UFO, bits([VIRTIO_NET_F_CSUM])),
    (VIRTIO_NET_F_HOST_USO, bits([VIRTIO_NET_F_CSUM])),
    (VIRTIO_NET_F_CTRL_RX, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_CTRL_VLAN, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_GUEST_ANNOUNCE, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_MQ, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_CTRL_MAC_ADDR, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_NOTF_COAL, bits([VIRTIO_NET_F_CTRL_VQ])),
    (
        VIRTIO_NET_F_RSC_EXT,
        bits([VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]),
    ),
    (VIRTIO_NET_F_RSS, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_VQ_NOTF_COAL, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_DEVICE_STATS, bits([VIRTIO_NET_F_CTRL_VQ])),
    (VIRTIO_NET_F_HASH_TUNNEL, bits([VIRTIO_NET_F_CTRL_VQ])),
    (
        VIRTIO_NET_F_HASH_TUNNEL,
        bits([VIRTIO_NET_F_RSS, VIRTIO_NET_F_HASH_REPORT]),
    ),
    (VIRTIO_NET_F_CTRL_RX_EXTRA, bits([VIRTIO_NET_F_CTRL_VQ])),
    (
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        bits([VIRTIO_NET_F_CTRL_VQ]),
    ),
];

/// What the driver may be handed unfinished, and the bit that says so.
const RECEIVE: &[(Offloads, u32)] = &[
    (Offloads::CSUM, VIRTIO_NET_F_GUEST_CSUM),
    (Offloads::TSO4, VIRTIO_NET_F_GUEST_TSO4),
    (Offloads::TSO6, VIRTIO_NET_F_GUEST_TSO6),
    (Offloads::ECN, VIRTIO_NET_F_GUEST_ECN),
    (Offloads::USO4, VIRTIO_NET_F_GUEST_USO4),
    (Offloads::USO6, VIRTIO_NET_F_GUEST_USO6),
];

/// What the driver may hand us unfinished, and the bits that say so. One bit stands for UDP
/// segmentation over both versions of IP, so it takes both offloads to honour it.
const TRANSMIT: &[(Offloads, u32)] = &[
    (Offloads::CSUM, VIRTIO_NET_F_CSUM),
    (Offloads::TSO4, VIRTIO_NET_F_HOST_TSO4),
    (Offloads::TSO6, VIRTIO_NET_F_HOST_TSO6),
    (Offloads::ECN, VIRTIO_NET_F_HOST_ECN),
    (Offloads::USO4, VIRTIO_NET_F_HOST_USO),
    (Offloads::USO6, VIRTIO_NET_F_HOST_USO),
];

/// Bits that every NIC offers, whatever its uplink.
const ALWAYS: u64 = bits([
    VIRTIO_F_VERSION_1,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_IN_ORDER,
    VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_STATUS,
    VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA,
    VIRTIO_NET_F_CTRL_VLAN,
    VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_F_NOTF_COAL,
    VIRTIO_NET_F_VQ_NOTF_COAL,
    VIRTIO_NET_F_DEVICE_STATS,
]);

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// What a NIC made as `config` says offers to a driver.
    pub fn offered(config: &NicConfig) -> Features {
        let mut set = ALWAYS;
        if config.queue_pairs > 1 {
            set |= bits([VIRTIO_NET_F_MQ]);
        }
        if config.queue_pairs > 1 && config.rss {
            set |= bits([VIRTIO_NET_F_RSS]);
        }
        if config.hash_report {
            set |= bits([VIRTIO_NET_F_HASH_REPORT]);
        }
        if config.packed {
            set |= bits([VIRTIO_F_RING_PACKED]);
        }
        for &(offload, bit) in RECEIVE {
            if config.offloads.contains(offload) {
                set |= 1 << bit;
            }
        }
        for &(_, bit) in TRANSMIT {
            let needed = offloads_where(TRANSMIT, |b| b == bit);
            if config.offloads.contains(needed) {
                set |= 1 << bit;
            }
        }
        // An uplink may know segmentation but no checksums; a device offers no bit without what
        // it requires (2.2.2).
        Features(set).effective()
    }

    /// The set without those bits whose requirements are missing from it (5.1.3.1).
    ///
    /// A driver must not accept such bits, but one does, and a frontend that keeps the control
    /// queue to itself (the netdev attachment) passes on, without `VIRTIO_NET_F_CTRL_VQ`, bits
    /// that require it. Whatever is left can be trusted.
    pub fn effective(self) -> Features {
        let mut set = self.0;
        for &(bit, any_of) in REQUIREMENTS {
            if set & any_of == 0 {
                set &= !(1 << bit);
            }
        }
        Features(set)
    }

    /// Whether `bit` is in the set.
    pub fn has(self, bit: u32) -> bool {
        1u64.checked_shl(bit).is_some_and(|mask| self.0 & mask != 0)
    }

    /// Whether there may be more than one queue pair (5.1.2).
    pub fn has_pairs(self) -> bool {
        self.has(VIRTIO_NET_F_MQ) || self.has(VIRTIO_NET_F_RSS)
    }

    /// The set as it is offered where the frontend keeps the control queue to itself and would
    /// promise a driver there what only we could do: receive-side scaling, and to report hashes.
    pub fn without_control_queue(self) -> Features {
        Features(self.0 & !bits([VIRTIO_NET_F_RSS, VIRTIO_NET_F_HASH_REPORT]))
    }

    /// Octets of the virtio-net header, which ends with the hash if that is reported. A legacy driver,
    /// who cannot see that bit, has `num_buffers` in it only with mergeable buffers (5.1.6.1).
    pub fn header_len(self) -> usize {
        if self.has(VIRTIO_NET_F_HASH_REPORT) {
            LONGEST_HEADER
        } else if self.has(VIRTIO_F_VERSION_1) || self.has(VIRTIO_NET_F_MRG_RXBUF) {
            HASHLESS_HEADER
        } else {
            10
        }
    }

    /// What the driver may be handed unfinished (5.1.6.4).
    pub fn receive_offloads(self) -> Offloads {
        offloads_where(RECEIVE, |bit| self.has(bit))
    }

    /// What the driver may hand us unfinished (5.1.6.2).
    pub fn transmit_offloads(self) -> Offloads {
        offloads_where(TRANSMIT, |bit| self.has(bit))
    }

    /// The bits by name, for people; those without one by number.
    pub fn names(self) -> Vec<String> {
        (0..u64::BITS)
            .filter(|&bit| self.has(bit))
            .map(|bit| match NAMES.iter().find(|(known, _)| *known == bit) {
                Some((_, name)) => (*name).to_string(),
                None => format!("bit {bit}"),
            })
            .collect()
    }
}

fn offloads_where(table: &[(Offloads, u32)], wanted: impl Fn(u32) -> bool) -> Offloads {
    table
        .iter()
        .filter(|(_, bit)| wanted(*bit))
        .fold(Offloads::NONE, |sum, (offload, _)| sum | *offload)
}

/// The bits that `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET` may name (5.1.6.5.8.1).
pub const GUEST_OFFLOADS: Features = Features(bits([
    VIRTIO_NET_F_GUEST_CSUM,
    VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_UFO,
    VIRTIO_NET_F_GUEST_USO4,
    VIRTIO_NET_F_GUEST_USO6,
]));

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(queue_pairs: u16, offloads: Offloads) -> NicConfig {
        NicConfig {
            mac: "52:54:00:12:34:56".parse().unwrap(),
            mtu: 1500,
            speed: 10_000,
            queue_pairs,
            packed: false,
            rss: true,
            hash_report: false,
            offloads,
            uplink: "loopback".into(),
        }
    }

    #[test]
    fn a_bare_uplink_offers_no_offloads_and_one_pair_no_multiqueue() {
        let offered = Features::offered(&config(1, Offloads::NONE));
        assert_eq!(offered, Features(ALWAYS));
        assert!(!offered.has(VIRTIO_NET_F_MQ));
        assert!(!offered.has(VIRTIO_F_RING_RESET));
        assert!(!offered.has(VIRTIO_F_NOTIFY_ON_EMPTY));
        assert_eq!(offered.receive_offloads(), Offloads::NONE);
        assert_eq!(offered.transmit_offloads(), Offloads::NONE);
    }

    #[test]
    fn a_full_uplink_offers_all_offloads_both_ways() {
        let offered = Features::offered(&config(2, Offloads::ALL));
        assert!(offered.has(VIRTIO_NET_F_MQ));
        assert!(!offered.has(VIRTIO_NET_F_HOST_UFO));
        assert_eq!(offered.receive_offloads(), Offloads::ALL);
        assert_eq!(offered.transmit_offloads(), Offloads::ALL);
    }

    #[test]
    fn packed_virtqueues_are_offered_where_they_are_wanted() {
        let without = config(1, Offloads::NONE);
        let with = NicConfig {
            packed: true,
            ..without.clone()
        };
        assert!(Features::offered(&with).has(VIRTIO_F_RING_PACKED));
        assert!(!Features::offered(&without).has(VIRTIO_F_RING_PACKED));
    }

    #[test]
    fn scaling_is_offered_where_there_is_a_choice_and_the_control_queue_is_ours() {
        let one = config(1, Offloads::NONE);
        let two = config(2, Offloads::NONE);
        let off = NicConfig {
            rss: false,
            ..two.clone()
        };
        let offered = |config| Features::offered(config).has(VIRTIO_NET_F_RSS);
        assert_eq!([&one, &two, &off].map(offered), [false, true, false]);
        let netdev = Features::offered(&two).without_control_queue();
        assert!(!netdev.has(VIRTIO_NET_F_RSS) && netdev.has(VIRTIO_NET_F_MQ));
        // Either bit makes room for the pairs before the control queue.
        for (bits, pairs) in [
            (bits([VIRTIO_NET_F_MQ]), true),
            (bits([VIRTIO_NET_F_RSS]), true),
            (ALWAYS, false),
        ] {
            assert_eq!(Features(bits).has_pairs(), pairs);
        }
    }

    #[test]
    fn hashes_are_reported_with_any_number_of_pairs_where_the_control_queue_is_ours() {
        for pairs in [1, 2] {
            let without = config(pairs, Offloads::NONE);
            let with = NicConfig {
                hash_report: true,
                ..without.clone()
            };
            let bit = |features: Features| features.has(VIRTIO_NET_F_HASH_REPORT);
            assert!(!bit(Features::offered(&without)));
            let offered = Features::offered(&with);
            assert!(bit(offered) && !bit(offered.without_control_queue()));
        }
    }

    #[test]
    fn udp_segmentation_is_taken_only_for_both_versions_of_ip() {
        let offered = Features::offered(&config(1, Offloads::CSUM | Offloads::USO4));
        assert!(offered.has(VIRTIO_NET_F_GUEST_USO4));
        assert!(!offered.has(VIRTIO_NET_F_GUEST_USO6));
        assert!(!offered.has(VIRTIO_NET_F_HOST_USO));
    }

    #[test]
    fn segmentation_without_checksums_is_not_offered() {
        let offered = Features::offered(&config(1, Offloads::TSO4 | Offloads::ECN));
        assert_eq!(offered, Features(ALWAYS));
    }

    #[test]
    fn header_length_is_short_for_legacy_drivers_without_mergeable_buffers_and_long_with_hashes() {
        assert_eq!(Features(0).header_len(), 10);
        assert_eq!(Features(bits([VIRTIO_NET_F_MRG_RXBUF])).header_len(), 12);
        assert_eq!(Features(bits([VIRTIO_F_VERSION_1])).header_len(), 12);
        let hashes = bits([VIRTIO_F_VERSION_1, VIRTIO_NET_F_HASH_REPORT]);
        assert_eq!(Features(hashes).header_len(), 20);
        assert_eq!(Features(hashes).without_control_queue().header_len(), 12);
    }

    #[test]
    fn requirements_chain() {
        // TSO4 loses CSUM, so ECN loses TSO4.
        let acked = Features(bits([VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_ECN]));
        assert_eq!(acked.effective(), Features(0));
    }

    #[test]
    fn without_a_control_queue_nothing_of_it_is_left() {
        let without = Features(ALWAYS & !bits([VIRTIO_NET_F_CTRL_VQ])).effective();
        for bit in [
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_RX_EXTRA,
            VIRTIO_NET_F_CTRL_VLAN,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
            VIRTIO_NET_F_NOTF_COAL,
            VIRTIO_NET_F_VQ_NOTF_COAL,
            VIRTIO_NET_F_DEVICE_STATS,
        ] {
            assert!(!without.has(bit), "{bit}");
        }
    }

    #[test]
    fn names_are_the_specifications_and_the_table_has_no_bit_twice() {
        let set = Features(bits([VIRTIO_NET_F_CSUM, VIRTIO_F_VERSION_1]) | 1 << 30);
        assert_eq!(
            set.names(),
            ["VIRTIO_NET_F_CSUM", "bit 30", "VIRTIO_F_VERSION_1"]
        );
        let known = NAMES.iter().fold(0u64, |set, (bit, _)| set | 1 << bit);
        assert_eq!(known.count_ones() as usize, NAMES.len());
    }

    proptest! {
        #[test]
        fn effective_is_a_closed_subset(acked: u64) {
            let acked = Features(acked);
            let effective = acked.effective();
            prop_assert_eq!(effective.0 & !acked.0, 0);
            prop_assert_eq!(effective.effective(), effective);
            for &(bit, any_of) in REQUIREMENTS {
                prop_assert!(!effective.has(bit) || effective.0 & any_of != 0);
            }
            // Only bits with a requirement are ever taken away.
            for bit in 0..64 {
                if !REQUIREMENTS.iter().any(|(b, _)| *b == bit) {
                    prop_assert_eq!(effective.has(bit), acked.has(bit));
                }
            }
        }

        #[test]
        fn has_takes_any_number(set: u64, bit: u32) {
            prop_assert_eq!(Features(set).has(bit), bit < 64 && set >> (bit % 64) & 1 == 1);
        }

        #[test]
        fn offloads_negotiated_never_exceed_the_uplinks(mask in 0u8..64, acked: u64) {
            let all = [
                Offloads::CSUM, Offloads::TSO4, Offloads::TSO6,
                Offloads::ECN, Offloads::USO4, Offloads::USO6,
            ];
            let uplink = all.iter().enumerate()
                .filter(|(i, _)| mask >> i & 1 == 1)
                .fold(Offloads::NONE, |sum, (_, o)| sum | *o);
            let agreed = Features(Features::offered(&config(1, uplink)).0 & acked).effective();
            prop_assert!(uplink.contains(agreed.receive_offloads()));
            prop_assert!(uplink.contains(agreed.transmit_offloads()));
        }
    }
}
