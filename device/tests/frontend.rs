// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A frontend plugs the NIC in and out, and packets pass.

mod frontend_support;

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use ferronic::frontend::port::Source;
use ferronic::nic::Attachment;

use frontend_support::client::*;
use frontend_support::guest::{Driver, Guest, HEADER, MEMORY, RING_SIZE, USER, event, frame};
use frontend_support::guest::{frame_to, signalled};
use frontend_support::{Device, PATIENCE, eventually};

/// No news is good news after this long.
const A_WHILE: Duration = Duration::from_millis(100);

fn netdev(device: &Device) -> Client {
    let mut client = Client::connect(device.path());
    client.handshake(NETDEV);
    client
}

fn device_attachment(device: &Device) -> Client {
    let mut client = Client::connect(device.path());
    client.handshake(DEVICE);
    client
}

/// Packets pass both ways through every pair, each with its content and its interrupt.
fn traffic(device: &Device, driver: &mut Driver, pairs: usize, seed: usize) {
    for n in seed..seed + 3 * usize::from(RING_SIZE) {
        let pair = n % pairs;
        driver.send(pair, &frame(n));
        let sent = device.cable.take(pair);
        assert_eq!(sent, [&[0; HEADER], &frame(n)[..]].concat());
        driver.rings[2 * pair + 1].wait();
        device.cable.give(pair, &frame(n + 1));
        assert_eq!(driver.receive(pair), frame(n + 1));
    }
}

#[test]
fn packets_pass_in_the_netdev_attachment() {
    for features in [FEATURES, FEATURES & !(1 << 29)] {
        let device = Device::new(2);
        let mut client = netdev(&device);
        assert_eq!(device.active(), 0);
        let mut driver = Driver::new(4, 2);
        client.start_netdev(&driver, features);
        traffic(&device, &mut driver, 2, 0);
        let info = device.nic.frontend().unwrap();
        assert_eq!(info.attachment, Some(Attachment::Netdev));
        assert_eq!(info.rings_active, 4);
        assert_eq!(info.pid, Some(std::process::id() as i32));
        assert_eq!(info.features, features & !(1 << 30));
        device.is_quiet();
    }
}

#[test]
fn packets_pass_in_the_device_attachment() {
    let device = Device::new(2);
    let mut client = device_attachment(&device);
    let mut driver = Driver::new(5, 2);
    client.start_device(&driver, CONTROL);
    // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: both.
    assert_eq!(driver.rings[4].command(&[4, 0, 2, 0]), 0);
    traffic(&device, &mut driver, 2, 0);
    let info = device.nic.frontend().unwrap();
    assert_eq!(info.attachment, Some(Attachment::Device));
    assert_eq!(info.rings_active, 5);
}

#[test]
fn a_frontend_that_comes_back_goes_on_where_it_was() {
    let device = Device::new(1);
    let mut driver = Driver::new(2, 1);
    for round in 0..20 {
        let mut client = netdev(&device);
        client.start_netdev(&driver, FEATURES);
        traffic(&device, &mut driver, 1, 100 * round);
        match round % 3 {
            0 => client.stop(&mut driver),
            // As when the frontend cannot ask any more.
            _ => driver.rings.iter_mut().for_each(|r| r.base = r.used_idx()),
        }
        drop(client);
        eventually("the frontend is gone", || device.nic.frontend().is_none());
    }
}

#[test]
fn a_killed_backend_loses_nothing_that_was_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let mut driver = Driver::new(2, 1);
    let mut sent = 0;
    for round in 0..10 {
        let device = Device::at(&path, 1);
        let mut client = netdev(&device);
        client.start_netdev(&driver, FEATURES);
        // Sent while there was no backend, all of it and in order.
        while sent < 7 * round {
            assert_eq!(device.cable.take(0)[HEADER..], frame(sent));
            driver.rings[1].wait();
            sent += 1;
        }
        traffic(&device, &mut driver, 1, 0);
        // All that was given to receive into is still there to be used.
        assert_eq!(driver.rings[0].pending(), RING_SIZE / 2);
        drop(device);
        drop(client);
        for n in 0..7 {
            driver.send(0, &frame(sent + n));
        }
        driver.rings.iter_mut().for_each(|r| r.base = r.used_idx());
    }
}

