// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Frontends that say nonsense, too much, too little, or do not listen. Each may lose its connection;
//! none may disturb the device.

mod frontend_support;

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};

use frontend_support::client::*;
use frontend_support::guest::{Driver, HEADER, MEMORY, RING_SIZE, USER, event, frame, memfd};
use frontend_support::{Device, eventually, netdev, works};

/// One frontend misbehaves, before and after it has started rings; the next finds all in order.
fn survives(misbehave: impl Fn(&mut Client)) {
    let device = Device::new(1);
    misbehave(&mut Client::connect(device.path()));
    misbehave(&mut netdev(&device));
    let mut client = netdev(&device);
    client.start_netdev(&Driver::new(2, 1), FEATURES);
    misbehave(&mut client);
    drop(client);
    works(&device);
}

/// The message ends the connection, and only that.
fn refused(request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
    let device = Device::new(1);
    for started in [false, true] {
        let mut client = netdev(&device);
        if started {
            client.start_netdev(&Driver::new(2, 1), FEATURES);
        }
        client.send(request, 1, payload, fds);
        assert!(client.is_closed(), "request {request} {payload:x?}");
    }
    works(&device);
}

#[test]
fn queues_that_there_are_not() {
    for index in [3, 4, 255, u32::MAX] {
        refused(SET_VRING_NUM, &state(index, 64), &[]);
        refused(SET_VRING_BASE, &state(index, 0), &[]);
        refused(GET_VRING_BASE, &state(index, 0), &[]);
        refused(SET_VRING_ENABLE, &state(index, 1), &[]);
        let address = [state(index, 0), words(&[USER; 4])].concat();
        refused(SET_VRING_ADDR, &address, &[]);
    }
    for index in [3, 0xff] {
        refused(SET_VRING_KICK, &words(&[index]), &[event().as_fd()]);
        refused(SET_VRING_CALL, &words(&[index]), &[event().as_fd()]);
    }
}

#[test]
fn ring_sizes_that_cannot_be() {
    for size in [0, 32769, 65536, u32::MAX] {
        refused(SET_VRING_NUM, &state(0, size), &[]);
    }
    // No power of two: accepted by the crate, but no ring of ours.
    let device = Device::new(1);
    let mut client = netdev(&device);
    let driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    client.base(1);
    client.send(SET_VRING_NUM, 1, &state(1, 3), &[]);
    client.set(
        SET_VRING_KICK,
        &words(&[1]),
        &[driver.rings[1].kick.as_fd()],
    );
    client.set(
        SET_VRING_CALL,
        &words(&[1]),
        &[driver.rings[1].call.as_fd()],
    );
    assert_eq!(device.active(), 1);
}

#[test]
fn ring_addresses_that_are_not_guest_memory() {
    let at = |desc, used, avail| [state(0, 0), words(&[desc, used, avail, 0])].concat();
    for address in [
        at(0, 0, 0),
        at(USER - 16, USER, USER),
        at(USER, USER + MEMORY, USER),
        at(USER, USER, u64::MAX - 1),
        // The used index lies outside.
        at(USER, USER + MEMORY - 4, USER + MEMORY),
        // Not aligned.
        at(USER + 1, USER, USER),
    ] {
        refused(SET_VRING_ADDR, &address, &[]);
    }
    // Only the start of the ring is inside: the crate takes it, the data path does not.
    let device = Device::new(1);
    let mut client = netdev(&device);
    let driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    let end = USER + MEMORY - 16;
    client.set(SET_VRING_ADDR, &at(end, end, end), &[]);
    assert_eq!(device.active(), 1);
    client.set_addresses(&driver.rings[0]);
    eventually("the ring is active again", || device.active() == 2);
}

