// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Receive-side scaling: each packet lands at the pair that the driver's table names, wherever the
//! uplink gives it.

use std::sync::Arc;

use crate::datapath::Dataplane;
use crate::datapath::inlet::MOST_PACKETS;
use crate::datapath::workers::Workers;
use crate::nic::control::{VIRTIO_NET_ERR, VIRTIO_NET_OK};
use crate::nic::counters::DropReason;
use crate::nic::features::{
    Features, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_RSS,
};
use crate::nic::flow_hash::{FlowHasher, SUPPORTED_HASH_TYPES, VIRTIO_NET_HASH_TYPE_IPV4};
use crate::nic::hashing::Hashing;
use crate::nic::rss::Rss;
use crate::ring::driver::memory;

use super::cable::CableUplink;
use super::guest::{Guest, packets};
use super::rig::{Make, Rig, drops};
use super::threads::{drop_in_time, eventually};

const KEY: [u8; 40] = [0x5a; 40];

/// `VIRTIO_NET_CTRL_MQ_RSS_CONFIG`, with all types of hashes.
pub fn rss(table: &[u16], unclassified: u16, max_tx: u16) -> Vec<u8> {
    let mut command = vec![4, 1];
    command.extend(SUPPORTED_HASH_TYPES.to_le_bytes());
    command.extend((table.len() as u16 - 1).to_le_bytes());
    command.extend(unclassified.to_le_bytes());
    command.extend(table.iter().flat_map(|queue| queue.to_le_bytes()));
    command.extend(max_tx.to_le_bytes());
    command.push(KEY.len() as u8);
    command.extend(KEY);
    command
}

/// `VIRTIO_NET_CTRL_MQ_HASH_CONFIG`.
pub fn hashes(types: u32, key: &[u8]) -> Vec<u8> {
    let types = types.to_le_bytes();
    [&[4, 2], &types[..], &[0; 8], &[key.len() as u8], key].concat()
}

/// A packet of `len` octets of the flow from this UDP port, unlike one of another number.
pub fn of_flow(port: u16, number: u32, len: usize) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet.extend([0xff; 6]);
    packet.extend([2, 0, 0, 0, 0, 1, 8, 0]);
    packet.extend([
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 9, 0, 0, 0, 0]);
    packet.extend(number.to_le_bytes());
    let filler = (0..).map(|n: u32| (n ^ number) as u8);
    packet.extend(filler.take(len.saturating_sub(packet.len())));
    packet
}

fn make() -> Make {
    let make = Make::mergeable().with(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_CTRL_RX]);
    Make { pairs: 2, ..make }.with(&[VIRTIO_NET_F_RSS])
}

/// Two pairs, with all receive queues started.
struct Bed {
    rig: Rig,
    second: Guest,
    control: Guest,
}

impl Bed {
    /// With RSS in force, but no buffers.
    fn new(make: Make, table: &[u16]) -> Self {
        let rig = make.rig();
        let [second, control] = [2, 4].map(|index| make.guest(&rig.map, index));
        rig.start(2, &second, 0);
        rig.start(4, &control, 0);
        rig.settle();
        second.interrupts();
        let mut bed = Bed {
            rig,
            second,
            control,
        };
        assert_eq!(bed.command(&rss(table, 0, 1)), VIRTIO_NET_OK);
        bed
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        self.control.command(command, &[]);
        self.rig.settle();
        let [used] = self.control.on_interrupt().try_into().unwrap();
        used.written[0]
    }

    fn offer(&mut self, count: usize, len: usize) {
        for _ in 0..count {
            self.rig.rx.offer_room(&[len]);
            self.second.offer_room(&[len]);
        }
        self.rig.settle();
    }

    /// What the two queues have received, after an interrupt.
    fn received(&mut self) -> [Vec<Vec<u8>>; 2] {
        self.rig.settle();
        [&mut self.rig.rx, &mut self.second].map(|guest| packets(guest.on_interrupt()))
    }

    fn drops(&self) -> [Vec<(DropReason, u64)>; 2] {
        [0, 1].map(|pair| drops(&self.rig.nic.counters[pair].rx))
    }