#[test]
fn an_interrupt_that_a_killed_backend_owed_is_raised_by_the_next() {
    let device = Device::new(1);
    let mut driver = Driver::new(2, 1);
    let mut client = netdev(&device);
    client.start_netdev(&driver, FEATURES);
    device.cable.give(0, &frame(1));
    driver.receive(0);
    for ring in &mut driver.rings {
        while signalled(&ring.call, Duration::ZERO) {}
        ring.base = ring.used_idx();
    }
    drop(client);
    eventually("it is gone", || device.nic.frontend().is_none());
    let mut client = netdev(&device);
    client.start_netdev(&driver, FEATURES);
    for ring in &driver.rings {
        assert!(signalled(&ring.call, PATIENCE), "virtqueue {}", ring.index);
    }
}

#[test]
fn an_interrupt_that_is_owed_is_raised_also_when_the_call_comes_first() {
    let device = Device::new(1);
    let driver = Driver::new(2, 1);
    let mut client = Client::connect(device.path());
    client.ask_u64(GET_FEATURES);
    client.send(SET_PROTOCOL_FEATURES, 1, &words(&[NETDEV]), &[]);
    client.send(SET_FEATURES, 1, &words(&[1 << 32 | 1 << 30]), &[]);
    client.share_memory(&driver.guest);
    for round in 0..3 {
        for ring in &driver.rings {
            client.base(ring.index);
            while signalled(&ring.call, Duration::ZERO) {}
            let index = words(&[ring.index.into()]);
            let size = state(ring.index, RING_SIZE.into());
            client.send(SET_VRING_NUM, 1, &size, &[]);
            client.set_addresses(ring);
            client.send(SET_VRING_CALL, 1, &index, &[ring.call.as_fd()]);
            client.send(SET_VRING_KICK, 1, &index, &[ring.kick.as_fd()]);
            client.send(SET_VRING_ENABLE, 1, &state(ring.index, 1), &[]);
        }
        for ring in &driver.rings {
            let index = ring.index;
            assert!(signalled(&ring.call, PATIENCE), "round {round}, {index}");
        }
    }
}

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
fn the_link_of_a_netdev_is_its_socket() {
    let device = Device::new(1);
    let mut driver = Driver::new(2, 1);
    for round in 0..5 {
        let mut client = netdev(&device);
        client.start_netdev(&driver, FEATURES);
        traffic(&device, &mut driver, 1, round);
        device.nic.set_link(false);
        assert!(client.is_closed());
        eventually("the path is gone", || !device.path().exists());
        assert_eq!(device.cable.links.lock().last(), Some(&false));
        device.nic.set_link(true);
        eventually("the path is back", || device.path().exists());
        driver.rings.iter_mut().for_each(|r| r.base = r.used_idx());
    }
}

#[test]
fn a_netdev_plugged_in_while_the_link_is_down_is_dropped_when_its_driver_starts() {
    let device = Device::new(1);
    device.nic.set_link(false);
    let mut client = netdev(&device);
    let driver = Driver::new(2, 1);
    let region = words(&[0, 0, MEMORY, USER, 0]);
    client.send(ADD_MEM_REG, 1, &region, &[driver.guest.memfd.as_fd()]);
    assert!(client.is_closed());
    eventually("the path is gone", || !device.path().exists());
    device.nic.set_link(true);
    eventually("the path is back", || device.path().exists());
    netdev(&device);
}