#[test]
fn rings_without_memory() {
    survives(|client| {
        let address = [state(0, 0), words(&[USER, USER, USER, 0])].concat();
        client.send(SET_VRING_ADDR, 1, &address, &[]);
        client.send(SET_VRING_NUM, 1, &state(0, 64), &[]);
        client.send(SET_VRING_KICK, 1, &words(&[0]), &[event().as_fd()]);
        client.send(SET_VRING_CALL, 1, &words(&[0]), &[event().as_fd()]);
        client.send(SET_VRING_ENABLE, 1, &state(0, 1), &[]);
    });
    survives(|client| {
        client.send(SET_VRING_KICK, 1, &words(&[0]), &[event().as_fd()]);
        client.send(SET_VRING_CALL, 1, &words(&[0]), &[event().as_fd()]);
        client.send(SET_VRING_ENABLE, 1, &state(0, 1), &[]);
    });
}

#[test]
fn memory_that_cannot_be() {
    let memory = memfd(MEMORY);
    let fd = memory.as_fd();
    let region = |start, size, user, offset| words(&[0, start, size, user, offset]);
    let high = USER + (1 << 40);
    for bad in [
        region(1 << 40, 0, high, 0),
        region(1 << 40, MEMORY + 1, high, 0),
        region(1 << 40, MEMORY, high, 0x1000),
        region(1 << 40, 0x1000, high, 1),
        region(u64::MAX - 0xfff, 0x2000, high, 0),
        region(1 << 40, 0x2000, u64::MAX - 0xfff, 0),
        region(1 << 40, 0x2000, high, u64::MAX - 0xfff),
        region(1 << 40, u64::MAX, high, 0),
    ] {
        refused(ADD_MEM_REG, &bad, &[fd]);
    }
    refused(ADD_MEM_REG, &region(1 << 40, MEMORY, high, 0), &[]);
    refused(ADD_MEM_REG, &region(1 << 40, MEMORY, high, 0), &[fd, fd]);
    refused(ADD_MEM_REG, &words(&[0, 0]), &[fd]);
    refused(
        ADD_MEM_REG,
        &region(1 << 40, MEMORY, high, 0),
        &[event().as_fd()],
    );
    // Never added.
    refused(REM_MEM_REG, &region(1 << 40, MEMORY, high, 0), &[]);
    for bad in [
        words(&[0]),
        words(&[1, 0, 0, USER, 0]),
        words(&[1, 0, MEMORY + 1, USER, 0]),
        words(&[1, u64::MAX, MEMORY, USER, 0]),
        words(&[2, 0, MEMORY, USER, 0, 0x1000, MEMORY, high, 0]),
        words(&[33]),
        words(&[u64::from(u32::MAX)]),
    ] {
        let count = (bad.len() / 32).max(1);
        refused(SET_MEM_TABLE, &bad, &vec![fd; count]);
    }
    refused(SET_MEM_TABLE, &words(&[1, 0, MEMORY, USER, 0]), &[]);
    refused(SET_MEM_TABLE, &words(&[1, 0, MEMORY, USER, 0]), &[fd, fd]);
}

#[test]
fn memory_that_overlaps() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let memory = memfd(MEMORY);
    let driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    let region = words(&[0, MEMORY / 2, MEMORY, USER + MEMORY, 0]);
    client.send(ADD_MEM_REG, 1, &region, &[memory.as_fd()]);
    assert!(client.is_closed());
    works(&device);
}

#[test]
fn more_regions_than_announced() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let memory = memfd(0x1000);
    let region = |i: u64| words(&[0, i << 12, 0x1000, USER + (i << 12), 0]);
    // The test holds one end of everything, so it needs twice the descriptors; do not ask for more
    // than there are.
    for i in 0..100 {
        client.set(ADD_MEM_REG, &region(i), &[memory.as_fd()]);
    }
    for i in 0..100 {
        client.set(REM_MEM_REG, &region(i), &[]);
    }
    drop(client);
    works(&device);
}

#[test]
fn descriptors_that_are_not_what_they_should_be() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let file = File::open("/dev/zero").unwrap();
    let others = [reader.as_fd(), writer.as_fd(), socket.as_fd(), file.as_fd()];
    for other in others {
        refused(SET_VRING_KICK, &words(&[0]), &[other]);
        refused(SET_VRING_CALL, &words(&[0]), &[other]);
    }
    let event = event();
    refused(SET_VRING_CALL, &words(&[0]), &[]);
    refused(SET_VRING_CALL, &words(&[0x100]), &[event.as_fd()]);
    refused(
        SET_VRING_CALL,
        &words(&[0]),
        &[event.as_fd(), event.as_fd()],
    );
    refused(SET_BACKEND_REQ_FD, &[], &[file.as_fd()]);
    refused(SET_BACKEND_REQ_FD, &[], &[]);
    refused(GET_FEATURES, &[], &[event.as_fd()]);
    refused(GET_FEATURES, &[], &[event.as_fd(); 33]);
}