    /// Packets that were received, and that went to the other queue.
    fn counts(&self) -> [(u64, u64); 2] {
        [0, 1].map(|pair| {
            let rx = &self.rig.nic.counters[pair].rx;
            (rx.packets.get(), rx.steered.get())
        })
    }
}

#[test]
fn all_flows_go_where_the_table_says() {
    for make in make().every_kind() {
        for silent in [false, true] {
            let mut bed = Bed::new(Make { silent, ..make }, &[1]);
            bed.offer(30, 1526);
            let sent: Vec<_> = (0..20).map(|n| of_flow(n, n.into(), 1526)).collect();
            for packet in &sent {
                bed.rig.cables[0].arrive(packet.clone());
                if silent {
                    bed.rig.dataplane.agreement.pairs[0].wake();
                }
            }
            let none: Vec<Vec<u8>> = Vec::new();
            assert_eq!(bed.received(), [none.clone(), sent.clone()]);
            assert_eq!(bed.counts(), [(0, 20), (20, 0)]);
            // Those that are where they belong stay, and those without a hash have their own queue.
            let plain = super::guest::packet(1, 100);
            bed.rig.cables[1].arrive(sent[0].clone());
            bed.rig.cables[1].arrive(plain.clone());
            if silent {
                bed.rig.dataplane.agreement.pairs[1].wake();
            }
            assert_eq!(bed.received(), [vec![plain], vec![sent[0].clone()]]);
            assert_eq!(bed.counts(), [(1, 20), (21, 1)]);
            assert_eq!(bed.drops(), [vec![], vec![]]);
        }
    }
}

#[test]
fn flows_are_spread_as_the_hash_says_and_keep_their_order() {
    let table = [0, 1, 1, 0, 1, 0, 0, 1];
    let mut bed = Bed::new(make().size(256), &table);
    bed.offer(200, 1000);
    let hasher = FlowHasher::new(SUPPORTED_HASH_TYPES, &KEY);
    let hashing = Hashing::new(hasher, Rss::new(table.into(), 0));
    let mut expected = [Vec::new(), Vec::new()];
    for number in 0..200u32 {
        let packet = of_flow((number % 23) as u16, number, 60 + number as usize);
        bed.rig.cables[number as usize % 23 % 2].arrive(packet.clone());
        let queue = hashing.queue(hashing.hash(&packet[12..])).unwrap();
        expected[queue].push(packet);
    }
    let mut received = bed.received();
    assert!(expected.iter().all(|packets| packets.len() > 50));
    for (received, expected) in received.iter_mut().zip(&mut expected) {
        for port in 0..23u16 {
            let flow = |packet: &&Vec<u8>| packet[46..48] == port.to_be_bytes();
            let [a, b] = [&*received, &*expected].map(|all| all.iter().filter(flow));
            assert!(a.eq(b), "{port}");
        }
        received.sort();
        expected.sort();
        assert_eq!(received, expected);
    }
}

#[test]
fn packets_of_any_size_cross() {
    for make in [
        make(),
        make().without(&[crate::nic::features::VIRTIO_NET_F_MRG_RXBUF]),
    ] {
        let mut bed = Bed::new(make, &[1]);
        bed.offer(2, 1526);
        let sent = [of_flow(1, 1, 60), of_flow(1, 2, 1526)];
        for packet in &sent {
            bed.rig.cables[0].arrive(packet.clone());
        }
        assert_eq!(bed.received()[1], sent);
    }
    let mut bed = Bed::new(make(), &[1]);
    // Larger than all the room of the first queue, which is none.
    for _ in 0..30 {
        bed.second.offer_room(&[1526]);
    }
    let large = of_flow(1, 1, 40_000);
    bed.rig.rx.offer_room(&[100]);
    bed.rig.cables[0].arrive(large.clone());
    assert_eq!(bed.received()[1], [large]);
}

