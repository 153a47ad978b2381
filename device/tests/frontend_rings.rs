// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a frontend changes while rings run, or between one run and the next.

mod frontend_support;

use std::os::fd::AsFd;

use frontend_support::client::*;
use frontend_support::guest::frame_to;
use frontend_support::guest::{Driver, Guest, HEADER, MEMORY, RING_SIZE, USER, event, frame};
use frontend_support::{Device, device_attachment, eventually, netdev, traffic};

#[test]
fn the_second_pair_of_a_netdev_does_not_disturb_the_first() {
    let device = Device::new(2);
    let mut client = netdev(&device);
    let mut driver = Driver::new(4, 2);
    client.start_netdev(&driver, FEATURES);
    eventually("all rings are active", || device.active() == 4);
    let negotiated = device.cable.negotiated.lock().clone();
    let features = |n: &ferronic::uplink::Negotiated| n.header_len == 12;
    assert_eq!(negotiated.iter().filter(|n| features(n)).count(), 1);
    // And once more, in the middle of traffic.
    client.send(SET_FEATURES, 1, &words(&[FEATURES]), &[]);
    client.send(SET_PROTOCOL_FEATURES, 1, &words(&[NETDEV]), &[]);
    traffic(&device, &mut driver, 2, 0);
    assert_eq!(*device.cable.negotiated.lock(), negotiated);
    assert_eq!(
        device.nic.frontend().unwrap().features,
        FEATURES & !(1 << 30)
    );
}

#[test]
fn other_features_while_rings_run_count_at_once() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    // Without VERSION_1 and MRG_RXBUF the header is two octets shorter.
    client.start_netdev(&driver, 1 << 30);
    client.set(SET_FEATURES, &words(&[FEATURES & !(1 << 22)]), &[]);
    traffic(&device, &mut driver, 1, 0);
}

#[test]
fn a_guest_that_was_paused_finds_its_filters_and_one_that_starts_afresh_does_not() {
    let device = Device::new(1);
    let mut client = device_attachment(&device);
    let mut driver = Driver::new(3, 1);
    let stranger = [2, 0, 0, 0, 0, 9];
    client.start_device(&driver, CONTROL);
    // VIRTIO_NET_CTRL_RX_PROMISC: off, which it is not at first.
    assert_eq!(driver.rings[2].command(&[0, 0, 0]), 0);
    client.stop(&mut driver);
    assert_eq!(driver.rings[2].base, 1);
    client.start_device(&driver, CONTROL);
    device.cable.give(0, &frame_to(stranger, 1));
    device.cable.give(0, &frame(2));
    assert_eq!(driver.receive(0), frame(2));

    client.stop(&mut driver);
    driver.rings.iter_mut().for_each(|ring| ring.reset());
    driver.fill(1);
    client.start_device(&driver, CONTROL);
    device.cable.give(0, &frame_to(stranger, 3));
    assert_eq!(driver.receive(0), frame_to(stranger, 3));
}

#[test]
fn a_ring_that_is_disabled_and_enabled_goes_on() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    for n in 0..50 {
        client.enable(0, false);
        client.enable(1, false);
        driver.send(0, &frame(n));
        device.cable.give(0, &frame(n));
        assert_eq!(device.cable.waiting(0), 0);
        assert_eq!(driver.rings[0].pending(), RING_SIZE / 2);
        client.enable(0, true);
        client.enable(1, true);
        assert_eq!(device.cable.take(0)[HEADER..], frame(n));
        driver.rings[1].wait();
        assert_eq!(driver.receive(0), frame(n));
    }
}

#[test]
fn the_base_of_a_stopped_ring_stays_the_same() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    assert_eq!(client.base(1), 0);
    client.start_netdev(&driver, FEATURES);
    traffic(&device, &mut driver, 1, 0);
    let used = driver.rings[1].used_idx();
    assert_eq!(used, 3 * RING_SIZE);
    for _ in 0..3 {
        assert_eq!(client.base(1), used);
    }
}