#[test]
fn on_an_inherited_socket_frontends_are_turned_away_while_the_link_is_down() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let device = Device::on(Source::Listener(listener), &path, 1);
    let mut driver = Driver::new(2, 1);
    let mut client = netdev(&device);
    client.start_netdev(&driver, FEATURES);
    device.nic.set_link(false);
    assert!(client.is_closed());
    assert!(Client::connect(&path).is_closed());
    device.nic.set_link(true);
    driver.rings.iter_mut().for_each(|r| r.base = r.used_idx());
    let mut client = loop {
        let mut client = Client::connect(&path);
        if client.ask(GET_FEATURES, &[]).is_some() {
            break client;
        }
    };
    client.handshake(NETDEV);
    client.start_netdev(&driver, FEATURES);
    traffic(&device, &mut driver, 1, 0);
}

#[test]
fn a_connected_socket_serves_one_frontend_and_then_the_device_ends() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let device = Device::on(Source::Connected(theirs), "unused".as_ref(), 1);
    let mut client = Client::over(ours);
    client.handshake(NETDEV);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    traffic(&device, &mut driver, 1, 0);
    assert!(!device.has_ended());
    drop(client);
    eventually("the device ends", || device.has_ended());
}

#[test]
fn the_link_of_the_device_attachment_is_a_bit_that_the_driver_is_told_of() {
    let device = Device::new(1);
    let mut client = device_attachment(&device);
    let mut driver = Driver::new(3, 1);
    client.start_device(&driver, CONTROL);
    traffic(&device, &mut driver, 1, 0);
    for up in [false, true, false, true] {
        device.nic.set_link(up);
        assert!(client.config_changed(PATIENCE));
        assert_eq!(client.status() & 1, u16::from(up));
    }
    traffic(&device, &mut driver, 1, 0);
}

#[test]
fn the_device_attachment_is_told_of_the_link_only_while_rings_run() {
    let device = Device::new(1);
    // Before it is known what the frontend is.
    let mut client = Client::connect(device.path());
    client.ask_u64(GET_FEATURES);
    device.nic.set_link(false);
    client.handshake(DEVICE);
    // Before the driver starts.
    device.nic.set_link(true);
    device.nic.set_link(false);
    assert!(!client.config_changed(A_WHILE));
    assert_eq!(client.status() & 1, 0);
    let mut driver = Driver::new(3, 1);
    client.start_device(&driver, CONTROL);
    assert!(client.config_changed(PATIENCE));
    // While the guest is paused: it is told when it goes on.
    client.stop(&mut driver);
    device.nic.set_link(true);
    assert!(!client.config_changed(A_WHILE));
    client.start_device(&driver, CONTROL);
    assert!(client.config_changed(PATIENCE));
    assert!(!client.config_changed(A_WHILE));
    assert_eq!(client.status() & 1, 1);
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

#[test]
fn a_link_that_is_down_stays_down_for_the_next_frontend() {
    let device = Device::new(1);
    device.nic.set_link(false);
    let mut client = device_attachment(&device);
    assert_eq!(client.status() & 1, 0);
    drop(client);
    eventually("it is gone", || device.nic.frontend().is_none());
    assert_eq!(device_attachment(&device).status() & 1, 0);
}

#[test]
fn a_second_frontend_is_turned_away_and_the_first_does_not_notice() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    for n in 0..20 {
        assert!(Client::connect(device.path()).is_closed());
        traffic(&device, &mut driver, 1, n);
    }
    drop(client);
    eventually("it is gone", || device.nic.frontend().is_none());
    netdev(&device);
}

#[test]
fn whoever_says_nothing_is_in_nobodys_way() {
    let device = Device::new(1);
    let mut silent: Vec<Client> = (0..20).map(|_| Client::connect(device.path())).collect();
    thread::sleep(A_WHILE);
    assert_eq!(device.nic.frontend(), None);
    device.is_quiet();
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    traffic(&device, &mut driver, 1, 0);
    assert!(silent.iter_mut().all(Client::is_closed));
    drop(client);
    eventually("it is gone", || device.nic.frontend().is_none());
    // One that comes early and speaks late is served.
    let mut late = Client::connect(device.path());
    drop(UnixStream::connect(device.path()).unwrap());
    thread::sleep(A_WHILE);
    device.is_quiet();
    late.handshake(DEVICE);
    device.is_quiet();
}
