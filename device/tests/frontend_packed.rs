// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Packed rings through stop and start, and through a frontend that hangs up and comes back knowing
//! only where they were when they were started, as QEMU does.

mod frontend_support;

use ferronic::nic::features::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED};
use vm_memory::{Bytes, GuestAddress};

use frontend_support::client::*;
use frontend_support::guest::{Driver, HEADER, RING_SIZE, frame};
use frontend_support::{Device, eventually, netdev};

const PACKED: u64 = FEATURES | 1 << VIRTIO_F_RING_PACKED;
/// ... and what was sent is used in batches.
const IN_ORDER: u64 = PACKED | 1 << VIRTIO_F_IN_ORDER;
/// Descriptor 0, with a wrap counter of 1.
const BEGINNING: u16 = 0x8000;
const TRANSMIT: usize = 1;
const BUFFERS: u64 = 0x40_0000;

/// Sends frames through the packed ring of the first pair, a descriptor each.
struct Sender {
    driver: Driver,
    sent: usize,
}

impl Sender {
    fn new() -> Self {
        let mut driver = Driver::new(2, 0);
        for ring in &mut driver.rings {
            ring.base = BEGINNING;
        }
        Sender { driver, sent: 0 }
    }

    /// Makes the next frame available and kicks; gives its descriptor's address and flags once it is
    /// used.
    fn offer(&mut self) -> (GuestAddress, u16) {
        let desc = self.offer_quietly();
        let kick = &self.driver.rings[TRANSMIT].kick;
        rustix::io::write(kick, &1u64.to_ne_bytes()).unwrap();
        desc
    }

    fn offer_quietly(&mut self) -> (GuestAddress, u16) {
        let size = usize::from(RING_SIZE);
        let ring = &self.driver.rings[TRANSMIT];
        let packet = [&[0; HEADER], &frame(self.sent)[..]].concat();
        let (slot, lap) = (self.sent % size, self.sent / size);
        let memory = &self.driver.guest.memory;
        let buffer = BUFFERS + 2048 * slot as u64;
        memory.write_slice(&packet, GuestAddress(buffer)).unwrap();
        let at = ring.desc() + 16 * slot as u64;
        let put = |offset, value: u32| memory.write_obj(value, GuestAddress(at + offset)).unwrap();
        put(0, buffer as u32);
        put(4, 0);
        put(8, packet.len() as u32);
        let (available, used) = match lap % 2 {
            0 => (1 << 7, 1 << 7 | 1 << 15),
            _ => (1 << 15, 0),
        };
        put(12, self.sent as u32 & 0xff | available << 16);
        self.sent += 1;
        (GuestAddress(at + 14), used)
    }

    /// So many frames arrive, and are used.
    fn send(&mut self, device: &Device, count: usize) {
        for _ in 0..count {
            let n = self.sent;
            let (flags, used) = self.offer();
            assert_eq!(device.cable.take(0)[HEADER..], frame(n));
            eventually("it is used", || {
                let now: u16 = self.driver.guest.memory.read_obj(flags).unwrap();
                now == used
            });
        }
    }
}

/// What the frontend is told of where a ring has stopped.
fn whole_base(client: &mut Client, index: u32) -> u32 {
    let answer = client.ask(GET_VRING_BASE, &words(&[index.into()])).unwrap();
    u32::from_ne_bytes(answer[4..].try_into().unwrap())
}

#[test]
fn a_frontend_learns_where_a_ring_has_stopped_and_starts_it_there() {
    let device = Device::new(1);
    let mut sender = Sender::new();
    let mut client = netdev(&device);
    let size = usize::from(RING_SIZE);
    for (count, place) in [
        (3, 0x8003),
        (size, 0x0003),
        (2 * size, 0x0003),
        (size, 0x8003),
    ] {
        client.start_netdev(&sender.driver, PACKED);
        sender.send(&device, count);
        for (index, place) in [(0, 0x8000), (1, place)] {
            client.enable(index, false);
            let base = whole_base(&mut client, index);
            assert_eq!(base, place | place << 16);
            sender.driver.rings[index as usize].base = base as u16;
        }
    }
}

#[test]
fn a_frontend_that_hangs_up_and_comes_back_need_not_know() {
    let device = Device::new(1);
    for features in [PACKED, IN_ORDER] {
        let mut sender = Sender::new();
        for count in [5, usize::from(RING_SIZE), 7, 3 * usize::from(RING_SIZE)] {
            let mut client = netdev(&device);
            client.start_netdev(&sender.driver, features);
            sender.send(&device, count);
            drop(client);
            eventually("it is gone", || device.nic.frontend().is_none());
            // In the meantime the driver goes on.
            sender.offer();
            let mut client = netdev(&device);
            client.start_netdev(&sender.driver, features);
            assert_eq!(device.cable.take(0)[HEADER..], frame(sender.sent - 1));
            drop(client);
            eventually("it is gone", || device.nic.frontend().is_none());
        }
        assert_eq!(sender.driver.rings[TRANSMIT].base, BEGINNING);
    }
}

#[test]
fn nor_does_it_after_batches() {
    let device = Device::new(1);
    let mut sender = Sender::new();
    let mut batches = 0;
    for count in [2, 7, 16, usize::from(RING_SIZE), 3, usize::from(RING_SIZE)] {
        // All of them are there when the device comes, which uses them in batches.
        let start = sender.sent;
        let descs: Vec<_> = (0..count).map(|_| sender.offer_quietly()).collect();
        let mut client = netdev(&device);
        client.start_netdev(&sender.driver, IN_ORDER);
        for n in start..sender.sent {
            assert_eq!(device.cable.take(0)[HEADER..], frame(n));
        }
        let is_used = |&(flags, used): &(GuestAddress, u16)| {
            let now: u16 = sender.driver.guest.memory.read_obj(flags).unwrap();
            now == used
        };
        eventually("the last is used", || is_used(&descs[count - 1]));
        eventually("the first is used", || is_used(&descs[0]));
        batches += usize::from(!descs.iter().all(is_used));
        drop(client);
        eventually("it is gone", || device.nic.frontend().is_none());
    }
    assert!(batches > 0, "each was used by itself");
    assert_eq!(sender.driver.rings[TRANSMIT].base, BEGINNING);
}

#[test]
fn a_driver_that_starts_afresh_is_served_from_the_beginning() {
    let device = Device::new(1);
    let mut client = netdev(&device);
    let mut sender = Sender::new();
    for _ in 0..2 {
        client.start_netdev(&sender.driver, PACKED);
        sender.send(&device, 10);
        for index in 0..2 {
            client.enable(index, false);
            whole_base(&mut client, index);
        }
        sender.sent = 0;
        for ring in &mut sender.driver.rings {
            ring.reset();
            ring.base = BEGINNING;
        }
    }
}
