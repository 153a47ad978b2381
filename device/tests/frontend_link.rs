// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How each attachment is shown the link.

mod frontend_support;

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferronic::frontend::port::Source;

use frontend_support::client::*;
use frontend_support::guest::{Driver, MEMORY, USER};
use frontend_support::{Device, PATIENCE, device_attachment, eventually, netdev, traffic};

/// No news is good news after this long.
const A_WHILE: Duration = Duration::from_millis(100);

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

/// Where the frontend in another process connects.
const SOCKET: &str = "FERRONIC_TEST_SOCKET";
/// What it says when its driver has started.
const STARTED: &str = "the driver has started";

#[test]
#[ignore = "another process of the test that follows"]
fn another_process() {
    let Some(path) = std::env::var_os(SOCKET) else {
        return;
    };
    let mut client = Client::connect(path.as_ref());
    client.handshake(NETDEV);
    client.start_netdev(&Driver::new(2, 1), FEATURES);
    println!("{STARTED}");
    loop {
        std::thread::park();
    }
}

/// A process with a frontend whose driver has started.
fn another_frontend(device: &Device) -> Child {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["another_process", "--exact", "--ignored", "--nocapture"])
        .env(SOCKET, device.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert!(
        lines
            .map(Result::unwrap)
            .any(|line| line.ends_with(STARTED))
    );
    process
}

#[test]
fn a_netdev_that_is_started_after_the_one_that_was_dropped_has_ended_need_not_wait() {
    let device = Device::new(1);
    let mut first = another_frontend(&device);
    device.nic.set_link(false);
    eventually("the path is gone", || !device.path().exists());
    std::thread::sleep(A_WHILE);
    // It would come back.
    assert!(!device.path().exists());
    first.kill().unwrap();
    first.wait().unwrap();
    eventually("the path is back", || device.path().exists());
    assert!(!device.nic.link_up());
    // And so for this one, which is the process that goes on.
    let mut client = netdev(&device);
    let driver = Driver::new(2, 1);
    let region = words(&[0, 0, MEMORY, USER, 0]);
    client.send(ADD_MEM_REG, 1, &region, &[driver.guest.memfd.as_fd()]);
    assert!(client.is_closed());
    eventually("the path is gone", || !device.path().exists());
    std::thread::sleep(A_WHILE);
    assert!(!device.path().exists());
    // One that ends when the link is up changes nothing.
    device.nic.set_link(true);
    eventually("the path is back", || device.path().exists());
    let mut second = another_frontend(&device);
    second.kill().unwrap();
    second.wait().unwrap();
    eventually("it is gone", || device.nic.frontend().is_none());
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
fn a_link_that_is_down_stays_down_for_the_next_frontend() {
    let device = Device::new(1);
    device.nic.set_link(false);
    let mut client = device_attachment(&device);
    assert_eq!(client.status() & 1, 0);
    drop(client);
    eventually("it is gone", || device.nic.frontend().is_none());
    assert_eq!(device_attachment(&device).status() & 1, 0);
}
