// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a frontend leaves behind: nothing. Alone in its process, since it counts what the process
//! has.

mod frontend_support;

use std::fs;

use frontend_support::client::{Client, FEATURES, NETDEV};
use frontend_support::guest::{Driver, Guest, HEADER, Ring};
use frontend_support::{Device, eventually};

fn count(what: &str) -> usize {
    fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

/// Mappings of the memory with this name.
fn mappings(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}

#[test]
fn a_thousand_frontends_leave_nothing_behind() {
    let device = Device::new(1);
    let has = || (count("fd"), count("task"));
    let mut fewest = (usize::MAX, usize::MAX);
    for round in 0..1000 {
        let guest = Guest::named("guest-that-goes");
        let driver = Driver {
            rings: (0..2).map(|i| Ring::new(&guest, i)).collect(),
            guest,
            header_len: HEADER,
        };
        let mut client = Client::connect(device.path());
        client.handshake(NETDEV);
        if round % 2 == 0 {
            client.start_netdev(&driver, FEATURES);
        }
        if round % 5 == 0 {
            // One that is dropped.
            client.send(0, 0, &[], &[]);
            assert!(client.is_closed());
        }
        drop(client);
        drop(driver);
        eventually("it is gone", || device.nic.frontend().is_none());
        // The last of it goes just after the frontend is seen to be gone.
        if (10..20).contains(&round) {
            fewest = fewest.min(has());
        }
    }
    eventually("all of it is gone", || {
        mappings("guest-that-goes") == 0 && has() <= fewest
    });
}
