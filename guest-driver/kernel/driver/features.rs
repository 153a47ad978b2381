// SPDX-License-Identifier: GPL-2.0

//! Features of a network card (VIRTIO 1.3, 5.1.3) and what they are to the networking core.

use crate::{
    net::features as netdev,
    virtio::{
        Features,
        Requirement, //
    }, //
};
use kernel::prelude::*;

/// The device completes checksums of packets it is given.
pub(super) const CSUM: Features = Features::bit::<0>();
/// The driver takes packets whose checksums are incomplete, or known to be right.
pub(super) const GUEST_CSUM: Features = Features::bit::<1>();
/// Which offloads of received packets are on can be changed.
pub(super) const CTRL_GUEST_OFFLOADS: Features = Features::bit::<2>();
/// The device says which MTU to use at most.
pub(super) const MTU: Features = Features::bit::<3>();
/// The device has an address.
pub(super) const MAC: Features = Features::bit::<5>();
/// The driver takes large TCP packets over IPv4.
pub(super) const GUEST_TSO4: Features = Features::bit::<7>();
/// The driver takes large TCP packets over IPv6.
pub(super) const GUEST_TSO6: Features = Features::bit::<8>();
/// The driver takes large TCP packets with ECN.
pub(super) const GUEST_ECN: Features = Features::bit::<9>();
/// The device takes large TCP packets over IPv4.
pub(super) const HOST_TSO4: Features = Features::bit::<11>();
/// The device takes large TCP packets over IPv6.
pub(super) const HOST_TSO6: Features = Features::bit::<12>();
/// The device takes large TCP packets with ECN.
pub(super) const HOST_ECN: Features = Features::bit::<13>();
/// A received packet may be in several buffers.
pub(super) const MRG_RXBUF: Features = Features::bit::<15>();
/// The device says whether the link is up.
pub(super) const STATUS: Features = Features::bit::<16>();
/// There is a control queue.
pub(super) const CTRL_VQ: Features = Features::bit::<17>();
/// Modes of reception can be set.
pub(super) const CTRL_RX: Features = Features::bit::<18>();
/// VLANs can be filtered.
pub(super) const CTRL_VLAN: Features = Features::bit::<19>();
/// The device may ask the driver to announce itself.
pub(super) const GUEST_ANNOUNCE: Features = Features::bit::<21>();
/// There are several pairs of queues.
pub(super) const MQ: Features = Features::bit::<22>();
/// The address can be set by a command.
pub(super) const CTRL_MAC_ADDR: Features = Features::bit::<23>();
/// The device tells statistics of its own.
pub(super) const DEVICE_STATS: Features = Features::bit::<50>();
/// The device holds interrupts back, of single queues.
pub(super) const VQ_NOTF_COAL: Features = Features::bit::<52>();
/// The device holds interrupts back, of all queues.
pub(super) const NOTF_COAL: Features = Features::bit::<53>();
/// The driver takes large UDP packets over IPv4.
pub(super) const GUEST_USO4: Features = Features::bit::<54>();
/// The driver takes large UDP packets over IPv6.
pub(super) const GUEST_USO6: Features = Features::bit::<55>();
/// The device takes large UDP packets.
pub(super) const HOST_USO: Features = Features::bit::<56>();
/// The device can choose receive queues by hashes of flows.
pub(super) const RSS: Features = Features::bit::<60>();
/// The device says how fast the link is.
pub(super) const SPEED_DUPLEX: Features = Features::bit::<63>();

/// Large packets that the driver takes.
pub(super) const GUEST_LARGE: Features = GUEST_TSO4
    .with(GUEST_TSO6)
    .with(GUEST_ECN)
    .with(GUEST_USO4)
    .with(GUEST_USO6);

/// All that this driver can make use of.
pub(super) const WANTED: Features = CSUM
    .with(GUEST_CSUM)
    .with(CTRL_GUEST_OFFLOADS)
    .with(MTU)
    .with(MAC)
    .with(GUEST_LARGE)
    .with(HOST_TSO4)
    .with(HOST_TSO6)
    .with(HOST_ECN)
    .with(HOST_USO)
    .with(MRG_RXBUF)
    .with(STATUS)
    .with(CTRL_VQ)
    .with(CTRL_RX)
    .with(CTRL_VLAN)
    .with(GUEST_ANNOUNCE)
    .with(MQ)
    .with(CTRL_MAC_ADDR)
    .with(DEVICE_STATS)
    .with(NOTF_COAL)
    .with(VQ_NOTF_COAL)
    .with(RSS)
    .with(SPEED_DUPLEX)
    .with(Features::INDIRECT_DESC)
    .with(Features::EVENT_IDX)
    .with(Features::RING_PACKED);

