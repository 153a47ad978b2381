// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control queue, through its ring.

use crate::datapath::RingSetup;
use crate::nic::control::{VIRTIO_NET_ERR, VIRTIO_NET_OK};
use crate::nic::features::{
    Features, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HASH_REPORT, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_VQ_NOTF_COAL,
};
use crate::nic::offload::Offloads;
use crate::ring::driver::{Desc, NEXT, WRITE};
use crate::ring::packed::BEGINNING;
use crate::ring::virtqueue::Start;

use super::guest::{Guest, event, packet, packets, take_count};
use super::rig::{Make, Rig, bits};

const PROMISCUOUS_OFF: &[u8] = &[0, 0, 0];

fn make() -> Make {
    Make::mergeable().with(&[
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
    ])
}

/// A rig with its control queue started.
fn rig(make: Make) -> (Rig, Guest, usize) {
    let rig = make.rig();
    let index = 2 * usize::from(make.pairs);
    let control = make.guest(&rig.map, index);
    rig.start(index, &control, 0);
    rig.settle();
    (rig, control, index)
}

/// Sends a command and tells what came back.
fn command(rig: &Rig, control: &mut Guest, command: &[u8], cuts: &[usize]) -> Vec<u8> {
    control.command(command, cuts);
    rig.settle();
    let [used] = control.on_interrupt().try_into().unwrap();
    used.written
}

#[test]
fn commands_set_the_filter_of_every_pair() {
    for make in make().every_kind() {
        set_the_filter_of_every_pair(make);
    }
}

fn set_the_filter_of_every_pair(make: Make) {
    let two = Make { pairs: 2, ..make }.with(&[VIRTIO_NET_F_MQ]);
    let (mut rig, mut control, _) = rig(two);
    let mut second = two.guest(&rig.map, 2);
    rig.start(2, &second, 0);
    assert_eq!(command(&rig, &mut control, &[4, 0, 2, 0], &[]), [0]);
    rig.rx.offer_room(&[1526]);
    second.offer_room(&[1526]);
    // In as many buffers as there are octets.
    let ack = command(&rig, &mut control, PROMISCUOUS_OFF, &[1, 1]);
    assert_eq!(ack, [VIRTIO_NET_OK]);
    let mut strangers = packet(0, 100);
    strangers[12..18].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    for cable in &rig.cables {
        cable.arrive(strangers.clone());
        cable.arrive(packet(1, 100));
    }
    rig.settle();
    assert_eq!(packets(rig.rx.on_interrupt()), [packet(1, 100)]);
    assert_eq!(packets(second.on_interrupt()), [packet(1, 100)]);
}

#[test]
fn only_the_pairs_in_use_receive() {
    let two = Make { pairs: 2, ..make() }.with(&[VIRTIO_NET_F_MQ]);
    let (rig, mut control, _) = rig(two);
    let mut second = two.guest(&rig.map, 2);
    rig.start(2, &second, 0);
    second.offer_room(&[1526]);
    rig.cables[1].take_active();
    rig.cables[1].arrive(packet(0, 100));
    rig.settle();
    assert_eq!(rig.cables[1].waiting(), 1);
    assert_eq!(command(&rig, &mut control, &[4, 0, 2, 0], &[]), [0]);
    assert_eq!(packets(second.on_interrupt()), [packet(0, 100)]);
    assert_eq!(command(&rig, &mut control, &[4, 0, 1, 0], &[]), [0]);
    assert_eq!(rig.cables[1].take_active(), [true, false]);
    let ack = command(&rig, &mut control, &[4, 0, 3, 0], &[]);
    assert_eq!(ack, [VIRTIO_NET_ERR]);
}

#[test]
fn offloads_reach_the_uplink() {
    let (rig, mut control, _) = rig(make());
    let last = |rig: &Rig| rig.told.negotiated.lock().last().copied().unwrap();
    assert_eq!(last(&rig).receive, Offloads::CSUM | Offloads::TSO4);
    assert_eq!(last(&rig).header_len, 12);
    let longer = Features(make().features | bits(&[VIRTIO_NET_F_HASH_REPORT]));
    rig.dataplane.negotiate(longer);
    assert_eq!(last(&rig).header_len, 20);
    rig.dataplane.negotiate(Features(make().features));
    let set = |wanted: u64| [&[5, 0][..], &wanted.to_le_bytes()].concat();
    let checksum = set(bits(&[VIRTIO_NET_F_GUEST_CSUM]));
    assert_eq!(command(&rig, &mut control, &checksum, &[2]), [0]);
    assert_eq!(last(&rig).receive, Offloads::CSUM);
    let told = rig.told.negotiated.lock().len();
    assert_eq!(command(&rig, &mut control, &set(1 << 63), &[2]), [1]);
    assert_eq!(rig.told.negotiated.lock().len(), told);
}

