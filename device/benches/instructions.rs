// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Moves packets through a data path, for a program that counts instructions.
//!
//! It has no threads, waits for nothing, and takes no time: `cargo lab test instructions` runs it under
//! callgrind, which counts what [`counted_turns`] does. Drivers and the uplink are memory, and what they
//! do is not counted but for the uplink's copy. Before anything is counted some rounds go through, so
//! that nothing is done for the first time.
//!
//! Without an argument it prints its loads, a line each: the name, and how many packets are moved while
//! it is counted. With a name it moves them, and ends badly if not all have arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ferronic::datapath::workers::Workers;
use ferronic::datapath::{Dataplane, RingSetup};
use ferronic::nic::Nic;
use ferronic::nic::features::{
    Features, VIRTIO_F_EVENT_IDX, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};
use ferronic::switch::Switch;
use ferronic::switch::vlan::VlanMode;

mod support;

use support::{Memory, MemoryUplink, Ring, SIZE};

/// Rounds before those that are counted.
const WARM_UP: usize = 2;
/// Packets that are counted, in rounds of as many as the rings have entries; at least one round.
const PACKETS: usize = 2048;
/// Octets of frames.
const FRAMES: [usize; 2] = [64, 1514];
/// Octets of the virtio-net header.
const HEADER: usize = 12;
/// The station at the far end.
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Ours.
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A way that packets go.
#[derive(Clone, Copy)]
enum Way {
    /// From a driver to the uplink.
    Transmit,
    /// From the uplink to a driver.
    Receive,
    /// From one driver through the switch to another.
    Across,
}

const WAYS: [(Way, &str); 3] = [
    (Way::Transmit, "transmit"),
    (Way::Receive, "receive"),
    (Way::Across, "across"),
];

/// What is moved, and how much there is around it.
#[derive(Clone, Copy)]
struct Load {
    way: Way,
    packed: bool,
    /// Octets of a frame.
    frame: usize,
    /// Entries of a ring.
    size: u16,
    /// Queue pairs of the NIC, all of them busy.
    pairs: u16,
    /// Ports of the switch, two of them busy.
    ports: usize,
}

impl Load {
    fn rounds(self) -> usize {
        (PACKETS / usize::from(self.size)).max(1)
    }

    fn packets(self) -> usize {
        self.rounds() * usize::from(self.size) * usize::from(self.pairs)
    }
}

/// A device that is ready to move packets of one kind.
struct Bench {
    /// The one that takes turns.
    device: Dataplane,
    rings: Vec<Ring>,
    /// Packets that the uplink is to bring, for each queue.
    coming: Vec<Arc<AtomicUsize>>,
    /// The NIC at which packets arrive.
    nic: Arc<Nic>,
    load: Load,
    /// What is there to be driven, and has nothing to do.
    _idle: Vec<Dataplane>,
}

fn negotiate(device: &Dataplane, packed: bool) {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_F_EVENT_IDX,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
    ];
    if packed {
        bits.push(VIRTIO_F_RING_PACKED);
    }
    device.negotiate(Features(bits.iter().fold(0, |set, bit| set | 1 << bit)));
}

/// Starts the ring of virtqueue `index`, whose driver looks at it by itself.
fn start(device: &Dataplane, index: usize, ring: &Ring) {
    let setup = RingSetup {
        map: ring.map.clone(),
        layout: ring.layout,
        start: ring.start(),
        kick: None,
        call: None,
    };
    device.start_ring(index, setup).unwrap();
}

/// A packet's first octets: header and Ethernet header.
fn front(to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
    [&[0; HEADER][..], &to, &from, &[0x88, 0xb5]].concat()
}

impl Bench {
    fn new(load: Load) -> Self {
        match load.way {
            Way::Transmit | Way::Receive => Bench::with_uplink(load),
            Way::Across => Bench::with_switch(load),
        }
    }

    fn with_uplink(load: Load) -> Self {
        let (packed, octets) = (load.packed, HEADER + load.frame);
        let mut packet = front(OWN, STATION);
        packet.resize(octets, 0);
        let coming: Vec<Arc<AtomicUsize>> = (0..load.pairs).map(|_| Arc::default()).collect();
        let queue = |coming| Memory {
            coming: Arc::clone(coming),
            ready: None,
            packet: packet.clone(),
        };
        let uplink = MemoryUplink(coming.iter().map(queue).collect());
        let nic = support::nic(load.pairs);
        let device = Dataplane::new(nic.clone(), Box::new(uplink), &Workers::default()).unwrap();
        negotiate(&device, packed);
        let receives = matches!(load.way, Way::Receive);
        let ring = |pair| {
            let (index, ring) = match receives {
                true => (2 * pair, Ring::receive(packed, load.size)),
                false => (2 * pair + 1, Ring::transmit(packed, load.size, octets)),
            };
            ring.fill(&front(STATION, OWN));
            start(&device, index, &ring);
            ring
        };
        let rings = (0..usize::from(load.pairs)).map(ring).collect();
        Bench {
            rings,
            device,
            coming: if receives { coming } else { Vec::new() },
            nic,
            load,
            _idle: Vec::new(),
        }
    }