#[test]
fn memory_that_is_replaced_while_rings_run_is_used_at_once() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    for n in 0..5 {
        // The same memory as two regions or as one.
        let half = MEMORY / 2;
        let table = match n % 2 {
            0 => words(&[2, 0, half, USER, 0, half, half, USER + half, half]),
            _ => words(&[1, 0, MEMORY, USER, 0]),
        };
        let fd = driver.guest.memfd.as_fd();
        let fds = if n % 2 == 0 { vec![fd, fd] } else { vec![fd] };
        client.set(SET_MEM_TABLE, &table, &fds);
        traffic(&device, &mut driver, 1, n);
    }
    // Memory that is added does no harm either, nor does it when it goes again.
    let other = Guest::new();
    let more = words(&[0, MEMORY, MEMORY, USER + MEMORY, 0]);
    client.set(ADD_MEM_REG, &more, &[other.memfd.as_fd()]);
    traffic(&device, &mut driver, 1, 0);
    client.set(REM_MEM_REG, &more, &[]);
    traffic(&device, &mut driver, 1, 0);
}

#[test]
fn rings_whose_memory_goes_stop_and_go_on_when_it_is_back() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    traffic(&device, &mut driver, 1, 0);
    let region = words(&[0, 0, MEMORY, USER, 0]);
    client.set(REM_MEM_REG, &region, &[]);
    assert_eq!(device.active(), 0);
    client.set(ADD_MEM_REG, &region, &[driver.guest.memfd.as_fd()]);
    assert_eq!(device.active(), 2);
    traffic(&device, &mut driver, 1, 0);
}

#[test]
fn a_new_kick_call_or_address_counts_while_the_ring_runs() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    traffic(&device, &mut driver, 1, 0);
    for ring in &mut driver.rings {
        let index = words(&[ring.index.into()]);
        ring.kick = event();
        client.set(SET_VRING_KICK, &index, &[ring.kick.as_fd()]);
        ring.call = event();
        client.set(SET_VRING_CALL, &index, &[ring.call.as_fd()]);
    }
    traffic(&device, &mut driver, 1, 0);
    // Another driver's ring, which is at 0 as well.
    client.stop(&mut driver);
    let mut other = Driver::new(2, 1);
    client.set(REM_MEM_REG, &words(&[0, 0, MEMORY, USER, 0]), &[]);
    client.set(
        ADD_MEM_REG,
        &words(&[0, 0, MEMORY, USER, 0]),
        &[other.guest.memfd.as_fd()],
    );
    client.start_netdev(&other, FEATURES);
    traffic(&device, &mut other, 1, 0);
}

#[test]
fn a_call_may_come_before_the_kick_and_a_driver_may_poll() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let driver = Driver::new(2, 1);
    let mut driver = driver;
    client.send(SET_FEATURES, 1, &words(&[FEATURES & !(1 << 22)]), &[]);
    client.share_memory(&driver.guest);
    const NO_FD: u64 = 0x100;
    for ring in &driver.rings {
        let index = u64::from(ring.index);
        // Twice: what an earlier one has left must not count.
        client.base(ring.index);
        client.set(SET_VRING_CALL, &words(&[index | NO_FD]), &[]);
        client.send(SET_VRING_NUM, 1, &state(ring.index, RING_SIZE.into()), &[]);
        client.set_addresses(ring);
        client.set(SET_VRING_KICK, &words(&[index]), &[ring.kick.as_fd()]);
        client.enable(ring.index, true);
    }
    driver.send(0, &frame(1));
    assert_eq!(device.cable.take(0)[HEADER..], frame(1));
    device.cable.give(0, &frame(2));
    eventually("both are used", || {
        driver.rings.iter().all(|ring| ring.used_idx() == 1)
    });
    for ring in &driver.rings {
        let index = words(&[ring.index.into()]);
        client.set(SET_VRING_CALL, &index, &[ring.call.as_fd()]);
    }
    assert_eq!(driver.receive(0), frame(2));
    driver.rings[1].wait();
    traffic(&device, &mut driver, 1, 0);
}

#[test]
fn a_reset_while_rings_run_stops_them_until_they_are_set_up_again() {
    let device = Device::new(2);
    let mut client = netdev(&device);
    let mut driver = Driver::new(4, 2);
    for round in 0..3 {
        client.start_netdev(&driver, FEATURES);
        traffic(&device, &mut driver, 2, round);
        client.set(RESET_DEVICE, &[], &[]);
        assert_eq!(device.active(), 0);
        // Enabling comes before addresses: nothing may start at the old ones.
        for index in 0..4 {
            client.enable(index, true);
        }
        assert_eq!(device.active(), 0);
        driver.rings.iter_mut().for_each(|ring| ring.reset());
        driver.fill(2);
    }
}
