// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest at a port: its NIC, and a driver of one queue pair.

use std::sync::Arc;

use crate::datapath::Dataplane;
use crate::datapath::tests::guest::{Guest, packets};
use crate::datapath::tests::rig::{Make, drops};
use crate::datapath::wait_set::Sleep;
use crate::datapath::workers::Workers;
use crate::nic::Nic;
use crate::nic::counters::DropReason;
use crate::nic::features::Features;
use crate::ring::driver::memory;
use crate::switch::Switch;
use crate::switch::vlan::{VlanId, VlanMode};

pub struct Station {
    pub number: u8,
    pub nic: Arc<Nic>,
    pub dataplane: Dataplane,
    pub rx: Guest,
    pub tx: Guest,
}

pub const BROADCAST: [u8; 6] = [0xff; 6];

pub fn access(vlan: u16) -> VlanMode {
    VlanMode::Access(VlanId::new(vlan).unwrap())
}

pub fn trunk() -> VlanMode {
    VlanMode::default()
}

/// The address of guest `number`.
pub fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

/// A frame with a virtio-net header that asks for nothing.
pub fn frame(to: [u8; 6], from: [u8; 6], tag: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet.extend(to);
    packet.extend(from);
    if let Some(tag) = tag {
        packet.extend([0x81, 0]);
        packet.extend(tag.to_be_bytes());
    }
    packet.extend([0x88, 0xb5]);
    packet.extend(payload);
    packet
}

/// `len` octets unlike those of another number.
pub fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

impl Station {
    /// Guest `number` at a new port, with its rings started, no buffers offered, and workers without
    /// threads.
    pub fn new(switch: &Arc<Switch>, number: u8, make: Make, vlans: VlanMode) -> Self {
        let station = Self::plugged_in(switch, number, make, vlans, false);
        station.start(make);
        station.dataplane.settle();
        assert_eq!((station.rx.interrupts(), station.tx.interrupts()), (1, 1));
        station
    }

    /// The same with threads.
    pub fn running(switch: &Arc<Switch>, number: u8, make: Make) -> Self {
        let station = Self::plugged_in(switch, number, make, trunk(), true);
        station.start(make);
        station
    }

    /// The same before the driver starts.
    pub fn plugged_in(
        switch: &Arc<Switch>,
        number: u8,
        make: Make,
        vlans: VlanMode,
        threads: bool,
    ) -> Self {
        let nic = make.nic();
        let name = format!("p{number}");
        let uplink = switch.add(&name, nic.clone(), vlans).unwrap();
        let make_dataplane = if threads {
            Dataplane::start
        } else {
            Dataplane::new
        };
        let dataplane = make_dataplane(nic.clone(), Box::new(uplink), &Workers::default()).unwrap();
        switch.connect(&name, dataplane.inlets());
        let map = memory();
        Station {
            number,
            nic,
            dataplane,
            rx: make.guest(&map, 0),
            tx: make.guest(&map, 1),
        }
    }

    pub fn start(&self, make: Make) {
        self.dataplane.negotiate(Features(make.features));
        for (index, guest) in [&self.rx, &self.tx].into_iter().enumerate() {
            self.dataplane.start_ring(index, guest.setup(0)).unwrap();
        }
    }

    pub fn mac(&self) -> [u8; 6] {
        mac(self.number)
    }

    /// Offers as many buffers of this size as the ring has room for.
    pub fn offer(&mut self, len: usize) {
        while self.rx.free() > 0 {
            self.rx.offer_room(&[len]);
        }
    }

    /// Sends a packet as it is.
    pub fn send(&mut self, packet: &[u8]) {
        let cuts = [4000; 20];
        let pieces = packet.len().div_ceil(4000).min(cuts.len());
        self.tx.send(packet, &cuts[..pieces - 1]);
        self.dataplane.work(Sleep::Forever);
        self.tx.used();
    }

    /// Sends a frame of `len` octets of payload to another; gives what the other should get.
    pub fn send_to(&mut self, to: [u8; 6], number: u32, len: usize) -> Vec<u8> {
        let packet = frame(to, self.mac(), None, &payload(number, len));
        self.send(&packet);
        packet
    }

    /// Tells the switch where this guest is, and is heard by nobody: by a frame to itself.
    pub fn show_up(&mut self) {
        self.send_to(self.mac(), 0, 50);
    }

    /// What has been received, after an interrupt for it.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        packets(self.rx.on_interrupt())
    }

    pub fn rx_drops(&self) -> Vec<(DropReason, u64)> {
        drops(&self.nic.counters[0].rx)
    }

    pub fn tx_drops(&self) -> Vec<(DropReason, u64)> {
        drops(&self.nic.counters[0].tx)
    }

    pub fn set_link(&self, up: bool) {
        self.nic.set_link(up);
        self.dataplane.link_changed();
        self.dataplane.settle();
    }
}
