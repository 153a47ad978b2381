// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest that spreads what it receives by receive-side scaling.

use super::station::{Station, mac, trunk};
use crate::datapath::tests::guest::packets;
use crate::datapath::tests::rig::{Make, drops};
use crate::datapath::tests::scaling::{of_flow, rss};
use crate::nic::counters::DropReason;
use crate::nic::features::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_RSS};
use crate::switch::Switch;

#[test]
fn senders_put_each_flow_where_the_receiver_wants_it() {
    let switch = Switch::new();
    let mut sender = Station::new(&switch, 0, Make::mergeable(), trunk());
    let make = Make::mergeable().with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_RSS]);
    let make = Make { pairs: 2, ..make };
    let mut receiver = Station::new(&switch, 1, make, trunk());
    let map = receiver.rx.driver.map.clone();
    let [mut second, mut control] = [2, 4].map(|index| make.guest(&map, index));
    for (index, guest) in [(2, &second), (4, &control)] {
        (receiver.dataplane.start_ring(index, guest.setup(0))).unwrap();
    }
    receiver.dataplane.settle();
    second.interrupts();
    receiver.show_up();
    let to_receiver = |port, tag: &[u8]| {
        let mut packet = of_flow(port, 1, 200);
        packet[12..18].copy_from_slice(&mac(1));
        packet[18..24].copy_from_slice(&mac(0));
        [&packet[..24], tag, &packet[24..]].concat()
    };
    for (table, expected) in [([1], [0, 2]), ([0], [2, 0])] {
        control.command(&rss(&table, 0, 1), &[]);
        receiver.dataplane.settle();
        assert_eq!(control.on_interrupt()[0].written, [0]);
        for _ in 0..2 {
            receiver.rx.offer_room(&[1526]);
            second.offer_room(&[1526]);
        }
        let sent = [to_receiver(7, &[]), to_receiver(8, &[0x81, 0, 0, 5])];
        for packet in &sent {
            sender.send(packet);
        }
        let [first, other] = [&mut receiver.rx, &mut second].map(|g| packets(g.on_interrupt()));
        assert_eq!([first.len(), other.len()], expected);
        assert_eq!([first, other].concat(), sent);
    }
    // One that has no ring loses what is for it.
    control.command(&rss(&[1], 0, 1), &[]);
    receiver.dataplane.settle();
    receiver.dataplane.stop_ring(2).unwrap();
    sender.send(&to_receiver(9, &[]));
    let lost = drops(&receiver.nic.counters[1].rx);
    assert_eq!(lost, [(DropReason::NoDriver, 1)]);
}