/// What needs what: 5.1.3.1, and two of our own. Large packets are only taken in mergeable
/// buffers, for else each buffer would have to be as large as the largest of them; and ECN is
/// nothing by itself.
pub(super) const REQUIREMENTS: &[Requirement] = &[
    Requirement::new(GUEST_TSO4, GUEST_CSUM),
    Requirement::new(GUEST_TSO6, GUEST_CSUM),
    Requirement::new(GUEST_ECN, GUEST_TSO4.with(GUEST_TSO6)),
    Requirement::new(GUEST_USO4, GUEST_CSUM),
    Requirement::new(GUEST_USO6, GUEST_CSUM),
    Requirement::new(GUEST_TSO4, MRG_RXBUF),
    Requirement::new(GUEST_TSO6, MRG_RXBUF),
    Requirement::new(GUEST_USO4, MRG_RXBUF),
    Requirement::new(GUEST_USO6, MRG_RXBUF),
    Requirement::new(HOST_TSO4, CSUM),
    Requirement::new(HOST_TSO6, CSUM),
    Requirement::new(HOST_ECN, HOST_TSO4.with(HOST_TSO6)),
    Requirement::new(HOST_USO, CSUM),
    Requirement::new(CTRL_GUEST_OFFLOADS, CTRL_VQ),
    Requirement::new(CTRL_RX, CTRL_VQ),
    Requirement::new(CTRL_VLAN, CTRL_VQ),
    Requirement::new(GUEST_ANNOUNCE, CTRL_VQ),
    Requirement::new(GUEST_ANNOUNCE, STATUS),
    Requirement::new(MQ, CTRL_VQ),
    Requirement::new(RSS, CTRL_VQ),
    Requirement::new(DEVICE_STATS, CTRL_VQ),
    Requirement::new(NOTF_COAL, CTRL_VQ),
    Requirement::new(VQ_NOTF_COAL, CTRL_VQ),
    Requirement::new(CTRL_MAC_ADDR, CTRL_VQ),
];

/// What is on, what can be changed, and what holds for VLANs on top of the device.
pub(super) struct Netdev {
    pub(super) on: netdev::Features,
    pub(super) changeable: netdev::Features,
    pub(super) vlan: netdev::Features,
}

/// What features of the device are to the networking core.
pub(super) fn netdev_features(accepted: Features) -> Netdev {
    let when = |feature: Features, then: netdev::Features| {
        if accepted.intersects(feature) {
            then
        } else {
            netdev::Features::NONE
        }
    };
    let tx = netdev::SG
        | when(CSUM, netdev::HW_CSUM)
        | when(HOST_TSO4, netdev::TSO)
        | when(HOST_TSO6, netdev::TSO6)
        | when(HOST_ECN, netdev::TSO_ECN)
        | when(HOST_USO, netdev::GSO_UDP_L4);
    let rx = when(GUEST_CSUM, netdev::RXCSUM) | when(GUEST_LARGE, netdev::GRO_HW);
    // The device looks at the headers of large packets itself (5.1.6.2).
    let robust = when(CSUM, netdev::GSO_ROBUST);
    let filter = when(CTRL_VLAN, netdev::VLAN_FILTER);
    Netdev {
        on: tx | rx | robust | filter | netdev::HIGHDMA,
        changeable: tx | when(CTRL_GUEST_OFFLOADS, rx),
        vlan: tx | robust | netdev::HIGHDMA,
    }
}

/// Which of the `accepted` offloads of received packets are on if the networking core wants these
/// features: the argument of VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET (5.1.6.5.6).
pub(super) fn guest_offloads(accepted: Features, wanted: netdev::Features) -> u64 {
    let mut on = accepted & (GUEST_CSUM | GUEST_LARGE);
    if !wanted.contains(netdev::GRO_HW) {
        on = on & !GUEST_LARGE;
    }
    if !wanted.contains(netdev::RXCSUM) {
        on = on & !(GUEST_CSUM | GUEST_LARGE);
    }
    on.bits()
}

#[kunit_tests(ferronic_net_features)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_features() {
        let accepted = GUEST_CSUM | GUEST_TSO4 | GUEST_USO6 | CSUM | MRG_RXBUF;
        let all = netdev::RXCSUM | netdev::GRO_HW;
        let large = GUEST_TSO4 | GUEST_USO6;
        assert_eq!(guest_offloads(accepted, all), (GUEST_CSUM | large).bits());
        assert_eq!(guest_offloads(accepted, netdev::RXCSUM), GUEST_CSUM.bits());
        assert_eq!(guest_offloads(accepted, netdev::GRO_HW), 0);
        assert_eq!(guest_offloads(CSUM, all), 0);
    }

    #[test]
    fn nothing_is_offered_that_was_not_accepted() {
        let none = netdev_features(Features::VERSION_1);
        assert!(!none
            .on
            .intersects(netdev::HW_CSUM | netdev::TSO | netdev::GRO_HW));
        let fixed = netdev_features(GUEST_CSUM | GUEST_TSO4 | MRG_RXBUF);
        assert!(fixed.on.contains(netdev::GRO_HW | netdev::RXCSUM));
        assert!(!fixed.changeable.intersects(netdev::GRO_HW | netdev::RXCSUM));
    }
}