#[test]
fn without_buffers_some_wait_and_the_rest_is_lost() {
    let mut bed = Bed::new(make(), &[1]);
    bed.rig.rx.offer_room(&[1526]);
    // The first one waits at the queue, as many as may on the way to it.
    let total = 1 + MOST_PACKETS + 30;
    for number in 0..total {
        bed.rig.cables[0].arrive(of_flow(1, number as u32, 100));
        if number % 50 == 0 {
            bed.rig.settle();
        }
    }
    bed.rig.settle();
    assert_eq!(bed.drops(), [vec![(DropReason::NoBuffers, 30)], vec![]]);
    let mut number = 0;
    while number < total as u32 - 30 {
        while bed.second.free() > 0 {
            bed.second.offer_room(&[1526]);
        }
        let [none, some] = bed.received();
        assert!(none.is_empty() && !some.is_empty());
        for packet in some {
            assert_eq!(packet, of_flow(1, number, 100));
            number += 1;
        }
    }
    assert!(bed.rig.nic.counters[1].rx.kicks.get() > 0);
    // And after that all is as before.
    bed.second.offer_room(&[1526]);
    bed.rig.cables[0].arrive(of_flow(2, 0, 100));
    assert_eq!(bed.received()[1], [of_flow(2, 0, 100)]);
}

#[test]
fn a_packet_that_waits_for_buffers_is_not_overwritten() {
    let mut bed = Bed::new(make(), &[1]);
    bed.rig.rx.offer_room(&[1526]);
    bed.second.offer_room(&[1000]);
    // The second queue's own, of which the half has no room yet.
    bed.rig.cables[1].arrive(of_flow(1, 1, 1800));
    bed.rig.settle();
    bed.rig.cables[0].arrive(of_flow(2, 2, 500));
    let none: Vec<Vec<u8>> = Vec::new();
    assert_eq!(bed.received(), [none.clone(), none.clone()]);
    bed.second.offer_room(&[1000]);
    assert_eq!(bed.received()[1], [of_flow(1, 1, 1800)]);
    bed.second.offer_room(&[1000]);
    assert_eq!(bed.received()[1], [of_flow(2, 2, 500)]);
    assert_eq!(bed.drops(), [vec![], vec![]]);
}

#[test]
fn the_filter_comes_first() {
    let mut bed = Bed::new(make(), &[1]);
    bed.offer(2, 1526);
    assert_eq!(bed.command(&[0, 0, 0]), VIRTIO_NET_OK);
    let mut strangers = of_flow(1, 1, 100);
    strangers[12..18].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    bed.rig.cables[0].arrive(strangers);
    bed.rig.settle();
    assert_eq!(bed.drops(), [vec![(DropReason::Filtered, 1)], vec![]]);
    assert_eq!(bed.counts(), [(0, 0), (0, 0)]);
}

#[test]
fn a_queue_that_is_not_there_loses_what_is_for_it() {
    let mut bed = Bed::new(make(), &[1]);
    bed.offer(2, 1526);
    bed.rig.dataplane.stop_ring(2).unwrap();
    bed.rig.cables[0].arrive(of_flow(1, 1, 100));
    bed.rig.settle();
    assert_eq!(bed.drops(), [vec![], vec![(DropReason::NoDriver, 1)]]);
}

#[test]
fn what_is_on_its_way_ends_with_the_link_the_ring_and_the_driver() {
    let stopped: fn(&Bed) = |bed| assert!(bed.rig.dataplane.stop_ring(2).is_some());
    let pulled: fn(&Bed) = |bed| bed.rig.set_link(false);
    let reset: fn(&Bed) = |bed| bed.rig.dataplane.negotiate(Features(0));
    for (end, reason) in [
        (stopped, DropReason::RingStopped),
        (pulled, DropReason::LinkDown),
        (reset, DropReason::RingStopped),
    ] {
        let mut make = make();
        if reason == DropReason::RingStopped {
            make = make.with(&[crate::nic::features::VIRTIO_NET_F_GUEST_CSUM]);
        }
        let mut bed = Bed::new(make, &[1]);
        bed.rig.rx.offer_room(&[1526]);
        for number in 0..3 {
            bed.rig.cables[0].arrive(of_flow(1, number, 100));
            // Only the first pair's worker: what comes second waits on the way.
            match number {
                0 => bed.rig.settle(),
                _ => bed.rig.dataplane.agreement.pairs[0].settle(),
            }
        }
        end(&bed);
        bed.rig.settle();
        assert_eq!(bed.drops(), [vec![], vec![(reason, 3)]]);
    }
}

