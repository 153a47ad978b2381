// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Frontends plug the NIC in and out, and packets pass.

mod frontend_support;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use ferronic::frontend::port::Source;
use ferronic::nic::Attachment;
use ferronic::nic::toeplitz::Toeplitz;

use frontend_support::client::*;
use frontend_support::guest::{Driver, HEADER, RING_SIZE, frame, signalled};
use frontend_support::{Device, PATIENCE, device_attachment, eventually, netdev, traffic};

/// No news is good news after this long.
const A_WHILE: Duration = Duration::from_millis(100);

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

/// Hashes can be reported where the control queue is ours, behind a header of 20 octets, and the next
/// frontend has a NIC without them.
#[test]
fn hashes_are_reported_in_the_device_attachment_alone() {
    const HASH_REPORT: u64 = 1 << 57;
    let device = Device::new(1);
    for _ in 0..2 {
        let mut client = device_attachment(&device);
        assert_ne!(client.ask_u64(GET_FEATURES) & HASH_REPORT, 0);
        let mut driver = Driver::new(3, 1);
        driver.header_len = 20;
        client.start_device(&driver, CONTROL | HASH_REPORT);
        // VIRTIO_NET_CTRL_MQ_HASH_CONFIG: IPv4 addresses.
        let key = [0x5a; 40];
        let config = [&[4, 2, 1, 0, 0, 0], &[0; 8][..], &[40], &key].concat();
        assert_eq!(driver.rings[2].command(&config), 0);
        traffic(&device, &mut driver, 1, 0);
        let mut ip = [&[0xff; 12][..], &[8, 0, 0x45], &[0; 19]].concat();
        ip[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        device.cable.give(0, &ip);
        let packet = driver.rings[0].wait();
        driver.rings[0].offer(None);
        let hash = Toeplitz::new(&key).hash(&ip[26..34]).to_le_bytes();
        assert_eq!(packet[12..20], [&hash[..], &[1, 0, 0, 0]].concat());
        assert_eq!(packet[20..], ip);
        drop(client);
        eventually("the frontend is gone", || device.nic.frontend().is_none());

        let mut client = netdev(&device);
        assert_eq!(client.ask_u64(GET_FEATURES) & HASH_REPORT, 0);
        let mut driver = Driver::new(2, 1);
        client.start_netdev(&driver, FEATURES);
        traffic(&device, &mut driver, 1, 0);
        drop(client);
        eventually("the frontend is gone", || device.nic.frontend().is_none());
    }
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
