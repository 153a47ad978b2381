// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The receive filter: which frames from the uplink the driver wants (VIRTIO 1.3, 5.1.6.5.1 to
//! 5.1.6.5.3).
//!
//! A small value: the control queue changes one copy, workers keep another and look at it once a
//! packet.

use super::MacAddress;
use super::features::{Features, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN};

/// Addresses kept in both tables together. A driver that sets more gets all frames of the kind
/// that did not fit (5.1.6.5.2 allows it), so that the cost of a packet stays bounded.
pub const MAC_TABLE_ENTRIES: usize = 64;

/// VLAN identifiers are below this (IEEE 802.1Q).
pub const VLAN_IDS: u16 = 4096;

/// EtherType of an 802.1Q tag, as it lies in the frame.
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];

const BROADCAST: MacAddress = MacAddress([0xff; 6]);

/// Addresses of one kind, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct MacTable {
    macs: Vec<MacAddress>,
    /// There were more than fit; all match.
    overflow: bool,
}

impl MacTable {
    fn matches(&self, mac: MacAddress) -> bool {
        self.overflow || self.macs.binary_search(&mac).is_ok()
    }

    /// Replaces the table; returns how much of `room` is left.
    fn set(&mut self, macs: &[[u8; 6]], room: usize) -> usize {
        self.macs.clear();
        self.overflow = macs.len() > room;
        if self.overflow {
            return room;
        }
        self.macs.extend(macs.iter().map(|mac| MacAddress(*mac)));
        self.macs.sort_unstable();
        room - macs.len()
    }
}

/// A set of VLAN identifiers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VlanSet(Box<[u64; VLAN_IDS as usize / 64]>);

impl VlanSet {
    fn empty() -> Self {
        VlanSet(Box::new([0; VLAN_IDS as usize / 64]))
    }

    fn contains(&self, id: u16) -> bool {
        self.0
            .get(usize::from(id / 64))
            .is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    fn set(&mut self, id: u16, present: bool) {
        if let Some(word) = self.0.get_mut(usize::from(id / 64)) {
            let bit = 1 << (id % 64);
            *word = if present { *word | bit } else { *word & !bit };
        }
    }
}

/// The receive modes, as the commands of class `VIRTIO_NET_CTRL_RX` set them (5.1.6.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// All frames are wanted.
    pub promiscuous: bool,
    /// All multicast frames are wanted.
    pub all_multicast: bool,
    /// All unicast frames are wanted.
    pub all_unicast: bool,
    /// No multicast frames are wanted, broadcast apart.
    pub no_multicast: bool,
    /// No unicast frames are wanted.
    pub no_unicast: bool,
    /// No broadcast frames are wanted.
    pub no_broadcast: bool,
}

/// The receive filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    modes: Modes,
    mac: MacAddress,
    unicast: MacTable,
    multicast: MacTable,
    /// `None`: not negotiated, tags are not looked at.
    vlans: Option<VlanSet>,
}

impl Filter {
    /// The filter after feature negotiation.
    ///
    /// The specification does not say in which mode a device starts. Ours takes every address
    /// until the driver says otherwise, for drivers that negotiate `VIRTIO_NET_F_CTRL_RX` and
    /// count on it, as QEMU's device does; filtering is best effort anyway (5.1.6.5.1). Drivers
    /// that want less say so when their interface goes up. The VLAN filter however starts empty
    /// and in force (5.1.6.5.3), unless promiscuous mode overrides it.
    ///
    /// Without `VIRTIO_NET_F_CTRL_RX` promiscuous mode could never be left, and so the VLAN filter
    /// never work; there "every address" is said by the two modes below it.
    pub fn new(features: Features, mac: MacAddress) -> Self {
        let receive_modes = features.has(VIRTIO_NET_F_CTRL_RX);
        Filter {
            modes: Modes {
                promiscuous: receive_modes,
                all_multicast: !receive_modes,
                all_unicast: !receive_modes,
                ..Modes::default()
            },
            mac,
            unicast: MacTable::default(),
            multicast: MacTable::default(),
            vlans: features.has(VIRTIO_NET_F_CTRL_VLAN).then(VlanSet::empty),
        }
    }