#[test]
fn the_last_command_is_in_force_until_a_reset() {
    let with_both = make().with(&[VIRTIO_NET_F_MQ]);
    let mut bed = Bed::new(with_both, &[1]);
    bed.offer(30, 1526);
    let lands = |bed: &mut Bed| {
        bed.rig.cables[0].arrive(of_flow(1, 1, 100));
        bed.received().map(|packets| packets.len())
    };
    assert_eq!(lands(&mut bed), [0, 1]);
    // Refused: a queue that is not there, here and there; a table of three; one too long.
    let mut three = rss(&[1, 1, 1, 1], 0, 1);
    three[6] = 2;
    for bad in [
        rss(&[2], 0, 1),
        rss(&[0], 2, 1),
        rss(&[0], 0x8000, 1),
        rss(&[0], 0, 3),
        rss(&[0], 0, 0),
        rss(&[0; 256], 0, 1),
        three,
    ] {
        assert_eq!(bed.command(&bad), VIRTIO_NET_ERR, "{bad:?}");
    }
    assert_eq!(lands(&mut bed), [0, 1]);
    assert_eq!(bed.command(&[4, 0, 2, 0]), VIRTIO_NET_OK);
    assert_eq!(lands(&mut bed), [1, 0]);
    assert_eq!(bed.command(&rss(&[1, 1], 1, 2)), VIRTIO_NET_OK);
    assert_eq!(lands(&mut bed), [0, 1]);
    bed.rig.dataplane.negotiate(Features(with_both.features));
    assert_eq!(lands(&mut bed), [1, 0]);
}

#[test]
fn queues_that_the_table_names_receive_from_the_uplink() {
    let bed = Bed::new(make(), &[1]);
    assert_eq!(bed.rig.cables[1].take_active().last(), Some(&true));
    let bed = Bed::new(make(), &[0]);
    assert_eq!(bed.rig.cables[1].take_active().last(), Some(&false));
}

#[test]
fn workers_wake_each_other() {
    const PACKETS: u32 = 3000;
    let make = make();
    let nic = make.nic();
    let (uplink, cables, _) = CableUplink::new(2, false);
    let dataplane = Dataplane::start(nic.clone(), Box::new(uplink), &Workers::default()).unwrap();
    dataplane.negotiate(Features(make.features));
    let map = memory();
    let [mut first, mut second, mut control] = [0, 2, 4].map(|index| make.guest(&map, index));
    for (index, guest) in [(0, &first), (2, &second), (4, &control)] {
        dataplane.start_ring(index, guest.setup(0)).unwrap();
    }
    // Crosswise: by addresses alone all is one flow, which neither cable brings where it belongs.
    let mut command = rss(&[1], 0, 2);
    command[2..6].copy_from_slice(&VIRTIO_NET_HASH_TYPE_IPV4.to_le_bytes());
    control.command(&command, &[]);
    eventually("the command", || {
        let used = control.on_interrupt();
        used.first().map(|used| assert_eq!(used.written, [0]))
    });
    let (mut arrived, mut received) = (0, [0, 0]);
    eventually("all packets", || {
        for guest in [&mut first, &mut second] {
            while guest.free() > 0 {
                guest.offer_room(&[300]);
            }
        }
        while arrived < PACKETS && cables.iter().all(|cable| cable.waiting() < 40) {
            cables[0].arrive(of_flow(1, arrived, 200));
            cables[1].arrive(super::guest::packet(arrived, 200));
            arrived += 1;
        }
        for packet in packets(first.on_interrupt()) {
            assert_eq!(packet, super::guest::packet(received[0], 200));
            received[0] += 1;
        }
        for packet in packets(second.on_interrupt()) {
            assert_eq!(packet, of_flow(1, received[1], 200));
            received[1] += 1;
        }
        (received == [PACKETS; 2]).then_some(())
    });
    drop_in_time(dataplane);
    assert_eq!(Arc::strong_count(&nic), 1);
}
