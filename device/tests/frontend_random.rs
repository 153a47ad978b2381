// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random messages, made of words that mean something, on top of rings that run.

mod frontend_support;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use frontend_support::client::*;
use frontend_support::guest::{Driver, MEMORY, USER, event, memfd};
use frontend_support::{Device, netdev, works};

/// Words that mean something in one message or the other.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..4u64,
        Just(0x100),
        Just(1 << 32),
        Just(1 << 32 | 1),
        Just(0x1000),
        Just(MEMORY),
        Just(USER),
        Just(USER + 0x1_0000),
        Just(FEATURES),
        Just(DEVICE),
        Just(u64::MAX),
        any::<u64>(),
    ]
}

fn step() -> impl Strategy<Value = (u32, Vec<u64>, Vec<u8>, bool)> {
    (
        0..46u32,
        prop::collection::vec(word(), 0..6),
        prop::collection::vec(0..5u8, 0..3),
        any::<bool>(),
    )
}

#[test]
fn whatever_is_said_the_next_frontend_is_served() {
    let device = Device::new(1);
    let config = ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = prop::collection::vec(step(), 1..20);
    let run = |steps: Vec<(u32, Vec<u64>, Vec<u8>, bool)>| {
        let mut client = netdev(&device);
        let driver = Driver::new(2, 1);
        client.start_netdev(&driver, FEATURES);
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let (event, memory) = (event(), memfd(MEMORY));
        for (request, payload, fds, need_reply) in steps {
            let fd = |kind| match kind {
                0 | 1 => event.as_fd(),
                2 => memory.as_fd(),
                3 => socket.as_fd(),
                _ => reader.as_fd(),
            };
            let fds: Vec<_> = fds.into_iter().map(fd).collect();
            let flags = if need_reply { 9 } else { 1 };
            client.send(request, flags, &words(&payload), &fds);
        }
        drop(client);
        let mut next = Client::connect(device.path());
        prop_assert!(next.ask(GET_FEATURES, &[]).is_some());
        Ok(())
    };
    runner.run(&steps, run).unwrap();
    works(&device);
}