    fn with_switch(load: Load) -> Self {
        let (packed, octets) = (load.packed, HEADER + load.frame);
        let switch = Switch::new();
        let port = |number: usize| {
            let nic = support::nic(1);
            let name = format!("port{number}");
            let port = switch.add(&name, nic.clone(), VlanMode::default()).unwrap();
            let device = Dataplane::new(nic.clone(), Box::new(port), &Workers::default()).unwrap();
            switch.connect(&name, device.inlets());
            negotiate(&device, packed);
            (device, nic)
        };
        let (device, _) = port(0);
        let (receiver, nic) = port(1);
        let mut idle = vec![receiver];
        idle.extend((2..load.ports).map(|number| port(number).0));
        // The switch learns what is behind each; nobody takes what they say.
        for (port, number) in idle.iter().zip(STATION[5]..) {
            let mut greeting = Ring::transmit(packed, SIZE, octets);
            greeting.fill(&front(OWN, [2, 0, 0, 0, 0, number]));
            greeting.offer_all();
            start(port, 1, &greeting);
            turns(port);
        }
        let transmit = Ring::transmit(packed, load.size, octets);
        transmit.fill(&front(STATION, OWN));
        start(&device, 1, &transmit);
        let receive = Ring::receive(packed, load.size);
        start(&idle[0], 0, &receive);
        Bench {
            device,
            rings: vec![transmit, receive],
            coming: Vec::new(),
            nic,
            load,
            _idle: idle,
        }
    }

    /// The drivers' part of a round, and the uplink's.
    fn prepare(&mut self) {
        for ring in &mut self.rings {
            ring.offer_all();
        }
        for coming in &self.coming {
            coming.store(self.load.size.into(), Ordering::Relaxed);
        }
    }

    /// Packets that have gone all the way.
    fn arrived(&self) -> usize {
        let packets = self.nic.counters.iter().map(|pair| match self.load.way {
            Way::Transmit => pair.tx.packets.get(),
            Way::Receive | Way::Across => pair.rx.packets.get(),
        });
        packets.sum::<u64>() as usize
    }
}

fn turns(device: &Dataplane) {
    while device.turn() {}
}

/// The device's part of a round that is counted. The lab's test knows it by its name.
#[inline(never)]
fn counted_turns(device: &Dataplane) {
    turns(device);
}

/// All loads, with their names: all ways that packets go, and then more and more around them, which
/// should not make packets dearer.
fn loads() -> Vec<(String, Load)> {
    let mut loads = Vec::new();
    for (way, verb) in WAYS {
        for (packed, form) in [(false, "split"), (true, "packed")] {
            let usual = |frame| Load {
                way,
                packed,
                frame,
                size: SIZE,
                pairs: 1,
                ports: 2,
            };
            let mut add = |what: String, load| loads.push((format!("{verb}-{form}-{what}"), load));
            for frame in FRAMES {
                add(frame.to_string(), usual(frame));
            }
            let small = usual(FRAMES[0]);
            for size in [64, 32768] {
                add(format!("ring-{size}"), Load { size, ..small });
            }
            if matches!(way, Way::Across) {
                for ports in [8, 64] {
                    add(format!("ports-{ports}"), Load { ports, ..small });
                }
            } else {
                for pairs in [8, 31] {
                    add(format!("pairs-{pairs}"), Load { pairs, ..small });
                }
            }
        }
    }
    loads
}

fn main() {
    let Some(wanted) = std::env::args().nth(1).filter(|arg| arg != "--bench") else {
        for (name, load) in loads() {
            println!("{name} {}", load.packets());
        }
        return;
    };
    let (_, load) = loads()
        .into_iter()
        .find(|(name, _)| *name == wanted)
        .expect("the argument is a load's name");
    let mut bench = Bench::new(load);
    for _ in 0..WARM_UP {
        bench.prepare();
        turns(&bench.device);
    }
    let before = bench.arrived();
    for _ in 0..load.rounds() {
        bench.prepare();
        counted_turns(&bench.device);
    }
    assert_eq!(
        bench.arrived() - before,
        load.packets(),
        "packets were lost"
    );
}
