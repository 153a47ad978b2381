// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The frontend of the vhost crate, which Cloud Hypervisor and others use: somebody else's idea of
//! the protocol.

mod frontend_support;

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use frontend_support::client::{CONTROL, FEATURES};
use frontend_support::guest::{Driver, HEADER, MEMORY, RING_SIZE, Ring, USER, frame};
use frontend_support::{Device, eventually};

fn eventfd(fd: &OwnedFd) -> EventFd {
    let copy = fd.try_clone().unwrap();
    // SAFETY: the copy is an eventfd and nobody else's.
    unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) }
}

fn set_ring(frontend: &mut Frontend, ring: &Ring) {
    let index = ring.index as usize;
    frontend.set_vring_num(index, RING_SIZE).unwrap();
    let config = VringConfigData {
        queue_max_size: RING_SIZE,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr: USER + ring.desc(),
        used_ring_addr: USER + ring.used(),
        avail_ring_addr: USER + ring.avail(),
        log_addr: None,
    };
    frontend.set_vring_addr(index, &config).unwrap();
    frontend.set_vring_base(index, ring.base).unwrap();
    // The interrupt first, unlike QEMU.
    frontend
        .set_vring_call(index, &eventfd(&ring.call))
        .unwrap();
    frontend
        .set_vring_kick(index, &eventfd(&ring.kick))
        .unwrap();
}

/// What one frontend does: features before or after protocol features, then traffic.
fn serves(features_first: bool, protocol: VhostUserProtocolFeatures, features: u64, rings: u32) {
    let device = Device::new(1);
    let mut driver = Driver::new(rings, 1);
    for round in 0..3 {
        let mut frontend = Frontend::connect(device.path(), 3).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap() & features;
        if features_first {
            frontend.set_features(features).unwrap();
        }
        let offered = frontend.get_protocol_features().unwrap();
        assert!(offered.contains(protocol));
        frontend.set_protocol_features(protocol).unwrap();
        if !features_first {
            frontend.set_features(features).unwrap();
        }
        assert_eq!(frontend.get_queue_num().unwrap(), 3);
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: driver.guest.memfd.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        for ring in &driver.rings {
            set_ring(&mut frontend, ring);
        }
        for ring in &driver.rings {
            frontend
                .set_vring_enable(ring.index as usize, true)
                .unwrap();
        }
        for n in 0..100 {
            driver.send(0, &frame(n));
            assert_eq!(device.cable.take(0)[HEADER..], frame(n));
            driver.rings[1].wait();
            device.cable.give(0, &frame(n));
            assert_eq!(driver.receive(0), frame(n));
        }
        let accepted = device.nic.frontend().unwrap().features;
        assert_eq!(accepted, features & !(1 << 30), "round {round}");
        if protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            let flags = VhostUserConfigFlags::empty();
            let (_, mac) = frontend.get_config(0, 6, flags, &[0; 6]).unwrap();
            assert_eq!(mac, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        }
        for ring in &mut driver.rings {
            frontend
                .set_vring_enable(ring.index as usize, false)
                .unwrap();
            ring.base = frontend.get_vring_base(ring.index as usize).unwrap() as u16;
        }
        drop(frontend);
        eventually("it is gone", || device.nic.frontend().is_none());
    }
}

#[test]
fn a_frontend_of_rust_vmm_with_a_control_queue_of_its_own() {
    let protocol = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
    for features_first in [false, true] {
        serves(features_first, protocol, FEATURES, 2);
    }
}

#[test]
fn a_frontend_of_rust_vmm_that_leaves_config_space_to_us() {
    let protocol = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG;
    for features_first in [false, true] {
        serves(features_first, protocol, CONTROL, 3);
    }
}
