// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Moves packets through a data path, for a program that counts instructions.
//!
//! It has no threads, waits for nothing, and takes no time: `cargo lab test instructions` runs it under
//! callgrind, which counts what [`counted_turns`] does. Drivers and the uplink are memory, and what they
//! do is not counted but for the uplink's copy. Before anything is counted some rounds go through, so
//! that nothing is done for the first time.
//!
//! Without an argument it prints the names of its loads, a line each; with one of them it moves
//! [`PACKETS`] packets of it, and ends badly if not all have arrived.

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
/// Rounds that are counted, of as many packets as a ring has entries.
const ROUNDS: usize = 8;
/// Packets that are counted. The lab's test has the same number.
const PACKETS: usize = ROUNDS * SIZE as usize;
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

/// A device that is ready to move packets of one kind.
struct Bench {
    /// The one that takes turns.
    device: Dataplane,
    rings: Vec<Ring>,
    /// Packets that the uplink is to bring.
    coming: Option<Arc<AtomicUsize>>,
    /// The NIC at which packets arrive.
    nic: Arc<Nic>,
    way: Way,
    /// What is there to be driven, and has nothing to do.
    _idle: Option<Dataplane>,
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
    fn new(way: Way, packed: bool, frame: usize) -> Self {
        match way {
            Way::Transmit | Way::Receive => Bench::with_uplink(way, packed, frame),
            Way::Across => Bench::with_switch(packed, frame),
        }
    }

    fn with_uplink(way: Way, packed: bool, frame: usize) -> Self {
        let coming = Arc::<AtomicUsize>::default();
        let mut packet = front(OWN, STATION);
        packet.resize(HEADER + frame, 0);
        let uplink = MemoryUplink(Some(Memory {
            coming: Arc::clone(&coming),
            ready: None,
            packet,
        }));
        let nic = support::nic();
        let device = Dataplane::new(nic.clone(), Box::new(uplink), &Workers::default()).unwrap();
        negotiate(&device, packed);
        let (index, ring) = match way {
            Way::Receive => (0, Ring::receive(packed)),
            _ => (1, Ring::transmit(packed, HEADER + frame)),
        };
        ring.fill(&front(STATION, OWN));
        start(&device, index, &ring);
        Bench {
            device,
            rings: vec![ring],
            coming: matches!(way, Way::Receive).then_some(coming),
            nic,
            way,
            _idle: None,
        }
    }

    fn with_switch(packed: bool, frame: usize) -> Self {
        let switch = Switch::new();
        let [(device, _), (receiver, nic)] = ["a", "b"].map(|name| {
            let nic = support::nic();
            let port = switch.add(name, nic.clone(), VlanMode::default()).unwrap();
            let device = Dataplane::new(nic.clone(), Box::new(port), &Workers::default()).unwrap();
            switch.connect(name, device.inlets());
            negotiate(&device, packed);
            (device, nic)
        });
        // The switch learns where the receiver is; nobody takes what this one says.
        let mut greeting = Ring::transmit(packed, HEADER + frame);
        greeting.fill(&front(OWN, STATION));
        greeting.offer_all();
        start(&receiver, 1, &greeting);
        while receiver.turn() {}

        let transmit = Ring::transmit(packed, HEADER + frame);
        transmit.fill(&front(STATION, OWN));
        start(&device, 1, &transmit);
        let receive = Ring::receive(packed);
        start(&receiver, 0, &receive);
        Bench {
            device,
            rings: vec![transmit, receive],
            coming: None,
            nic,
            way: Way::Across,
            _idle: Some(receiver),
        }
    }

    /// The drivers' part of a round, and the uplink's.
    fn prepare(&mut self) {
        for ring in &mut self.rings {
            ring.offer_all();
        }
        if let Some(coming) = &self.coming {
            coming.store(SIZE.into(), Ordering::Relaxed);
        }
    }

    /// Packets that have gone all the way.
    fn arrived(&self) -> usize {
        let counters = &self.nic.counters[0];
        let queue = match self.way {
            Way::Transmit => &counters.tx,
            Way::Receive | Way::Across => &counters.rx,
        };
        queue.packets.get() as usize
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

/// All loads, with their names.
fn loads() -> impl Iterator<Item = (String, Way, bool, usize)> {
    WAYS.into_iter().flat_map(|(way, verb)| {
        [(false, "split"), (true, "packed")]
            .into_iter()
            .flat_map(move |(packed, form)| {
                let load = move |frame| (format!("{verb}-{form}-{frame}"), way, packed, frame);
                FRAMES.into_iter().map(load)
            })
    })
}

fn main() {
    let Some(wanted) = std::env::args().nth(1).filter(|arg| arg != "--bench") else {
        for (name, ..) in loads() {
            println!("{name}");
        }
        return;
    };
    let (_, way, packed, frame) = loads()
        .find(|(name, ..)| *name == wanted)
        .expect("the argument is a load's name");
    let mut bench = Bench::new(way, packed, frame);
    for _ in 0..WARM_UP {
        bench.prepare();
        turns(&bench.device);
    }
    let before = bench.arrived();
    for _ in 0..ROUNDS {
        bench.prepare();
        counted_turns(&bench.device);
    }
    assert_eq!(bench.arrived() - before, PACKETS, "packets were lost");
}