#[test]
fn a_result_follows_the_answer_as_far_as_there_is_room() {
    for make in make().with(&[VIRTIO_NET_F_VQ_NOTF_COAL]).every_kind() {
        let (rig, mut control, _) = rig(make);
        let mut set = vec![6, 2, 1, 0, 0, 0];
        let wanted = [1, 2, 3, 4, 5, 6, 7, 8];
        set.extend(wanted);
        assert_eq!(command(&rig, &mut control, &set, &[]), [VIRTIO_NET_OK]);
        let mut ask = |command: &[u8], room| {
            control.question(command, room);
            rig.settle();
            let [used] = control.on_interrupt().try_into().unwrap();
            used.written
        };
        for room in [0, 3, 8, 100] {
            let told = ask(&[6, 3, 1, 0, 0, 0], room);
            assert_eq!(told, [&[VIRTIO_NET_OK], &wanted[..room.min(8)]].concat());
        }
        // Only of queues that are there.
        for index in [2, 3, 255] {
            assert_eq!(ask(&[6, 3, index, 0, 0, 0], 8), [VIRTIO_NET_ERR]);
        }
        rig.dataplane.stop_ring(1);
        assert_eq!(ask(&[6, 3, 1, 0, 0, 0], 8), [VIRTIO_NET_ERR]);
    }
}

#[test]
fn commands_that_are_malformed_are_answered_where_that_can_be() {
    let (rig, mut control, index) = rig(make());
    for bad in [&[][..], &[0], &[99, 0, 0], &[0, 0, 2], &[0; 8000]] {
        let ack = command(&rig, &mut control, bad, &[0, 4000]);
        assert_eq!(ack, [VIRTIO_NET_ERR], "{bad:?}");
    }
    // Without room for an answer.
    control.send(PROMISCUOUS_OFF, &[]);
    // With room before the command, and outside memory.
    control.offer_bad(true);
    rig.settle();
    let used = control.on_interrupt();
    assert_eq!(used.len(), 2);
    assert!(used.iter().all(|used| used.written.is_empty()));
    // One that loops: answered or not, it comes back and the next is served.
    let head = control.command(PROMISCUOUS_OFF, &[]);
    let (addr, table) = (0x20_0000, control.driver.layout.desc);
    let looped = Desc {
        addr,
        len: 1,
        flags: WRITE | NEXT,
        next: head,
    };
    control.driver.write_desc(table, head, looped);
    rig.settle();
    control.driver.take_used();
    control.driver.ask_interrupt();
    control.interrupts();
    assert_eq!(command(&rig, &mut control, PROMISCUOUS_OFF, &[]), [0]);
    assert_eq!(rig.dataplane.stop_ring(index), Some(9));
}

#[test]
fn a_command_that_is_too_long_to_be_looked_at_is_refused_and_counted() {
    for make in make().every_kind() {
        let (rig, mut control, _) = rig(make);
        let counted = || {
            let counters = &rig.nic.control_counters;
            (counters.commands.get(), counters.carried_out.get())
        };
        // A table of MAC addresses that no filter holds, of more octets than are ever copied.
        let mut long = vec![0; 64 * 1024 + 1];
        long[..2].copy_from_slice(&[1, 0]);
        let ack = command(&rig, &mut control, &long, &[4096; 16]);
        assert_eq!(ack, [VIRTIO_NET_ERR]);
        assert_eq!(counted(), (1, 0));
        assert_eq!(command(&rig, &mut control, PROMISCUOUS_OFF, &[]), [0]);
        assert_eq!(counted(), (2, 1));
    }
}

#[test]
fn an_impossible_index_stops_the_queue_and_hangs_nothing() {
    let (rig, mut control, index) = rig(make());
    control.driver.set_avail_idx(1000);
    control.kick();
    // Panics if it spins.
    rig.settle();
    assert_eq!(rig.dataplane.stop_ring(index), None);
    control = make().guest(&crate::ring::driver::memory(), index);
    rig.start(index, &control, 0);
    assert_eq!(command(&rig, &mut control, PROMISCUOUS_OFF, &[]), [0]);
}