    /// Whether the driver wants the frame that starts so. Eighteen octets tell all; fewer than
    /// an Ethernet header are no frame, and neither is a tag cut short.
    pub fn accepts(&self, frame_start: &[u8]) -> bool {
        let Some(header) = frame_start.first_chunk::<14>() else {
            return false;
        };
        // Promiscuous means all frames, whatever VLAN they belong to: who listens to the wire
        // wants to see what is on it.
        if self.modes.promiscuous {
            return true;
        }
        let [d0, d1, d2, d3, d4, d5, .., type0, type1] = *header;
        let tagged = [type0, type1] == ETHERTYPE_VLAN;
        if tagged && !self.accepts_tag(frame_start) {
            return false;
        }
        self.accepts_destination(MacAddress([d0, d1, d2, d3, d4, d5]))
    }

    /// Looks at the tag control information, the two octets after the EtherType. Identifier 0
    /// means a frame with a priority that belongs to no VLAN (IEEE 802.1Q), so the filter does
    /// not apply to it.
    fn accepts_tag(&self, frame_start: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else {
            return true;
        };
        let Some([.., tag0, tag1]) = frame_start.first_chunk::<16>() else {
            return false;
        };
        let id = u16::from_be_bytes([*tag0, *tag1]) % VLAN_IDS;
        id == 0 || vlans.contains(id)
    }

    fn accepts_destination(&self, destination: MacAddress) -> bool {
        let modes = self.modes;
        if !destination.is_multicast() {
            !modes.no_unicast
                && (destination == self.mac
                    || modes.all_unicast
                    || self.unicast.matches(destination))
        } else if destination == BROADCAST {
            !modes.no_broadcast
        } else {
            !modes.no_multicast && (modes.all_multicast || self.multicast.matches(destination))
        }
    }

    /// The receive modes, to be changed.
    pub fn modes_mut(&mut self) -> &mut Modes {
        &mut self.modes
    }

    /// Sets the address that is always wanted (`VIRTIO_NET_CTRL_MAC_ADDR_SET`).
    pub fn set_mac(&mut self, mac: MacAddress) {
        self.mac = mac;
    }

    /// Replaces both tables (`VIRTIO_NET_CTRL_MAC_TABLE_SET`). An address of the wrong kind does
    /// no harm: it is never looked for.
    pub fn set_tables(&mut self, unicast: &[[u8; 6]], multicast: &[[u8; 6]]) {
        let room = self.unicast.set(unicast, MAC_TABLE_ENTRIES);
        self.multicast.set(multicast, room);
    }