#[test]
fn an_interrupt_that_nobody_takes_does_not_stop_traffic() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    for ring in &mut driver.rings {
        // Blocking, and so full that adding to it would block.
        ring.call = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&ring.call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    }
    client.start_netdev(&driver, FEATURES & !(1 << 29));
    for n in 0..20 {
        driver.send(0, &frame(n));
        assert_eq!(device.cable.take(0)[HEADER..], frame(n));
    }
}

#[test]
fn a_driver_that_breaks_its_ring_gets_it_back_by_setting_it_up_again() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut driver = Driver::new(2, 1);
    client.start_netdev(&driver, FEATURES);
    for ring in &driver.rings {
        use vm_memory::{Bytes, GuestAddress};
        let index = GuestAddress(ring.avail() + 2);
        driver.guest.memory.write_obj(0x8000u16, index).unwrap();
        rustix::io::write(&ring.kick, &1u64.to_ne_bytes()).unwrap();
    }
    // More than fit into the buffers that the device knows of already.
    for _ in 0..RING_SIZE {
        device.cable.give(0, &frame(1));
    }
    let errors = || {
        let counters = &device.nic.counters[0];
        counters.rx.ring_errors.get() + counters.tx.ring_errors.get()
    };
    eventually("both rings are broken", || errors() == 2);
    client.stop(&mut driver);
    driver.rings.iter_mut().for_each(|ring| ring.reset());
    driver.fill(1);
    client.start_netdev(&driver, FEATURES);
    driver.send(0, &frame(2));
    assert_eq!(device.cable.take(0)[HEADER..], frame(2));
    device.cable.give(0, &frame(3));
    // What came while the ring was broken may or may not be lost.
    while driver.receive(0) != frame(3) {}
}

#[test]
fn a_panic_in_the_crates_thread_ends_just_that_connection() {
    use std::sync::atomic::Ordering;
    let device = Device::new(1);
    for started in [false, true] {
        let mut client = netdev(&device);
        if started {
            client.start_netdev(&Driver::new(2, 1), FEATURES);
        }
        // The uplink is told of features on that thread.
        device.cable.trap.store(true, Ordering::Release);
        client.send(SET_FEATURES, 1, &words(&[1 << 30 | 1 << 32]), &[]);
        assert!(client.is_closed());
        works(&device);
    }
}

#[test]
fn owning_twice() {
    refused(SET_OWNER, &[], &[]);
}

#[test]
fn every_request_there_is_with_every_protocol_feature_claimed() {
    survives(|client| {
        client.send(SET_PROTOCOL_FEATURES, 1, &words(&[u64::MAX]), &[]);
        client.send(GET_FEATURES, 1, &[], &[]);
    });
    let device = Device::new(1);
    for request in 0..64 {
        for len in [0, 1, 2, 4, 5] {
            for fds in 0..2 {
                let mut client = netdev(&device);
                client.start_netdev(&Driver::new(2, 1), FEATURES);
                client.send(SET_PROTOCOL_FEATURES, 1, &words(&[u64::MAX]), &[]);
                let event = event();
                let fds = vec![event.as_fd(); fds];
                client.send(request, 9, &words(&[1; 5][..len]), &fds);
            }
        }
    }
    works(&device);
}