#[test]
fn a_head_outside_the_table_stops_the_queue() {
    let (rig, mut control, index) = rig(make());
    control.driver.offer(64);
    control.kick();
    rig.settle();
    assert_eq!(rig.dataplane.stop_ring(index), None);
}

#[test]
fn a_burst_of_commands_is_carried_out_to_its_end() {
    for make in make().size(512).every_kind() {
        let (rig, mut control, _) = rig(make);
        for _ in 0..200 {
            control.command(PROMISCUOUS_OFF, &[]);
        }
        rig.settle();
        let used = control.on_interrupt();
        assert_eq!(used.len(), 200);
        assert!(used.iter().all(|used| used.written == [VIRTIO_NET_OK]));
    }
}

#[test]
fn the_queue_goes_on_where_it_stopped() {
    let (rig, mut control, index) = rig(make());
    assert_eq!(command(&rig, &mut control, PROMISCUOUS_OFF, &[]), [0]);
    assert_eq!(rig.dataplane.stop_ring(index), Some(1));
    control.command(PROMISCUOUS_OFF, &[]);
    control.kick();
    rig.settle();
    assert_eq!(control.on_interrupt(), []);
    rig.start(index, &control, 1);
    rig.settle();
    assert_eq!(control.on_interrupt().len(), 1);
    assert_eq!(rig.dataplane.stop_ring(index), Some(2));
}

#[test]
fn a_packed_queue_goes_on_where_it_stopped() {
    for told in [true, false] {
        let (rig, mut control, index) = rig(make().packed());
        assert_eq!(command(&rig, &mut control, PROMISCUOUS_OFF, &[]), [0]);
        // Command and answer are two descriptors.
        let place = BEGINNING | 2;
        assert_eq!(rig.dataplane.stop_ring(index), Some(place));
        control.command(PROMISCUOUS_OFF, &[]);
        let start = if told {
            Start::At(place)
        } else {
            Start::Perhaps(BEGINNING)
        };
        let setup = RingSetup {
            start,
            ..control.setup(0)
        };
        rig.dataplane.start_ring(index, setup).unwrap();
        rig.settle();
        assert_eq!(control.on_interrupt().len(), 1);
        assert_eq!(rig.dataplane.stop_ring(index), Some(BEGINNING | 4));
    }
}

#[test]
fn commands_that_wait_when_it_starts_need_no_kick() {
    let rig = make().rig();
    let mut control = make().guest(&rig.map, 2);
    control.command(PROMISCUOUS_OFF, &[]);
    let setup = RingSetup {
        kick: None,
        ..control.setup(0)
    };
    rig.dataplane.start_ring(2, setup).unwrap();
    rig.settle();
    assert_eq!(control.on_interrupt().len(), 1);
}

#[test]
fn its_place_follows_the_features() {
    let two = Make { pairs: 2, ..make() };
    // Without VIRTIO_NET_F_MQ it comes after the first pair, where the second pair was.
    let rig = two.rig();
    let mut control = two.guest(&rig.map, 2);
    rig.start(2, &control, 0);
    rig.settle();
    assert_eq!(command(&rig, &mut control, PROMISCUOUS_OFF, &[]), [0]);
    // What runs there is known also after the driver has changed its mind.
    let with = two.with(&[VIRTIO_NET_F_MQ]);
    rig.dataplane
        .negotiate(crate::nic::features::Features(with.features));
    assert_eq!(rig.dataplane.stop_ring(2), Some(1));
}

#[test]
fn its_interrupt_can_be_changed() {
    let (rig, mut control, index) = rig(make());
    let new = event();
    rig.dataplane
        .set_interrupt(index, Some(new.try_clone().unwrap()));
    assert_eq!(take_count(&new), 1);
    control.command(PROMISCUOUS_OFF, &[]);
    rig.settle();
    assert_eq!((take_count(&new), control.interrupts()), (1, 0));
}

#[test]
fn a_kick_that_has_hung_up_does_not_make_it_spin() {
    let rig = make().rig();
    let control = make().guest(&rig.map, 2);
    let (read, write) = std::io::pipe().unwrap();
    drop(write);
    let setup = RingSetup {
        kick: Some(read.into()),
        ..control.setup(0)
    };
    rig.dataplane.start_ring(2, setup).unwrap();
    // Panics if it spins.
    rig.settle();
    assert_eq!(rig.dataplane.stop_ring(2), Some(0));
}