    /// Adds or removes a VLAN (`VIRTIO_NET_CTRL_VLAN_ADD`, `VIRTIO_NET_CTRL_VLAN_DEL`); false if
    /// there is no such identifier, or no filter.
    pub fn set_vlan(&mut self, id: u16, wanted: bool) -> bool {
        match &mut self.vlans {
            Some(vlans) if id < VLAN_IDS => {
                vlans.set(id, wanted);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::features::VIRTIO_NET_F_CTRL_VQ;
    use proptest::prelude::*;

    const OWN: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 9];
    const GROUP: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
    const ALL: [u8; 6] = [0xff; 6];

    fn features(list: &[u32]) -> Features {
        Features(
            list.iter()
                .fold(1 << VIRTIO_NET_F_CTRL_VQ, |set, bit| set | 1 << bit),
        )
    }

    /// A filter whose driver has left promiscuous mode.
    fn strict(list: &[u32]) -> Filter {
        let mut filter = Filter::new(features(list), MacAddress(OWN));
        *filter.modes_mut() = Modes::default();
        filter
    }

    fn frame(destination: [u8; 6], rest: &[u8]) -> Vec<u8> {
        [&destination[..], &[2, 0, 0, 0, 0, 1], rest].concat()
    }

    fn to(destination: [u8; 6]) -> Vec<u8> {
        frame(destination, &[0x08, 0x00, 0x45, 0])
    }

    fn tagged(tag: u16) -> Vec<u8> {
        let [a, b] = tag.to_be_bytes();
        frame(OWN, &[0x81, 0x00, a, b, 0x08, 0x00])
    }

    #[test]
    fn every_address_is_wanted_until_the_driver_says_otherwise() {
        for list in [&[][..], &[VIRTIO_NET_F_CTRL_RX]] {
            let filter = Filter::new(features(list), MacAddress(OWN));
            for destination in [OWN, OTHER, GROUP, ALL] {
                assert!(filter.accepts(&to(destination)), "{destination:?}");
            }
            assert!(filter.accepts(&tagged(5)));
        }
    }

    #[test]
    fn out_of_promiscuous_mode_own_address_and_broadcast_are_left() {
        let filter = strict(&[VIRTIO_NET_F_CTRL_RX]);
        assert!(filter.accepts(&to(OWN)));
        assert!(filter.accepts(&to(ALL)));
        assert!(!filter.accepts(&to(OTHER)));
        assert!(!filter.accepts(&to(GROUP)));
    }

    #[test]
    fn each_mode_does_its_own_thing() {
        let mut filter = strict(&[VIRTIO_NET_F_CTRL_RX]);
        // own, other, group, broadcast
        let mut outcome = |change: fn(&mut Modes)| {
            *filter.modes_mut() = Modes::default();
            change(filter.modes_mut());
            [OWN, OTHER, GROUP, ALL].map(|destination| filter.accepts(&to(destination)))
        };
        assert_eq!(outcome(|m| m.all_unicast = true), [true, true, false, true]);
        assert_eq!(
            outcome(|m| m.all_multicast = true),
            [true, false, true, true]
        );
        assert_eq!(
            outcome(|m| m.no_unicast = true),
            [false, false, false, true]
        );
        assert_eq!(
            outcome(|m| m.no_broadcast = true),
            [true, false, false, false]
        );
        // The "no" modes win over the "all" modes, and promiscuous mode over everything.
        let no = |m: &mut Modes| {
            *m = Modes {
                promiscuous: false,
                all_multicast: true,
                all_unicast: true,
                no_multicast: true,
                no_unicast: true,
                no_broadcast: false,
            }
        };
        assert_eq!(outcome(no), [false, false, false, true]);
        assert_eq!(
            outcome(|m| (m.promiscuous, m.no_unicast, m.no_broadcast) = (true, true, true)),
            [true; 4]
        );
    }

    #[test]
    fn tables_hold_addresses_and_are_replaced() {
        let mut filter = strict(&[VIRTIO_NET_F_CTRL_RX]);
        filter.set_tables(&[OTHER], &[GROUP]);
        assert!(filter.accepts(&to(OTHER)));
        assert!(filter.accepts(&to(GROUP)));
        filter.set_tables(&[], &[]);
        assert!(!filter.accepts(&to(OTHER)));
        assert!(!filter.accepts(&to(GROUP)));
        assert!(filter.accepts(&to(OWN)));
    }

    #[test]
    fn a_table_that_overflows_takes_all_of_its_kind_only() {
        let mut filter = strict(&[VIRTIO_NET_F_CTRL_RX]);
        let many = |group: u8, n: u8| -> Vec<[u8; 6]> {
            (0..n).map(|i| [group, 0x10, 0, 0, 0, i]).collect()
        };
        filter.set_tables(&many(2, 65), &many(3, 64));
        assert!(filter.accepts(&to(OTHER)));
        assert!(!filter.accepts(&to(GROUP)));
        assert!(filter.accepts(&to([3, 0x10, 0, 0, 0, 63])));
        // 64 in total: the second table has what the first has left.
        filter.set_tables(&many(2, 40), &many(3, 25));
        assert!(!filter.accepts(&to(OTHER)));
        assert!(filter.accepts(&to(GROUP)));
    }

    #[test]
    fn vlans_are_filtered_only_when_negotiated() {
        assert!(strict(&[VIRTIO_NET_F_CTRL_RX]).accepts(&tagged(5)));
        // Also without CTRL_RX, where no driver can leave promiscuous mode.
        let unmoded = Filter::new(features(&[VIRTIO_NET_F_CTRL_VLAN]), MacAddress(OWN));
        for mut filter in [strict(&[VIRTIO_NET_F_CTRL_VLAN]), unmoded] {
            assert!(filter.accepts(&to(OWN)));
            assert!(!filter.accepts(&tagged(5)));
            assert!(filter.set_vlan(5, true));
            assert!(
                filter.accepts(&tagged(0xe005)),
                "priority bits do not count"
            );
            assert!(!filter.accepts(&tagged(4095)));
            assert!(filter.set_vlan(5, false));
            assert!(!filter.accepts(&tagged(5)));
            assert!(filter.accepts(&tagged(0x6000)), "a priority, but no VLAN");
            assert!(!filter.set_vlan(4096, true));
        }
    }

    #[test]
    fn frames_cut_short_are_not_wanted() {
        let mut filter = strict(&[VIRTIO_NET_F_CTRL_VLAN]);
        assert!(filter.set_vlan(5, true));
        assert!(!filter.accepts(&tagged(5)[..15]));
        assert!(filter.accepts(&tagged(5)[..16]));
        assert!(!filter.accepts(&to(OWN)[..13]));
        assert!(filter.accepts(&to(OWN)[..14]));
        filter.modes_mut().promiscuous = true;
        assert!(!filter.accepts(&to(OWN)[..13]));
    }

    proptest! {
        #[test]
        fn any_octets_at_all(frame in prop::collection::vec(any::<u8>(), 0..20)) {
            let accepted = strict(&[VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VLAN]).accepts(&frame);
            prop_assert!(!accepted || frame.len() >= 14);
        }

        #[test]
        fn the_vlan_set_is_a_set(ids in prop::collection::vec((0u16..4096, any::<bool>()), 0..50)) {
            let mut filter = strict(&[VIRTIO_NET_F_CTRL_VLAN]);
            let mut model = std::collections::HashSet::from([0]);
            for (id, wanted) in &ids {
                prop_assert!(filter.set_vlan(*id, *wanted));
                if *wanted { model.insert(*id); } else if *id != 0 { model.remove(id); }
            }
            for id in 0..4096 {
                prop_assert_eq!(filter.accepts(&tagged(id)), model.contains(&id));
            }
        }

        #[test]
        fn tables_never_lose_an_address(
            unicast in prop::collection::vec(any::<[u8; 6]>(), 0..80),
            multicast in prop::collection::vec(any::<[u8; 6]>(), 0..80),
        ) {
            let as_kind = |macs: Vec<[u8; 6]>, bit: u8| -> Vec<[u8; 6]> {
                macs.into_iter().map(|mut m| { m[0] = m[0] & !1 | bit; m }).collect()
            };
            let (unicast, multicast) = (as_kind(unicast, 0), as_kind(multicast, 1));
            let mut filter = strict(&[VIRTIO_NET_F_CTRL_RX]);
            filter.set_tables(&unicast, &multicast);
            for mac in unicast.iter().chain(&multicast) {
                prop_assert!(filter.accepts(&to(*mac)));
            }
            if unicast.len() + multicast.len() <= MAC_TABLE_ENTRIES {
                prop_assert_eq!(filter.accepts(&to(OTHER)), unicast.contains(&OTHER));
                prop_assert_eq!(filter.accepts(&to(GROUP)), multicast.contains(&GROUP));
            }
        }
    }
}