#[test]
fn headers_that_lie() {
    let device = Device::new(1);
    let header = |words: [u32; 3]| words.map(u32::to_ne_bytes).concat();
    for bytes in [
        header([GET_FEATURES, 1, u32::MAX]),
        header([GET_FEATURES, 1, 4097]),
        header([GET_FEATURES, 0, 0]),
        header([GET_FEATURES, 2, 0]),
        header([GET_FEATURES, 5, 0]),
        header([GET_FEATURES, u32::MAX, 0]),
        header([0, 1, 0]),
        header([u32::MAX, 1, 0]),
        [header([GET_FEATURES, 1, 4]), vec![0; 4]].concat(),
        [header([SET_FEATURES, 1, 9]), vec![0; 9]].concat(),
        [header([SET_FEATURES, 1, 4096]), vec![0; 4096]].concat(),
        vec![0xff; 5000],
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
    ] {
        let mut client = Client::connect(device.path());
        let _ = client.stream.write_all(&bytes);
        assert!(client.is_closed(), "{bytes:x?}");
    }
    works(&device);
}

#[test]
fn config_space_beyond_its_end() {
    let request = |offset: u32, size: u32, len: usize| {
        [state(offset, size), vec![0; 4], vec![0; len]].concat()
    };
    let device = Device::new(1);
    for (offset, size) in [(0, 256), (28, 4), (4095, 1), (0, 4084)] {
        let mut client = Client::connect(device.path());
        client.handshake(DEVICE);
        let answer = client.ask(GET_CONFIG, &request(offset, size, size as usize));
        assert_eq!(answer.unwrap().len(), 12 + size as usize);
    }
    for (offset, size, len) in [(4096, 1, 1), (u32::MAX, 1, 1), (0, 0, 0), (0, 9, 8)] {
        let mut client = Client::connect(device.path());
        client.handshake(DEVICE);
        client.send(GET_CONFIG, 1, &request(offset, size, len), &[]);
        assert!(client.is_closed(), "{size} from {offset}");
    }
    // Writing is possible, and changes nothing that a driver may not change.
    let mut client = Client::connect(device.path());
    client.handshake(DEVICE);
    client.set(25, &request(0, 256, 256), &[]);
    assert_eq!(client.status() & 1, 1);
    drop(client);
    works(&device);
}

#[test]
fn a_message_that_stops_in_the_middle_holds_nobody_up_but_its_sender() {
    let device = Device::new(1);
    let mut client = Client::connect(device.path());
    client
        .stream
        .write_all(&message(GET_FEATURES, 1, &[])[..7])
        .unwrap();
    eventually("it is the frontend", || device.nic.frontend().is_some());
    device.is_quiet();
    // Others are told at once that the NIC is taken, and the link can be changed meanwhile.
    assert!(Client::connect(device.path()).is_closed());
    device.nic.set_link(false);
    eventually("the uplink is told", || {
        device.cable.links.lock().last() == Some(&false)
    });
    device.nic.set_link(true);
    client
        .stream
        .write_all(&message(GET_FEATURES, 1, &[])[7..])
        .unwrap();
    client.reply().unwrap();
    drop(client);
    works(&device);
}

#[test]
fn a_frontend_that_never_reads_stops_only_itself() {
    let device = Device::new(1);
    let client = Client::connect(device.path());
    client.stream.set_nonblocking(true).unwrap();
    let ask = message(GET_FEATURES, 1, &[]);
    let full = |written: std::io::Result<()>| match written {
        Ok(()) => false,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            true
        }
    };
    while !full((&client.stream).write_all(&ask)) {}
    device.is_quiet();
    device.nic.set_link(false);
    device.nic.set_link(true);
    eventually("the uplink is told", || {
        device.cable.links.lock().last() == Some(&true)
    });
    drop(client);
    works(&device);
}

#[test]
fn a_frontend_that_never_reads_and_is_dropped_costs_nothing() {
    let device = Device::new(1);
    let ask = message(GET_FEATURES, 1, &[]);
    // Around as many answers as fit into sockets and queues.
    for count in (0..=800).step_by(20) {
        let client = Client::connect(device.path());
        let mut all = ask.repeat(count);
        // The crate hangs up on this one.
        all.extend(message(0, 1, &[]));
        client.stream.set_nonblocking(true).unwrap();
        let _ = (&client.stream).write_all(&all);
        device.is_quiet();
        drop(client);
        eventually("it is gone", || device.nic.frontend().is_none());
    }
    works(&device);
}
